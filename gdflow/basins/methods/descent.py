"""Any optimizer of Optax, in lanes."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from gdflow.basins.methods.gradient_descent import AbstractDescent
from gdflow.basins.methods.method import Place, Step
from gdflow.ids import fold_id
from gdflow.layouts import AbstractLayout, LanesFirst, suitable_layout
from gdflow.minibatches import Minibatches
from gdflow.objective import Objective
from gdflow.optimizers import check_optimizer, check_step, update
from gdflow.problem import AbstractProblem


class Descent(AbstractDescent):
    """An optimizer of Optax: `memory` is its state with the gradient at the point, `control` counts steps.

    It works in the coordinates of the problem: few optimizers (gradient descent and momentum) make the same iterates in all
    orthonormal ones. A step takes the time `step`, so that gradient descent compares with the flow; with a schedule a step takes
    the time 1. Nothing is proved of the limits. They are located where the gradient has become small and the step is stable, as
    is known of gradient descent with momentum; of others they are only reached: Adam with a fixed step leaves minima again and
    again. With minibatches the losses and gradients that verdicts see are
    those of all samples.

    **Arguments:**

    - `optimizer`: the function that makes it of a step, such as `optax.adam`, or your own; `options`: its other arguments.
    - `step`: a number, or a schedule of Optax.
    - `batches`: a `gdflow.Minibatches`, by default all samples at once.

    **Raises:** `ValueError` or `TypeError` for steps that are not positive and finite, what makes no optimizer, and optimizers
    that need more than the gradient, the point, the loss and its function.

    ```python
    >>> gf.basin_sizes(problem, law, 1000, key=key, method=gf.basins.Descent(optax.sgd, 0.05, momentum=0.9))
    >>> gf.basin_sizes(problem, law, 1000, key=key, method=gf.basins.Descent(optax.adam, 0.01))
    ```
    """

    optimizer: Callable[..., optax.GradientTransformation] = eqx.field(static=True)
    step: Any
    batches: Minibatches | None
    options: tuple[tuple[str, Any], ...] = eqx.field(static=True)
    chosen_layout: AbstractLayout | None

    def __init__(
        self,
        optimizer: Any,
        step: Any,
        *,
        batches: Any = None,
        **options: Any,
    ):
        if not callable(optimizer):
            raise TypeError(
                "the optimizer is given by the function that makes it and its step, as in Descent(optax.adam, 0.01); got "
                f"{optimizer!r}"
            )
        if not (batches is None or isinstance(batches, Minibatches)):
            raise TypeError(f"batches are a gdflow.Minibatches, got {batches!r}")
        self.optimizer, self.step, self.batches = optimizer, check_step(step), batches
        self.options = tuple(sorted(options.items()))
        self.chosen_layout = None
        check_optimizer(self.made(), {"a": jnp.zeros(2), "b": jnp.zeros(3)})

    def made(self) -> optax.GradientTransformation:
        """The optimizer itself; `TypeError` if the function makes none."""
        try:
            made = self.optimizer(self.step, **dict(self.options))
        except TypeError as error:
            raise TypeError(f"{_name(self.optimizer)} does not take these arguments: {error}") from None
        if not isinstance(made, optax.GradientTransformation):
            raise TypeError(f"{_name(self.optimizer)} makes no optimizer of Optax but {made!r}")
        return made

    @property
    def name(self) -> str:
        options = dict(self.options) | ({} if self.batches is None else {"batch": self.batches.size})
        step = "schedule" if callable(self.step) else f"{self.step:g}"
        return ", ".join([_name(self.optimizer), f"step={step}", *(f"{k}={v}" for k, v in options.items())])

    @property
    def descent_step(self) -> float:
        return float("inf")

    @property
    def stable_below(self) -> Any:
        # Of gradient descent with momentum μ, and Nesterov's; adaptive steps grow where the gradient vanishes.
        if self.optimizer is not optax.sgd or self.batches is not None or callable(self.step):
            return None
        options = dict(self.options)
        mu = float(options.get("momentum") or 0.0)
        return 2 * (1 + mu) / (1 + 2 * mu if options.get("nesterov") else 1) / self.step

    @property
    def step_time(self) -> Any:
        return 1.0 if callable(self.step) else self.step

    def _replace(self, **fields: Any) -> "Descent":
        made = object.__new__(type(self))
        for name in ("optimizer", "step", "batches", "options", "chosen_layout"):
            object.__setattr__(made, name, fields.get(name, getattr(self, name)))
        return made

    def suited(self, widths: tuple[int, ...]) -> "Descent":
        if self.chosen_layout is not None:
            return self
        return self._replace(chosen_layout=LanesFirst() if self.batches is not None else suitable_layout(widths))

    def traced(self) -> "Descent":
        return self if callable(self.step) else self._replace(step=jnp.asarray(self.step, float))

    def check(self, problem: AbstractProblem, widths: tuple[int, ...]) -> None:
        if self.batches is not None:
            self.batches.check(problem, widths)

    def _gradients(self, objective: Objective, y: Any, keys: Any, count: Array) -> tuple[Any, Any, Array]:
        """The gradients that the optimizer is to see, those of the whole loss, and the losses."""
        gradient, loss = objective.lane_gradients(self.layout, y)
        if self.batches is None:
            return gradient, gradient, loss
        some = jax.vmap(functools.partial(self.batches.gradient, objective))(self.layout.unpack(y), keys, count)
        return self.layout.pack(some), gradient, loss

    def begin(self, objective: Objective, y: Any) -> tuple[Any, Float[Array, " lanes"], Any]:
        zero = jnp.zeros(jax.tree.leaves(self.layout.unpack(y))[0].shape[:1], jnp.uint32)
        return self.begin_with(objective, y, (zero, zero))

    def begin_with(
        self, objective: Objective, y: Any, ids: tuple[Array, Array]
    ) -> tuple[Any, Float[Array, " lanes"], Any]:
        axis = self.layout.lane_axis
        state = jax.vmap(self.made().init, in_axes=axis, out_axes=axis)(y)
        keys = None
        if self.batches is not None:
            key = self.batches.key
            keys = jax.vmap(lambda high, low: jax.random.key_data(fold_id(key, high, low)))(*ids)
        count = jnp.zeros(ids[0].shape, int)
        some, gradient, loss = self._gradients(objective, y, self._keys(keys), count)
        return (some, gradient, state, keys, count), jnp.full_like(loss, self.step_time), count

    def _keys(self, data: Array | None) -> Any:
        if data is None:
            return None
        assert self.batches is not None
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(self.batches.key))

    def attempt(self, objective: Objective, place: Place) -> Step:
        some, _, state, keys, count = place.memory
        optimizer, axis = self.made(), self.layout.lane_axis

        def one(gradient, state, net, loss):
            return update(optimizer, objective, gradient, state, net, loss)

        y, state = jax.vmap(one, in_axes=(axis, axis, axis, 0), out_axes=axis)(some, state, place.y, place.loss)
        some, gradient, loss = self._gradients(objective, y, self._keys(keys), count + 1)
        return Step(y, (some, gradient, state, keys, count + 1), loss)

    def gradient_norm(self, objective: Objective, y: Any, memory: Any) -> Float[Array, " lanes"]:
        return self.layout.norm(memory[1])


def _name(function: Any) -> str:
    return getattr(function, "__name__", repr(function))
