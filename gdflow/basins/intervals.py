"""Exact intervals for the probability of a verdict, from counts, undecided starts and an audit."""

import dataclasses

import scipy.stats


def clopper_pearson_lower(count: int, num: int, alpha: float) -> float:
    """One-sided lower Clopper–Pearson bound: with probability at least `1 − alpha` below the success probability."""
    return 0.0 if count == 0 else float(scipy.stats.beta.ppf(alpha, count, num - count + 1))


def clopper_pearson_upper(count: int, num: int, alpha: float) -> float:
    """One-sided upper Clopper–Pearson bound."""
    return 1.0 if count == num else float(scipy.stats.beta.ppf(1 - alpha, count + 1, num - count))


@dataclasses.dataclass(frozen=True)
class Audit:
    """Labels of a random subsample against a re-run with another solver at tighter tolerances.

    - `num`: starts re-run.
    - `flips`: how many of them changed their label (the level they are certified to have fallen below).
    - `method`: the solver and tolerances of the re-run.
    - `flipped_ids`: which.
    """

    num: int
    flips: int
    method: str
    flipped_ids: tuple[int, ...]

    def flip_bound(self, alpha: float) -> float:
        """One-sided exact upper bound on the probability that a label is wrong."""
        return clopper_pearson_upper(self.flips, self.num, alpha)


def verdict_interval(
    certified: int, possible: int, num: int, alpha: float, audit: Audit | None = None
) -> tuple[float, float]:
    """Interval for the probability that a start has a verdict, covering with probability at least `1 − alpha`.

    `[CP_low(certified) − u, CP_up(possible) + u]`, `possible` being `certified` plus the starts for which the verdict
    is not excluded, so undecided starts widen both sides. With an audit, `u` is the one-sided upper bound at `alpha/2` on the
    flip rate, and each Clopper–Pearson bound has the remaining error `alpha/4`, so that the three add up to `alpha`; without
    one `u = 0` (labels are taken to be right) and each has `alpha/2`. The bounds are clipped to `[0, 1]`.
    """
    if not 0 <= certified <= possible <= num or num < 1:
        raise ValueError(f"need 0 ≤ certified ≤ possible ≤ num, got {certified}, {possible}, {num}")
    tail, u = (alpha / 2, 0.0) if audit is None else (alpha / 4, audit.flip_bound(alpha / 2))
    low = clopper_pearson_lower(certified, num, tail) - u
    high = clopper_pearson_upper(possible, num, tail) + u
    return max(low, 0.0), min(high, 1.0)
