"""Objectives of nonlinear networks: closed-form gradients, lanes, biases, decay; potentials; what is refused."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdflow as gf
from gdflow.activations import Identity, LeakyReLU, Tanh
from gdflow.initialization import Gaussian
from gdflow.layouts import LanesFirst, LanesLast
from gdflow.losses import AbstractLoss, EntryLoss, Huber, Logistic, SoftmaxCrossEntropy, SquaredError
from gdflow.objective import LinearObjective
from gdflow.problem import Potential

KEY = jax.random.key(41)

LOSSES = {"squared": SquaredError(), "logistic": Logistic(), "softmax": SoftmaxCrossEntropy(), "huber": Huber(0.5)}


def made(shape, loss, rng, m=6, **options):
    X, Y = rng.normal(size=(shape[0], m)), rng.normal(size=(shape[-1], m))
    if loss == "logistic":
        Y = np.sign(Y)
    if loss == "softmax":
        Y = np.eye(shape[-1])[:, rng.integers(0, shape[-1], m)]
    return gf.Problem(X, Y, LOSSES[loss], **options)


def by_hand(problem, net):
    """The loss, written down layer by layer without gdflow's objective."""
    o = problem.objective
    a = np.asarray(o.design)
    activations = [o.activations[0]] * (net.depth - 1) + [Identity()] if len(o.activations) == 1 else o.activations
    for j, (W, activation) in enumerate(zip(net.weights, activations, strict=True), 1):
        a = np.array(activation.value(jnp.asarray(np.asarray(W) @ a)))
        if o.biases and j < net.depth:
            a[-1] = 1.0
    squares = sum(float(np.sum(np.asarray(W) ** 2)) for W in net.weights)
    return float(o.loss.value(jnp.asarray(a), o.target)) + 0.5 * float(o.decay) * squares


CASES = [
    ("tanh", (3, 4, 2), "squared", False), ("leaky-relu", (2, 3, 3, 1), "logistic", True),
    ("gelu", (4, 2, 3, 2), "softmax", True), ("arctan", (3, 2), "huber", False), ("relu", (3, 4, 2), "huber", True),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("activation", "shape", "loss", "biases"), CASES)
def test_values_gradients_and_lanes(activation, shape, loss, biases, rng):
    problem = made(shape, loss, rng, activations=activation, weight_decay=0.2, biases=biases)
    nets = Gaussian(problem.widths(shape[1:-1]), 1.0).sample_batch(KEY, range(3))
    losses, gradients, automatic = one_by_one(problem, nets)
    for i, found in enumerate(losses):
        assert float(found) == pytest.approx(by_hand(problem, jax.tree.map(lambda w: w[i], nets)), rel=1e-13)  # noqa: B023
    assert_close(gradients, automatic)
    for layout in (LanesFirst(), LanesLast()):
        in_lanes = by_lanes(problem, layout, nets)
        np.testing.assert_allclose(in_lanes[0], losses, rtol=1e-12)
        np.testing.assert_allclose(in_lanes[1], losses, rtol=1e-12)
        assert_close(in_lanes[2], gradients)


@eqx.filter_jit
def one_by_one(problem, nets):
    """Losses, gradients, and automatic gradients."""
    loss = problem.effective_loss
    return jax.vmap(loss)(nets), jax.vmap(problem.gradient)(nets), jax.vmap(jax.grad(loss))(nets)


@eqx.filter_jit
def by_lanes(problem, layout, nets):
    """Losses, losses beside the gradients, gradients."""
    gradients, losses = problem.objective.lane_gradients(layout, layout.pack(nets))
    return problem.objective.lane_losses(layout, layout.pack(nets)), losses, layout.unpack(gradients)


def assert_close(found, exact):
    """To 1e-12, relative to the largest entry of each layer."""
    for a, b in zip(found.weights, exact.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * (1 + float(jnp.max(jnp.abs(b)))))


@pytest.mark.parametrize("m", [20, 21, 23, 45, 150])
@pytest.mark.parametrize(("activation", "shape", "loss", "biases"), CASES[1:3])
def test_lanes_with_many_samples(activation, shape, loss, biases, m, rng):
    """They are summed up in blocks, some with a rest."""
    problem = made(shape, loss, rng, m, activations=activation, weight_decay=0.2, biases=biases)
    nets = Gaussian(problem.widths(shape[1:-1]), 1.0).sample_batch(KEY, range(3))
    losses, gradients, _ = one_by_one(problem, nets)
    in_lanes = by_lanes(problem, LanesLast(), nets)
    np.testing.assert_allclose(in_lanes[0], losses, rtol=1e-12)
    np.testing.assert_allclose(in_lanes[1], losses, rtol=1e-12)
    assert_close(in_lanes[2], gradients)


def test_one_hidden_layer_is_the_paper_s_formula(rng):
    """Chitour, Liao, Couillet (2018), section 5, with activations in both layers."""
    X, Y = rng.normal(size=(3, 7)), rng.normal(size=(2, 7))
    problem = gf.Problem(X, Y, activations=["tanh", "arctan"])
    W1, W2 = rng.normal(size=(4, 3)), rng.normal(size=(2, 4))
    S1, S1_slope = np.tanh(W1 @ X), 1 - np.tanh(W1 @ X) ** 2
    Z = W2 @ S1
    M, S2_slope = Y - np.arctan(Z), 1 / (1 + Z**2)
    g = problem.gradient(gf.LayerTuple([W1, W2]))
    np.testing.assert_allclose(g.weights[0], -(S1_slope * (W2.T @ (M * S2_slope))) @ X.T, atol=1e-13)
    np.testing.assert_allclose(g.weights[1], -(M * S2_slope) @ S1.T, atol=1e-13)


def test_biases_are_the_last_columns(rng):
    """A network with biases, written down with them, and rows of constant units without effect."""
    X, Y = rng.normal(size=(3, 8)), rng.normal(size=(2, 8))
    problem = gf.Problem(X, Y, activations="tanh", biases=True)
    assert problem.widths([4]) == (4, 5, 2)
    W1, b1, W2, b2 = (rng.normal(size=s) for s in ((4, 3), (4, 1), (2, 4), (2, 1)))
    exact = 0.5 * np.sum((Y - W2 @ np.tanh(W1 @ X + b1) - b2) ** 2)
    for row in (np.zeros((1, 4)), rng.normal(size=(1, 4))):
        net = gf.LayerTuple([np.block([[W1, b1], [row]]), np.block([W2, b2])])
        assert float(problem.total_loss(net)) == pytest.approx(exact, rel=1e-13)
        np.testing.assert_array_equal(problem.gradient(net).weights[0][-1], 0.0)
    with pytest.raises(ValueError, match="the last unit of every layer is constant"):
        problem.check_widths((4, 1, 2))


def test_identity_activations_are_a_linear_network(rng):
    X, Y = rng.normal(size=(3, 8)), rng.normal(size=(2, 8))
    assert isinstance(gf.Problem(X, Y, activations="identity").objective, LinearObjective)
    assert gf.Problem(X, Y, activations=["identity", Identity()]).why_no_levels is None
    # With decay it is no problem of levels, but the same network.
    problem, plain = gf.Problem(X, Y, weight_decay=0.3), gf.Problem(X, Y)
    net = Gaussian((3, 4, 2)).sample(KEY, 0)
    expected = plain.gradient(net) + 0.3 * net
    assert float((problem.gradient(net) - expected).norm()) < 1e-12
    # The quantities C_j fall by e^{−2κt}.
    run = gf.simulate(problem, net, 1.0, ts=[1.0], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(gf.conserved(run.final)[0], np.exp(-0.6) * gf.conserved(net)[0], atol=1e-8)


@pytest.mark.slow
def test_lanes_of_linear_networks_with_other_losses(rng):
    for loss in sorted(LOSSES):
        problem = made((3, 4, 2), loss, rng)
        nets = Gaussian((3, 4, 2)).sample_batch(KEY, range(4))
        for layout in (LanesFirst(), LanesLast()):
            gradients, losses = problem.objective.lane_gradients(layout, layout.pack(nets))
            for found, exact in zip(
                layout.unpack(gradients).weights, jax.vmap(problem.gradient)(nets).weights, strict=True
            ):
                np.testing.assert_allclose(found, exact, atol=1e-12)
            np.testing.assert_allclose(losses, jax.vmap(problem.effective_loss)(nets), rtol=1e-12)


def test_a_loss_of_your_own(rng):
    """`log cosh`, entry by entry: derivatives are tanh and 1/cosh²."""
    loss = EntryLoss(lambda output, target: jnp.log(jnp.cosh(output - target)))
    F, A, V = (jnp.asarray(rng.normal(size=(2, 5))) for _ in range(3))
    assert float(loss.value(F, A)) == pytest.approx(np.sum(np.log(np.cosh(F - A))))
    np.testing.assert_allclose(loss.gradient(F, A), np.tanh(F - A), atol=1e-14)
    assert float(loss.hessian_form(F, A, V)) == pytest.approx(np.sum(V**2 / np.cosh(F - A) ** 2))
    with pytest.raises(ValueError, match="convex in the output, but its second derivative is"):
        EntryLoss(lambda output, target: jnp.sin(output - target))
    problem = gf.Problem(rng.normal(size=(3, 5)), A, loss, activations="tanh")
    net = Gaussian((3, 4, 2)).sample(KEY, 1)
    assert float((jax.grad(problem.effective_loss)(net) - problem.gradient(net)).norm()) < 1e-12


@pytest.mark.slow
def test_what_makes_no_sense_is_refused(rng):
    X, Y = rng.normal(size=(3, 5)), rng.normal(size=(2, 5))
    for options, message in (
        (dict(activations="tanh", coordinates="whitened"), "activation Tanh, which has data coordinates only"),
        (dict(weight_decay=-1.0), "weight_decay must not be negative"),
        (dict(weight_decay=np.nan), "weight_decay must be a finite number"),
        (dict(activations=[]), "at least one activation"),
        (dict(activations="softplus"), "no activation 'softplus'"),
    ):
        with pytest.raises(ValueError, match=message):
            gf.Problem(X, Y, **options)
    problem = gf.Problem(X, Y, activations=["tanh", "tanh", "identity"])
    with pytest.raises(ValueError, match="3 activations, one for every layer, but the network has 2 layers"):
        problem.widths([4])
    net = Gaussian((3, 4, 4, 2)).sample(KEY, 0)
    for refused in (
        lambda: gf.second_variation(problem, net, net), lambda: gf.certify(problem, net), lambda: gf.prove(problem, net),
        lambda: gf.simulate(problem, net, 1.0, stop=gf.AtCertificate()), lambda: problem.in_coordinates("whitened"),
        lambda: gf.critical_values(problem, 2), lambda: gf.limit(problem, net),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="activation Tanh"):
            refused()

    class Everything(AbstractLoss):
        def value(self, output, target):
            return jnp.sum((output - target) ** 2)

        def gradient(self, output, target):
            return 2 * (output - target)

        def hessian_form(self, output, target, direction):
            return 2 * jnp.sum(direction**2)

    with pytest.raises(ValueError, match="must sum over the first two axes"):
        gf.Problem(X, Y, Everything())
    assert gf.Problem(X, Y, activations=[Tanh(), LeakyReLU()]).objective.smooth is False


# -- potentials --------------------------------------------------------------------------------------------------------


def test_a_planar_potential_with_an_unbounded_trajectory():
    """`½x² + ½(1 − xy)²` (without the factor `z²` of [CLC18] eq. (1)): trajectories with `y → ∞` exist, by MATH 17."""
    planar = Potential(lambda p: 0.5 * p[0] ** 2 + 0.5 * (1 - p[0] * p[1]) ** 2)
    ts = np.array([0.0, 20.0, 200.0, 1000.0])
    run = gf.simulate(planar, jnp.array([0.05, 3.0]), 1000.0, ts=ts, max_steps=100_000)
    y = np.asarray(run.networks)[:, 1]
    # Where x has followed, x = y/(1 + y²) and ẏ = y/(1 + y²)²: ln y + y² + y⁴/4 grows like t, up to the delay 1/y².
    clock = np.log(y) + y**2 + y**4 / 4
    np.testing.assert_allclose(np.diff(clock[1:]), np.diff(ts[1:]), rtol=1e-2)
    assert y[-1] > 7
    assert np.all(np.diff(run.losses) < 0)


def test_the_counterexample_of_the_first_version_is_none():
    """With the factor `z²` all trajectories are bounded: `y² − x² + z²` does not rise and `x² ≤ max(x_0², ¼)`."""
    three = Potential(lambda p: p["z"] ** 2 * (0.5 * p["x"] ** 2 + 0.5 * (1 - p["x"] * p["y"]) ** 2))
    for x, y, z in ((0.1, 3.0, 1.0), (2.0, 0.5, -2.0), (0.05, 12.0, 0.7)):
        start = dict(x=jnp.asarray(x), y=jnp.asarray(y), z=jnp.asarray(z))
        run = gf.simulate(three, start, 500.0, ts=60, rtol=1e-9, atol=1e-12, max_steps=100_000)
        p = {name: np.asarray(values) for name, values in run.networks.items()}
        quantity = p["y"] ** 2 - p["x"] ** 2 + p["z"] ** 2
        assert np.all(np.diff(quantity) <= 1e-6)
        assert np.all(p["x"] ** 2 <= max(x**2, 0.25) + 1e-6)
        assert run.status == "reached t1"
        assert "effective loss" in str(run)


def test_derivatives_of_a_potential_s_flow():
    """`ẋ = −ax`: the end is `x_0 e^{−at}`, differentiated in `x_0`."""
    decay = Potential(lambda x: 0.5 * 0.7 * x**2)
    end = jax.grad(lambda x: gf.simulate(decay, x, 2.0, ts=[2.0], rtol=1e-10, atol=1e-12).final)(1.3)
    assert float(end) == pytest.approx(np.exp(-1.4), rel=1e-8)


def test_potentials_that_cannot_be_are_refused():
    for start, function, message in (
        (jnp.asarray(1.0), lambda x: x["a"], "cannot be evaluated at such a start"),
        (jnp.ones(2), lambda x: x, "a potential is a real number, but at the start it has shape"),
        (jnp.array([1.0, jnp.nan]), lambda x: jnp.sum(x), "not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            gf.simulate(Potential(function), start, 1.0)
    with pytest.raises(TypeError, match="real floating-point arrays"):
        gf.simulate(Potential(lambda x: jnp.sum(x)), jnp.ones(2, int), 1.0)
