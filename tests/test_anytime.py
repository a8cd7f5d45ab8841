"""Intervals that hold for any number of starts: the mixture itself, and its coverage where runs stop by rules."""

import math

import mpmath
import numpy as np
import pytest
import scipy.stats

from gdflow.basins.intervals import Audit, found_interval, unseen_bound, verdict_interval
from gdflow.binomial import anytime_lower, anytime_upper, clopper_pearson_lower, clopper_pearson_upper

CASES = [
    (0, 1),
    (1, 1),
    (0, 20),
    (3, 20),
    (19, 20),
    (20, 20),
    (500, 1000),
    (1, 10**6),
    (999_999, 10**6),
    (10**9 - 3, 10**9),
]


def log_martingale(count, num, p):
    """`ln B(1 + S, 1 + n − S) − S ln p − (n − S) ln(1 − p)` to 50 digits; MATH.md, section 19."""
    with mpmath.workdps(50):
        p = mpmath.mpf(p)
        beta = mpmath.loggamma(1 + count) + mpmath.loggamma(1 + num - count) - mpmath.loggamma(2 + num)
        return beta - count * mpmath.log(p) - (num - count) * mpmath.log(1 - p)


@pytest.mark.parametrize("alpha", [0.05, 1e-4])
@pytest.mark.parametrize(("count", "num"), CASES)
def test_ends_are_where_the_martingale_reaches_one_over_alpha(count, num, alpha):
    low, high = anytime_lower(count, num, alpha), anytime_upper(count, num, alpha)
    assert 0 <= low <= count / num <= high <= 1
    assert (low == 0) == (count == 0)
    assert (high == 1) == (count == num)
    # ln B(·) cancels against terms of this size.
    scale = 1 + num * scipy.stats.bernoulli(min(max(count / num, 1e-300), 1 - 1e-16)).entropy()
    for end, other in ((low, count), (1 - high, num - count)):
        if end > 0 and other:
            found = float(log_martingale(other, num, end))
            rounding = other * np.finfo(float).eps / end  # of an end close to 1
            assert found == pytest.approx(math.log(1 / alpha), abs=1e-12 * scale + 1e-6 + rounding)


def test_it_holds_clopper_and_pearsons_interval():
    """Their widths at 95 %, as MATH.md, section 19, has them: 1.3 to 1.55 at n = 20, 2.2 to 4.6 at a million."""
    for num, low, high in ((20, 1.2, 1.7), (10**6, 2.1, 4.8)):
        for share in (0.0, 0.1, 0.5):
            count = int(share * num)
            wide = anytime_upper(count, num, 0.05) - anytime_lower(count, num, 0.05)
            narrow = clopper_pearson_upper(count, num, 0.025) - clopper_pearson_lower(count, num, 0.025)
            assert low < wide / narrow < high


def streams(p, num, count, rng):
    """Cumulated successes of so many streams of so many trials."""
    return np.cumsum(rng.random((count, num)) < p, axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("p", [0.05, 0.5])
def test_coverage_under_a_rule_that_stops(p):
    """Streams that are looked at fifty times and stop where the interval first excludes the truth: the mixture misses in at most
    5 % of them, Clopper–Pearson in a fifth. 2000 streams: false alarm below 1e-6 each (binomial, 0.05 + 0.025, and 0.1)."""
    rng, count = np.random.default_rng(11), 2000
    looks = np.unique(np.geomspace(20, 2000, 50).astype(int))
    sums = streams(p, 2000, count, rng)[:, looks - 1]
    missed = {}
    for name, lower, upper, alpha in (
        ("mixture", anytime_lower, anytime_upper, 0.05),
        ("fixed", clopper_pearson_lower, clopper_pearson_upper, 0.025),
    ):
        ends = {}
        for k, num in enumerate(looks.tolist()):
            for s in np.unique(sums[:, k]).tolist():
                ends[k, s] = not lower(s, num, alpha) <= p <= upper(s, num, alpha)
        out = np.array([[ends[k, s] for k, s in enumerate(row)] for row in sums.tolist()])
        missed[name] = out.any(axis=1).mean()
    assert missed["mixture"] < 0.05 + 0.025
    assert missed["fixed"] > 0.1


@pytest.mark.slow
def test_coverage_with_undecided_starts_and_an_audit():
    """A start is certified, undecided or excluded; labels are wrong with probability 1 %, as the first starts' audit shows. The
    interval is looked at at twenty numbers and must hold the truth at all of them: 400 streams, α = 0.2, false alarm 1e-4.
    """
    rng, alpha, misses = np.random.default_rng(3), 0.2, 0
    p, wrong = 0.3, 0.01
    for _ in range(400):
        truth = rng.random(1500) < p
        undecided = rng.random(1500) < 0.05
        flipped = rng.random(1500) < wrong
        label = truth ^ flipped
        certified, possible = np.cumsum(label & ~undecided), np.cumsum(label | undecided)
        flips = np.cumsum(flipped)
        holds = True
        for num in np.geomspace(30, 1500, 20).astype(int).tolist():
            audited = min(num, max(100, num // 20))
            audit = Audit(audited, int(flips[audited - 1]), "", ())
            low, high = verdict_interval(
                int(certified[num - 1]), int(possible[num - 1]), num, alpha, audit, anytime=True
            )
            holds &= low <= p <= high
        misses += not holds
    assert misses / 400 <= alpha + 0.08


@pytest.mark.slow
def test_found_limits_and_the_unseen_for_any_number():
    """Twenty limits with probabilities that halve: for every stream the intervals of a limit that was found, and the bound of the
    others, hold at all looks; 300 streams, α = 0.2, false alarm below 1e-4 for each."""
    rng, alpha = np.random.default_rng(5), 0.2
    weights = 0.5 ** np.arange(1, 21)
    weights /= weights.sum()
    missed_interval = missed_unseen = 0
    for _ in range(300):
        limits = rng.choice(20, 800, p=weights)
        second = limits[limits != limits[0]][0]
        before = int(np.argmax(limits == second))
        interval = unseen = True
        for num in (before + 2, before + 10, 50, 100, 200, 400, 800):
            if before + 2 <= num <= 800:
                count = int(np.sum(limits[:num] == second))
                low, high = found_interval(count, count, num, before, alpha, anytime=True)
                interval &= low <= weights[second] <= high
            if num >= 8:
                rest = weights[~np.isin(np.arange(20), limits[:num])].sum()
                unseen &= rest <= unseen_bound(limits[:num], alpha, anytime=True)
        missed_interval += not interval
        missed_unseen += not unseen
    assert missed_interval / 300 <= alpha + 0.09
    assert missed_unseen / 300 <= alpha + 0.09


def test_the_limit_of_a_start_that_is_not_sure_of_it_is_not_counted_twice():
    assert found_interval(0, 5, 10, 0, 0.05)[0] == 0.0
