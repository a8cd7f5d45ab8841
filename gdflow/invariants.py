"""Conserved quantities of the gradient flow of any loss of the end-to-end matrix.

`C_j = W_{j+1}ᵀW_{j+1} − W_jW_jᵀ`, `j = 1, …, N−1`, is constant along the flow (Chitour, Liao, Couillet 2022, Lemma 2.2).
"""

from collections.abc import Iterable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gdflow.factorizations import column_lengths
from gdflow.network import LayerTuple, check_one_network, check_widths, matmul


def conserved(net: LayerTuple) -> tuple[Float[Array, "d_j d_j"], ...]:
    """`C_j = W_{j+1}ᵀW_{j+1} − W_jW_jᵀ` for `j = 1, …, N−1`; empty for a single layer.

    ```python
    >>> conserved(LayerTuple([jnp.eye(2), 2.0 * jnp.eye(2)]))[0]
    Array([[3., 0.],
           [0., 3.]], dtype=float64)
    ```
    """
    check_one_network(net)
    pairs = zip(net.weights[:-1], net.weights[1:], strict=True)
    return tuple(matmul(after.T, after) - matmul(before, before.T) for before, after in pairs)


def norm_differences(net: LayerTuple) -> Float[Array, " N_minus_1"]:
    """`‖W_{j+1}‖² − ‖W_j‖² = tr C_j`, conserved."""
    return jnp.diff(net.layer_norms() ** 2)


def imbalance(net: LayerTuple) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """`max_j ‖C_j‖_F`, zero for a single layer, and the largest `‖W_j‖²_F` to compare it with. Traceable."""
    zero = jnp.zeros((), net.weights[0].dtype)
    # As columns: their lengths are right where squares of entries underflow.
    worst = jnp.max(jnp.stack([zero, *(column_lengths(C.reshape(-1, 1))[0] for C in conserved(net))]))
    return worst, jnp.max(net.layer_norms()) ** 2


def is_balanced(net: LayerTuple, tolerance: float = 1e-9) -> Bool[Array, ""]:
    """Whether all `‖C_j‖_F` are at most `tolerance` times the largest `‖W_j‖²_F`. Traceable."""
    worst, scale = imbalance(net)
    return worst <= tolerance * scale


def check_balanced(net: LayerTuple, tolerance: float = 1e-9) -> None:
    """`ValueError` unless the network is balanced: all `‖C_j‖_F` at most `tolerance` times the largest `‖W_j‖²_F`."""
    if not is_balanced(net, tolerance):
        worst, scale = map(float, imbalance(net))
        raise ValueError(
            f"the factors are not balanced: max_j ‖W_{{j+1}}ᵀW_{{j+1}} − W_jW_jᵀ‖ = {worst:.3g} beside max ‖W_j‖² = {scale:.3g}; "
            "the Riemannian flow describes balanced starts only, e.g. those of gdflow.initialization.Balanced"
        )


def descent_change(gradient: LayerTuple, step: Float[Array, ""] | float) -> tuple[Float[Array, "d_j d_j"], ...]:
    """By how much one step of gradient descent changes the `C_j`: exactly `η²(G_{j+1}ᵀG_{j+1} − G_jG_jᵀ)`, `G = ∇L`.

    The terms of first order cancel, as they do for the flow. **Arguments:** `gradient`: where the step begins; `step`: `η`.
    Traceable.

    ```python
    >>> after = conserved(jax.tree.map(lambda w, g: w - 0.1 * g, net, G))  # = conserved(net) + descent_change(G, 0.1)
    ```
    """
    pairs = zip(gradient.weights[:-1], gradient.weights[1:], strict=True)
    return tuple(step**2 * (matmul(after.T, after) - matmul(before, before.T)) for before, after in pairs)


def num_independent_laws(widths: Iterable[int]) -> int:
    """Number of functionally independent scalar conservation laws among the entries of all `C_j`.

    `Σ_j ρ_j` with `n = d_{j-1} + d_{j+1}` and `ρ_j = d_j(d_j+1)/2` if `n ≥ d_j`, else `n(2d_j − n + 1)/2`: `C_j` is
    symmetric and, where the layer is wider than both neighbours together, of rank at most `n`.

    **Arguments:** `widths`: `(d_0, …, d_N)`.
    """
    widths = check_widths(widths)
    count = 0
    for before, d, after in zip(widths[:-2], widths[1:-1], widths[2:], strict=True):
        n = min(before + after, d)
        count += n * (2 * d - n + 1) // 2
    return count


def drift(net: LayerTuple, start: LayerTuple) -> Float[Array, ""]:
    """How far the conserved quantities have moved, relative to the weights.

    `max_j ‖C_j(net) − C_j(start)‖_F / max_j ‖W_j‖²_F`, the maximum of the norms taken over both networks; zero for the
    exact flow, for a single layer and between zero networks. It measures the error of an integration that the level
    certificate does not see.
    """
    if net.depth == 1:
        return jnp.zeros((), dtype=net.weights[0].dtype)
    moved = jnp.stack([jnp.linalg.norm(a - b) for a, b in zip(conserved(net), conserved(start), strict=True)])
    scale = jnp.maximum(jnp.max(net.layer_norms()), jnp.max(start.layer_norms())) ** 2
    return jnp.max(moved) / jnp.where(scale > 0, scale, 1.0)
