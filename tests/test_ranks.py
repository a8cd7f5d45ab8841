"""The rule for "zero", "equal" and "rank": its threshold, its margins, and that it recovers ranks known by construction."""

import numpy as np
import pytest

from gdflow.ranks import RankDecision, decide_rank, equal_threshold, zero_threshold

EPS = 2.0**-52  # distance from 1 to the next double
EPS32 = 2.0**-23


@pytest.mark.parametrize("size", [1, 100, 101, 5000])
@pytest.mark.parametrize("eps", [EPS, EPS32])
def test_zero_threshold_is_a_multiple_of_eps_times_scale(size, eps):
    # A power of two as scale: the products are exact but for one rounding, so two ulps are allowed.
    assert zero_threshold(8.0, size, eps) == pytest.approx(8.0 * eps * max(100, size), rel=2 * EPS)


@pytest.mark.parametrize(
    ("factor", "rank", "certain"),
    [
        (0.0, 1, True),
        (0.1, 1, True),
        (0.5, 1, False),
        (1.0, 1, False),
        (2.0, 2, False),
        (10.0, 2, True),
        (1e6, 2, True),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 2.0**40, 2.0**-40])
def test_decision_around_the_threshold(factor, rank, certain, scale):
    threshold = 100 * EPS * scale
    # Division where the factor is below one: a tenth in binary would round above the border.
    value = threshold / 10 if factor == 0.1 else factor * threshold
    decision = decide_rank(np.array([value, scale]))
    assert decision.rank == rank
    assert decision.certain is certain
    assert decision.threshold == threshold
    if rank == 2:
        assert (decision.smallest_kept, decision.largest_dropped) == (value, 0.0)
    else:
        assert (decision.smallest_kept, decision.largest_dropped) == (scale, value)


def test_one_value_near_the_threshold_makes_a_decision_uncertain_among_many_clear_ones():
    threshold = 100 * EPS * 4.0
    clear = np.array([4.0, 1.0, 0.3, 1e-30, 0.0])
    assert decide_rank(clear).certain
    assert not decide_rank(np.append(clear, 3 * threshold)).certain
    assert not decide_rank(np.append(clear, threshold / 3)).certain


def test_order_does_not_matter(rng):
    s = np.concatenate([rng.uniform(0.1, 1, 5), rng.uniform(0, 1e-17, 4)])
    assert decide_rank(s) == decide_rank(np.sort(s)) == decide_rank(np.sort(s)[::-1])
    assert decide_rank(s).rank == 5


@pytest.mark.parametrize("values", [np.zeros(3), np.zeros(1), np.zeros(0)])
def test_zero_and_empty_matrices_have_rank_zero_for_certain(values):
    assert decide_rank(values) == RankDecision(0, 0.0, np.inf, 0.0)
    assert decide_rank(values).certain


@pytest.mark.parametrize("shape", [(3, 3), (20, 7), (400, 300)])
@pytest.mark.parametrize(("dtype", "eps"), [(np.float64, EPS), (np.float32, EPS32)])
def test_rank_of_a_product_of_random_factors(shape, dtype, eps, rng):
    """A product of Gaussian factors with inner width r has rank r with probability one; rounding must not raise it."""
    r = min(shape) // 2
    matrix = (rng.normal(size=(shape[0], r)) @ rng.normal(size=(r, shape[1]))).astype(dtype)
    decision = decide_rank(np.linalg.svd(matrix, compute_uv=False), size=max(shape), eps=eps)
    assert decision.rank == r
    # The singular values that should be zero are those of a backward error, at most a few eps of the largest.
    assert 0 < decision.largest_dropped < decision.threshold


def test_equal_threshold_is_ten_times_the_slack_of_a_certificate():
    slack = 100 * EPS * 7.0
    assert equal_threshold(7.0) == pytest.approx(10 * slack, rel=4 * EPS)  # a few roundings
    assert equal_threshold(7.0, EPS32) == pytest.approx(1000 * EPS32 * 7.0, rel=4 * EPS)
