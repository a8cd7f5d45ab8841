"""The critical values of the squared loss: the finite set `{½Σ_{i∉S} s_i²}`.

With singular values `s_1 ≥ s_2 ≥ …` of the target and rank bound `r_max`, the critical values of the effective loss are
`ℓ(S) = ½Σ_{i∉S} s_i²` over `S ⊂ {i : s_i > 0}`, `|S| ≤ r_max`, for any depth (Chitour, Liao, Couillet 2022, eq. (26),
printed there as the sum over `S`; the sum runs outside). There are exponentially many subsets, so they are *streamed* from the
lowest level upwards, singular values that tie are counted rather than enumerated, and levels that round-off cannot tell
apart are merged. Indices in subsets count from 1 as in the papers.
"""

import dataclasses
import heapq
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike
from rich.console import RenderableType

from gdflow.ranks import equal_threshold
from gdflow.tables import Printable, column_table

#: A full listing of more subsets than this is refused.
MAX_SUBSETS = 2**20
#: At most this many subsets of one level are spelt out.
MAX_LISTED = 16


@dataclasses.dataclass(frozen=True)
class Level:
    """One critical value of the effective loss (all subsets whose values count as equal).

    - `value`: the smallest of the merged values.
    - `width`: largest minus smallest of the merged values; zero up to round-off unless near-ties were merged.
    - `num_subsets`: how many subsets `S` have this value.
    - `subsets`: up to 16 of them, indices from 1.
    """

    value: float
    width: float
    num_subsets: int
    subsets: tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True, repr=False)
class CriticalValues(Printable, Sequence):
    """Critical values of the effective loss in increasing order, a sequence of `gdflow.levels.Level`.

    - `levels`: the levels; the first is the global minimum of the effective loss.
    - `singular_values`: `s_1 ≥ s_2 ≥ …`, zeros included.
    - `max_rank`: `r_max`, the bound on `|S|`.
    - `tolerance`: values closer than this are one level.
    - `complete`: whether these are all levels, or only the lowest ones.
    """

    levels: tuple[Level, ...]
    singular_values: tuple[float, ...]
    max_rank: int
    tolerance: float
    complete: bool

    def __len__(self) -> int:
        return len(self.levels)

    def __getitem__(self, k):
        return self.levels[k]

    @property
    def values(self) -> np.ndarray:
        """The levels' values, increasing."""
        return np.array([level.value for level in self.levels])

    def __rich__(self) -> RenderableType:
        what = "all" if self.complete else f"the lowest {len(self)}"
        table = column_table(f"Critical values ({what})", "level", "value", "subsets", "S")
        for k, level in enumerate(self.levels[:32]):
            shown = " ".join("{" + ",".join(map(str, s)) + "}" for s in level.subsets[:4])
            more = " …" if level.num_subsets > min(4, len(level.subsets)) else ""
            table.add_row(str(k), f"{level.value:.6g}", str(level.num_subsets), shown + more)
        if len(self) > 32:
            table.caption = f"({len(self) - 32} higher levels not shown)"
        return table


def _tied_groups(s: np.ndarray, tolerance: float) -> list[list[int]]:
    """0-based indices of positive singular values, grouped where their `½s²` cannot be told apart (each with its first)."""
    groups: list[list[int]] = []
    for i in np.flatnonzero(s > 0):
        if groups and 0.5 * (s[groups[-1][0]] ** 2 - s[i] ** 2) <= tolerance:
            groups[-1].append(int(i))
        else:
            groups.append([int(i)])
    return groups


def _count_vectors(s: np.ndarray, groups: list[list[int]], max_rank: int) -> Iterator[tuple[float, tuple[int, ...]]]:
    """Streams (value, how many of each group are in S) from the lowest value of `ℓ(S)` upwards.

    Best-first search. `S` is filled up to `max_rank` elements with dummies of value zero (a last group), so that every
    choice is reached from the best one by moving single elements to the next group with room, each move raising `ℓ`.
    """
    sizes = [len(g) for g in groups] + [max_rank]
    gains = [np.concatenate([[0.0], np.cumsum(0.5 * s[g] ** 2)]) for g in groups]
    total = math.fsum(0.5 * s**2)

    def value(counts):
        return total - math.fsum(gain[c] for gain, c in zip(gains, counts, strict=False))

    best, room = [], max_rank
    for size in sizes:
        best.append(min(size, room))
        room -= best[-1]
    heap = [(value(best), tuple(best))]
    seen = {tuple(best)}
    while heap:
        level, counts = heapq.heappop(heap)
        yield max(level, 0.0), counts[:-1]
        for g in range(len(groups)):
            if counts[g] > 0 and counts[g + 1] < sizes[g + 1]:
                moved = list(counts)
                moved[g] -= 1
                moved[g + 1] += 1
                if tuple(moved) not in seen:
                    seen.add(tuple(moved))
                    heapq.heappush(heap, (value(moved), tuple(moved)))


def _subsets(groups: list[list[int]], counts: Sequence[int]) -> Iterator[tuple[int, ...]]:
    # itertools.product holds its factors in full; its first elements need no more than the first of each factor.
    choices = [itertools.islice(itertools.combinations(g, c), MAX_LISTED) for g, c in zip(groups, counts, strict=True)]
    for parts in itertools.product(*choices):
        yield tuple(sorted(i + 1 for part in parts for i in part))


def _prepare(singular_values: ArrayLike, tolerance: float | None) -> tuple[np.ndarray, float]:
    s = np.asarray(singular_values, dtype=np.float64)
    if s.ndim != 1 or not np.all(np.isfinite(s) & (s >= 0)):
        raise ValueError(f"singular values must be a list of finite numbers, none negative; got {s.tolist()}")
    s = -np.sort(-s)
    return s, equal_threshold(float(np.sum(s**2))) if tolerance is None else tolerance


def iterate_levels(singular_values: ArrayLike, max_rank: int, *, tolerance: float | None = None) -> Iterator[Level]:
    """Streams the critical values of the effective loss from the lowest upwards.

    **Arguments:**

    - `singular_values`: of the target, non-negative, any order.
    - `max_rank`: `r_max = min(ρ, d_1, …, d_N)`.
    - `tolerance`: levels closer than this merge; by default `gdflow.ranks.equal_threshold` of `Σs_i²` in float64.
    """
    _check_rank_bound(max_rank)
    return _merge(*_prepare(singular_values, tolerance), max_rank)


def _check_rank_bound(max_rank: int) -> None:
    if max_rank < 0:
        raise ValueError(f"max_rank must not be negative, got {max_rank}")


def _merge(s: np.ndarray, tolerance: float, max_rank: int) -> Iterator[Level]:
    groups = _tied_groups(s, tolerance)
    halves = [0.5 * s[g] ** 2 for g in groups]
    max_rank = min(max_rank, sum(map(len, groups)))

    def merged(members):
        values = [v for v, _ in members]
        # Inside a group `value` leaves out the smallest members; leaving out the largest costs most.
        spreads = [
            sum(float(h[:k].sum() - h[len(h) - k :].sum()) for h, k in zip(halves, c, strict=True)) for _, c in members
        ]
        highest = max(v + spread for v, spread in zip(values, spreads, strict=True))
        listed = itertools.islice(itertools.chain.from_iterable(_subsets(groups, c) for _, c in members), MAX_LISTED)
        count = sum(math.prod(math.comb(len(g), k) for g, k in zip(groups, c, strict=True)) for _, c in members)
        return Level(values[0], max(highest - values[0], 0.0), count, tuple(listed))

    members: list[tuple[float, tuple[int, ...]]] = []
    for value, counts in _count_vectors(s, groups, max_rank):
        if members and value - members[0][0] > tolerance:
            yield merged(members)
            members = []
        members.append((value, counts))
    yield merged(members)


def list_levels(
    singular_values: ArrayLike, max_rank: int, *, lowest: int | None = None, tolerance: float | None = None
) -> CriticalValues:
    """The critical values as a table: all of them, or the `lowest` ones without enumerating the rest.

    **Raises:** `ValueError` if all are asked for and there are more than 2²⁰ subsets.
    """
    s, tolerance = _prepare(singular_values, tolerance)
    if lowest is not None and lowest < 1:
        raise ValueError(f"lowest must be at least 1, got {lowest}")
    if lowest is None:
        positive = int(np.sum(s > 0))
        count = sum(math.comb(positive, r) for r in range(min(max_rank, positive) + 1))
        if count > MAX_SUBSETS:
            raise ValueError(
                f"{positive} positive singular values with rank at most {max_rank} have {count:.3g} subsets, more than "
                f"{MAX_SUBSETS}: ask for the lowest k with lowest=k, or stream them with iterate_critical_values"
            )
    stream = iterate_levels(s, max_rank, tolerance=tolerance)
    levels = tuple(stream if lowest is None else itertools.islice(stream, lowest))
    complete = lowest is None or next(stream, None) is None
    return CriticalValues(levels, tuple(map(float, s)), max_rank, tolerance, complete)


def nested_levels(
    singular_values: ArrayLike, max_rank: int, *, lowest: int | None = None, tolerance: float | None = None
) -> CriticalValues:
    """The distinct values among `ℓ({1..r}) = ½Σ_{i>r}s_i²`, `r = max_rank, …, 0`, increasing.

    The levels of the best fits of rank `r`, the only ones at which a limit lies for almost every start (Terstiege, Rauhut,
    Bah, Westdickenberg 2022, Theorem 5a).
    """
    s, tolerance = _prepare(singular_values, tolerance)
    _check_rank_bound(max_rank)
    levels: list[Level] = []
    for r in range(min(max_rank, int(np.sum(s > 0))), -1, -1):
        value, subset = 0.5 * math.fsum(s[r:] ** 2), tuple(range(1, r + 1))
        if levels and value - levels[-1].value <= tolerance:
            last = levels[-1]
            listed = (*last.subsets, subset)[:MAX_LISTED]
            levels[-1] = Level(last.value, value - last.value, last.num_subsets + 1, listed)
        else:
            levels.append(Level(value, 0.0, 1, (subset,)))
    shown = tuple(levels[:lowest])
    return CriticalValues(shown, tuple(map(float, s)), max_rank, tolerance, len(shown) == len(levels))
