"""Which of the papers' assumptions a problem meets, and by what margin. They are reported, never demanded."""

import dataclasses

import numpy as np

from gdflow.levels import CriticalValues
from gdflow.ranks import RankDecision, decide_rank


@dataclasses.dataclass(frozen=True)
class Assumption:
    """One assumption: `name`, whether it `holds` (`None`: not checked), and `margin` in words and numbers."""

    name: str
    holds: bool | None
    margin: str


def _ratio(value: float, threshold: float) -> str:
    return "∞" if threshold == 0 else f"{value / threshold:.1e}"


def check_dimensions(m: int | None, d_x: int, d_y: int, hidden: tuple[int, ...] | None) -> Assumption:
    """(A1): `m ≥ d_x ≥ d_y` and `min(d_1, …, d_H) ≥ d_y` (Chitour, Liao, Couillet 2022, Assumption 1)."""
    holds = d_x >= d_y and (m is None or m >= d_x) and min(hidden or (d_y,)) >= d_y
    samples = "" if m is None else f"m={m}, "
    layers = "" if hidden is None else f", min hidden={min(hidden, default='none')}"
    return Assumption("A1 dimensions", holds, f"m ≥ d_x ≥ d_y, hidden ≥ d_y: {samples}d_x={d_x}, d_y={d_y}{layers}")


def check_ranks(rank_x: RankDecision, rank_y: RankDecision, d_x: int, d_y: int) -> Assumption:
    """(A2): `X` and `Y` have full row rank; the margin is smallest singular value over threshold."""
    holds = rank_x.rank == d_x and rank_y.rank == d_y
    parts = [
        f"rank {name}={r.rank} of {d}"
        + (f" (σ_min/threshold={_ratio(r.smallest_kept, r.threshold)})" if r.rank else "")
        for name, r, d in (("X", rank_x, d_x), ("Y", rank_y, d_y))
    ]
    uncertain = "" if rank_x.certain and rank_y.certain else "; near the threshold: UNCERTAIN"
    return Assumption("A2 full rank", holds, ", ".join(parts) + uncertain)


def check_distinct(s: np.ndarray, d_y: int) -> Assumption:
    """(A3): the `d_y×d_y` matrix `ȲȲᵀ` has distinct positive eigenvalues; the margin is the smallest relative gap."""
    squares = np.zeros(d_y)
    squares[: min(len(s), d_y)] = s[:d_y] ** 2
    gaps = np.append(squares[:-1] - squares[1:], squares[-1])
    top = squares[0]
    relative = gaps.min() / top if top > 0 else 0.0
    holds = decide_rank(gaps, size=d_y).rank == d_y
    return Assumption("A3 distinct s_i", holds, f"smallest gap of ȲȲᵀ = {relative:.2e} of its largest eigenvalue")


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
    return Assumption(name, holds, smallest + shared + zeros)
