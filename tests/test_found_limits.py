"""Limits that a run finds: against problems whose basins are known, against independent descent, and by simulation."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

import gdflow as gf
from gdflow import attraction
from gdflow.attraction import attraction_radius, fourth_bound
from gdflow.basins.intervals import found_interval, shared_error, unseen_bound
from gdflow.basins.outcomes import Status
from gdflow.initialization import Gaussian
from gdflow.polish import polish
from gdflow.problem import Potential
from gdflow.verdicts import Converged

KEY = jax.random.key(14)
QUIET = dict(key=KEY, progress=False)


def double_well(x):
    return (x**2 - 1) ** 2 / 4


# -- problems whose basins are known -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_basins_of_a_double_well():
    """Two minima of the same loss. The interval at 1 − 1e-6 holds the normal probability of the right half."""
    estimate = gf.basin_sizes(
        Potential(double_well), lambda key: 0.3 + jax.random.normal(key), 2000, **QUIET, audit=0, confidence=1 - 1e-6
    )
    assert [float(limit.point) for limit in estimate.found] == pytest.approx([-1, 1], abs=1e-12) or [
        float(limit.point) for limit in estimate.found
    ] == pytest.approx([1, -1], abs=1e-12)
    p = scipy.stats.norm.cdf(0.3)
    for row in estimate.rows:
        exact = p if float(row.found.point) > 0 else 1 - p
        assert row.interval[0] <= exact <= row.interval[1]
        assert row.simultaneous[0] <= exact <= row.simultaneous[1]
        assert row.found.isolated
        assert row.found.smallest == pytest.approx(2.0, rel=1e-9)
    assert estimate.undecided == 0
    assert estimate.unseen < 0.02
    starts = estimate.plan.starts.networks(estimate.ids)
    ends = np.array([float(limit.point) for limit in estimate.found])[estimate.outcomes["limit"].to_numpy()]
    np.testing.assert_array_equal(np.sign(ends), np.sign(starts))


@pytest.mark.slow
def test_one_relu_unit_dies_with_probability_five_eighths():
    """`L = ½(1 − w_2 max(w_1, 0))²` from independent normal weights of one scale.

    The unit is dead from the first if `w_1 < 0`. Else `w_2² − w_1²` is constant: with `w_2 > 0` the flow ends at the minimum,
    with `−w_1 < w_2 < 0` as well, and with `w_2 < −w_1` it reaches `w_1 = 0` and dies. So the minimum has probability ½(½ + ¼).
    """
    problem = gf.Problem([[1.0]], [[1.0]], activations="relu")
    estimate = gf.basin_sizes(problem, Gaussian((1, 1, 1), 1.0), 2000, **QUIET, audit=0, confidence=1 - 1e-6)
    minimum, dead = estimate.rows
    assert minimum.found.loss == pytest.approx(0, abs=1e-12)
    assert dead.found.loss == pytest.approx(0.5)
    assert minimum.found.zero == 0
    assert minimum.found.symmetries == 1
    assert minimum.found.dead == (0,)
    assert dead.found.dead == (1,)
    assert dead.found.positive == 0
    assert dead.found.zero == 0
    assert dead.found.symmetries == 2
    assert minimum.interval[0] <= 3 / 8 <= minimum.interval[1]
    nets = estimate.plan.starts.networks(estimate.ids)
    w1, w2 = np.asarray(nets.weights[0]).ravel(), np.asarray(nets.weights[1]).ravel()
    clear = (abs(w1) > 1e-3) & (abs(w2 + abs(w1)) > 1e-3)  # at the boundary itself the integration's error decides
    expected = np.where((w1 > 0) & (w2 > -w1), 0, 1)
    np.testing.assert_array_equal(estimate.outcomes["limit"].to_numpy()[clear], expected[clear])
    assert dead.found.kind == "minimum, but for 1 unit off"


@pytest.mark.slow
def test_linear_networks_agree_with_the_level_certificate():
    """The global minimum is a family of networks: one limit, told from others by the product."""
    problem = gf.Problem.from_singular_values([3, 2, 1], d_x=4)
    law = Gaussian(problem.widths([3]))
    found = gf.basin_sizes(problem, law, 60, **QUIET, audit=0, verdict=Converged())
    known = gf.basin_sizes(problem, law, 60, **QUIET, audit=0)
    assert known.certified == 60
    assert found.located == 60
    (limit,) = found.found
    assert limit.loss == pytest.approx(known.levels[0].value, abs=1e-10)
    # r d_1 + (d_1 − r)(r + d_x − d_y) flat directions (MATH 8), r = d_1 = 3.
    assert limit.zero == 9
    assert not limit.isolated
    # A bottleneck: the best fit of rank one.
    law = Gaussian(problem.widths([1]))
    (limit,) = gf.basin_sizes(problem, law, 40, **QUIET, audit=0, verdict=Converged()).found
    assert limit.loss == pytest.approx(0.5 * (2**2 + 1), rel=1e-9)
    assert limit.zero == 1


@pytest.mark.slow
def test_separable_samples_run_to_infinity_and_others_do_not():
    rng = np.random.default_rng(3)
    X = rng.normal(size=(2, 12))
    labels = np.sign(X[:1] + 0.1)
    law = Gaussian((2, 3, 1))
    separable = gf.basin_sizes(gf.Problem(X, labels, gf.losses.Logistic()), law, 40, **QUIET, audit=0)
    assert separable.certified == 40
    assert [limit.at_infinity for limit in separable.found] == [True]
    assert np.all(separable.outcomes["loss"].to_numpy() < math.log(2))
    labels[0, :4] *= -1
    mixed = gf.basin_sizes(gf.Problem(X, labels, gf.losses.Logistic()), law, 40, **QUIET, audit=0)
    assert not any(limit.at_infinity for limit in mixed.found)
    assert mixed.located == 40
    # The loss of the minimum, by SciPy, of a convex function of the product.
    best = scipy.optimize.minimize(lambda w: np.sum(np.logaddexp(0, -labels[0] * (w @ X))), np.zeros(2), tol=1e-12)
    assert mixed.found[0].loss == pytest.approx(best.fun, rel=1e-9)
    # Nothing is claimed of other activations, or with weight decay.
    for options in (dict(activations="tanh"), dict(weight_decay=0.1), dict(biases=True)):
        assert not gf.Problem(X, labels, gf.losses.Logistic(), **options).objective.vanishes_at_infinity()


# -- against independent descent ---------------------------------------------------------------------------------------


def tanh_problem(hidden=2):
    problem = gf.Problem.from_csv(
        gf.data.bundled.linnerud_path(), gf.data.bundled.LINNERUD_TARGETS, activations="tanh", weight_decay=0.1
    )
    return problem, Gaussian(problem.widths([hidden]))


@pytest.fixture(scope="module")
def tanh_estimate():
    problem, law = tanh_problem()
    return gf.basin_sizes(problem, law, 200, **QUIET, audit=0)


def descend(problem, nets, steps, rate):
    """Optax's gradient descent with a tiny step, written down without gdflow's gradient."""
    X, Y, decay = np.asarray(problem.design), np.asarray(problem.target), float(problem.objective.decay)

    def loss(weights):
        residual = Y - weights[1] @ jnp.tanh(weights[0] @ X)
        return 0.5 * jnp.sum(residual**2) + 0.5 * decay * sum(jnp.sum(w**2) for w in weights)

    optimizer = optax.sgd(rate)

    def one(weights):
        def step(carry, _):
            weights, state = carry
            updates, state = optimizer.update(jax.grad(loss)(weights), state)
            return (optax.apply_updates(weights, updates), state), None

        (weights, _), _ = jax.lax.scan(step, (weights, optimizer.init(weights)), length=steps)
        return loss(weights)

    return jax.jit(jax.vmap(one))(nets.weights)


@pytest.mark.slow
@pytest.mark.parametrize("num", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_limits_are_those_of_gradient_descent_with_a_tiny_step(tanh_estimate, num):
    estimate = tanh_estimate
    assert len(estimate.found) >= 2
    assert estimate.undecided == 0
    nets = estimate.plan.starts.networks(range(num))
    losses = np.asarray(descend(estimate.plan.problem, nets, 60_000, 1e-3))  # to time 60, that of the slowest start
    limits = estimate.outcomes["limit"].to_numpy()[:num]
    expected = np.array([limit.loss for limit in estimate.found])
    # Told apart by 0.03; what is left at time 60 is below e^{-0.5·60} of the loss, the step's error 1e-3 of a gradient.
    np.testing.assert_allclose(losses, expected[limits], atol=1e-3)


@pytest.mark.slow
def test_what_is_said_of_a_limit_holds(tanh_estimate):
    problem = tanh_estimate.plan.problem
    for limit in tanh_estimate.found:
        assert float(problem.gradient(limit.point).norm()) < 1e-10
        values = np.linalg.eigvalsh(gf.hessian(problem, limit.point))
        assert values[0] == pytest.approx(limit.smallest, rel=1e-6)
        assert values[0] > 0
        assert float(problem.effective_loss(limit.point)) == pytest.approx(limit.loss, rel=1e-12)
    certified = tanh_estimate.outcomes["status"].cast("string").to_numpy(zero_copy_only=False) == "certified"
    assert certified.sum() == tanh_estimate.certified > 100
    radii = np.array([limit.radius for limit in tanh_estimate.found])[tanh_estimate.outcomes["limit"].to_numpy()]
    assert np.all(tanh_estimate.outcomes["distance"].to_numpy()[certified] < radii[certified])


@pytest.mark.slow
def test_fractions_of_other_starts_agree(tanh_estimate):
    """Counts at the two frequent limits, and at all others, with another key: one law, by χ². False alarms: 1e-4."""
    problem, law = tanh_problem()
    other = gf.basin_sizes(problem, law, 200, key=jax.random.key(15), progress=False, audit=50)
    assert other.audit.flips == 0
    frequent = sorted(tanh_estimate.rows, key=lambda row: -row.certified)[:2]
    table = []
    for estimate in (tanh_estimate, other):
        at = [sum(r.certified for r in estimate.rows if abs(r.found.loss - f.found.loss) < 1e-6) for f in frequent]
        table.append([*at, estimate.num - sum(at)])
    assert scipy.stats.chi2_contingency(table, correction=False).pvalue > 1e-4


@pytest.mark.slow
def test_rows_do_not_depend_on_lanes(tanh_estimate):
    problem, law = tanh_problem()
    again = gf.basin_sizes(problem, law, 40, **QUIET, audit=0, lanes=8)
    shared = [limit.loss for limit in again.found]
    mine = np.array(shared)[again.outcomes["limit"].to_numpy()]
    first = np.array([limit.loss for limit in tanh_estimate.found])[tanh_estimate.outcomes["limit"].to_numpy()[:40]]
    np.testing.assert_allclose(mine, first, rtol=1e-9)


@pytest.mark.slow
def test_results_are_written_opened_and_run_again(tanh_estimate, tmp_path):
    problem, law = tanh_problem()
    estimate = gf.basin_sizes(problem, law, 40, **QUIET, folder=tmp_path / "run", audit=20)
    opened = gf.load(tmp_path / "run")
    assert opened.outcomes.equals(estimate.outcomes)
    assert opened.labels == estimate.labels
    for a, b in zip(opened.found, estimate.found, strict=True):
        assert a.loss == b.loss
        assert a.kind == b.kind
        assert a.first_id == b.first_id
        np.testing.assert_array_equal(a.point.weights[0], b.point.weights[0])
    assert str(opened).splitlines()[-8:] == str(estimate).splitlines()[-8:]
    assert gf.basin_sizes(problem, law, 40, **QUIET, folder=tmp_path / "run", audit=20).opened_from
    assert estimate.audit.flips == 0
    assert opened.unseen == estimate.unseen
    repeated = gf.repeat(estimate, progress=False)
    assert repeated.outcomes["limit"].equals(estimate.outcomes["limit"])
    assert estimate.plan.collect(range(10))["verdict"].to_pylist()[0].startswith("limit")


# -- polish, canonical form, ball of attraction ------------------------------------------------------------------------

CASES = [
    ("tanh", 0.0, False, (3, 4, 2)), ("tanh", 0.0, True, (4, 4, 3, 2)), ("relu", 0.0, False, (3, 4, 2)),
    ("leaky-relu", 0.0, True, (4, 4, 3, 2)), ("relu", 0.1, True, (4, 3, 2)), ("sigmoid", 0.0, False, (3, 3, 3, 2)),
]  # fmt: skip


@pytest.mark.parametrize(("activation", "decay", "biases", "widths"), CASES)
@given(seed=st.integers(0, 10**6))
def test_the_canonical_form_does_not_change_under_symmetries(activation, decay, biases, widths, seed):
    """Permutations, sign flips of tanh, scalings of ReLU: the same form, the same loss; and it is its own form."""
    rng = np.random.default_rng(seed)
    X, Y = rng.normal(size=(widths[0] - biases, 6)), rng.normal(size=(widths[-1], 6))
    problem = gf.Problem(X, Y, activations=activation, weight_decay=decay, biases=biases)
    weights = [rng.normal(size=(b, a)) for a, b in zip(widths[:-1], widths[1:], strict=True)]
    moved = [w.copy() for w in weights]
    for j in range(len(weights) - 1):
        real = widths[j + 1] - biases
        order = np.r_[rng.permutation(real), np.arange(real, widths[j + 1])]
        factor = np.ones(widths[j + 1])
        if activation == "tanh":
            factor[:real] = rng.choice([-1.0, 1.0], real)
        if activation.endswith("relu") and not decay:
            factor[:real] = rng.uniform(0.5, 2.0, real)
        moved[j] = (factor[:, None] * moved[j])[order]
        moved[j + 1] = (moved[j + 1] / factor)[:, order]
        if biases:
            moved[j][-1] = rng.normal(size=moved[j].shape[1])  # without effect
    net, other = gf.LayerTuple(weights), gf.LayerTuple(moved)
    canonical = eqx.filter_jit(problem.objective.canonical)
    form, again = canonical(net), canonical(other)
    assert float(problem.effective_loss(form)) <= float(problem.effective_loss(net)) * (1 + 1e-12)
    if not decay:  # with decay scaling and rows without effect count
        assert float(problem.effective_loss(form)) == pytest.approx(float(problem.effective_loss(net)), rel=1e-12)
    for a, b, c in zip(form.weights, again.weights, canonical(form).weights, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)
        np.testing.assert_allclose(a, c, atol=1e-12)


def test_polish_finds_the_critical_point_where_the_hessian_is_singular():
    problem = gf.Problem([[1.0]], [[1.0]], activations="relu")
    nets = gf.LayerTuple([jnp.array([[[1.1]], [[0.7]]]), jnp.array([[[0.93]], [[1.4]]])])
    found = polish(problem.objective, nets)
    np.testing.assert_allclose(found.points.weights[0] * found.points.weights[1], 1.0, atol=1e-12)
    assert np.all(found.gradient_norms < 1e-12)
    assert np.all(found.downhill)
    np.testing.assert_array_equal(found.num_symmetries, 1)
    # A quadratic form: in one step.
    quadratic = Potential(lambda x: 0.5 * jnp.sum(jnp.array([1.0, 4.0]) * x**2))
    found = polish(quadratic.objective, jnp.array([[3.0, -2.0]]))
    np.testing.assert_allclose(found.points, 0.0, atol=1e-12)
    np.testing.assert_allclose(found.hessians[0], np.diag([1.0, 4.0]), atol=1e-12)


@pytest.mark.parametrize(
    ("activation", "loss", "widths"),
    [("tanh", gf.losses.SquaredError(), (2, 3, 2)), ("arctan", gf.losses.Logistic(), (2, 2, 2, 1)),
     ("sigmoid", gf.losses.SoftmaxCrossEntropy(), (2, 3, 2)), ("gelu", gf.losses.SquaredError(), (2, 2, 1))],
)  # fmt: skip
def test_bounds_of_the_fourth_derivative_hold(activation, loss, widths):
    """Fourth derivatives along random directions at random points of the ball, by Taylor-mode differentiation, are below."""
    rng = np.random.default_rng(5)
    X, Y = rng.normal(size=(widths[0], 5)), rng.normal(size=(widths[-1], 5))
    if isinstance(loss, gf.losses.Logistic):
        Y = np.sign(Y)
    if isinstance(loss, gf.losses.SoftmaxCrossEntropy):
        Y = np.eye(2)[:, rng.integers(0, 2, 5)]
    problem = gf.Problem(X, Y, loss, activations=activation)
    net = Gaussian(widths, 1.0).sample(KEY, 0)
    flat, unravel = jax.flatten_util.ravel_pytree(net)
    R = 0.3
    bound = fourth_bound(problem.objective, net, R)

    def fourth(x, v):
        derivative = lambda t: problem.effective_loss(unravel(x + t * v))  # noqa: E731
        for _ in range(4):
            derivative = jax.grad(derivative)
        return derivative(0.0)

    v = rng.normal(size=(300, flat.size))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    shift = rng.normal(size=(300, flat.size))
    shift *= R / np.linalg.norm(shift, axis=1, keepdims=True)
    found = np.abs(jax.jit(jax.vmap(fourth))(np.asarray(flat) + shift, v)).max()
    assert 0 < found <= bound


@pytest.mark.slow
def test_the_flow_from_a_ball_of_attraction_ends_at_its_minimum(tanh_estimate):
    """From points just inside, at the distance that is claimed, the distance falls all along."""
    problem = tanh_estimate.plan.problem
    rng = np.random.default_rng(6)
    for limit in tanh_estimate.found[:2]:
        flat, unravel = jax.flatten_util.ravel_pytree(limit.point)
        values = np.linalg.eigvalsh(gf.hessian(problem, limit.point))
        radius = attraction_radius(problem.objective, limit.point, values, 1e-13)
        assert radius == pytest.approx(limit.radius, rel=1e-6)
        assert radius > 1e-6
        steps = rng.normal(size=(8, flat.size))
        steps *= 0.999 * radius / np.linalg.norm(steps, axis=1, keepdims=True)
        starts = jax.vmap(unravel)(np.asarray(flat) + steps)
        run = gf.simulate(problem, starts, 30.0, ts=20, rtol=1e-9, atol=1e-14)
        away = jax.vmap(jax.vmap(lambda n, point=limit.point: (n - point).norm()))(run.networks)
        assert np.all(np.diff(away, axis=1) <= 1e-13)
        assert np.all(away[:, -1] < 1e-3 * radius)
    # At a saddle, and for objectives of which nothing is known, nothing is claimed.
    assert attraction_radius(problem.objective, limit.point, -values, 0.0) == 0.0
    assert attraction_radius(Potential(double_well).objective, jnp.ones(()), np.array([2.0]), 0.0) == 0.0


@pytest.mark.slow
def test_the_hessian_keeps_its_part_on_the_whole_ball():
    """One hidden unit, so that the worst direction is found by search: a quarter of the least eigenvalue is left everywhere on
    the ball. The ball with the third or the fourth derivative left out is larger, and there it is not."""
    problem = gf.Problem([[1.0, 2.0, -0.5]], [[0.8, 0.9, 0.3]], activations="tanh", weight_decay=0.05)
    objective = problem.objective
    found = polish(objective, gf.LayerTuple([jnp.array([[[1.0]]]), jnp.array([[[1.0]]])]))
    point = jax.tree.map(lambda w: w[0], found.points)
    values = np.linalg.eigvalsh(found.hessians[0])
    radius = attraction_radius(objective, point, values, 1e-14)
    assert radius > 0.01
    flat, unravel = jax.flatten_util.ravel_pytree(point)

    @jax.jit
    def least(y):
        return jnp.linalg.eigvalsh(jax.hessian(lambda x: problem.effective_loss(unravel(x)))(y))[0]

    @jax.jit
    def third(v):
        hessian = jax.hessian(lambda x: problem.effective_loss(unravel(x)))
        return jnp.max(jnp.abs(jnp.linalg.eigvalsh(jax.jvp(hessian, (flat,), (v,))[1])))

    angles = np.linspace(0, 2 * np.pi, 181)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert jax.vmap(least)(np.asarray(flat) + radius * circle).min() >= 0.25 * values[0]
    # The third derivative: the bound is none of more than 2 here (Frobenius norm against operator norm), and none too small.
    worst = jax.vmap(third)(circle).max()
    assert worst <= float(attraction._third_norm(objective, point)) <= 2 * worst
    # The radius is that at which the three terms leave a quarter.
    third, fourth = attraction._third_norm(objective, point), fourth_bound(objective, point, radius)
    left = values[0] - third * radius - 0.5 * fourth * radius**2
    assert left == pytest.approx(0.25 * values[0], rel=1e-3)


def test_softmax_outputs_are_told_apart_up_to_a_shift():
    """`W_2 + 1vᵀ` adds one number in all classes: the same probabilities, the same limit of a family."""
    rng = np.random.default_rng(9)
    X, Y = rng.normal(size=(3, 6)), np.eye(2)[:, rng.integers(0, 2, 6)]
    W1, W2, v = rng.normal(size=(3, 3)), rng.normal(size=(2, 3)), rng.normal(size=(1, 3))
    for activation in (None, "tanh"):
        objective = gf.Problem(X, Y, gf.losses.SoftmaxCrossEntropy(), activations=activation).objective
        net, shifted, other = (gf.LayerTuple([W1, w]) for w in (W2, W2 + v, W2 + np.eye(2, 3)))
        np.testing.assert_allclose(objective.features(shifted), objective.features(net), atol=1e-12)
        assert np.abs(objective.features(other) - objective.features(net)).max() > 1e-2
        assert float(objective.effective_loss(shifted)) == pytest.approx(
            float(objective.effective_loss(net)), rel=1e-12
        )


# -- intervals ---------------------------------------------------------------------------------------------------------


def test_intervals_of_found_limits_cover_together():
    """1000 made-up runs with rare limits, found or not. At confidence 0.9 all intervals must cover in ≥ 0.9 of them.

    A shortfall by 3.3 standard deviations (0.031) has a probability of 5e-4; plain intervals, of the same level each, fail.
    """
    rng = np.random.default_rng(7)
    p, num, alpha = np.array([0.6, 0.3, 0.05, 0.02, 0.01, *[0.004] * 5]), 150, 0.1
    covered, unseen = 0, 0
    for _ in range(1000):
        limits = rng.choice(len(p), num, p=p)
        _, first, counts = np.unique(limits, return_index=True, return_counts=True)
        kinds = np.unique(limits)
        ranks = 1 + np.argsort(np.argsort(first))
        ends = [
            found_interval(int(c), int(c), num, int(f), shared_error(alpha, int(r)))
            for c, f, r in zip(counts, first, ranks, strict=True)
        ]
        covered += all(low <= p[k] <= high for k, (low, high) in zip(kinds, ends, strict=True))
        unseen += p[~np.isin(np.arange(len(p)), kinds)].sum() <= unseen_bound(limits, alpha)
    assert covered >= 900 - 31
    assert unseen >= 900 - 31


def test_unseen_bound_counts_what_is_new_and_what_is_undecided():
    limits = np.array([0] * 10 + [1] * 10 + [0] * 18 + [2, -1])
    assert unseen_bound(limits, 0.05) == pytest.approx(scipy.stats.beta.ppf(0.95, 3, 18))
    assert unseen_bound(np.array([-1, -1]), 0.05) == 1.0


# -- what cannot be ----------------------------------------------------------------------------------------------------


def test_bad_input_is_refused_before_anything_runs():
    rng = np.random.default_rng(8)
    problem = gf.Problem(rng.normal(size=(3, 9)), rng.normal(size=(2, 9)), activations="relu")
    zero = gf.LayerTuple([jnp.zeros((4, 3, 3)), jnp.zeros((4, 2, 3))])
    with pytest.raises(ValueError, match="gradient vanishes at the first 4 starts"):
        gf.basin_sizes(problem, zero, progress=False)
    with pytest.raises(ValueError, match="not finite at the first"):
        gf.basin_sizes(Potential(lambda x: jnp.log(-jnp.abs(x))), lambda key: jax.random.normal(key), 5, **QUIET)
    linear = gf.Problem.from_singular_values([2.0, 1.0], coordinates="data")
    verdict = gf.verdicts.Balanced(linear, (2, 2, 2))
    with pytest.raises(ValueError, match="Balanced needs critical values known beforehand, and this problem has"):
        gf.basin_sizes(problem, Gaussian(problem.widths([3])), 5, **QUIET, verdict=verdict)
    with pytest.raises(TypeError, match="starts of a problem of data are networks"):
        gf.basin_sizes(problem, jnp.ones((5, 2)), progress=False)
    with pytest.raises(ValueError, match="first axes count the same"):
        gf.basin_sizes(Potential(lambda x: x[0]), (jnp.ones(3), jnp.ones(4)), progress=False)
    with pytest.raises(ValueError, match=r"at most 4096 parameters; here are 5000"):
        gf.basin_sizes(problem, Gaussian(problem.widths([1000])), 5, **QUIET)
    with pytest.raises(ValueError, match="same must lie between"):
        Converged(same=0.5)
    with pytest.raises(ValueError, match="at most 1000000 starts"):
        gf.basin_sizes(Potential(double_well), lambda key: jax.random.normal(key), 2e6, **QUIET, audit=0)


@pytest.mark.slow
def test_a_start_that_is_lost_is_counted_and_the_rest_goes_on():
    """A potential with a pole: starts beyond it run off to where it is no number; none of them has a limit."""
    estimate = gf.basin_sizes(
        Potential(lambda x: jnp.where(x < 2, double_well(x), jnp.nan)),
        jnp.array([0.5, -0.5, 3.0]),
        progress=False,
        audit=0,
    )
    assert estimate.statuses[Status.LOCATED] == 2
    assert estimate.statuses[Status.NON_FINITE] == 1
    # Nothing has a minimum here: no limit, and nothing else breaks.
    falling = gf.basin_sizes(Potential(lambda x: -x), jnp.array([0.5, -0.5]), progress=False, audit=0)
    assert falling.found == ()
    assert falling.fraction == 0
    assert falling.interval == (0, 1)
    assert "0 found" in str(falling)
    assert falling.statuses[Status.DIVERGING] == 2
    assert "has no minimum there" in str(falling)


@pytest.mark.slow
def test_starts_that_pass_a_saddle_are_not_put_there():
    """`L = x²/2 − y²/2 + y⁴/4` from `y = 1e-5`: the gradient falls to 1e-5 near the saddle and rises again."""
    potential = Potential(lambda z: z[0] ** 2 / 2 - z[1] ** 2 / 2 + z[1] ** 4 / 4)
    estimate = gf.basin_sizes(
        potential, jnp.array([[1.0, 1e-5], [1.0, -1e-3], [0.5, 0.0]]), progress=False, audit=0,
        limits=gf.basins.Limits(gradient_tolerance=1e-4, max_steps=1000),
    )  # fmt: skip
    ends = estimate.outcomes["verdict"].to_pylist()
    assert ends[2] == "undecided"
    assert "passes a saddle" in str(estimate)
    assert ends[1] != "undecided"
    assert all(abs(float(limit.point[1])) == pytest.approx(1.0) for limit in estimate.found)


@pytest.mark.slow
def test_where_the_loss_hardly_curves_only_critical_points_are_limits():
    """`x²/2 + 1e-9(−y²/2 + y⁴/4)`: so little curvature counts as none. At y = 0.1, 0.5 the gradient is 1e-10, but not 0."""
    potential = Potential(lambda v: v[0] ** 2 / 2 + 1e-9 * (-(v[1] ** 2) / 2 + v[1] ** 4 / 4))
    starts = jnp.array([[1.0, 0.1], [1.0, 0.5], [0.5, -0.5], [1.0, 1.0]])
    estimate = gf.basin_sizes(potential, starts, progress=False, audit=0)
    assert estimate.outcomes["verdict"].to_pylist()[:3] == ["undecided"] * 3
    np.testing.assert_allclose([limit.point for limit in estimate.found], [[0.0, 1.0]], atol=1e-12)


def test_on_a_family_of_minima_a_state_stays_where_it_is():
    """On the unit circle the critical point found is the nearest one: Newton's method would go along it."""
    potential = Potential(lambda v: (v[0] ** 2 + v[1] ** 2 - 1) ** 2)
    angle = np.array([0.3, 1.2, 2.9])
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    found = polish(potential.objective, jnp.asarray((1 + 1e-4) * circle))
    np.testing.assert_allclose(found.points, circle, atol=1e-10)


@pytest.mark.slow
def test_a_tail_is_no_family():
    """tanh 1-1-1 whose flow creeps along `w_1w_2` almost constant, `w_2` to infinity (Radau: −2.197, −3.97, −38.7 at times
    1e4, 1e8, 1e12): no limit, though the Hessian there has a zero to round-off."""
    problem = gf.Problem([[1.0, 2.0, -0.5]], [[0.5, -0.2, 0.3]], activations="tanh")
    net = gf.LayerTuple([jnp.array([[[0.6501]]]), jnp.array([[[-2.3279]]])])
    limits = gf.basins.Limits(gradient_tolerance=9.5e-7, dwell=0.46, max_steps=2000)
    estimate = gf.basin_sizes(problem, net, limits=limits, audit=0, progress=False)
    assert estimate.found == ()
