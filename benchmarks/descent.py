"""Gradient descent and Adam from many starts, gdflow's lanes and plain loops side by side in one run.

    python benchmarks/descent.py [--num NUM] [--repeats NUM] [--fast] [--out FOLDER]

*Equal steps*: every start makes the same number of steps. *Until done*: until its loss is below the second-lowest critical value;
a plain loop over a batch waits for the slowest start. Prints a table and, with `--out`, writes it to FOLDER/descent.md. See
README.md beside this file.
"""

import argparse
import functools
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from basins import machine  # noqa: E402

import gdflow as gf  # noqa: E402
from gdflow.basins import Descent, GradientDescent, Limits, make_plan  # noqa: E402
from gdflow.verdicts import AbstractVerdict  # noqa: E402

WIDTHS, VALUES = (6, 5, 5, 3), (3.0, 2.0, 1.0)
#: Optimizers, their steps, and how many of these are made where all starts make as many.
OPTIMIZERS = {"gradient descent": (optax.sgd, 0.05, 300), "adam": (optax.adam, 0.01, 300)}
BATCH, MOST = 1000, 20_000
#: The second-lowest critical value of these data, ½·1².
LEVEL = 0.5
KEY = jax.random.key(0)


class Below(AbstractVerdict):
    """A start is done once its loss is below a level: with a level of −1 never."""

    level: float

    @property
    def labels(self):
        return ("below the level",)

    def begin(self, objective, now):
        return None, now.loss < self.level

    def look(self, objective, state, now, kept):
        return None, kept & (now.loss < self.level)

    def settle(self, objective, state, now, decided):
        return jnp.where(decided, 0, -1), jnp.zeros(decided.shape, int)


def loss(weights, target):
    """As one would write it down."""
    product = weights[0]
    for w in weights[1:]:
        product = w @ product
    return 0.5 * jnp.sum((target - product) ** 2)


def starts(num: int) -> list[jax.Array]:
    law = gf.initialization.Gaussian(WIDTHS)
    return list(law.sample_batch(KEY, range(num)).weights)


def lanes(optimizer, step, steps, num, level) -> Callable[[], np.ndarray]:
    problem = gf.Problem.from_singular_values(VALUES, WIDTHS[0], WIDTHS[-1])
    method = GradientDescent(step) if optimizer is optax.sgd else Descent(optimizer, step)
    plan = make_plan(
        problem, gf.initialization.Gaussian(WIDTHS), key=KEY, method=method, verdict=Below(level), riders=(),
        limits=Limits(max_steps=steps, gradient_tolerance=1e-300, dwell=1e9),
    )  # fmt: skip
    return lambda: plan.collect(range(num))["loss"].to_numpy()


def plain(optimizer, step, steps, num, level) -> Callable[[], np.ndarray]:
    """`jax.vmap` of a scan, or of a loop until a start is done, batch by batch."""
    made, target = optimizer(step), jnp.asarray(np.eye(3, 6) * np.array(VALUES)[:, None])

    def advance(carry):
        weights, state, _ = carry
        gradient = jax.grad(loss)(weights, target)
        updates, state = made.update(gradient, state, weights)
        weights = optax.apply_updates(weights, updates)
        return weights, state, loss(weights, target)

    def one(weights):
        begin = (weights, made.init(weights), loss(weights, target))
        if level < 0:
            return jax.lax.scan(lambda carry, _: (advance(carry), None), begin, length=steps)[0][2]

        def going(counted):
            return (counted[0][2] >= level) & (counted[1] < steps)

        return jax.lax.while_loop(going, lambda c: (advance(c[0]), c[1] + 1), (begin, 0))[0][2]

    run = jax.jit(jax.vmap(one))
    size = min(BATCH, num)

    def all_of_them():
        weights = starts(num)
        parts = [run([w[k : k + size] for w in weights]) for k in range(0, num, size)]
        return np.concatenate([np.asarray(p) for p in jax.block_until_ready(parts)])

    return all_of_them


def torch_loop(optimizer, step, steps, num, level) -> Callable[[], np.ndarray]:
    """PyTorch's optimizers on a batch of networks, whose losses are added up: its optimizers work entry by entry."""
    import torch

    torch.set_num_threads(2)
    kinds: dict[Any, Any] = {optax.sgd: torch.optim.SGD, optax.adam: torch.optim.Adam}
    target = torch.tensor(np.eye(3, 6) * np.array(VALUES)[:, None])

    def all_of_them():
        ends = []
        drawn = [np.array(w) for w in starts(num)]
        for k in range(0, num, BATCH):
            weights = [torch.tensor(w[k : k + BATCH], requires_grad=True) for w in drawn]
            made = kinds[optimizer](weights, lr=step)
            for _ in range(steps):
                made.zero_grad()
                product = functools.reduce(lambda a, b: b @ a, weights)
                losses = 0.5 * ((target - product) ** 2).sum(dim=(1, 2))
                if level >= 0 and bool((losses < level).all()):
                    break
                losses.sum().backward()
                made.step()
            with torch.no_grad():
                product = functools.reduce(lambda a, b: b @ a, weights)
                ends.append((0.5 * ((target - product) ** 2).sum(dim=(1, 2))).numpy())
        return np.concatenate(ends)

    return all_of_them


CONTENDERS = {
    "gdflow's lanes": lanes,
    f"jax.vmap and Optax, batches of {BATCH}": plain,
    f"PyTorch, batches of {BATCH}": torch_loop,
}


def compare(name: str, level: float, num: int, repeats: int) -> list[str]:
    optimizer, step, steps = OPTIMIZERS[name]
    steps = steps if level < 0 else MOST
    runs, first, ends, missing = {}, {}, {}, []
    for label, make in CONTENDERS.items():
        try:
            runs[label] = make(optimizer, step, steps, num, level)
        except ImportError as error:
            missing.append(f"{label}: {error}")
            continue
        begin = time.perf_counter()
        ends[label] = runs[label]()
        first[label] = time.perf_counter() - begin
    turns: dict[str, list[float]] = {label: [] for label in runs}
    for _ in range(repeats):
        for label, run in runs.items():
            begin = time.perf_counter()
            run()
            turns[label].append(time.perf_counter() - begin)
    base, lines = turns["gdflow's lanes"], []
    for label, seconds in turns.items():
        apart = float(np.max(abs(ends[label] - ends["gdflow's lanes"]))) if level < 0 else float("nan")
        ratio = statistics.median(a / b for a, b in zip(seconds, base, strict=True))
        what = f"{steps} steps" if level < 0 else f"loss < {level:g}"
        lines.append(
            f"| {name}, {what} | {label} | {1e6 * statistics.median(seconds) / num:.3g} | {ratio:.2f} "
            f"| {first[label] - statistics.median(seconds):.1f} | {np.mean(ends[label] < LEVEL):.4f} | {apart:.1e} |"
        )
        print(lines[-1], file=sys.stderr, flush=True)
    return lines + [f"Left out: {line}" for line in missing]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num", type=int, default=20_000, help="starts")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs after the first")
    parser.add_argument("--fast", action="store_true", help="few starts, one repeat: a check that everything runs")
    parser.add_argument("--out", type=pathlib.Path, metavar="FOLDER", help="where to write descent.md")
    options = parser.parse_args()
    num, repeats = (2000, 1) if options.fast else (options.num, options.repeats)
    m = machine()
    lines = [
        f"{m['date']}; {m['cpu']}, {m['cores']} cores, jax {m['versions']['jax']}; {num} starts of widths "
        f"{'-'.join(map(str, WIDTHS))}, whitened, singular values {VALUES}",
        "",
        "| | who | µs per start | × | first run adds, s | below the level | losses apart ≤ |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in OPTIMIZERS:
        for level in (-1.0, LEVEL):
            lines += compare(name, level, num, repeats)
    print("\n".join(lines))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "descent.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
