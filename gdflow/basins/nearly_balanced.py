r"""How far the nearest exactly balanced network is, at most: floating-point starts are balanced up to round-off only.

Let all layers be square and invertible, `W_j = Q_jR_j` with `Q_j` orthogonal and `R_j = (W_jᵀW_j)^½`. Then `W°_1 = W_1` and
`W°_{j+1} = Q_{j+1}(W°_jW°_jᵀ)^½` are exactly balanced, `W°_{j+1}ᵀW°_{j+1} = W°_jW°_jᵀ`, and their determinants have the signs of
those of the `W_j`.
Square roots of positive matrices differ by

    ‖P^½ − R^½‖_F ≤ ‖P − R‖_F/(σ_min(P^½) + σ_min(R^½))

(Schmitt 1992, Lemma 2.2), so that with `C_j = W_{j+1}ᵀW_{j+1} − W_jW_jᵀ` the distances `δ_j ≥ ‖W°_j − W_j‖_F` are

    δ_1 = 0,   δ_{j+1} = (‖C_j‖_F + δ_j(2‖W_j‖_F + δ_j))/(σ_min(W_j) − δ_j + σ_min(W_{j+1})).
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from gdflow.factorizations import orthogonalize_columns
from gdflow.invariants import conserved
from gdflow.network import LayerTuple, matmul
from gdflow.rounding import frobenius, gamma

_INFLATION = 1 + 1e-8


def least_singular_value(A: Float[Array, "d d"]) -> Float[Array, ""]:
    """A lower bound of `σ_min(A)`, negative where it says nothing.

    From a computed `AJ = B` with nearly orthogonal columns, which need not be right: with `‖JᵀJ − I‖ ≤ α` and `‖AJ − B‖ ≤ ρ`,
    `‖Ax‖ ≥ (σ_min(B) − ρ)‖x‖/√(1 + α)`, and `σ_min(B)²` by Gershgorin's circles of `BᵀB`.
    """
    d, eps = A.shape[0], float(jnp.finfo(A.dtype).eps)
    rounding = 4 * gamma(4 * d, eps)
    B, J = orthogonalize_columns(A)
    sizes = [frobenius(jnp.sum(jnp.square(x)), A.dtype) for x in (A, B, J)]
    gram = matmul(B.T, B)
    circles = 2 * jnp.diagonal(gram) - jnp.sum(jnp.abs(gram), axis=1)
    square = jnp.min(circles) - rounding * sizes[1] ** 2
    alpha, rho = (
        frobenius(jnp.sum(jnp.square(x)), A.dtype)
        for x in (matmul(J.T, J) - jnp.eye(d, dtype=A.dtype), matmul(A, J) - B)
    )
    alpha = alpha + rounding * sizes[2] ** 2
    rho = rho + rounding * (sizes[0] * sizes[2] + sizes[1])
    least = (jnp.sqrt(jnp.maximum(square, 0.0)) - rho * _INFLATION) / jnp.sqrt(1 + alpha)
    return jnp.where(alpha < 0.5, least / _INFLATION, -jnp.inf)


def distance_to_balanced(net: LayerTuple) -> Float[Array, ""]:
    """A bound of the distance from an exactly balanced network with determinants of the same signs; infinite if none was found.

    **Arguments:** `net`: one network, all widths equal.

    **Raises:** `ValueError` for other widths.
    """
    if len(set(net.widths)) > 1:
        raise ValueError(f"the nearest balanced network is known for square layers only, got widths {net.widths}")
    dtype, d = net.weights[0].dtype, net.widths[0]
    rounding = 4 * gamma(4 * d, float(jnp.finfo(dtype).eps))
    sizes = [frobenius(jnp.sum(jnp.square(w)), dtype) for w in net.weights]
    least = [least_singular_value(w) for w in net.weights]
    delta, total = jnp.zeros((), dtype), jnp.zeros((), dtype)
    for j, C in enumerate(conserved(net)):
        # `frobenius` allows for squares that underflow, and so for all of C of layers that are that small.
        apart = frobenius(jnp.sum(jnp.square(C)), dtype) + rounding * (sizes[j] ** 2 + sizes[j + 1] ** 2)
        room = jnp.minimum(least[j] - delta, least[j + 1])  # both have to be positive
        apart = (apart + delta * (2 * sizes[j] + delta)) * _INFLATION
        delta = jnp.where(room > 0, apart / (least[j] - delta + least[j + 1]) * _INFLATION, jnp.inf)
        total = total + delta**2
    return frobenius(total, dtype) * _INFLATION
