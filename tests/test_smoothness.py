"""Bounds of the Hessian along descent: never exceeded, attained where theory says so; what they certify holds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import gdflow as gf
from gdflow.invariants import conserved, descent_change
from gdflow.network import LayerTuple
from gdflow.smoothness import DataSizes, hessian_bound, largest_safe_step, layer_bounds, settles, smoothness_bound

KEY = jax.random.key(3)
SHAPES = {
    "one hidden": ((2, 3, 2), (2.0, 1.0), "whitened"),
    "two hidden": ((3, 3, 4, 2), (1.5, 0.5), "whitened"),
    "three hidden, bottleneck": ((2, 3, 1, 2, 2), (2.0, 1.0), "whitened"),
}


def made(name):
    widths, s, coordinates = SHAPES[name]
    return gf.Problem.from_singular_values(list(s), widths[0], widths[-1], coordinates=coordinates), widths


def with_data(rng):
    """A problem with a diagonal design that is no multiple of the identity, and its widths."""
    return gf.Problem(np.diag([2.0, 0.5]) @ rng.normal(size=(2, 12)), rng.normal(size=(2, 12))), (2, 3, 2)


def norms_along(objective, net, step, num):
    """By NumPy's eigenvalues: the largest of the Hessian's size, of the layers' norms and of the losses on the way of descent."""

    def hessian(w):
        flat, back = ravel_pytree(w)
        return jax.jacfwd(lambda x: ravel_pytree(objective.gradient(back(x)))[0])(flat)

    def advance(w, _):
        g = objective.gradient(w)
        return jax.tree.map(lambda x, y: x - step * y, w, g), (w, objective.effective_loss(w))

    _, (points, losses) = jax.lax.scan(advance, net, length=num)
    some = jax.tree.map(lambda x: x[:: max(1, num // 12)], points)
    return jax.lax.map(hessian, some), some, losses


@pytest.mark.parametrize("name", [*SHAPES, "data"])
def test_nothing_on_the_way_exceeds_the_bounds(name, rng):
    """Hessians and layers along flows (tiny steps) and along descent with the largest safe step, from starts of several sizes."""
    problem, widths = with_data(rng) if name == "data" else made(name)
    isometric = problem.isometric()
    sizes, objective = DataSizes(problem, widths), isometric.objective
    along = jax.jit(functools.partial(norms_along, objective, num=48))
    bounds = jax.jit(lambda net, step: (
        layer_bounds(sizes, net, objective.effective_loss(net), step),
        hessian_bound(sizes, net, objective.effective_loss(net), step),
    ))  # fmt: skip
    law, tightest = gf.initialization.Gaussian(widths), np.inf
    for i, scale in enumerate((0.2, 1.0, 1.0, 2.0)):
        net = jax.tree.map(lambda w: scale * w, law.sample(KEY, i))  # noqa: B023 (called at once)
        safe = largest_safe_step(problem, net)
        assert 0 < safe <= 1 / smoothness_bound(problem, net)
        net = problem.convert(net, problem.coordinates, isometric.coordinates)
        for step in (0.05 * safe, safe):
            r, beta = map(np.asarray, bounds(net, step))
            hessians, points, losses = along(net, step=step)
            largest = np.abs(np.linalg.eigvalsh(np.asarray(hessians))).max()
            assert largest <= beta
            tightest = min(tightest, beta / largest)
            for layer, bound in zip(points.weights, r, strict=True):
                assert np.linalg.norm(np.asarray(layer), 2, axis=(1, 2)).max() <= bound
            # What the step is safe for: the loss falls.
            assert np.all(np.diff(losses) <= 1e-12)
    # A bound, not a formality: 4 to 40 was measured, with four layers 270.
    assert tightest < (1000 if name == "three hidden, bottleneck" else 100)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_the_bound_is_attained_at_balanced_minima(depth):
    """There `λ_max = N s_1^{2−2/N}` (MATH 7), all layers `diag(s^{1/N})`."""
    s = np.array([3.0, 2.0, 0.5])
    problem = gf.Problem.from_singular_values(s)
    net = LayerTuple([jnp.diag(s ** (1 / depth))] * depth)
    # Schatten's norm in place of the spectral one, and nine digits for round-off.
    assert smoothness_bound(problem, net) == pytest.approx(depth * s[0] ** (2 - 2 / depth), rel=1e-6)


def test_it_grows_with_the_step_and_is_infinite_rather_than_wrong():
    problem, widths = made("two hidden")
    net = gf.initialization.Gaussian(widths).sample(KEY, 0)
    values = [smoothness_bound(problem, net, step) for step in (0.0, 1e-3, 1e-1, 10.0)]
    assert values == sorted(values)
    assert values[0] < values[-1]
    huge = jax.tree.map(lambda w: 1e120 * w, net)
    assert smoothness_bound(problem, huge) == np.inf
    assert largest_safe_step(problem, huge) == 0


def test_one_step_changes_the_conserved_quantities_by_exactly_this(rng):
    """Exactly: to the round-off of the products."""
    problem, widths = made("two hidden")
    law = gf.initialization.Gaussian(widths)
    for i, step in enumerate((0.01, 0.3, 2.0)):
        net = law.sample(KEY, i)
        G = problem.gradient(net)
        after = conserved(jax.tree.map(lambda w, g: w - step * g, net, G))  # noqa: B023
        for now, before, change in zip(after, conserved(net), descent_change(G, step), strict=True):
            np.testing.assert_allclose(now, before + change, rtol=0, atol=1e-14 * (1 + float(jnp.abs(now).max())))


def test_what_settles_ends_at_loss_zero(rng):
    """What is certified near a minimum converges, with the longest step certified; above the edge nothing is certified."""
    problem, widths = made("two hidden")
    objective = problem.objective
    law = gf.initialization.Gaussian(widths)
    check = jax.jit(
        jax.vmap(lambda net, step: settles(objective, net, objective.effective_loss(net), step), in_axes=(None, 0))
    )
    longest = 0.0
    for i in range(6):
        near = gf.gradient_descent(problem, law.sample(KEY, i), 0.02, 2000, tolerance=1e-4).final
        edge = 2 / gf.landscape.sharpness(problem, near)
        shares = np.array([0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.001, 1.5])
        certain = np.asarray(check(near, edge * shares))
        assert not certain[shares > 1].any()
        assert np.all(np.diff(certain.astype(int)) <= 0)
        if certain.any():
            step = edge * shares[certain].max()
            longest = max(longest, shares[certain].max())
            run = gf.gradient_descent(problem, near, step, 5000)
            assert float(run.losses[-1]) < 1e-20
    assert longest >= 0.8  # of the edge


def test_a_state_far_from_any_minimum_does_not_settle():
    problem, widths = made("two hidden")
    net = gf.initialization.Gaussian(widths).sample(KEY, 0)
    assert not bool(settles(problem.objective, net, problem.effective_loss(net), 1e-6))
    # At a rank that does not fit, the loss does not tend to zero.
    saddle = gf.sample_critical_point(problem, widths, (1,), key=KEY)
    assert not bool(settles(problem.objective, saddle, problem.effective_loss(saddle), 1e-6))


@pytest.mark.parametrize(
    ("loss", "activation", "biases"),
    [
        (gf.losses.SquaredError(), "tanh", False),
        (gf.losses.Logistic(), "sigmoid", True),
        (gf.losses.SquaredError(), "gelu", True),
    ],
)
def test_with_weight_decay_whole_sublevel_sets_are_bounded(loss, activation, biases, rng):
    """Hessians at many points of a sublevel set, drawn along descents and around them; and the loss falls with a step of 1/β."""
    X, Y = rng.normal(size=(2, 6)), np.sign(rng.normal(size=(1, 6)))
    problem = gf.Problem(X, Y, loss, activations=activation, weight_decay=0.5, biases=biases)
    law = gf.initialization.Gaussian(problem.widths([3]))
    objective = problem.objective

    def hessian(w):
        flat, back = ravel_pytree(w)
        return jax.jacfwd(lambda x: ravel_pytree(objective.gradient(back(x)))[0])(flat)

    start = law.sample(KEY, 0)
    beta = smoothness_bound(problem, start)
    some = law.sample_batch(KEY, range(200))
    losses = jax.jit(jax.vmap(objective.effective_loss))(some)
    inside = np.flatnonzero(np.asarray(losses) <= float(objective.effective_loss(start)))
    assert len(inside) > 5
    hessians = jax.jit(lambda nets: jax.lax.map(hessian, nets))(jax.tree.map(lambda w: w[inside], some))
    largest = np.abs(np.linalg.eigvalsh(np.asarray(hessians))).max()
    assert largest <= beta < 1e4 * largest
    run = gf.gradient_descent(problem, start, largest_safe_step(problem, start), 200, every=1)
    assert np.all(np.diff(run.losses) <= 1e-12)


def test_bad_input():
    problem, widths = made("one hidden")
    net = gf.initialization.Gaussian(widths).sample(KEY, 0)
    with pytest.raises(ValueError, match="step must not be negative, got -1"):
        smoothness_bound(problem, net, -1.0)
    with pytest.raises(ValueError, match="do not fit"):
        smoothness_bound(problem, gf.initialization.Gaussian((3, 2, 2)).sample(KEY, 0))
    with pytest.raises(TypeError, match="hessian_bound can be traced"):
        jax.jit(lambda net: smoothness_bound(problem, net))(net)
    tanh = gf.Problem(np.eye(2), np.eye(2), activations="tanh")
    with pytest.raises(ValueError, match="without it sublevel sets are unbounded"):
        largest_safe_step(tanh, net)
