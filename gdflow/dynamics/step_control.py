"""The choice of step sizes."""

from typing import Any

import diffrax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Float, PyTree


def _norm(x: PyTree) -> Array:
    norm = optx.rms_norm(x)
    return jnp.where(jnp.isnan(norm), jnp.inf, norm)


def step_control(rtol: float, atol: float, shortest: float = 0.0) -> diffrax.PIDController:
    """Diffrax's `PIDController`, for which a step that leaves the floating-point range has an infinite error.

    A trial step that is too long can overflow, the more easily the deeper the network. Diffrax makes the error estimate
    infinite there, but divides it by a state that is infinite too: the quotient is no number, the next step size neither, and
    the integration stands still until its steps are used up. So the norm of what is no number is infinite here, and the step
    is shortened and tried again.

    **Arguments:** `shortest`: steps of this length are kept whatever their error.
    """
    return diffrax.PIDController(rtol=rtol, atol=atol, norm=_norm, dtmin=shortest or None)


def first_step(
    terms: diffrax.ODETerm,
    solver: diffrax.AbstractSolver,
    controller: diffrax.AbstractAdaptiveStepSizeController,
    t0: Float[Array, ""],
    t1: Float[Array, ""],
    y0: PyTree,
    args: Any,
) -> Float[Array, ""]:
    """The length of the first step, chosen by the controller from the field at the start and after a trial step.

    To be handed to `diffeqsolve`, which selects 0.01 whatever the field: it wraps the terms, and the selection leaves wrapped
    terms alone.
    """
    order: Any = solver.error_order(terms)
    end, _ = controller.init(terms, t0, t1, y0, None, args, solver.func, order)
    # Where the start is critical the selection has nothing to go by and may return no number.
    return jnp.where(jnp.isfinite(end) & (end > t0), end - t0, 0.01)
