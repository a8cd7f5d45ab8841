"""Which critical points there are, up to changes of basis: systems of strings on a cycle of layers.

In the parametrisation of `gdflow.landscape.sampling` a critical point on the stratum of `S`, `|S| = r`, is a family of maps
`Z_h: V_{h-1} → V_h` between what is left of the layers' spaces beside `S` (`dim V_0 = d_x − r`, `dim V_h = d_h − r`,
`dim V_N = d_y − r`) with

    Z_N…Z_1 = 0   and   (Z_{j-1}…Z_1)Σ_Qᵀ(Z_N…Z_{j+1}) = 0   for every j.

Together with `Σ_Qᵀ: V_N → V_0` these maps close to a cycle `V_0 → V_1 → … → V_N → V_0` of `N + 1` arrows, and the conditions
say that every composite of `N` consecutive arrows vanishes: a representation of a cyclic quiver with relations (a Nakayama
algebra). By Krull–Schmidt it is a direct sum of indecomposable ones in one way only, and these are the *strings*: a chain of
`1` to `N` consecutive spaces, one dimension in each, the arrows between them one, all others zero. `Σ_Qᵀ` is injective: no
string ends at `V_N`. Conversely, any such representation becomes one with the given `Σ_Qᵀ` by a change of basis in `V_0`.

So the critical points on a stratum, up to changes of basis, are the multisets of strings with `dim V_v` strings through
every `v`. Ranks are counts: `rank W_k…W_j = r + #{strings that contain V_{j-1}, …, V_k}`, and
`rank W_{j-1}…W_1Σ_YᵀW_N…W_{i+1} = r + #{strings that contain V_i, …, V_N, V_0, …, V_{j-1}}`. The latter is the complement of
`V_j, …, V_{i-1}` on the cycle: a pivot `(i, j)` is tightened iff no string contains the one arc or no string the other.

What is asked for, ranks and a condition, is linear in the counts but for alternatives (one arc or the other): an integer program,
which decides exactly whether there is such a point.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import scipy.optimize
import scipy.sparse


@dataclasses.dataclass(frozen=True)
class Strings:
    """All strings on the cycle of `N + 1` spaces, in a fixed order.

    - `depth`: `N`.
    - `starts`, `lengths`: of every string; it runs through `starts, starts + 1, …` modulo `N + 1`, `lengths` spaces in all.
    """

    depth: int
    starts: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of_depth(cls, depth: int) -> "Strings":
        """All strings for `N = depth`: `N²` of them."""
        start, length = (x.ravel() for x in np.mgrid[: depth + 1, 1 : depth + 1])
        allowed = (start + length - 1) % (depth + 1) != depth
        return cls(depth, start[allowed], length[allowed])

    def __len__(self) -> int:
        return self.starts.size

    def containing(self, first: int, last: int) -> np.ndarray:
        """Which strings contain the arc from `first` onwards to `last`, round the cycle where `last < first`."""
        cycle = self.depth + 1
        return (first - self.starts) % cycle + (last - first) % cycle + 1 <= self.lengths

    def spaces(self, k: int) -> list[int]:
        """The spaces that string number `k` runs through, in its order."""
        return [int(v) for v in (self.starts[k] + np.arange(self.lengths[k])) % (self.depth + 1)]


def find_strings(
    rng: np.random.Generator,
    sizes: tuple[int, ...],
    *,
    counts: Mapping[tuple[int, int], int],
    condition: str = "any",
) -> list[list[int]] | None:
    """A random system of strings that meets a condition, with given counts; `None` if there is none.

    **Arguments:**

    - `sizes`: `(dim V_0, …, dim V_N)`, `N ≥ 2`, `dim V_N ≤ dim V_0`.
    - `counts`: how many strings shall contain the arc `V_first, …, V_last`, by `(first, last)`.
    - `condition`: `"any"`; `"not-tightened"` or `"tightened"`: some pivot is not, or all are; `"zero-hessian"`: all are and the
      terms of first order vanish too (for `S = ∅`).

    **Returns:** the strings, each as the list of its spaces.
    """
    strings = Strings.of_depth(len(sizes) - 1)
    draw = _draw(rng, strings, sizes)
    program = _Program(strings, sizes)
    for (first, last), count in counts.items():
        program.require(strings.containing(first, last), count)
    pairs = [
        (strings.containing(j, i - 1), strings.containing(i, j - 1))
        for i in range(2, strings.depth + 1)
        for j in range(1, i)
    ]
    if condition == "not-tightened":
        program.some_both_positive(pairs)
    elif condition in ("tightened", "zero-hessian"):
        for pair in pairs:
            program.one_vanishes(*pair)
    if condition == "zero-hessian":
        N = strings.depth
        for j in range(1, N + 1):
            # Layers above j, layers below j; an empty product is no zero.
            above, below = strings.containing(j, N), strings.containing(0, j - 1)
            program.one_vanishes(*([above] if j == 1 else [below] if j == N else [above, below]))
    found = program.nearest(draw)
    return None if found is None else [strings.spaces(k) for k, count in enumerate(found) for _ in range(count)]


def _draw(rng: np.random.Generator, strings: Strings, sizes: tuple[int, ...]) -> np.ndarray:
    """Random counts of strings that fill the spaces: every system is drawn with positive probability.

    Strings are taken one by one in proportion to random weights among those that still fit, first those through `V_N`.
    """
    N = strings.depth
    through = np.stack([strings.containing(v, v) for v in range(N + 1)], axis=1)
    # Every arrow is liked or not, so that all combinations of high and low ranks come up, and some strings are preferred.
    liking = rng.normal(scale=3.0, size=N + 1)
    arrows = [strings.containing(v, (v + 1) % (N + 1)) for v in range(N + 1)]
    weights = np.exp(liking @ np.array(arrows, float) + rng.gumbel(size=len(strings)))
    left, counts = np.array(sizes), np.zeros(len(strings), int)
    while left.any():
        fits = ~np.any(through & (left == 0), axis=1) & (through[:, N] | (left[N] == 0))
        p = np.where(fits, weights, 0.0)
        k = rng.choice(len(strings), p=p / p.sum())
        counts[k] += 1
        left -= through[k]
    return counts


class _Program:
    """Counts of strings under linear conditions and alternatives, as an integer program for HiGHS."""

    def __init__(self, strings: Strings, sizes: tuple[int, ...]):
        self._strings, self._most = strings, max(sizes)
        self._equal: list[tuple[np.ndarray, int]] = []
        self._alternatives: list[tuple[np.ndarray, ...]] = []
        self._some: list[tuple[np.ndarray, ...]] = []
        for v, size in enumerate(sizes):
            self.require(strings.containing(v, v), size)

    def require(self, members: np.ndarray, count: int) -> None:
        """So many of the strings among `members`."""
        self._equal.append((members, count))

    def one_vanishes(self, *groups: np.ndarray) -> None:
        """No string of one of the groups at least."""
        self._alternatives.append(groups)

    def some_both_positive(self, pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
        """Of one pair of groups at least, strings of both."""
        self._some = list(pairs)

    def _met(self, x: np.ndarray) -> bool:
        return (
            all(x[members].sum() == count for members, count in self._equal)
            and all(any(not x[g].any() for g in groups) for groups in self._alternatives)
            and (not self._some or any(all(x[g].any() for g in groups) for groups in self._some))
        )

    def nearest(self, wished: np.ndarray) -> np.ndarray | None:
        """Counts that meet the conditions, near the ones wished for in the sum of differences; `None` if none do."""
        if self._met(wished):
            return wished
        n = wished.size
        # Unknowns: counts x, |x − wished|, then one binary per group of an alternative.
        groups = [g for alternative in self._alternatives for g in alternative]
        num = 2 * n + len(groups) + len(self._some)
        rows: list[np.ndarray] = []
        low: list[float] = []
        high: list[float] = []

        def add(row: np.ndarray, lower: float, upper: float) -> None:
            rows.append(row)
            low.append(lower)
            high.append(upper)

        for members, count in self._equal:
            add(np.concatenate([members, np.zeros(num - n)]), count, count)
        for k in range(n):
            for sign in (1.0, -1.0):
                row = np.zeros(num)
                row[k], row[n + k] = sign, -1.0
                add(row, -np.inf, sign * wished[k])
        column = 2 * n
        for alternative in self._alternatives:
            choice = np.zeros(num)
            for group in alternative:
                # Empty where the binary is one.
                row = np.concatenate([group, np.zeros(num - n)])
                row[column] = self._most
                add(row, -np.inf, self._most)
                choice[column] = 1.0
                column += 1
            add(choice, 1.0, np.inf)
        choice = np.zeros(num)
        for pair in self._some:
            for group in pair:
                row = np.concatenate([group, np.zeros(num - n)])
                row[column] = -1.0
                add(row, 0.0, np.inf)
            choice[column] = 1.0
            column += 1
        if self._some:
            add(choice, 1.0, np.inf)
        result = scipy.optimize.milp(
            np.concatenate([np.zeros(n), np.ones(n), np.zeros(num - 2 * n)]),
            integrality=np.concatenate([np.ones(n), np.zeros(n), np.ones(num - 2 * n)]),
            bounds=scipy.optimize.Bounds(
                0, np.concatenate([np.full(n, self._most), np.full(n, np.inf), np.ones(num - 2 * n)])
            ),
            constraints=scipy.optimize.LinearConstraint(scipy.sparse.csr_array(np.array(rows)), low, high),
            # Any system will do; the nearest one would take longer.
            options={"mip_rel_gap": 0.5},
        )
        if result.status == 2:
            return None
        if result.x is None:
            raise RuntimeError(f"the integer program for the strings was not solved: {result.message}")
        x = np.rint(result.x[:n]).astype(int)
        assert self._met(x), "the integer program's solution does not meet its conditions"
        return x
