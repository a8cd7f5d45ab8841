r"""How far a polynomial path is from being a solution of the flow, and how fast the flow spreads round it: bounds in lanes.

A *piece* of a path is `p(s) = Σ_i c_i s^i`, `s ∈ [−1, 1]`, of duration `h`: what a Runge–Kutta step and its interpolant leave,
in coordinates in which the design `D` is diagonal. Two numbers of a piece decide how the distance between the exact flow and the
path grows along it (`gdflow.basins.tube`):

- the *defect* `∫‖ṗ + ∇L(p)‖dt`, integrated along the piece;
- the *expansion* `∫μ dt`, where `−λ_min∇²L(p) ≤ μ`. The first-order terms of the Hessian are squares, and only
  `−2⟨M, Σ_{j<k}P_jk(w)D⟩` can be negative, so

      −λ_min∇²L ≤ λ_max(K),   K_jk = ‖X_jk‖_2·‖W_{k−1}…W_{j+1}‖_2,   X_jk = W_{j−1}…W_1·D·Mᵀ·W_N…W_{k+1},

  `K` being symmetric with zero diagonal, `M = A − W_N…W_1D`. Its trace is zero, so `λ_max(K)² ≤ (N−1)/N·‖K‖_F²`; and
  `‖X‖_2² ≤ ‖XXᵀ‖_F`, whose square is a polynomial.

*Integrals of polynomials.* Gauss–Legendre with `m` nodes is exact up to degree `2m − 1`; the integrands here have degrees up to
`4g(2N−2)`, `g` that of the path. But coefficients of high degree are small, and bounds of them come from the norms of the
`c_i` alone. Let `v(s) = Σ v_k s^k` be vector-valued. Each `s^k` with `k ≥ m` is a polynomial of degree below `m` and a rest of
size `τ_k`, that of its Chebyshev series from degree `m` on; so `v = q + t` with `‖t‖ ≤ T = Σ_{k≥m} τ_k‖v_k‖`, and

    (∫‖v‖²)^½ ≤ (∫‖q‖²)^½ + √2T = Q_m(‖q‖²)^½ + √2T ≤ Q_m(‖v‖²)^½ + 2√2T.

So a few nodes suffice and nothing is neglected. All norms of layer tuples are Frobenius norms; round-off is counted as in
`gdflow.rounding`, with what may underflow.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gdflow.layouts import AbstractLayout
from gdflow.objective import LinearObjective
from gdflow.rounding import frobenius, gamma

#: Absolute error of an operation whose result underflows, with room for factors that multiply it.
UNDERFLOW = 1e-290
#: Sums, roots and the rounded nodes and weights of quadratures: far above their relative errors, far below what matters.
INFLATION = 1 + 1e-8
#: So many numbers at the nodes are computed at once.
_AT_ONCE = 2**16
_HIGHEST = jax.lax.Precision.HIGHEST
#: Where bounds of tails are tried.
RATIOS = (2.0, 4.0, 8.0, 16.0)


class Piece(eqx.Module):
    """What bounds need of one piece of a path in every lane.

    - `h`: duration.
    - `defect`: `∫‖ṗ + ∇L(p)‖dt` at most.
    - `expansion`: `∫μ dt` at most, with `μ ≥ −λ_min∇²L` on the path itself.
    - `sizes`: for every layer, a bound of its spectral norm along the piece, `(N, lanes)`.
    - `gap`: distances of the ends of the piece from the states that it is to join, added up.
    """

    h: Float[Array, " lanes"]
    defect: Float[Array, " lanes"]
    expansion: Float[Array, " lanes"]
    sizes: Float[Array, "N lanes"]
    gap: Float[Array, " lanes"]


def num_nodes(degree: int, num_layers: int) -> int:
    """How many nodes the quadratures have: of what their tails add little to (tests/test_path_bounds.py measures it)."""
    exact = degree * (2 * num_layers - 1) + 1
    return min(exact, degree + num_layers)


@functools.cache
def tail_weights(degree: int, num: int) -> np.ndarray:
    """`τ_0, …, τ_degree`: how far `s^k` is on `[−1, 1]` from its Chebyshev series below degree `num`."""
    result = np.zeros(degree + 1)
    for k in range(num, degree + 1):
        orders = [j for j in range(num, k + 1) if (k - j) % 2 == 0]
        result[k] = sum(math.comb(k, (k - j) // 2) * 2.0 ** (1 - k) for j in orders)
    return np.minimum(result, 1.0) * (1 + 1e-12)


def tail_factor(degree: int, num: int, x: float) -> float:
    """`max_k(τ_k x^{m−k})·x^{−m}` over the orders from `m`, the number of nodes, to the degree; zero where there are none."""
    orders = np.arange(num, degree + 1)
    return float(np.max(tail_weights(degree, num)[num:] * x ** (num - orders.astype(float)), initial=0.0)) * x**-num


def relative_error(widths: Sequence[int], degree: int, eps: float) -> float:
    """Of an entry of the gradient at a node, the path's own operations included: a bound of those on the longest way to it."""
    layers = len(widths) - 1
    return 2 * gamma(4 * (sum(widths) + 2 * layers * (degree + 3)), eps)


def _tail(value: Callable[[float], Array], degree: int, num: int) -> Array:
    """`T` of a polynomial, from bounds of its coefficients: `Σ_{k≥m}τ_k v_k ≤ max_k(τ_k x^{m−k})·x^{−m}·Σ_k v_k x^k`, `x > 0`.

    **Arguments:** `value`: `x ↦ Σ_k v_k x^k`, a product of as simple ones; several `x` are tried.
    """
    if degree < num:
        return jnp.zeros_like(value(1.0))
    bounds = [tail_factor(degree, num, x) * value(x) for x in RATIOS]
    return functools.reduce(jnp.minimum, bounds) * INFLATION


def spectral_bound(layout: AbstractLayout, matrix: Array) -> Float[Array, " lanes"]:
    """An upper bound of `‖B‖_2`: `‖(BᵀB)²‖_F^¼`, at most `n^⅛` times too large; of tiny matrices the Frobenius norm is less."""
    gram = layout.gram(matrix)
    return jnp.sqrt(jnp.sqrt(_norm(layout, layout.product(gram, gram)))) * INFLATION


def _norm(layout: AbstractLayout, x: Any) -> Array:
    """Frobenius norms, rounded up; squares may underflow."""
    return _root(functools.reduce(jnp.add, layout.squares(x)))


def _root(squares: Array) -> Array:
    """The root of a computed sum of squares, rounded up."""
    return frobenius(squares, squares.dtype) * INFLATION


def bound_piece(
    layout: AbstractLayout,
    objective: LinearObjective,
    h: Float[Array, " lanes"],
    coefficients: Sequence[Array],
    ends: tuple[Sequence[Array], Sequence[Array]],
    nodes: int | None = None,
    terms: Float[Array, " lanes"] | float = 0.0,
) -> Piece:
    """Bounds of a piece of a path.

    **Arguments:**

    - `coefficients`: for every layer `c_0, …, c_g`, each packed as the layout says, stacked along the first axis.
    - `ends`: the states that the piece is to join.
    - `nodes`: of the quadratures, by default `num_nodes`.
    - `terms`: `Σ_i(i + 1)‖·‖` of the terms that the `c_i` are sums of, where these are computed in the same program: it may
      round them anew wherever it uses them.
    """
    N, degree = len(coefficients), len(coefficients[0]) - 1
    m = num_nodes(degree, N) if nodes is None else nodes
    d = jnp.diagonal(objective.design)
    dtype = objective.target.dtype
    eps = float(jnp.finfo(dtype).eps)
    d_norm = jnp.max(jnp.abs(d)) * INFLATION
    a_norm = jnp.linalg.norm(objective.target) * INFLATION
    widths = [layout.height(layout.transpose(c[0])) for c in coefficients]
    relative = relative_error((*widths, objective.d_out), degree, eps)

    norms = [jax.vmap(functools.partial(_norm, layout))(c) for c in coefficients]  # ‖c_i‖, layer by layer
    pairs = [(j, k) for j in range(N) for k in range(j + 1, N)]

    # -- the sums over the nodes -------------------------------------------------------------------------------------------

    points, weights = np.polynomial.legendre.leggauss(m)
    powers = points[:, None] ** np.arange(degree + 1)
    slopes = np.concatenate([np.zeros((m, 1)), powers[:, :-1] * np.arange(1, degree + 1)], axis=1)
    target, diagonal = layout.everywhere(objective.target), layout.everywhere(d[None, :])

    half = [layout.spread(0.5 * h, c[0]) for c in coefficients]

    def at(node):
        """The squares that are to be integrated: of the defect, and of the Gram matrices of all `X_jk`."""
        power, slope = node
        w, velocity = ([jnp.tensordot(x, c, 1, precision=_HIGHEST) for c in coefficients] for x in (power, slope))
        right = [w[0]]
        for j in range(1, N):
            right.append(layout.product(w[j], right[-1]))
        left = [(target - right[-1] * diagonal) * diagonal]  # W_{k+1}ᵀ…W_NᵀMD, from k = N down
        for j in range(N - 1, 0, -1):
            left.insert(0, layout.product(layout.transpose(w[j]), left[0]))

        def x(j, k):  # X_jkᵀ; for j = k the layer's part of −∇L
            return left[k] if j == 0 else layout.product(left[k], layout.transpose(right[j - 1]))

        defect = sum(layout.squares([velocity[j] - half[j] * x(j, j) for j in range(N)]))
        return jnp.stack([defect, *(sum(layout.squares(layout.gram(x(j, k)))) for j, k in pairs)])

    # As many nodes at once as fit into the cache.
    entries = sum(c[0].size for c in coefficients)
    table = tuple(jnp.asarray(x, dtype) for x in (powers, slopes))
    squares = jax.lax.map(at, table, batch_size=int(np.clip(_AT_ONCE // entries, 1, m)))
    defect, *grams = jnp.tensordot(jnp.asarray(weights, dtype), squares, 1, precision=_HIGHEST)

    # -- what the nodes do not see, and round-off --------------------------------------------------------------------------

    def layers(x: float) -> list[Array]:  # Σ‖c_i‖x^i, layer by layer
        return [jnp.sum(n * jnp.asarray(x ** np.arange(degree + 1), dtype)[:, None], axis=0) for n in norms]

    at_ratios = {x: layers(x) for x in (1.0, *RATIOS)}

    def around(without: Sequence[int], x: float = 1.0) -> Array:
        """`‖D‖‖M‖∏‖W_i‖` over all layers but some, from the coefficients' norms."""
        sizes = at_ratios[x]
        others = [sizes[i] for i in range(N) if i not in without]
        residual = a_norm + d_norm * functools.reduce(jnp.multiply, sizes)
        return d_norm * functools.reduce(jnp.multiply, others, residual)

    whole = [around((j,)) for j in range(N)]
    high = [_tail(functools.partial(around, (j,)), degree * (2 * N - 1), m) for j in range(N)]
    tail = 0.5 * h * _root(sum((x**2 for x in high), jnp.zeros_like(h)))
    path = terms + sum(jnp.sum(n * jnp.asarray(np.arange(1, degree + 2), dtype)[:, None], axis=0) for n in norms)
    totals = at_ratios[1.0]
    rounding = (
        relative * (path + 0.5 * h * sum(whole)) + UNDERFLOW * (1 + h) * jnp.prod(1 + jnp.stack(totals), axis=0) ** 2
    )
    # ∫‖·‖ ≤ √2(∫‖·‖²)^½, in s; the derivative with respect to time times dt is that with respect to s times ds.
    defect = (math.sqrt(2) * _root(defect) + 4 * tail + 2 * rounding) * INFLATION

    centre = [spectral_bound(layout, c[0]) for c in coefficients]
    along = [jnp.minimum(c, n[0]) + (t - n[0]) for c, n, t in zip(centre, norms, totals, strict=True)]
    sizes = jnp.stack(along) * INFLATION
    square = jnp.zeros_like(h)  # ∫Σ_{j<k}K_jk²
    for (j, k), gram in zip(pairs, grams, strict=True):
        inner = range(j, k + 1)  # X_jk is made of the layers outside

        def gram_bound(x, inner=inner):
            return around(inner, x) ** 2

        high_gram = _tail(gram_bound, 2 * degree * (2 * N - len(inner)), m)
        integral = math.sqrt(2) * _root(gram) + 4 * high_gram + 2 * relative * gram_bound(1.0)
        square = square + integral * jnp.prod(sizes[j + 1 : k], axis=0) ** 2
    expansion = 0.5 * h * jnp.sqrt(2 * 2 * (N - 1) / N * square) * INFLATION
    return Piece(h, defect, expansion, sizes, _gap(layout, coefficients, norms, ends, eps) + 2 * relative * terms)


def _gap(layout: AbstractLayout, coefficients: Sequence[Array], norms: list, ends: tuple, eps: float) -> Array:
    """`‖p(−1) − y_0‖ + ‖p(1) − y_1‖`: round-off, or what an interpolant does not join."""
    degree = norms[0].shape[0] - 1
    total = jnp.zeros_like(norms[0][0])
    for sign, end in zip((-1.0, 1.0), ends, strict=True):
        signs = jnp.asarray(sign ** np.arange(degree + 1), norms[0].dtype)
        apart = [jnp.tensordot(signs, c, 1, precision=_HIGHEST) - y for c, y in zip(coefficients, end, strict=True)]
        total = total + _norm(layout, apart)
    rounding = 4 * gamma(degree + 3, eps) * sum(jnp.sum(n, axis=0) for n in norms)
    return (total + rounding) * INFLATION


def widening(objective: LinearObjective, piece: Piece, radius: Float[Array, " lanes"]) -> Float[Array, " lanes"]:
    """By how much the expansion of a piece grows if `μ` is to hold within a radius `E` of the path: `hλ_max(ΔK)` at most.

    `K_jk` grows by at most `F_jk(a + E) − F_jk(a)`, `F_jk(a) = ‖D‖(‖A‖ + ‖D‖∏a_i)∏_{i≠j,k}a_i`, for it is a sum of products of
    the layers; and the largest eigenvalue by at most the largest sum of a row.
    """
    N = piece.sizes.shape[0]
    d_norm = jnp.max(jnp.abs(jnp.diagonal(objective.design)))
    a_norm = jnp.linalg.norm(objective.target)

    def value(a, j, k):
        outside = [a[i] for i in range(N) if i not in (j, k)]
        return functools.reduce(jnp.multiply, outside, d_norm * (a_norm + d_norm * jnp.prod(a, axis=0)))

    wide = piece.sizes + radius[None]
    rows = [jnp.zeros_like(radius)] * N
    for j in range(N):
        for k in range(j + 1, N):
            # The difference is rounded: its terms may be far larger than itself.
            large = value(wide, j, k)
            growth = large - value(piece.sizes, j, k) + 8 * (N + 4) * float(jnp.finfo(large.dtype).eps) * large
            rows[j], rows[k] = rows[j] + growth, rows[k] + growth
    return piece.h * functools.reduce(jnp.maximum, rows) * INFLATION


def gradient_of_target(objective: LinearObjective, sizes: Float[Array, "N lanes"]) -> Float[Array, " lanes"]:
    """How far `∇L` may be off where the target is off by `objective.data_error`, layers having spectral norms up to `sizes`."""
    d_norm = jnp.max(jnp.abs(jnp.diagonal(objective.design)))
    return objective.data_error * d_norm * slope(sizes) * INFLATION


def slope(sizes: Float[Array, "N lanes"]) -> Float[Array, " lanes"]:
    """`(Σ_j∏_{i≠j}a_i²)^½`: how much the end-to-end matrix moves with the layers, to first order."""
    N = sizes.shape[0]
    others = [
        functools.reduce(jnp.multiply, [sizes[i] for i in range(N) if i != j], jnp.ones_like(sizes[0]))
        for j in range(N)
    ]
    return _root(sum((x**2 for x in others), jnp.zeros_like(others[0])))


def product_change(
    sizes: Float[Array, "N lanes"], radius: Float[Array, " lanes"], d_norm: Float[Array, ""]
) -> Float[Array, " lanes"]:
    """`Δ`: how far `W_N…W_1D` moves if the layers move by a tuple of norm up to `radius`, from norms `a_i`:

    `‖D‖[ε(Σ_j∏_{i≠j}a_i²)^½ + ∏(a_i + ε) − ∏a_i − εΣ_j∏_{i≠j}a_i]`, the terms of second order and above by the product's own.
    """
    N = sizes.shape[0]
    # ∏(a_i + ε) − ∏a_i − εΣ…, without cancellation: elementary symmetric polynomials.
    symmetric = [jnp.ones_like(radius)] + [jnp.zeros_like(radius)] * N
    for i in range(N):
        symmetric = [symmetric[0]] + [symmetric[k] + sizes[i] * symmetric[k - 1] for k in range(1, N + 1)]
    higher = sum(symmetric[N - k] * radius**k for k in range(2, N + 1))
    return d_norm * (radius * slope(sizes) + higher) * INFLATION
