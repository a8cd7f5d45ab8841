"""Optimizers of Optax: checks of them and of their steps, and a step."""

import inspect
from typing import Any

import jax
import numpy as np
import optax

from gdflow.checks import check_positive, is_traced
from gdflow.objective import Objective
from gdflow.points import point_norm

#: A schedule is looked at after so many steps.
_COUNTS = (0, 1, 2, 10, 100, 1_000, 10_000, 100_000)


def check_step(step: Any) -> Any:
    """A positive finite number, or a schedule of such; traced numbers pass.

    **Raises:** `ValueError` or `TypeError` for others, naming the value, of a schedule with the number of steps. A schedule may
    end at zero.
    """
    if is_traced(step):
        return step
    if not callable(step):
        return check_positive("step", step)
    for count in _COUNTS:
        try:
            value = step(count)
            if isinstance(value, optax.GradientTransformation):
                name = getattr(step, "__name__", "the function")
                raise TypeError(f"{name} makes an optimizer of its step: call it, as in optax.adam(0.01)")
            value = float(value)
        except TypeError:
            raise
        except Exception as error:
            raise TypeError(f"the schedule {step!r} gives no number after {count} steps: {error}") from None
        if not np.isfinite(value) or value < 0 or (count == 0 and value == 0 and float(step(1)) == 0):
            raise ValueError(f"the schedule must be positive and finite; after {count} steps it is {value}")
    return step


def check_optimizer(optimizer: Any, point: Any) -> None:
    """`TypeError` unless `optimizer` is one of Optax that can make a step from `point`, a pytree of arrays."""
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            f"an optimizer of Optax is needed, as optax.adam(0.01) makes it, or a step size; got {optimizer!r}"
        )

    def step(point):
        known = _known(optimizer, value=0.0, grad=point, value_fn=point_norm)
        return optimizer.update(point, optimizer.init(point), point, **known)

    try:
        jax.eval_shape(step, point)
    except TypeError as error:
        raise TypeError(
            f"the optimizer needs more than the gradient, the point, the loss (`value`) and its function (`value_fn`): {error}"
        ) from None


def _known(optimizer: optax.GradientTransformation, **arguments: Any) -> dict[str, Any]:
    """Those of the arguments that an optimizer takes besides gradient, state and point."""
    if not isinstance(optimizer, optax.GradientTransformationExtraArgs):
        return {}
    parameters = inspect.signature(optimizer.update).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return arguments
    return {name: value for name, value in arguments.items() if name in parameters}


def update(
    optimizer: optax.GradientTransformation, objective: Objective, gradient: Any, state: Any, point: Any, loss: Any
) -> tuple[Any, Any]:
    """The next point and state. Traceable. **Arguments:** `gradient`, `loss`: at the point."""
    known = _known(optimizer, value=loss, grad=gradient, value_fn=objective.effective_loss)
    updates, state = optimizer.update(gradient, state, point, **known)
    return optax.apply_updates(point, updates), state


def as_optimizer(optimizer: Any) -> tuple[optax.GradientTransformation, Any]:
    """An optimizer of Optax, and its step if that is known: of a number, gradient descent with that step.

    **Raises:** `ValueError` or `TypeError` for steps that are not positive and finite, and what is neither.
    """
    if isinstance(optimizer, optax.GradientTransformation):
        return optimizer, None
    step = check_step(optimizer)
    return optax.sgd(step), step
