"""Witnesses of non-convexity, perturbations that keep the product, and directions of negative curvature."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_cases import random_net

from gdflow.landscape import (
    average_over_permutations,
    descend_two_layers,
    kernel_perturbation,
    origin_witness,
    sample_critical_point,
    second_variation,
    strata,
    symmetry_witness,
)
from gdflow.losses import Huber, Logistic, SoftmaxCrossEntropy
from gdflow.network import LayerTuple
from gdflow.problem import Problem

# Products of a few factors with entries of order one.
ROUNDING = 1e-12


# -- permutations of hidden units ------------------------------------------------------------------------------------------


def permuted_copies(net: LayerTuple):
    """All networks that differ from `net` by permutations of the units of its hidden layers."""
    W = [np.asarray(w) for w in net.weights]
    for choice in itertools.product(*(itertools.permutations(range(d)) for d in net.widths[1:-1])):
        order = [np.arange(net.widths[0]), *map(np.array, choice), np.arange(net.widths[-1])]
        yield LayerTuple([w[np.ix_(order[j + 1], order[j])] for j, w in enumerate(W)])


def test_the_average_is_over_all_permutations(rng):
    net = random_net(rng, (4, 3, 2, 5))
    copies = list(permuted_copies(net))
    assert len(copies) == 6 * 2
    for copy in copies:
        np.testing.assert_allclose(copy.end_to_end, net.end_to_end, rtol=0, atol=ROUNDING)
    for j, w in enumerate(average_over_permutations(net).weights):
        expected = np.mean([np.asarray(copy.weights[j]) for copy in copies], axis=0)
        np.testing.assert_allclose(w, expected, rtol=0, atol=1e-15)  # sums of twelve numbers of order one


def test_the_average_acts_like_hidden_layers_of_one_unit(rng):
    average = average_over_permutations(random_net(rng, (4, 3, 2, 5)))
    assert np.linalg.matrix_rank(np.asarray(average.end_to_end)) == 1
    again = average_over_permutations(average)
    for a, b in zip(again.weights, average.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-15)


def test_networks_without_choice_are_their_own_average(rng):
    for widths in ((4, 1, 1, 3), (4, 3)):
        net = random_net(rng, widths)
        for a, b in zip(average_over_permutations(net).weights, net.weights, strict=True):
            np.testing.assert_array_equal(a, b)


# -- witnesses -------------------------------------------------------------------------------------------------------------


def test_a_minimum_of_rank_two_shows_that_the_loss_is_not_convex():
    problem = Problem.from_singular_values([3, 2, 1], d_x=4)
    for widths in ((4, 3, 3), (4, 3, 3, 3)):
        net = sample_critical_point(problem, widths, (1, 2, 3), key=jax.random.key(0), kind="minimum")
        witness = symmetry_witness(problem.effective_loss, net)
        assert witness.violated
        assert witness.right == pytest.approx(0.0, abs=1e-20)  # the square of round-off
        # No network of hidden widths one is below the level of rank one.
        assert witness.left >= 0.5 * (2**2 + 1**2)
        assert witness.left == float(problem.effective_loss(witness.network))
        assert witness.network.widths == widths


def test_a_network_of_width_one_shows_nothing(rng):
    problem = Problem.from_singular_values([3, 2, 1], d_x=4)
    net = random_net(rng, (4, 1, 3))
    witness = symmetry_witness(problem.effective_loss, net)
    assert not witness.violated
    assert witness.left == witness.right


def test_a_convex_function_is_never_shown_not_to_be(rng):
    """`‖W‖²` of all layers is convex and does not change under permutations."""
    for _ in range(5):
        net = random_net(rng, (3, 4, 2))
        assert not symmetry_witness(lambda n: n.inner(n), net).violated
        witness = origin_witness(lambda n: n.inner(n), net)
        assert not witness.violated
        assert witness.left == 0.0


def test_any_loss_and_activation_will_do(rng):
    X, Y = jnp.asarray(rng.normal(size=(3, 6))), jnp.asarray(rng.normal(size=(2, 6)))

    def loss(net):
        return jnp.sum((net.weights[1] @ jnp.tanh(net.weights[0] @ X) - Y) ** 2)

    net = random_net(rng, (3, 40, 2))
    hidden = np.tanh(np.asarray(net.weights[0] @ X))
    fitted = LayerTuple([net.weights[0], np.asarray(Y) @ np.linalg.pinv(hidden)])
    assert symmetry_witness(loss, fitted).violated
    assert origin_witness(loss, fitted).violated


@pytest.mark.parametrize("widths", [(4, 3, 3), (4, 2, 5, 3)])
def test_every_better_network_than_zero_shows_it_from_the_origin(widths):
    problem = Problem.from_singular_values([3, 2, 1], d_x=4)
    for row in strata(problem, widths):
        net = sample_critical_point(problem, widths, row.subset, key=jax.random.key(1))
        witness = origin_witness(problem.effective_loss, net)
        # The levels' round-off; the plane at zero weights is the constant ½(3² + 2² + 1²).
        assert witness.left == pytest.approx(7.0, rel=1e-14)
        assert witness.right == pytest.approx(row.value, abs=1e-12)
        assert witness.violated == (row.subset != ())
        assert witness.network is net


def test_the_origin_of_one_layer_is_not_critical(rng):
    problem = Problem.from_singular_values([3, 2, 1], d_x=4)
    with pytest.raises(ValueError, match=r"gradient at zero weights has norm 3\.74: .* two layers or more"):
        origin_witness(problem.effective_loss, random_net(rng, (4, 3)))


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_units_of_the_loss_do_not_matter_at_the_origin(scale, rng):
    problem = Problem.from_singular_values([3, 2, 1], d_x=4)

    def loss(net):
        return scale * problem.effective_loss(net)

    with pytest.raises(ValueError, match="two layers or more"):
        origin_witness(loss, random_net(rng, (4, 3)))

    def nearly(net):
        return loss(net) + 1e-16 * scale * jnp.sum(net.weights[0])  # a gradient of round-off

    net = sample_critical_point(problem, (4, 3, 3), (1, 2, 3), key=jax.random.key(1))
    assert origin_witness(nearly, net).violated


# -- perturbations that keep the product -----------------------------------------------------------------------------------


def with_kernel_from(rng: np.random.Generator, widths, k_star: int) -> LayerTuple:
    """Random layers, but `W_{k*} … W_1` has a kernel."""
    net = random_net(rng, widths)
    W = [np.array(w) for w in net.weights]
    before = np.eye(widths[0]) if k_star == 1 else np.asarray(net.product(1, k_star - 1))
    x = before @ rng.normal(size=widths[0])
    W[k_star - 1] -= np.outer(W[k_star - 1] @ x, x) / (x @ x)
    return LayerTuple(W)


@pytest.mark.parametrize("k_star", [1, 2, 3])
def test_perturbations_on_the_kernel_keep_the_product(k_star, rng):
    net = with_kernel_from(rng, (3, 4, 3, 5, 4), k_star)
    found = kernel_perturbation(net, key=jax.random.key(2), size=0.1)
    assert found.k_star == k_star
    assert found.change < ROUNDING
    np.testing.assert_allclose(found.net.end_to_end, net.end_to_end, rtol=0, atol=ROUNDING)
    for k, (a, b) in enumerate(zip(found.net.weights, net.weights, strict=True), 1):
        change = np.asarray(a - b)
        if k <= k_star:
            np.testing.assert_array_equal(change, 0)
        else:
            # w_ku_{k−1}ᵀ: of rank one and of norm `size`, up to the round-off of the sum.
            assert np.linalg.norm(change) == pytest.approx(0.1, rel=1e-12)
            assert np.linalg.matrix_rank(change, tol=1e-12) == 1
    other = kernel_perturbation(net, key=jax.random.key(3), size=0.1)
    assert (other.net - found.net).norm() > 1e-3


def test_a_product_that_vanishes_has_a_kernel(rng):
    """`W_2` annihilates the range of `W_1`: the product is round-off, of full rank if it is measured by itself."""
    Q = np.linalg.qr(rng.normal(size=(7, 7)))[0]
    for scale in (1e-20, 1.0, 1e20):
        W1 = scale * Q[:, :3] @ rng.normal(size=(3, 3))
        W2 = rng.normal(size=(4, 4)) @ Q[:, 3:].T / scale
        W3 = rng.normal(size=(5, 4))
        assert np.linalg.matrix_rank(W2 @ W1) == 3
        found = kernel_perturbation(LayerTuple([W1, W2, W3]), key=jax.random.key(2), size=0.1)
        assert found.k_star == 2
        assert found.change < ROUNDING


def test_single_precision_stays_single(rng):
    net = LayerTuple([jnp.asarray(w, jnp.float32) for w in with_kernel_from(rng, (3, 4, 3, 5, 4), 2).weights])
    found = kernel_perturbation(net, key=jax.random.key(2), size=0.1)
    assert found.k_star == 2
    assert all(w.dtype == jnp.float32 for w in found.net.weights)
    assert found.change < 1e-3  # entries of the products are at most some tens, with an epsilon of 1e-7


def test_perturbed_saddles_have_the_same_loss():
    problem = Problem.from_singular_values([3, 2, 1])
    net = sample_critical_point(problem, (3, 4, 3, 3), (1,), key=jax.random.key(4))
    found = kernel_perturbation(net, key=jax.random.key(0))
    # Round-off of a level of 2.5.
    assert float(problem.effective_loss(found.net)) == pytest.approx(2.5, abs=1e-12)
    assert (found.net - net).norm() > 1e-4


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ((4, 4, 3), r"widths \(4, 4, 3\): transpose the network"),
        ((3, 4, 2, 3), r"widths \(3, 4, 2, 3\) have a bottleneck: .* at least 3 wide"),
        ((3, 4, 3, 3), "has no kernel"),
        ((3, 4), "has no kernel"),
    ],
)
def test_networks_the_perturbation_is_not_for(widths, message, rng):
    with pytest.raises(ValueError, match=message):
        kernel_perturbation(random_net(rng, widths), key=jax.random.key(0))


# -- two layers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "hidden", "coordinates"),
    [((3, 3), 3, "whitened"), ((4, 3), 5, "data"), ((2, 3), 3, "reduced"), ((4, 2), 4, "whitened")],
)
def test_every_saddle_of_two_layers_is_descended(shape, hidden, coordinates, rng):
    problem = Problem(rng.normal(size=(shape[0], 8)), rng.normal(size=(shape[1], 8)), coordinates=coordinates)
    widths = problem.widths((hidden,))
    for row in strata(problem, widths)[1:]:
        net = sample_critical_point(problem, widths, row.subset, key=jax.random.key(6), kind="strict")
        w = descend_two_layers(problem, net)
        assert w is not None
        assert float(w.norm()) == pytest.approx(1.0, rel=1e-12)
        curvature = float(second_variation(problem, net, w))
        assert curvature < -1e-6
        # The same direction with signs changed in one layer: the mixed term is then positive.
        assert float(second_variation(problem, net, LayerTuple([-w.weights[0], w.weights[1]]))) > 0
        # The loss does fall: H_W(w)t² but for terms of higher order.
        t = 1e-3
        drop = float(problem.effective_loss(net + t * w) - problem.effective_loss(net))
        assert drop < 0.5 * curvature * t**2


def test_the_direction_is_the_best_in_its_plane():
    """Of `(αve_jᵀ, βe_ivᵀ)` with `α² + β² = 1` none has less curvature. `W_1 ≠ 0` on the kernel of `W_2` costs some."""
    problem = Problem.from_singular_values([3, 2], d_x=4)
    net = LayerTuple([np.outer(np.ones(3), [0.0, 0, 0, 1]), np.zeros((2, 3))])
    assert problem.gradient(net).norm() == 0
    w = descend_two_layers(problem, net)
    value = float(second_variation(problem, net, w))
    # λ_min of [[0, g], [g, 1]] is half of 1 − √(1 + 4g²), with |g| = 3.
    assert value == pytest.approx((1 - np.sqrt(37)) / 4, rel=1e-13)
    for angle in np.linspace(0, 2 * np.pi, 25):
        a, b = (float(jnp.linalg.norm(x)) for x in w.weights)
        other = LayerTuple([np.cos(angle) / a * w.weights[0], np.sin(angle) / b * w.weights[1]])
        assert float(second_variation(problem, net, other)) >= value - 1e-13


@pytest.mark.parametrize(
    ("loss", "draw"),
    [
        (Logistic(), lambda rng: rng.choice([-1.0, 1.0], (2, 7))),
        (SoftmaxCrossEntropy(), lambda rng: np.eye(2)[:, rng.integers(0, 2, 7)]),
        (Huber(0.5), lambda rng: rng.normal(size=(2, 7))),
    ],
    ids=lambda x: type(x).__name__,
)
def test_other_losses_are_descended_from_the_origin(loss, draw, rng):
    problem = Problem(rng.normal(size=(3, 7)), draw(rng), loss)
    origin = LayerTuple([np.zeros((3, 3)), np.zeros((2, 3))])
    assert problem.gradient(origin).norm() == 0
    w = descend_two_layers(problem, origin)
    largest = float(jnp.abs(problem.end_to_end_gradient(origin.end_to_end)).max())
    # ½·2αβ g with α = ±β = √½: half the largest entry of the gradient.
    assert float(second_variation(problem, origin, w)) == pytest.approx(-0.5 * largest, rel=1e-13)
    assert problem.effective_loss(origin + 0.01 * w) < problem.effective_loss(origin)


def test_a_critical_point_of_the_logistic_loss_off_the_origin():
    """One hidden unit fits the first output to the first input at best; the second output would like the second input."""
    X = np.repeat(np.eye(2), [6, 2], axis=1)
    Y = np.array([[1.0, 1, 1, 1, -1, -1, 1, -1], [1.0, -1, 1, -1, 1, -1, 1, 1]])
    problem = Problem(X, Y, Logistic())
    # Two labels of three are 1: sigmoid(u) = 2/3 at u = log 2. Of the other sums of labels only one is not zero.
    net = LayerTuple([np.diag([1.0, 0.0]), np.diag([np.log(2.0), 0.0])])
    np.testing.assert_allclose(problem.end_to_end_gradient(net.end_to_end), [[0, 0], [0, -1]], rtol=0, atol=1e-15)
    assert problem.gradient(net).norm() < 1e-15
    w = descend_two_layers(problem, net)
    # The idle unit is free: αβ∇ℓ with α = β = √½.
    assert float(second_variation(problem, net, w)) == pytest.approx(-0.5, rel=1e-13)


def test_where_there_is_no_direction(rng):
    problem = Problem.from_singular_values([3.0, 2.0])
    minimum = LayerTuple([np.diag([3.0, 2.0]), np.eye(2)])
    assert descend_two_layers(problem, minimum) is None  # no kernel
    wide = LayerTuple([np.array([[3.0, 0], [0, 2.0], [0, 0]]), np.array([[1.0, 0, 0], [0, 1.0, 0]])])
    assert descend_two_layers(problem, wide) is None  # a kernel, but no gradient
    with pytest.raises(ValueError, match="two layers, got depth 3"):
        descend_two_layers(problem, random_net(rng, (2, 2, 2, 2)))
    with pytest.raises(ValueError, match="do not fit"):
        descend_two_layers(problem, random_net(rng, (3, 2, 2)))


def test_a_narrow_saddle_has_no_such_direction():
    """One hidden unit that fits the wrong singular value: neither `W_2` nor `W_1ᵀ` has a kernel."""
    problem = Problem.from_singular_values([3.0, 2.0])
    net = LayerTuple([np.array([[0.0, 2.0]]), np.array([[0.0], [1.0]])])
    assert problem.gradient(net).norm() == 0
    assert descend_two_layers(problem, net) is None
