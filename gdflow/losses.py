"""Losses of the end-to-end output `F = W_N…W_1 D` against a target `A`, convex in `F`.

Every loss is a sum over entries or columns (no mean), as in the sources.
"""

from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class AbstractLoss(eqx.Module):
    """A twice differentiable (Huber: once) convex loss of the output."""

    @abstractmethod
    def value(self, output: Float[Array, "d_y m"], target: Float[Array, "d_y m"]) -> Float[Array, ""]:
        """The loss `ℓ(F; A)`."""

    @abstractmethod
    def gradient(self, output: Float[Array, "d_y m"], target: Float[Array, "d_y m"]) -> Float[Array, "d_y m"]:
        """The gradient `∂ℓ/∂F`, in closed form."""

    @abstractmethod
    def hessian_form(
        self, output: Float[Array, "d_y m"], target: Float[Array, "d_y m"], direction: Float[Array, "d_y m"]
    ) -> Float[Array, ""]:
        """`∇²ℓ[V, V]`, the second derivative along `direction`, in closed form; not negative."""

    def check_target(self, target: np.ndarray) -> None:
        """Raises `ValueError` if `target` (shape `(d_y, m)`) has values this loss does not admit."""


class SquaredError(AbstractLoss):
    """`½‖A − F‖²_F`, the loss of the sources; the only one with a finite set of critical values and an m-free form."""

    def value(self, output: Float[Array, "d_y m"], target: Float[Array, "d_y m"]) -> Float[Array, ""]:
        return 0.5 * jnp.sum((target - output) ** 2)

    def gradient(self, output: Float[Array, "d_y m"], target: Float[Array, "d_y m"]) -> Float[Array, "d_y m"]:
        return output - target

    def hessian_form(
        self, output: Float[Array, "d_y m"], target: Float[Array, "d_y m"], direction: Float[Array, "d_y m"]
    ) -> Float[Array, ""]:
        return jnp.sum(direction**2)


class Logistic(AbstractLoss):
    """`Σ log(1 + exp(−A∘F))` with labels `A ∈ {−1, 1}`."""

    def value(self, output: Float[Array, "d_y m"], target: Float[Array, "d_y m"]) -> Float[Array, ""]:
        return jnp.sum(jax.nn.softplus(-target * output))

    def gradient(self, output: Float[Array, "d_y m"], target: Float[Array, "d_y m"]) -> Float[Array, "d_y m"]:
        return -target * jax.nn.sigmoid(-target * output)

    def hessian_form(
        self, output: Float[Array, "d_y m"], target: Float[Array, "d_y m"], direction: Float[Array, "d_y m"]
    ) -> Float[Array, ""]:
        return jnp.sum(jax.nn.sigmoid(output) * jax.nn.sigmoid(-output) * (target * direction) ** 2)

    def check_target(self, target: np.ndarray) -> None:
        wrong = target[(target != 1) & (target != -1)]
        if wrong.size:
            raise ValueError(f"the logistic loss needs labels -1 or 1, but Y contains {wrong[0]:g}")


class SoftmaxCrossEntropy(AbstractLoss):
    """`−Σ_k A_k log softmax(F)_k`, summed over columns; the columns of `A` are probability vectors (one-hot, say)."""

    def value(self, output: Float[Array, "d_y m"], target: Float[Array, "d_y m"]) -> Float[Array, ""]:
        return -jnp.sum(target * jax.nn.log_softmax(output, axis=0))

    def gradient(self, output: Float[Array, "d_y m"], target: Float[Array, "d_y m"]) -> Float[Array, "d_y m"]:
        return jax.nn.softmax(output, axis=0) * jnp.sum(target, axis=0, keepdims=True) - target

    def hessian_form(
        self, output: Float[Array, "d_y m"], target: Float[Array, "d_y m"], direction: Float[Array, "d_y m"]
    ) -> Float[Array, ""]:
        p = jax.nn.softmax(output, axis=0)
        mean = jnp.sum(p * direction, axis=0, keepdims=True)  # the variance of the direction under p, column by column
        return jnp.sum(jnp.sum(target, axis=0) * jnp.sum(p * (direction - mean) ** 2, axis=0))

    def check_target(self, target: np.ndarray) -> None:
        if np.any(target < 0):
            raise ValueError(f"cross-entropy needs probabilities, but Y contains {target.min():g}")
        sums = target.sum(axis=0)
        worst = int(np.argmax(abs(sums - 1)))
        if abs(sums[worst] - 1) > 1e-6:
            raise ValueError(
                f"cross-entropy needs columns that sum to 1, but column {worst} of Y sums to {sums[worst]:g}"
            )


class Huber(AbstractLoss):
    """`Σ h(A − F)` with `h(r) = ½r²` for `|r| ≤ delta` and `delta(|r| − ½delta)` beyond."""

    delta: float = 1.0

    def __check_init__(self):
        if not self.delta > 0:
            raise ValueError(f"Huber's delta must be positive, got {self.delta}")

    def value(self, output: Float[Array, "d_y m"], target: Float[Array, "d_y m"]) -> Float[Array, ""]:
        size = jnp.abs(target - output)
        return jnp.sum(jnp.where(size <= self.delta, 0.5 * size**2, self.delta * (size - 0.5 * self.delta)))

    def gradient(self, output: Float[Array, "d_y m"], target: Float[Array, "d_y m"]) -> Float[Array, "d_y m"]:
        return jnp.clip(output - target, -self.delta, self.delta)

    def hessian_form(
        self, output: Float[Array, "d_y m"], target: Float[Array, "d_y m"], direction: Float[Array, "d_y m"]
    ) -> Float[Array, ""]:
        return jnp.sum(jnp.where(jnp.abs(target - output) <= self.delta, direction**2, 0.0))
