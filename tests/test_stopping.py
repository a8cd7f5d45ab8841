"""Stops against exact hitting times, and the honesty of the certificate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import systems
from random_cases import flat, labelled_problem, random_net, row

import gdflow as gf
from gdflow.losses import Logistic
from gdflow.network import LayerTuple
from gdflow.problem import Problem
from gdflow.rounding import residual_error
from gdflow.thresholds import Thresholds

# Stops, on the width-3 scalar network W_1 = a, W_2 = bᵀ with target s, for which all times are known.

S = 1.5
GRADIENT_NORM = 0.3
EVENT_TIME = 1.2
STOPS = (gf.AtCertificate(), gf.AtGradientNorm(GRADIENT_NORM), gf.AtEvent(lambda t, net: EVENT_TIME - t))


def scalar_starts() -> tuple[np.ndarray, np.ndarray]:
    """Pairs (a, b): ordinary ones with a·b < 0, some near the stable set a = −b, certified ones, the saddle itself."""
    rng = np.random.default_rng(5)
    a = 0.8 * rng.standard_normal((40, 3))
    b = 0.8 * rng.standard_normal((40, 3))
    b[np.sum(a * b, axis=1) > 0] *= -1
    b[8:16] = -a[8:16] + 0.02 * rng.standard_normal((8, 3))
    b[16:24] = -a[16:24] + 0.3 * rng.standard_normal((8, 3))
    b[36:39] = a[36:39]
    a[39] = b[39] = 0.0
    return a, b


def exact_gradient_norm(a, b, t: float) -> float:
    a, b = systems.width_h_state(a, b, S, t)
    return abs(S - a @ b) * float(np.sqrt(a @ a + b @ b))


def exact_stop(a, b) -> tuple[float, int]:
    """The first of the three stops and its time; the certificate comes where 0 < a·b < 2s, below ½s²."""
    u = a @ b
    at_certificate = 0.0 if 0 < u < 2 * S else (systems.hitting_time_width_h(a, b, S, 0.0) if np.any(a) else np.inf)
    grid = np.linspace(0.0, EVENT_TIME, 2001)
    values = np.array([exact_gradient_norm(a, b, t) - GRADIENT_NORM for t in grid]) if np.any(a) else -np.ones(2001)
    below = np.flatnonzero(values <= 0)
    at_norm = np.inf
    if below.size:
        k = below[0]
        at_norm = (
            0.0
            if k == 0
            else scipy.optimize.brentq(
                lambda t: exact_gradient_norm(a, b, t) - GRADIENT_NORM, grid[k - 1], grid[k], xtol=1e-14
            )
        )
    times = (at_certificate, at_norm, EVENT_TIME)
    return min(times), int(np.argmin(times))


@pytest.fixture(scope="module")
def stopped() -> gf.Trajectory:
    a, b = scalar_starts()
    return gf.simulate(
        Problem.from_target(np.array([[S]])),
        LayerTuple([a[:, :, None], b[:, None, :]]),
        np.inf,
        stop=STOPS,
        rtol=1e-10,
        atol=1e-12,
        max_steps=500,
    )


def test_the_first_of_several_stops_ends_the_flow_at_its_exact_time(stopped):
    a, b = scalar_starts()
    exact = [exact_stop(*pair) for pair in zip(a, b, strict=True)]
    names = ("AtCertificate", "AtGradientNorm", "AtEvent")
    assert {index for _, index in exact} == {0, 1, 2}  # each of them comes first for some start
    assert stopped.status == [f"stopped: {names[index]}" for _, index in exact]
    assert stopped.reached.tolist() == [index for _, index in exact]
    # Steps of local error 1e-10, but an interpolant one order below them; the slack of the certificate is 2e-14·s².
    np.testing.assert_allclose(stopped.final_time, [t for t, _ in exact], rtol=0, atol=1e-7)
    for i, (t, _) in enumerate(exact):
        if np.any(a[i]):
            state = np.concatenate(systems.width_h_state(a[i], b[i], S, t))
            np.testing.assert_allclose(flat(row(stopped.final, i)), state, rtol=0, atol=1e-6)


def test_a_stop_already_met_stops_at_once(stopped):
    a, b = scalar_starts()
    for i in (36, 37, 38):  # certified at the start
        assert float(stopped.final_time[i]) == 0
        assert stopped.status[i] == "stopped: AtCertificate"
        np.testing.assert_array_equal(flat(row(stopped.final, i)), np.concatenate([a[i], b[i]]))
        assert np.isfinite(stopped.ts[i]).tolist() == [True] + [False] * (stopped.ts.shape[1] - 1)
    assert stopped.status[39] == "stopped: AtGradientNorm"  # the saddle, where nothing moves
    assert np.all(flat(row(stopped.final, 39)) == 0)


@pytest.mark.slow
def test_a_batch_in_which_some_stop_and_others_do_not():
    a, b = scalar_starts()
    pick = np.array([0, 36, 39])  # certified after a while, at the start, and never (the saddle)
    trajectories = gf.simulate(
        Problem.from_target(np.array([[S]])),
        LayerTuple([a[pick][:, :, None], b[pick][:, None, :]]),
        8.0,
        ts=[0.01, 8.0],
        stop=gf.AtCertificate(),
        rtol=1e-10,
        atol=1e-12,
        dense=False,
    )
    assert trajectories.status == ["stopped: AtCertificate", "stopped: AtCertificate", "reached t1"]
    assert trajectories.reached.tolist() == [0, 0, -1]
    times = [systems.hitting_time_width_h(a[0], b[0], S, 0.0), 0.0, 8.0]
    np.testing.assert_allclose(trajectories.final_time, times, rtol=0, atol=1e-7)  # the interpolant, as above
    assert np.all(flat(row(trajectories.final, 2)) == 0)


@pytest.mark.slow
def test_a_state_at_which_the_certificate_stopped_the_flow_is_certified():
    # Large starts: the loss falls steeply through the level, by far more than the slack within the root find's tolerance.
    problem = Problem.from_singular_values([3, 2, 1], d_x=4)
    starts = gf.initialization.Gaussian((4, 5, 5, 3), scale=2.0).sample_batch(jax.random.key(0), np.arange(24))
    trajectories = gf.simulate(
        problem, starts, np.inf, ts=[0.0], stop=gf.AtCertificate(), rtol=1e-6, atol=1e-9, dense=False
    )
    assert set(trajectories.status) == {"stopped: AtCertificate"}
    verdict = Thresholds(problem, starts.widths).certified
    assert np.all(
        jax.vmap(lambda net: verdict(problem.effective_loss(net), residual_error(problem, net)))(trajectories.final)
    )


@pytest.mark.slow
def test_a_flow_that_ends_at_a_saddle_is_not_said_to_be_certified():
    # The second mode is never learnt: the loss tends to the level ½ itself, a rounding error above the certificate.
    problem = Problem.from_singular_values([1.8, 1.0])
    size = np.linspace(0.3, 1.0, 16)[:, None, None] * np.diag([1.0, 0.0])
    stop = (gf.AtCertificate(), gf.AtEvent(lambda t, net: 100.0 - t))
    trajectories = gf.simulate(problem, LayerTuple([size, size]), np.inf, ts=[0.0], stop=stop, dense=False)
    np.testing.assert_allclose(jax.vmap(problem.effective_loss)(trajectories.final), 0.5, rtol=0, atol=1e-12)
    assert set(trajectories.status) == {"stopped: AtEvent"}


def test_nothing_is_saved_after_a_stop(stopped):
    ts, ends = np.asarray(stopped.ts), np.asarray(stopped.final_time)
    assert ts.shape[1] < 501
    for i in range(len(ends)):
        saved = ts[i][np.isfinite(ts[i])]
        assert saved[0] == 0.0
        assert np.all(saved <= ends[i] + 1e-12)
        assert np.all(np.isnan(stopped.losses[i, len(saved) :]))


@pytest.mark.slow
def test_crossing_times_are_the_exact_hitting_times():
    a, b = scalar_starts()
    a, b = a[:4], b[:4]
    trajectories = gf.simulate(
        Problem.from_target(np.array([[S]])),
        LayerTuple([a[:, :, None], b[:, None, :]]),
        3.0,
        rtol=1e-10,
        atol=1e-12,
        max_steps=500,
    )
    products = np.array([-0.05, 0.0, 0.4, 1.0, 1.4])
    found = np.asarray(trajectories.crossing_times(jnp.asarray(0.5 * (S - products) ** 2)))
    for i in range(4):
        for k, u in enumerate(products):
            exact = 0.0 if a[i] @ b[i] >= u else systems.hitting_time_width_h(a[i], b[i], S, u)
            if exact > 3.0:
                assert found[i, k] == np.inf
            else:
                np.testing.assert_allclose(found[i, k], exact, rtol=0, atol=1e-7)  # the interpolant, as above
    # By default the critical values 0 and ½s²: the first is never reached.
    default = np.asarray(trajectories.crossing_times())
    assert np.all(default[:, 0] == np.inf)
    np.testing.assert_allclose(default[:, 1], found[:, 1], rtol=0, atol=1e-12)
    single = gf.simulate(
        trajectories.problem, row(trajectories.start, 0), 3.0, rtol=1e-10, atol=1e-12, max_steps=500
    ).crossing_times()
    np.testing.assert_allclose(single, default[0], rtol=0, atol=1e-9)


@pytest.mark.slow
def test_the_certificate_comes_at_the_second_lowest_of_several_levels():
    # Three decoupled modes towards (3, 2, 1): the levels are 0, ½, 2, …
    s = systems.named("modes-N2")

    def excess(t: float) -> float:
        first, second = s.state(t)
        return 0.5 * np.sum((s.target - second @ first) ** 2) - 0.5

    assert excess(0.0) > 0 > excess(5.0)
    exact = scipy.optimize.brentq(excess, 0.0, 5.0, xtol=1e-14)
    trajectory = gf.simulate(
        Problem.from_target(s.target), LayerTuple(s.weights), np.inf, stop=gf.AtCertificate(), rtol=1e-10, atol=1e-12
    )
    assert trajectory.status == "stopped: AtCertificate"
    np.testing.assert_allclose(trajectory.final_time, exact, rtol=0, atol=1e-7)  # the interpolant, as above
    np.testing.assert_allclose(trajectory.crossing_times()[1], exact, rtol=0, atol=1e-7)
    assert float(trajectory.problem.effective_loss(trajectory.final)) < 0.5
    assert gf.certify(trajectory.problem, trajectory.final).global_minimum


def test_stops_that_make_no_sense_are_refused(rng):
    for norm in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match=f"gradient norm to stop at must be positive, got {norm}"):
            gf.AtGradientNorm(norm)
    logistic = labelled_problem(rng, Logistic())
    with pytest.raises(ValueError, match="linear networks only: this problem has loss Logistic"):
        gf.simulate(logistic, random_net(rng, logistic.widths([2])), np.inf, stop=gf.AtCertificate())


@pytest.mark.slow
def test_the_time_of_a_stop_is_differentiable():
    problem, a, b = Problem.from_target(np.array([[S]])), np.array([0.7, 0.3]), np.array([-0.6, 0.1])

    def stopping_time(a, b):
        net = LayerTuple([a[:, None], b[None, :]])
        stop = gf.AtCertificate()
        return gf.simulate(problem, net, np.inf, ts=[0.0], stop=stop, rtol=1e-10, atol=1e-12, max_steps=200).final_time

    gradient = np.concatenate(jax.grad(stopping_time, argnums=(0, 1))(jnp.asarray(a), jnp.asarray(b)))
    h = 1e-5
    for k, unit in enumerate(np.eye(4)):
        ab = np.concatenate([a, b])
        up, down = (systems.hitting_time_width_h(*np.split(ab + sign * h * unit, 2), S, 0.0) for sign in (1, -1))
        # Differences of a closed form: 1e-9; the interpolant as above, differentiated along with the steps.
        np.testing.assert_allclose(gradient[k], (up - down) / (2 * h), rtol=0, atol=1e-6)


# Honesty: what is certified is true.

# Plain, ties, ties across the bottleneck, zeros. Near the minimum rates are of order one, but a singular value 0 is
# approached like 1/t at best: the loss falls like t^{-2} with two layers and like t^{-3/2} with three.
SPECTRA = ([2.0, 1.4, 0.9], [2.0, 1.2, 1.2], [1.6, 1.6, 0.8], [1.3, 1.3, 1.3], [1.8, 1.0, 0.0], [1.5, 0.0, 0.0])
NUM_STARTS = 36


def honest_starts(rng: np.random.Generator, widths) -> LayerTuple:
    """Random starts at several scales, a third of them on the stable sets of saddles.

    For a diagonal target a start with column i of W_1 and row i of W_N equal to zero keeps them so, exactly and in
    floating point: mode i is never learnt and the limit is the best fit to the others.
    """
    weights = [np.array(w) for w in random_net(rng, widths, 1.0, (NUM_STARTS,)).weights]
    scale = np.exp(rng.uniform(np.log(0.1), np.log(1.2), (NUM_STARTS, 1, 1)))
    for n in range(NUM_STARTS // 3):
        missing = rng.choice(3, rng.integers(1, 3), replace=False)
        weights[0][n][:, missing] = 0.0
        weights[-1][n][missing] = 0.0
    return LayerTuple([scale * w for w in weights])


@pytest.mark.slow
@pytest.mark.parametrize(("hidden", "spectra", "end"), [([2], SPECTRA, 1000.0), ([3, 3], SPECTRA[:5], 400.0)])
def test_what_is_certified_comes_true(hidden, spectra, end):
    rng = np.random.default_rng(17)
    problems = [Problem.from_singular_values(s) for s in spectra]
    widths = problems[0].widths(hidden)
    # All of one static structure, so that the first compilation serves all.
    leaves = [jax.tree.leaves(p) for p in problems]
    problems = [jax.tree.unflatten(jax.tree.structure(problems[0]), x) for x in leaves]
    starts = [honest_starts(rng, widths) for _ in problems]

    # From every start until the certificate, or for a while.
    stop = (gf.AtCertificate(), gf.AtEvent(lambda t, net: 100.0 - t))
    certified = []
    for p, nets in zip(problems, starts, strict=True):
        run = gf.simulate(p, nets, np.inf, ts=[0.0], stop=stop, rtol=1e-6, atol=1e-9, dense=False)
        verdict = Thresholds(p, widths).certified
        certified.append(
            np.asarray(jax.vmap(lambda net: verdict(p.effective_loss(net), residual_error(p, net)))(run.final))  # noqa: B023
        )
        assert certified[-1].tolist() == (np.asarray(run.reached) == 0).tolist()

    # From every start again, a thousand times more accurately and until nothing moves.
    @jax.jit
    @jax.vmap
    def audit(leaves, nets):
        p = jax.tree.unflatten(jax.tree.structure(problems[0]), leaves)
        run = gf.simulate(p, nets, end, ts=[end], rtol=1e-9, atol=1e-12, dense=False, max_steps=100_000)
        return run.losses[:, -1], run.gradient_norms[:, -1]

    stack = jax.tree.map(lambda *x: jnp.stack(x), *starts)
    losses, gradients = map(np.asarray, audit([jnp.stack(x) for x in zip(*leaves, strict=True)], stack))
    assert np.max(gradients) < 1e-3  # all has come to rest, but for the slow approach to zeros
    stuck = 0
    for k, s in enumerate(spectra):
        lowest = 0.5 * sum(x**2 for x in s[min(widths) :])
        excess = (losses[k] - lowest) / sum(x**2 for x in s)
        assert np.all(excess[certified[k]] < 1e-6), s
        assert np.mean(certified[k][NUM_STARTS // 3 :]) > 0.7  # not vacuous: most free starts
        stuck += np.sum(~certified[k] & (excess > 1e-3))
    assert stuck > 20  # and there was something not to certify: flows that end at saddles
