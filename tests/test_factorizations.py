"""Small dense factorisations against NumPy's LAPACK, exact arithmetic and matrices made to measure."""

import fractions
import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdflow import factorizations
from gdflow.factorizations import (
    NARROW,
    column_lengths,
    determinant_sign,
    orthogonalize_columns,
    orthonormal,
    singular_values,
    symmetric_eigen,
)

EPS = float(np.finfo(np.float64).eps)
#: Backward stable algorithms are wrong by a modest multiple of the dimension times `EPS`: a dozen rotations or reflections of
#: every entry, a few roundings each.
MULTIPLE = 20

#: Shapes on both sides of `NARROW`, columns at most rows; few, since each compiles anew.
SHAPES = ((1, 1), (3, 1), (2, 2), (3, 3), (5, 3), (NARROW, NARROW), (7, NARROW), (12, 9), (12, 12))


def matrices(rng: np.random.Generator, m: int, n: int) -> np.ndarray:
    """A batch of `(m, n)` matrices: random, of low rank, zero, with repeated columns, graded, and of extreme size."""
    random = rng.normal(size=(3, m, n))
    k = max(n // 2, 1)
    low_rank = rng.normal(size=(m, k)) @ rng.normal(size=(k, n))
    repeated = np.repeat(rng.normal(size=(m, 1)), n, axis=1)
    columns = rng.normal(size=(m, n)) * np.logspace(0, -30, n)
    rows = rng.normal(size=(m, n)) * np.logspace(-30, 0, m)[:, None]
    one_zero = rng.normal(size=(m, n)) * (np.arange(n) != n // 2)
    orthogonal = np.linalg.qr(rng.normal(size=(m, n)))[0]
    special = [low_rank, np.zeros((m, n)), repeated, columns, rows, one_zero, orthogonal, np.eye(m, n), np.ones((m, n))]
    return np.stack([*random, *special, 1e150 * random[0], 1e-150 * random[1]])


@functools.cache
def batched(function):
    return jax.jit(jax.vmap(function))


def sizes(A: np.ndarray) -> np.ndarray:
    """Spectral norms of a batch, 1 for zero, so that errors can be divided by them."""
    norms = np.linalg.norm(A, ord=2, axis=(1, 2))
    return np.where(norms == 0, 1.0, norms)


# QR.


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_orthonormal_is_the_q_of_a_qr_with_positive_diagonal(m, n, rng):
    A = matrices(rng, m, n)
    Q = np.asarray(batched(orthonormal)(A))
    assert np.max(np.abs(Q.mT @ Q - np.eye(n))) < MULTIPLE * n * EPS  # of whatever rank
    A = A / sizes(A)[:, None, None]
    R = Q.mT @ A
    assert np.max(np.abs(np.tril(R, -1))) < MULTIPLE * m * EPS  # backward stable: QR is A up to round-off
    assert np.max(np.abs(Q @ R - A)) < MULTIPLE * m * EPS
    assert np.min(np.diagonal(R, axis1=1, axis2=2)) > -MULTIPLE * m * EPS
    # Unique for full rank: LAPACK's with signs put right, as in jax.random.orthogonal.
    for a, q in zip(A[:3], Q[:3], strict=True):
        q_lapack, r = np.linalg.qr(a)
        np.testing.assert_allclose(q, q_lapack * np.sign(np.diag(r)), atol=MULTIPLE * m * EPS * np.linalg.cond(a))


# Jacobi rotations.


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_singular_values_are_lapacks(m, n, rng):
    A = matrices(rng, m, n)
    found = np.asarray(batched(singular_values)(A))
    expected = np.linalg.svd(A / sizes(A)[:, None, None], compute_uv=False)
    np.testing.assert_allclose(found / sizes(A)[:, None], expected, rtol=0, atol=MULTIPLE * n * EPS)
    assert np.all(np.diff(found, axis=1) <= 0)


def test_singular_values_of_wide_matrices_are_those_of_the_transposed(rng):
    A = rng.normal(size=(3, 5))
    np.testing.assert_array_equal(singular_values(jnp.asarray(A)), singular_values(jnp.asarray(A.T)))


@pytest.mark.parametrize(("m", "n"), [(4, 4), (7, 5), (12, 10)])
def test_one_sided_jacobi_is_accurate_relative_to_every_singular_value(m, n, rng):
    # A = BD with orthonormal B has the singular values D, over 300 orders of magnitude; a shuffled D makes the rotations work.
    B = np.linalg.qr(rng.normal(size=(m, n)))[0]
    D = rng.permutation(np.logspace(-150, 150, n))
    AJ, J = (np.asarray(x) for x in jax.jit(orthogonalize_columns)(B * D))
    np.testing.assert_allclose(
        np.sort(np.asarray(column_lengths(jnp.asarray(AJ)))), np.sort(D), rtol=MULTIPLE * m * EPS
    )
    assert np.max(np.abs(J.T @ J - np.eye(n))) < MULTIPLE * n * EPS
    # A well-conditioned B that is not orthogonal: all cosines of the result vanish, whatever the lengths.
    B = np.eye(m, n) + 0.2 * rng.uniform(-1, 1, size=(m, n)) / n
    AJ = np.asarray(jax.jit(orthogonalize_columns)(B * D)[0])
    unit = AJ / np.asarray(column_lengths(jnp.asarray(AJ)))
    assert np.max(np.abs(unit.T @ unit - np.eye(n))) < MULTIPLE * m * EPS
    # |det| is kept, and is known from B and D: the product of the lengths, in logarithms.
    if m == n:
        logdet = np.linalg.slogdet(B)[1] + np.sum(np.log(D))
        np.testing.assert_allclose(np.sum(np.log(column_lengths(jnp.asarray(AJ)))), logdet, atol=1e-10)


@pytest.mark.parametrize("d", sorted({n for _, n in SHAPES} | {4, 5}))
def test_symmetric_eigen_is_lapacks(d, rng):
    A = matrices(rng, d, d)
    # Positive definite, indefinite, of low rank, with multiple eigenvalues, diagonal.
    S = np.concatenate([A + A.mT, (A[:-2].mT @ A[:-2]), np.eye(d)[None], np.diag(np.arange(d) - 1.0)[None]])
    values, V = (np.asarray(x) for x in batched(symmetric_eigen)(S))
    size = sizes(S)
    S, values = S / size[:, None, None], values / size[:, None]
    np.testing.assert_allclose(np.sort(values), np.linalg.eigvalsh(S), rtol=0, atol=MULTIPLE * d * EPS)
    assert np.max(np.abs(V.mT @ V - np.eye(d))) < MULTIPLE * d * EPS
    assert np.max(np.abs((V * values[:, None, :]) @ V.mT - S)) < MULTIPLE * d * EPS


def test_a_result_does_not_depend_on_its_neighbours(rng):
    # A batch goes on until the slowest matrix has converged; the others stand still meanwhile.
    easy, hard = np.diag([3.0, 2.0, 1.0]) + 1e-3, rng.normal(size=(3, 3))
    for function in (singular_values, lambda S: symmetric_eigen(S)[0]):
        alone = np.asarray(jax.jit(jax.vmap(function))(np.stack([easy, easy])))[0]
        beside = np.asarray(jax.jit(jax.vmap(function))(np.stack([easy, hard + hard.T])))[0]
        np.testing.assert_array_equal(alone, beside)


# Determinants.


def exact_sign(A: np.ndarray) -> int:
    """The sign of the determinant of the floating-point matrix, by elimination in rational numbers."""
    rows = [[fractions.Fraction(float(x)) for x in row] for row in A]
    sign = 1
    for j in range(len(rows)):
        p = next((i for i in range(j, len(rows)) if rows[i][j]), None)
        if p is None:
            return 0
        if p != j:
            rows[j], rows[p], sign = rows[p], rows[j], -sign
        sign *= 1 if rows[j][j] > 0 else -1
        for i in range(j + 1, len(rows)):
            factor = rows[i][j] / rows[j][j]
            rows[i] = [a - factor * b for a, b in zip(rows[i], rows[j], strict=True)]
    return sign


def of_condition(rng: np.random.Generator, d: int, condition: float) -> np.ndarray:
    U, V = (np.linalg.qr(rng.normal(size=(d, d)))[0] for _ in range(2))
    return U * np.logspace(0, -np.log10(condition), d) @ V


@given(st.sampled_from((1, 2, 3, 5, 8)), st.integers(0, 2**32 - 1))
def test_determinant_sign_is_never_wrong(d, seed):
    # Conditions up to and beyond round-off: where a sign is given it is the exact one.
    rng = np.random.default_rng(seed)
    A = np.stack([of_condition(rng, d, 10.0**k) for k in range(20)] if d > 1 else rng.normal(size=(20, 1, 1)))
    signs = np.asarray(batched(determinant_sign)(A))
    exact = np.array([exact_sign(a) for a in A])
    assert np.all((signs == 0) | (signs == exact))
    assert np.all(signs[:12] == exact[:12])  # decided up to a condition of 10¹¹


@given(st.integers(0, 2**32 - 1))
def test_determinant_sign_of_matrices_next_to_singular_ones(seed):
    # Integer matrices of determinant 0, and their neighbours in floating point: the exact sign of these is anything.
    rng = np.random.default_rng(seed)
    A = rng.integers(-5, 6, size=(40, 3, 3)).astype(float)
    A[:, 2] = A[:, 0] + A[:, 1]
    assert np.all(np.asarray(batched(determinant_sign)(A)) == 0)
    near = A * (1 + EPS * rng.integers(-4, 5, size=A.shape))
    signs = np.asarray(batched(determinant_sign)(near))
    assert np.all((signs == 0) | (signs == [exact_sign(a) for a in near]))


@pytest.mark.parametrize("d", [2, 3, 5])
def test_determinant_sign_does_not_mind_scales(d, rng):
    A = rng.normal(size=(50, d, d))
    exact = [exact_sign(a) for a in A]
    rows, columns = (10.0 ** rng.uniform(-70, 70, size=(50, d)) for _ in range(2))
    for scaled in (A, 1e150 * A, 1e-150 * A, A * rows[:, :, None], A * rows[:, :, None] * columns[:, None, :]):
        np.testing.assert_array_equal(batched(determinant_sign)(scaled), exact)


@pytest.mark.slow
def test_determinant_sign_of_permutations_and_what_cannot_be_decided():
    for permutation in ([0, 1, 2, 3], [1, 0, 2, 3], [1, 2, 0, 3], [3, 2, 1, 0], [1, 2, 3, 0], [2, 3, 1, 0]):
        P = np.eye(4)[permutation]
        assert int(determinant_sign(jnp.asarray(P))) == exact_sign(P) == round(np.linalg.det(P))
    for A in (
        np.zeros((3, 3)),
        np.ones((3, 3)),
        np.full((2, 2), np.nan),
        np.diag([1.0, np.inf]),
        np.diag([1.0, 0.0, 1.0]),
    ):
        assert int(determinant_sign(jnp.asarray(A))) == 0
    # Subnormal numbers are flushed to zero, so that the sign of this determinant is beyond the arithmetic.
    assert int(determinant_sign(jnp.asarray([[1e-300, 1e-310], [1e-300, 2e-310]]))) == 0


def test_determinant_sign_of_wide_layers(rng):
    A = np.stack([of_condition(rng, 64, 10.0**k) for k in (2, 5, 8, 10)] + [of_condition(rng, 64, 1e18)])
    signs = np.asarray(batched(determinant_sign)(A))
    # LAPACK's elimination is right for certain at these conditions.
    np.testing.assert_array_equal(signs[:4], np.linalg.slogdet(A[:4])[0])
    assert signs[4] == 0


# What the module is for.


@pytest.mark.parametrize("d", [2, NARROW])
def test_no_lapack_in_batches_of_narrow_matrices(d):
    def everything(A):
        return (
            orthonormal(A),
            singular_values(A),
            symmetric_eigen(A + A.T),
            orthogonalize_columns(A),
            determinant_sign(A),
        )

    text = jax.jit(jax.vmap(everything)).lower(np.ones((10, d, d))).as_text()
    assert "lapack" not in text


def test_wide_matrices_go_to_lapack_one_at_a_time():
    d = NARROW + 1

    def everything(A):
        return orthonormal(A), singular_values(A), symmetric_eigen(A + A.T)

    lines = jax.jit(jax.vmap(everything)).lower(np.ones((10, d, d))).as_text().splitlines()
    calls = [line for line in lines if "custom_call @lapack" in line]
    assert calls
    assert not any(f"tensor<10x{d}x{d}" in line for line in calls)
    assert "lapack" not in jax.jit(jax.vmap(determinant_sign)).lower(np.ones((10, d, d))).as_text()


def test_sweeps_suffice(rng, monkeypatch):
    # With full rank the bound on the sweeps is never what ends them: half of it gives the same numbers. (In a singular matrix
    # columns of round-off are turned into ever smaller ones, to no effect on the others.)
    A = matrices(rng, 5, 5)[[0, 1, 2, 6, 9, 12, 13]]
    full = np.asarray(jax.vmap(singular_values)(A))
    monkeypatch.setattr(factorizations, "SWEEPS", factorizations.SWEEPS // 2)
    np.testing.assert_array_equal(jax.vmap(singular_values)(A), full)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (orthonormal, r"at least as many rows as columns, got shape \(2, 3\)"),
        (symmetric_eigen, r"one square matrix is needed here, got shape \(2, 3\)"),
        (determinant_sign, r"one square matrix is needed here, got shape \(2, 3\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(function, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for users, without the tests' type checker
    with pytest.raises(ValueError, match=message):
        function(jnp.ones((2, 3)))
