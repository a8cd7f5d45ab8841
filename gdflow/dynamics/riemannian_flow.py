"""The Riemannian gradient flow `Ẇ = −𝒜_{W,N}(∇L¹(W))` on the matrices of rank `k`.

It can be integrated in two forms: `gdflow.dynamics.low_rank`, fast and differentiable, stops where round-off would decide on
which side of the boundary of `M_k` it is; `gdflow.dynamics.graded`, slower and without derivatives, goes on for good.
`benchmarks/structure.py` compares them with integrations of the factors.
"""

from collections.abc import Sequence
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from gdflow.checks import check_count, check_number, is_traced
from gdflow.dynamics.adjoints import check_adjoint, explain_forward_mode
from gdflow.dynamics.forms import AbstractForm, Integrator
from gdflow.dynamics.low_rank import LowRank
from gdflow.dynamics.options import check_tolerances, save_times
from gdflow.dynamics.riemannian_trajectory import RiemannianTrajectory
from gdflow.dynamics.runge_kutta import check_solver
from gdflow.invariants import check_balanced
from gdflow.manifold import check_depth
from gdflow.network import LayerTuple
from gdflow.problem import Problem
from gdflow.programs import forget_old_programs
from gdflow.ranks import decide_rank


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
    form: AbstractForm = LowRank(),
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
    - `form`: `gdflow.dynamics.LowRank()`, which stops where it comes too close to the boundary of `M_k`, or
      `gdflow.dynamics.Graded()`, which goes on there for good, is slower and has no derivatives.
    - `balance_tolerance`: factors are refused if `max_j ‖C_j‖` exceeds this multiple of the largest `‖W_j‖²`.
    - `adjoint`: how to differentiate, as in `gdflow.simulate`.

    Differentiable in `W(0)` along the manifold and in the data (`gdflow.perturbation`), for integer `N`.

    **Raises:** `ValueError` for a start of rank zero (it never moves), of lower rank than `rank`, of the wrong shape or not
    finite, `X` not of full row rank, depths below 2, unbalanced factors or factors whose number is not `N`, solvers that do not
    fit, and options out of range; `TypeError` for what is no form. Under a transformation the rank of the start is not checked:
    if it is lower, the trajectory is not `solved`.

    ```python
    >>> flow = riemannian_flow(problem, W0, 3, 50.0)
    >>> print(flow, flow.singular_values[-1])
    ```
    """
    check_adjoint(adjoint)
    if not isinstance(form, AbstractForm):
        raise TypeError(f"form must be gdflow.dynamics.LowRank() or gdflow.dynamics.Graded(), got {form!r}")
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
    check_solver(solver)
    integrator = Integrator(solver, rtol, atol, max_steps, adjoint)
    form.check(integrator)
    if not is_traced(problem, start):
        forget_old_programs(pause=1.0)
    span = jnp.asarray(t1, dtype=float)
    with explain_forward_mode():
        parts = _solve(form, problem.without_info(), start, rank, depth, span, times, integrator)
    return RiemannianTrajectory(problem=problem, depth=depth, ts=times, **parts)


@eqx.filter_jit
def _solve(form: AbstractForm, *arguments: Any) -> dict[str, Any]:
    return form.solve(*arguments)


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
