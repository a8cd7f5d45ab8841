"""The sharper bound of how fast the flow spreads: the Hessian at the middle of a piece of path, and how far it may change.

With `c` the middle of a piece and `R` the radius of a ball round it that holds the piece and the tube,

    −λ_min∇²L(q) ≤ −λ_min∇²L(c) + λ_max(Λ),   ‖q − c‖ ≤ R,
    Λ_jk = ‖D‖²(∏_{i≠j}a_i⁺∏_{i≠k}a_i⁺ − ∏_{i≠j}a_i∏_{i≠k}a_i) + [j≠k]‖D‖(m⁺∏_{i≠j,k}a_i⁺ − m∏_{i≠j,k}a_i),

`a_i = ‖c_i‖_2`, `a_i⁺ = a_i + R`, `m = ‖M(c)‖_2`, `m⁺ = m + ‖D‖(∏a_i⁺ − ∏a_i)`: the Hessian is a sum of products of layers, each
of which changes by at most as much as the product of their norms. It may be negative where `L` is convex. It costs an eigenvalue
decomposition a piece, and the pieces must be short: here quarters of a step.
"""

import functools
import itertools
import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from gdflow.network import LayerTuple
from gdflow.objective import LinearObjective

#: A step is cut into so many pieces.
PARTS = 4
#: Networks of more parameters than this are left to the bound by products.
MOST_PARAMETERS = 400


def split(coefficients: Sequence[np.ndarray], parts: int = PARTS) -> list[list[np.ndarray]]:
    """A piece `Σc_i s^i` cut into equal ones, each on its own `[−1, 1]`.

    **Arguments:** `coefficients`: of every layer, `(g + 1, d_j, d_{j−1})`.
    """
    degree = len(coefficients[0]) - 1
    result = []
    for k in range(parts):
        shift, scale = (2 * k + 1 - parts) / parts, 1 / parts  # s = shift + scale·s'
        table = np.zeros((degree + 1, degree + 1))
        for i in range(degree + 1):
            for j in range(i + 1):
                table[j, i] = math.comb(i, j) * shift ** (i - j) * scale**j
        result.append([np.tensordot(table, c, 1) for c in coefficients])
    return result


@eqx.filter_jit
def _hessian(objective: LinearObjective, centre: list) -> jax.Array:
    flat, unravel = ravel_pytree(LayerTuple(centre))
    return jax.hessian(lambda x: objective.effective_loss(unravel(x)))(flat)


class SharpBound:
    """`h·μ(E)` of one piece for any radius `E` of the tube.

    **Arguments:** `coefficients`: of every layer, `(g + 1, d_j, d_{j−1})`; `h`: the duration.
    """

    def __init__(self, objective: LinearObjective, coefficients: Sequence[np.ndarray], h: float):
        centre = [c[0] for c in coefficients]
        self.h = h
        H = np.asarray(_hessian(objective, list(map(jnp.asarray, centre))))
        A, d = np.asarray(objective.target), np.diagonal(np.asarray(objective.design))
        W = functools.reduce(lambda product, w: w @ product, centre)
        up = 1 + 1e-12
        norms = np.array([np.linalg.norm(w) for w in centre])
        eps = float(np.finfo(A.dtype).eps)
        rounding = (
            8 * (sum(map(len, centre)) + sum(W.shape)) * eps
        )  # of products of as many layers, relative to their norms
        whole = np.linalg.norm(A) + abs(d).max() * norms.prod()
        self.m = np.linalg.norm(A - W * d, 2) * up + rounding * whole
        self.d = abs(d).max() * up
        self.a = np.array([np.linalg.norm(w, 2) * up for w in centre])
        # The Hessian's entries are sums of products of layers, as large as these norms where they do not cancel.
        single, double = _largest_without(norms, 1), _largest_without(norms, 2)
        entries = self.d**2 * single**2 + self.d * whole * double
        self.hessian_bound = _least_eigenvalue(H) - 4 * rounding * len(H) * entries
        # How far the piece strays from its middle.
        self.rho = sum(
            math.sqrt(sum(float(np.sum(c[i] ** 2)) for c in coefficients)) for i in range(1, len(coefficients[0]))
        )
        self.rho *= up

    def __call__(self, E: float) -> float:
        a, wide, N = self.a, self.a + self.rho + E, len(self.a)
        m_wide = self.m + self.d * (wide.prod() - a.prod() + 1e-14 * wide.prod())
        table = np.zeros((N, N))

        def others(x, *without):
            return np.prod([x[i] for i in range(N) if i not in without])

        for j in range(N):
            for k in range(N):
                table[j, k] = self.d**2 * (
                    (1 + 1e-14) * others(wide, j) * others(wide, k) - others(a, j) * others(a, k)
                )
                if j != k:
                    table[j, k] += self.d * ((1 + 1e-14) * m_wide * others(wide, j, k) - self.m * others(a, j, k))
        if not np.isfinite(table).all():
            return math.inf
        # For any positive vector x, λ_max ≤ max_i(Λx)_i/x_i; x close to the eigenvector makes it sharp.
        x = np.abs(np.linalg.eigh(table)[1][:, -1]) + 1e-6
        mu = float(np.max(table @ x / x)) * (1 + 1e-10) - self.hessian_bound
        return self.h * (mu + 1e-12 * abs(mu))


def _largest_without(sizes: np.ndarray, left_out: int) -> float:
    """The largest product of all sizes but so many; 1 if there are no more."""
    others = itertools.combinations(sizes, max(len(sizes) - left_out, 0))
    return max(float(np.prod(some)) for some in others)


def _least_eigenvalue(H: np.ndarray) -> float:
    """A lower bound of the least eigenvalue, from a computed decomposition that need not be right.

    With `S = VᵀHV` and `‖VᵀV − I‖ ≤ α`, `xᵀHx = yᵀSy` for `x = Vy`, and `yᵀSy` is at least Gershgorin's bound times `‖y‖²`,
    which is `‖x‖²` up to `1 ± α`. Products are rounded by `γ`.
    """
    n, eps = len(H), float(np.finfo(H.dtype).eps)
    if not np.isfinite(H).all():
        return -math.inf
    V = np.linalg.eigh(H)[1]
    S = V.T @ H @ V
    rounding = 8 * n * n * eps * np.linalg.norm(H)
    alpha = float(np.linalg.norm(V.T @ V - np.eye(n))) + 4 * n * n * eps
    off = np.sum(abs(S), axis=1) - abs(np.diagonal(S))
    least = float(np.min(np.diagonal(S) - off)) - float(rounding)
    return least / (1 + alpha) if least > 0 else least / (1 - alpha) if alpha < 1 else -math.inf
