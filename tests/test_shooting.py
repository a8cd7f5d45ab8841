"""Shooting at saddles, and starts that take longest or shortest to their certificate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdflow as gf
from gdflow.initialization import Gaussian

KEY = jax.random.key(41)
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("s", "hidden", "subset", "away"),
    [
        ([2.0, 1.0], [2], (2,), 1.0),
        pytest.param([3.0, 2.0, 1.0], [3, 3], (1, 3), 0.1, marks=SLOW),
    ],
)
@pytest.mark.slow
def test_a_start_whose_trajectory_passes_the_saddle(s, hidden, subset, away):
    problem = gf.Problem.from_singular_values(s)
    widths = problem.widths(hidden)
    saddle = gf.sample_critical_point(problem, widths, subset, key=jax.random.key(3))
    start = Gaussian(widths).sample(jax.random.key(5), 0)
    if away < 1:
        start = saddle + away * start
    shot = gf.shoot_at_saddle(problem, start, saddle)
    assert shot.reached
    assert shot.distance <= 1e-6
    assert shot.index == gf.inertia(problem, saddle).index
    # An integration of its own: another solver, steps of its own.
    run = gf.simulate(problem, shot.start, 2 * shot.time, rtol=1e-12, atol=1e-14)
    distances = np.asarray(run.map_over_time(lambda net: (net - saddle).norm()))
    assert distances.min() < 3e-6
    assert distances[0] > 0.05
    # Without aiming it does not come near.
    plain = gf.simulate(problem, start, 30.0, ts=300)
    assert np.min(plain.map_over_time(lambda net: (net - saddle).norm())) > 0.03
    assert "passes it" in str(shot)


def test_what_cannot_be_shot_at():
    problem = gf.Problem.from_singular_values([2.0, 1.0])
    law = Gaussian((2, 2, 2))
    start = law.sample(KEY, 0)
    with pytest.raises(ValueError, match="not a critical point"):
        gf.shoot_at_saddle(problem, start, law.sample(KEY, 1))
    minimum = gf.sample_critical_point(problem, (2, 2, 2), (1, 2), key=KEY)
    with pytest.raises(ValueError, match="no negative eigenvalue"):
        gf.shoot_at_saddle(problem, start, minimum)
    saddle = gf.sample_critical_point(problem, (2, 2, 2), (1,), key=KEY)
    with pytest.raises(ValueError, match="distance must be positive"):
        gf.shoot_at_saddle(problem, start, saddle, distance=0.0)
    with pytest.raises(ValueError, match="the saddle"):
        gf.shoot_at_saddle(problem, Gaussian((2, 3, 2)).sample(KEY, 0), saddle)


@pytest.mark.slow
def test_a_saddle_that_round_off_keeps_out_of_reach_is_not_said_to_be_reached():
    problem = gf.Problem.from_singular_values([2.0, 1.0])
    saddle = gf.sample_critical_point(problem, (2, 2, 2), (2,), key=jax.random.key(3))
    shot = gf.shoot_at_saddle(problem, Gaussian((2, 2, 2)).sample(jax.random.key(5), 0), saddle, distance=1e-15)
    assert not shot.reached
    assert 1e-15 < shot.distance < 1e-4
    assert "NOT REACHED" in str(shot)


@pytest.mark.slow
def test_starts_that_take_longest_and_shortest_to_their_certificate():
    """Gradient steps on the sphere: the slowest passes a saddle, the fastest beats all of many random starts."""
    problem = gf.Problem.from_singular_values([2.0, 1.0])
    starts = Gaussian((2, 2, 2)).sample_batch(KEY, np.arange(64))

    def time(net):
        run = gf.simulate(
            problem, net, jnp.inf, ts=[0.0], stop=gf.AtCertificate(), rtol=1e-8, atol=1e-10, max_steps=1000
        )
        return run.final_time

    def on_sphere(net):
        return (1.0 / net.norm()) * net

    starts = jax.vmap(on_sphere)(starts)
    times = np.asarray(jax.jit(jax.vmap(time))(starts))
    value_and_grad = jax.jit(jax.value_and_grad(time))
    reached = {}
    for sign in (1.0, -1.0):
        net = jax.tree.map(lambda x: x[int(np.argsort(times)[32])], starts)
        (value, gradient), size = value_and_grad(net), 0.2
        for _ in range(60):
            tangent = gradient - gradient.inner(net) * net
            if not float(tangent.norm()) > 0:  # certified at once: nothing left to gain
                break
            candidate = on_sphere(net + (sign * size / tangent.norm()) * tangent)
            new, new_gradient = value_and_grad(candidate)
            if sign * new > sign * value:
                net, value, gradient, size = candidate, new, new_gradient, 1.2 * size
            else:
                size /= 2
        reached[sign] = float(value)
    assert reached[-1.0] < times.min() + 1e-3
    assert reached[1.0] > 2 * times.max()
