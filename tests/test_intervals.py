"""Intervals: against their definition, and their coverage by simulation, with and without undecided starts and audit."""

import numpy as np
import pytest
import scipy.stats

from gdflow.basins.intervals import (
    Audit,
    check_audit,
    clopper_pearson_lower,
    clopper_pearson_upper,
    contradicts,
    default_audit,
    interval_text,
    smallest_audit,
    verdict_interval,
)


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


@pytest.mark.parametrize(("label", "again", "flip"), [
    ((0, 0), (0, 0), False),
    ((0, 0), (1, 1), True),  # another limit
    ((0, 0), (-1, 3), True),  # no certificate at all, with ten times the steps
    ((1, 1), (0, 0), True),
    ((-1, 3), (0, 0), False),  # undecided, now decided: it claimed nothing
    ((-1, 3), (-1, 3), False),
    ((-1, 3), (-1, 2), False),
    ((-1, 2), (-1, 3), True),  # a level that was said to be passed is not
])  # fmt: skip
def test_what_contradicts_a_label(label, again, flip):
    assert contradicts(label, again) == flip


def labelled_starts(rng, num, p, flip, undecided):
    """Truth (level 0 or 1), labels of a run and of an audit that sees the truth, as the batch engine gives them."""
    truth = (rng.random(num) >= p).astype(int)
    wrong, open_ = rng.random(num) < flip, rng.random(num) < undecided
    found = np.where(wrong, 1 - truth, truth).tolist()
    labels = [(-1, 2) if o else (limit, limit) for limit, o in zip(found, open_, strict=True)]
    return truth, labels, [(t, t) for t in truth.tolist()]


@pytest.mark.parametrize("p", [0.02, 0.5, 0.97])
@pytest.mark.parametrize("flip", [0.0, 0.03])
@pytest.mark.slow
def test_coverage(p, flip):
    """The true probability is covered at least as often as claimed, with mislabelled and undecided starts.

    Every start has a true limit (level 0 with probability p), is undecided with probability 0.1, which the audit decides, and
    certified at the wrong level with probability `flip`. With 2000 repetitions the number of misses is binomial with success
    probability at most 0.1; more than 250 has probability below 2e-4 even at exactly 0.1, so with 6 cases and two rows the
    false-alarm probability is below 2.4e-3 (the seed is fixed).
    """
    rng = np.random.default_rng(3)
    num, audited, alpha = 300, 100, 0.1
    misses = np.zeros(2, int)
    for _ in range(2000):
        _, labels, again = labelled_starts(rng, num, p, flip, 0.1)
        flips = sum(contradicts(labels[i], again[i]) for i in rng.choice(num, audited, replace=False))
        certified = [sum(limit == k for limit, _ in labels) for k in (0, 1)]
        for k, q in ((0, p), (1, 1 - p)):
            audit = Audit(audited, flips, "", ())
            low, high = verdict_interval(certified[k], num - certified[1 - k], num, alpha, audit)
            misses[k] += not low <= q <= high
    assert np.all(misses <= 250)


def test_undecided_starts_that_the_audit_decides_do_not_widen_the_interval():
    """Four undecided of 200, as on real data: the interval is that without flips, not [0, 1]."""
    labels = [(0, 0)] * 196 + [(-1, 1)] * 4
    flips = sum(contradicts(label, (0, 0)) for label in labels[100:])
    low, high = verdict_interval(196, 200, 200, 0.05, Audit(100, flips, "", ()))
    assert flips == 0
    assert low > 0.88
    assert high == 1.0


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
def test_an_audit_too_small_to_say_anything_is_refused(confidence):
    least = smallest_audit(confidence)
    # By the definition of the bound: (1 − u)^n = α/2 for no flip in n.
    assert 1 - (0.5 * (1 - confidence)) ** (1 / least) <= 0.5
    assert least == 1 or 1 - (0.5 * (1 - confidence)) ** (1 / (least - 1)) > 0.5
    check_audit(least, 1000, confidence)
    check_audit(0, 1000, confidence)
    if least > 1:
        with pytest.raises(ValueError, match=f"says nothing.*audit at least {least}, or 0"):
            check_audit(least - 1, 1000, confidence)
    with pytest.raises(ValueError, match="cannot audit 30 of 20"):
        check_audit(30, 20, confidence)


def test_default_audit():
    assert [default_audit(n, 0.95) for n in (3, 10, 100, 1000, 4000, 10**4, 10**9)] == [0, 10, 100, 100, 200, 500, 500]


def test_ten_certified_starts_say_something():
    """All of ten certified and audited: the interval is not [0, 1]."""
    assert verdict_interval(10, 10, 10, 0.05, Audit(10, 0, "", ()))[0] > 0.3


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


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (0.9922, 1.0), (0.999963, 1.0), (0.47123, 0.52111), (0.0, 0.0000188)])
def test_intervals_are_printed_rounded_outwards(bounds):
    low, high = map(float, interval_text(bounds)[1:-1].split(","))
    width = bounds[1] - bounds[0]
    assert bounds[0] - 0.1 * width <= low <= bounds[0]
    assert bounds[1] <= high <= bounds[1] + 0.1 * width
