"""Basins of small networks on real data: how many limits, how likely, and whether other starts say the same.

    python benchmarks/real_data.py [--data linnerud iris] [--activations tanh relu] [--hidden 2 3 4 5 6] [--num NUM]
                                   [--out FOLDER]

Squared error, standardised data, one hidden layer, weight decay. Every case is run with two keys and audited. The fractions of
the two runs are compared by a χ² test of homogeneity, rare limits taken together. Prints a table and, with `--out`, writes it
to FOLDER/real_data.md after every case. See README.md beside this file.
"""

import argparse
import pathlib
import sys
import time

import jax

jax.config.update("jax_enable_x64", True)

import numpy as np  # noqa: E402
import scipy.stats  # noqa: E402

import gdflow as gf  # noqa: E402
from gdflow.basins.estimate import BasinRow  # noqa: E402
from gdflow.data.bundled import NAMED  # noqa: E402

#: Decay, starts with each key, and how many of these are audited, by data and activation: a start takes from milliseconds to
#: seconds, and on kinks an audit ten times as long.
CASES = {
    ("linnerud", "tanh"): (0.1, 400, 40),
    ("linnerud", "relu"): (0.1, 60, 8),
    ("iris", "tanh"): (1.0, 100, 40),
    ("iris", "relu"): (1.0, 20, 6),
}
#: Limits of two runs are the same if their losses differ by less, relative to their size.
SAME = 1e-6
HEADER = (
    "| data | activation, widths, decay | starts | certified | located | undecided | limits "
    "| most frequent, % [interval] at loss | others together ≤ % | p of the seeds | flips | s |"
)


def limits_of(estimates: list[gf.basins.BasinEstimate]) -> list[float]:
    """The losses of the limits of several runs."""
    losses: list[float] = []
    for loss in sorted(limit.loss for estimate in estimates for limit in estimate.found):
        if not losses or loss - losses[-1] > SAME * max(1.0, abs(loss)):
            losses.append(loss)
    return losses


def counts(estimate: gf.basins.BasinEstimate, losses: list[float]) -> np.ndarray:
    """Starts at each limit, and those that are undecided."""
    number = np.zeros(len(losses) + 1, int)
    for row in estimate.rows:
        if row.found is not None:
            number[int(np.argmin(np.abs(np.array(losses) - row.found.loss)))] += row.certified + row.located
    number[-1] = estimate.num - number.sum()
    return number


def homogeneity(first: np.ndarray, second: np.ndarray) -> float:
    """p-value of the χ² test that two rows of counts are of one law; columns with few counts are taken together."""
    both = np.stack([first, second])
    few = both.sum(axis=0) < 10
    table = np.concatenate([both[:, ~few], both[:, few].sum(axis=1, keepdims=True)], axis=1)
    table = table[:, table.sum(axis=0) > 0]
    return 1.0 if table.shape[1] < 2 else float(scipy.stats.chi2_contingency(table, correction=False).pvalue)


def share(row: BasinRow, num: int) -> str:
    """In percent, with its interval, labels taken to be right: flips stand beside."""
    low, high = (100 * end for end in row.unaudited)
    return f"{100 * (row.certified + row.located) / num:.1f} [{low:.1f}, {high:.1f}] at {row.found.loss:.4f}"


def case(data: str, activation: str, hidden: int, num: int | None) -> str:
    """A row of the table."""
    decay, many, audited = CASES[data, activation]
    num = many if num is None else num
    source = NAMED[data]
    targets = dict(label=source.label) if source.label else {}
    problem = gf.Problem.from_csv(source.path, source.targets, activations=activation, weight_decay=decay, **targets)
    law = gf.initialization.Gaussian(problem.widths([hidden]))
    begin = time.perf_counter()
    runs = [
        gf.basin_sizes(problem, law, num, key=jax.random.key(seed), progress=False, audit=min(num, audited))
        for seed in (1, 2)
    ]
    seconds = time.perf_counter() - begin
    first = runs[0]
    losses = limits_of(runs)
    p = homogeneity(*(counts(run, losses) for run in runs))
    frequent = sorted(
        (row for row in first.rows if row.found is not None), key=lambda row: -(row.certified + row.located)
    )[:3]
    shown = "; ".join(share(row, num) for row in frequent)
    widths = "-".join(map(str, law.widths))
    return (
        f"| {data} | {activation}, {widths}, {decay:g} | 2 × {num} | {sum(run.certified for run in runs)} "
        f"| {sum(run.located for run in runs)} | {sum(run.undecided for run in runs)} | {len(losses)} | {shown} "
        f"| {100 * first.unseen:.1f} | {p:.2g} | {'; '.join(f'{run.audit.flips} of {run.audit.num}' for run in runs)} "
        f"| {seconds:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", default=["linnerud", "iris"], choices=["linnerud", "iris"])
    parser.add_argument("--activations", nargs="+", default=["tanh", "relu"], choices=["tanh", "relu"])
    parser.add_argument("--hidden", nargs="+", type=int, default=[2, 3, 4, 5, 6])
    parser.add_argument("--num", type=int, help="starts with each key")
    parser.add_argument("--out", type=pathlib.Path, metavar="FOLDER", help="where to write real_data.md")
    options = parser.parse_args()
    lines = [HEADER, "|" + "---|" * (HEADER.count("|") - 1)]
    for data in options.data:
        for activation in options.activations:
            for hidden in options.hidden:
                lines.append(case(data, activation, hidden, options.num))
                print(lines[-1], file=sys.stderr, flush=True)
                if options.out:
                    options.out.mkdir(parents=True, exist_ok=True)
                    (options.out / "real_data.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
