"""Certificates against brute-force levels, simulated trajectories and cases where a bound is attained."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from landscape_points import admissible_subsets, data_problem, kinds, r_max, whitened

import gdflow as gf
from gdflow.avoidance import excludes_non_strict_saddles, saddle_avoidance, widths_exclude_non_strict_saddles
from gdflow.certificates import (
    LevelCertificate,
    certificate_levels,
    certificate_threshold,
    certify,
    exponential_rates,
    radius_bounds,
)
from gdflow.initialization import Pyramidal
from gdflow.losses import Logistic
from gdflow.network import LayerTuple
from gdflow.problem import Problem

EPS = float(np.finfo(np.float64).eps)


def random_net(rng: np.random.Generator, widths) -> LayerTuple:
    return LayerTuple([rng.standard_normal((a, b)) for a, b in zip(widths[1:], widths[:-1], strict=True)])


def single_precision(problem: Problem) -> Problem:
    return jax.tree.map(lambda x: x.astype(jnp.float32), problem)


# The ladder of levels.


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
@pytest.mark.parametrize("kind", ["exact", "almost sure"])
def test_ladder_against_brute_force(s, max_rank, kind):
    problem = Problem.from_singular_values(s, d_x=len(s) + 1)
    certificate = LevelCertificate(problem, problem.widths([max_rank, 5]), kind=kind)
    levels = (brute_force_levels if kind == "exact" else brute_force_nested)(s, max_rank)
    scale = sum(x**2 for x in s)
    np.testing.assert_allclose(certificate.levels, levels, rtol=0, atol=20 * EPS * scale)  # sums of a few squares
    np.testing.assert_allclose(certificate.slack, 100 * EPS * scale, rtol=1e-12)
    np.testing.assert_allclose(certificate.thresholds, levels[1:] - 100 * EPS * scale, rtol=0, atol=20 * EPS * scale)
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
    certificate = LevelCertificate(Problem.from_singular_values([2, 1]), (2, 2, 2))  # levels 0, ½, 2, 5/2
    losses = jnp.asarray([[0.1, 1.0], [2.2, 3.0], [0.4, jnp.nan]])
    np.testing.assert_array_equal(certificate.level(losses, 0 * losses), [[0, 1], [2, 3], [0, 3]])
    np.testing.assert_array_equal(
        certificate.certified(losses, 0 * losses), [[True, False], [False, False], [True, False]]
    )


@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 2.5]), min_size=1, max_size=5),  # ties and zeros abound
    st.integers(1, 5),
    st.integers(1, 40),
)
def test_ladder_for_arbitrary_spectra(s, bottleneck, depth):
    problem = Problem.from_singular_values(s)
    widths = problem.widths([6, bottleneck])
    max_rank = min(len(s), bottleneck)
    for kind, brute in (("exact", brute_force_levels), ("almost sure", brute_force_nested)):
        certificate = LevelCertificate(problem, widths, kind=kind, depth=depth)
        expected = brute(s, max_rank)[: depth + 1]
        assert certificate.levels.shape == expected.shape
        np.testing.assert_allclose(certificate.levels, expected, rtol=0, atol=1e-13 * (1 + sum(np.square(s))))
        assert int(certificate.level(jnp.asarray(1e3), jnp.asarray(0.0))) == min(depth, len(brute(s, max_rank)) - 1)


def test_almost_sure_stops_earlier_only_at_a_bottleneck():
    problem = Problem.from_singular_values([3, 2, 1], d_x=4)
    wide, narrow = problem.widths([3]), problem.widths([1])
    for widths, exact, almost in ((wide, 0.5, 0.5), (narrow, 5.0, 7.0)):
        # Full rank: the second level is ½·1² either way. Rank 1: ½(3² + 1²) without {1}, against ½·14 for S = ∅.
        np.testing.assert_allclose(LevelCertificate(problem, widths).levels[1], exact, rtol=1e-14)
        np.testing.assert_allclose(LevelCertificate(problem, widths, kind="almost sure").levels[1], almost, rtol=1e-14)


@pytest.mark.parametrize("coordinates", ["data", "reduced", "whitened"])
def test_ladder_from_data_of_deficient_rank(coordinates, rng):
    # Critical values from the singular values of Q = YXᵀ(XXᵀ)^{-1/2}, with rank X = 2 as a bound on the rank.
    X = rng.standard_normal((4, 2)) @ rng.standard_normal((2, 9))
    Y = rng.standard_normal((3, 9))
    values, vectors = np.linalg.eigh(X @ X.T)
    s = np.linalg.svd(Y @ X.T @ (vectors[:, 2:] / np.sqrt(values[2:])), compute_uv=False)
    problem = Problem(X, Y, coordinates=coordinates)
    for hidden, max_rank in (([3, 5], 2), ([5, 1], 1)):
        certificate = LevelCertificate(problem, problem.widths(hidden))
        # Forming XXᵀ above loses half the digits of its condition number, which is below 1e4.
        np.testing.assert_allclose(certificate.levels, brute_force_levels(s, max_rank), rtol=1e-9)


@pytest.mark.parametrize("kind", ["exact", "almost sure"])
def test_a_loss_that_is_no_number_is_never_certified(kind):
    ladder = LevelCertificate(Problem.from_singular_values([2, 1]), (2, 2, 2), kind=kind)
    single = LevelCertificate(Problem.from_singular_values([0.0, 0.0]), (2, 2, 2), kind=kind)
    assert single.levels.shape == (1,)
    for certificate in (ladder, single):
        for loss in (jnp.nan, jnp.inf):
            assert not bool(certificate.certified(jnp.asarray(loss), jnp.asarray(0.0)))
            assert int(certificate.level(jnp.asarray(loss), jnp.asarray(0.0))) == certificate.thresholds.shape[0]
    assert bool(single.certified(jnp.asarray(3.0), jnp.asarray(0.0)))  # the minimum is the only critical value


def test_levels_merged_by_round_off_are_counted():
    # ½(1 + 3e-13)² − ½ = 3e-13 lies below the tolerance 1000·eps·Σs² = 1.3e-12, far above a rounding error.
    problem = Problem.from_singular_values([2.0, 1.0 + 3e-13, 1.0], d_x=4)
    certificate = LevelCertificate(problem, problem.widths([3]), depth=100)
    np.testing.assert_allclose(certificate.levels, brute_force_levels([2.0, 1.0, 1.0], 3), rtol=0, atol=1e-11)
    assert certificate.num_merged > 0


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
@pytest.mark.parametrize("kind", ["exact", "almost sure"])
def test_threshold_and_ladder_are_one_number(s, merged, kind):
    """Merged or not, `thresholds[0]` is the closed form, and that the second level of the listing less the slack."""
    problem = Problem.from_singular_values(list(s))
    widths = problem.widths([2])
    certificate = LevelCertificate(problem, widths, kind=kind)
    threshold = float(certificate_threshold(problem, widths, kind))
    assert threshold == float(certificate.thresholds[0])
    # The listing takes differences of sums of squares.
    scale = sum(x**2 for x in s)
    np.testing.assert_allclose(threshold + certificate.slack, certificate.levels[1], rtol=0, atol=20 * EPS * scale)
    if kind == "exact" or len(s) == 2:
        lowest = certificate_levels(problem, widths, kind=kind)[0]
        assert certificate.separated == (lowest.width == 0)
    if kind == "exact" and len(s) > 1:
        assert certificate.separated == (not merged)


def test_merged_levels_certify_the_lowest_levels_only():
    """With s = (1, 5e-7) the saddle {1} and the minimum are one level: what is certified is said, and it is not the minimum."""
    problem = Problem.from_singular_values([1.0, 5e-7])
    saddle = LayerTuple([jnp.diag(jnp.asarray([1.0, 0.0]))] * 2)
    found = certify(problem, saddle)
    assert found.at_lowest_level
    assert not found.global_minimum
    assert not found.almost_surely
    np.testing.assert_allclose(found.lowest_width, 0.5 * 25e-14, rtol=1e-9)
    assert "round-off cannot tell apart" in " ".join(str(found).split())
    law = gf.initialization.Gaussian((2, 2, 2))
    estimate = gf.basin_sizes(problem, law, 20, key=jax.random.key(0), audit=0, progress=False)
    assert estimate.certified == 20
    assert set(estimate.outcomes["verdict"].to_pylist()) == {"lowest levels (merged)"}
    assert "minima and saddles are not told apart" in " ".join(str(estimate).split())
    trajectory = gf.simulate(problem, LayerTuple([0.9 * w for w in saddle.weights]), jnp.inf, stop=gf.AtCertificate())
    assert certify(problem, trajectory.final).at_lowest_level


def test_a_single_layer_is_certified_at_once():
    """One layer is convex: its only critical value is the minimum, also from where the loss is large."""
    problem = Problem.from_singular_values([3.0, 2.0, 1.0])
    net = LayerTuple([-5.0 * jnp.eye(3)])
    assert certify(problem, net).global_minimum
    assert gf.critical_values(problem, 3, num_layers=1).values.tolist() == [0.0]
    assert len(problem.report((3, 3)).levels) == 1
    law = gf.initialization.Gaussian((3, 3))
    estimate = gf.basin_sizes(problem, law, 8, key=jax.random.key(0), audit=0, progress=False)
    assert estimate.certified == 8
    assert estimate.outcomes["time"].to_pylist() == [0.0] * 8


def test_balanced_networks_are_not_certified_almost_surely():
    """Behind a bottleneck the almost-sure level is the higher one; balanced starts are a null set it says nothing of."""
    problem = Problem.from_singular_values([3.0, 1.0])
    generic = LayerTuple([jnp.asarray([[0.5, 1.2]]), jnp.asarray([[0.3], [1.0]])])
    balanced = LayerTuple([jnp.asarray([[0.0, 1.0]]), jnp.asarray([[0.0], [1.0]])])
    assert 0.5 < float(problem.effective_loss(balanced)) < 5.0  # below ℓ(∅), not below ℓ({2})
    assert not certify(problem, balanced).almost_surely
    assert certify(problem, generic).almost_surely


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap, jax.grad])
def test_certify_says_that_it_cannot_be_transformed(transform):
    problem = Problem.from_singular_values([2.0, 1.0])
    batch = LayerTuple([jnp.ones((3, 2, 2)), jnp.ones((3, 2, 2))])
    net = batch if transform is jax.vmap else LayerTuple([jnp.ones((2, 2)), jnp.ones((2, 2))])
    with pytest.raises(TypeError, match="certify runs on the host and cannot be transformed"):
        transform(lambda n: certify(problem, n).loss)(net)


def test_single_precision_needs_consent():
    problem = single_precision(Problem.from_singular_values([2, 1]))
    for make in (
        lambda **kw: LevelCertificate(problem, (2, 2, 2), **kw),
        lambda **kw: certify(problem, LayerTuple([jnp.eye(2, dtype=jnp.float32)] * 2), **kw),
    ):
        with pytest.raises(ValueError, match=r"the problem is float32: call jax.config.*allow_float32=True"):
            make()
        make(allow_float32=True)
    certificate = LevelCertificate(problem, (2, 2, 2), allow_float32=True)
    assert certificate.levels.dtype == jnp.float32
    # The slack is that of the coarser arithmetic: 100·2⁻²³·5; the thresholds themselves are rounded to float32.
    np.testing.assert_allclose(certificate.slack, 100 * 2.0**-23 * 5, rtol=1e-6)
    np.testing.assert_allclose(certificate.thresholds[0], 0.5 - 100 * 2.0**-23 * 5, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "almost"}, r"kind must be one of .*'almost sure'.*, got 'almost'"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"widths": (3, 2, 2)}, r"widths \(3, 2, 2\) do not fit the problem.*d_0 = 2 and d_N = 2"),
        ({"widths": (2, 0, 2)}, "positive integers, got 0"),
    ],
)
def test_bad_ladders_are_refused(options, message):
    options = {"widths": (2, 2, 2), **options}
    with pytest.raises(ValueError, match=message):
        LevelCertificate(Problem.from_singular_values([2, 1]), **options)


def test_losses_without_levels_are_refused(rng):
    problem = Problem(rng.standard_normal((3, 5)), rng.choice([-1.0, 1.0], (2, 5)), Logistic())
    net = random_net(rng, (3, 2, 2))
    for refused in (lambda: LevelCertificate(problem, net.widths), lambda: certify(problem, net)):
        with pytest.raises(ValueError, match="Logistic has no finite set of critical values"):
            refused()


# The radius.


def imbalanced_starts(rng, widths, num: int) -> LayerTuple:
    """Gaussian starts whose layers differ in scale by a factor of up to 50, so that bounds for balance would break."""
    return LayerTuple(
        [
            10.0 ** rng.uniform(-1.3, 0.4, (num, 1, 1)) * rng.standard_normal((num, a, b)) / np.sqrt(b)
            for a, b in zip(widths[1:], widths[:-1], strict=True)
        ]
    )


@pytest.mark.parametrize(
    ("coordinates", "hidden"),
    [
        ("data", []),
        ("data", [3, 2]),
        *(pytest.param("data", hidden, marks=pytest.mark.slow) for hidden in ([3], [2, 3, 2, 3])),
        *(pytest.param("whitened", hidden, marks=pytest.mark.slow) for hidden in ([3], [3, 2, 2])),
    ],
)
def test_no_trajectory_leaves_its_radius(coordinates, hidden, rng):
    X = np.diag([1.5, 1.0, 0.8, 0.5]) @ rng.standard_normal((4, 3)) @ rng.standard_normal((3, 6))  # of rank 3
    problem = Problem(X, rng.standard_normal((2, 6)), coordinates=coordinates)
    starts = imbalanced_starts(rng, problem.widths(hidden), 24)
    trajectories = gf.simulate(problem, starts, 10.0, ts=101, rtol=1e-7, atol=1e-9, dense=False)
    # The stiffest of the deep starts may run into the step limit: they are compared as far as they went.
    assert trajectories.status.count("reached t1") >= 20
    assert np.all(trajectories.finite)
    norms = jax.vmap(jax.vmap(lambda net: net.layer_norms()))(trajectories.networks)
    largest = np.max(np.asarray(norms), axis=1, where=np.isfinite(norms), initial=0.0)
    bounds = np.stack([radius_bounds(problem, jax.tree.map(lambda w: w[i], starts)) for i in range(24)])  # noqa: B023
    assert bounds.shape == (24, len(hidden) + 1)
    # A relative 1e-6 allows for the integration, whose local errors are 1e-7.
    assert np.max(largest / bounds) < 1 + 1e-6
    assert np.max(largest / bounds) > 0.1  # and the bound is of the right size


@pytest.mark.parametrize("scale", [1.0, 0.4, 2.5])
@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_radius_is_attained_by_a_balanced_chain_from_above(depth, scale):
    # ½(ds − d·u)²: u(0) > s falls, so the sizes start at their largest; R_0 = (ds + |ds − d·u(0)|)/d = u(0), C_j = 0 and
    # the bound is u(0)^{1/N}.
    problem = Problem.from_target(np.array([[1.5 * scale]]), np.array([scale]))
    size = 1.4 if depth > 1 else 2.0
    bounds = radius_bounds(problem, LayerTuple([np.array([[size]])] * depth))
    np.testing.assert_allclose(bounds, size, rtol=1e-9)  # a root find to 1e-10


def test_radius_counts_the_part_of_the_first_layer_that_never_moves():
    # X has no component along the third input; the weights there stay at 7.
    problem = Problem(np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), np.array([[0.0, 0.0]]))
    bounds = radius_bounds(problem, LayerTuple([np.array([[0.0, 0.0, 7.0]]), np.array([[0.0]])]))
    np.testing.assert_allclose(bounds, [7.0, 0.0], atol=1e-6)  # a double root at zero: half the digits


# Exponential rates.


@pytest.mark.slow
@pytest.mark.parametrize("coordinates", ["data", "whitened"])
def test_pyramidal_starts_decay_at_the_guaranteed_rate(coordinates, rng, key):
    problem = Problem(rng.standard_normal((3, 8)), 2 * rng.standard_normal((2, 8)), coordinates=coordinates)
    starts = Pyramidal(problem.widths([4, 3]), margin=0.4, scale=0.3).sample_batch(key, np.arange(16))
    trajectories = gf.simulate(problem, starts, 2.5, ts=101, rtol=1e-9, atol=1e-12, dense=False)
    assert trajectories.status == ["reached t1"] * 16
    times = np.asarray(trajectories.ts[0])
    for i in range(16):
        rates = exponential_rates(problem, jax.tree.map(lambda w: w[i], starts))  # noqa: B023
        assert rates.reason == ""
        assert 0 < rates.alpha < rates.alpha_sharp  # depth 3: μ_1μ_2 < μ_1(μ_1 + μ_2)
        # In √L, that is in the residual, the integration is wrong by no more than about 1e-8 (local errors 1e-9).
        root = np.sqrt(np.asarray(trajectories.losses[i]))
        for alpha in (rates.alpha, rates.alpha_sharp):
            assert np.all(root <= root[0] * np.exp(-alpha * times) + 1e-8)
        assert root[-1] < 1e-2 * root[0]  # the comparison reaches far below the start


def orthonormal_rows(rng, rows: int, columns: int) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((columns, rows)))[0].T


@pytest.mark.parametrize("widths", [(3, 4, 2), (3, 2, 2), (2, 5, 3, 2), (3, 3, 3, 3, 1)])
def test_sharp_rate_is_attained(widths, rng):
    # W_1 = 0 and W_l = c_l·(orthonormal rows), c_2 < c_3 < …: only W_1 moves, and dL/dt = −∏c_l²·‖M‖² = −2α'L. The
    # eigenvalues of C_l = c_{l+1}²QᵀQ − c_l²I are c_{l+1}² − c_l², d_{l+1} times, and −c_l² (C_1: 0).
    c2 = np.cumsum(rng.uniform(0.5, 1.5, len(widths) - 2))  # c_l², l = 2, 3, …
    layers = [np.zeros((widths[1], widths[0]))]
    for c, a, b in zip(c2, widths[2:], widths[1:-1], strict=True):
        layers.append(np.sqrt(c) * orthonormal_rows(rng, a, b))
    net = LayerTuple(layers)
    problem = Problem.from_target(rng.standard_normal((widths[-1], widths[0])), coordinates="whitened")
    rates = exponential_rates(problem, net)
    gradient = jax.grad(problem.effective_loss)(net)
    slope = float(gradient.inner(gradient)) / (2 * float(problem.effective_loss(net)))
    np.testing.assert_allclose(rates.alpha_sharp, np.prod(c2), rtol=1e-12)
    np.testing.assert_allclose(rates.alpha_sharp, slope, rtol=1e-12)
    np.testing.assert_allclose(rates.alpha, np.prod(np.diff(c2, prepend=0.0)), rtol=1e-11)


def test_rate_in_data_coordinates_carries_the_smallest_singular_value(rng):
    # L = ½‖A − WD‖² with D = dI: a rescaling of W by d that multiplies the rate of the flow in W_1 by d².
    A, net = rng.standard_normal((2, 3)), LayerTuple([np.zeros((2, 3)), orthonormal_rows(rng, 2, 2)])
    rates = exponential_rates(Problem.from_target(A, np.full(3, 0.5)), net)
    np.testing.assert_allclose((rates.alpha, rates.alpha_sharp), 0.25, rtol=1e-12)


def test_sharp_rate_may_exist_alone():
    # μ_1 = 4, μ_2 = 3 − 4 = −1: no α, but b_1 = 4, b_2 = 4 − 1 = 3 and α' = 12 = ∏c_l².
    net = LayerTuple([np.zeros((1, 1)), np.array([[2.0]]), np.array([[np.sqrt(3.0)]])])
    rates = exponential_rates(Problem.from_target(np.array([[1.0]])), net)
    assert rates.alpha is None
    assert rates.reason == ""
    np.testing.assert_allclose(rates.alpha_sharp, 12.0, rtol=1e-12)


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ([np.ones((1, 2))], "a single layer has no conserved quantities"),
        ([np.ones((2, 2)), np.ones((3, 2)), np.ones((1, 3))], r"widths \(2, 2, 3, 1\) are not pyramidal"),
        ([2 * np.eye(2), np.eye(2)[:1]], "eigenvalue condition fails: min μ_l = -"),
    ],
)
def test_without_a_rate_there_is_a_reason(layers, reason):
    net = LayerTuple(layers)
    rates = exponential_rates(Problem.from_target(np.ones((net.widths[-1], 2))), net)
    assert rates.alpha is None
    assert rates.alpha_sharp is None
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(rates.reason)


# certify.


def diagonal(*values: float) -> LayerTuple:
    """Two layers with the product diag(values)."""
    return LayerTuple([np.diag(values), np.eye(len(values))])


@pytest.mark.parametrize(
    ("bottleneck", "u", "verdict", "level", "text"),
    [
        # s = (2, 1), full rank: levels 0, ½, 2, 5/2.
        (2, (1.9, 0.9), (True, True), 0, "converges to a global minimum"),
        (2, (1.9, -0.3), (False, False), 1, "undecided: the loss is not below 1 critical value(s) above the lowest"),
        (2, (0.5, 0.1), (False, False), 1, "undecided"),
        (2, (-1.0, 0.0), (False, False), 3, "undecided: the loss is not below 3 critical value(s)"),
        # Rank 1: levels ½, 2, 5/2, nested ½, 5/2.
        (1, (1.0, 0.0), (True, True), 0, "converges to a global minimum"),
        (1, (0.1, 0.0), (False, True), 1, "except for starts in a set of Lebesgue measure zero"),
        (1, (-0.1, 0.0), (False, False), 2, "undecided"),
    ],
)
def test_certify_a_two_by_two_target(bottleneck, u, verdict, level, text):
    problem = Problem.from_singular_values([2, 1])
    net = diagonal(*u) if bottleneck == 2 else LayerTuple([np.array([[u[0], 0.0]]), np.array([[1.0], [0.0]])])
    loss = 0.5 * ((2 - u[0]) ** 2 + (1 - u[1]) ** 2)
    levels = [0.0, 0.5, 2.0, 2.5] if bottleneck == 2 else [0.5, 2.0, 2.5]
    expected_level = sum(loss >= value for value in levels[1:])
    certificate = certify(problem, net)
    np.testing.assert_allclose(certificate.loss, loss, rtol=1e-14)
    np.testing.assert_allclose(certificate.levels, levels, rtol=0, atol=1e-14)
    assert certificate.level == expected_level
    assert (certificate.global_minimum, certificate.almost_surely) == verdict
    np.testing.assert_array_equal(certificate.radius, radius_bounds(problem, net))
    assert certificate.rates == exponential_rates(problem, net)
    shown = str(certificate)
    assert text in " ".join(shown.split())
    for part in ("effective loss", "lowest levels", "‖W_j‖", "rate"):
        assert part in shown
    assert "<" in certificate._repr_html_()


def test_verdicts_do_not_depend_on_the_coordinates(rng):
    data = Problem(rng.standard_normal((4, 9)), rng.standard_normal((3, 9)))
    net = random_net(rng, data.widths([3]))
    reference = certify(data, net)
    for coordinates in ("reduced", "whitened"):
        problem = data.in_coordinates(coordinates)
        other = certify(problem, data.convert(net, "data", coordinates))
        np.testing.assert_allclose(other.loss, reference.loss, rtol=1e-12)  # condition number of X below 100
        np.testing.assert_allclose(other.levels, reference.levels, rtol=1e-12, atol=1e-12)
        assert other.level == reference.level
    assert reference.global_minimum is reference.almost_surely is False


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([np.ones((5, 3, 2)), np.ones((5, 2, 3))], r"one network is needed here, got a batch of shape \(5,\)"),
        ([np.array([[1.0, np.nan], [0.0, 1.0]]), np.eye(2)], r"W_1 is nan at entry \(0, 1\)"),
        ([np.eye(2), np.array([[1.0, 0.0], [-np.inf, 1.0]])], r"W_2 is -inf at entry \(1, 0\)"),
        ([np.ones((2, 3)), np.eye(2)], r"widths \(3, 2, 2\) do not fit the problem.*d_0 = 2 and d_N = 2"),
    ],
)
def test_certify_refuses_what_is_not_one_finite_network(layers, message):
    with pytest.raises(ValueError, match=message):
        certify(Problem.from_singular_values([2, 1]), LayerTuple(layers))


def test_the_almost_sure_ladder_is_nested_however_many_levels_lie_between():
    """With ten singular values hundreds of critical values lie between the nested ones `ℓ({1..r})`."""
    s = np.arange(10.0, 0.0, -1.0)
    problem = Problem.from_singular_values(s)
    levels = certificate_levels(problem, problem.widths([12]), kind="almost sure")
    assert [level.value for level in levels] == [
        0.5 * float(np.sum(s[r:] ** 2)) for r in range(10, -1, -1)
    ]  # halves: exact
    assert [level.subsets for level in levels] == [(tuple(range(1, r + 1)),) for r in range(10, -1, -1)]


# Starts that reach no non-strict saddle.

#: Three layers: whether the widths exclude almost every start (in normal form `d_2 ≥ 2r_max − 1` or
#: `d_1 ≥ 2r_max + d_x − d_y − 1`), problem, widths.
AVOIDANCE = {
    "wide second": (True, whitened([3, 2, 1], 4, 3), (4, 3, 5, 3)),
    "wide first": (True, whitened([3, 2, 1], 4, 3), (4, 6, 3, 3)),
    "bottleneck": (True, whitened([3, 2, 1], 3, 3), (3, 4, 2, 3)),
    "data, fewer inputs": (True, data_problem(2, 4, 2, 2), (2, 3, 3, 4)),
    "data, rank-deficient, fewer inputs": (True, data_problem(4, 3, 2, 3), (4, 3, 2, 3)),
    "narrow": (False, whitened([3, 2, 1], 4, 3), (4, 4, 4, 3)),
    "narrow, data, fewer inputs": (False, data_problem(3, 4, 3, 7), (3, 4, 4, 4)),
    "narrow, data, rank-deficient": (False, data_problem(5, 3, 4, 8), (5, 5, 4, 3)),
    "narrow, reduced, square": (False, data_problem(3, 3, 3, 9, "reduced"), (3, 3, 3, 3)),
}


def gaussian(widths, num: int) -> LayerTuple:
    rng = np.random.default_rng(10)
    return LayerTuple([rng.normal(size=(num, a, b)) / np.sqrt(b) for b, a in itertools.pairwise(widths)])


def stacked(nets) -> LayerTuple:
    return jax.tree.map(lambda *w: jnp.stack(w), *nets)


@functools.cache
def _compiled(name: str):
    problem = AVOIDANCE[name][1]
    return jax.jit(jax.vmap(lambda net: excludes_non_strict_saddles(problem, net)))


def excluded(name: str, nets: LayerTuple) -> np.ndarray:
    """Start by start; the function is traceable, also under `jax.jit`. Always of 200 networks, to compile once."""
    num = nets.batch_shape[0]
    return np.asarray(_compiled(name)(jax.tree.map(lambda w: jnp.resize(w, (200, *w.shape[1:])), nets)))[:num]


def isometric_layers(problem: Problem, net: LayerTuple) -> list[np.ndarray]:
    """The layers on the range of the data, at least as many inputs as outputs, with the metric of the problem's flow."""
    D = np.asarray(problem.design)
    U = np.linalg.svd(D)[0][:, : np.linalg.matrix_rank(D)]
    W = [np.asarray(w) for w in net.weights]
    W[0] = W[0] @ U
    return W if W[0].shape[1] >= W[-1].shape[0] else [w.T for w in reversed(W)]


def ranks_exclude(W: list[np.ndarray]) -> bool:
    """`n_±(C_2) ≤ r`, `n_+(C_1) ≤ r`, `n_−(C_1) ≤ r + d_x − d_y` for no `r < r_max`, by definition."""
    widths = [W[0].shape[1], *(w.shape[0] for w in W)]

    def signs(before, after):
        e = np.linalg.eigvalsh(after.T @ after - before @ before.T)
        # Round-off is 1e-15; no test start comes within 1e-10 of a zero eigenvalue.
        return int(np.sum(e > 1e-10)), int(np.sum(e < -1e-10))

    (p1, n1), (p2, n2) = signs(W[0], W[1]), signs(W[1], W[2])
    return not any(max(p1, p2, n2) <= r and n1 <= r + widths[0] - widths[-1] for r in range(min(widths)))


@pytest.mark.parametrize("name", AVOIDANCE)
def test_no_non_strict_saddle_is_excluded(name):
    """Soundness at the limits themselves: a saddle is the limit of the trajectory that starts there."""
    _, problem, widths = AVOIDANCE[name]
    nets, rng = [], np.random.default_rng(11)
    for subset in admissible_subsets(problem, widths):
        for kind in sorted({"non-strict", "zero-hessian"} & set(kinds(problem, widths, subset))):
            for k in range(8):
                key = jax.random.key(len(nets))
                # Scales far apart too, and far from one.
                options = (
                    {"imbalance": float(10 ** rng.uniform(0, 4) * rng.choice([-1, 1]))} if k % 2 and subset else {}
                )
                nets.append(gf.sample_critical_point(problem, widths, subset, key=key, kind=kind, **options))
    assert len(nets) >= 8 * (r_max(problem, widths) + 1) >= 24
    assert not excluded(name, stacked(nets)).any()
    # Each rank r < r_max has its own; the inequalities hold there with its r.
    assert not any(ranks_exclude(isometric_layers(problem, net)) for net in nets)
    # What W_1 does on the null directions of X never matters.
    D = np.asarray(problem.design)
    null = np.linalg.svd(D)[0][:, np.linalg.matrix_rank(D) :]
    assert null.shape[1] == ("rank-deficient" in name) * (problem.d_in - len(problem.decomposition.S_X))
    if null.size:
        moved = [
            LayerTuple([w.weights[0] + rng.normal(size=(widths[1], null.shape[1])) @ null.T, *w.weights[1:]])
            for w in nets
        ]
        assert not excluded(name, stacked(moved)).any()


@pytest.mark.parametrize("name", AVOIDANCE)
def test_exclusion_is_that_of_the_definition(name):
    """Starts of all shapes: Gaussian ones, and ones with layers of deficient rank or of different scales."""
    by_widths, problem, widths = AVOIDANCE[name]
    assert widths_exclude_non_strict_saddles(problem, widths) is by_widths
    generic = gaussian(widths, 200)
    found = excluded(name, generic)
    if by_widths:
        assert found.all()
    else:
        assert 0 < found.sum() < 200  # the widths do not decide
    rng, special = np.random.default_rng(12), []
    for _ in range(200):
        layers = []
        for a, b in zip(widths[1:], widths[:-1], strict=True):
            rank = int(rng.integers(0, min(a, b) + 1))
            layers.append(3 ** rng.uniform(-1, 1) * rng.normal(size=(a, rank)) @ rng.normal(size=(rank, b)))
        special.append(LayerTuple(layers))
    verdicts = excluded(name, stacked(special))
    assert 10 < verdicts.sum() < 190
    for nets, values in ((special, verdicts), ([jax.tree.map(lambda w: w[i], generic) for i in range(60)], found)):  # noqa: B023
        for net, value in zip(nets, values[:60] if nets is not special else values, strict=True):
            assert value == ranks_exclude(isometric_layers(problem, net))


@pytest.mark.parametrize(
    "name",
    [
        "narrow",
        pytest.param("data, rank-deficient, fewer inputs", marks=pytest.mark.slow),
        pytest.param("narrow, data, fewer inputs", marks=pytest.mark.slow),
    ],
)
def test_verdict_is_the_same_all_along_the_flow(name):
    _, problem, widths = AVOIDANCE[name]
    generic = gaussian(widths, 200)
    verdicts = excluded(name, generic)
    chosen = np.concatenate([np.flatnonzero(verdicts)[:4], np.flatnonzero(~verdicts)[:4]])
    rng = np.random.default_rng(13)
    # Where all Gaussian starts are excluded, those with layers of rank one supply the other verdict.
    low = [[np.outer(rng.normal(size=a), rng.normal(size=b)) for b, a in itertools.pairwise(widths)] for _ in range(3)]
    starts = jax.tree.map(lambda a, b: jnp.concatenate([a[chosen], b]), generic, stacked(map(LayerTuple, low)))
    trajectories = gf.simulate(problem, starts, 1.0, ts=5, rtol=1e-12, atol=1e-14, dense=False)
    num = len(chosen) + 3
    assert trajectories.status == ["reached t1"] * num
    before = excluded(name, starts)
    assert set(before.tolist()) == {True, False} or r_max(problem, widths) == 1
    states = [jax.tree.map(lambda w: w[i, -1], trajectories.networks) for i in range(num)]  # noqa: B023
    assert float((states[0] - jax.tree.map(lambda w: w[0], starts)).norm()) > 0.01
    np.testing.assert_array_equal(excluded(name, stacked(states[:-3])), before[:-3])
    # Eigenvalues that are zero at a start drift by the error of the integration, 1e-12, beyond round-off: starts of low rank
    # are compared by the definition, in which 1e-10 is zero.
    assert [ranks_exclude(isometric_layers(problem, net)) for net in states] == before.tolist()


@pytest.mark.slow
def test_exclusion_does_not_depend_on_scale_or_on_round_off():
    problem, widths = whitened([3, 2, 1], 4, 3), (4, 4, 4, 3)
    net = gf.sample_critical_point(problem, widths, (1,), key=jax.random.key(0), kind="non-strict")
    rng = np.random.default_rng(14)
    noise = LayerTuple([rng.normal(size=w.shape) for w in net.weights])
    # Zero eigenvalues of C_j move by about the size of the noise: 1e-15 is round-off, 1e-6 is a different start.
    assert not bool(excludes_non_strict_saddles(problem, net + 1e-15 * noise))
    assert bool(excludes_non_strict_saddles(problem, net + 1e-6 * noise)) == ranks_exclude(
        [np.asarray(w) for w in (net + 1e-6 * noise).weights]
    )
    for seed in range(6):
        start = random_net(np.random.default_rng(seed), widths)
        values = {bool(excludes_non_strict_saddles(problem, c * start)) for c in (1e-8, 1.0, 1e8)}
        assert len(values) == 1


def test_a_last_layer_larger_than_the_others_is_excluded():
    """`C_2 = W_3ᵀW_3 − W_2W_2ᵀ` with `r_max` positive eigenvalues, the certificate's simplest case; zero starts are not."""
    problem = whitened([3, 2, 1], 3, 3)
    one = jnp.eye(3)
    assert bool(excludes_non_strict_saddles(problem, LayerTuple([one, one, 2 * one])))
    assert bool(excludes_non_strict_saddles(problem, LayerTuple([2 * one, one, one])))
    assert bool(excludes_non_strict_saddles(problem, LayerTuple([one, 2 * one, one])))
    assert not bool(excludes_non_strict_saddles(problem, LayerTuple([one, one, one])))
    assert not bool(excludes_non_strict_saddles(problem, LayerTuple([0 * one, 0 * one, 0 * one])))
    # Two directions are not enough for r_max = 3: the third may be lost at a saddle of rank 2.
    two = jnp.diag(jnp.array([2.0, 2.0, 1.0]))
    assert not bool(excludes_non_strict_saddles(problem, LayerTuple([one, one, two])))


@pytest.mark.parametrize(
    ("s", "d_x", "d_y", "hidden", "expected"),
    [
        ([3, 2, 1], 4, 3, (4, 4), False),
        ([3, 2, 1], 4, 3, (4, 5), True),
        ([3, 2, 1], 4, 3, (5, 4), False),
        ([3, 2, 1], 4, 3, (6, 4), True),
        ([3, 2, 1], 3, 3, (5, 3), True),
        ([3, 2, 1], 3, 4, (4, 4), False),  # transposed: hidden layers in the other order
        ([3, 2, 1], 3, 4, (5, 4), True),
        ([3, 2, 1], 3, 4, (4, 5), False),
        ([3, 2, 1], 3, 4, (4, 6), True),
        ([3, 2, 1], 9, 3, (2, 3), True),  # r_max = 2
        ([3, 2, 1], 9, 3, (3, 2), False),
        ([3, 2, 1], 9, 3, (1, 1), True),
        ([3, 2, 1], 4, 3, (3,), True),  # two layers
        ([3, 2, 1], 4, 3, (1,), True),
    ],
)
def test_widths_that_exclude_almost_every_start(s, d_x, d_y, hidden, expected):
    problem = whitened(s, d_x, d_y)
    assert widths_exclude_non_strict_saddles(problem, problem.widths(hidden)) is expected


def test_two_layers_have_no_non_strict_saddles():
    problem, widths = whitened([3, 2, 1], 4, 3), (4, 3, 3)
    for subset in ((), (1,), (1, 2, 3)):
        net = gf.sample_critical_point(problem, widths, subset, key=jax.random.key(0), kind="balanced")
        assert bool(excludes_non_strict_saddles(problem, net))
    found = saddle_avoidance(problem, gaussian(widths, 5))
    assert (found.count, found.num, found.by_widths, found.interval[1]) == (5, 5, True, 1.0)
    assert "by the widths almost every start" in " ".join(str(found).split())


def test_the_share_of_excluded_starts_has_an_exact_interval():
    confidence = 0.9
    _, problem, widths = AVOIDANCE["narrow"]
    starts = gaussian(widths, 150)
    found = saddle_avoidance(problem, starts, confidence=confidence)
    assert saddle_avoidance(problem, starts).confidence == 0.95
    np.testing.assert_array_equal(found.excluded, excluded("narrow", starts))
    assert (found.num, found.count, found.share) == (150, found.excluded.sum(), found.excluded.mean())
    assert 0 < found.count < 150
    expected = scipy.stats.binomtest(found.count, 150).proportion_ci(confidence, method="exact")
    np.testing.assert_allclose(found.interval, expected, rtol=1e-12)
    # Clopper and Pearson: each tail has probability (1 − confidence)/2 at the ends.
    tails = (
        scipy.stats.binom.sf(found.count - 1, 150, found.interval[0]),
        scipy.stats.binom.cdf(found.count, 150, found.interval[1]),
    )
    np.testing.assert_allclose(tails, (1 - confidence) / 2, rtol=1e-6)
    text = " ".join(str(found).split())
    assert f"{found.count} of 150 ({found.share:.4g}), {100 * confidence:g} % interval [{found.interval[0]:.4g}" in text
    assert "by the widths no claim" in text


def test_what_avoidance_refuses():
    problem = whitened([3, 2, 1], 4, 3)

    def starts(*widths):
        return gaussian(widths, 3)

    deep = "known for two and three layers, not for 4"
    with pytest.raises(ValueError, match=deep):
        saddle_avoidance(problem, starts(4, 3, 3, 3, 3))
    with pytest.raises(ValueError, match=deep):
        widths_exclude_non_strict_saddles(problem, (4, 3, 3, 3, 3))
    with pytest.raises(ValueError, match="not for 1"):
        saddle_avoidance(problem, starts(4, 3))
    one = jax.tree.map(lambda w: w[0], starts(4, 3, 3, 3))
    with pytest.raises(ValueError, match=r"a batch of starts has one leading axis, got batch shape \(\)"):
        saddle_avoidance(problem, one)
    with pytest.raises(ValueError, match=r"got batch shape \(1, 3\)"):
        saddle_avoidance(problem, jax.tree.map(lambda w: w[None], starts(4, 3, 3, 3)))
    for confidence in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="confidence must lie between 0 and 1"):
            saddle_avoidance(problem, starts(4, 3, 3, 3), confidence=confidence)
    with pytest.raises(ValueError, match="need d_0 = 4 and d_N = 3"):
        saddle_avoidance(problem, starts(3, 3, 3, 3))
    with pytest.raises(ValueError, match="W_1 is nan at entry"):
        saddle_avoidance(problem, jax.tree.map(lambda w: w.at[1].set(jnp.nan), starts(4, 3, 3, 3)))
    for s, message in (([2, 2, 1], "s_1 = 2 and s_2 = 2 are equal"), ([2, 1, 0], "s_3 = 0 is zero")):
        degenerate = whitened(s, 4, 3)
        for refused in (
            lambda: excludes_non_strict_saddles(degenerate, one),  # noqa: B023
            lambda: saddle_avoidance(degenerate, starts(4, 3, 3, 3)),  # noqa: B023
            lambda: widths_exclude_non_strict_saddles(degenerate, (4, 3, 3, 3)),  # noqa: B023
        ):
            with pytest.raises(ValueError, match=f"the exclusion of non-strict saddles needs distinct .*{message}"):
                refused()


def test_certify_says_which_starts_avoid_non_strict_saddles():
    problem = whitened([3, 2, 1], 3, 3)
    one = jnp.eye(3)
    for net, verdict, text in [
        (LayerTuple([one, one, 2 * one]), True, "excluded as limits by the conserved quantities"),
        (LayerTuple([one, one, one]), False, "not excluded by the conserved quantities"),
        (LayerTuple([one, one]), True, "there are none"),
        (LayerTuple([one, one, one, 2 * one]), None, "nothing known"),
        (LayerTuple([one]), None, "nothing known"),
    ]:
        certificate = certify(problem, net)
        assert certificate.avoids_non_strict is verdict
        assert f"non-strict saddles {text}" in " ".join(str(certificate).split())
    # Ties are no error here: nothing is known.
    tied = certify(whitened([2, 2, 1], 3, 3), LayerTuple([one, one, 2 * one]))
    assert tied.avoids_non_strict is None


def test_radius_of_a_network_that_stands_still():
    """Target and product zero: nothing moves, and the radius is at least the present norms."""
    problem = Problem.from_target(np.zeros((2, 2)))
    net = LayerTuple([jnp.zeros((2, 2)), jnp.eye(2)])
    assert np.all(radius_bounds(problem, net) >= np.asarray(net.layer_norms()) * (1 - 1e-12))


@pytest.mark.parametrize("scale", [1e-60, 1e-20, 1e20, 1e60])
def test_radius_is_homogeneous(scale, rng):
    """`W_j → cW_j` with the target times `c^N`: the radius times `c`."""
    c = scale ** (1 / 3)
    net = random_net(rng, (3, 4, 3, 2))
    bounds = radius_bounds(Problem.from_singular_values([2.0, 1.0], d_x=3), net)
    scaled = radius_bounds(Problem.from_singular_values([2.0 * scale, scale], d_x=3), c * net)
    np.testing.assert_allclose(scaled, c * bounds, rtol=1e-9)


def test_badly_conditioned_inputs_certify_no_saddle():
    """An exact saddle in integers and powers of two: the levels of data with κ(X) ~ 1e11 are known to a few digits only."""
    for power in (30, 36, 40):
        d = 2.0**-power
        X, Y = np.array([[1, 1, 1], [1, 1 + d, 1 + 3 * d]]), np.array([[-4.0, -1, 5], [11, -9, 7]])
        saddle = LayerTuple([np.array([[3.0, 0.0]]), np.array([[0.0], [1.0]])])
        for coordinates in ("data", "reduced", "whitened"):
            problem = Problem(X, Y, coordinates=coordinates)
            assert not certify(problem, problem.convert(saddle, "data", coordinates)).global_minimum
        data = Problem(X, Y)
        traced = gf.perturbation.with_data(Problem(np.eye(2, 3), np.ones((2, 3))), jnp.asarray(X), jnp.asarray(Y))
        for problem in (data, traced):
            stop = gf.simulate(problem, saddle, 1e-9, stop=gf.AtCertificate(), ts=[0.0])
            assert int(stop.reached) == -1


def test_a_large_residual_certifies_no_saddle():
    """Levels are as exact as ‖Y‖·eps, not ‖Ȳ‖·eps: a residual of 2^36 beside levels of some thousands."""
    x, z, q, a = np.array([4.0, 2, 0]), np.array([-3.0, -2, -5]), 3.0, 21.0
    n = np.cross(x, z)
    for power in (24, 32, 36, 40):
        X = np.array([x, z])
        # Row 1 of Y fits x, row 2 fits z, both with a huge part that X knows nothing of.
        Y = np.array([q * x + 2.0**power * n, a * (z - x * (z @ x) / (x @ x)) + 2.0**power * n])
        if not np.all(np.round(Y * 64) / 64 == Y):
            continue
        problem = Problem(X, Y)
        saddle = LayerTuple([np.array([[q, 0.0]]), np.array([[1.0], [0.0]])])
        assert not certify(problem, saddle).global_minimum


@pytest.mark.parametrize("small", [5e-14, 2e-14, 1e-14, 1e-30])
def test_what_is_taken_for_zero_merges_with_the_lowest_level(small):
    problem = Problem.from_singular_values([1.0, small])
    found = certify(problem, LayerTuple([np.diag([1.0, 0.0])] * 2))
    assert found.at_lowest_level
    assert not found.global_minimum
    assert not found.almost_surely
    if float(problem.neglected) > 0:
        assert "taken for zero" in str(found)
    # Zero itself is nothing that was neglected.
    assert certify(Problem.from_singular_values([1.0, 0.0]), LayerTuple([np.diag([1.0, 0.0])] * 2)).global_minimum


def test_rates_are_no_round_off():
    """At an exact saddle, where nothing decays, the exact μ is 0: round-off of an eigenvalue is no rate."""
    rng = np.random.default_rng(3)
    for v in [np.array([4.0, 5, 7]), *rng.integers(-9, 10, (20, 3)).astype(float)]:
        size = float(v @ v)
        if size == 0:
            continue
        problem = Problem.from_singular_values(sorted([0.5 * size, 1.0], reverse=True))
        v = v[:, None]
        net = LayerTuple([np.hstack([v, 0 * v]), 0.5 * np.vstack([v.T, 0 * v.T])])
        rates = exponential_rates(problem, net)
        assert rates.alpha is None
        assert rates.alpha_sharp is None


def test_singular_values_must_fall():
    problem = Problem.from_singular_values([3.0, 2.0])
    for bad in ([1.0, 2.0], [1.0, -1.0], [np.nan, 1.0]):
        with pytest.raises(ValueError, match="singular values fall"):
            gf.perturbation.with_singular_values(problem, jnp.asarray(bad))


def test_balanced_starts_on_the_wrong_side_get_no_plain_certificate():
    """An exactly balanced start with det W(0) = −1 for a target with det 6: the exact flow never crosses, an integration does."""
    problem = Problem.from_target([[3.0, 1.0], [0.0, 2.0]])
    wrong = LayerTuple([np.eye(2), np.array([[0.0, 1.0], [1.0, 0.0]])])
    right = LayerTuple([np.eye(2), np.eye(2)])
    both = LayerTuple([jnp.stack([a, b]) for a, b in zip(right.weights, wrong.weights, strict=True)])
    for start in (wrong, both):
        with pytest.raises(ValueError, match="on the wrong side of det W = 0"):
            gf.simulate(problem, start, jnp.inf, stop=gf.AtCertificate())
    with pytest.raises(ValueError, match="this start is balanced"):
        gf.limit(problem, wrong)
    assert gf.simulate(problem, right, jnp.inf, stop=gf.AtCertificate()).reached == 0
    with pytest.raises(ValueError, match=r"Support\.BALANCED"):
        gf.basin_sizes(problem, gf.initialization.Around(wrong, 1e-25), 10, key=jax.random.key(0), progress=False)


def test_arguments_in_the_wrong_order_are_named():
    with pytest.raises(TypeError, match=r"the first argument must be a gdflow\.Problem, got int|violates|parameter"):
        certify(1, 2)
