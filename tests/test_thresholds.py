"""The level certificate against brute-force levels: which critical values a loss has passed."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_cases import random_net

from gdflow.certificates import certify
from gdflow.losses import Logistic
from gdflow.network import LayerTuple
from gdflow.problem import Problem
from gdflow.thresholds import Thresholds, certificate_levels, certificate_threshold

EPS = float(np.finfo(np.float64).eps)


def single_precision(problem: Problem) -> Problem:
    return jax.tree.map(lambda x: x.astype(jnp.float32), problem)


def brute_force_levels(s, max_rank: int) -> np.ndarray:
    """All distinct `½Σ_{i∉S}s_i²`, `|S| ≤ max_rank`, increasing. Numbers of order one: 1e-9 separates what is distinct."""
    s = np.asarray(s, dtype=float)
    values = sorted(
        0.5 * sum(s[i] ** 2 for i in range(len(s)) if i not in S)
        for r in range(max_rank + 1)
        for S in itertools.combinations(range(len(s)), r)
    )
    return np.array([v for k, v in enumerate(values) if k == 0 or v - values[k - 1] > 1e-9])


def brute_force_nested(s, max_rank: int) -> np.ndarray:
    s = np.sort(np.asarray(s, dtype=float))[::-1]
    values = [0.5 * sum(s[r:] ** 2) for r in range(max_rank, -1, -1)]
    return np.array([v for k, v in enumerate(values) if k == 0 or v - values[k - 1] > 1e-9])


LADDERS = (
    ([3.0, 2.0, 1.0], 3),
    ([3.0, 2.0, 1.0], 2),  # bottlenecks
    ([3.0, 2.0, 1.0], 1),
    ([2.0, 2.0, 1.0], 3),  # ties
    ([2.0, 1.0, 1.0], 2),  # a tie across the bottleneck: the minimum has two subsets
    ([1.0, 1.0, 1.0], 1),
    ([5.0, 4.0, 3.0], 3),  # 3² + 4² = 5²: subset sums that tie
    ([2.0, 1.0, 0.0], 3),  # zeros add no levels
    ([2.0, 0.0, 0.0], 2),
    ([1.5, 1.5, 0.0], 2),
    ([0.7], 1),
)


@pytest.mark.parametrize(("s", "max_rank"), LADDERS)
@pytest.mark.parametrize("nested", [False, True])
def test_ladder_against_brute_force(s, max_rank, nested):
    problem = Problem.from_singular_values(s, d_x=len(s) + 1)
    certificate = Thresholds(problem, problem.widths([max_rank, 5]), nested=nested)
    levels = (brute_force_levels if not nested else brute_force_nested)(s, max_rank)
    scale = sum(x**2 for x in s)
    np.testing.assert_allclose(certificate.levels, levels, rtol=0, atol=20 * EPS * scale)  # sums of a few squares
    np.testing.assert_allclose(certificate.slack, 100 * EPS * scale, rtol=1e-12)
    np.testing.assert_allclose(certificate.values, levels[1:] - 100 * EPS * scale, rtol=0, atol=20 * EPS * scale)
    # Halfway between two levels the loss has passed those above; on a level, or within its slack, not yet.
    middles = np.concatenate([levels[:1], (levels[:-1] + levels[1:]) / 2, levels[-1:] + 1.0])
    expected = [0, *range(len(levels) - 1), len(levels) - 1]

    def level(losses):
        return np.asarray(certificate.level(jnp.asarray(losses), jnp.zeros(len(losses)))).tolist()

    assert level(middles) == expected
    exact = jnp.zeros(len(middles))  # no round-off
    assert certificate.certified(jnp.asarray(middles), exact).tolist() == [k == 0 for k in expected]
    above, below = levels[1:] - 10 * EPS * scale, levels[1:] - 300 * EPS * scale
    assert level(above) == list(range(1, len(levels)))
    assert level(below) == list(range(len(levels) - 1))


def test_levels_of_an_array_of_losses():
    certificate = Thresholds(Problem.from_singular_values([2, 1]), (2, 2, 2))  # levels 0, ½, 2, 5/2
    losses = jnp.asarray([[0.1, 1.0], [2.2, 3.0], [0.4, jnp.nan]])
    np.testing.assert_array_equal(certificate.level(losses, 0 * losses), [[0, 1], [2, 3], [0, 3]])
    np.testing.assert_array_equal(
        certificate.certified(losses, 0 * losses), [[True, False], [False, False], [True, False]]
    )


@pytest.mark.slow
@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 2.5]), min_size=1, max_size=5),  # ties and zeros abound
    st.integers(1, 5),
    st.integers(1, 40),
)
def test_ladder_for_arbitrary_spectra(s, bottleneck, num_levels):
    problem = Problem.from_singular_values(s)
    widths = problem.widths([6, bottleneck])
    max_rank = min(len(s), bottleneck)
    for nested, brute in ((False, brute_force_levels), (True, brute_force_nested)):
        certificate = Thresholds(problem, widths, nested=nested, num_levels=num_levels)
        expected = brute(s, max_rank)[: num_levels + 1]
        assert certificate.levels.shape == expected.shape
        np.testing.assert_allclose(certificate.levels, expected, rtol=0, atol=1e-13 * (1 + sum(np.square(s))))
        assert int(certificate.level(jnp.asarray(1e3), jnp.asarray(0.0))) == min(
            num_levels, len(brute(s, max_rank)) - 1
        )


def test_almost_sure_stops_earlier_only_at_a_bottleneck():
    problem = Problem.from_singular_values([3, 2, 1], d_x=4)
    wide, narrow = problem.widths([3]), problem.widths([1])
    for widths, exact, almost in ((wide, 0.5, 0.5), (narrow, 5.0, 7.0)):
        # Full rank: the second level is ½·1² either way. Rank 1: ½(3² + 1²) without {1}, against ½·14 for S = ∅.
        np.testing.assert_allclose(Thresholds(problem, widths).levels[1], exact, rtol=1e-14)
        np.testing.assert_allclose(Thresholds(problem, widths, nested=True).levels[1], almost, rtol=1e-14)


@pytest.mark.parametrize("coordinates", ["data", "reduced", "whitened"])
def test_ladder_from_data_of_deficient_rank(coordinates, rng):
    # Critical values from the singular values of Q = YXᵀ(XXᵀ)^{-1/2}, with rank X = 2 as a bound on the rank.
    X = rng.standard_normal((4, 2)) @ rng.standard_normal((2, 9))
    Y = rng.standard_normal((3, 9))
    values, vectors = np.linalg.eigh(X @ X.T)
    s = np.linalg.svd(Y @ X.T @ (vectors[:, 2:] / np.sqrt(values[2:])), compute_uv=False)
    problem = Problem(X, Y, coordinates=coordinates)
    for hidden, max_rank in (([3, 5], 2), ([5, 1], 1)):
        certificate = Thresholds(problem, problem.widths(hidden))
        # Forming XXᵀ above loses half the digits of its condition number, which is below 1e4.
        np.testing.assert_allclose(certificate.levels, brute_force_levels(s, max_rank), rtol=1e-9)


@pytest.mark.parametrize("nested", [False, True])
def test_a_loss_that_is_no_number_is_never_certified(nested):
    ladder = Thresholds(Problem.from_singular_values([2, 1]), (2, 2, 2), nested=nested)
    single = Thresholds(Problem.from_singular_values([0.0, 0.0]), (2, 2, 2), nested=nested)
    assert single.levels.shape == (1,)
    for certificate in (ladder, single):
        for loss in (jnp.nan, jnp.inf):
            assert not bool(certificate.certified(jnp.asarray(loss), jnp.asarray(0.0)))
            assert int(certificate.level(jnp.asarray(loss), jnp.asarray(0.0))) == certificate.values.shape[0]
    assert bool(single.certified(jnp.asarray(3.0), jnp.asarray(0.0)))  # the minimum is the only critical value


def test_levels_merged_by_round_off_are_counted():
    # ½(1 + 3e-13)² − ½ = 3e-13 lies below the tolerance 1000·eps·Σs² = 1.3e-12, far above a rounding error.
    problem = Problem.from_singular_values([2.0, 1.0 + 3e-13, 1.0], d_x=4)
    certificate = Thresholds(problem, problem.widths([3]), num_levels=100)
    np.testing.assert_allclose(certificate.levels, brute_force_levels([2.0, 1.0, 1.0], 3), rtol=0, atol=1e-11)
    assert any(level.width > 0 for level in certificate_levels(problem, problem.widths([3]), num_levels=100))


@pytest.mark.parametrize(
    ("s", "merged"),
    [
        ((1.0, 5e-7), True),  # with zero
        ((1.0, 5.2e-7, 5.1e-7), True),
        ((1.0, 1.0, 1.0), False),  # exact ties are one value
        ((2.0, 1.0, 0.0), False),
        ((3.0, 2.0, 1.0), False),
        ((2.0, 1.0 + 3e-13, 1.0), True),  # across a bottleneck of two
        ((1.0, 1e-3, 1e-3 * (1 - 1e-6), 1e-6), False),  # close, but told apart: 1e-12 > 1000·eps
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_threshold_and_ladder_are_one_number(s, merged, nested):
    """Merged or not, `Thresholds.values[0]` is the closed form, and that the second level of the listing less the slack."""
    problem = Problem.from_singular_values(list(s))
    widths = problem.widths([2])
    certificate = Thresholds(problem, widths, nested=nested)
    threshold = float(certificate_threshold(problem, widths, nested=nested))
    assert threshold == float(certificate.values[0])
    # The listing takes differences of sums of squares.
    scale = sum(x**2 for x in s)
    np.testing.assert_allclose(threshold + certificate.slack, certificate.levels[1], rtol=0, atol=20 * EPS * scale)
    if not nested or len(s) == 2:
        lowest = certificate_levels(problem, widths, nested=nested)[0]
        assert certificate.separated == (lowest.width == 0)
    if not nested and len(s) > 1:
        assert certificate.separated == (not merged)


def test_single_precision_needs_consent():
    problem = single_precision(Problem.from_singular_values([2, 1]))
    for make in (
        lambda **kw: Thresholds(problem, (2, 2, 2), **kw),
        lambda **kw: certify(problem, LayerTuple([jnp.eye(2, dtype=jnp.float32)] * 2), **kw),
    ):
        with pytest.raises(ValueError, match=r"the problem is float32: call jax.config.*allow_float32=True"):
            make()
        make(allow_float32=True)
    certificate = Thresholds(problem, (2, 2, 2), allow_float32=True)
    assert certificate.levels.dtype == jnp.float32
    # The slack is that of the coarser arithmetic: 100·2⁻²³·5; the thresholds themselves are rounded to float32.
    np.testing.assert_allclose(certificate.slack, 100 * 2.0**-23 * 5, rtol=1e-6)
    np.testing.assert_allclose(certificate.values[0], 0.5 - 100 * 2.0**-23 * 5, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_levels": 0}, "num_levels must be at least 1, got 0"),
        ({"widths": (3, 2, 2)}, r"widths \(3, 2, 2\) do not fit the problem.*d_0 = 2 and d_N = 2"),
        ({"widths": (2, 0, 2)}, "positive integers, got 0"),
    ],
)
def test_bad_ladders_are_refused(options, message):
    options = {"widths": (2, 2, 2), **options}
    with pytest.raises(ValueError, match=message):
        Thresholds(Problem.from_singular_values([2, 1]), **options)


def test_losses_without_levels_are_refused(rng):
    problem = Problem(rng.standard_normal((3, 5)), rng.choice([-1.0, 1.0], (2, 5)), Logistic())
    net = random_net(rng, (3, 2, 2))
    for refused in (lambda: Thresholds(problem, net.widths), lambda: certify(problem, net)):
        with pytest.raises(ValueError, match="this problem has loss Logistic"):
            refused()


def test_the_almost_sure_ladder_is_nested_however_many_levels_lie_between():
    """With ten singular values hundreds of critical values lie between the nested ones `ℓ({1..r})`."""
    s = np.arange(10.0, 0.0, -1.0)
    problem = Problem.from_singular_values(s)
    levels = certificate_levels(problem, problem.widths([12]), nested=True)
    assert [level.value for level in levels] == [
        0.5 * float(np.sum(s[r:] ** 2)) for r in range(10, -1, -1)
    ]  # halves: exact
    assert [level.subsets for level in levels] == [(tuple(range(1, r + 1)),) for r in range(10, -1, -1)]
