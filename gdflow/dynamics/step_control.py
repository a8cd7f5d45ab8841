"""The choice of step sizes."""

import diffrax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, PyTree


def _norm(x: PyTree) -> Array:
    norm = optx.rms_norm(x)
    return jnp.where(jnp.isnan(norm), jnp.inf, norm)


def step_control(rtol: float, atol: float) -> diffrax.PIDController:
    """Diffrax's `PIDController`, for which a step that leaves the floating-point range has an infinite error.

    A trial step that is too long can overflow, the more easily the deeper the network. Diffrax makes the error estimate
    infinite there, but divides it by a state that is infinite too: the quotient is no number, the next step size neither, and
    the integration stands still until its steps are used up. So the norm of what is no number is infinite here, and the step
    is shortened and tried again.
    """
    return diffrax.PIDController(rtol=rtol, atol=atol, norm=_norm)
