"""Perturbed gradient descent: the algorithm word by word, its noise, and that it gets away from strict saddles.

Functions with known constants are potentials of networks of one layer with one row, so that a batch axis makes many starts.
Success is a point that was returned and is second-order stationary. It has a probability of `1 − δ` or more, or so the theorem
says for small `c`; a test fails if so few of its starts succeed that their number, or a smaller one, has a probability of at
most 1e-6 under that. All keys are fixed.
"""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import gdflow as gf
from gdflow.dynamics import perturbed_descent
from gdflow.dynamics.perturbed_descent import DescentThresholds, ball_noise, perturbed_gradient_descent
from gdflow.initialization import Gaussian
from gdflow.network import LayerTuple

KEY = jax.random.key(19)
FALSE_ALARM = 1e-6
FAILURE = 0.1


def potential(function):
    """A function of a vector as a potential of networks of one layer with one row."""
    return gf.Potential(lambda net: function(net.weights[0][0]))


def points(vectors):
    """Vectors, shape `(n, d)`, as a batch of such networks."""
    return LayerTuple([jnp.asarray(vectors)[:, None, :]])


# ¼x⁴ − ½x² + ½|y|²: a saddle at zero, minima at x = ±1 with the value −¼. While |x| ≤ 1, which descent with η ≤ ½ does not leave,
# the Hessian diag(3x² − 1, 1, …) has eigenvalues in [−1, 2], and changes by 6|x| ≤ 6 a unit of length.
WELL = potential(lambda w: 0.25 * w[0] ** 4 - 0.5 * w[0] ** 2 + 0.5 * jnp.sum(w[1:] ** 2))
WELL_CONSTANTS = dict(smoothness=2.0, hessian_lipschitz=6.0, gap=1.0)


def barely_strict(tolerance, excess=1.05):
    """A saddle whose negative eigenvalue is `excess` times as large as a second-order stationary point's may be.

    `−½γx² + ⅙ρ|x|³ + ½β|y|²`, `γ = excess·√(ρε)`, `β = ρ = 1`: the Hessian changes as fast as it may, so the loss falls as little
    as it can, by `⅔γ³/ρ²`.
    """
    gamma = excess * math.sqrt(tolerance)
    return potential(lambda w: -0.5 * gamma * w[0] ** 2 + jnp.abs(w[0]) ** 3 / 6 + 0.5 * jnp.sum(w[1:] ** 2))


def scattered(center, num, size, seed=0):
    """A batch of networks within `size` of a network."""
    rng = np.random.default_rng(seed)
    moved = []
    noise = [rng.normal(size=(num, *w.shape)) for w in center.weights]
    norms = np.sqrt(sum(np.sum(z**2, axis=(1, 2)) for z in noise))
    for w, z in zip(center.weights, noise, strict=True):
        moved.append(np.asarray(w)[None] + size * z / norms[:, None, None])
    return LayerTuple(moved)


def assert_rarely_fails(success, failure=FAILURE):
    """At least so many successes as have a probability above the false alarm."""
    count = int(np.sum(success))
    assert scipy.stats.binom.cdf(count, success.size, 1 - failure) > FALSE_ALARM, count


def succeeds(found):
    """Which starts have come to a second-order stationary point."""
    return np.asarray(found.returned & found.is_second_order)


@eqx.filter_jit
def plain_descent(objective, net, step, num):
    """So many steps of gradient descent without noise, from a network or from a batch."""
    gradient = jax.vmap(objective.gradient) if net.batch_shape else objective.gradient

    def one(_, net):
        return jax.tree.map(lambda w, g: w - step * g, net, gradient(net))

    return jax.lax.fori_loop(0, num, one, net)


# -- the algorithm -----------------------------------------------------------------------------------------------------


def test_thresholds_by_hand():
    """`dβΔ_f/(cε²δ) = 3·2·10⁻³/(¼·0.04²·½) = 30 < e⁴`, so `χ = 12`; then with `e⁸` in its place, so `χ = 24`."""
    t = DescentThresholds(0.04, 2.0, 0.49, 1e-3, 0.5, 0.25, 3)
    assert t.chi == 12
    assert t.step == 0.125
    assert t.gradient_norm == pytest.approx(1 / 7200, rel=1e-14)  # ½/144·0.04
    assert t.radius == pytest.approx(1 / 14400, rel=1e-14)
    assert t.decrease == pytest.approx(1 / 604800, rel=1e-14)  # ¼/1728·0.008/0.7
    assert t.curvature == pytest.approx(0.14, rel=1e-14)
    assert t.wait == 2743  # 12·16·2/0.14 = 2742.86
    larger = dataclasses.replace(t, gap=math.exp(8.0) * 2e-4 / 6)
    assert larger.chi == pytest.approx(24.0, rel=1e-14)
    assert larger.gradient_norm == pytest.approx(1 / 28800, rel=1e-13)
    assert larger.radius == pytest.approx(1 / 57600, rel=1e-13)
    assert larger.decrease == pytest.approx(1 / 4838400, rel=1e-13)
    assert larger.wait == 5486  # 5485.71
    assert dataclasses.replace(t, gap=0.0).chi == 12


def written_out(gradient, loss, w, t, noises, max_steps):
    """The algorithm as it stands in the module, in NumPy. **Returns:** the point, the steps, how often there was noise."""
    t_noise, kept, count = -t.wait - 1, None, 0
    for time in range(max_steps + 1):
        if np.linalg.norm(gradient(w)) <= t.gradient_norm and time - t_noise > t.wait:
            kept, t_noise = w, time
            w = w + t.radius * noises[count]
            count += 1
        if time - t_noise == t.wait and loss(w) - loss(kept) > -t.decrease:
            return kept, time, count
        if time < max_steps:
            w = w - t.step * gradient(w)
    return w, max_steps, count


#: At the saddle, near it, on its stable manifold, near a minimum, and elsewhere; then many within 1e-12 of the saddle.
SPECIAL = np.array([[0, 0, 0], [1e-12, 0, 1e-12], [0, 0.7, -0.4], [1 - 1e-7, 0, 0], [0.3, 0.2, -0.9], [1e-3, 1, 1]])
NEAR = scattered(LayerTuple([np.zeros((1, 3))]), 200 - len(SPECIAL), 1e-12)
WELL_STARTS = points(np.concatenate([SPECIAL, NEAR.weights[0][:, 0]]))
WELL_OPTIONS = dict(tolerance=0.01, key=KEY, failure=FAILURE, **WELL_CONSTANTS)


@pytest.fixture(scope="module")
def well():
    return perturbed_gradient_descent(WELL, WELL_STARTS, **WELL_OPTIONS)


def well_gradient(w):
    return np.array([w[0] ** 3 - w[0], *w[1:]])


def well_loss(w):
    return 0.25 * w[0] ** 4 - 0.5 * w[0] ** 2 + 0.5 * np.sum(w[1:] ** 2)


@pytest.mark.parametrize("max_steps", [None, 330])
def test_the_algorithm_word_by_word(well, max_steps):
    """As written out, with the same noise; with few steps some starts are cut short before they have returned."""
    found = well
    if max_steps is not None:
        found = perturbed_gradient_descent(WELL, WELL_STARTS, **WELL_OPTIONS, max_steps=max_steps)
    starts_key, _ = jax.random.split(jax.random.fold_in(KEY, perturbed_descent._OURS))
    keys = jax.random.split(starts_key, 200)
    for i, w in enumerate(SPECIAL):
        noises = [np.asarray(ball_noise(jax.random.fold_in(keys[i], k), 3)) for k in range(3)]
        point, steps, count = written_out(well_gradient, well_loss, w, found.thresholds, noises, max_steps or 100_000)
        assert int(found.num_steps[i]) == steps
        assert int(found.num_perturbations[i]) == count
        np.testing.assert_allclose(found.point.weights[0][i, 0], point, rtol=0, atol=1e-12)
        assert float(found.loss[i]) == pytest.approx(well_loss(point), rel=1e-12, abs=1e-14)
        assert float(found.gradient_norm[i]) == pytest.approx(np.linalg.norm(well_gradient(point)), rel=1e-6, abs=1e-12)
    if max_steps is None:
        np.testing.assert_array_equal(found.num_perturbations[:6], [2, 2, 2, 1, 1, 1])
        assert set(found.status) == {"returned"}
    else:
        assert found.status[:6] == ["step limit", "step limit", "step limit", "returned", "step limit", "step limit"]
        assert set(np.asarray(found.num_steps)[6:]) == {330}
        assert "step limit" in str(found)


def test_the_point_before_the_noise_is_returned():
    """From a point with a gradient below `g_thr`, near a minimum: bit by bit the start, `t_thr` steps later."""
    start = LayerTuple([[[1.0, 1e-7, -1e-7]]])
    found = perturbed_gradient_descent(WELL, start, **WELL_OPTIONS)
    assert found.status == "returned"
    assert eqx.tree_equal(found.point, start)
    assert int(found.num_steps) == found.thresholds.wait == 326
    assert int(found.num_perturbations) == 1
    assert float(found.gradient_norm) == pytest.approx(math.sqrt(2) * 1e-7, rel=1e-12)
    assert bool(found.is_second_order)
    assert float(found.smallest_eigenvalue) == pytest.approx(1.0, rel=1e-12)


def test_the_noise_is_uniform_in_the_ball():
    """`L = −½|w|²` with `η = 1` doubles the noise in every step, exactly; the steps end when the first decision is due.

    Of the noise, `(|ξ|/ρ_b)⁴` is uniform and `ξ_1²/|ξ|²` has the Beta(½, 3/2) law of a uniform direction in four dimensions, both
    by Kolmogorov's test, and signs are even, each with a false alarm of 1e-6.
    """
    num = 2000
    found = perturbed_gradient_descent(
        potential(lambda w: -0.5 * jnp.sum(w**2)), points(np.zeros((num, 4))),
        tolerance=1.0, smoothness=1.0, hessian_lipschitz=1.0, gap=1.0, c=1.0, max_steps=12, key=KEY,
    )  # fmt: skip
    assert found.thresholds.wait == 12
    assert set(found.status) == {"step limit"}
    assert np.all(np.asarray(found.num_perturbations) == 1)
    noise = np.asarray(found.point.weights[0])[:, 0] / 2.0**12
    part = np.linalg.norm(noise, axis=1) * 144  # ρ_b = 1/144
    assert part.max() <= 1
    assert scipy.stats.kstest(part**4, "uniform").pvalue > FALSE_ALARM
    for column in noise.T:
        squares = column**2 / np.sum(noise**2, axis=1)
        assert scipy.stats.kstest(squares, scipy.stats.beta(0.5, 1.5).cdf).pvalue > FALSE_ALARM
        assert scipy.stats.binomtest(int(np.sum(column > 0)), num).pvalue > FALSE_ALARM
    # The direction says nothing of the norm.
    assert scipy.stats.spearmanr(part, abs(noise[:, 0]) / np.linalg.norm(noise, axis=1)).pvalue > FALSE_ALARM


def test_starts_of_a_batch_have_noise_of_their_own_whatever_its_size(well):
    x = np.asarray(well.point.weights[0])[:, 0]
    assert len(np.unique(x, axis=0)) == 200  # the minima are approached from all sides
    alone = perturbed_gradient_descent(WELL, LayerTuple([np.zeros((1, 3))]), **WELL_OPTIONS)
    np.testing.assert_allclose(alone.point.weights[0][0], x[0], rtol=1e-12, atol=0)
    other = perturbed_gradient_descent(WELL, WELL_STARTS, **{**WELL_OPTIONS, "key": jax.random.key(20)})
    assert not np.any(np.asarray(other.point.weights[0])[:3, 0, 1:] == x[:3, 1:])


# -- strict saddles ----------------------------------------------------------------------------------------------------


def test_it_leaves_a_strict_saddle(well):
    """From points within 1e-12 of the saddle to one of the minima, and to each of them about as often."""
    near = slice(len(SPECIAL), None)
    assert_rarely_fails(succeeds(well)[near])
    x = np.asarray(well.point.weights[0])[near, 0, 0]
    np.testing.assert_allclose(abs(x), 1.0, atol=1e-4)
    np.testing.assert_allclose(well.loss[near], -0.25, atol=1e-8)
    assert scipy.stats.binomtest(int(np.sum(x > 0)), len(x)).pvalue > FALSE_ALARM
    assert np.all(np.asarray(well.seen_smoothness) <= 2.0)
    assert "200" in str(well)
    assert "WARNING" not in str(well)


@pytest.mark.parametrize("c", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("d", [2, 50])
@pytest.mark.slow
def test_it_leaves_a_strict_saddle_for_smaller_constants_and_in_more_dimensions(d, c):
    starts = scattered(LayerTuple([np.zeros((1, d))]), 400, 1e-12)
    found = perturbed_gradient_descent(WELL, starts, **WELL_OPTIONS, c=c)
    assert_rarely_fails(succeeds(found))
    np.testing.assert_allclose(found.loss, -0.25, atol=1e-8)


@pytest.mark.parametrize(
    ("tolerance", "excess", "d", "gap", "failure"),
    [
        (0.25, 1.001, 10, 0.09, 0.5),  # χ = 12, the least
        *(
            pytest.param(tolerance, excess, d, 1.0, FAILURE, marks=pytest.mark.slow)
            for tolerance, excess in ((0.01, 1.05), (0.01, 1.001), (1e-3, 1.001))
            for d in (1, 10)
        ),
    ],
)
@pytest.mark.parametrize("c", [1.0, *(pytest.param(c, marks=pytest.mark.slow) for c in (0.25, 0.5))])
def test_it_leaves_a_saddle_that_is_barely_strict(tolerance, excess, d, gap, failure, c):
    """The least curvature that it has to leave, and the least that the loss falls by. All 400 starts succeeded, every time."""
    starts = scattered(LayerTuple([np.zeros((1, d))]), 400, 1e-12)
    found = perturbed_gradient_descent(
        barely_strict(tolerance, excess), starts, tolerance=tolerance, key=KEY, failure=failure,
        smoothness=1.0, hessian_lipschitz=1.0, gap=gap, c=c,
    )  # fmt: skip
    assert_rarely_fails(succeeds(found), failure)
    assert (found.thresholds.chi == 12) == (gap < 1 and c == 1)
    # A point of small gradient on the slope towards the minimum, and mostly very near it.
    gamma = excess * math.sqrt(tolerance)
    losses = np.asarray(found.loss)[succeeds(found)]
    assert np.all(losses <= -found.thresholds.decrease)
    assert np.median(losses) == pytest.approx(-2 / 3 * gamma**3, rel=0.01)


#: Exactly at a saddle without round-off, on its stable manifold, which is a subspace by symmetry, and at the origin.
EXACT = [
    (np.diag([0.0, 1.0]), np.diag([0.0, 1.0])),
    (np.diag([0.0, 0.3]), np.diag([0.0, 0.5])),
    (np.zeros((2, 2)), np.zeros((2, 2))),
]


@pytest.fixture(scope="module")
def linear():
    """The problem, a strict saddle, starts, and where they come to: those of `EXACT`, and 97 near the saddle."""
    problem = gf.Problem.from_singular_values([2.0, 1.0])
    saddle = gf.sample_critical_point(problem, (2, 2, 2), (2,), kind="strict", key=jax.random.key(3))
    near = scattered(saddle, 97, 1e-12)
    exact = [np.stack(layers) for layers in zip(*EXACT, strict=True)]
    starts = LayerTuple([np.concatenate([a, b]) for a, b in zip(exact, near.weights, strict=True)])
    found = perturbed_gradient_descent(problem, starts, tolerance=0.02, key=KEY, failure=FAILURE)
    return problem, saddle, starts, found


def test_it_leaves_the_strict_saddles_of_a_linear_network(linear):
    """With estimated constants; the minima it comes to are global."""
    problem, saddle, _, found = linear
    assert gf.inertia(problem, saddle).negative > 0
    assert found.thresholds.estimated == ("smoothness", "hessian_lipschitz")
    assert_rarely_fails(succeeds(found)[3:])
    np.testing.assert_allclose(np.asarray(found.loss)[succeeds(found)], 0.0, atol=1e-6)


def test_estimates_of_a_linear_network_are_no_smaller_than_what_hessians_show(linear):
    problem, _, starts, found = linear
    t = found.thresholds
    for i in (0, 1, 2, 3, 50):
        for nets in (starts, found.point):
            one = LayerTuple(w[i] for w in nets.weights)
            values = np.linalg.eigvalsh(np.asarray(gf.hessian(problem, one)))
            assert abs(values).max() < t.smoothness
        assert float(found.smallest_eigenvalue[i]) == pytest.approx(values[0], abs=1e-10)
    assert np.all(np.asarray(found.seen_smoothness) < t.smoothness)
    assert t.num_parameters == 8
    assert t.gap == 2.5  # exact, of the largest loss, that of the origin


def test_plain_descent_stays_where_perturbed_descent_does_not(linear):
    problem, _, starts, found = linear
    end = plain_descent(problem.objective, starts, 0.1, 5000)
    losses = jax.vmap(problem.objective.effective_loss)(end)
    np.testing.assert_allclose(losses[:3], [2.0, 2.0, 2.5], rtol=1e-14)
    for w, start in zip(end.weights, starts.weights, strict=True):
        np.testing.assert_array_equal(w[0], start[0])
        np.testing.assert_array_equal(w[2], 0.0)
    assert found.status[:3] == ["returned"] * 3
    assert np.all(succeeds(found)[:3])
    np.testing.assert_allclose(found.loss[:3], 0.0, atol=1e-6)


def test_plain_descent_stays_on_the_stable_manifold_of_a_potential(well):
    end = plain_descent(WELL.objective, points(SPECIAL[2:3]), 0.5, 5000)
    np.testing.assert_allclose(end.weights[0], 0.0, atol=1e-30)
    assert succeeds(well)[2]
    assert float(well.loss[2]) == pytest.approx(-0.25, abs=1e-8)


@pytest.mark.parametrize(
    ("s", "hidden", "subset"),
    [([2.0, 1.0], [3, 3], (1,)), ([3.0, 2.0, 1.0], [4], (1, 3)), ([3.0, 2.0, 1.0], [4, 4], (3,))],
)
@pytest.mark.slow
def test_it_leaves_the_strict_saddles_of_larger_linear_networks(s, hidden, subset):
    problem = gf.Problem.from_singular_values(s)
    widths = problem.widths(hidden)
    saddle = gf.sample_critical_point(problem, widths, subset, kind="strict", key=jax.random.key(3))
    starts = scattered(saddle, 100, 1e-12)
    found = perturbed_gradient_descent(problem, starts, tolerance=0.02, key=KEY, failure=FAILURE)
    assert_rarely_fails(succeeds(found))
    # At all second-order stationary points that it came to the loss was below that of every saddle.
    assert np.all(
        np.asarray(found.loss)[succeeds(found)] < gf.critical_values(problem, problem.max_rank(widths)).values[1]
    )
    assert np.all(np.asarray(found.seen_smoothness) <= found.thresholds.smoothness)


@pytest.mark.slow
def test_it_leaves_a_saddle_that_a_start_was_shot_at():
    """The flow from the start comes within 1e-6, plain descent with steps of 1e-3 within 3e-3: their stable manifolds differ.

    Where the flow has come to, the gradient is below `g_thr`.
    """
    problem = gf.Problem.from_singular_values([2.0, 1.0])
    saddle = gf.sample_critical_point(problem, (2, 2, 2), (2,), key=jax.random.key(3))
    shot = gf.shoot_at_saddle(problem, Gaussian((2, 2, 2)).sample(jax.random.key(5), 0), saddle)
    assert shot.reached
    passing = plain_descent(problem.objective, shot.start, 1e-3, 2662)
    assert float((passing - saddle).norm()) < 3e-3
    arrived = gf.simulate(problem, shot.start, shot.time, ts=2, rtol=1e-12, atol=1e-14).final
    assert float((arrived - saddle).norm()) < 1e-6
    for start, noises in ((shot.start, None), (passing, None), (arrived, 2)):
        found = perturbed_gradient_descent(problem, start, tolerance=0.02, key=KEY)
        assert found.status == "returned"
        assert bool(found.is_second_order)
        assert float(found.loss) < 1e-6
        assert noises is None or int(found.num_perturbations) == noises


def test_the_origin_of_three_layers_is_second_order_stationary_and_is_returned():
    """A saddle without a negative eigenvalue, `∇²L = 0` there: the noise lowers the loss by its third power only.

    It is no minimum, and no tolerance makes the algorithm leave it.
    """
    problem = gf.Problem.from_singular_values([2.0, 1.0])
    origin = LayerTuple([np.zeros((2, 2))] * 3)
    found = perturbed_gradient_descent(
        problem, origin, tolerance=0.02, key=KEY, smoothness=20.0, hessian_lipschitz=40.0
    )
    assert found.status == "returned"
    assert int(found.num_perturbations) == 1
    assert int(found.num_steps) == found.thresholds.wait
    assert eqx.tree_equal(found.point, origin)
    assert float(found.loss) == 2.5  # of the zero matrix; the minimum is 0
    assert float(found.gradient_norm) == 0
    assert float(found.smallest_eigenvalue) == 0
    assert bool(found.is_second_order)


@pytest.mark.slow
def test_nonlinear_networks(rng):
    """Tanh: the origin is a saddle, and so is the best of the networks with equal hidden units, where plain descent stays."""
    X = rng.normal(size=(1, 12))
    problem = gf.Problem(X, np.sin(2 * X), activations="tanh", weight_decay=0.02)
    starts = LayerTuple([np.zeros((2, 2, 1)), np.zeros((2, 1, 2))])
    starts = LayerTuple([starts.weights[0].at[1].set(0.5), starts.weights[1].at[1].set(0.7)])
    found = perturbed_gradient_descent(problem, starts, tolerance=1e-4, key=KEY)
    assert found.status == ["returned"] * 2
    assert np.all(found.is_second_order)
    np.testing.assert_allclose(found.loss, float(found.loss[0]), rtol=1e-6)
    plain = plain_descent(problem.objective, starts, found.thresholds.step, int(jnp.max(found.num_steps)))
    least = perturbed_descent._smallest_eigenvalues(problem.objective, plain)
    assert np.all(np.asarray(least) < -0.2)
    assert np.all(np.asarray(jax.vmap(problem.objective.effective_loss)(plain)) > 1.4)
    # To a larger tolerance the second saddle is second-order stationary itself: its eigenvalue is above −√(ρε).
    loose = perturbed_gradient_descent(problem, starts, tolerance=0.02, key=KEY)
    assert np.all(loose.is_second_order)
    assert float(loose.loss[1]) > 1.4
    assert float(loose.smallest_eigenvalue[1]) < -0.2


@pytest.mark.slow
def test_students_of_a_teacher():
    """ReLU students from Gaussian starts, whose gradient jumps nowhere on the way."""
    problem = gf.teacher.TeacherStudent.orthonormal(3)
    starts = Gaussian(problem.widths()).sample_batch(KEY, np.arange(20))
    found = perturbed_gradient_descent(problem, starts, tolerance=0.02, key=KEY, failure=FAILURE)
    assert_rarely_fails(succeeds(found))
    assert np.all(np.asarray(found.loss)[succeeds(found)] < 1e-3)


# -- constants, and what is said of the result -------------------------------------------------------------------------


def test_estimated_constants():
    """Twice what descents see: along `x` from 0 to 1 the largest eigenvalue of the Hessian is 2, of its derivative 6."""
    found = perturbed_gradient_descent(WELL, LayerTuple([np.zeros((1, 3))]), tolerance=0.01, gap=1.0, key=KEY)
    t = found.thresholds
    assert t.estimated == ("smoothness", "hessian_lipschitz")
    assert 3.9 < t.smoothness < 4.05
    assert 11.5 < t.hessian_lipschitz < 12.3
    assert bool(found.is_second_order)
    assert "β = " in str(found)
    assert "(estimated)" in str(found)
    given = perturbed_gradient_descent(
        WELL, LayerTuple([np.zeros((1, 3))]), tolerance=0.01, gap=1.0, smoothness=2.0, key=KEY
    )
    assert given.thresholds.estimated == ("hessian_lipschitz",)
    assert given.thresholds.smoothness == 2.0
    assert given.thresholds.hessian_lipschitz == t.hessian_lipschitz


def test_gaps():
    """Exact where critical values are known; the loss at the start where the loss is nowhere negative."""
    problem = gf.Problem.from_singular_values([2.0, 1.0])
    start = LayerTuple([np.zeros((1, 2)), np.zeros((2, 1))])  # of rank one, whose lowest value is ½
    with pytest.raises(ValueError, match=r"gap=1.9 is no upper bound: L\(w_0\) − min L = 2 "):
        perturbed_gradient_descent(problem, start, tolerance=0.05, key=KEY, gap=1.9)
    logistic = gf.Problem(np.array([[1.0, -1.0, 0.5]]), np.array([[1.0, -1.0, -1.0]]), gf.losses.Logistic())
    tanh = gf.Problem(np.array([[1.0, -1.0, 0.5]]), np.array([[1.0, -1.0, -1.0]]), activations="tanh")
    own = gf.losses.EntryLoss(lambda output, target: jnp.cosh(output - target) - 1)
    for other, gap in (
        (problem, 2.5 - 0.5),
        (logistic, 2.5),
        (tanh, 2.5),
        (gf.teacher.TeacherStudent.orthonormal(2), 2.5),
    ):
        nets = start if other is problem else LayerTuple([np.zeros((1, 2, 2))])
        assert perturbed_descent._largest_gap(other, nets, 2.5, None) == gap
        assert perturbed_descent._largest_gap(other, nets, 2.5, 4.0) == 4.0
    with pytest.raises(ValueError, match=r"gap is needed.*how low a EntryLoss can get"):
        perturbed_descent._largest_gap(gf.Problem(np.eye(2), np.eye(2), own), start, 2.5, None)


QUADRATIC = potential(lambda w: 2 * jnp.sum(w**2))


def test_a_smoothness_that_is_too_small_is_noticed():
    """`2w²` with steps for `β = 1`: `w ← −3w`."""
    found = perturbed_gradient_descent(
        QUADRATIC, LayerTuple([[[1.0]]]), tolerance=0.5, smoothness=1.0, hessian_lipschitz=1.0, gap=2.0, key=KEY
    )  # fmt: skip
    assert found.status == "not finite"
    assert not found.returned
    assert not found.is_second_order
    assert np.all(np.isfinite(found.point.weights[0]))
    assert float(found.seen_smoothness) == pytest.approx(4.0, rel=1e-12)
    assert "β is too small: 4 was seen" in str(found)


def test_points_of_any_kind_and_in_single_precision():
    """A tree of arrays. Where round-off does not hide the thresholds single precision works; else that is said beforehand."""
    tree = gf.Potential(lambda p: 0.25 * p["x"] ** 4 - 0.5 * p["x"] ** 2 + 0.5 * jnp.sum(p["y"] ** 2))
    start = {"x": np.float32(0.0), "y": np.array([[0.0, 1e-3]], np.float32)}
    found = perturbed_gradient_descent(tree, start, **WELL_OPTIONS)
    assert found.status == "returned"
    assert abs(float(found.point["x"])) == pytest.approx(1.0, abs=1e-4)
    assert found.point["y"].shape == (1, 2)
    assert found.point["y"].dtype == jnp.float32
    assert bool(found.is_second_order)
    assert "yes: gradient norm" in str(found)
    waves = potential(lambda w: jnp.sum(jnp.cos(w) - 1))
    for what, function, vector in (("f_thr", WELL, [0.0, 0.9]), ("ρ_b/√d", waves, [0.0, 10 * math.pi])):
        start = LayerTuple([jnp.asarray([vector], jnp.float32)])
        with pytest.raises(ValueError, match=f"{what} = .* cannot be told from round-off in float32.*double precision"):
            perturbed_gradient_descent(function, start, **WELL_OPTIONS)


SADDLE = LayerTuple([np.zeros((1, 3))])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(tolerance=0.0), "tolerance must be positive"),
        (dict(tolerance=-1.0), "tolerance must be positive"),
        (dict(tolerance=math.inf), "tolerance must be positive"),
        (dict(failure=0.0), "failure is a probability between 0 and 1"),
        (dict(failure=1.0), "failure is a probability between 0 and 1"),
        (dict(failure=math.nan), "failure must be a finite number"),
        (dict(c=0.0), "c must be positive"),
        (dict(c=-0.5), "c must be positive"),
        (dict(c=2.0), "c must be less than 2, got 2"),
        (dict(smoothness=0.0), "smoothness must be positive"),
        (dict(hessian_lipschitz=-1.0), "hessian_lipschitz must be positive"),
        (dict(gap=0.0), "gap must be positive"),
        (dict(gap=None), "gap is needed.*how low a Potential can get"),
        (dict(max_steps=0), "max_steps must be at least 1"),
        (dict(max_steps=2**63), "max_steps must be at most"),
        (dict(max_steps=300), "t_thr = .* = 325.9 steps are waited, more than max_steps = 300"),
        (dict(c=1e-3), "t_thr = .* = 4.951e\\+08 steps are waited, more than max_steps = 1000000"),
        (dict(tolerance=1.0), "at most β²/ρ = 0.6667, with smoothness β = 2 and hessian_lipschitz ρ = 6, got 1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        perturbed_gradient_descent(WELL, SADDLE, **{**dict(tolerance=0.01, key=KEY), **WELL_CONSTANTS, **options})


def test_bad_starts_and_keys():
    options = dict(tolerance=0.05, **WELL_CONSTANTS)
    for key in (None, 3, jax.random.PRNGKey(0), jax.random.split(KEY, 2)):
        with pytest.raises((TypeError, ValueError)):
            perturbed_gradient_descent(WELL, SADDLE, key=key, **options)
    with pytest.raises(TypeError, match="key"):
        perturbed_gradient_descent(WELL, SADDLE, **options)
    options["key"] = KEY
    with pytest.raises(ValueError, match="not finite"):
        perturbed_gradient_descent(WELL, LayerTuple([[[math.nan, 0.0]]]), **options)
    with pytest.raises(ValueError, match="loss at the start is nan"):
        perturbed_gradient_descent(WELL, LayerTuple([[[1e200, 0.0]]]), **options)
    with pytest.raises(ValueError, match="one batch axis at most"):
        perturbed_gradient_descent(WELL, LayerTuple([np.zeros((2, 2, 1, 3))]), **options)
    with pytest.raises(ValueError, match="at least one start"):
        perturbed_gradient_descent(WELL, LayerTuple([np.zeros((0, 1, 3))]), **options)
    with pytest.raises(TypeError, match=r"cannot be transformed by jax\.jit"):
        jax.jit(lambda net: perturbed_gradient_descent(WELL, net, **options).loss)(SADDLE)
    problem = gf.Problem.from_singular_values([2.0, 1.0])
    with pytest.raises(ValueError, match="do not fit the problem"):
        perturbed_gradient_descent(problem, LayerTuple([np.zeros((3, 3)), np.zeros((2, 3))]), **options)
    with pytest.raises(TypeError, match="LayerTuple"):
        perturbed_gradient_descent(problem, [np.zeros((2, 2))], **options)


def test_constants_that_cannot_be_estimated():
    X = np.array([[1.0, -1.0, 0.5]])
    start = LayerTuple([np.ones((2, 1)), np.ones((1, 2))])
    for problem in (gf.Problem(X, X, activations="relu"), gf.Problem(X, X, gf.losses.Huber())):
        with pytest.raises(ValueError, match="the gradient or the Hessian jumps"):
            perturbed_gradient_descent(problem, start, tolerance=0.05, key=KEY)
    with pytest.raises(ValueError, match="Of a quadratic function it is zero"):
        perturbed_gradient_descent(QUADRATIC, LayerTuple([[[1.0]]]), tolerance=0.05, gap=2.0, key=KEY)


def test_hessians_of_many_parameters_are_not_computed(well):
    thresholds = dataclasses.replace(well.thresholds, num_parameters=perturbed_descent.MOST_PARAMETERS + 1)
    larger = dataclasses.replace(well, thresholds=thresholds)
    with pytest.raises(ValueError, match="4097 parameters are too many"):
        _ = larger.is_second_order
    assert "second-order" not in str(larger)
