"""Claims that several figures make, each decided by a criterion from curves."""

from collections.abc import Mapping, Sequence

import numpy as np

from gdflow.experiments.results import Claim, Curve, every, number_text
from gdflow.experiments.riemannian.figures import Entry
from gdflow.experiments.riemannian.runs import Run

#: A run has converged when its error is this fraction of the first one …
CONVERGED = 1e-5
#: … and runs are ranked by the times at which it falls to this one.
RANKED = 1e-2


#: A time, infinite where it was not reached, and the end of its run.
Timing = tuple[float, float]


def timing(curve: Curve, fraction: float = RANKED) -> Timing:
    """When a curve falls to this fraction of its first value."""
    return curve.time_to(fraction), float(curve.times[-1])


def run_name(run: Run) -> str:
    """Size, depth and kind of start."""
    return f"(d={run.case.d}, N={run.case.depth}, {run.case.start_name})"


def times_text(entries: Sequence[Entry], fraction: float = RANKED) -> str:
    """When each run falls to this fraction, for people."""
    return ", ".join(f"{run_name(run)} {number_text(curve.time_to(fraction))}" for run, curve in entries)


def is_longer(first: Timing, second: Timing) -> bool | None:
    """Whether the second time is longer than the first."""
    (a, end_a), (b, end_b) = first, second
    if np.isfinite(a):
        return a < b if np.isfinite(b) else True if end_b > a else None
    return False if np.isfinite(b) and end_a > b else None


def are_alike(first: Timing, second: Timing) -> bool | None:
    """Whether two times differ by less than a factor 2."""
    (a, end_a), (b, end_b) = first, second
    if np.isfinite(a) and np.isfinite(b):
        return bool(0.5 < a / b < 2)
    return False if (np.isfinite(a) and end_b > 2 * a) or (np.isfinite(b) and end_a > 2 * b) else None


def still_falls(curve: Curve, limit: float = 0.0) -> bool:
    """Whether the distance from the limit falls by at least 1 % in the second half of the run."""
    return bool(curve.final - limit < 0.99 * (curve.at(0.5 * float(curve.times[-1])) - limit))


def all_settle(errors: Mapping[str, float], falling: Mapping[str, bool], bound: float) -> bool | None:
    """Whether every run ends below the bound; not decided where one does not and still falls."""
    return every(True if error < bound else None if falling[label] else False for label, error in errors.items())


def listed(values: Mapping[str, float], digits: int = 2) -> str:
    """The numbers of several runs, for people."""
    return ", ".join(f"{label} {value:.{digits}g}" for label, value in values.items())


def converges(entries: Sequence[Entry], statement: str) -> Claim:
    """That the errors go to zero, or still fall where the runs end."""
    ratios = {run_name(run): curve.final / curve.values[0] for run, curve in entries}
    falling = {run_name(run): still_falls(curve) for run, curve in entries}
    return Claim(
        statement,
        f"in every run the error at T is below {CONVERGED:g} of the first one; not decided where it is not but still falls, "
        "by at least 1 % in the second half of the run",
        all_settle(ratios, falling, CONVERGED),
        "error at T over the first: " + listed(ratios),
    )


def slower_with_depth(panels: Sequence[Sequence[Entry]], statement: str, fraction: float = RANKED) -> Claim:
    """That deeper networks of the same panel take longer."""
    rows = [[timing(curve, fraction) for _, curve in entries] for entries in panels]
    return Claim(
        statement,
        f"in every panel the time to {fraction:g} of the first value increases from every N to the next",
        every(is_longer(a, b) for row in rows for a, b in zip(row[:-1], row[1:], strict=True)),
        "times: " + "; ".join(times_text(entries, fraction) for entries in panels),
    )


def slower_with_size(panels: Sequence[Sequence[Entry]], statement: str) -> Claim:
    """That the larger networks, in the second panel, take longer."""
    small, large = ({run.case.depth: timing(curve) for run, curve in entries} for entries in panels)
    return Claim(
        statement,
        f"for every N the time to {RANKED:g} of the first error is longer in the right panel",
        every(is_longer(small[depth], time) for depth, time in large.items()),
        ", ".join(f"N={N}: {number_text(small[N][0])} and {number_text(b)}" for N, (b, _) in large.items()),
    )
