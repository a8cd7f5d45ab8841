"""Coordinates: the same loss in all of them, the same flow in two."""

import numpy as np
import pytest
from raw_data import DATA, draw_weights, duplicated_features, raw_loss, relative_error

from gdflow.network import LayerTuple
from gdflow.problem import Problem
from gdflow.spectrum import COORDINATES


@pytest.mark.parametrize("hidden", [(), (3,), (4, 2)])
def test_all_coordinates_give_the_same_loss(data, hidden, rng):
    X, Y = data
    problem = Problem(X, Y)
    weights = draw_weights(problem.widths(hidden), rng)
    net = LayerTuple(weights)
    expected = raw_loss(weights, X, Y)
    for coordinates in COORDINATES:
        other = problem.in_coordinates(coordinates)
        assert other.coordinates == coordinates
        moved = other.convert(net, "data", coordinates)
        other.check_network(moved)
        # Orthogonal factors and one scaling by S_X: a few dozen roundings.
        assert float(other.total_loss(moved)) == pytest.approx(expected, rel=1e-12)
        assert float(other.offset) == float(problem.offset)


@pytest.mark.parametrize("coordinates", ["reduced", "whitened"])
def test_networks_drawn_in_other_coordinates_have_that_loss_on_the_data(data, coordinates, rng):
    X, Y = data
    problem = Problem(X, Y, coordinates=coordinates)
    net = LayerTuple(draw_weights(problem.widths([3]), rng))
    weights = [np.asarray(w) for w in problem.convert(net, coordinates, "data").weights]
    # Dividing by S_X costs the condition number of X, below 20 (centred classes) in these data.
    assert raw_loss(weights, X, Y) == pytest.approx(float(problem.total_loss(net)), rel=1e-11)


def test_the_standard_forms(data):
    """The design is the identity (whitened) or diagonal (reduced), the whitened target is diagonal."""
    X, Y = data
    whitened, reduced = Problem(X, Y, coordinates="whitened"), Problem(X, Y, coordinates="reduced")
    np.testing.assert_array_equal(whitened.design, np.eye(whitened.d_in))
    s = np.asarray(whitened.singular_values)
    sigma = np.zeros(whitened.target.shape)
    np.fill_diagonal(sigma, s)
    # The target is formed as U_YᵀȲV_Y: a few roundings of the largest singular value.
    np.testing.assert_allclose(whitened.target, sigma, rtol=0, atol=1e-14 * s[0])
    rank = np.linalg.matrix_rank(X)
    S_X = np.linalg.svd(X, compute_uv=False)[:rank]
    np.testing.assert_allclose(reduced.design, np.diag(S_X), rtol=0, atol=1e-14 * S_X[0])
    # U_YᵀȲ has orthogonal rows of norms s: beside s_1² the Gram matrix is exact to a few eps.
    gram = np.zeros((len(Y), len(Y)))
    gram[np.arange(len(s)), np.arange(len(s))] = s**2
    np.testing.assert_allclose(reduced.target @ reduced.target.T, gram, rtol=0, atol=1e-14 * s[0] ** 2)


@pytest.mark.parametrize("hidden", [(), (3,), (4, 2)])
def test_conversions_are_undone_by_their_inverses(data, hidden, rng):
    X, Y = data
    problem = Problem(X, Y, coordinates="whitened")
    rank = problem.d_in
    for source, destination in (
        ("whitened", "data"),
        ("whitened", "reduced"),
        ("reduced", "data"),
        ("reduced", "whitened"),
    ):
        net = LayerTuple(draw_weights(problem.widths(hidden), rng))
        back = problem.convert(problem.convert(net, source, destination), destination, source)
        # Scaling by S_X and back, orthogonal factors: condition number below 20.
        assert relative_error(back.weights, net.weights) < 1e-13
    # From the data and back the first layer is projected on the range of X.
    weights = draw_weights((len(X), *hidden, len(Y)), rng)
    projection = X @ np.linalg.pinv(X, rcond=1e-12)
    assert np.linalg.matrix_rank(projection) == rank
    for destination in ("reduced", "whitened"):
        back = problem.convert(problem.convert(LayerTuple(weights), "data", destination), destination, "data")
        assert relative_error(back.weights, [weights[0] @ projection, *weights[1:]]) < 1e-12  # the pseudo-inverse too


def test_conversions_compose(rng):
    X, Y = DATA["tall"](rng)
    problem = Problem(X, Y)
    net = LayerTuple(draw_weights(problem.widths([3]), rng))
    direct = problem.convert(net, "data", "whitened")
    by_steps = problem.convert(problem.convert(net, "data", "reduced"), "reduced", "whitened")
    assert relative_error(by_steps.weights, direct.weights) < 1e-14  # the same three factors
    assert problem.convert(net, "data", "data") is net


def test_batches_are_converted_network_by_network(rng):
    X, Y = duplicated_features(rng)
    problem = Problem(X, Y)
    weights = [rng.normal(size=(6, 3, 5)), rng.normal(size=(6, 2, 3))]
    batch = problem.convert(LayerTuple(weights), "data", "whitened")
    assert batch.batch_shape == (6,)
    for k in range(6):
        one = problem.convert(LayerTuple([w[k] for w in weights]), "data", "whitened")
        # Batched and single products may sum in another order.
        assert relative_error([w[k] for w in batch.weights], one.weights) < 1e-14


def test_in_coordinates(rng):
    X, Y = duplicated_features(rng)
    problem = Problem(X, Y)
    assert problem.in_coordinates("data") is problem
    whitened, direct = problem.in_coordinates("whitened"), Problem(X, Y, coordinates="whitened")
    assert problem.coordinates == "data"  # the original is left alone
    assert whitened.coordinates == "whitened"
    # The same decomposition on the same machine.
    np.testing.assert_array_equal(whitened.target, direct.target)
    np.testing.assert_array_equal(whitened.in_coordinates("data").design, problem.design)
    assert whitened.widths([7]) == (3, 7, 2)
    with pytest.raises(ValueError, match="data, reduced, whitened; got 'white'"):
        problem.in_coordinates("white")
    with pytest.raises(ValueError, match="data, reduced, whitened; got 'white'"):
        Problem(X, Y, coordinates="white")


def test_isometric_coordinates(rng):
    """Whitened problems stay; the others become reduced, whose design is diagonal and whose flow is that of the data."""
    problem = Problem(*duplicated_features(rng))
    reduced, whitened = problem.isometric(), problem.in_coordinates("whitened")
    assert reduced.coordinates == "reduced"
    assert reduced.isometric() is reduced
    assert whitened.isometric() is whitened
    for diagonal in (reduced, whitened):
        np.testing.assert_array_equal(diagonal.design, np.diag(np.diagonal(diagonal.design)))


# -- two flows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [(), (3,), (4, 2)])
def test_the_reduced_flow_is_the_data_flow_up_to_an_isometry(data, hidden, rng):
    """The isometry maps gradient to gradient: reduction and flow commute."""
    X, Y = data
    problem, reduced = Problem(X, Y), Problem(X, Y, coordinates="reduced")
    net = LayerTuple(draw_weights(problem.widths(hidden), rng))
    gradient = problem.gradient(net)
    moved = problem.convert(gradient, "data", "reduced")
    expected = reduced.gradient(reduced.convert(net, "data", "reduced"))
    # Orthogonal changes of basis: a few dozen roundings.
    assert relative_error(moved.weights, expected.weights) < 1e-13
    assert float(moved.norm()) == pytest.approx(float(gradient.norm()), rel=1e-13)  # an isometry on gradients


@pytest.mark.parametrize("hidden", [(3,), (4, 2)])
def test_the_whitened_flow_is_another_one_unless_the_inputs_are_orthonormal(hidden, rng):
    X, Y = DATA["tall"](rng)
    orthonormal = np.linalg.qr(X.T)[0].T
    errors = []
    for inputs in (X, orthonormal):
        problem, whitened = Problem(inputs, Y), Problem(inputs, Y, coordinates="whitened")
        net = LayerTuple(draw_weights(problem.widths(hidden), rng))
        moved = problem.convert(problem.gradient(net), "data", "whitened")
        errors.append(
            relative_error(moved.weights, whitened.gradient(whitened.convert(net, "data", "whitened")).weights)
        )
    assert errors[0] > 0.1  # XXᵀ is about 30 times the identity here
    assert errors[1] < 1e-13  # XXᵀ = I up to eps: the conversion is an isometry
