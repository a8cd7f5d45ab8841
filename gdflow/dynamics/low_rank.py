"""The low-rank form of the Riemannian flow.

`W = USVᵀ`, `U (d_y, k)` and `V (d_x, k)` with orthonormal columns, `S (k, k)` invertible. With `G = ∇L¹(W)`,

    Ṡ = −𝒜_{S,N}(UᵀGV),
    U̇ = −(I − UUᵀ) G V (SᵀS)^{-1/N} Sᵀ,
    V̇ = −(I − VVᵀ) Gᵀ U (SSᵀ)^{-1/N} S,

which follows from the spectral form of `𝒜`: where one of its two eigenvalues is zero, `K(0, b) = b^{(N−1)/N}`, and the
inverse of `S` that a low-rank form needs cancels to `(SᵀS)^{(N−1)/N}S^{-1} = (SᵀS)^{-1/N}Sᵀ`, of the size of `σ^{1−2/N}`.
So nothing blows up for `N ≥ 2` as singular values tend to zero, and the rank cannot exceed `k` by construction, whereas an
integration of `W` itself leaks into higher ranks.

What this form does not keep is the *side of the boundary*: where a singular value of `W` falls below the error of the
integration, as it does on the way to a limit of lower rank, that error decides whether it comes back with the other sign
(the exact flow keeps the sign of `det S`), and later escapes along a direction in which the exact flow stays. An integration
of the factors does the same, having left the balanced set by round-off. So the flow *stops* there by default, and says so,
rather than go on to a wrong limit.
"""

import functools
import math
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array

from gdflow.checks import check_number
from gdflow.dynamics.forms import AbstractForm, Factored, Integrator, is_finite
from gdflow.dynamics.step_control import first_step, step_control
from gdflow.manifold import apply_operator, homogeneous_sum
from gdflow.network import matmul
from gdflow.problem import Problem


class LowRank(AbstractForm):
    """`W = USVᵀ` with a small square `S`: fast, differentiable, right until a singular value gets lost in round-off.

    **Arguments:** `boundary`: the flow stops where `σ_k < boundary·σ_1`, by default at `100·rtol`: there the integration can no
    longer tell on which side of the boundary of `M_k` it is. 0 to go on regardless.

    **Raises:** `ValueError` or `TypeError` unless `0 ≤ boundary < 1`.
    """

    boundary: float | None = None

    def __check_init__(self):
        if self.boundary is not None and not 0 <= check_number("boundary", self.boundary) < 1:
            raise ValueError(f"boundary must lie between 0 and 1, got {self.boundary}")

    def check(self, integrator: Integrator) -> None:
        pass

    def solve(self, problem, start, rank, depth, t1, ts, integrator: Integrator) -> dict[str, Any]:
        boundary = 100 * integrator.rtol if self.boundary is None else self.boundary
        y0 = _factor(start, rank)
        term = diffrax.ODETerm(lambda t, y, p: _field(t, y, (p, depth)))
        controller = step_control(integrator.rtol, integrator.atol)
        dt0 = first_step(term, integrator.solver, controller, jnp.zeros_like(t1), t1, y0, problem)

        def near_boundary(t, y, args, **_):
            sigma = jnp.linalg.svd(jax.lax.stop_gradient(y.S), compute_uv=False)
            return sigma[-1] < boundary * sigma[0]

        solution: Any = diffrax.diffeqsolve(
            term,
            integrator.solver,
            0.0,
            t1,
            dt0,
            y0,
            args=problem,
            saveat=diffrax.SaveAt(subs=[diffrax.SubSaveAt(ts=ts), diffrax.SubSaveAt(t1=True)]),
            event=diffrax.Event(near_boundary),
            adjoint=integrator.adjoint or diffrax.RecursiveCheckpointAdjoint(),
            stepsize_controller=controller,
            max_steps=integrator.max_steps,
            throw=False,
        )
        saved, ends = solution.ys
        reached = solution.ts[0] <= t1  # infinite after a stop

        def blank(x):
            return jnp.where(reached.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.nan)

        factors = jax.tree.map(blank, saved)
        losses = jax.vmap(lambda y: problem.end_to_end_loss(y.matrix))(factors)
        last = jax.tree.map(lambda x: x[0], ends)
        ended = (solution.result == diffrax.RESULTS.successful) | (solution.result == diffrax.RESULTS.event_occurred)
        return dict(
            factors=factors,
            losses=losses,
            final_time=solution.ts[1][0],
            last=last,
            at_boundary=solution.result == diffrax.RESULTS.event_occurred,
            num_steps=solution.stats["num_steps"],
            solved=ended & is_finite(last),
        )


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _dual(S: Array, depth: float) -> Array:
    """`(SᵀS)^{-1/N}Sᵀ`, singular values `σ^{1−2/N}`, for invertible `S`; 0 at infinite depth, after division by `N`."""
    U, sigma, Vt = jnp.linalg.svd(S)
    return matmul(Vt.T * sigma[None, :] ** (1 - 2 / depth), U.T)


@_dual.defjvp
def _(depth, primals, tangents):
    (S,), (dS,) = primals, tangents
    if depth != int(depth):
        raise NotImplementedError(f"the Riemannian flow has derivatives for integer N only, not for N = {depth}")
    N = int(depth)
    U, sigma, Vt = jnp.linalg.svd(S)
    # (SᵀS)^{-1/N}Sᵀ = Sᵀ(SSᵀ)^{-1/N}; divided differences of a^{-1/N} at a = x^N: −1/(xz Σ_m x^{N−1−m}z^m), without a difference.
    x = sigma ** (2 / N)
    outer, inner = x[:, None], x[None, :]
    whole = homogeneous_sum(outer, inner, N)
    moved = matmul(matmul(U.T, dS), Vt.T)
    square = moved * sigma[None, :] + (moved * sigma[None, :]).T
    change = (moved / x[:, None]).T - sigma[:, None] * square / (outer * inner * whole)
    return matmul(Vt.T * sigma[None, :] ** (1 - 2 / N), U.T), matmul(matmul(Vt.T, change), U.T)


def _factor(W: Array, rank: int) -> Factored:
    """`W` of rank `k` as `USVᵀ`, with derivatives along the manifold that are right at repeated singular values too."""
    fixed = jax.lax.stop_gradient(W)
    U, _, Vt = jnp.linalg.svd(fixed, full_matrices=False)
    U, V = U[:, :rank], Vt[:rank].T
    # To first order, U moves by (I − UUᵀ)ẆVS^{-1}, V by (I − VVᵀ)ẆᵀUS^{-T}, and S by UᵀẆV.
    S = matmul(matmul(U.T, W), V)
    inverse = jax.lax.stop_gradient(jnp.linalg.inv(S))
    change = W - fixed
    right, left = matmul(change, matmul(V, inverse)), matmul(change.T, matmul(U, inverse.T))
    return Factored(U + right - matmul(U, matmul(U.T, right)), S, V + left - matmul(V, matmul(V.T, left)))


def _field(t: Any, y: Factored, args: tuple[Problem, float]) -> Factored:
    problem, depth = args
    G = problem.end_to_end_gradient(y.matrix)
    right, left = matmul(G, y.V), matmul(G.T, y.U)
    inner = matmul(y.U.T, right)
    if math.isinf(depth):
        still = (jnp.zeros_like(y.U), jnp.zeros_like(y.V))
        return Factored(still[0], -apply_operator(y.S, inner, depth, rank=y.S.shape[0]), still[1])
    dual = _dual(y.S, depth)
    return Factored(
        -matmul(right - matmul(y.U, inner), dual),
        -apply_operator(y.S, inner, depth, rank=y.S.shape[0]),
        -matmul(left - matmul(y.V, inner.T), dual.T),
    )
