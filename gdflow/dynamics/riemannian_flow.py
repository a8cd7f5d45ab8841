"""The Riemannian gradient flow `Ẇ = −𝒜_{W,N}(∇L¹(W))` on the matrices of rank `k`.

Integrated in the low-rank form `W = USVᵀ`, `U (d_y, k)` and `V (d_x, k)` with orthonormal columns, `S (k, k)` invertible.
With `G = ∇L¹(W)`,

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
rather than go on to a wrong limit. The graded form (`gdflow.dynamics.graded`), slower and without derivatives, goes on
for good: it holds singular values to relative accuracy. `benchmarks/structure.py` compares them all.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int
from rich.console import RenderableType
from rich.text import Text

from gdflow.checks import check_count, check_number
from gdflow.dynamics.adjoints import check_adjoint, explain_forward_mode
from gdflow.dynamics.graded import Graded, GradedSolver
from gdflow.dynamics.options import check_tolerances, save_times
from gdflow.dynamics.runge_kutta import check_solver
from gdflow.dynamics.step_control import first_step, step_control
from gdflow.dynamics.trajectory import is_concrete
from gdflow.invariants import check_balanced
from gdflow.manifold import apply_operator, check_depth, homogeneous_sum
from gdflow.network import LayerTuple, matmul
from gdflow.perturbation import is_traced
from gdflow.problem import Problem
from gdflow.programs import forget_old_programs
from gdflow.ranks import decide_rank
from gdflow.tables import Printable, key_value_table


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


FORMS = ("low rank", "graded")


class LowRank(eqx.Module):
    """A matrix `USVᵀ` of rank `k`: `U`, `V` with orthonormal columns."""

    U: Float[Array, "*n d_y k"]
    S: Float[Array, "*n k k"]
    V: Float[Array, "*n d_x k"]

    @property
    def matrix(self) -> Float[Array, "*n d_y d_x"]:
        """`USVᵀ`."""
        return matmul(matmul(self.U, self.S), jnp.swapaxes(self.V, -1, -2))


class RiemannianTrajectory(Printable, eqx.Module):
    """A solution of the Riemannian gradient flow, from `gdflow.riemannian_flow`.

    - `ts`: saved times, `(T,)`; `factors`: `W = USVᵀ` there; `losses`: effective losses `L¹` there.
    - `final_time`, `last`: the end: `t1`, or where the boundary of `M_k` was met; saved times after it are NaN.
    - `at_boundary`: whether the smallest singular value fell below `boundary` times the largest.
    - `num_steps`: accepted and rejected; `solved`: whether the solver got to its end, and that is finite.
    """

    problem: Problem
    depth: float = eqx.field(static=True)
    ts: Float[Array, " T"]
    factors: LowRank
    losses: Float[Array, " T"]
    final_time: Float[Array, ""]
    last: LowRank
    at_boundary: Bool[Array, ""]
    num_steps: Int[Array, ""]
    solved: Bool[Array, ""]

    @property
    def matrices(self) -> Float[Array, "T d_y d_x"]:
        """`W` at the saved times."""
        return self.factors.matrix

    @property
    def final(self) -> Float[Array, "d_y d_x"]:
        """`W` at the end."""
        return self.last.matrix

    @property
    def singular_values(self) -> Float[Array, "T k"]:
        """The `k` singular values of `W` at the saved times; small ones are accurate relative to themselves."""
        return jnp.linalg.svd(self.factors.S, compute_uv=False)

    @property
    def rank(self) -> int:
        """`k`."""
        return self.factors.S.shape[-1]

    def __rich__(self) -> RenderableType:
        if not is_concrete(self):
            return Text(eqx.tree_pformat(self))
        sigma = np.linalg.svd(np.asarray(self.last.S), compute_uv=False)
        end = "" if bool(self.solved) else ": NOT SOLVED to the end"
        if bool(self.at_boundary):
            end = f": STOPPED at the boundary, a singular value is {sigma[-1] / sigma[0]:.1e} of the largest"
        rows = [
            ("rank", str(self.rank)),
            ("depth N", f"{self.depth:g}"),
            ("time", f"{float(self.ts[0]):g} … {float(self.final_time):g}, {int(self.num_steps)} steps{end}"),
            ("effective loss", f"{float(self.losses[0]):.8g} → {float(self.problem.end_to_end_loss(self.final)):.8g}"),
            ("singular values", ", ".join(f"{s:.6g}" for s in sigma[:8]) + (" …" if len(sigma) > 8 else "")),
        ]  # fmt: skip
        values = np.zeros(0) if self.problem.spectrum is None else np.asarray(self.problem.singular_values)
        found = int(np.sum(values > 0))
        if 0 < found < self.rank:
            rows.append(("limit", f"of lower rank: the target has rank {found}, no minimum of rank {self.rank}"))
        return key_value_table("Riemannian gradient flow", rows)


def riemannian_flow(
    problem: Problem,
    start: Float[ArrayLike, "d_y d_x"] | LayerTuple,
    depth: float,
    t1: float,
    *,
    rank: float | None = None,
    ts: ArrayLike | Sequence[float] | float = 101,
    rtol: float = 1e-8,
    atol: float = 1e-11,
    solver: diffrax.AbstractSolver = diffrax.Tsit5(),
    max_steps: float = 100_000,
    form: str = "low rank",
    boundary: float | None = None,
    balance_tolerance: float = 1e-9,
    adjoint: diffrax.AbstractAdjoint | None = None,
) -> RiemannianTrajectory:
    """The flow `Ẇ = −𝒜_{W,N}(∇L¹(W))` on the matrices of rank `k`, from `W(0)`.

    For a.e. start of rank `k` the limit is the best fit of rank `k` or a critical point of lower rank on the boundary of
    `M_k` (Terstiege, Rauhut, Bah, Westdickenberg 2022, Theorem 6); the second is certain for `k` above the rank of the
    target, and can happen for a set of starts of positive measure (square matrices of full rank keep the sign of their
    determinant).

    **Arguments:**

    - `start`: `W(0)` in the problem's coordinates, or balanced factors, whose product is taken.
    - `depth`: `N`, a real number from 2 on. `math.inf`: the flow in the time `Nt`, whose row and column spaces stand still.
    - `rank`: `k`, by default the numerical rank of the start; if it is less, smaller singular values are dropped.
    - `ts`: saved times, or how many from 0 to `t1`.
    - `form`: `"low rank"`, or `"graded"` for flows that come close to the boundary of `M_k`: that keeps small singular values,
      and the sign of the determinant, for all times, is slower and has no derivatives.
    - `boundary`: (low-rank form only) the flow stops where `σ_k < boundary·σ_1`, by default at `100·rtol`: there the
      integration can no longer tell on which side of the boundary of `M_k` it is. 0 to go on regardless.
    - `balance_tolerance`: factors are refused if `max_j ‖C_j‖` exceeds this multiple of the largest `‖W_j‖²`.
    - `adjoint`: how to differentiate, as in `gdflow.simulate`.

    Differentiable in `W(0)` along the manifold and in the data (`gdflow.perturbation`), for integer `N`.

    **Raises:** `ValueError` for a start of rank zero (it never moves), of lower rank than `rank`, of the wrong shape or not
    finite, `X` not of full row rank, depths below 2, unbalanced factors or factors whose number is not `N`, solvers that do not
    fit, and options out of range. Under a transformation the rank of the start is not checked: if it is lower, the trajectory is
    not `solved`.

    ```python
    >>> flow = riemannian_flow(problem, W0, 3, 50.0)
    >>> print(flow, flow.singular_values[-1])
    ```
    """
    check_adjoint(adjoint)
    if check_depth(depth) == 1:
        raise ValueError("for N = 1 the flow is the gradient flow of a single layer: use simulate")
    problem.check_full_row_rank()
    if isinstance(start, LayerTuple):
        if start.depth != depth:
            raise ValueError(f"{start.depth} factors were given for N = {depth}")
        check_balanced(start, balance_tolerance)
        start = start.end_to_end
    start = _as_matrix(start)
    if start.shape != (problem.d_out, problem.d_in):
        raise ValueError(
            f"W(0) must have shape {(problem.d_out, problem.d_in)} in these coordinates, got {start.shape}"
        )
    if not check_number("t1", t1) > 0:
        raise ValueError(f"t1 must be positive and finite, got {t1}")
    times = save_times(ts, 0.0, t1)
    max_steps = check_tolerances(rtol, atol, max_steps)
    if rank is not None:
        rank = check_count("rank", rank)
        if rank > min(start.shape):
            raise ValueError(f"rank must lie between 1 and {min(start.shape)}, got {rank}")
    if not is_traced(start):
        rank = _check_rank(np.asarray(start), rank)
    if rank is None:
        raise ValueError("under a transformation the rank of W(0) cannot be found: pass rank=")
    if form not in FORMS:
        raise ValueError(f"form must be one of {FORMS}, got {form!r}")
    check_solver(solver)
    span = jnp.asarray(t1, dtype=float)
    if not is_traced(problem, start):
        forget_old_programs(pause=1.0)
    if form == "graded":
        if boundary is not None or adjoint is not None:
            raise ValueError(
                "the graded form has no boundary to stop at, and no derivatives: leave boundary and adjoint out"
            )
        if not isinstance(solver, diffrax.AbstractERK):
            raise ValueError(f"the graded form steps by explicit Runge–Kutta methods, not by {type(solver).__name__}")
        parts = _solve_graded(problem.without_info(), start, depth, span, rank, times, rtol, atol, solver, max_steps)
        return RiemannianTrajectory(problem=problem, depth=depth, ts=times, **parts)
    boundary = 100 * rtol if boundary is None else check_number("boundary", boundary)
    if not 0 <= boundary < 1:
        raise ValueError(f"boundary must lie between 0 and 1, got {boundary}")
    adjoint = adjoint or diffrax.RecursiveCheckpointAdjoint()
    with explain_forward_mode():
        parts = _solve(
            problem.without_info(), start, depth, span, rank, times, rtol, atol, solver, max_steps, boundary, adjoint
        )
    return RiemannianTrajectory(problem=problem, depth=depth, ts=times, **parts)


def _as_matrix(start: ArrayLike) -> Array:
    """`W(0)` as an array of floats; `TypeError` for what holds no real numbers."""
    if not isinstance(start, jax.Array):
        start = np.asarray(start) if hasattr(start, "__array__") else start
        if not isinstance(start, np.ndarray) or start.dtype.kind not in "fiub":
            raise TypeError(
                f"W(0) must be a matrix of real numbers, or a gdflow.LayerTuple; got {type(start).__name__}"
            )
        start = jnp.asarray(start, dtype=float)
    if not jnp.issubdtype(start.dtype, jnp.floating):
        raise TypeError(f"W(0) must be real floating point, got dtype {start.dtype}")
    return start


def _check_rank(W: np.ndarray, rank: int | None) -> int:
    """The rank to flow with: the numerical rank of a start, or a lower one; `ValueError` for zero and for higher ones."""
    if not np.all(np.isfinite(W)):
        raise ValueError("W(0) has entries that are not finite")
    values = np.linalg.svd(W, compute_uv=False)
    found = decide_rank(values, size=max(W.shape)).rank
    if found == 0:
        raise ValueError("W(0) is zero: it has rank 0 and never moves")
    if rank is not None and rank > found:
        raise ValueError(
            f"W(0) has numerical rank {found}, not the {rank} asked for: singular value {rank} is {values[rank - 1]:.2g} beside "
            f"{values[0]:.2g}; the flow keeps its rank, so leave rank out"
        )
    return found if rank is None else rank


def _factor(W: Array, rank: int) -> LowRank:
    """`W` of rank `k` as `USVᵀ`, with derivatives along the manifold that are right at repeated singular values too."""
    fixed = jax.lax.stop_gradient(W)
    U, _, Vt = jnp.linalg.svd(fixed, full_matrices=False)
    U, V = U[:, :rank], Vt[:rank].T
    # To first order, U moves by (I − UUᵀ)ẆVS^{-1}, V by (I − VVᵀ)ẆᵀUS^{-T}, and S by UᵀẆV.
    S = matmul(matmul(U.T, W), V)
    inverse = jax.lax.stop_gradient(jnp.linalg.inv(S))
    change = W - fixed
    right, left = matmul(change, matmul(V, inverse)), matmul(change.T, matmul(U, inverse.T))
    return LowRank(U + right - matmul(U, matmul(U.T, right)), S, V + left - matmul(V, matmul(V.T, left)))


def _field(t: Any, y: LowRank, args: tuple[Problem, float]) -> LowRank:
    problem, depth = args
    G = problem.end_to_end_gradient(y.matrix)
    right, left = matmul(G, y.V), matmul(G.T, y.U)
    inner = matmul(y.U.T, right)
    if math.isinf(depth):
        still = (jnp.zeros_like(y.U), jnp.zeros_like(y.V))
        return LowRank(still[0], -apply_operator(y.S, inner, depth, rank=y.S.shape[0]), still[1])
    dual = _dual(y.S, depth)
    return LowRank(
        -matmul(right - matmul(y.U, inner), dual),
        -apply_operator(y.S, inner, depth, rank=y.S.shape[0]),
        -matmul(left - matmul(y.V, inner.T), dual.T),
    )


@eqx.filter_jit
def _solve(problem, start, depth, t1, rank, ts, rtol, atol, solver, max_steps, boundary, adjoint) -> dict[str, Any]:
    """The fields of a trajectory that the solver determines."""
    y0 = _factor(start, rank)
    term = diffrax.ODETerm(lambda t, y, p: _field(t, y, (p, depth)))
    controller = step_control(rtol, atol)
    dt0 = first_step(term, solver, controller, jnp.zeros_like(t1), t1, y0, problem)

    def near_boundary(t, y, args, **_):
        sigma = jnp.linalg.svd(jax.lax.stop_gradient(y.S), compute_uv=False)
        return sigma[-1] < boundary * sigma[0]

    solution: Any = diffrax.diffeqsolve(
        term,
        solver,
        0.0,
        t1,
        dt0,
        y0,
        args=problem,
        saveat=diffrax.SaveAt(subs=[diffrax.SubSaveAt(ts=ts), diffrax.SubSaveAt(t1=True)]),
        event=diffrax.Event(near_boundary),
        adjoint=adjoint,
        stepsize_controller=controller,
        max_steps=max_steps,
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
        solved=ended & _is_finite(last),
    )


def _is_finite(tree: Any) -> Bool[Array, ""]:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


@jax.custom_jvp
def _constant(x: Array) -> Array:
    return x


@_constant.defjvp
def _(primals, tangents):
    raise NotImplementedError("the graded form of the Riemannian flow has no derivatives: use the low-rank form")


def _without_derivatives(tree: Any) -> Any:
    """The same numbers, which refuse to be differentiated."""
    return jax.tree.map(lambda x: _constant(x) if eqx.is_inexact_array(x) else x, tree)


@eqx.filter_jit
def _solve_graded(problem, start, depth, t1, rank, ts, rtol, atol, solver, max_steps) -> dict[str, Any]:
    """The fields of a trajectory that the solver determines."""
    problem, start, ts = _without_derivatives((problem, start, ts))
    U, sigma, Vt = jnp.linalg.svd(start, full_matrices=False)
    first = Graded(U[:, :rank], sigma[:rank], Vt[:rank].T)
    graded = GradedSolver(solver)
    term = diffrax.ODETerm(lambda t, y, args: graded.func(None, t, y, args))
    controller = step_control(rtol, atol)

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
                max_steps=max_steps,
                throw=False,
            )
            y1, reached = jax.tree.map(lambda x: x[0], (solution.ys, solution.ts))
            done = (solution.result == diffrax.RESULTS.successful) & _is_finite(y1)
            return y1, reached, solution.stats["num_steps"], done

        y1, reached, count, done = jax.lax.cond(solved & (end > t), go, lambda: (y, t, jnp.asarray(0), solved))
        dt = jnp.where(count > 0, (end - t) / jnp.maximum(count, 1), dt)
        shown = jax.tree.map(lambda x: jnp.where(done, x, jnp.nan), y1)
        return (y1, reached, dt, steps + count, done), shown

    dt0 = first_step(term, graded, controller, jnp.zeros_like(t1), t1, first, (problem, depth))
    carry = (first, jnp.zeros_like(t1), dt0, jnp.asarray(0), jnp.asarray(True))
    carry, states = jax.lax.scan(advance, carry, ts)
    (last, final_time, _, steps, solved), _ = advance(carry, t1)

    def low_rank(y):
        return LowRank(y.U, jnp.vectorize(jnp.diag, signature="(k)->(k,k)")(y.sigma), y.V)

    return dict(
        factors=low_rank(states),
        losses=jax.vmap(lambda y: problem.end_to_end_loss(y.matrix))(states),
        final_time=final_time,
        last=low_rank(last),
        at_boundary=jnp.asarray(False),
        num_steps=steps,
        solved=solved,
    )
