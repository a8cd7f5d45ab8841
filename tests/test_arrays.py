"""The arrays that a problem is made of: what is accepted, what is refused, and how rows are standardised."""

import numpy as np
import pytest
from raw_data import relative_error

from gdflow.problem import Problem


def test_standardisation(rng):
    X, Y = 5 + 3 * rng.normal(size=(3, 30)), rng.normal(size=(2, 30)) - 7
    for center, scale in ((True, False), (False, True), (True, True)):
        problem = Problem(X, Y, center=center, scale=scale)
        A, B = (
            (a - center * a.mean(axis=1, keepdims=True)) / (a.std(axis=1, keepdims=True) if scale else 1)
            for a in (X, Y)
        )
        # Sums of 30 products.
        assert relative_error(problem.design @ problem.design.T, A @ A.T) < 1e-13
        assert relative_error(problem.target @ problem.design.T, B @ A.T) < 1e-12  # centring cancels a digit
        assert problem.info.notes[0].startswith("rows of X and Y were")
    assert not Problem(X[:, :4], Y[:, :4]).info.notes


def test_integers_are_accepted():
    X, Y = np.array([[1, 2, 3, 5], [0, -1, 4, 2]]), np.array([[3, 1, 0, 1]], dtype=np.int8)
    problem, floats = Problem(X, Y), Problem(X.astype(float), Y.astype(float))
    assert problem.target.dtype == np.float64
    np.testing.assert_array_equal(problem.target, floats.target)
    np.testing.assert_array_equal(problem.design, floats.design)
    np.testing.assert_array_equal(Problem(X.tolist(), Y.tolist()).design, floats.design)
    np.testing.assert_array_equal(Problem(X > 1, Y > 1).design, Problem((X > 1) * 1.0, (Y > 1) * 1.0).design)


def with_entry(value, row, column):
    array = np.ones((2, 5)) + np.arange(5)
    array[row, column] = value
    return array


GOOD = np.arange(10.0).reshape(2, 5)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (with_entry(np.nan, 1, 3), ValueError, "is nan at row 1, column .* 3; 1 such"),
        (with_entry(np.inf, 0, 4), ValueError, "is inf at row 0, column .* 4; 1 such"),
        (with_entry(-np.inf, 0, 0), ValueError, "is -inf at row 0, column .* 0; 1 such"),
        (GOOD * 1j, TypeError, "must hold real numbers, got dtype complex128"),
        (GOOD.astype(str), TypeError, "must hold real numbers"),
        (GOOD.astype(object), TypeError, "must hold real numbers"),
        (GOOD[0], ValueError, r"must be a matrix .* shape \(5,\)"),
        (GOOD[None], ValueError, r"must be a matrix .* shape \(1, 2, 5\)"),
        (np.array(1.0), ValueError, r"must be a matrix .* shape \(\)"),
        (np.zeros((0, 5)), ValueError, r"is empty: shape \(0, 5\)"),
        (np.zeros((2, 0)), ValueError, r"is empty: shape \(2, 0\)"),
    ],
)
def test_bad_arrays_are_named(bad, error, message):
    with pytest.raises(error, match=f"^X {message}"):
        Problem(bad, GOOD)
    with pytest.raises(error, match=f"^Y {message}"):
        Problem(GOOD, bad)


def test_lists_that_are_no_matrices_are_named():
    with pytest.raises(ValueError, match=r"\bX\b"):
        Problem([[1.0, 2.0], [3.0]], [[1.0, 2.0]])


def test_numbers_of_samples_must_agree():
    with pytest.raises(ValueError, match=r"X has 5 samples .* Y has 4; shapes \(2, 5\), \(2, 4\)"):
        Problem(GOOD, GOOD[:, :4])


def test_inputs_that_are_zero():
    with pytest.raises(ValueError, match=r"^X is zero$"):
        Problem(np.zeros((2, 5)), GOOD)
    with pytest.raises(ValueError, match="X is zero after centring"):
        Problem(GOOD[:, :1], GOOD[:, :1], center=True)


@pytest.mark.parametrize("m", [3, 7, 20])
def test_constant_inputs_are_zero_after_centring(m, rng):
    """The mean of several 0.1 is not 0.1: what is left is round-off, not data."""
    with pytest.raises(ValueError, match="X is zero after centring"):
        Problem(np.full((2, m), 0.1), rng.normal(size=(1, m)), center=True)


def test_constant_rows_cannot_be_scaled(rng):
    X, Y = rng.normal(size=(2, 7)), rng.normal(size=(1, 7))
    constant = np.vstack([X, np.full(7, 0.1)])
    for center in (True, False):
        with pytest.raises(ValueError, match="X: row 2 is constant"):
            Problem(constant, Y, center=center, scale=True)
        with pytest.raises(ValueError, match="X: 'third' is constant"):
            Problem(constant, Y, center=center, scale=True, features=["first", "second", "third"])
        with pytest.raises(ValueError, match="Y: 't' is constant"):
            Problem(X, constant[2:], center=center, scale=True, targets=["t"])
    Problem(constant, Y, center=True)  # a row of zeros: reduced to the others


def test_names_must_be_as_many_as_rows(rng):
    X, Y = rng.normal(size=(2, 7)), rng.normal(size=(1, 7))
    with pytest.raises(ValueError, match="features"):
        Problem(X, Y, features=["only one"])
    with pytest.raises(ValueError, match="targets"):
        Problem(X, Y, targets=["one", "two"])
