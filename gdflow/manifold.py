"""The manifold of end-to-end matrices of rank `k`, with the metric that balanced gradient flow induces on it.

Along a balanced start of depth `N` the end-to-end matrix follows `Ẇ = −𝒜_{W,N}(∇L¹(W))`, with `L¹` the loss of the
end-to-end matrix and, zeroth powers being the identity,

    𝒜_{W,N}(Z) = Σ_{j=1}^N (WWᵀ)^{(N−j)/N} Z (WᵀW)^{(j−1)/N}.

`𝒜` is self-adjoint with image the tangent space `T_W M_k` of the matrices of rank `k` and positive definite there, and the
flow is the Riemannian gradient flow for `g_W(Z_1, Z_2) = ⟨𝒜̄^{-1}Z_1, Z_2⟩` (Bah, Rauhut, Terstiege, Westdickenberg 2022;
Terstiege, Rauhut, Bah, Westdickenberg 2022). In singular coordinates `W = UΣVᵀ`, `UᵀZV` is multiplied entrywise by

    K(a, b) = Σ_{l=1}^N a^{(N−l)/N} b^{(l−1)/N} = (a − b)/(a^{1/N} − b^{1/N})

at the eigenvalues `a_i`, `b_j` of `WWᵀ`, `WᵀW`: this makes sense for every real `N`. As `N → ∞` (`depth=math.inf`),
`𝒜_{W,N}/N` tends to the multiplication by the logarithmic mean `(a − b)/(ln a − ln b)`; then row and column spaces do not
move, and the image is smaller than the tangent space.

*Which singular values are zero* matters: round-off of `10⁻¹⁶` has a 20th root of 0.16. They are those beyond `rank`, or, if
it is not given, those that `gdflow.ranks` takes for zero.

*Derivatives* do not go through singular vectors, where they are wrong or NaN at repeated values, but through divided
differences of the powers, which are exact at repeated and at zero singular values (along the manifold; across it they do
not exist and are taken to be zero). `apply_operator` has first derivatives for integer `N`; what has none says so.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import scipy.integrate
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from gdflow.network import LayerTuple, matmul
from gdflow.problem import Problem
from gdflow.ranks import decide_rank, zero_threshold


def check_depth(depth: float) -> float:
    """`depth` if it is 1, a real number from 2 on, or infinite; else a `ValueError`."""
    if isinstance(depth, bool) or not (depth == 1 or depth >= 2):
        raise ValueError(f"the depth N must be 1, a real number from 2 on, or math.inf; got {depth!r}")
    return depth


@jax.custom_jvp
def _singular(W: Array) -> tuple[Array, Array, Array]:
    """Full singular value decomposition `U, σ, V`."""
    U, sigma, Vt = jnp.linalg.svd(W, full_matrices=True)
    return U, sigma, Vt.T


@_singular.defjvp
def _(primals, tangents):
    raise NotImplementedError(
        "this would differentiate singular vectors, which is wrong at repeated singular values: apply_operator has first "
        "derivatives, for integer N; the other functions of gdflow.manifold have none"
    )


def _values(sigma: Array, shape: tuple[int, ...], rank: int | None) -> Array:
    """Singular values with those that count as zero set to zero."""
    if rank is not None:
        return jnp.where(jnp.arange(sigma.size) < rank, sigma, 0.0)
    eps = float(jnp.finfo(sigma.dtype).eps)
    return jnp.where(sigma > zero_threshold(1.0, max(shape), eps) * sigma[0], sigma, 0.0)


def _roots(sigma: Array, size: int, depth: float) -> Array:
    """`a^{1/N}` for the `size` eigenvalues `a = σ²` (infinite depth: `a`), zeros appended."""
    root = sigma**2 if math.isinf(depth) else sigma ** (2 / depth)
    return jnp.concatenate([root, jnp.zeros(size - sigma.size, sigma.dtype)])


def kernel(x: Float[Array, "*#n"], y: Float[Array, "*#n"], depth: float) -> Float[Array, "*n"]:
    """`K(a, b)` from `x = a^{1/N}`, `y = b^{1/N}` (infinite depth: from `a` and `b`); they broadcast."""
    if depth <= 64 and depth == int(depth):
        return homogeneous_sum(x, y, int(depth))
    high, low = jnp.maximum(x, y), jnp.minimum(x, y)
    # With u = ln(y/x): (x^N − y^N)/(x − y) = x^{N−1}(e^{Nu} − 1)/(e^u − 1), exact however close x and y are.
    inside = low > 0
    u = jnp.log(jnp.where(inside, low, 1.0) / jnp.where(inside, high, 1.0))
    apart = u < 0
    safe = jnp.where(apart, u, -1.0)
    if math.isinf(depth):
        return jnp.where(inside, high * jnp.where(apart, jnp.expm1(safe) / safe, 1.0), 0.0)
    quotient = jnp.where(apart, jnp.expm1(depth * safe) / jnp.expm1(safe), depth)
    return high ** (depth - 1) * jnp.where(inside, quotient, 1.0)


def homogeneous_sum(x: Array, y: Array, q: int) -> Array:
    """`(x^q − y^q)/(x − y) = Σ_{m<q} x^{q−1−m}y^m`, without a difference."""
    return sum((x ** (q - 1 - m) * y**m for m in range(q)), start=jnp.zeros(()))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _operator(W: Array, Z: Array, depth: float, rank: int | None) -> Array:
    U, sigma, V = _singular(W)
    sigma = _values(sigma, W.shape, rank)
    x, y = (_roots(sigma, n, depth) for n in W.shape)
    inner = matmul(matmul(U.T, Z), V) * kernel(x[:, None], y[None, :], depth)
    return matmul(matmul(U, inner), V.T)


@_operator.defjvp
def _(depth, rank, primals, tangents):
    (W, Z), (dW, dZ) = primals, tangents
    if math.isinf(depth) or depth != int(depth):
        raise NotImplementedError(f"apply_operator has derivatives for integer N only, not for N = {depth}")
    N = int(depth)
    U, sigma, V = _singular(W)
    sigma = _values(sigma, W.shape, rank)
    x, y = (_roots(sigma, n, depth) for n in W.shape)
    inner, moved = (matmul(matmul(U.T, A), V) for A in (Z, dW))
    both = matmul(matmul(U.T, dZ), V) * kernel(x[:, None], y[None, :], depth)
    # ẆWᵀ + WẆᵀ and ẆᵀW + WᵀẆ in the singular bases.
    S = jnp.zeros(W.shape, W.dtype).at[jnp.arange(sigma.size), jnp.arange(sigma.size)].set(sigma)
    left, right = matmul(moved, S.T), matmul(moved.T, S)
    left, right = left + left.T, right + right.T

    def divided(x, q):
        """`(a^{q/N} − c^{q/N})/(a − c)` on the grid of eigenvalues; zero at (0, 0)."""
        whole = homogeneous_sum(x[:, None], x[None, :], N)
        return jnp.where(whole > 0, homogeneous_sum(x[:, None], x[None, :], q) / jnp.where(whole > 0, whole, 1.0), 0.0)

    for j in range(1, N):
        both = both + matmul(divided(x, N - j) * left, inner * y[None, :] ** (j - 1))
        both = both + matmul(x[:, None] ** (N - 1 - j) * inner, divided(y, j) * right)
    out = matmul(matmul(U, inner * kernel(x[:, None], y[None, :], depth)), V.T)
    return out, matmul(matmul(U, both), V.T)


def apply_operator(
    W: Float[Array, "d_y d_x"], Z: Float[Array, "d_y d_x"], depth: float, *, rank: int | None = None
) -> Float[Array, "d_y d_x"]:
    """`𝒜_{W,N}(Z)`, in spectral form.

    **Arguments:** `depth`: `N`, 1 (the identity), real from 2 on, or `math.inf` for the limit of `𝒜_{W,N}/N`; `rank`: of
    `W`, if it is known (see the module's head).

    **Raises:** `ValueError` for other depths; `NotImplementedError` if differentiated twice, or at all for `N` that is no
    integer.

    ```python
    >>> apply_operator(W, Z, 2)  # = Z (WᵀW)^{1/2} + (WWᵀ)^{1/2} Z
    ```
    """
    return Z if check_depth(depth) == 1 else _operator(W, Z, depth, rank)


def _tangent_coordinates(W: Array, rank: int | None) -> tuple[Array, Array, Array, Array]:
    """`U`, `σ`, `V` and the mask of `UᵀZV` that the tangent space leaves free."""
    U, sigma, V = _singular(W)
    sigma = _values(sigma, W.shape, rank)
    rows, columns = (_roots(sigma, n, math.inf) > 0 for n in W.shape)
    return U, sigma, V, rows[:, None] | columns[None, :]


def project_tangent(
    W: Float[Array, "d_y d_x"], Z: Float[Array, "d_y d_x"], *, rank: int | None = None
) -> Float[Array, "d_y d_x"]:
    """The orthogonal projection of `Z` onto `T_W M_k`, without its part between the null spaces of `W`. Not differentiable."""
    U, _, V, free = _tangent_coordinates(W, rank)
    return matmul(matmul(U, jnp.where(free, matmul(matmul(U.T, Z), V), 0.0)), V.T)


def invert_operator(
    W: Float[Array, "d_y d_x"], Z: Float[Array, "d_y d_x"], depth: float, *, rank: int | None = None
) -> Float[Array, "d_y d_x"]:
    """`𝒜̄_{W,N}^{-1}(Z)` for tangent `Z`: the tangent vector that `𝒜` maps to (the tangent part of) `Z`. Not differentiable.

    **Raises:** `ValueError` for infinite depth, where `𝒜` is not invertible on the tangent space.
    """
    if math.isinf(check_depth(depth)):
        raise ValueError("at infinite depth the operator is not invertible on the tangent space")
    if depth == 1:
        return project_tangent(W, Z, rank=rank)
    U, sigma, V, free = _tangent_coordinates(W, rank)
    x, y = (_roots(sigma, n, depth) for n in W.shape)
    K = kernel(x[:, None], y[None, :], depth)
    inner = jnp.where(free, matmul(matmul(U.T, Z), V) / jnp.where(free, K, 1.0), 0.0)
    return matmul(matmul(U, inner), V.T)


def metric(
    W: Float[Array, "d_y d_x"],
    Z_1: Float[Array, "d_y d_x"],
    Z_2: Float[Array, "d_y d_x"],
    depth: float,
    *,
    rank: int | None = None,
) -> Float[Array, ""]:
    """`g_W(Z_1, Z_2) = ⟨𝒜̄_{W,N}^{-1}Z_1, Z_2⟩` for tangent vectors. Not differentiable in `W`."""
    return jnp.sum(invert_operator(W, Z_1, depth, rank=rank) * Z_2)


def metric_by_integral(W: ArrayLike, Z_1: ArrayLike, Z_2: ArrayLike, depth: float) -> float:
    """The metric by its integral, `(sin(π/N)/π)∫_0^∞ tr((tI + WWᵀ)^{-1}Z_1(tI + WᵀW)^{-1}Z_2ᵀ) t^{1/N} dt`, on the host.

    A check of `metric` that uses resolvents, not powers: quadrature over `ln t`, for tangent vectors, to about 1e-10, at any
    depth.
    """
    if math.isinf(check_depth(depth)) or depth == 1:
        raise ValueError(f"the integral is for finite N ≥ 2, got {depth}")
    W, Z_1, Z_2 = (np.asarray(x, dtype=np.float64) for x in (W, Z_1, Z_2))
    U, sigma, Vt = np.linalg.svd(W)
    rank = decide_rank(sigma, size=max(W.shape)).rank
    if rank == 0:
        return 0.0
    # In units of σ_1: the metric is homogeneous of degree 2/N − 2 in W.
    positive = (sigma[:rank] / sigma[0]) ** 2
    a, b = (np.concatenate([positive, np.zeros(n - rank)]) for n in W.shape)
    products = (U.T @ Z_1 @ Vt.T) * (U.T @ Z_2 @ Vt.T)
    products[rank:, rank:] = 0.0  # round-off of tangent vectors, of which the integral would be infinite
    both = np.outer(a, b) > 0

    def integrand(u):
        t = np.exp(u)
        # The factor 1/t of a zero eigenvalue cancels the t of dt = t du.
        left, right = (np.where(x > 0, 1 / np.where(x > 0, t + x, 1.0), 1.0) for x in (a, b))
        return np.sum(products * np.outer(left, right) * np.where(both, t, 1.0)) * np.exp(u / depth)

    # Beyond these ends the integrand is t^{1/N} below and t^{1/N − 1} above, but for a share of e^{−40}.
    points = np.log(positive)
    low, high = points.min() - 40.0, 40.0
    inner, _ = scipy.integrate.quad(integrand, low, high, points=points, limit=2000, epsabs=0.0, epsrel=1e-12)
    value = depth * integrand(low) + inner + integrand(high) / (1 - 1 / depth)
    return float(np.sin(np.pi / depth) / np.pi * value * sigma[0] ** (2 / depth - 2))


def balanced_factors(W: Float[Array, "d_y d_x"], depth: int, rank: int) -> LayerTuple:
    """Balanced factors of a matrix of rank `k`, hidden widths `k`: `W_N = UΣ^{1/N}`, `W_j = Σ^{1/N}`, `W_1 = Σ^{1/N}Vᵀ`.

    All balanced factors with these widths are the same up to rotations of the hidden units. Singular values beyond the rank
    are dropped. Not differentiable.

    **Raises:** `ValueError` for depths below 2 and ranks that the shape does not allow.
    """
    if depth < 2 or not 1 <= rank <= min(W.shape):
        raise ValueError(f"need depth ≥ 2 and a rank between 1 and {min(W.shape)}, got {depth} and {rank}")
    U, sigma, V = _singular(W)
    root = sigma[:rank] ** (1 / depth)
    first, last = root[:, None] * V[:, :rank].T, U[:, :rank] * root[None, :]
    return LayerTuple([first, *[jnp.diag(root)] * (depth - 2), last])


def riemannian_gradient(
    problem: Problem, W: Float[Array, "d_y d_in"], depth: float, *, rank: int | None = None
) -> Float[Array, "d_y d_in"]:
    """The Riemannian gradient of `L¹` at `W`: `𝒜_{W,N}(∇L¹(W))`, a tangent vector."""
    return apply_operator(W, problem.end_to_end_gradient(W), depth, rank=rank)


def riemannian_hessian_form(
    problem: Problem, W: Float[Array, "d_y d_in"], Z: Float[Array, "d_y d_in"], *, rank: int | None = None
) -> Float[Array, ""]:
    """The Hessian form of `L¹` on `M_k` along a tangent vector at a critical point: `∇²ℓ[ZD, ZD] + 2⟨∇L¹, (I−P)ZW⁺Z(I−Q)⟩`.

    `P`, `Q` project onto the column and the row space of `W`; the second term is the curvature of `M_k`. At a critical
    point the form does not depend on the metric, hence not on `N`; elsewhere it is not a Hessian. Not differentiable in
    `W`.
    """
    U, sigma, V, free = _tangent_coordinates(W, rank)
    inner = jnp.where(free, matmul(matmul(U.T, Z), V), 0.0)
    Z = matmul(matmul(U, inner), V.T)
    n = sigma.size
    weights = jnp.where(sigma > 0, 1 / jnp.where(sigma > 0, sigma, 1.0), 0.0)
    bend = jnp.where(free, 0.0, matmul(inner[:, :n] * weights[None, :], inner[:n]))
    gradient = matmul(matmul(U.T, problem.end_to_end_gradient(W)), V)
    F, along = matmul(W, problem.design), matmul(Z, problem.design)
    return problem.loss.hessian_form(F, problem.target, along) + 2 * jnp.sum(gradient * bend)


def fit(problem: Problem, subset: tuple[int, ...]) -> Float[Array, "d_y d_in"]:
    """The critical point of `L¹` on `M_k`, `k = |S|`, that fits the singular values in `S` (indices from 1):
    `U_SΣ_SV_Sᵀ(XXᵀ)^{-1/2}`.

    For distinct positive singular values these are all critical points of rank `k`; `S = {1..k}` is the best fit of rank
    `k`, the only local minimum. In data coordinates the one that vanishes on the null directions of `X`.

    **Raises:** `ValueError` for indices out of range.
    """
    target = problem.decomposition.Sigma_Y
    bound = min(target.shape)
    if not set(subset) <= set(range(1, bound + 1)):
        raise ValueError(f"subsets hold indices of singular values, 1 to {bound}; got {subset}")
    outside = np.array([i for i in range(bound) if i + 1 not in subset], dtype=int)
    fitted = target.at[outside, outside].set(0.0)
    return problem.convert(LayerTuple([fitted]), "whitened", problem.coordinates).weights[0]


def best_fit(problem: Problem, rank: int) -> Float[Array, "d_y d_in"]:
    """The best fit of rank `k`, `U_kΣ_kV_kᵀ(XXᵀ)^{-1/2}`: the minimiser of `L¹` over `M_k` if `k ≤ rank Q`.

    **Raises:** `ValueError` if `k` exceeds the rank of the data's target: then `L¹` has an infimum but no minimum on `M_k`,
    and the flow on it tends to the best fit of lower rank, on the boundary of `M_k` (Theorem 6 of Terstiege, Rauhut, Bah,
    Westdickenberg 2022).
    """
    positive = int(np.sum(np.asarray(problem.singular_values) > 0))
    if not 1 <= rank <= positive:
        raise ValueError(
            f"the target has rank {positive}: L¹ has no minimum on the matrices of rank {rank}; the flow there tends to matrices "
            f"of lower rank, at best to best_fit(problem, {positive})"
        )
    return fit(problem, tuple(range(1, rank + 1)))
