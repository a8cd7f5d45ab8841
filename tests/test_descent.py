"""Descent from one start or a batch: iterates of Optax written down, the flow as a limit, derivatives, minibatches, errors."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gdflow as gf
from gdflow.network import LayerTuple

KEY = jax.random.key(5)
WIDTHS = (3, 3, 2)


@pytest.fixture(scope="module")
def problem():
    return gf.Problem.from_singular_values([2.0, 1.0], 3, 2)


@pytest.fixture(scope="module")
def net():
    return gf.initialization.Gaussian(WIDTHS).sample(KEY, 0)


def loss(weights, target):
    """Of a linear network, written down."""
    product = weights[0]
    for w in weights[1:]:
        product = w @ product
    return 0.5 * jnp.sum((target - product) ** 2)


def by_hand(optimizer, net, target, num):
    """The iterates by Optax and automatic derivatives alone."""

    def step(carry, _):
        weights, state = carry
        value, gradient = jax.value_and_grad(loss)(weights, target)
        updates, new = optimizer.update(gradient, state, weights)
        return (optax.apply_updates(weights, updates), new), (weights, value)

    weights = [jnp.asarray(w) for w in net.weights]
    return jax.jit(lambda: jax.lax.scan(step, (weights, optimizer.init(weights)), length=num)[1])()


@pytest.mark.parametrize(
    ("optimizer", "plain"),
    [
        (0.05, optax.sgd(0.05)),
        (optax.sgd(0.02, momentum=0.9, nesterov=True),) * 2,
        (optax.adam(0.01),) * 2,
        (optax.cosine_decay_schedule(0.1, 60), optax.sgd(optax.cosine_decay_schedule(0.1, 60))),
        (optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1)),) * 2,
    ],
    ids=["gd", "nesterov", "adam", "schedule", "clipped"],
)
def test_iterates_are_those_of_optax(problem, net, optimizer, plain):
    run = gf.gradient_descent(problem, net, optimizer, 60, every=1)
    weights, losses = by_hand(plain, net, problem.target, 61)
    np.testing.assert_array_equal(run.steps, np.arange(61))
    # Products in another order: round-off, which 60 steps may spread by a little.
    np.testing.assert_allclose(run.losses, losses, rtol=1e-9, atol=1e-15)
    for ours, theirs in zip(run.networks.weights, weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-11)
    assert run.status == "made all steps"


@pytest.mark.slow
def test_the_flow_is_the_limit_of_small_steps(problem, net):
    """Gradient descent is explicit Euler: over four halvings the error at t = 2 falls with slope 1 in `η`."""
    steps = 0.04 / 2.0 ** np.arange(5)
    errors = [
        float(gf.gradient_descent(problem, net, step, round(2 / step), every=round(2 / step)).distance_to_flow()[-1])
        for step in steps
    ]
    slopes = np.log2(np.array(errors[:-1]) / errors[1:])
    # First order: the next term changes a slope by about η times a rate of the flow, a few per cent here.
    assert np.all(abs(slopes - 1) < 0.1)
    assert abs(slopes[-1] - 1) < 0.02


@pytest.mark.slow
def test_momentum_is_the_second_order_flow_in_the_limit(problem, net):
    """`v ← μv + ∇L`, `w ← w − ηv` with `η = h²`, `μ = 1 − γh` is a first-order method of step `h` for `ẅ + γẇ + ∇L = 0`."""
    gamma, end = 1.5, 3.0
    begin = [jnp.asarray(w) for w in net.weights]

    def field(t, y, args):
        w, v = y
        return v, jax.tree.map(lambda v, g: -gamma * v - g, v, jax.grad(loss)(w, problem.target))

    exact = diffrax.diffeqsolve(
        diffrax.ODETerm(field), diffrax.Tsit5(), 0.0, end, None, (begin, jax.tree.map(jnp.zeros_like, begin)),
        stepsize_controller=diffrax.PIDController(rtol=1e-11, atol=1e-12),
    ).ys[0]  # fmt: skip
    errors = []
    for h in (0.04, 0.02, 0.01, 0.005, 0.0025):
        run = gf.gradient_descent(
            problem, net, optax.sgd(h**2, momentum=1 - gamma * h), round(end / h), every=round(end / h)
        )
        errors.append(
            np.sqrt(sum(float(jnp.sum((a - b[0]) ** 2)) for a, b in zip(run.final.weights, exact, strict=True)))
        )
    slopes = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.all(abs(slopes - 1) < 0.15)
    assert abs(slopes[-1] - 1) < 0.03


def test_a_batch_is_its_members(problem):
    nets = jax.vmap(gf.initialization.Gaussian(WIDTHS).draw)(jax.random.split(KEY, 3))
    together = gf.gradient_descent(problem, nets, 0.1, 400, every=10, tolerance=1e-3)
    for i in range(3):
        alone = gf.gradient_descent(problem, jax.tree.map(lambda w: w[i], nets), 0.1, 400, every=10, tolerance=1e-3)  # noqa: B023
        rows = alone.losses.shape[0]
        np.testing.assert_allclose(together.losses[i, :rows], alone.losses, rtol=1e-12, atol=1e-20)
        assert np.isnan(together.losses[i, rows:]).all()
        assert int(together.num_steps[i]) == int(alone.num_steps)
        assert together.status[i] == alone.status == "stopped: gradient norm"
    assert "Descents" in str(together)
    # The first saved steps below the levels, from the losses themselves.
    crossings = together.crossing_steps()
    assert crossings.shape == (3, 4)
    for i in range(3):
        for k, level in enumerate((0.0, 0.5, 2.0, 2.5)):
            below = np.flatnonzero(np.asarray(together.losses[i]) <= level)
            assert crossings[i, k] == (together.steps[i, below[0]] if below.size else -1)


def test_the_gradient_stops_at_the_last_finite_iterate(problem, net):
    run = gf.gradient_descent(problem, net, 5.0, 200, every=1)
    assert not run.finite
    assert run.status == f"not finite after step {int(run.num_steps)}"
    assert np.isfinite(run.losses).all()
    assert all(np.isfinite(w).all() for w in run.final.weights)


def test_derivatives_in_start_step_and_data(problem, net):
    """Against central differences, backwards and forwards."""

    def end(step, scale):
        start = jax.tree.map(lambda w: scale * w, net)
        return gf.gradient_descent(problem, start, step, 40, every=40).losses[-1]

    at, h = (0.05, 1.0), 1e-6
    exact = jax.grad(end, argnums=(0, 1))(*at)
    forward = [jax.jvp(end, at, tangent)[1] for tangent in ((1.0, 0.0), (0.0, 1.0))]
    for k in range(2):
        moved = [tuple(a + sign * h * (k == i) for i, a in enumerate(at)) for sign in (1, -1)]
        difference = (end(*moved[0]) - end(*moved[1])) / (2 * h)
        assert float(exact[k]) == pytest.approx(float(difference), rel=1e-6)
        assert float(forward[k]) == pytest.approx(float(exact[k]), rel=1e-10)


def test_no_nan_in_derivatives_at_a_critical_start(problem):
    zero = LayerTuple([jnp.zeros((3, 3)), jnp.zeros((2, 3))])
    gradient = jax.grad(lambda w: gf.gradient_descent(problem, w, 0.1, 5).gradient_norms[-1])(zero)
    assert all(np.isfinite(g).all() for g in gradient.weights)


def test_potentials_and_line_searches():
    """A pytree of any kind; an optimizer that asks for the loss and its function."""
    valley = gf.Potential(lambda p: (1 - p["x"]) ** 2 + 10 * (p["y"] - p["x"] ** 2) ** 2)
    start = {"x": jnp.asarray(-1.0), "y": jnp.asarray(1.0)}
    run = gf.gradient_descent(valley, start, optax.lbfgs(), 60)
    assert float(run.final["x"]) == pytest.approx(1.0, abs=1e-8)
    with pytest.raises(ValueError, match="steps of a fixed length"):
        run.distance_to_flow()
    with pytest.raises(ValueError, match="give the levels"):
        run.crossing_steps()


@pytest.mark.slow
def test_minibatches(rng):
    """Unbiased, every sample once an epoch, the same again with the same key; networks of all kinds."""
    X, Y = rng.normal(size=(3, 10)), rng.normal(size=(2, 10))
    batches = gf.Minibatches(3, jax.random.key(1), (X, Y))
    key = jax.random.key(2)
    columns = np.concatenate([batches.columns(key, jnp.asarray(k), 10) for k in range(6)])
    for epoch in (columns[:9], columns[9:]):
        assert len(set(epoch.tolist())) == 9
    assert not np.array_equal(columns[:9], columns[9:])
    net = gf.initialization.Gaussian((3, 4, 2)).sample(KEY, 1)
    for options in ({}, dict(activations="tanh", weight_decay=0.3)):
        problem = gf.Problem(X, Y, **options)
        whole = gf.Minibatches(10, jax.random.key(1), (X, Y) if not options else None)
        estimate = whole.gradient(problem.objective, net, key, jnp.asarray(0))
        for ours, exact in zip(estimate.weights, problem.gradient(net).weights, strict=True):
            np.testing.assert_allclose(ours, exact, rtol=1e-12, atol=1e-13)
        # A batch of one: m times the loss of the sample, and the decay.
        single = gf.Minibatches(1, jax.random.key(1), (X, Y) if not options else None)
        total = [single.gradient(problem.objective, net, key, jnp.asarray(k)) for k in range(10)]
        mean = jax.tree.map(lambda *g: sum(g) / 10, *total)
        for ours, exact in zip(mean.weights, problem.gradient(net).weights, strict=True):
            np.testing.assert_allclose(ours, exact, rtol=1e-12, atol=1e-12)
        runs = [gf.gradient_descent(problem, net, 0.01, 30, batches=b) for b in (single, single, whole)]
        np.testing.assert_array_equal(runs[0].losses, runs[1].losses)
        assert abs(float(runs[0].losses[-1] - runs[2].losses[-1])) > 1e-6


def test_bad_input(problem, net, rng):
    X, Y = rng.normal(size=(3, 10)), rng.normal(size=(2, 10))
    data = gf.Problem(X, Y)
    for optimizer, error, message in (
        (0.0, ValueError, "step must be positive and finite, got 0"),
        (-0.1, ValueError, "got -0.1"),
        (float("nan"), ValueError, "got nan"),
        ("adam", TypeError, "step must be a number, got 'adam'"),
        (optax.adam, TypeError, "call it, as in optax.adam"),
        (lambda k: float("inf"), ValueError, "after 0 steps it is inf"),
        (lambda k: 0.1 if k < 5 else float("nan"), ValueError, "after 10 steps it is nan"),
        (lambda k: "a", TypeError, "no number|could not convert"),
        (
            optax.GradientTransformationExtraArgs(lambda p: (), lambda u, s, p=None, *, hessian: (u, s)),
            TypeError,
            "hessian",
        ),
    ):
        with pytest.raises(error, match=message):
            gf.gradient_descent(problem, net, optimizer, 10)
    for steps in (-1, 1.5):
        with pytest.raises(ValueError, match="steps"):
            gf.gradient_descent(problem, net, 0.1, steps)
    with pytest.raises(ValueError, match="do not fit"):
        gf.gradient_descent(problem, gf.initialization.Gaussian((2, 3, 2)).sample(KEY, 0), 0.1, 10)
    with pytest.raises(ValueError, match="finite"):
        gf.gradient_descent(problem, jax.tree.map(lambda w: w * np.nan, net), 0.1, 10)
    with pytest.raises(ValueError, match="GiB"):
        gf.gradient_descent(problem, net, 0.1, 10**9, every=1)
    for batches, message in (
        (gf.Minibatches(11, KEY, (X, Y)), "there are only 10"),
        (gf.Minibatches(2, KEY), "give the samples themselves"),
        (gf.Minibatches(2, KEY, (X, 2 * Y)), "not those of the problem"),
        (gf.Minibatches(2, KEY, (X[:2], Y)), "do not fit"),
    ):
        with pytest.raises(ValueError, match=message):
            gf.gradient_descent(data, net, 0.1, 10, batches=batches)
    with pytest.raises(ValueError, match="at least 1"):
        gf.Minibatches(0, KEY)
    with pytest.raises(ValueError, match="coordinates"):
        gf.gradient_descent(problem, net, 0.1, 10, batches=gf.Minibatches(2, KEY, (X, Y)))
