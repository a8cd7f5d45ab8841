"""The critical values of the squared loss: the finite set `{½Σ_{i∉S} s_i²}`.

With singular values `s_1 ≥ s_2 ≥ …` of the target and rank bound `r_max`, the critical values of the effective loss are
`ℓ(S) = ½Σ_{i∉S} s_i²` over `S ⊂ {i : s_i > 0}`, `|S| ≤ r_max`, for any depth (Chitour, Liao, Couillet 2022, eq. (26),
printed there as the sum over `S`; the sum runs outside). There are exponentially many subsets, so they are *streamed* from the
lowest level upwards, singular values that tie are counted rather than enumerated, and levels that round-off cannot tell
apart are merged. Indices in subsets count from 1 as in the papers.

*Merging.* Singular values whose `½s²` a chain of steps within the tolerance joins form a group, and those that such a chain
joins to zero a last one. Subsets that exchange members of one group belong to one level; so do those of other groups whose
values happen to coincide. `level_groups` is that rule, for the listing here and for the certificate's threshold alike.
"""

import dataclasses
import functools
import heapq
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Array
from numpy.typing import ArrayLike
from rich.console import RenderableType

from gdflow.ranks import equal_threshold
from gdflow.tables import Printable, column_table

#: A full listing of more subsets than this is refused.
MAX_SUBSETS = 2**20
#: At most this many subsets of one level are spelt out.
MAX_LISTED = 16


def subset_text(subset: Iterable[int]) -> str:
    """A subset as it is written, `{1,3}`; the empty one is `∅`."""
    inner = ",".join(map(str, subset))
    return f"{{{inner}}}" if inner else "∅"


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
            shown = " ".join(map(subset_text, level.subsets[:4]))
            more = " …" if level.num_subsets > min(4, len(level.subsets)) else ""
            merged = f" (+{level.width:.1e})" if level.width > 0 else ""
            table.add_row(str(k), f"{level.value:.6g}{merged}", str(level.num_subsets), shown + more)
        notes = []
        if any(level.width > 0 for level in self.levels[:32]):
            notes.append("(+…): values so far above it belong to the level, for round-off cannot tell them apart")
        if len(self) > 32:
            notes.append(f"({len(self) - 32} higher levels not shown)")
        table.caption = "\n".join(notes) or None
        return table


def level_groups(halves: Array | np.ndarray, tolerance: float | Array) -> Array | np.ndarray:
    """The number of its group for each of `½s_1² ≥ ½s_2² ≥ …`; put a zero at the end to see what is joined to it.

    NumPy arrays and JAX's, traced ones too.
    """
    xp = halves.__array_namespace__()
    apart = halves[:-1] - halves[1:] > tolerance
    return xp.concatenate([xp.zeros(1, dtype=int), xp.cumulative_sum(apart, dtype=int)])


@dataclasses.dataclass(frozen=True)
class _Groups:
    """The positive singular values in groups: what a choice of so many from each leaves in the loss, at best and at worst.

    - `members`: 0-based indices, group by group; the last group, possibly empty, is joined to zero.
    - `gains`: by group, what its largest `0, 1, …` members take off the loss. `S` counts as filled up to the rank bound with
      zeros, which are members of the last group, too.
    """

    members: tuple[tuple[int, ...], ...]
    halves: np.ndarray
    max_rank: int

    @classmethod
    def of(cls, s: np.ndarray, tolerance: float, max_rank: int) -> "_Groups":
        halves = 0.5 * s[s > 0] ** 2
        numbers = level_groups(np.append(halves, 0.0), tolerance)
        members = [tuple(map(int, np.flatnonzero(numbers[:-1] == k))) for k in range(int(numbers[-1]) + 1)]
        return cls(tuple(members), halves, min(max_rank, halves.size))

    @functools.cached_property
    def sizes(self) -> list[int]:
        return [*map(len, self.members[:-1]), self.max_rank]

    @functools.cached_property
    def gains(self) -> list[np.ndarray]:
        filled = [[self.halves[i] for i in group] for group in self.members]
        filled[-1] += [0.0] * self.max_rank
        return [np.concatenate([[0.0], np.cumsum(group)]) for group in filled]

    def value(self, counts: Sequence[int]) -> float:
        """The lowest of the values with these counts: that of the largest members of each group."""
        return max(math.fsum(self.halves) - math.fsum(gain[c] for gain, c in zip(self.gains, counts, strict=True)), 0.0)

    def spread(self, counts: Sequence[int]) -> float:
        """The highest of the values with these counts less the lowest; zero for exact ties."""
        *inner, last = zip(self.gains, counts, strict=True)
        # The smallest members of a group instead of the largest, and nothing at all of what is joined to zero.
        swaps = [gain[c] - (gain[-1] - gain[len(gain) - 1 - c]) for gain, c in inner]
        return max(math.fsum([*swaps, last[0][last[1]]]), 0.0)

    def _choices(self, counts: Sequence[int]) -> list[list[tuple[tuple[int, ...], int]]]:
        """By group, which numbers of its members may be in `S`: all but the last group leave no choice."""
        *inner, last = zip(self.members, counts, strict=True)
        free = [(last[0], k) for k in range(min(last[1], len(last[0])), -1, -1)]
        return [[(group, c)] for group, c in inner] + [free]

    def num_subsets(self, counts: Sequence[int]) -> int:
        return math.prod(sum(math.comb(len(group), k) for group, k in choice) for choice in self._choices(counts))

    def subsets(self, counts: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """The subsets with these counts, indices from 1; at most `MAX_LISTED` of the members of a group."""
        # itertools.product holds its factors in full; its first elements need no more than the first of each factor.
        factors = [
            itertools.islice(itertools.chain.from_iterable(itertools.combinations(g, k) for g, k in choice), MAX_LISTED)
            for choice in self._choices(counts)
        ]
        for parts in itertools.product(*factors):
            yield tuple(sorted(i + 1 for part in parts for i in part))

    def stream(self) -> Iterator[tuple[float, tuple[int, ...]]]:
        """(value, how many of each group are in S) from the lowest value of `ℓ(S)` upwards.

        Best-first search: every choice is reached from the best one by moving single elements to the next group with room,
        each move raising `ℓ`.
        """
        best, room = [], self.max_rank
        for size in self.sizes:
            best.append(min(size, room))
            room -= best[-1]
        heap = [(self.value(best), tuple(best))]
        seen = {tuple(best)}
        while heap:
            level, counts = heapq.heappop(heap)
            yield level, counts
            for g in range(len(counts) - 1):
                if counts[g] > 0 and counts[g + 1] < self.sizes[g + 1]:
                    moved = list(counts)
                    moved[g] -= 1
                    moved[g + 1] += 1
                    if tuple(moved) not in seen:
                        seen.add(tuple(moved))
                        heapq.heappush(heap, (self.value(moved), tuple(moved)))


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
    groups = _Groups.of(s, tolerance, max_rank)

    def merged(members):
        highest = max(value + groups.spread(counts) for value, counts in members)
        listed = itertools.islice(itertools.chain.from_iterable(groups.subsets(c) for _, c in members), MAX_LISTED)
        count = sum(groups.num_subsets(counts) for _, counts in members)
        return Level(members[0][0], highest - members[0][0], count, tuple(listed))

    members: list[tuple[float, tuple[int, ...]]] = []
    for value, counts in groups.stream():
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
    Bah, Westdickenberg 2022, Theorem 5a). Those that only leave out what is joined to zero are one level, the lowest.
    """
    s, tolerance = _prepare(singular_values, tolerance)
    _check_rank_bound(max_rank)
    positive = int(np.sum(s > 0))
    groups = level_groups(np.append(0.5 * s**2, 0.0), tolerance)
    levels: list[Level] = []
    for r in range(min(max_rank, positive), -1, -1):
        value, subset = 0.5 * math.fsum(s[r:] ** 2), tuple(range(1, r + 1))
        if levels and groups[r] == groups[-1]:
            last = levels[-1]
            listed = (*last.subsets, subset)[:MAX_LISTED]
            levels[-1] = Level(last.value, value - last.value, last.num_subsets + 1, listed)
        else:
            levels.append(Level(value, 0.0, 1, (subset,)))
    shown = tuple(levels[:lowest])
    return CriticalValues(shown, tuple(map(float, s)), max_rank, tolerance, len(shown) == len(levels))


def single_layer_level(singular_values: ArrayLike, max_rank: int) -> CriticalValues:
    """The one critical value of a single layer, whose loss is convex: the minimum."""
    s, tolerance = _prepare(singular_values, 0.0)
    rank = min(max_rank, int(np.sum(s > 0)))
    level = Level(0.5 * math.fsum(s[rank:] ** 2), 0.0, 1, (tuple(range(1, rank + 1)),))
    return CriticalValues((level,), tuple(map(float, s)), max_rank, tolerance, True)
