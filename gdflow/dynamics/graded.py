"""The Riemannian flow to the boundary of `M_k` and along it: singular values accurate relative to themselves.

The matrices of rank `k` are an orbit of `GL(d_y) × GL(d_x)`, `W ↦ LWR`, and the flow stays on it:

    Ẇ = −𝒜_{W,N}(∇L¹(W)) = −(XW + WZ),

where in singular coordinates `W = UΣVᵀ`, with `g = UᵀGV`, `G = ∇L¹(W)` and the kernel `K` of `gdflow.manifold`,

    X = U x Uᵀ + (I − UUᵀ)GVΣ^{1−2/N}Uᵀ,   x_ij = g_ij K_ij σ_j/(σ_i² + σ_j²),
    Z = V z Vᵀ + VΣ^{1−2/N}UᵀG(I − VVᵀ),   z_ij = g_ij K_ij σ_i/(σ_i² + σ_j²)

(how an entry is shared between `X` and `Z` is free; this way both stay bounded however small singular values become). A step
begins with `P = U`, `Q = V` and integrates `Ṗ = −XP`, `Q̇ = −ZᵀQ` for `W = PΣQᵀ` with the old `Σ`, by any explicit
Runge–Kutta method. `P` and `Q` stay well conditioned, so `W` has rank `k` and det of the same sign at every step, and one-sided
Jacobi rotations give back `U`, `Σ`, `V` with all singular values to relative accuracy (Demmel, Veselić 1992; Demmel, Gu,
Eisenstat, Slapničar, Veselić, Drmač 1999): 10⁻¹⁰⁰ beside 1 is no round-off. An ordinary decomposition in place of theirs would
lose the sign of small ones, which is all that decides whether the flow comes back from the boundary.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from gdflow.factorizations import orthogonalize_columns
from gdflow.manifold import kernel
from gdflow.network import matmul

#: Singular values do not fall below this, so that their squares do not underflow.
_SMALLEST = 1e-140


class Graded(eqx.Module):
    """`W = UΣVᵀ`: orthonormal columns and positive singular values, in any order."""

    U: Float[Array, "d_y k"]
    sigma: Float[Array, " k"]
    V: Float[Array, "d_x k"]

    @property
    def matrix(self) -> Float[Array, "d_y d_x"]:
        return matmul(self.U * self.sigma[None, :], self.V.T)


def decompose(P: Float[Array, "d_y k"], sigma: Float[Array, " k"], Q: Float[Array, "d_x k"]) -> Graded:
    """The singular value decomposition of `PΣQᵀ`, singular values to relative accuracy for well-conditioned `P` and `Q`.

    Not differentiable.
    """
    left, J = orthogonalize_columns(P * sigma[None, :])
    lengths = jnp.linalg.norm(left, axis=0)
    # PΣ = U_1 diag(lengths) Jᵀ, so that (PΣQᵀ)ᵀ = (QJ) diag(lengths) U_1ᵀ.
    right, K = orthogonalize_columns(matmul(Q, J) * lengths[None, :])
    values = jnp.linalg.norm(right, axis=0)
    return Graded(matmul(left / lengths[None, :], K), jnp.maximum(values, _SMALLEST), right / values[None, :])


def _field(t: Any, y: tuple[Array, Array], args: tuple[Any, float, Array]) -> tuple[Array, Array]:
    problem, depth, sigma = args
    P, Q = y
    W = decompose(P, sigma, Q)
    G = problem.end_to_end_gradient(W.matrix)
    right, left = matmul(G, W.V), matmul(G.T, W.U)
    g = matmul(W.U.T, right)
    # In units of the larger of the two singular values: K has degree 2 − 2/N in them.
    high = jnp.maximum(W.sigma[:, None], W.sigma[None, :])
    rows, columns = W.sigma[:, None] / high, W.sigma[None, :] / high
    root = 2.0 if math.isinf(depth) else 2 / depth
    share = g * high ** (1 - 2 / depth) * kernel(rows**root, columns**root, depth) / (rows**2 + columns**2)
    x, z = share * columns, share * rows
    weight = jnp.zeros_like(W.sigma) if math.isinf(depth) else W.sigma ** (1 - 2 / depth)
    outside_left, outside_right = right - matmul(W.U, g), left - matmul(W.V, g.T)
    P_dot = matmul(matmul(W.U, x) + outside_left * weight[None, :], matmul(W.U.T, P))
    Q_dot = matmul(matmul(W.V, z.T) + outside_right * weight[None, :], matmul(W.V.T, Q))
    return -P_dot, -Q_dot


class GradedSolver(diffrax.AbstractAdaptiveSolver):
    """Steps `Graded` states by an explicit Runge–Kutta method in the local coordinates `P`, `Q`; no dense output."""

    solver: diffrax.AbstractERK = diffrax.Tsit5()

    term_structure: ClassVar = diffrax.ODETerm
    interpolation_cls: ClassVar[Callable[..., diffrax.LocalLinearInterpolation]] = diffrax.LocalLinearInterpolation

    def order(self, terms):
        return self.solver.order(terms)

    def error_order(self, terms):
        return self.solver.error_order(terms)

    def init(self, terms, t0, t1, y0, args):
        return None

    def func(self, terms, t0, y0, args):
        P, Q = _field(t0, (y0.U, y0.V), (*args, y0.sigma))
        return Graded(P, jnp.zeros_like(y0.sigma), Q)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        local, inside = (y0.U, y0.V), (*args, y0.sigma)
        term = diffrax.ODETerm(_field)
        state = self.solver.init(term, t0, t1, local, inside)
        (P, Q), error, _, _, result = self.solver.step(term, t0, t1, local, inside, state, made_jump=False)
        y1 = decompose(P, y0.sigma, Q)
        error = Graded(error[0], jnp.zeros_like(y0.sigma), error[1])
        return y1, error, dict(y0=y0, y1=y1), None, result
