"""The reduction of the samples and the singular values of the data, against the raw data and against 60 digits."""

import math

import mpmath
import numpy as np
import pytest
from raw_data import (
    DATA,
    WELL_POSED,
    centred_classes,
    draw_weights,
    duplicated_features,
    inverse_root,
    raw_loss,
    relative_error,
)

from gdflow.network import LayerTuple
from gdflow.problem import Problem, critical_values

EPS = 2.0**-52


def test_offset_is_the_residual_of_least_squares(data):
    X, Y = data
    W = np.linalg.lstsq(X.T, Y.T, rcond=1e-12)[0].T
    # Beside ½‖Y‖²: where the data can be fitted exactly the residual is round-off.
    assert float(Problem(X, Y).offset) == pytest.approx(0.5 * np.sum((Y - W @ X) ** 2), abs=1e-13 * np.sum(Y**2))


def test_reduction_keeps_the_second_moments(data):
    X, Y = data
    problem = Problem(X, Y)
    A, D = np.asarray(problem.target), np.asarray(problem.design)
    assert D.shape[1] <= min(X.shape)
    # The same sums of at most 40 products after an orthogonal transformation.
    assert relative_error(D @ D.T, X @ X.T) < 1e-13
    assert relative_error(A @ D.T, Y @ X.T) < 1e-13


def test_null_directions_of_the_features_never_move(rng):
    X, Y = duplicated_features(rng)
    problem = Problem(X, Y)
    null = np.array([[1, 0, 0, -1, 0], [0, 1, -1, 0, -1]]).T
    assert np.abs(null.T @ X).max() < 1e-15  # the second by one rounded subtraction
    gradient = problem.gradient(LayerTuple(draw_weights(problem.widths([4]), rng)))
    first = np.asarray(gradient.weights[0])
    # Round-off of a projection beside the gradient itself.
    assert np.abs(first @ null).max() < 1e-14 * np.linalg.norm(first)
    assert problem.info.rank_x.rank == 3
    assert problem.in_coordinates("whitened").d_in == problem.in_coordinates("reduced").d_in == 3
    assert problem.d_in == 5
    assert any("rank 3 < d_x = 5" in note for note in problem.info.notes)


def test_more_features_than_samples_are_reduced_to_the_samples(rng):
    X, Y = DATA["wide"](rng)
    problem = Problem(X, Y, coordinates="whitened")
    assert (problem.d_in, problem.d_out) == (3, 2)
    assert any("rank 3 < d_x = 5" in note for note in problem.info.notes)
    assert not Problem(*DATA["tall"](rng)).info.notes[1:]  # nothing but the reduction of the samples


@pytest.mark.parametrize("case", WELL_POSED)
def test_singular_values_are_those_of_the_whitened_target(case, rng):
    """Of `Q = YXᵀ(XXᵀ)^{-1/2}`, by eigenvectors of `XXᵀ`."""
    X, Y = DATA[case](rng)
    expected = np.linalg.svd(Y @ X.T @ inverse_root(X @ X.T), compute_uv=False)
    # The Gram matrix squares a condition number below 20, so a few hundred eps of the largest.
    np.testing.assert_allclose(Problem(X, Y).singular_values, expected, rtol=0, atol=1e-12 * expected[0])


def test_centred_classes_have_exactly_one_zero_singular_value(rng):
    X, Y = centred_classes(rng)
    problem = Problem(X, Y)
    s = np.asarray(problem.singular_values)
    assert s.shape == (4,)
    assert s[3] == 0.0
    assert np.all(s[:3] > 0.1)
    assert problem.info.rank_y.rank == 3
    assert any("rank 3 of 4" in note for note in problem.info.notes)
    assert len(critical_values(problem, 4)) == 8  # subsets of three
    # Centring by the library does the same as centring by hand, up to its rounding.
    labels = np.arange(40) % 4
    by_library = Problem(X, np.eye(4)[:, labels], center=True)
    by_hand = Problem(X - X.mean(axis=1, keepdims=True), Y)
    np.testing.assert_allclose(by_library.singular_values, by_hand.singular_values, rtol=0, atol=1e-14 * s[0])
    assert by_library.singular_values[3] == 0.0


@pytest.mark.parametrize("r", [0, 1, 2])
def test_rank_of_the_effective_target(r, rng):
    """Targets `Y = BX + E` with `B` of rank r and `E` orthogonal to the rows of `X`: the noise must not raise the rank."""
    X = rng.normal(size=(4, 25))
    E = rng.normal(size=(3, 25))
    E -= E @ np.linalg.pinv(X) @ X
    problem = Problem(X, rng.normal(size=(3, r)) @ rng.normal(size=(r, 4)) @ X + E)
    s = np.asarray(problem.singular_values)
    assert np.count_nonzero(s) == r
    assert np.all(s[r:] == 0.0)
    assert problem.info.rank_y.rank == r
    # The part of E in the range of X is round-off.
    assert float(problem.offset) == pytest.approx(0.5 * np.sum(E**2), rel=1e-13)


def test_zero_targets(rng):
    problem = Problem(rng.normal(size=(3, 8)), np.zeros((2, 8)))
    assert problem.singular_values.tolist() == [0.0, 0.0]
    assert float(problem.offset) == 0.0
    assert critical_values(problem, 2).values.tolist() == [0.0]
    assert {a.name[:2]: a.holds for a in problem.report().assumptions}["A3"] is False


# -- accuracy ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", [1e2, 1e6, 1e10])
def test_singular_values_of_ill_conditioned_data(condition, rng):
    """Against 60 digits. The route by the Gram matrix loses what lies below √eps of the largest; this one must not."""
    d_x, d_y, m = 4, 2, 50
    frame, _ = np.linalg.qr(rng.normal(size=(m, d_x)))
    rotation, _ = np.linalg.qr(rng.normal(size=(d_x, d_x)))
    X, Y = (rotation * np.geomspace(1, 1 / condition, d_x)) @ frame.T, rng.normal(size=(d_y, m))
    with mpmath.workdps(60):
        x, y = mpmath.matrix(X.tolist()), mpmath.matrix(Y.tolist())
        square = x * x.T
        exact_x = sorted((float(mpmath.sqrt(v)) for v in mpmath.eigsy(square, eigvals_only=True)), reverse=True)
        cross = y * x.T
        squares = mpmath.eigsy(cross * square**-1 * cross.T, eigvals_only=True)
        exact_s = sorted((float(mpmath.sqrt(v)) for v in squares), reverse=True)
    problem = Problem(X, Y)
    assert problem.info.rank_x.rank == d_x
    # Backward error of Householder QR and of the decomposition: a small multiple of eps times the largest.
    tolerance = 30 * EPS * exact_x[0]
    np.testing.assert_allclose(problem.spectrum.S_X, exact_x, rtol=0, atol=tolerance)
    # That perturbation turns the row space of X, on which Y is projected, by eps times the condition number.
    np.testing.assert_allclose(problem.singular_values, exact_s, rtol=0, atol=30 * EPS * condition * np.linalg.norm(Y))
    if condition == 1e10:  # the bound above tells the two routes apart
        by_gram = np.sqrt(np.abs(np.linalg.eigvalsh(X @ X.T)[0]))
        assert abs(by_gram - exact_x[-1]) > 1e3 * tolerance


def test_a_million_samples(rng):
    m = 10**6
    X, Y = rng.normal(size=(3, m)), rng.normal(size=(2, m))
    Y += 0.1 * X[:2]
    problem = Problem(X, Y, coordinates="whitened")
    assert problem.design.shape == (3, 3)
    assert problem.info.m == m
    _, S_X, V_Xt = np.linalg.svd(X, full_matrices=False)
    # Sums over 10⁶ samples in another order: the error of a sum grows like √m eps, 1e-13 of the largest.
    np.testing.assert_allclose(problem.spectrum.S_X, S_X, rtol=1e-12)
    expected = np.linalg.svd(Y @ V_Xt.T, compute_uv=False)
    np.testing.assert_allclose(problem.singular_values, expected, rtol=0, atol=1e-12 * np.linalg.norm(Y))
    weights = draw_weights((3, 2), rng)
    net = problem.convert(LayerTuple(weights), "data", "whitened")
    assert float(problem.total_loss(net)) == pytest.approx(raw_loss(weights, X, Y), rel=1e-12)


@pytest.mark.parametrize("m", [65535, 65536, 65537, 131073])
def test_numbers_of_samples_around_the_block_size(m, rng):
    X, Y = rng.normal(size=(2, m)), rng.normal(size=(1, m))
    problem = Problem(X, Y)
    # As above, with fewer samples.
    assert relative_error(problem.design @ problem.design.T, X @ X.T) < 1e-12
    assert relative_error(problem.target @ problem.design.T, Y @ X.T) < 1e-12 * math.sqrt(m)  # beside ‖X‖‖Y‖ ~ m
