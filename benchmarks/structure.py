"""Which integration keeps a start on its side of `det W = 0`: accuracy and cost of structure-preserving ways, in a table.

    python benchmarks/structure.py [--end 100]

A balanced 2×2 start with `det W < 0` and the target `diag(2, 1)`: the exact flow keeps the sign and tends to rank 1, loss ½. The
determinant falls like e^{−2t}, and what is left of it in floating point decides the limit: truncation errors of an explicit
method, round-off of Gauss–Legendre collocation (which keeps C_1 exactly, but not in floating point). Repeated projection holds
because rounding the product wipes out what has grown since the last one; the graded form because it loses nothing.

Columns: the largest error of `W` up to t = 5 against a reference (Dopri8 at rtol 1e-13 on the factors), drift of `C_1` up to
then, when the sign of `det W` was first found wrong (never: up to `--end`), the loss at the end (right: ½), and the cost per
unit of time, compiled before.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import jax

jax.config.update("jax_enable_x64", True)

import diffrax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import rich.console  # noqa: E402
import scipy.linalg  # noqa: E402

import gdflow as gf  # noqa: E402
from gdflow.manifold import balanced_factors  # noqa: E402
from gdflow.tables import column_table  # noqa: E402

PROBLEM = gf.Problem.from_singular_values([2.0, 1.0])
EARLY = np.linspace(0.0, 5.0, 51)
#: Intervals between projections onto the balanced factors.
INTERVAL = 0.5


def rotation(angle: float) -> np.ndarray:
    return scipy.linalg.expm(np.array([[0.0, angle], [-angle, 0.0]]))


def start() -> gf.LayerTuple:
    """Hidden units turned away from the singular directions: along them, small singular values would sit in rows of their own."""
    W0 = rotation(0.6) @ np.diag([0.5, -0.4]) @ rotation(-1.1)
    first, last = balanced_factors(jnp.asarray(W0), 2, 2).weights
    return gf.LayerTuple([rotation(0.3) @ first, last @ rotation(-0.3)])


def factors(**options) -> Callable:
    """Integration of the factors: matrices, signs of the determinant and drift at given times."""

    def run(ts: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        flow = gf.simulate(PROBLEM, start(), float(ts[-1]), ts=ts, dense=False, max_steps=200_000, **options)
        W = np.asarray(jax.vmap(lambda net: net.end_to_end)(flow.networks))
        # Of the factors one by one, which are better conditioned than their product.
        signs = np.prod([np.linalg.slogdet(np.asarray(w))[0] for w in flow.networks.weights], axis=0)
        return W, signs, float(np.max(flow.drift))

    return run


def projected(ts: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Factors, put back onto the balanced ones of the same product after every interval."""

    @jax.jit
    def advance(net, _):
        flow = gf.simulate(PROBLEM, net, INTERVAL, ts=[INTERVAL], dense=False, rtol=1e-8, atol=1e-11)
        W = flow.final.end_to_end
        return balanced_factors(W, 2, 2), (
            W,
            jnp.prod(jnp.stack([jnp.linalg.slogdet(w)[0] for w in flow.final.weights])),
        )

    count = round(float(ts[-1]) / INTERVAL)
    first = start()
    _, (W, signs) = jax.lax.scan(advance, first, None, length=count)
    grid = INTERVAL * np.arange(count + 1)
    W = np.concatenate([np.asarray(first.end_to_end)[None], np.asarray(W)])
    signs = np.concatenate([[-1.0], np.asarray(signs)])
    index = np.searchsorted(grid, ts + 1e-9, side="right") - 1
    exact = np.isclose(grid[index], ts)
    return np.where(exact[:, None, None], W[index], np.nan), signs[index], 0.0


def riemannian(form: gf.dynamics.AbstractForm) -> Callable:
    def run(ts: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        W0 = start().end_to_end
        flow = gf.riemannian_flow(
            PROBLEM, W0, 2, float(ts[-1]), ts=jnp.asarray(ts), rtol=1e-8, atol=1e-11, max_steps=200_000, form=form
        )  # fmt: skip
        signs = np.prod([np.linalg.slogdet(np.asarray(x))[0] for x in jax.tree.leaves(flow.factors)], axis=0)
        return np.asarray(flow.matrices), signs, float("nan")

    return run


WAYS = {
    "factors, RK4, step 0.05": factors(step=0.05),
    "factors, Tsit5, rtol 1e-8": factors(rtol=1e-8, atol=1e-11),
    "factors, Dopri8, rtol 1e-13": factors(solver=diffrax.Dopri8(), rtol=1e-13, atol=1e-15),
    "factors, Gauss–Legendre (6), step 0.1": factors(solver=gf.GaussLegendre(3), step=0.1),
    f"factors, Tsit5, projected every {INTERVAL}": projected,
    "low-rank form, Tsit5": riemannian(gf.dynamics.LowRank(boundary=0.0)),
    "graded form, Tsit5": riemannian(gf.dynamics.Graded()),
}


def cost(run: Callable, end: float) -> float:
    """Median milliseconds per unit of time, of five runs, compiled before."""
    ts = np.array([0.0, end])
    run(ts)
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        run(ts)
        seconds.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(seconds) / end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--end", type=float, default=100.0, help="how long to watch the sign")
    end = parser.parse_args().end
    reference, _, _ = factors(solver=diffrax.Dopri8(), rtol=1e-13, atol=1e-15)(EARLY)
    late = np.linspace(0.0, end, round(2 * end) + 1)
    table = column_table(
        "Keeping the side of det W = 0", "way", "error of W, t ≤ 5", "drift of C_1, t ≤ 5", "sign wrong from", "loss at the end",
        "ms per unit of time",
    )  # fmt: skip
    for name, run in WAYS.items():
        early, _, drift = run(EARLY)
        W, signs, _ = run(late)
        wrong = np.flatnonzero(signs > 0)
        losses = 0.5 * np.sum((np.diag([2.0, 1.0]) - W) ** 2, axis=(1, 2))
        table.add_row(
            name, f"{np.nanmax(np.linalg.norm(early - reference, axis=(1, 2))):.1e}", f"{drift:.1e}",
            f"t = {late[wrong[0]]:g}" if wrong.size else "never", f"{losses[-1]:.6f}", f"{cost(run, end):.3g}",
        )  # fmt: skip
    rich.console.Console(width=140).print(table)


if __name__ == "__main__":
    main()
