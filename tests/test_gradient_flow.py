"""Gradient flow against exact solutions, its field against automatic differentiation, its derivatives."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import systems
from random_cases import flat, labelled_problem, random_net, row
from small_flow import PROBLEM, STARTS, WIDTHS

import gdflow as gf
from gdflow.dynamics import gradient_flow_field
from gdflow.losses import Huber, Logistic, SoftmaxCrossEntropy
from gdflow.network import LayerTuple
from gdflow.problem import Problem


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
@pytest.mark.slow
def test_the_fixed_step_method_has_order_four(name):
    s = systems.named(name)
    problem, start = Problem.from_target(s.target), LayerTuple(s.weights)
    errors = []
    for step in (0.05, 0.025, 0.0125):
        trajectory = gf.simulate(problem, start, 1.0, ts=[1.0], step=step, dense=False)
        assert int(trajectory.num_steps) == round(1.0 / step)
        errors.append(relative_errors(s, trajectory.networks, [1.0])[0])
    # 2⁴ = 16 up to the next order; errors of 1e-9 and more lie far above rounding. Order 3 would give 8, order 5 32.
    for coarse, fine in zip(errors[:-1], errors[1:], strict=True):
        assert 13 < coarse / fine < 20


@pytest.mark.slow
def test_an_implicit_solver_agrees():
    s = systems.named("unbalanced-N3-below")
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


# Other losses.


@pytest.mark.parametrize("loss", [Logistic(), SoftmaxCrossEntropy(), Huber(0.5)], ids=lambda loss: type(loss).__name__)
@pytest.mark.slow
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
def test_gradient_of_the_final_loss_with_respect_to_the_start(rng):
    def final_loss(net):
        return gf.simulate(PROBLEM, net, 1.5, ts=[1.5], rtol=1e-10, atol=1e-12, dense=False).losses[-1]

    start = row(STARTS, 1)
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


@pytest.mark.slow
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
