"""Gradient flow against exact solutions, its stops against exact hitting times, and the honesty of the certificate."""

import inspect
import os
import pickle
import subprocess
import sys

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import systems

import gdflow as gf
from gdflow.certificates import LevelCertificate
from gdflow.dynamics import buffers, gradient_flow_field
from gdflow.losses import Huber, Logistic, SoftmaxCrossEntropy
from gdflow.network import LayerTuple
from gdflow.problem import Problem
from gdflow.rounding import residual_error


def random_net(rng: np.random.Generator, widths, scale: float = 1.0, batch: tuple[int, ...] = ()) -> LayerTuple:
    return LayerTuple(
        [scale * rng.standard_normal((*batch, a, b)) for a, b in zip(widths[1:], widths[:-1], strict=True)]
    )


def row(tree, i):
    return jax.tree.map(lambda x: x[i], tree)


def flat(net: LayerTuple) -> np.ndarray:
    return np.concatenate([np.ravel(w) for w in net.weights])


def system(name: str) -> systems.System:
    return next(s for s in systems.SYSTEMS if s.name == name)


def relative_errors(s: systems.System, networks: LayerTuple, times) -> np.ndarray:
    exact = [s.exact(float(t)) for t in times]
    found = [s.observe([np.asarray(w[k]) for w in networks.weights]) for k in range(len(times))]
    return np.array([np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(found, exact, strict=True)])


# Against exact solutions.


# Every shape is compiled for itself: of each kind of solution the small ones run by default.
LARGER = ("N4", "N5", "rotated", "333", "432", "width-5")


@pytest.mark.parametrize(
    "s",
    [
        pytest.param(s, id=s.name, marks=[pytest.mark.slow] if any(part in s.name for part in LARGER) else [])
        for s in systems.SYSTEMS
    ],
)
def test_exact_solutions(s):
    trajectory = gf.simulate(
        Problem.from_target(s.target),
        LayerTuple(s.weights),
        s.times[-1],
        ts=s.times,
        rtol=1e-9,
        atol=1e-12,
        dense=False,
    )
    assert trajectory.status == "reached t1"
    np.testing.assert_allclose(trajectory.ts, s.times, rtol=1e-15)
    # Local errors of 1e-9 a step, over at most a few hundred steps of a flow that contracts but for saddles.
    assert np.max(relative_errors(s, trajectory.networks, s.times)) < 1e-7


@pytest.mark.parametrize("name", ["unbalanced-N3-below"])
def test_the_fixed_step_method_has_order_four(name):
    s = system(name)
    problem, start = Problem.from_target(s.target), LayerTuple(s.weights)
    errors = []
    for step in (0.05, 0.025, 0.0125):
        trajectory = gf.simulate(problem, start, 1.0, ts=[1.0], step=step, dense=False)
        assert int(trajectory.num_steps) == round(1.0 / step)
        errors.append(relative_errors(s, trajectory.networks, [1.0])[0])
    # 2⁴ = 16 up to the next order; errors of 1e-9 and more lie far above rounding. Order 3 would give 8, order 5 32.
    for coarse, fine in zip(errors[:-1], errors[1:], strict=True):
        assert 13 < coarse / fine < 20


def test_an_implicit_solver_agrees():
    s = system("unbalanced-N3-below")
    trajectory = gf.simulate(
        Problem.from_target(s.target),
        LayerTuple(s.weights),
        s.times[-1],
        ts=s.times,
        solver=diffrax.Kvaerno5(),
        rtol=1e-8,
        atol=1e-10,
        dense=False,
    )
    assert trajectory.status == "reached t1"
    # Local errors of 1e-8, Newton iterations to the same tolerance.
    assert np.max(relative_errors(s, trajectory.networks, s.times)) < 1e-6


# The field.


@pytest.mark.parametrize("coordinates", ["data", "reduced", "whitened"])
@pytest.mark.parametrize("hidden", [[], [4], [2, 3]])
def test_field_is_the_negative_gradient_by_autodiff(coordinates, hidden, rng):
    problem = Problem(rng.standard_normal((3, 7)), rng.standard_normal((2, 7)), coordinates=coordinates)
    net = random_net(rng, problem.widths(hidden))
    field = gradient_flow_field(jnp.zeros(()), net, problem)
    automatic = jax.grad(problem.effective_loss)(net)
    assert field.widths == net.widths
    np.testing.assert_allclose(flat(field), -flat(automatic), rtol=0, atol=1e-13 * np.linalg.norm(flat(automatic)))


@pytest.mark.parametrize("loss", [Logistic(), SoftmaxCrossEntropy(), Huber(0.5)], ids=lambda loss: type(loss).__name__)
def test_field_of_other_losses_is_the_negative_gradient_by_autodiff(loss, rng):
    problem = labelled_problem(rng, loss)
    net = random_net(rng, problem.widths([4, 2]))
    field = gradient_flow_field(jnp.zeros(()), net, problem)
    automatic = jax.grad(problem.effective_loss)(net)
    np.testing.assert_allclose(flat(field), -flat(automatic), rtol=0, atol=1e-13 * np.linalg.norm(flat(automatic)))


def test_field_in_data_coordinates_from_the_samples(rng):
    # ∇_{W_j} ½‖Y − WX‖² formed by hand from the samples: the reduction changes nothing.
    X, Y = rng.standard_normal((3, 7)), rng.standard_normal((2, 7))
    a, b = rng.standard_normal((4, 3)), rng.standard_normal((2, 4))
    field = gradient_flow_field(jnp.zeros(()), LayerTuple([a, b]), Problem(X, Y))
    residual = Y - b @ a @ X
    np.testing.assert_allclose(field.weights[0], b.T @ residual @ X.T, rtol=0, atol=1e-12)  # entries of order ten
    np.testing.assert_allclose(field.weights[1], residual @ (a @ X).T, rtol=0, atol=1e-12)


# One trajectory looked at from all sides.

WIDTHS = (3, 3, 2)
END = 6.0


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem.from_target(np.random.default_rng(1).standard_normal((2, 3)))


@pytest.fixture(scope="module")
def starts() -> LayerTuple:
    return random_net(np.random.default_rng(2), WIDTHS, 0.5, (4,))


@pytest.fixture(scope="module")
def flow(problem, starts) -> gf.Trajectory:
    return gf.simulate(problem, row(starts, 0), END, rtol=1e-8, atol=1e-10)


@pytest.fixture(scope="module")
def flows(problem, starts) -> gf.Trajectory:
    return gf.simulate(problem, starts, END, rtol=1e-8, atol=1e-10)


def test_every_step_is_saved_from_start_to_end(flow, starts):
    ts = np.asarray(flow.ts)
    assert flow.status == "reached t1"
    assert (ts[0], ts[-1], float(flow.final_time)) == (0.0, END, END)
    assert np.all(np.diff(ts) > 0)
    assert 10 < len(ts) - 1 <= int(flow.num_steps)
    np.testing.assert_array_equal(flat(row(flow.networks, 0)), flat(row(starts, 0)))
    np.testing.assert_array_equal(flat(row(flow.networks, -1)), flat(flow.final))


def test_losses_and_gradients_along_the_trajectory(flow, problem):
    target, design = np.asarray(problem.target), np.asarray(problem.design)
    first, second = (np.asarray(w) for w in flow.networks.weights)
    residual = target - second @ first @ design
    losses = 0.5 * np.sum(residual**2, axis=(1, 2))
    gradients = np.sum((second.mT @ residual @ design.T) ** 2, axis=(1, 2))
    gradients += np.sum((residual @ design.T @ first.mT) ** 2, axis=(1, 2))
    np.testing.assert_allclose(flow.losses, losses, rtol=1e-10, atol=1e-15)
    np.testing.assert_allclose(flow.gradient_norms, np.sqrt(gradients), rtol=1e-10, atol=1e-13)
    assert np.all(np.diff(np.asarray(flow.losses)) < 0)


def test_the_loss_that_is_lost_is_the_integral_of_the_squared_gradient(flow, problem):
    # dL/dt = −‖∇L‖², integrated by Gauss's rule between the steps. The interpolant is right to about 1e-7.
    ts = np.asarray(flow.ts)
    nodes, weights = np.polynomial.legendre.leggauss(5)
    half = np.diff(ts)[:, None] / 2
    times = (ts[:-1, None] + half * (1 + nodes)).ravel()
    networks = jax.vmap(flow.evaluate)(jnp.asarray(times))
    squares = np.asarray(jax.vmap(lambda net: problem.gradient(net).norm())(networks)) ** 2
    lost = np.sum(half * weights * squares.reshape(-1, 5))
    np.testing.assert_allclose(lost, float(flow.losses[0] - flow.losses[-1]), rtol=1e-6)


def test_conserved_quantities_do_not_drift(flow, flows, starts):
    # Local errors of 1e-8 over fewer than a hundred steps.
    for trajectory in (flow, flows):
        assert trajectory.drift.shape == trajectory.ts.shape
        assert np.nanmax(trajectory.drift) < 1e-6
        assert np.all(np.asarray(trajectory.drift)[..., 0] == 0)
    # And the measure is the one of the definition.
    a, b = (np.asarray(w[-1]) for w in flow.networks.weights)
    c, d = (np.asarray(w[0]) for w in starts.weights)
    moved = np.linalg.norm((b.T @ b - a @ a.T) - (d.T @ d - c @ c.T))
    expected = moved / max(np.linalg.norm(w) for w in (a, b, c, d)) ** 2
    np.testing.assert_allclose(flow.drift[-1], expected, rtol=1e-5)  # of numbers near 1e-9, from a difference of ones


def test_singular_values_of_the_product(flow, flows):
    product = np.asarray(flow.networks.weights[1]) @ np.asarray(flow.networks.weights[0])
    expected = np.linalg.svd(product, compute_uv=False)
    np.testing.assert_allclose(flow.singular_values, expected, rtol=0, atol=1e-12)
    assert flows.singular_values.shape == (*flows.ts.shape, 2)
    rows = len(flow.ts)
    np.testing.assert_allclose(flows.singular_values[0, :rows], expected, rtol=0, atol=1e-9)  # as for batches below


def test_evaluate_passes_through_the_saved_states(flow):
    for k in (0, 1, len(flow.ts) // 2, -2, -1):
        # At the ends of a step the interpolant gives the states up to rounding.
        np.testing.assert_allclose(flat(flow.evaluate(flow.ts[k])), flat(row(flow.networks, k)), rtol=0, atol=1e-12)


def test_evaluate_between_the_steps_is_as_accurate_as_the_solver(flow, problem, starts):
    times = np.array([0.137, 1.0, 2.71, 5.5])
    accurate = gf.simulate(problem, row(starts, 0), END, ts=[*times, END], rtol=1e-11, atol=1e-13, dense=False)
    for k, t in enumerate(times):
        # Tsit5's interpolant has one order less than its steps of local error 1e-8.
        np.testing.assert_allclose(flat(flow.evaluate(t)), flat(row(accurate.networks, k)), rtol=0, atol=1e-6)


def test_a_batch_is_its_single_runs(flows, problem, starts):
    assert flows.status == ["reached t1"] * 4
    lengths = np.sum(np.isfinite(np.asarray(flows.ts)), axis=1)
    assert len(set(lengths.tolist())) > 1  # so that there is padding to look at
    assert flows.ts.shape == (4, max(lengths))
    middle = flows.evaluate(1.3)
    for i in range(4):
        single = gf.simulate(problem, row(starts, i), END, rtol=1e-8, atol=1e-10)
        assert len(single.ts) == lengths[i]
        assert int(single.num_steps) == int(flows.num_steps[i])
        for a, b in (
            (flat(row(flows.final, i)), flat(single.final)),
            (flat(row(middle, i)), flat(single.evaluate(1.3))),
        ):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)  # rounding in another order
        # The error estimate, 1e-8 of the state, has lost eight digits to cancellation: steps agree to the rest.
        np.testing.assert_allclose(flows.ts[i, : lengths[i]], single.ts, rtol=0, atol=1e-6)
        np.testing.assert_allclose(flows.losses[i, : lengths[i]], single.losses, rtol=1e-5)
        for padding in (flows.ts, flows.losses, flows.gradient_norms, *flows.networks.weights):
            assert np.all(np.isnan(padding[i, lengths[i] :]))


def test_the_flow_does_not_know_the_time(flow, problem, starts):
    later = gf.simulate(problem, row(starts, 0), 2.0 + END, t0=2.0, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(flat(later.final), flat(flow.final), rtol=0, atol=1e-10)  # rounding of the times
    np.testing.assert_allclose(later.ts - 2.0, flow.ts, rtol=0, atol=1e-6)  # as for the steps of batches above


def test_equidistant_times(flow, problem, starts):
    trajectory = gf.simulate(problem, row(starts, 0), END, ts=5, rtol=1e-8, atol=1e-10, dense=False)
    np.testing.assert_allclose(trajectory.ts, [0, 1.5, 3, 4.5, 6], rtol=1e-15)
    for k in range(5):
        np.testing.assert_allclose(
            flat(row(trajectory.networks, k)), flat(flow.evaluate(float(trajectory.ts[k]))), rtol=0, atol=1e-12
        )


def test_trajectories_print_well_whatever_they_hold(flow, flows, problem, starts):
    for trajectory in (flow, flows):
        assert repr(trajectory) == str(trajectory)
        assert len(repr(trajectory)) < 1500
    # Without numbers: inside a transformation, as shapes, and as a tree of something else.
    shown = []

    def final_loss(net):
        trajectory = gf.simulate(problem, net, END, ts=2)
        shown.extend([repr(trajectory), str(trajectory), trajectory._repr_html_()])
        return trajectory

    shown.append(repr(eqx.filter_eval_shape(final_loss, row(starts, 0))))
    shown.append(repr(jax.tree.map(lambda _: None, flow)))
    assert all("Trajectory" in text and len(text) < 5000 for text in shown[:2] + shown[3:])


def test_a_batch_of_batches_has_statuses_too(flows):
    assert jax.tree.map(lambda x: x[None], flows).status == ["reached t1"] * 4


def test_a_trajectory_prints_what_happened(flow, flows):
    shown = str(flow)
    for part in ("3-3-2", "reached t1", "drift of C_j", f"{float(flow.losses[0]):.6g}"):
        assert part in shown
    assert "reached t1" in str(flows)
    assert " 4" in str(flows)


def test_dense_output_is_needed_for_what_needs_it(problem, starts):
    trajectory = gf.simulate(problem, row(starts, 0), END, ts=5, rtol=1e-8, atol=1e-10, dense=False)
    for refused in (lambda: trajectory.evaluate(1.0), trajectory.crossing_times):
        with pytest.raises(ValueError, match=r"dense output: simulate\(\.\.\., dense=True\)"):
            refused()


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
    verdict = LevelCertificate(problem, starts.widths).certified
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


def test_the_certificate_comes_at_the_second_lowest_of_several_levels():
    # Three decoupled modes towards (3, 2, 1): the levels are 0, ½, 2, …
    s = system("modes-N2")

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


# What can go wrong during an integration.


def test_a_step_limit_is_reported(problem, starts):
    trajectory = gf.simulate(problem, row(starts, 0), END, rtol=1e-8, atol=1e-10, max_steps=7)
    assert trajectory.status == "step limit"
    assert int(trajectory.num_steps) == 7
    assert 0 < float(trajectory.final_time) < END
    assert len(trajectory.ts) <= 8
    assert float(trajectory.ts[-1]) == float(trajectory.final_time)


def test_rows_after_a_step_limit_are_not_numbers(problem, starts):
    # The first start has converged already and takes longer steps: it alone gets to the end.
    nets = jax.tree.map(lambda w: w.at[0].multiply(0.0), starts)
    trajectories = gf.simulate(
        problem, nets, 1.0, ts=[0.01, 0.5, 1.0], rtol=1e-9, atol=1e-12, dense=False, max_steps=14
    )
    assert trajectories.status == ["reached t1", "step limit", "step limit", "step limit"]
    for padded in (trajectories.ts, trajectories.losses, trajectories.gradient_norms, *trajectories.networks.weights):
        assert np.all(np.isnan(padded[1, -1]))


def test_divergence_of_a_fixed_step_is_reported(problem, starts):
    trajectory = gf.simulate(problem, 4.0 * row(starts, 0), 20.0, step=1.0, ts=[20.0], dense=False)
    assert not bool(trajectory.finite)
    assert trajectory.status == "not finite"


def test_a_critical_start_stays(problem, starts):
    trajectory = gf.simulate(problem, 0.0 * row(starts, 0), END, rtol=1e-8, atol=1e-10)
    assert trajectory.status == "reached t1"
    assert np.all(flat(trajectory.final) == 0)


# Buffers.


def num_bytes(tree) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(tree))


def test_a_trajectory_is_no_larger_than_its_steps(flow):
    """Nine states of fifteen numbers for a power of two of steps, and some more for each saved one."""
    steps = len(flow.ts) - 1
    assert 20 < steps < 128
    assert num_bytes(flow) < 8 * 15 * (9 * 128 + 2 * steps) + 10_000
    assert len(pickle.dumps(jax.tree.leaves(flow))) < 200_000


@pytest.fixture
def first_buffers(monkeypatch):
    """Buffers that begin with eight steps."""
    monkeypatch.setattr(buffers, "_FIRST_BYTES", 0)
    monkeypatch.setattr(buffers, "_FIRST_STEPS", 8)


def test_buffers_that_were_too_short_leave_no_trace(first_buffers, flow, problem, starts):
    again = gf.simulate(problem, row(starts, 0), END, rtol=1e-8, atol=1e-10)
    assert len(flow.ts) > 20
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(flow), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_step_limit_holds_whatever_the_buffers(first_buffers, problem, starts):
    trajectory = gf.simulate(problem, row(starts, 0), END, rtol=1e-8, atol=1e-10, max_steps=11.0)
    assert trajectory.status == "step limit"
    assert int(trajectory.num_steps) == 11


def test_steps_that_do_not_fit_into_memory_are_not_taken(first_buffers, monkeypatch, problem, starts):
    monkeypatch.setattr(buffers, "MOST_BYTES", 11 * 8 * 15 * 10)
    with pytest.warns(
        UserWarning, match=r"ended after 11 steps, .* give the times to save at \(ts=…\) and pass dense=False"
    ):
        trajectory = gf.simulate(problem, row(starts, 0), END, rtol=1e-8, atol=1e-10)
    assert trajectory.status == "step limit"
    assert len(trajectory.ts) <= 12
    assert float(trajectory.ts[-1]) == float(trajectory.final_time)


def test_dense_output_that_is_too_large_is_left_out(first_buffers, monkeypatch, problem, starts):
    monkeypatch.setattr(buffers, "DENSE_BYTES", 20 * 8 * 15 * 9)
    options = dict(rtol=1e-8, atol=1e-10)
    assert gf.simulate(problem, row(starts, 0), END, **options).interpolation is None
    assert gf.simulate(problem, row(starts, 0), 1e-3, **options).interpolation is not None
    assert gf.simulate(problem, row(starts, 0), END, dense=True, **options).interpolation is not None


def test_any_number_of_steps_is_allowed_where_buffers_follow_the_need(problem, starts):
    start = row(starts, 0)
    assert gf.simulate(problem, start, 0.1, rtol=1e-8, atol=1e-10, max_steps=10**9).status == "reached t1"
    # Compiled into something else, they are as long as they could become.
    with pytest.raises(
        ValueError, match=r"buffers of [0-9.]+ GiB \(max_steps=1000000000\): lower max_steps, give the times"
    ):
        jax.jit(lambda net: gf.simulate(problem, net, 1.0, max_steps=10**9).losses)(start)
    with pytest.raises(ValueError, match=r"buffers of [0-9.]+ GiB .* pass dense=False"):
        jax.jit(lambda net: gf.simulate(problem, net, 1.0, ts=[1.0], max_steps=10**8, dense=True).losses)(start)


_LARGE = """
import jax
jax.config.update("jax_enable_x64", True)
import numpy as np
import gdflow as gf
rng = np.random.default_rng(0)
problem = gf.Problem.from_target(rng.standard_normal((200, 200)) / 10)
net = gf.LayerTuple([rng.standard_normal((200, 200)) / 15 for _ in range(2)])
trajectory = gf.simulate(problem, net, 0.3)
assert 10 < len(trajectory.ts) < 20 and trajectory.interpolation is not None
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the peak is read from /proc")
def test_ten_steps_of_a_large_network_take_little_memory():
    """Ten states of 0.64 MB for 16 steps are 0.1 GB, kept twice while they are handed on; compiling alone takes 0.5 GB."""
    run = subprocess.run([sys.executable, "-c", _LARGE], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 10**6


# Options that make no sense.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"t1": np.inf}, r"t1=inf needs a stop, e\.g\. stop=gf\.AtCertificate\(\)"),
        ({"t1": 0.0}, r"t1=0\.0 must be larger than t0=0\.0"),
        ({"t0": 2.0}, r"t1=1\.0 must be larger than t0=2\.0"),
        ({"t1": np.nan}, "t1=nan must be larger"),
        ({"ts": [0.1, 0.5, 0.5]}, r"save times must increase and lie in \[0\.0, 1\.0\]"),
        ({"ts": [0.5, 0.1]}, "save times must increase"),
        ({"ts": [-0.1, 0.5]}, r"lie in \[0\.0, 1\.0\], got -0\.1 … 0\.5"),
        ({"ts": [0.5, 1.5]}, r"lie in \[0\.0, 1\.0\], got 0\.5 … 1\.5"),
        ({"ts": 1}, "1 equidistant times .* at least 2"),
        ({"ts": 5, "t1": np.inf, "stop": gf.AtCertificate()}, "5 equidistant times up to t1=inf"),
        ({"step": -0.1}, r"the step must be positive, got -0\.1"),
        ({"step": 0.0}, r"the step must be positive, got 0\.0"),
        ({"step": 0.3}, r"a fixed step must divide t1 - t0: \(1\.0 - 0\.0\)/0\.3 = 3\.33"),
        ({"solver": gf.RK4()}, "RK4 has no error estimate: give a fixed step"),
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
        ({"max_steps": 2.5}, "max_steps must be an integer, got 2.5"),
        ({"max_steps": np.nan}, "max_steps must be an integer, got nan"),
        ({"rtol": 0.0}, "0 < rtol < 1, got rtol=0.0"),
        ({"rtol": 1e300}, "0 < rtol < 1, got"),
        ({"rtol": np.nan}, "rtol must be a finite number, got nan"),
        ({"atol": -1e-9}, "atol ≥ 0, got atol=-1e-09"),
        ({"atol": np.inf}, "atol must be a finite number, got inf"),
        ({"ts": 2.5}, "the number of save times ts must be an integer, got 2.5"),
        ({"solver": diffrax.KenCarp4()}, r"KenCarp4 is made for equations split into several terms .*Kvaerno5\(\)"),
        (
            {"solver": diffrax.Kvaerno3(), "step": 0.1},
            "Kvaerno3 solves its equations to the tolerances of the step control",
        ),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message, problem, starts):
    with pytest.raises(ValueError, match=message):
        gf.simulate(problem, row(starts, 0), **{"t1": 1.0, **options})


@pytest.mark.parametrize(
    "options",
    [
        {"step": 1e9},  # the interval is not a multiple of it: zero times is none
        {"step": np.inf},
        {"ts": [0.5, np.nan]},
        {"ts": [np.nan, 1.0]},
        {"ts": []},
        {"t0": -np.inf},
    ],
    ids=str,
)
def test_more_options_that_make_no_sense_are_refused(options, problem, starts):
    with pytest.raises(ValueError, match=r"step|save times|t0"):
        gf.simulate(problem, row(starts, 0), **{"t1": 1.0, "dense": False, **options})


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([np.array([[1.0, 0.0, np.nan]] * 3), np.ones((2, 3))], r"W_1 is nan at entry \(0, 2\); starts must be finite"),
        ([np.ones((3, 3)), np.full((2, 3), np.inf)], r"W_2 is inf at entry \(0, 0\)"),
        ([np.ones((3, 4)), np.ones((2, 3))], r"widths \(4, 3, 2\) do not fit the problem.*d_0 = 3 and d_N = 2"),
        ([np.ones((3, 3)), np.ones((1, 3))], r"widths \(3, 3, 1\) do not fit the problem"),
        ([np.ones((5, 4, 3, 3)), np.ones((5, 4, 2, 3))], r"one batch axis at most, .* leading axes \(5, 4\)"),
    ],
)
def test_networks_that_do_not_fit_are_refused(layers, message, problem):
    with pytest.raises(ValueError, match=message):
        gf.simulate(problem, LayerTuple(layers), 1.0)


@pytest.mark.parametrize(
    "options", [{"max_steps": True}, {"ts": True}, {"ts": [True]}, {"ts": np.array([1j])}, {"rtol": True}], ids=str
)
def test_options_of_another_kind_are_refused(options, problem, starts):
    with pytest.raises(TypeError, match=r"must be (an integer|a number|real numbers), got"):
        gf.simulate(problem, row(starts, 0), **{"t1": 1.0, **options})


def test_a_list_of_matrices_is_no_network(problem, starts):
    """As a user calls it, without the type checks of the tests."""
    weights = [np.asarray(w) for w in row(starts, 0).weights]
    for refuses in (
        lambda: inspect.unwrap(gf.simulate)(problem, weights, 1.0),
        lambda: inspect.unwrap(gf.limit)(problem, weights),
        lambda: inspect.unwrap(gf.shoot_at_saddle)(problem, weights, weights),
    ):
        with pytest.raises(
            TypeError, match=r"must be a gdflow.LayerTuple, got list: gf.LayerTuple\(weights\) makes one"
        ):
            refuses()


def test_a_start_in_a_batch_that_is_not_finite_is_named(problem, starts):
    bad = jax.tree.map(lambda w: w.at[2, 0, 1].set(jnp.nan), starts)
    with pytest.raises(ValueError, match=r"W_1 is nan at entry \(2, 0, 1\)"):
        gf.simulate(problem, bad, 1.0)


def test_stops_that_make_no_sense_are_refused(rng):
    with pytest.raises(ValueError, match=r"kind must be one of .* got 'surely'"):
        gf.AtCertificate("surely")
    for norm in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match=f"gradient norm to stop at must be positive, got {norm}"):
            gf.AtGradientNorm(norm)
    logistic = labelled_problem(rng, Logistic())
    with pytest.raises(ValueError, match="Logistic has no finite set of critical values"):
        gf.simulate(logistic, random_net(rng, logistic.widths([2])), np.inf, stop=gf.AtCertificate())


# Other losses.


def labelled_problem(rng: np.random.Generator, loss) -> Problem:
    X = rng.standard_normal((3, 8))
    if isinstance(loss, Logistic):
        Y = rng.choice([-1.0, 1.0], (2, 8))
    elif isinstance(loss, SoftmaxCrossEntropy):
        Y = np.eye(2)[:, rng.integers(0, 2, 8)]
    else:
        Y = 2 * rng.standard_normal((2, 8))
    return Problem(X, Y, loss)


@pytest.mark.parametrize("loss", [Logistic(), SoftmaxCrossEntropy(), Huber(0.5)], ids=lambda loss: type(loss).__name__)
def test_other_losses_fall_and_conserve(loss, rng):
    problem = labelled_problem(rng, loss)
    start = random_net(rng, (3, 3, 2))
    trajectory = gf.simulate(problem, start, 5.0, ts=21, rtol=1e-8, atol=1e-10, dense=False)
    assert trajectory.status == "reached t1"
    losses = np.asarray(trajectory.losses)
    assert np.all(np.diff(losses) < 0)
    assert losses[-1] < 0.9 * losses[0]
    np.testing.assert_allclose(losses[0], problem.total_loss(start), rtol=1e-12)
    assert np.max(trajectory.drift) < 1e-6  # local errors of 1e-8 over fewer than a hundred steps; Huber has kinks


# Derivatives.


@pytest.mark.slow
def test_gradient_of_the_final_loss_with_respect_to_the_start(problem, starts, rng):
    def final_loss(net):
        return gf.simulate(problem, net, 1.5, ts=[1.5], rtol=1e-10, atol=1e-12, dense=False).losses[-1]

    start = row(starts, 1)
    gradient = jax.grad(final_loss)(start)
    for _ in range(2):
        w, h = random_net(rng, WIDTHS), 1e-4
        difference = (final_loss(start + h * w) - final_loss(start - h * w)) / (2 * h)
        # h² times a third derivative of order ten, and local errors of 1e-10 over h.
        np.testing.assert_allclose(gradient.inner(w), difference, rtol=0, atol=2e-6)
        assert abs(float(difference)) > 1e-3


def scalar_final(a, b, s, t: float) -> LayerTuple:
    problem = eqx.tree_at(lambda p: p.objective.target, Problem.from_target(np.array([[1.0]])), jnp.reshape(s, (1, 1)))
    net = LayerTuple([jnp.reshape(a, (1, 1)), jnp.reshape(b, (1, 1))])
    return gf.simulate(problem, net, t, ts=[t], rtol=1e-10, atol=1e-12, dense=False).final


def test_gradients_of_the_scalar_network_are_those_of_its_solution():
    # a' = b(s − ab), b' = a(s − ab) from (0.3, 1.1), s = 2, differentiated in a_0, b_0 and s.
    arguments = (0.3, 1.1, 2.0)
    differentiate = jax.grad(lambda a, b, s, t: scalar_final(a, b, s, t).weights[0][0, 0], argnums=(0, 1, 2))

    def exact(a, b, s, t):
        return systems.unbalanced_pair(b, a, s, t)[1]

    for t in (0.4, 20.0):
        found = differentiate(*map(jnp.asarray, arguments), t)
        h = 1e-5
        for k in range(3):
            up, down = (tuple(x + sign * h * (i == k) for i, x in enumerate(arguments)) for sign in (1, -1))
            expected = (exact(*up, t) - exact(*down, t)) / (2 * h)
            # Differences of a closed form: 1e-10; local errors of the flow 1e-10, carried by its derivative.
            np.testing.assert_allclose(found[k], expected, rtol=0, atol=1e-7)
    # At the limit ab = s and b² − a² = c: da/ds = b/(a² + b²), da/da_0 = −a_0·a/(a² + b²), da/db_0 = …
    c = 1.1**2 - 0.3**2
    a2 = (-c + np.sqrt(c**2 + 4 * 2.0**2)) / 2
    a, b = np.sqrt(a2), 2.0 / np.sqrt(a2)
    limits = np.array([0.3 * a, -1.1 * a, b]) / (a2 + b**2)
    np.testing.assert_allclose(np.array(found), limits, rtol=0, atol=1e-7)


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
        verdict = LevelCertificate(p, widths).certified
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
