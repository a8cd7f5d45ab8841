"""The operator 𝒜 against its defining sum, its inverse, the two forms of the metric, and derivatives at degenerate points."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import gdflow as gf
from gdflow import manifold

SHAPES = [((3, 5), 2), ((5, 3), 3), ((4, 4), 4), ((4, 4), 1)]


def random_point(shape, rank, seed):
    """A matrix of given rank with singular values between 0.5 and 2, and two arbitrary matrices."""
    rng = np.random.default_rng(seed)
    U, V = (np.linalg.qr(rng.normal(size=(n, rank)))[0] for n in shape)
    W = (U * rng.uniform(0.5, 2.0, rank)) @ V.T
    return tuple(map(jnp.asarray, (W, rng.normal(size=shape), rng.normal(size=shape))))


def power(S, p):
    """A power of a symmetric positive semidefinite matrix by Schur decomposition, round-off of zero taken for zero."""
    values, U = scipy.linalg.eigh(np.asarray(S))
    values = np.where(values > 1e-13 * values.max(), values, 0.0)
    return np.eye(len(values)) if p == 0 else (U * values**p) @ U.T


@pytest.mark.parametrize(("shape", "rank"), SHAPES)
@pytest.mark.parametrize("depth", [2, 3, 5, 20])
def test_operator_is_the_sum_of_powers(shape, rank, depth):
    W, Z, _ = random_point(shape, rank, 1)
    left, right = W @ W.T, W.T @ W
    expected = sum(
        power(left, (depth - j) / depth) @ np.asarray(Z) @ power(right, (j - 1) / depth) for j in range(1, depth + 1)
    )
    # Powers of the small eigenvalues lose what squaring W lost: 1e-16 relative to the largest.
    np.testing.assert_allclose(manifold.apply_operator(W, Z, depth), expected, atol=1e-11 * depth)


@pytest.mark.parametrize(("shape", "rank"), SHAPES)
@pytest.mark.parametrize("depth", [2, 2.5, 3, 20])
def test_operator_is_self_adjoint_positive_with_image_the_tangent_space(shape, rank, depth):
    W, Z1, Z2 = random_point(shape, rank, 2)
    A1, A2 = (manifold.apply_operator(W, Z, depth) for Z in (Z1, Z2))
    np.testing.assert_allclose(jnp.sum(A1 * Z2), jnp.sum(Z1 * A2), rtol=1e-12)
    columns = [manifold.apply_operator(W, E, depth) for E in jnp.eye(math.prod(shape)).reshape(-1, *shape)]
    matrix = np.stack([np.ravel(c) for c in columns])
    dimension = rank * (sum(shape) - rank)
    values = np.linalg.eigvalsh(matrix)[::-1]
    assert values[dimension - 1] > 1e-3
    np.testing.assert_allclose(values[dimension:], 0.0, atol=1e-12 * values[0])
    # The image: tangent vectors UA + BVᵀ, independently of the projection in the library.
    U, _, Vt = np.linalg.svd(np.asarray(W))
    P, Q = U[:, :rank] @ U[:, :rank].T, Vt[:rank].T @ Vt[:rank]
    tangent = P @ Z1 + Z1 @ Q - P @ Z1 @ Q
    np.testing.assert_allclose(manifold.project_tangent(W, Z1), tangent, atol=1e-13)
    np.testing.assert_allclose(manifold.project_tangent(W, A1), A1, atol=1e-12 * np.abs(A1).max())


@pytest.mark.parametrize(("shape", "rank"), SHAPES)
@pytest.mark.parametrize("depth", [2, 2.5, 3, 20])
def test_inverse_and_both_forms_of_the_metric(shape, rank, depth):
    W, Z1, Z2 = random_point(shape, rank, 3)
    T1, T2 = (manifold.project_tangent(W, Z) for Z in (Z1, Z2))
    back = manifold.invert_operator(W, manifold.apply_operator(W, T1, depth), depth)
    np.testing.assert_allclose(back, T1, atol=1e-12)
    spectral = float(manifold.metric(W, T1, T2, depth))
    np.testing.assert_allclose(manifold.metric_by_integral(W, T1, T2, depth), spectral, rtol=1e-9)
    assert float(manifold.metric(W, T1, T1, depth)) > 0


@pytest.mark.parametrize("size", [1.0, 1e-120])
@pytest.mark.parametrize("depth", [2, 40, 150, 1000, 1e4])
def test_both_forms_of_the_metric_at_great_depth(depth, size):
    """The integrand falls off over `26N` units of `ln t`: far beyond the range of doubles for `t` itself."""
    W, Z1, Z2 = random_point((4, 3), 2, 9)
    T1, T2 = (manifold.project_tangent(W, Z) for Z in (Z1, Z2))
    # Of a scaled matrix by homogeneity, in degree 2/N − 2.
    expected = float(manifold.metric(W, T1, T2, depth)) * size ** (2 / depth - 2)
    np.testing.assert_allclose(manifold.metric_by_integral(size * W, T1, T2, depth), expected, rtol=1e-9)


def test_real_depth_interpolates_and_tends_to_the_logarithmic_mean():
    W, Z, _ = random_point((4, 4), 4, 4)
    # The quotient form, used for real N, beside the sum, used for integer N: continuous in N.
    np.testing.assert_allclose(manifold.apply_operator(W, Z, 3 + 1e-9), manifold.apply_operator(W, Z, 3), rtol=1e-7)
    limit = manifold.apply_operator(W, Z, math.inf)
    # K/N is the mean times 1 + O(1/N): ten times the depth, a tenth of the difference, up to the next order.
    errors = [float(jnp.abs(manifold.apply_operator(W, Z, N) / N - limit).max()) for N in (1e3, 1e4, 1e5)]
    np.testing.assert_allclose(np.divide(errors[1:], errors[:-1]), 0.1, rtol=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("values", [(2.0, 2.0, 0.5), (2.0, 2.0, 2.0), (2.0, 1.0, 0.0), (2.0, 2.0, 0.0)])
@pytest.mark.parametrize("depth", [2, 4])
def test_derivatives_at_repeated_and_zero_singular_values(values, depth):
    rng = np.random.default_rng(5)
    W = jnp.zeros((3, 4)).at[jnp.arange(3), jnp.arange(3)].set(jnp.array(values))
    Z = jnp.asarray(rng.normal(size=(3, 4)))
    rank = sum(v > 0 for v in values)
    # A curve of constant rank through W: rotations and growth.
    K, L = (rng.normal(size=(n, n)) for n in (3, 4))

    def curve(e):
        return jnp.asarray(scipy.linalg.expm(e * K) @ np.asarray(W) @ scipy.linalg.expm(e * L))

    D = jnp.asarray(K @ np.asarray(W) + np.asarray(W) @ L)

    def f(W):
        return jnp.sum(jnp.sin(manifold.apply_operator(W, Z, depth, rank=rank)))

    e = 1e-5
    # Central differences: error e²·f''' plus round-off over e.
    expected = (f(curve(e)) - f(curve(-e))) / (2 * e)
    np.testing.assert_allclose(jax.jvp(f, (W,), (D,))[1], expected, rtol=1e-6, atol=1e-8)
    gradient = jax.grad(f)(W)
    assert np.all(np.isfinite(gradient))
    np.testing.assert_allclose(jnp.sum(gradient * D), expected, rtol=1e-6, atol=1e-8)


def test_what_cannot_be_differentiated_says_so():
    W, Z, _ = random_point((3, 3), 3, 6)
    for f in (
        lambda W: jnp.sum(manifold.apply_operator(W, Z, 2.5)),
        lambda W: jnp.sum(manifold.project_tangent(W, Z)),
        lambda W: manifold.metric(W, Z, Z, 3),
    ):
        with pytest.raises(NotImplementedError):
            jax.grad(f)(W)
    with pytest.raises(NotImplementedError):
        jax.hessian(lambda W: jnp.sum(manifold.apply_operator(W, Z, 3)))(W)


def test_hessian_form_is_the_second_derivative_along_the_manifold():
    rng = np.random.default_rng(7)
    problem = gf.Problem(rng.normal(size=(4, 9)), rng.normal(size=(3, 9)))
    W = np.asarray(manifold.fit(problem, (1, 3)))
    K, L = 0.3 * rng.normal(size=(3, 3)), 0.3 * rng.normal(size=(4, 4))

    def loss(e):
        return float(problem.end_to_end_loss(jnp.asarray(scipy.linalg.expm(e * K) @ W @ scipy.linalg.expm(e * L))))

    e = 1e-3
    # Fourth-order differences: error e⁴ and round-off over e², both about 1e-9.
    second = (-loss(2 * e) + 16 * loss(e) - 30 * loss(0) + 16 * loss(-e) - loss(-2 * e)) / (12 * e**2)
    form = manifold.riemannian_hessian_form(problem, jnp.asarray(W), jnp.asarray(K @ W + W @ L))
    np.testing.assert_allclose(form, second, rtol=1e-6, atol=1e-6)
    # {1,3} is a saddle of L¹ on M_2: rotating the fit of s_3 towards s_2 lowers the loss.
    assert manifold.riemannian_hessian_form(problem, *_swap(problem, (1, 3), 3, 2)) < 0
    assert manifold.riemannian_hessian_form(problem, *_swap(problem, (1, 2), 2, 3)) > 0


def _swap(problem, subset, i, j):
    """The fit of a subset and the tangent vector that exchanges `s_i` for `s_j`, both in data coordinates."""
    rotation = np.zeros((problem.d_out, problem.d_out))
    rotation[j - 1, i - 1] = 1.0
    f = problem.decomposition
    white = np.asarray(f.Sigma_Y) * np.isin(np.arange(1, problem.d_out + 1), subset)[:, None]
    generator = np.zeros((f.V_Y.shape[0],) * 2)
    generator[j - 1, i - 1], generator[i - 1, j - 1] = 1.0, -1.0
    K = rotation - rotation.T
    direction = jnp.asarray(K @ white - white @ generator)
    back = problem.convert(gf.LayerTuple([direction]), "whitened", problem.coordinates).weights[0]
    return manifold.fit(problem, subset), back


@pytest.mark.parametrize("coordinates", ["data", "reduced", "whitened"])
def test_fits_are_critical_on_the_manifold_and_the_best_one_is_the_truncated_svd(coordinates):
    rng = np.random.default_rng(8)
    X, Y = rng.normal(size=(4, 9)), rng.normal(size=(3, 9))
    problem = gf.Problem(X, Y, coordinates=coordinates)
    for subset in ((1,), (2,), (1, 3), (1, 2, 3)):
        W = manifold.fit(problem, subset)
        assert float(jnp.linalg.norm(manifold.riemannian_gradient(problem, W, 3, rank=len(subset)))) < 1e-12
    if coordinates == "data":
        G = X @ X.T
        root = scipy.linalg.sqrtm(np.linalg.inv(G))
        U, s, Vt = np.linalg.svd(Y @ X.T @ root)
        np.testing.assert_allclose(manifold.best_fit(problem, 2), (U[:, :2] * s[:2]) @ Vt[:2] @ root, atol=1e-12)


def test_errors():
    problem = gf.Problem.from_singular_values([2, 1, 0], d_x=3)
    with pytest.raises(ValueError, match="target has rank 2: L¹ has no minimum on the matrices of rank 3"):
        manifold.best_fit(problem, 3)
    with pytest.raises(ValueError, match="indices of singular values, 1 to 3"):
        manifold.fit(problem, (4,))
    for depth in (0, 1.5, -2, math.nan):
        with pytest.raises(ValueError, match="depth N must be 1, a real number from 2 on"):
            manifold.apply_operator(jnp.eye(2), jnp.eye(2), depth)
    with pytest.raises(ValueError, match="not invertible"):
        manifold.invert_operator(jnp.eye(2), jnp.eye(2), math.inf)
    with pytest.raises(ValueError, match="finite N ≥ 2"):
        manifold.metric_by_integral(np.eye(2), np.eye(2), np.eye(2), math.inf)
