"""Round-off of the loss: how far its value in floating point may lie from the exact one.

A certificate compares a computed loss with a critical value, so it must know what the evaluation of
`L(W) = ½‖M‖²_F`, `M = A − W_N…W_1D`, may be off by. With unit round-off `u`, `γ_k = ku/(1 − ku)` (any order of summation,
fused or not) and `δ ≥ ‖M̂ − M‖_F` for the computed residual `M̂`,

    ‖M‖_F ≤ ‖M̂‖_F + δ,   hence   |δL| ≤ ‖M̂‖δ + ½δ²,

and two bounds for `δ`:

- *coarse*, from the norms of the layers alone: `γ_K ∏‖W_j‖_F ‖D‖ + γ‖A‖_F`, since every product's error is bounded by that of
  the matrices of absolute values, `γ_K |W_N|…|W_1||D|`;
- *fine*, from partial products, which for deep networks may be much smaller than the products of norms: the error
  `γ‖W_j‖‖W_{j−1}…W_1‖` made in the `j`-th product is carried on by `W_N…W_{j+1}`, whose own error is bounded on the way.

Both count the change of coordinates as one more product, and add what the decomposition of the data into `A` and `D` leaves
uncertain, `gdflow.spectrum.data_error`: for badly conditioned inputs, or targets that they explain to a small part only, that is
most of it. It counts twice, for the square roots of levels are off by as much as the residual.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from gdflow.network import LayerTuple, matmul
from gdflow.objective import LinearObjective
from gdflow.problem import Problem

#: The coarse bound may exceed the fine one by the product of the square roots of the widths; up to this it is good enough.
COARSE_FACTOR = 1e6


def gamma(count: int, eps: float) -> float:
    """`γ_k = ku/(1 − ku)` with `u = eps/2`: the relative error of `k` operations; infinite where `ku ≥ 1`."""
    product = 0.5 * count * eps
    return product / (1 - product) if product < 1 else math.inf


def frobenius(squares: Float[Array, "*n"], dtype: jnp.dtype) -> Float[Array, "*n"]:
    """`‖W‖_F` from a computed sum of squares, rounded up by what may have underflowed in it."""
    underflow, widening = frobenius_parts(dtype)
    return jnp.sqrt(squares + underflow) * widening


def frobenius_parts(dtype: jnp.dtype) -> tuple[float, float]:
    """What `frobenius` adds to a sum of squares, and by what it multiplies the root."""
    return 2.0**20 * float(jnp.finfo(dtype).tiny), 1 + 2.0**10 * float(jnp.finfo(dtype).eps)


def _design_norm(objective: LinearObjective | Problem) -> Float[Array, ""]:
    """A bound of `‖D‖_2`: the lesser of `‖D‖_F` and `√(‖D‖_1‖D‖_∞)`, which is sharp where `D` is diagonal."""
    sizes = jnp.abs(objective.design)
    rows, columns = jnp.max(jnp.sum(sizes, axis=1)), jnp.max(jnp.sum(sizes, axis=0))
    return jnp.minimum(jnp.linalg.norm(objective.design), jnp.sqrt(rows * columns))


def _of_target(objective: LinearObjective | Problem) -> Float[Array, ""]:
    """Of the target: its rotation is rounded, and its decomposition; once in the residual, once in the levels (Mirsky)."""
    d_y, q = objective.target.shape
    rotation = gamma(d_y + q + 2, float(jnp.finfo(objective.target.dtype).eps)) * jnp.linalg.norm(objective.target)
    return rotation + 2 * objective.data_error


def coarse_is_enough(widths: tuple[int, ...]) -> bool:
    """Whether networks of these widths are shallow or narrow enough for the coarse bound."""
    return math.prod(min(a, b) for a, b in zip(widths[1:], widths[:-1], strict=True)) <= COARSE_FACTOR**2


def coarse_residual_error(
    objective: LinearObjective | Problem, widths: tuple[int, ...], squares: list[Float[Array, "*n"]]
) -> Float[Array, "*n"]:
    """The coarse bound `δ` of the error of the computed residual.

    **Arguments:** `squares`: `‖W_1‖²_F, …, ‖W_N‖²_F`, of one network or of many.
    """
    factor, rest = coarse_error_parts(objective, widths)
    norms = frobenius(jnp.stack(squares), objective.target.dtype)
    return factor * jnp.prod(norms, axis=0) + rest


def coarse_error_parts(
    objective: LinearObjective | Problem, widths: tuple[int, ...]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """`a` and `b` of the coarse bound `a∏‖W_j‖_F + b`, in whatever order the layers are multiplied: each way sums once over every
    hidden width.
    """
    factor = gamma(2 * widths[0] + widths[-1] + sum(widths[1:-1]), float(jnp.finfo(objective.target.dtype).eps))
    return factor * _design_norm(objective), _of_target(objective)


def product_error(net: LayerTuple, first: int) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Fine bound of the error of the computed `W_N…W_1` in the Frobenius norm, and the norm of the computed product.

    **Arguments:** `first`: how many operations an entry of `W_1` itself stands for, as the change of coordinates takes.
    """
    widths, dtype = net.widths, net.weights[0].dtype
    eps = float(jnp.finfo(dtype).eps)

    def size(matrix):
        return frobenius(jnp.sum(jnp.square(matrix)), dtype)

    norms = [size(w) for w in net.weights]
    right, rights = net.weights[0], [jnp.ones((), dtype)]  # ‖W_{j−1}…W_1‖ as computed, 1 for the identity
    for w in net.weights[1:]:
        rights.append(size(right))
        right = matmul(w, right)
    error = jnp.zeros((), dtype)
    left, left_norm, left_error = None, jnp.ones((), dtype), jnp.zeros((), dtype)  # of W_N…W_{j+1}
    for j in range(net.depth, 0, -1):
        inner = widths[j - 1] if j > 1 else first
        error = error + left_norm * gamma(inner, eps) * norms[j - 1] * rights[j - 1]
        if j > 1:
            left_error = (left_error + gamma(widths[j], eps) * left_norm) * norms[j - 1]
            left = net.weights[j - 1] if left is None else matmul(left, net.weights[j - 1])
            left_norm = size(left) + left_error
    return error, size(right)


def residual_error(objective: LinearObjective | Problem, net: LayerTuple) -> Float[Array, ""]:
    """The fine bound `δ ≥ ‖M̂ − M‖_F` of the error of the computed residual of one network. Traceable.

    Not meant to be differentiated; under `jax.grad` take `jax.lax.stop_gradient` of it.
    """
    eps = float(jnp.finfo(objective.target.dtype).eps)
    # One product for the coordinates of W_1, whose rotation is rounded like a product of this size.
    error, size = product_error(net, net.widths[0] + net.widths[-1])
    return (error + gamma(net.widths[0], eps) * size) * _design_norm(objective) + _of_target(objective)
