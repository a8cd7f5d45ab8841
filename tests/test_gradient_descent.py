"""Gradient descent in lanes: the iterates of a NumPy loop, time, what becomes of steps that are too long."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lane_runs import listed, process, run

import gdflow as gf
from gdflow.basins import GradientDescent, Status
from gdflow.basins.methods import Place
from gdflow.layouts import LanesFirst, LanesLast
from gdflow.network import LayerTuple
from gdflow.teacher import TeacherStudent

TARGET = np.diag([2.0, 1.0])


@pytest.fixture(scope="module")
def problem():
    return gf.Problem.from_singular_values([2.0, 1.0])


def drawn(rng, lanes):
    return [(0.7 * rng.normal(size=(3, 2)), 0.7 * rng.normal(size=(2, 3))) for _ in range(lanes)]


def numpy_steps(net, step, num):
    """The iterates for `½‖TARGET − W_2W_1‖²`, with their losses."""
    W1, W2 = net
    for _ in range(num):
        M = TARGET - W2 @ W1
        yield W1, W2, 0.5 * np.sum(M**2)
        W1, W2 = W1 + step * W2.T @ M, W2 + step * M @ W1.T


@eqx.filter_jit
def iterate(method, objective, nets, num):
    """So many steps; the packed place after every one."""
    y = method.layout.pack(nets)
    memory, t_next, control = method.begin(objective, y)
    place = Place(y, memory, jnp.zeros_like(t_next), t_next, method.loss(objective, y))

    def one(carry, _):
        place, control = carry
        step = method.attempt(objective, place)
        d = method.accept(objective, place, step, control)
        middle = method.interpolate(objective, place, step, 0.5 * (place.t + place.t_next))
        norm = method.gradient_norm(objective, place.y, place.memory)
        unpack = method.layout.unpack
        kept = unpack(place.y), unpack(middle), place.loss, place.t, norm
        return (Place(step.y, step.memory, d.t, d.t_next, step.loss), d.control), kept

    return jax.lax.scan(one, (place, control), length=num)[1]


@pytest.mark.parametrize("layout", [None, LanesFirst()], ids=["suited", "first"])
def test_iterates_are_those_of_numpy(problem, layout, rng):
    nets = drawn(rng, 4)
    method = GradientDescent(0.05, layout).suited((2, 3, 2))
    assert isinstance(method.layout, LanesLast if layout is None else LanesFirst)
    stacked = LayerTuple([np.stack(layers) for layers in zip(*nets, strict=True)])
    states, middles, losses, times, norms = iterate(method.traced(), problem.isometric().objective, stacked, 100)
    # Every time is one product, so rounding does not add up.
    np.testing.assert_allclose(times, np.broadcast_to(0.05 * np.arange(100)[:, None], (100, 4)), rtol=1e-15)
    for lane, net in enumerate(nets):
        rows = list(numpy_steps(net, 0.05, 101))
        for i in range(100):
            W1, W2, loss = rows[i]
            np.testing.assert_allclose(states.weights[0][i, lane], W1, rtol=0, atol=1e-13)
            np.testing.assert_allclose(states.weights[1][i, lane], W2, rtol=0, atol=1e-13)
            assert float(losses[i, lane]) == pytest.approx(loss, rel=1e-11, abs=1e-14)
            np.testing.assert_allclose(middles.weights[0][i, lane], 0.5 * (W1 + rows[i + 1][0]), rtol=0, atol=1e-13)
            moved = np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip((W1, W2), rows[i + 1][:2], strict=True)))
            assert float(norms[i, lane]) == pytest.approx(moved / 0.05, rel=1e-9)


def test_starts_run_until_their_level_is_passed(problem, rng):
    """The number of steps by NumPy; the time of the crossing lies in the last one."""
    nets = drawn(rng, 10)
    rows = run(process(problem, listed(nets), method=GradientDescent(0.05)), range(10), lanes=4, pool=16)
    for i, net in enumerate(nets):
        losses = np.array([loss for *_, loss in numpy_steps(net, 0.05, 2000)])
        steps = int(np.argmax(losses < 0.5))
        assert rows["status"][i] == Status.CERTIFIED
        assert rows["steps"][i] == steps
        assert rows["loss"][i] == pytest.approx(losses[steps], rel=1e-11)
        assert 0.05 * (steps - 1) * (1 - 1e-14) <= rows["time"][i] <= 0.05 * steps * (1 + 1e-14)


def test_the_last_step_ends_where_time_does(problem, rng):
    """Three steps of 0.05 and one cut short at 0.17, on the straight line."""
    net = tuple(0.1 * w for w in drawn(rng, 1)[0])
    rows = run(process(problem, listed([net]), method=GradientDescent(0.05), t1=0.17), range(1), lanes=1, pool=1)
    assert rows["status"][0] == Status.TIME_LIMIT
    assert rows["steps"][0] == 4
    assert rows["time"][0] == 0.17
    W1, W2, _ = list(numpy_steps(net, 0.05, 4))[-1]
    M = TARGET - W2 @ W1
    W1, W2 = W1 + 0.02 * W2.T @ M, W2 + 0.02 * M @ W1.T
    assert rows["loss"][0] == pytest.approx(0.5 * np.sum((TARGET - W2 @ W1) ** 2), rel=1e-12)


def test_steps_that_are_too_long_are_reported(problem, rng):
    """Curvature at the minimum is at least 2, so steps of 3 leave every neighbourhood of it."""
    rows = run(process(problem, listed(drawn(rng, 8)), method=GradientDescent(3.0)), range(8), lanes=4, pool=8)
    assert set(rows["status"]) <= {Status.CERTIFIED, Status.DIVERGING, Status.NON_FINITE}
    assert np.any(rows["status"] != Status.CERTIFIED)
    # Without a bound on the weights, they overflow.
    unbounded = process(problem, listed(drawn(rng, 8)), method=GradientDescent(3.0), largest=1e300)
    assert np.any(run(unbounded, range(8), lanes=4, pool=8)["status"] == Status.NON_FINITE)


def test_students_that_learn_a_teacher(rng):
    """Any objective will do: one without levels, in the layout that suits."""
    teacher, W = rng.normal(size=(2, 3)), rng.normal(size=(5, 2, 3))
    students = TeacherStudent(teacher)
    method = GradientDescent(0.1).suited(students.widths())
    states, _, losses, _, norms = iterate(method.traced(), students.objective, LayerTuple([W]), 50)
    x, gradient = jnp.asarray(W), jax.jit(jax.vmap(lambda w: students.gradient(LayerTuple([w])).weights[0]))
    value = jax.jit(jax.vmap(lambda w: students.effective_loss(LayerTuple([w]))))
    for i in range(50):
        np.testing.assert_allclose(states.weights[0][i], x, rtol=0, atol=1e-13)
        np.testing.assert_allclose(losses[i], value(x), rtol=0, atol=1e-13)
        np.testing.assert_allclose(norms[i], jnp.sqrt(jnp.sum(gradient(x) ** 2, axis=(1, 2))), rtol=1e-9)
        x = x - 0.1 * gradient(x)


def test_memory_is_found_again(problem, rng):
    stacked = LayerTuple([np.stack(layers) for layers in zip(*drawn(rng, 3), strict=True)])
    method, objective = GradientDescent(0.1).suited((2, 3, 2)), problem.isometric().objective
    y = method.layout.pack(stacked)
    memory, t_next, _ = method.begin(objective, y)
    place = Place(y, memory, jnp.zeros_like(t_next), t_next, method.loss(objective, y))
    assert method.forget(place).memory is None
    assert eqx.tree_equal(method.recall(objective, method.forget(place)), place)


def test_what_it_says_of_itself():
    method = GradientDescent(0.25)
    assert method.name == "gradient descent, step=0.25"
    assert method.tighter(100) is None
    assert method.path_degree is None


@pytest.mark.parametrize("step", [0, -0.1, np.nan, np.inf, "0.1", True, None])
def test_bad_steps_are_refused(step):
    with pytest.raises((ValueError, TypeError), match="step"):
        GradientDescent(step)
