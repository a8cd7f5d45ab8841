"""Which of the papers' assumptions a problem meets, by what margin, and what it costs where one fails.

They are reported, never demanded: certificates of limits need none of them.
"""

import dataclasses

import numpy as np

from gdflow.levels import CriticalValues
from gdflow.ranks import RankDecision, decide_rank


@dataclasses.dataclass(frozen=True)
class Assumption:
    """One assumption: `name`, whether it `holds` (`None`: not checked), `margin` in words and numbers, and `cost` if it fails."""

    name: str
    holds: bool | None
    margin: str
    cost: str = ""


def _ratio(value: float, threshold: float) -> str:
    return "∞" if threshold == 0 else f"{value / threshold:.1e}"


def check_dimensions(m: int | None, d_x: int, d_y: int, hidden: tuple[int, ...] | None) -> Assumption:
    """(A1): `m ≥ d_x ≥ d_y` and `min(d_1, …, d_H) ≥ d_y` (Chitour, Liao, Couillet 2022, Assumption 1)."""
    holds = d_x >= d_y and (m is None or m >= d_x) and min(hidden or (d_y,)) >= d_y
    samples = "" if m is None else f"m={m}, "
    layers = "" if hidden is None else f", min hidden={min(hidden, default='none')}"
    margin = f"m ≥ d_x ≥ d_y, hidden ≥ d_y: {samples}d_x={d_x}, d_y={d_y}{layers}"
    narrow = min(hidden or (d_y,)) < d_y
    cost = "a bottleneck bounds the rank of every limit, and the least loss with it" if narrow else ""
    if d_x < d_y or (m is not None and m < d_x):
        cost = "; ".join(
            filter(None, [cost, "fits have at most rank min(m, d_x), and the landscape is that of the transpose"])
        )
    return Assumption("A1 dimensions", holds, margin, cost)


def check_ranks(rank_x: RankDecision, rank_y: RankDecision, d_x: int, d_y: int) -> Assumption:
    """(A2): `X` and `Y` have full row rank; the margin is smallest singular value over threshold."""
    holds = rank_x.rank == d_x and rank_y.rank == d_y
    parts = [
        f"rank {name}={r.rank} of {d}"
        + (f" (σ_min/threshold={_ratio(r.smallest_kept, r.threshold)})" if r.rank else "")
        for name, r, d in (("X", rank_x, d_x), ("Y", rank_y, d_y))
    ]
    uncertain = "" if rank_x.certain and rank_y.certain else "; near the threshold: UNCERTAIN"
    cost = [
        "nothing is learnt in the null directions of X" if rank_x.rank < d_x else "",
        "a target of lower rank is fitted by networks of that rank" if rank_y.rank < d_y else "",
    ]
    return Assumption("A2 full rank", holds, ", ".join(parts) + uncertain, "; ".join(filter(None, cost)))


def check_distinct(s: np.ndarray, d_y: int) -> Assumption:
    """(A3): the `d_y×d_y` matrix `ȲȲᵀ` has distinct positive eigenvalues; the margin is the smallest relative gap."""
    squares = np.zeros(d_y)
    squares[: min(len(s), d_y)] = s[:d_y] ** 2
    gaps = np.append(squares[:-1] - squares[1:], squares[-1])
    top = squares[0]
    relative = gaps.min() / top if top > 0 else 0.0
    holds = decide_rank(gaps, size=d_y).rank == d_y
    margin = f"smallest gap of ȲȲᵀ = {relative:.2e} of its largest eigenvalue"
    cost = "subsets that exchange tied or zero s_i share one critical set: points are not classified by subsets there"
    return Assumption("A3 distinct s_i", holds, margin, cost)


def check_subset_sums(levels: CriticalValues) -> Assumption:
    """(A4): the sums `½Σ_{i∉S}s_i²` are pairwise distinct (over the subsets that occur as critical values)."""
    name = "A4 distinct levels"
    if not levels.complete:
        return Assumption(name, None, f"not checked: too many subsets (lowest {len(levels)} levels listed)")
    merged = sum(level.num_subsets > 1 for level in levels)
    holds = merged == 0 and all(s > 0 for s in levels.singular_values)
    gaps = np.diff(levels.values)
    top = max(sum(s**2 for s in levels.singular_values), np.finfo(float).tiny)
    smallest = f"smallest gap = {gaps.min() / top:.2e} of ‖Ȳ‖²" if gaps.size else "one level only"
    shared = f"; {merged} levels are shared by several subsets" if merged else ""
    zeros = (
        ""
        if all(s > 0 for s in levels.singular_values)
        else "; zero singular values cost nothing: subsets with and without"
    )
    return Assumption(
        name, holds, smallest + shared + zeros, "the level of a limit does not tell its subset, nor its rank"
    )
