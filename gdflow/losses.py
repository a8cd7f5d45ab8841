"""Losses of the end-to-end output `F = W_N…W_1 D` against a target `A`, convex in `F`.

Every loss is a sum over entries or columns (no mean), as in the sources. Outputs may have further axes, which count lanes: sums
are over the first two, and the target broadcasts.
"""

from abc import abstractmethod
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class AbstractLoss(eqx.Module):
    """A twice differentiable (Huber: once) convex loss of the output."""

    @abstractmethod
    def value(
        self, output: Float[Array, "d_y m *#lanes"], target: Float[Array, "d_y m *#lanes"]
    ) -> Float[Array, "..."]:
        """The loss `ℓ(F; A)`."""

    @abstractmethod
    def gradient(
        self, output: Float[Array, "d_y m *#lanes"], target: Float[Array, "d_y m *#lanes"]
    ) -> Float[Array, "d_y m ..."]:
        """The gradient `∂ℓ/∂F`, in closed form."""

    @abstractmethod
    def hessian_form(
        self,
        output: Float[Array, "d_y m *#lanes"],
        target: Float[Array, "d_y m *#lanes"],
        direction: Float[Array, "d_y m *#lanes"],
    ) -> Float[Array, "..."]:
        """`∇²ℓ[V, V]`, the second derivative along `direction`, in closed form; not negative."""

    def check_target(self, target: np.ndarray) -> None:
        """Raises `ValueError` if `target` (shape `(d_y, m)`) has values this loss does not admit."""


class SquaredError(AbstractLoss):
    """`½‖A − F‖²_F`, the loss of the sources; the only one with a finite set of critical values and an m-free form."""

    def value(
        self, output: Float[Array, "d_y m *#lanes"], target: Float[Array, "d_y m *#lanes"]
    ) -> Float[Array, "..."]:
        return 0.5 * jnp.sum((target - output) ** 2, axis=(0, 1))

    def gradient(
        self, output: Float[Array, "d_y m *#lanes"], target: Float[Array, "d_y m *#lanes"]
    ) -> Float[Array, "d_y m ..."]:
        return output - target

    def hessian_form(
        self,
        output: Float[Array, "d_y m *#lanes"],
        target: Float[Array, "d_y m *#lanes"],
        direction: Float[Array, "d_y m *#lanes"],
    ) -> Float[Array, "..."]:
        return jnp.sum(direction**2, axis=(0, 1))


class Logistic(AbstractLoss):
    """`Σ log(1 + exp(−A∘F))` with labels `A ∈ {−1, 1}`."""

    def value(
        self, output: Float[Array, "d_y m *#lanes"], target: Float[Array, "d_y m *#lanes"]
    ) -> Float[Array, "..."]:
        return jnp.sum(jax.nn.softplus(-target * output), axis=(0, 1))

    def gradient(
        self, output: Float[Array, "d_y m *#lanes"], target: Float[Array, "d_y m *#lanes"]
    ) -> Float[Array, "d_y m ..."]:
        return -target * jax.nn.sigmoid(-target * output)

    def hessian_form(
        self,
        output: Float[Array, "d_y m *#lanes"],
        target: Float[Array, "d_y m *#lanes"],
        direction: Float[Array, "d_y m *#lanes"],
    ) -> Float[Array, "..."]:
        return jnp.sum(jax.nn.sigmoid(output) * jax.nn.sigmoid(-output) * (target * direction) ** 2, axis=(0, 1))

    def check_target(self, target: np.ndarray) -> None:
        wrong = target[(target != 1) & (target != -1)]
        if wrong.size:
            raise ValueError(f"the logistic loss needs labels -1 or 1, but Y contains {wrong[0]:g}")


class SoftmaxCrossEntropy(AbstractLoss):
    """`−Σ_k A_k log softmax(F)_k`, summed over columns; the columns of `A` are probability vectors (one-hot, say)."""

    def value(
        self, output: Float[Array, "d_y m *#lanes"], target: Float[Array, "d_y m *#lanes"]
    ) -> Float[Array, "..."]:
        return -jnp.sum(target * jax.nn.log_softmax(output, axis=0), axis=(0, 1))

    def gradient(
        self, output: Float[Array, "d_y m *#lanes"], target: Float[Array, "d_y m *#lanes"]
    ) -> Float[Array, "d_y m ..."]:
        return jax.nn.softmax(output, axis=0) * jnp.sum(target, axis=0, keepdims=True) - target

    def hessian_form(
        self,
        output: Float[Array, "d_y m *#lanes"],
        target: Float[Array, "d_y m *#lanes"],
        direction: Float[Array, "d_y m *#lanes"],
    ) -> Float[Array, "..."]:
        p = jax.nn.softmax(output, axis=0)
        mean = jnp.sum(p * direction, axis=0, keepdims=True)  # the variance of the direction under p, column by column
        return jnp.sum(jnp.sum(target, axis=0) * jnp.sum(p * (direction - mean) ** 2, axis=0), axis=0)

    def check_target(self, target: np.ndarray) -> None:
        if target.shape[0] < 2:
            raise ValueError("cross-entropy needs two classes at least: with one its loss is zero whatever the output")
        if np.any(target < 0):
            raise ValueError(f"cross-entropy needs probabilities, but Y contains {target.min():g}")
        sums = target.sum(axis=0)
        worst = int(np.argmax(abs(sums - 1)))
        if abs(sums[worst] - 1) > 1e-6:
            raise ValueError(
                f"cross-entropy needs columns that sum to 1, but column {worst} of Y sums to {sums[worst]:g}"
            )


class EntryLoss(AbstractLoss):
    """A sum over entries, `Σ_{ik} f(F_ik, A_ik)`, of a convex function of your own; derivatives by automatic differentiation.

    **Arguments:** `function`: of an output and a target, both numbers; traceable, twice differentiable and convex in the output.

    **Raises:** `ValueError` if it is not convex at some points (outputs and targets from −3 to 3).

    ```python
    >>> loss = EntryLoss(lambda output, target: jnp.log(jnp.cosh(output - target)))
    ```
    """

    function: Callable[[Array, Array], Array]

    def __check_init__(self):
        output, target = (x.ravel() for x in jnp.meshgrid(jnp.linspace(-3.0, 3.0, 25), jnp.linspace(-3.0, 3.0, 13)))
        second = jax.vmap(jax.grad(jax.grad(self.function)))(output, target)
        i = int(jnp.argmin(second))
        if second[i] < -1e-6 * (1 + float(jnp.max(jnp.abs(second)))):
            raise ValueError(
                f"the loss must be convex in the output, but its second derivative is {float(second[i]):.3g} at output "
                f"{float(output[i]):g}, target {float(target[i]):g}"
            )

    def value(
        self, output: Float[Array, "d_y m *#lanes"], target: Float[Array, "d_y m *#lanes"]
    ) -> Float[Array, "..."]:
        return jnp.sum(self._map(self.function, output, target), axis=(0, 1))

    def gradient(
        self, output: Float[Array, "d_y m *#lanes"], target: Float[Array, "d_y m *#lanes"]
    ) -> Float[Array, "d_y m ..."]:
        return self._map(jax.grad(self.function), output, target)

    def hessian_form(
        self,
        output: Float[Array, "d_y m *#lanes"],
        target: Float[Array, "d_y m *#lanes"],
        direction: Float[Array, "d_y m *#lanes"],
    ) -> Float[Array, "..."]:
        return jnp.sum(self._map(jax.grad(jax.grad(self.function)), output, target) * direction**2, axis=(0, 1))

    @staticmethod
    def _map(function: Callable[[Array, Array], Array], output: Array, target: Array) -> Array:
        target = jnp.broadcast_to(target, output.shape)
        return jax.vmap(function)(output.ravel(), target.ravel()).reshape(output.shape)


class Huber(AbstractLoss):
    """`Σ h(A − F)` with `h(r) = ½r²` for `|r| ≤ delta` and `delta(|r| − ½delta)` beyond."""

    delta: float = 1.0

    def __check_init__(self):
        if not self.delta > 0:
            raise ValueError(f"Huber's delta must be positive, got {self.delta}")

    def value(
        self, output: Float[Array, "d_y m *#lanes"], target: Float[Array, "d_y m *#lanes"]
    ) -> Float[Array, "..."]:
        size = jnp.abs(target - output)
        terms = jnp.where(size <= self.delta, 0.5 * size**2, self.delta * (size - 0.5 * self.delta))
        return jnp.sum(terms, axis=(0, 1))

    def gradient(
        self, output: Float[Array, "d_y m *#lanes"], target: Float[Array, "d_y m *#lanes"]
    ) -> Float[Array, "d_y m ..."]:
        return jnp.clip(output - target, -self.delta, self.delta)

    def hessian_form(
        self,
        output: Float[Array, "d_y m *#lanes"],
        target: Float[Array, "d_y m *#lanes"],
        direction: Float[Array, "d_y m *#lanes"],
    ) -> Float[Array, "..."]:
        return jnp.sum(jnp.where(jnp.abs(target - output) <= self.delta, direction**2, 0.0), axis=(0, 1))


#: By the names that the command line takes.
NAMED: dict[str, type[AbstractLoss]] = {
    "squared": SquaredError, "logistic": Logistic, "softmax": SoftmaxCrossEntropy, "huber": Huber,
}  # fmt: skip


#: Bounds of the second, third and fourth derivative of a loss of the output, as forms of Frobenius norm one.
#: Logistic: `|σ''| ≤ 1/(6√3)`, `|σ'''| ≤ 1/8`. Softmax: cumulants of a variable with a range of at most `√2`: the variance is at
#: most `range²/4`, the third at most `range³/(6√3)`, the fourth at most `range⁴/8`.
LOSS_BOUNDS: dict[type[AbstractLoss], tuple[float, float, float]] = {
    SquaredError: (1.0, 0.0, 0.0),
    Logistic: (0.25, 0.0963, 0.125),
    SoftmaxCrossEntropy: (0.5, 0.2722, 0.5),
}
