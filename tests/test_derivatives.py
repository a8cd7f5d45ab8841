"""Derivatives of flows: limits, states, crossing and certificate times, in the start, the data and the singular values."""

import dataclasses

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gdflow as gf
from gdflow.dynamics import exact
from gdflow.initialization import Balanced, Gaussian
from gdflow.losses import Huber
from gdflow.network import LayerTuple
from gdflow.perturbation import with_data, with_singular_values
from gdflow.thresholds import Thresholds, certificate_threshold

KEY = jax.random.key(31)
SLOW = pytest.mark.slow
FORWARD = diffrax.ForwardMode()


def difference(f, arguments, directions, h):
    """Central difference of `f` along a direction in all its arguments."""

    def at(sign):
        return f(*jax.tree.map(lambda x, d: x + sign * h * d, arguments, directions))

    return (at(1) - at(-1)) / (2 * h)


def inner(a, b):
    return sum(jnp.sum(x * y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def like(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=jnp.shape(x))), tree)


def scalar(a, b, s):
    """`½(s − ab)²` and the network `(a, b)`."""
    problem = with_singular_values(gf.Problem.from_singular_values([1.0]), jnp.reshape(s, 1))
    return problem, LayerTuple([jnp.reshape(a, (1, 1)), jnp.reshape(b, (1, 1))])


def scalar_limit(a_0, b_0, s):
    """`a_∞` and its derivatives in `a_0, b_0, s`: `ab = s` and `b² − a²` is conserved."""
    c = b_0**2 - a_0**2
    a = np.sqrt((-c + np.sqrt(c**2 + 4 * s**2)) / 2)
    b = s / a
    return a, np.array([a_0 * a, -b_0 * a, b]) / (a**2 + b**2)


# Limits.


@pytest.mark.parametrize("differentiate", ["grad", pytest.param("jacfwd", marks=SLOW)])
@pytest.mark.parametrize("start", [(0.3, 1.1, 2.0), pytest.param((1.4, -0.2, 0.5), marks=SLOW)])
@pytest.mark.slow
def test_derivatives_of_the_scalar_limit_are_exact(differentiate, start):
    options = dict(adjoint=FORWARD) if differentiate == "jacfwd" else {}

    def f(*arguments):
        return gf.limit(*scalar(*arguments), **options).weights[0][0, 0]

    value, expected = scalar_limit(*start)
    start = tuple(map(jnp.asarray, start))
    np.testing.assert_allclose(abs(f(*start)), value, rtol=1e-9)
    found = np.array(getattr(jax, differentiate)(f, argnums=(0, 1, 2))(*start))
    # Integrated at local tolerance 1e-10.
    np.testing.assert_allclose(found, np.sign(f(*start)) * expected, atol=1e-8)


@pytest.mark.slow
def test_implicit_differentiation_of_the_limit_is_wrong():
    """What the docs say `ImplicitAdjoint` gives, from Diffrax itself: 0.3079 for 0.3909, and nothing for the start."""

    def f(a, s):
        p, n = scalar(a, 1.1, s)
        terms = diffrax.ODETerm(gf.dynamics.gradient_flow_field)
        controller = diffrax.PIDController(rtol=1e-10, atol=1e-12)
        options = dict(stepsize_controller=controller, adjoint=diffrax.ImplicitAdjoint())
        end = diffrax.diffeqsolve(terms, diffrax.Tsit5(), 0.0, 20.0, 0.01, n, p, **options)
        return end.ys.weights[0][0, 0, 0]

    wrong = jax.grad(f, argnums=(0, 1))(jnp.asarray(0.3), jnp.asarray(2.0))
    np.testing.assert_allclose(np.array(wrong), [0.0, 0.3079], atol=1e-4)
    np.testing.assert_allclose(scalar_limit(0.3, 1.1, 2.0)[1], [0.0890, -0.3262, 0.3909], atol=1e-4)


@pytest.mark.parametrize("adjoint", [diffrax.ImplicitAdjoint(), diffrax.BacksolveAdjoint()])
@pytest.mark.slow
def test_wrong_adjoints_are_refused_with_the_reason(adjoint):
    problem, net = scalar(0.3, 1.1, 2.0)
    reason = {"ImplicitAdjoint": "they form manifolds", "BacksolveAdjoint": "integrates the flow backwards"}
    for run in (
        lambda: gf.simulate(problem, net, 1.0, adjoint=adjoint),
        lambda: gf.limit(problem, net, adjoint=adjoint),
        lambda: gf.riemannian_flow(problem, jnp.eye(1), 2, 1.0, adjoint=adjoint),
    ):
        with pytest.raises(ValueError, match=reason[type(adjoint).__name__]):
            run()


def functional(net):
    return sum(jnp.sum(jnp.sin(w + j)) for j, w in enumerate(net.weights))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("widths", "m"),
    [((2, 3, 3, 3), 7), ((4, 2, 3), 12)],  # wide and deep; a bottleneck
)
def test_derivatives_of_the_limit_in_start_and_data(widths, m):
    """Against central differences of the limit itself."""
    rng = np.random.default_rng(32)
    X, Y = (jnp.asarray(rng.normal(size=(d, m))) for d in (widths[0], widths[-1]))
    problem = gf.Problem(X, Y)
    net = Gaussian(widths).sample(KEY, 0)

    def f(net, X, Y):
        return functional(gf.limit(with_data(problem, X, Y), net))

    gradient = jax.grad(f, argnums=(0, 1, 2))(net, X, Y)
    run = jax.jit(f)
    for seed in range(3):
        direction = like((net, X, Y), seed)
        # h² times a third derivative, and a limit known to 1e-9 over h.
        expected = difference(run, (net, X, Y), direction, 3e-5)
        np.testing.assert_allclose(inner(gradient, direction), expected, rtol=2e-6, atol=2e-6)


@pytest.mark.slow
def test_derivatives_of_the_limit_at_equal_singular_values():
    """Nothing goes through singular vectors: a target with equal singular values is a point like any other."""
    problem = gf.Problem.from_target(np.eye(2))
    net = Gaussian((2, 3, 2)).sample(KEY, 1)

    def f(net, A):
        objective = dataclasses.replace(problem.objective, target=A)
        return functional(gf.limit(problem.replace(objective=objective), net))

    arguments = (net, problem.target)
    gradient = jax.grad(f, argnums=(0, 1))(*arguments)
    direction = like(arguments, 5)
    np.testing.assert_allclose(inner(gradient, direction), difference(f, arguments, direction, 3e-5), rtol=1e-6)


@pytest.mark.slow
def test_limits_of_batches():
    problem = gf.Problem.from_singular_values([2.0, 1.0])
    starts = Gaussian((2, 2, 2)).sample_batch(KEY, np.arange(3))

    def f(nets):
        return jax.vmap(functional)(gf.limit(problem, nets))

    values, pull = jax.vjp(f, starts)
    (gradients,) = pull(jnp.ones(3))
    row = jax.tree.map(lambda x: x[1], starts)
    one, gradient = jax.value_and_grad(lambda net: functional(gf.limit(problem, net)))(row)
    np.testing.assert_allclose(values[1], one, rtol=1e-9)
    np.testing.assert_allclose(jax.tree.map(lambda x: x[1], gradients).weights[0], gradient.weights[0], atol=1e-8)


@pytest.mark.slow
def test_degenerate_limits_say_so():
    problem = gf.Problem.from_singular_values([2.0, 1.0])
    missing = LayerTuple([jnp.diag(jnp.array([0.7, 0.0])), jnp.diag(jnp.array([0.8, 0.0]))])  # tends to the saddle {1}
    with pytest.raises(eqx.EquinoxRuntimeError, match="a saddle"):
        gf.limit(problem, missing)
    # Balanced factors approach a zero singular value like 1/t, and a minimum with more flat directions than tangent ones.
    flat = gf.Problem.from_singular_values([2.0, 0.0])
    with pytest.raises(eqx.EquinoxRuntimeError, match="more flat directions"):
        gf.limit(flat, Balanced((2, 2, 2)).sample(KEY, 0), gradient_norm=1e-6)
    net = Gaussian((2, 2, 2)).sample(KEY, 0)
    with pytest.raises(eqx.EquinoxRuntimeError, match="did not fall"):
        gf.limit(problem, net, max_steps=5)
    rng = np.random.default_rng(0)
    other = gf.Problem(rng.normal(size=(2, 5)), rng.normal(size=(2, 5)), Huber())
    with pytest.raises(ValueError, match="minima of Huber are not known"):
        gf.limit(other, net)
    wide = gf.Problem.from_singular_values([1.0], d_x=70, d_y=70)
    with pytest.raises(ValueError, match="9800 parameters are too many"):
        gf.limit(wide, Gaussian((70, 70, 70)).sample(KEY, 0))


# Times.


@pytest.mark.slow
def test_forward_mode_without_its_adjoint_says_what_to_do():
    problem, net = scalar(0.3, 1.1, 2.0)
    for f, x in (
        (lambda net: gf.simulate(problem, net, 1.0, ts=2).losses[-1], net),
        (lambda net: gf.limit(problem, net).weights[0][0, 0], net),
        (lambda W: gf.riemannian_flow(problem, W, 2, 1.0, rank=1, ts=2).losses[-1], jnp.eye(1)),
    ):
        with pytest.raises(TypeError, match=r"need adjoint=diffrax\.ForwardMode\(\)"):
            jax.jvp(f, (x,), (x,))


@pytest.mark.parametrize("stop", ["certificate"])
@pytest.mark.slow
def test_times_of_stops_already_met_do_not_move(stop):
    """Certified at the start, or at a critical point: the flow ends where it starts, at time 0 whatever the start is."""
    problem = gf.Problem.from_singular_values([2.0, 1.0])
    net = LayerTuple([jnp.diag(jnp.array([1.2, 0.9])), jnp.diag(jnp.array([1.5, 0.8]))])
    condition = gf.AtCertificate() if stop == "certificate" else gf.AtGradientNorm(0.1)
    if stop == "certificate":
        assert 0.01 < problem.effective_loss(net) < 0.4  # below the second-lowest level, ½
    else:
        net = 0.0 * net

    def ends(net, s):
        run = gf.simulate(with_singular_values(problem, s), net, jnp.inf, ts=[0.0], stop=condition, max_steps=50)
        return run.final_time, run.final

    s = problem.singular_values
    time, final = ends(net, s)
    assert time == 0
    assert eqx.tree_equal(final, net)
    direction = like(net, 7)
    gradients = jax.grad(lambda net, s: ends(net, s)[0] + ends(net, s)[1].inner(direction), argnums=(0, 1))(net, s)
    assert eqx.tree_equal(gradients[0], direction)
    np.testing.assert_array_equal(gradients[1], 0.0)


@pytest.mark.slow
def test_levels_above_the_start_are_crossed_at_once_whatever_the_start():
    problem = gf.Problem.from_singular_values([2.0, 1.0])
    net = LayerTuple([jnp.diag(jnp.array([0.2, 0.1])), jnp.diag(jnp.array([0.3, 0.1]))])
    loss = float(problem.effective_loss(net))
    levels = jnp.array([10 * loss, loss + 1e-6, loss, 0.5 * loss])

    def times(net):
        return gf.simulate(problem, net, 5.0, ts=[5.0], dense=True, max_steps=300).crossing_times(levels)

    found = times(net)
    np.testing.assert_array_equal(found[:3], 0.0)
    assert found[3] > 0.1
    for gradient in jax.tree.leaves(jax.jacrev(times)(net)):
        np.testing.assert_array_equal(gradient[:3], 0.0)
        assert np.any(gradient[3] != 0)


@pytest.mark.slow
def test_crossing_times_have_the_derivatives_of_the_closed_form():
    a, b = jnp.array([0.3, -0.2]), jnp.array([1.1, 0.4])
    levels = jnp.array([0.5 * (2.0 - u) ** 2 for u in (1.0, 1.3)])

    def times(a, b, s):
        problem = with_singular_values(gf.Problem.from_singular_values([1.0]), jnp.reshape(s, 1))
        run = gf.simulate(
            problem, LayerTuple([a[:, None], b[None, :]]), 10.0, ts=[10.0], dense=True, rtol=1e-11, atol=1e-13, max_steps=300
        )  # fmt: skip
        return run.crossing_times(levels)

    def closed(a, b, s):  # the level stays, so that the product at the crossing moves with s
        return jnp.stack([exact.width_h_hitting_time(a, b, s, s - jnp.sqrt(2 * level)) for level in levels])

    arguments = (a, b, jnp.asarray(2.0))
    np.testing.assert_allclose(times(*arguments), closed(*arguments), rtol=1e-7)  # interpolant between steps
    for found, expected in zip(
        jax.jacrev(times, argnums=(0, 1, 2))(*arguments), jax.jacrev(closed, argnums=(0, 1, 2))(*arguments), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("differentiate", ["grad", "jacfwd"])
def test_certificate_times_have_the_derivatives_of_the_closed_form(differentiate):
    """The certificate is met at `a·b = 0`, whatever `s` is: the critical value moves along with it."""
    options = dict(adjoint=FORWARD) if differentiate == "jacfwd" else {}
    a, b = jnp.array([0.7, 0.3]), jnp.array([-0.6, 0.1])

    def time(a, b, s):
        problem = with_singular_values(gf.Problem.from_singular_values([1.0]), jnp.reshape(s, 1))
        net = LayerTuple([a[:, None], b[None, :]])
        stop = gf.AtCertificate()
        run = gf.simulate(problem, net, jnp.inf, ts=[0.0], stop=stop, rtol=1e-11, atol=1e-13, max_steps=300, **options)
        return run.final_time

    def closed(a, b, s):
        return exact.width_h_hitting_time(a, b, s, 0.0)

    arguments = (a, b, jnp.asarray(2.0))
    np.testing.assert_allclose(time(*arguments), closed(*arguments), rtol=1e-8)
    found = getattr(jax, differentiate)(time, argnums=(0, 1, 2))(*arguments)
    expected = jax.grad(closed, argnums=(0, 1, 2))(*arguments)
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)


@pytest.mark.slow
def test_certificate_times_in_the_data():
    """Matrices, against central differences of the whole way from the samples on."""
    rng = np.random.default_rng(33)
    X, Y = jnp.asarray(rng.normal(size=(3, 9))), jnp.asarray(rng.normal(size=(2, 9)))
    net = 0.3 * Gaussian((3, 2, 2)).sample(KEY, 2)
    problem = gf.Problem(X, Y)

    def time(X, Y):
        p = with_data(problem, X, Y)
        return gf.simulate(p, net, jnp.inf, ts=[0.0], stop=gf.AtCertificate(), rtol=1e-10, atol=1e-12).final_time

    def from_scratch(X, Y):
        p = gf.Problem(np.asarray(X), np.asarray(Y))
        return gf.simulate(p, net, jnp.inf, ts=[0.0], stop=gf.AtCertificate(), rtol=1e-10, atol=1e-12).final_time

    assert from_scratch(X, Y) > 0.1
    np.testing.assert_allclose(time(X, Y), from_scratch(X, Y), rtol=1e-8)
    gradient = jax.grad(time, argnums=(0, 1))(X, Y)
    direction = like((X, Y), 1)
    expected = difference(from_scratch, (X, Y), direction, 1e-4)
    np.testing.assert_allclose(inner(gradient, direction), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_states_forward_and_batched():
    problem = gf.Problem.from_singular_values([2.0, 1.0])
    starts = Gaussian((2, 3, 2)).sample_batch(KEY, np.arange(4))
    direction = like(starts, 3)

    def loss(nets, **options):
        return gf.simulate(problem, nets, 1.0, ts=[1.0], rtol=1e-10, atol=1e-12, dense=False, **options).losses[:, -1]

    forward = jax.jvp(lambda nets: loss(nets, adjoint=FORWARD), (starts,), (direction,))[1]
    backward = jax.grad(lambda nets: jnp.sum(loss(nets)))(starts)
    np.testing.assert_allclose(jnp.sum(forward), inner(backward, direction), rtol=1e-7)
    np.testing.assert_allclose(forward, difference(loss, (starts,), (direction,), 1e-4), rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_riemannian_flow_forward():
    problem = gf.Problem.from_singular_values([2.0, 1.0])
    W0 = Balanced((2, 2, 2), singular_values=0.5).sample(KEY, 0).end_to_end
    D = like(W0, 4)

    def f(W, **options):
        run = gf.riemannian_flow(problem, W, 3, 0.5, rank=2, ts=2, rtol=1e-10, atol=1e-13, max_steps=500, **options)
        return jnp.sum(jnp.sin(run.final))

    forward = jax.jvp(lambda W: f(W, adjoint=FORWARD), (W0,), (D,))[1]
    np.testing.assert_allclose(forward, jnp.sum(jax.grad(f)(W0) * D), rtol=1e-7)
    np.testing.assert_allclose(forward, difference(f, (W0,), (D,), 1e-4), rtol=1e-6)


# Problems on other data.


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.sampled_from([3.0, 2.5, 2.0, 1.0, 0.5, 0.0]), min_size=1, max_size=5),
    st.integers(1, 5),
    st.booleans(),
)
def test_closed_form_of_the_second_level_is_that_of_the_listing(s, hidden, nested):
    if not any(s):
        s[0] = 1.0
    problem = gf.Problem.from_singular_values(s)
    widths = problem.widths([hidden])
    listed = Thresholds(problem, widths, nested=nested, num_levels=1).values
    threshold = certificate_threshold(problem, widths, nested=nested)
    if listed.size:
        np.testing.assert_allclose(threshold, listed[0], rtol=0, atol=1e-13 * sum(x**2 for x in s))
    else:
        assert threshold == np.inf


def test_other_data_in_the_same_problem():
    rng = np.random.default_rng(34)
    X, Y, X2, Y2 = (jnp.asarray(rng.normal(size=(d, 8))) for d in (3, 2, 3, 2))
    moved, fresh = with_data(gf.Problem(X, Y), X2, Y2), gf.Problem(X2, Y2)
    net = Gaussian((3, 2, 2)).sample(KEY, 0)
    np.testing.assert_allclose(moved.effective_loss(net), fresh.effective_loss(net), rtol=1e-12)
    np.testing.assert_allclose(moved.total_loss(net), fresh.total_loss(net), rtol=1e-12)
    np.testing.assert_allclose(moved.gradient(net).weights[0], fresh.gradient(net).weights[0], atol=1e-12)
    np.testing.assert_allclose(moved.singular_values, fresh.singular_values, rtol=1e-12)
    assert moved.max_rank((3, 2, 2)) == 2
    with pytest.raises(ValueError, match="singular values but no vectors"):
        moved.in_coordinates("whitened")
    for coordinates in ("data", "reduced", "whitened"):
        problem = fresh.in_coordinates(coordinates)
        s = 2.0 * problem.singular_values
        doubled = with_singular_values(problem, s)
        np.testing.assert_allclose(np.linalg.svd(doubled.target)[1], s, rtol=1e-12)
        np.testing.assert_allclose(doubled.target, 2 * problem.target, atol=1e-12)
    Z = jnp.asarray(rng.normal(size=(2, 8)))
    other = with_data(gf.Problem(X, Y, Huber()), X2, Z)
    assert other.spectrum is None
    np.testing.assert_array_equal(other.target, Z)


def test_data_that_do_not_fit_are_refused():
    rng = np.random.default_rng(35)
    X, Y = (jnp.asarray(rng.normal(size=(d, 8))) for d in (3, 2))
    problem = gf.Problem(X, Y)
    with pytest.raises(ValueError, match=r"shapes \(3, m\) and \(2, m\), got \(2, 8\) and \(3, 8\)"):
        with_data(problem, Y, X)
    with pytest.raises(ValueError, match="2 samples of 3 features"):
        with_data(problem, X[:, :2], Y[:, :2])
    with pytest.raises(ValueError, match="data coordinates are needed, got 'whitened'"):
        with_data(problem.in_coordinates("whitened"), X, Y)
    with pytest.raises(ValueError, match="has 2 singular values, got shape"):
        with_singular_values(problem, jnp.ones(3))
