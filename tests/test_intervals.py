"""Intervals: against their definition, and their coverage by simulation, with and without undecided starts and audit."""

import numpy as np
import pytest
import scipy.stats

from gdflow.basins.intervals import Audit, clopper_pearson_lower, clopper_pearson_upper, verdict_interval


@pytest.mark.parametrize(("count", "num"), [(0, 10), (1, 10), (7, 10), (10, 10), (350, 1000)])
@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_clopper_pearson_inverts_the_binomial_test(count, num, alpha):
    """At the bound the tail probability of the observation is alpha: the definition, by the binomial distribution."""
    lower, upper = clopper_pearson_lower(count, num, alpha), clopper_pearson_upper(count, num, alpha)
    if count > 0:
        np.testing.assert_allclose(scipy.stats.binom.sf(count - 1, num, lower), alpha, rtol=1e-8)
    else:
        assert lower == 0
    if count < num:
        np.testing.assert_allclose(scipy.stats.binom.cdf(count, num, upper), alpha, rtol=1e-8)
    else:
        assert upper == 1


def test_undecided_starts_widen_both_sides():
    decided = verdict_interval(80, 80, 100, 0.05)
    wider = verdict_interval(70, 90, 100, 0.05)
    assert wider[0] < decided[0]
    assert wider[1] > decided[1]
    assert verdict_interval(0, 100, 100, 0.05) == (0.0, 1.0)


def test_audit_widens_by_the_flip_bound():
    audit = Audit(num=200, flips=1, method="", flipped_ids=(3,))
    u = clopper_pearson_upper(1, 200, 0.025)
    expected = clopper_pearson_lower(80, 100, 0.0125) - u, clopper_pearson_upper(80, 100, 0.0125) + u
    np.testing.assert_allclose(verdict_interval(80, 80, 100, 0.05, audit), expected, rtol=1e-12)


@pytest.mark.parametrize(("certified", "possible", "num"), [(5, 4, 10), (-1, 4, 10), (1, 11, 10), (0, 0, 0)])
def test_impossible_counts_are_refused(certified, possible, num):
    with pytest.raises(ValueError, match="certified ≤ possible ≤ num"):
        verdict_interval(certified, possible, num, 0.05)


@pytest.mark.parametrize("p", [0.02, 0.5, 0.97])
@pytest.mark.parametrize("flip", [0.0, 0.03])
def test_coverage(p, flip):
    """The true probability is covered at least as often as claimed, with mislabelled and undecided starts.

    Every start has a true verdict (probability p), is mislabelled with probability `flip` and undecided with probability
    0.1; the audit sees the truth on a fresh subsample. With 2000 repetitions the number of misses is binomial with success
    probability at most 0.1; more than 250 has probability below 2e-4 even at exactly 0.1, so with 6 cases the false-alarm
    probability is below 1.2e-3 (the seed is fixed).
    """
    rng = np.random.default_rng(3)
    num, audited, alpha, misses = 300, 100, 0.1, 0
    for _ in range(2000):
        true = rng.random(num) < p
        label = np.where(rng.random(num) < flip, ~true, true)
        decided = rng.random(num) >= 0.1
        certified = int(np.sum(label & decided))
        possible = certified + int(np.sum(~decided))
        sample = rng.choice(num, audited, replace=False)
        # The audit compares decided labels; an undecided one claims nothing that could be wrong.
        flips = int(np.sum((label != true)[sample] & decided[sample]))
        low, high = verdict_interval(certified, possible, num, alpha, Audit(audited, flips, "", ()))
        misses += not low <= p <= high
    assert misses <= 250


def test_coverage_fails_without_the_audit():
    """The same mislabelling, ignored, breaks the interval: the audit term is not decoration."""
    rng = np.random.default_rng(4)
    misses = 0
    for _ in range(500):
        true = rng.random(1000) < 0.97
        label = np.where(rng.random(1000) < 0.03, ~true, true)
        count = int(label.sum())
        low, high = verdict_interval(count, count, 1000, 0.1)
        misses += not low <= 0.97 <= high
    assert misses > 250
