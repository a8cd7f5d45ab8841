"""The one rule for "zero", "equal" and "rank", scaled by the largest singular value.

Every decision that depends on round-off goes through this module, so that two parts of the library never disagree on
whether a singular value is zero, and every decision carries the margin by which it was taken.
"""

import dataclasses

import numpy as np

#: A decision whose numbers lie within this factor of the threshold is reported as uncertain.
UNCERTAIN_FACTOR = 10.0


def zero_threshold(scale: float, size: int = 1, eps: float = float(np.finfo(np.float64).eps)) -> float:
    """Largest absolute value that counts as zero beside numbers of magnitude `scale`.

    **Arguments:**

    - `scale`: the largest singular value (or the largest number of the comparison), `≥ 0`.
    - `size`: the largest dimension of the matrix. A backward stable decomposition perturbs singular values by a small
      multiple of `eps·scale`, the multiple growing at most like the dimension.
    - `eps`: machine epsilon of the arithmetic that produced the numbers.

    **Returns:** `max(100, size)·eps·scale`.
    """
    return max(100, size) * eps * scale


def equal_threshold(scale: float, eps: float = float(np.finfo(np.float64).eps)) -> float:
    """Largest distance at which two levels of a loss of magnitude `scale = ‖Ȳ‖²` count as one.

    Ten times the slack `100·eps·‖Ȳ‖²` that a level certificate subtracts, so that levels which count as distinct can
    always be told apart by a loss computed in the same arithmetic.
    """
    return 1e3 * eps * scale


def stands_clear(threshold: float, smallest_kept: float, largest_dropped: float) -> bool:
    """Whether neither of two numbers, the least above a threshold and the largest below, is within a factor 10 of it."""
    return smallest_kept >= UNCERTAIN_FACTOR * threshold and largest_dropped <= threshold / UNCERTAIN_FACTOR


@dataclasses.dataclass(frozen=True)
class RankDecision:
    """A numerical rank with the margins by which it was decided.

    - `rank`: the number of singular values above `threshold`.
    - `threshold`: the absolute threshold.
    - `smallest_kept`: the smallest singular value counted as non-zero (`inf` if there is none).
    - `largest_dropped`: the largest singular value counted as zero (`0` if there is none).
    """

    rank: int
    threshold: float
    smallest_kept: float
    largest_dropped: float

    @property
    def certain(self) -> bool:
        """Whether no singular value lies within a factor 10 of the threshold."""
        return stands_clear(self.threshold, self.smallest_kept, self.largest_dropped)


def decide_rank(
    singular_values: np.ndarray,
    *,
    size: int = 1,
    eps: float = float(np.finfo(np.float64).eps),
    threshold: float | None = None,
) -> RankDecision:
    """Numerical rank of a matrix from its singular values.

    **Arguments:**

    - `singular_values`: shape `(k,)`, any order, non-negative.
    - `size`, `eps`: see `gdflow.ranks.zero_threshold`.
    - `threshold`: an absolute threshold in its place, for matrices that are themselves results of a computation, whose
      round-off is that of what they were computed from.

    **Returns:** a `gdflow.ranks.RankDecision`.

    ```python
    >>> decide_rank(np.array([2.0, 1.0, 1e-18])).rank
    2
    ```
    """
    s = np.asarray(singular_values, dtype=np.float64)
    if threshold is None:
        threshold = zero_threshold(float(s.max(initial=0.0)), size, eps)
    kept, dropped = s[s > threshold], s[s <= threshold]
    return RankDecision(
        rank=int(kept.size),
        threshold=float(threshold),
        smallest_kept=float(kept.min(initial=np.inf)),
        largest_dropped=float(dropped.max(initial=0.0)),
    )
