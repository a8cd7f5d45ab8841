"""Exact intervals for the probability of a verdict, from counts, undecided starts and an audit.

*What is estimated.* The probability `p` that the exact flow from a random start has a limit of some kind. A run labels each of
its `n` independent starts: certified (the limit is of this kind), excluded, or undecided. Certificates are exact for the states
they are given; a label is *wrong* if the integration left the exact path for another limit. With `q` the probability of a wrong
label,

    P(certified) − q ≤ p ≤ P(not excluded) + q.

*The audit* takes a simple random sample of the starts, chosen before the run and independently of it, and integrates each anew
with another solver at tighter tolerances, with ten times the steps and the time. A *flip* is a certificate that the new run
contradicts: it certifies another limit, or comes to no certificate at all, or (undecided starts) has not passed a level that was
said to be passed. A start that was undecided and now is certified is no flip: it claimed nothing, and is counted on both sides
already. Given that the new run decides such a start rightly, flips are independent with probability `q`.

*Coverage.* Three one-sided exact (Clopper–Pearson) bounds, for `P(certified)` from below and `P(not excluded)` from above, each
failing with probability at most `α/4`, and for `q` from above, with `α/2`, hold together with probability at least `1 − α`,
whatever their dependence: the audited starts are among the others. `tests/test_intervals.py` simulates it.

*Numbers not fixed in advance.* Clopper and Pearson's bounds hold for a number of starts that does not depend on what was seen.
Where a run ends by a rule, or is extended after a look, the same bounds are taken from `gdflow.binomial.anytime_lower` and
`anytime_upper`: they hold for all numbers of starts at once. The audit then takes the first starts, as many as there is need of,
so that more starts never exchange them.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Int

from gdflow.binomial import anytime_lower, anytime_upper, clopper_pearson_lower, clopper_pearson_upper


def smallest_audit(confidence: float) -> int:
    """The least number of audited starts that can say anything: without a flip they bound the flip rate by ½ or less."""
    return math.ceil(math.log(0.5 * (1 - confidence)) / math.log(0.5))


def default_audit(num: int, confidence: float) -> int:
    """How many of `num` starts are audited unless told otherwise: 5 %, at least 100 and at most 500; none of too few."""
    chosen = min(num, min(500, max(100, math.ceil(num / 20))))
    return chosen if chosen >= smallest_audit(confidence) else 0


def check_audit(audit: int, num: int, confidence: float) -> None:
    """`ValueError` for audits of more starts than there are, and of so few that they cannot say anything."""
    if audit > num:
        raise ValueError(f"cannot audit {audit} of {num} starts")
    least = smallest_audit(confidence)
    if 0 < audit < least:
        bound = clopper_pearson_upper(0, audit, 0.5 * (1 - confidence))
        raise ValueError(
            f"an audit of {audit} starts says nothing: at confidence {confidence:g} it bounds the rate of wrong labels by "
            f"{bound:.2f} at best; audit at least {least}, or 0 to take labels to be right"
        )


def contradicts(label: tuple[int, int], again: tuple[int, int]) -> bool:
    """Whether a new run of a start contradicts its label.

    **Arguments:** of both runs, the limit (−1 for none) and the highest limit that is not excluded.
    """
    (limit, highest), (limit_now, highest_now) = label, again
    return limit_now != limit if limit >= 0 else highest_now > highest


@dataclasses.dataclass(frozen=True)
class Audit:
    """Labels of a random subsample against a re-run with another solver at tighter tolerances.

    - `num`: starts re-run.
    - `flips`: how many of their labels the re-run contradicts, see the module's head.
    - `method`: the solver and tolerances of the re-run.
    - `flipped_ids`: which.
    - `newly_decided`: how many undecided starts the re-run certified; they do not count.
    """

    num: int
    flips: int
    method: str
    flipped_ids: tuple[int, ...]
    newly_decided: int = 0

    def flip_bound(self, alpha: float, anytime: bool = False) -> float:
        """One-sided exact upper bound on the probability that a label is wrong; `anytime`: for all numbers of starts at once."""
        return (anytime_upper if anytime else clopper_pearson_upper)(self.flips, self.num, alpha)


def verdict_interval(
    certified: int, possible: int, num: int, alpha: float, audit: Audit | None = None, *, anytime: bool = False
) -> tuple[float, float]:
    """Interval for the probability that a start has a verdict, covering with probability at least `1 − alpha`.

    `[CP_low(certified) − u, CP_up(possible) + u]`, `possible` being `certified` plus the starts for which the verdict
    is not excluded, so undecided starts widen both sides. With an audit, `u` is the one-sided upper bound at `alpha/2` on the
    flip rate, and each Clopper–Pearson bound has the remaining error `alpha/4`, so that the three add up to `alpha`; without
    one `u = 0` (labels are taken to be right) and each has `alpha/2`. The bounds are clipped to `[0, 1]`.
    """
    if not 0 <= certified <= possible <= num or num < 1:
        raise ValueError(f"need 0 ≤ certified ≤ possible ≤ num, got {certified}, {possible}, {num}")
    tail, u = (alpha / 2, 0.0) if audit is None else (alpha / 4, audit.flip_bound(alpha / 2, anytime))
    lower, upper = (anytime_lower, anytime_upper) if anytime else (clopper_pearson_lower, clopper_pearson_upper)
    low, high = lower(certified, num, tail) - u, upper(possible, num, tail) + u
    return max(low, 0.0), min(high, 1.0)


def found_interval(
    decided: int,
    possible: int,
    num: int,
    before: int,
    alpha: float,
    audit: Audit | None = None,
    *,
    anytime: bool = False,
) -> tuple[float, float]:
    """Interval for the probability of a limit that the run found, covering with probability at least `1 − alpha`.

    Which limits there are is not known beforehand, and one that was found has been seen at least once: counting that start
    would bias its interval (of very many rare limits every one that is found would be overrated). So only the starts after the
    first one that has the limit are counted. Given all starts up to that one, the others are independent of it, and the interval
    is exact. If that of the limit that was found as the `r`-th has the error `alpha/(r(r+1))`, of which the sum over all `r` is
    `alpha`, the intervals of all limits cover together (`shared_error`).

    **Arguments:** `decided`, `possible`: starts that have the limit, and those that may have; `before`: how many starts come
    before the first that has it.
    """
    after = num - before - 1
    if after < 1:
        return (0.0, 1.0)
    count = max(decided - 1, 0)  # the first that has the limit may not be sure of it
    return verdict_interval(count, min(possible - 1, after), after, alpha, audit, anytime=anytime)


def shared_error(alpha: float, rank: int) -> float:
    """The share `alpha/(r(r + 1))` of an error that the `r`-th of arbitrarily many claims may have."""
    return alpha / (rank * (rank + 1))


def unseen_bound(limits: Int[np.ndarray, " num"], alpha: float, *, anytime: bool = False) -> float:
    """Upper bound, at confidence `1 − alpha`, of the probability of all limits together that none of the starts has.

    The limits of the first half of the starts are fixed when the second half is looked at. A start of the second half has
    another limit, or none, with a probability that is at least the one in question; it is bounded exactly (Clopper–Pearson).

    **Arguments:** `limits`: of the starts, in an order fixed beforehand; −1 where there is none; `anytime`: for all numbers of
    starts at once. The limits are then those of the first `2^k` starts, with `2^k` the largest power up to half of the number,
    and the bound for this `k` has the `k`-th share of the error.
    """
    half, bound = len(limits) // 2, clopper_pearson_upper
    if anytime and half:
        k = half.bit_length()
        half, alpha, bound = 2 ** (k - 1), shared_error(alpha, k), anytime_upper
    others = int(np.sum(~np.isin(limits[half:], limits[:half][limits[:half] >= 0])))
    return bound(others, len(limits) - half, alpha)


def interval_text(bounds: tuple[float, float]) -> str:
    """An interval rounded outwards, to two digits of its width and at least four decimals."""
    low, high = bounds
    decimals = min(max(4, 1 - math.floor(math.log10(high - low))), 12) if high > low else 12
    unit = 10**decimals
    ends = math.floor(low * unit) / unit, math.ceil(high * unit) / unit
    return "[" + ", ".join(f"{x:g}" if x in (0.0, 1.0) else f"{x:.{decimals}f}" for x in ends) + "]"
