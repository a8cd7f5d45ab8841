"""Certificates against simulated trajectories and cases where a bound is attained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_cases import random_net

import gdflow as gf
from gdflow.certificates import certify, exponential_rates, radius_bounds
from gdflow.initialization import Pyramidal
from gdflow.network import LayerTuple
from gdflow.problem import Problem

EPS = float(np.finfo(np.float64).eps)


@pytest.mark.slow
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


@pytest.mark.slow
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
@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
