"""Flows that slide on kinks, and minima that lie on them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gdflow as gf
from gdflow.initialization import Gaussian
from gdflow.kinks import settle_on_kinks
from gdflow.problem import Potential

KEY = jax.random.key(3)


@pytest.mark.slow
def test_a_flow_slides_along_a_kink():
    """`|x| + ½(y − 1)²`: `x` reaches zero at `t = x_0` and stays, `y = 1 − e^{−t}` goes on. Without a shortest step it halts."""
    potential = Potential(lambda p: jnp.abs(p[0]) + 0.5 * (p[1] - 1) ** 2)
    start = jnp.array([0.5, 0.0])
    run = gf.simulate(potential, start, 3.0, ts=7, shortest=1e-3)
    x, y = np.asarray(run.networks).T
    assert run.status == "reached t1"
    np.testing.assert_allclose(x, np.maximum(0.5 - np.asarray(run.ts), 0), atol=1.1e-3)
    np.testing.assert_allclose(y, 1 - np.exp(-np.asarray(run.ts)), atol=1e-6)
    assert gf.simulate(potential, start, 3.0, ts=[3.0], max_steps=2000).status == "step limit"


def relu_problem(decay=0.1, m=7, seed=5):
    rng = np.random.default_rng(seed)
    return gf.Problem(rng.normal(size=(2, m)), rng.normal(size=(1, m)), activations="relu", weight_decay=decay)


@pytest.fixture(scope="module")
def relu_estimate():
    problem = relu_problem()
    return gf.basin_sizes(problem, Gaussian(problem.widths([3])), 60, key=KEY, audit=0, progress=False)


@pytest.mark.slow
def test_minima_on_kinks_are_minima(relu_estimate):
    """No random step that crosses no other kink leads down from them, however long; on active ones both slopes lead up."""
    estimate = relu_estimate
    assert estimate.located >= 50
    assert any(limit.kinks for limit in estimate.found)
    assert len(estimate.found) >= 2
    problem, rng = estimate.plan.problem, np.random.default_rng(9)
    loss = jax.jit(jax.vmap(problem.effective_loss))
    for limit in estimate.found:
        flat, unravel = jax.flatten_util.ravel_pytree(limit.point)
        z = np.sort(np.abs(problem.objective.kink_inputs(limit.point)))
        # An input of a unit changes by at most the step times the norm of the sample; a unit that is off is at zero for all.
        longest = z[z > 1e-9].min() / np.linalg.norm(problem.design, axis=0).max()
        steps = rng.normal(size=(4000, flat.size))
        steps *= longest * 10 ** rng.uniform(-4, 0, 4000)[:, None] / np.linalg.norm(steps, axis=1, keepdims=True)
        # Units that are off stay off: the limit is one for the others.
        off = np.asarray(problem.objective.dead_units(limit.point)[0])
        assert limit.dead == (off.sum(),)
        moving = gf.LayerTuple([np.repeat(~off[:, None], 2, axis=1).astype(float), (~off[None]).astype(float)])
        steps = steps * np.asarray(jax.flatten_util.ravel_pytree(moving)[0])
        values = np.asarray(loss(jax.vmap(unravel)(np.asarray(flat) + steps)))
        assert values.min() >= limit.loss - 1e-12  # the round-off of the loss
        assert limit.kinks == 0 or z[limit.kinks - 1] < 1e-10, limit


@pytest.mark.slow
def test_limits_are_those_of_subgradient_descent(relu_estimate):
    """Optax with steps that get smaller, from the same starts, written down without gdflow's gradient."""
    estimate, num = relu_estimate, 40
    problem = estimate.plan.problem
    X, Y = np.asarray(problem.design), np.asarray(problem.target)

    def loss(weights):
        residual = Y - weights[1] @ jax.nn.relu(weights[0] @ X)
        return 0.5 * jnp.sum(residual**2) + 0.05 * sum(jnp.sum(w**2) for w in weights)

    schedule = optax.join_schedules([optax.constant_schedule(2e-3), optax.exponential_decay(2e-3, 5000, 0.1)], [40_000])
    optimizer = optax.sgd(schedule)

    def one(weights):
        def step(carry, _):
            weights, state = carry
            updates, state = optimizer.update(jax.grad(loss)(weights), state)
            return (optax.apply_updates(weights, updates), state), None

        (weights, _), _ = jax.lax.scan(step, (weights, optimizer.init(weights)), length=60_000)
        return loss(weights)

    ends = np.asarray(jax.jit(jax.vmap(one))(estimate.plan.starts.networks(range(num)).weights))
    limits = estimate.outcomes["limit"].to_pylist()[:num]
    decided = [i for i, k in enumerate(limits) if k is not None]
    expected = np.array([estimate.found[limits[i]].loss for i in decided])
    # Steps of 2e-3 may take another side of a boundary between basins than the flow: one in twenty at most.
    assert len(decided) > 30
    assert np.sum(abs(ends[decided] - expected) > 2e-3) <= 2


@pytest.mark.slow
def test_settling_needs_no_kink():
    """At a smooth minimum no kink is active, and the residual is the gradient."""
    problem = gf.Problem([[1.0]], [[1.0]], activations="relu")
    net = gf.LayerTuple([jnp.array([[1.1]]), jnp.array([[0.93]])])
    found = jax.jit(lambda n: settle_on_kinks(problem.objective, n, jnp.asarray(1e-3)))(net)
    assert bool(found.found)
    assert int(found.num_kinks) == 0
    assert float(found.residual) < 1e-12
    assert float(found.point.weights[0][0, 0] * found.point.weights[1][0, 0]) == pytest.approx(1.0, abs=1e-12)


def test_slopes_between_those_of_a_kink():
    problem = relu_problem()
    objective, net = problem.objective, Gaussian((2, 3, 1)).sample(KEY, 0)
    z = objective.kink_inputs(net)
    assert z.shape == (21,)  # three units, seven samples; the output has no kink
    exact, same = problem.gradient(net), objective.gradient_between(net, jnp.full(21, jnp.nan))
    assert float((exact - same).norm()) < 1e-15
    sides = objective.gradient_between(net, (z > 0).astype(float))
    assert float((exact - sides).norm()) < 1e-14
    # With all slopes one it is the linear network.
    linear = gf.Problem(problem.design, problem.target, weight_decay=0.1)
    ones = objective.gradient_between(net, jnp.ones(21))
    assert float((ones - linear.gradient(net)).norm()) < 1e-13


@pytest.mark.slow
@pytest.mark.parametrize("shortest", [1e-2, 1e-3])
def test_what_a_shortest_step_does_to_the_conserved_quantities(shortest):
    """Sliding included, the drift of `‖W_2 e_l‖² − ‖e_lᵀW_1‖²` over time 20 is below the shortest step (a tenth was measured)."""
    problem = relu_problem(decay=0.0)
    net = Gaussian((2, 3, 1)).sample(KEY, 4)
    run = gf.simulate(problem, net, 20.0, ts=[20.0], shortest=shortest, max_steps=100_000)
    assert run.status == "reached t1"
    before, after = (np.diagonal(gf.conserved(n)[0]) for n in (net, run.final))
    assert np.max(np.abs(after - before)) < shortest
