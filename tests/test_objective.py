"""Loss and gradient of networks, against the loss on the data, against differentiation and against eq. (15)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_data import draw_weights, product, raw_gradient, raw_loss, relative_error

from gdflow.losses import Huber, Logistic, SoftmaxCrossEntropy
from gdflow.network import LayerTuple
from gdflow.problem import Problem, critical_values


def test_effective_loss_and_offset_make_the_loss_on_the_data(data, rng):
    X, Y = data
    problem = Problem(X, Y)
    for hidden in ((), (3,), (4, 2)):
        weights = draw_weights(problem.widths(hidden), rng)
        net = LayerTuple(weights)
        expected = raw_loss(weights, X, Y)
        # Both sides sum at most 160 squares after one orthogonal transformation of the samples.
        assert float(problem.effective_loss(net) + problem.offset) == pytest.approx(expected, rel=1e-12)
        assert float(problem.total_loss(net)) == pytest.approx(expected, rel=1e-12)
        assert float(problem.end_to_end_loss(net.end_to_end)) == pytest.approx(
            float(problem.effective_loss(net)), rel=1e-14
        )


def test_gradient_is_that_of_the_loss_on_the_data(data, rng):
    X, Y = data
    problem = Problem(X, Y)
    for hidden in ((), (3,), (4, 2)):
        weights = draw_weights(problem.widths(hidden), rng)
        # A few products of matrices of size at most five, and sums over at most 40 samples.
        assert relative_error(problem.gradient(LayerTuple(weights)).weights, raw_gradient(weights, X, Y)) < 1e-12


# A few depths 1–6 and widths 1–8, since every new shape has to be compiled.
WIDTHS = [(3, 2), (1, 1), (4, 3, 2), (3, 1, 8, 3), (2, 5, 4, 4), (8, 7, 2, 6, 5, 4), (4, 2, 3, 1, 5, 2, 3)]


@given(st.sampled_from(WIDTHS), st.sampled_from(["data", "whitened"]), st.integers(0, 2**31))
@pytest.mark.slow
def test_gradient_in_closed_form_is_the_derivative(widths, coordinates, seed):
    rng = np.random.default_rng(seed)
    X, Y = rng.normal(size=(widths[0], 12)), rng.normal(size=(widths[-1], 12))
    problem = Problem(X, Y, coordinates=coordinates)
    net = LayerTuple(draw_weights(widths, rng))
    derivative = jax.grad(lambda weights: problem.effective_loss(LayerTuple(weights)))(net.weights)
    # The same products in another order: a handful of roundings for each of at most six layers.
    assert relative_error(problem.gradient(net).weights, derivative) < 1e-12


@given(st.sampled_from([w for w in WIDTHS if w[0] >= w[-1]]), st.integers(0, 2**31))
def test_gradient_is_the_block_form(widths, seed):
    """Whitened, `d_x ≥ d_y`: eq. (15) of Chitour, Liao, Couillet (2022) with `W_1 = [W_{1,1} W_{1,2}]`."""
    rng = np.random.default_rng(seed)
    d_x, d_y = widths[0], widths[-1]
    problem = Problem(rng.normal(size=(d_x, 12)), rng.normal(size=(d_y, 12)), coordinates="whitened")
    weights = draw_weights(widths, rng)
    S_Y = np.diag(np.asarray(problem.singular_values))
    W11, W12 = weights[0][:, :d_y], weights[0][:, d_y:]
    R = product(weights[1:], widths[1])
    M = S_Y - R @ W11
    velocity = [np.hstack([R.T @ M, -R.T @ R @ W12])]
    for j in range(1, len(weights)):
        left, right = product(weights[j + 1 :], widths[j + 1]), product(weights[1:j], widths[1])
        velocity.append(left.T @ (M @ W11.T - R @ W12 @ W12.T) @ right.T)
    # As above; the whitened target differs from [S_Y 0] by eps.
    assert relative_error((-problem.gradient(LayerTuple(weights))).weights, velocity) < 1e-12


def test_gradient_vanishes_at_every_critical_point_of_the_two_layer_network(rng):
    """`W_S = U_SU_Sᵀ W_LS`, factored through the hidden layer, is critical with loss `offset + ½Σ_{i∉S}s_i²`."""
    X, Y = rng.normal(size=(4, 30)), rng.normal(size=(3, 30))
    problem = Problem(X, Y)
    W_LS = Y @ X.T @ np.linalg.inv(X @ X.T)
    U, _, _ = np.linalg.svd(W_LS @ X)
    residual = 0.5 * np.sum((Y - W_LS @ X) ** 2)
    levels = critical_values(problem, problem.max_rank((4, 2, 3)))
    assert sorted(level.num_subsets for level in levels) == [1] * 7  # 1 + 3 + 3 subsets
    for level in levels:
        (subset,) = level.subsets
        second = np.zeros((3, 2))
        second[:, : len(subset)] = U[:, [i - 1 for i in subset]]
        first = second.T @ W_LS
        # Condition number of XXᵀ below 20; losses are of size 50.
        assert raw_loss([first, second], X, Y) == pytest.approx(residual + level.value, rel=1e-13)
        assert float(problem.gradient(LayerTuple([first, second])).norm()) < 1e-11 * np.sum(X**2)


def labels(rng, shape):
    return rng.choice([-1.0, 1.0], size=shape)


def probabilities(rng, shape):
    Y = rng.uniform(size=shape)
    return Y / Y.sum(axis=0)


@pytest.mark.parametrize(
    ("loss", "draw"),
    [
        (Logistic(), labels),
        (SoftmaxCrossEntropy(), probabilities),
        (Huber(0.5), lambda rng, shape: rng.normal(size=shape)),
    ],
    ids=["logistic", "cross-entropy", "huber"],
)
@pytest.mark.parametrize("hidden", [(), (3,), (4, 2)])
def test_gradients_of_other_losses_are_derivatives_of_the_loss_on_the_data(loss, draw, hidden, rng):
    X, Y = rng.normal(size=(4, 20)), draw(rng, (3, 20))
    problem = Problem(X, Y, loss)
    net = LayerTuple(draw_weights(problem.widths(hidden), rng))

    def on_the_data(weights):
        W = functools.reduce(lambda right, left: left @ right, weights)
        return loss.value(W @ X, jnp.asarray(Y))

    value, derivative = jax.value_and_grad(on_the_data)(net.weights)
    # Sums of 60 terms, products of three matrices.
    assert float(problem.total_loss(net)) == pytest.approx(float(value), rel=1e-13)
    assert float(problem.effective_loss(net)) == float(problem.total_loss(net))
    assert relative_error(problem.gradient(net).weights, derivative) < 1e-12
    W = rng.normal(size=(3, 4))
    derivative = jax.grad(problem.end_to_end_loss)(jnp.asarray(W))
    assert relative_error(problem.end_to_end_gradient(jnp.asarray(W)), derivative) < 1e-12


def test_data_sets_of_one_size_share_their_programs(rng):
    """Nothing of an objective is static but its loss: new numbers are not compiled anew."""
    traced = []

    @jax.jit
    def loss(objective, net):
        traced.append(net.widths)
        return objective.effective_loss(net)

    for source in ("one", "another"):
        problem = Problem(rng.normal(size=(3, 9)), rng.normal(size=(2, 9)), source=source)
        loss(problem.objective, LayerTuple(draw_weights((3, 2), rng)))
    assert len(traced) == 1
