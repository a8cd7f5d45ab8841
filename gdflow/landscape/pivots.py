"""Which critical points are strict saddles: the pivots of Achour, Malgouyres and Gerchinovitz (2024).

At a critical point of rank `r` a *pivot* `(i, j)`, `i > j`, is *tightened* iff `rank(W_{i-1}…W_{j+1}) = r` or
`rank(W_{j-1}…W_1Σ_YᵀW_N…W_{i+1}) = r`. The point is a non-strict saddle iff `S = {1..r}`, `r < r_max` and every pivot is
tightened; every other critical point that is no global minimum is a strict saddle. Needs distinct `s_i > 0`; everything in
normal-form coordinates.
"""

import dataclasses
import functools

import numpy as np

from gdflow.ranks import RankDecision, decide_rank


@dataclasses.dataclass(frozen=True)
class Pivot:
    """One pivot, `i > j`, with the two ranks that decide whether it is tightened, and their margins.

    - `between`: of `W_{i-1}…W_{j+1}`.
    - `around`: of `W_{j-1}…W_1Σ_YᵀW_N…W_{i+1}`.
    """

    i: int
    j: int
    between: RankDecision
    around: RankDecision
    tightened: bool

    @property
    def certain(self) -> bool:
        """Whether the verdict stands whatever the uncertain ranks are: both are at least `r`, so one certain `r` suffices."""
        if self.tightened:
            winners = [d for d in (self.between, self.around) if d.certain]
            return bool(winners) and min(d.rank for d in winners) == min(self.between.rank, self.around.rank)
        return self.between.certain and self.around.certain


@dataclasses.dataclass(frozen=True)
class Pivots:
    """Ranks of all partial products at a critical point, and what they decide.

    - `subset`: `S`; `max_rank`: `r_max`.
    - `products`: rank decisions of `(ΠW)_j^k` by `(j, k)`.
    - `pivots`: all pivots.
    """

    subset: tuple[int, ...]
    max_rank: int
    products: dict[tuple[int, int], RankDecision]
    pivots: tuple[Pivot, ...]

    @property
    def depth(self) -> int:
        return max(k for _, k in self.products)

    def rank(self, j: int, k: int) -> int:
        """Rank of `(ΠW)_j^k`."""
        return self.products[j, k].rank

    @property
    def nested(self) -> bool:
        """Whether `S = {1..r}`."""
        return self.subset == tuple(range(1, len(self.subset) + 1))

    @property
    def minimum(self) -> bool:
        """Whether these are global minima."""
        return self.nested and len(self.subset) == self.max_rank

    @property
    def non_strict(self) -> bool:
        """Whether this is a saddle with a non-negative Hessian."""
        return self.nested and not self.minimum and all(p.tightened for p in self.pivots)

    @property
    def strict(self) -> bool:
        """Whether the Hessian has a negative eigenvalue."""
        return not self.minimum and not self.non_strict

    @property
    def zero_hessian(self) -> bool:
        """Whether the Hessian vanishes: every `P_j` and every `⟨M, P_jk⟩` does."""
        N = self.depth

        def vanishes(j, k):
            return j <= k and self.rank(j, k) == 0

        return (
            not self.subset
            and all(p.tightened for p in self.pivots)
            and all(vanishes(1, j - 1) or vanishes(j + 1, N) for j in range(1, N + 1))
        )

    @property
    def uncertain(self) -> tuple[str, ...]:
        """The decisions that were too close to the threshold and on which the verdict rests, in words."""
        if not self.nested or self.minimum:
            return ()
        doubtful = [p for p in self.pivots if not p.certain]
        settled = any(p.certain and not p.tightened for p in self.pivots)
        if settled:
            return ()
        return tuple(
            f"pivot ({p.i},{p.j}): " + ", ".join(
                f"{name} has a singular value {_closest(d):.2g} times the threshold"
                for name, d in (("the product between", p.between), ("the product around", p.around)) if not d.certain)
            for p in doubtful
        )  # fmt: skip


def _closest(decision: RankDecision) -> float:
    ratios = [x / decision.threshold for x in (decision.smallest_kept, decision.largest_dropped) if 0 < x < np.inf]
    return min(ratios, key=lambda q: abs(np.log(q)))


def find_pivots(layers: list[np.ndarray], target: np.ndarray, subset: tuple[int, ...], *, tolerance: float) -> Pivots:
    """The pivots of a network in normal-form coordinates.

    **Arguments:** `tolerance`: singular values of a product count as zero at or below this multiple of the product of its
    factors' spectral norms, which is the size of its round-off and of what an inexactly critical point leaves in it.
    """
    N, r = len(layers), len(subset)
    norms = [float(np.linalg.norm(w, 2)) for w in layers]
    tiny = np.finfo(float).tiny

    def decide(matrix, scale):
        return decide_rank(np.linalg.svd(matrix, compute_uv=False), threshold=max(tolerance * scale, tiny))

    @functools.cache
    def product(j, k):
        if k == j - 1:
            return np.eye(layers[k - 1].shape[0] if k else layers[0].shape[1])
        return layers[k - 1] @ product(j, k - 1)

    def scale(j, k):
        return float(np.prod(norms[j - 1 : k]))

    products = {(j, k): decide(product(j, k), scale(j, k)) for j in range(1, N + 1) for k in range(j, N + 1)}
    pivots = []
    for i in range(2, N + 1):
        for j in range(1, i):
            between = products.get((j + 1, i - 1)) or decide(product(j + 1, i - 1), 1.0)
            matrix = product(1, j - 1) @ target.T @ product(i + 1, N)
            size = scale(1, j - 1) * scale(i + 1, N) * float(np.linalg.norm(target, 2))
            around = decide(matrix, size)
            pivots.append(Pivot(i, j, between, around, between.rank == r or around.rank == r))
    widths = (layers[0].shape[1], *(w.shape[0] for w in layers))
    return Pivots(subset, min(widths), products, tuple(pivots))
