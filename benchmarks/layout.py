"""Which layout and how many lanes suit which widths: regenerates the rule in `gdflow.basins`.

    python benchmarks/layout.py [--widths 2 4 6 8 12 16 24 32 48 64]

Times the field `−∇L` of networks w-w-w-w, and of workload C's 64-32-32-64, in float64, called from one thread, with the
lanes along the last axis (products as sums over the inner index) and along the first (batched matrix products), and prints
nanoseconds per lane with the share of the machine's matrix-product rate (1024 × 1024). The rule: the widest layers for which
the last axis wins are `gdflow.layouts.NARROW`; the number of lanes from which on it no longer gets faster, as many
numbers as fit into the cache, is `gdflow.basins.plan.default_lanes`.
"""

import argparse
import functools
import statistics
import time

import jax

jax.config.update("jax_enable_x64", True)

import equinox as eqx  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

import gdflow as gf  # noqa: E402
from gdflow.basins.lanes import COMPILER_OPTIONS  # noqa: E402
from gdflow.basins.methods import RungeKutta  # noqa: E402
from gdflow.layouts import AbstractLayout, LanesFirst, LanesLast  # noqa: E402

LANES = (8, 16, 32, 64, 128, 256)


def median_seconds(run, *args) -> float:
    """Of seven runs, compiled before."""
    jax.block_until_ready(run(*args))
    seconds = []
    for _ in range(7):
        begin = time.perf_counter()
        jax.block_until_ready(run(*args))
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def products(widths: tuple[int, ...]) -> int:
    """Multiply-adds of one field: products on the way there, gradients, products on the way back."""
    return 3 * widths[0] * sum(a * b for a, b in zip(widths[1:-1], widths[2:], strict=True))


def field_seconds(widths: tuple[int, ...], lanes: int, layout: AbstractLayout) -> float:
    """Of one field in one lane."""
    problem = gf.Problem.from_singular_values(np.linspace(3, 1, min(widths[0], widths[-1])), d_x=widths[0])
    law = gf.initialization.Gaussian(widths)
    method, objective = RungeKutta(chosen_layout=layout), problem.isometric().objective
    repeats = max(3, int(1e7 / (lanes * products(widths))))

    @functools.partial(eqx.filter_jit, compiler_options=COMPILER_OPTIONS)
    def run(method, objective, y):
        def body(_, y):
            return jax.tree.map(lambda a, b: a + 1e-6 * b, y, method.field(objective, y)[0])

        return jax.lax.fori_loop(0, repeats, body, y)

    starts = layout.pack(law.sample_batch(jax.random.key(0), range(lanes)))
    return median_seconds(run, method, objective, starts) / repeats / lanes


def matmul_rate(size: int = 1024) -> float:
    """Multiply-adds per second of a large product."""
    a = jnp.ones((size, size))
    return size**3 / median_seconds(jax.jit(lambda a: a @ a, compiler_options=COMPILER_OPTIONS), a)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[2, 4, 6, 8, 12, 16, 24, 32, 48, 64])
    widths = parser.parse_args().widths
    rate = matmul_rate()
    print(f"matrix product: {2e-9 * rate:.0f} GFLOP/s\n")
    print(
        "| widths | lanes along | " + " | ".join(f"{n} lanes" for n in LANES) + " | best: share of the product's rate |"
    )
    print("|---" * (len(LANES) + 3) + "|")
    for shape in [(w,) * 4 for w in widths] + [(64, 32, 32, 64)]:
        for name, layout in (("last axis", LanesLast()), ("first axis", LanesFirst())):
            seconds = [field_seconds(shape, lanes, layout) for lanes in LANES]
            share = products(shape) / min(seconds) / rate
            shown = " | ".join(f"{1e9 * s:.0f} ns" for s in seconds)
            print(f"| {'-'.join(map(str, shape))} | {name} | {shown} | {100 * share:.0f} % |", flush=True)


if __name__ == "__main__":
    main()
