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
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gdflow.dynamics.forms import AbstractForm, Factored, Integrator, is_finite
from gdflow.dynamics.step_control import first_step, step_control
from gdflow.factorizations import orthogonalize_columns
from gdflow.manifold import kernel
from gdflow.network import matmul

#: Singular values do not fall below this, so that their squares do not underflow.
_SMALLEST = 1e-140


class Graded(AbstractForm):
    """`W = UΣVᵀ` with all singular values accurate relative to themselves, however small.

    For flows that come close to the boundary of `M_k`: it keeps small singular values, and the sign of the determinant, for all
    times. It is slower than `gdflow.dynamics.LowRank`, steps by explicit Runge–Kutta methods, and has no derivatives.
    """

    def check(self, integrator: Integrator) -> None:
        if integrator.adjoint is not None:
            raise ValueError("the graded form has no derivatives: leave adjoint out")
        if not isinstance(integrator.solver, diffrax.AbstractERK):
            name = type(integrator.solver).__name__
            raise ValueError(f"the graded form steps by explicit Runge–Kutta methods, not by {name}")

    def solve(self, problem, start, rank, depth, t1, ts, integrator: Integrator) -> dict[str, Any]:
        assert isinstance(integrator.solver, diffrax.AbstractERK)  # as checked
        problem, start, ts = _without_derivatives((problem, start, ts))
        U, sigma, Vt = jnp.linalg.svd(start, full_matrices=False)
        first = Decomposed(U[:, :rank], sigma[:rank], Vt[:rank].T)
        graded = GradedSolver(integrator.solver)
        term = diffrax.ODETerm(lambda t, y, args: graded.func(None, t, y, args))
        controller = step_control(integrator.rtol, integrator.atol)

        def advance(carry, end):
            """From one saved time to the next, since between steps there is nothing to interpolate; no further than it gets."""
            y, t, dt, steps, solved = carry

            def go():
                solution: Any = diffrax.diffeqsolve(
                    term,
                    graded,
                    t,
                    end,
                    jnp.minimum(dt, end - t),
                    y,
                    args=(problem, depth),
                    saveat=diffrax.SaveAt(t1=True),
                    stepsize_controller=controller,
                    max_steps=integrator.max_steps,
                    throw=False,
                )
                y1, reached = jax.tree.map(lambda x: x[0], (solution.ys, solution.ts))
                done = (solution.result == diffrax.RESULTS.successful) & is_finite(y1)
                return y1, reached, solution.stats["num_steps"], done

            y1, reached, count, done = jax.lax.cond(solved & (end > t), go, lambda: (y, t, jnp.asarray(0), solved))
            dt = jnp.where(count > 0, (end - t) / jnp.maximum(count, 1), dt)
            shown = jax.tree.map(lambda x: jnp.where(done, x, jnp.nan), y1)
            return (y1, reached, dt, steps + count, done), shown

        dt0 = first_step(term, graded, controller, jnp.zeros_like(t1), t1, first, (problem, depth))
        carry = (first, jnp.zeros_like(t1), dt0, jnp.asarray(0), jnp.asarray(True))
        carry, states = jax.lax.scan(advance, carry, ts)
        (last, final_time, _, steps, solved), _ = advance(carry, t1)

        def factored(y):
            return Factored(y.U, jnp.vectorize(jnp.diag, signature="(k)->(k,k)")(y.sigma), y.V)

        return dict(
            factors=factored(states),
            losses=jax.vmap(lambda y: problem.end_to_end_loss(y.matrix))(states),
            final_time=final_time,
            last=factored(last),
            at_boundary=jnp.asarray(False),
            num_steps=steps,
            solved=solved,
        )


class Decomposed(eqx.Module):
    """`W = UΣVᵀ`: orthonormal columns and positive singular values, in any order."""

    U: Float[Array, "d_y k"]
    sigma: Float[Array, " k"]
    V: Float[Array, "d_x k"]

    @property
    def matrix(self) -> Float[Array, "d_y d_x"]:
        return matmul(self.U * self.sigma[None, :], self.V.T)


def decompose(P: Float[Array, "d_y k"], sigma: Float[Array, " k"], Q: Float[Array, "d_x k"]) -> Decomposed:
    """The singular value decomposition of `PΣQᵀ`, singular values to relative accuracy for well-conditioned `P` and `Q`.

    Not differentiable.
    """
    left, J = orthogonalize_columns(P * sigma[None, :])
    lengths = jnp.linalg.norm(left, axis=0)
    # PΣ = U_1 diag(lengths) Jᵀ, so that (PΣQᵀ)ᵀ = (QJ) diag(lengths) U_1ᵀ.
    right, K = orthogonalize_columns(matmul(Q, J) * lengths[None, :])
    values = jnp.linalg.norm(right, axis=0)
    return Decomposed(matmul(left / lengths[None, :], K), jnp.maximum(values, _SMALLEST), right / values[None, :])


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
    """Steps `Decomposed` states by an explicit Runge–Kutta method in the local coordinates `P`, `Q`; no dense output."""

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
        return Decomposed(P, jnp.zeros_like(y0.sigma), Q)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        local, inside = (y0.U, y0.V), (*args, y0.sigma)
        term = diffrax.ODETerm(_field)
        state = self.solver.init(term, t0, t1, local, inside)
        (P, Q), error, _, _, result = self.solver.step(term, t0, t1, local, inside, state, made_jump=False)
        y1 = decompose(P, y0.sigma, Q)
        error = Decomposed(error[0], jnp.zeros_like(y0.sigma), error[1])
        return y1, error, dict(y0=y0, y1=y1), None, result


@jax.custom_jvp
def _constant(x: Array) -> Array:
    return x


@_constant.defjvp
def _(primals, tangents):
    raise NotImplementedError("the graded form of the Riemannian flow has no derivatives: use the low-rank form")


def _without_derivatives(tree: Any) -> Any:
    """The same numbers, which refuse to be differentiated."""
    return jax.tree.map(lambda x: _constant(x) if eqx.is_inexact_array(x) else x, tree)
