"""On which side of `det W = 0` a balanced start lies, which its exact flow never leaves.

The end-to-end matrix of a balanced start keeps its rank for all finite times (Terstiege, Rauhut, Bah, Westdickenberg 2022,
Theorem 4), so a square one of full rank keeps the sign of its determinant. The only critical point of `L¹` of full rank is
`YXᵀ(XXᵀ)^{-1}`, for a target of full rank; a start whose determinant has the other sign cannot converge to it. Its limit is on
the boundary, at one of the values `ℓ(S)`, `|S| < d`, the lowest of which is the second-lowest critical value.

All this is meant of exactly balanced starts: what is balanced up to round-off only leaves the set in the end, and so does an
integration of the factors.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gdflow.factorizations import determinant_sign
from gdflow.invariants import is_balanced
from gdflow.network import LayerTuple, matmul
from gdflow.objective import LinearObjective
from gdflow.problem import Problem
from gdflow.ranks import equal_threshold
from gdflow.rounding import gamma, product_error

#: Starts are balanced to round-off if the C_j are at most this multiple of the weights: some hundred times their round-off.
BALANCED = 1e-12


def _full_rank(s: Float[Array, " k"]) -> Bool[Array, ""]:
    """Whether leaving out the smallest singular value of the target makes another level."""
    return 0.5 * s[-1] ** 2 > equal_threshold(1.0, float(jnp.finfo(s.dtype).eps)) * jnp.sum(s**2)


def _is_square(problem: Problem, widths: Sequence[int]) -> bool:
    d = problem.d_out
    return problem.d_in == d <= min(widths) and problem.singular_values.shape[0] == d and len(widths) > 2


def sign_decides(problem: Problem, widths: Sequence[int]) -> bool:
    """Whether the limit of a balanced start of these widths depends on the sign of its determinant.

    So it is where `W` is square, no layer is narrower, and `X` and the target have full rank.
    """
    return _is_square(problem, widths) and bool(_full_rank(problem.singular_values))


def _side_of_the_minimum(objective: LinearObjective | Problem) -> Int[Array, ""]:
    """The sign of the determinant of the minimum, which solves `W DDᵀ = ADᵀ`; 0 if in doubt."""
    D, A = objective.design, objective.target
    round_off = gamma(3 * objective.d_out, float(jnp.finfo(A.dtype).eps)) * jnp.linalg.norm(A)
    return determinant_sign(matmul(A, D.T), (objective.data_error + round_off) * jnp.linalg.norm(D))


def wrong_side(objective: LinearObjective | Problem, net: LayerTuple) -> Bool[Array, ""]:
    """Whether the determinants of `W` and of the minimum have opposite signs, beyond doubt. Traceable.

    `W` is square. Where round-off leaves a sign in doubt (`gdflow.factorizations.determinant_sign`) nothing is claimed.
    """
    # Of the exact product, and of balanced starts that these are the rounding of.
    error, _ = product_error(net, 2 * objective.d_out)
    return determinant_sign(net.end_to_end, error) * _side_of_the_minimum(objective) < 0


def full_rank_is_out_of_reach(problem: Problem, net: LayerTuple) -> Bool[Array, ""]:
    """Whether a *balanced* start is on the wrong side of `det W = 0`, so that its limit has a rank below `d = d_x = d_y`.

    `False` where `W` is not square, `net` narrower than `d`, `X` or the target not of full rank, or the sign in doubt: there
    nothing is claimed. That the start is balanced is not checked.

    Traceable: `jax.vmap` it over batches.
    """
    if not _is_square(problem, net.widths):
        return jnp.asarray(False)
    return _full_rank(problem.singular_values) & wrong_side(problem, net)


def check_side(problem: Problem, net: LayerTuple) -> None:
    """`ValueError` for a start, or a batch of them, that is balanced to round-off on the wrong side of `det W = 0`.

    The exact flow from the balanced start keeps the sign and never gets to a global minimum, but an integration of the factors
    does, carried across by round-off: a plain certificate at its end would be false of the start.
    """
    if problem.spectrum is None or not _is_square(problem, net.widths):
        return
    batch = jax.tree.map(lambda w: w if net.batch_shape else w[None], net)

    def wrong(start):
        return is_balanced(start, BALANCED) & full_rank_is_out_of_reach(problem, start)

    found = np.flatnonzero(np.asarray(jax.vmap(wrong)(batch)))
    if found.size:
        which = f"start number {found[0]} of the batch" if net.batch_shape else "this start"
        raise ValueError(
            f"{which} is balanced (C_j = 0 up to round-off) and on the wrong side of det W = 0: its exact flow keeps the sign "
            "and ends at lower rank, but round-off takes an integration of the factors across, to a minimum never reached. "
            "Take gdflow.riemannian_flow(problem, net, N, t1, form=gdflow.dynamics.Graded()), and for many starts "
            "gdflow.basin_sizes with a law that says that it is balanced"
        )
