"""What is minimised: the loss of the end-to-end matrix, with its data in chosen coordinates.

A `gdflow.Problem` knows where its data come from and what they mean. A compiled program needs no more than an `Objective`, which
has no static field that would differ between data sets: programs are compiled anew for other shapes only.
"""

import equinox as eqx
from jaxtyping import Array, Float

from gdflow.losses import AbstractLoss
from gdflow.network import LayerTuple, matmul


class Objective(eqx.Module):
    """The effective loss `L(W_1, …, W_N) = ℓ(W_N…W_1 D; A)`.

    **Arguments:**

    - `target`, `design`: `A` and `D`.
    - `loss`: `ℓ`, a loss of the output.
    - `data_error`: how far `A` may be from the exact target by round-off of its making (Frobenius norm).
    """

    target: Float[Array, "d_y q"]
    design: Float[Array, "d_in q"]
    loss: AbstractLoss
    data_error: Float[Array, ""]

    @property
    def d_in(self) -> int:
        """`d_0` of the networks that fit."""
        return self.design.shape[0]

    @property
    def d_out(self) -> int:
        """`d_N = d_y`."""
        return self.target.shape[0]

    def end_to_end_loss(self, W: Float[Array, "d_y d_in"]) -> Float[Array, ""]:
        """The loss `ℓ(WD; A)` of an end-to-end matrix."""
        return self.loss.value(matmul(W, self.design), self.target)

    def end_to_end_gradient(self, W: Float[Array, "d_y d_in"]) -> Float[Array, "d_y d_in"]:
        """Its gradient; for the squared error `−M Dᵀ` with `M = A − WD`."""
        return matmul(self.loss.gradient(matmul(W, self.design), self.target), self.design.T)

    def effective_loss(self, net: LayerTuple) -> Float[Array, ""]:
        """The loss of a network."""
        return self.end_to_end_loss(net.end_to_end)

    def gradient(self, net: LayerTuple) -> LayerTuple:
        """The gradient in the layers, in closed form (Chitour, Liao, Couillet 2022, eq. (6), with `D`)."""
        return net.pullback(self.end_to_end_gradient(net.end_to_end))
