"""When a falling function of time crosses zero: the times of levels, certificates and stops inside a step or a trajectory."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

#: Halved so often, any bracket has shrunk to the round-off of its later end.
MAX_EVALUATIONS = 60


def first_crossing(
    excess: Callable[[Float[Array, "*n"]], Float[Array, "*n"]],
    t0: Float[Array, "*n"],
    excess0: Float[Array, "*n"],
    t1: Float[Array, "*n"],
    excess1: Float[Array, "*n"],
    wanted: Bool[Array, "*n"] | None = None,
) -> Float[Array, "*n"]:
    """The time in `[t0, t1]` at which a function, positive before and negative after it, is zero; in many lanes at once.

    Chandrupatla's method (1997): inverse quadratic interpolation where it is safe, bisection elsewhere; to round-off.

    **Arguments:**

    - `excess`: the function, of one time per lane. What it closes over must not carry derivatives backwards.
    - `excess0`, `excess1`: its values at the ends, the second not positive.
    - `wanted`: lanes whose result counts; by default all. No other is waited for, and its result means nothing.

    **Returns:** the times; `t0` where the function is not positive there. Traceable.
    """
    eps = float(jnp.finfo(t1.dtype).eps)
    wanted = jnp.ones(jnp.shape(t1), bool) if wanted is None else wanted

    def body(carry):
        count, x1, f1, x2, f2, x3, f3, share = carry
        x = x1 + share * (x2 - x1)
        f = excess(x)
        # The bracket is (x1, x2), x1 the latest point; x3 is the point before, outside of it.
        same = jnp.sign(f) == jnp.sign(f1)
        x3, f3 = jnp.where(same, x1, x2), jnp.where(same, f1, f2)
        x2, f2 = jnp.where(same, x2, x1), jnp.where(same, f2, f1)
        x1, f1 = x, f
        xi, phi = (x1 - x2) / (x3 - x2), (f1 - f2) / (f3 - f2)
        safe = (phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi)
        inverse = f1 / (f2 - f1) * f3 / (f2 - f3) + (x3 - x1) / (x2 - x1) * f1 / (f3 - f1) * f2 / (f3 - f2)
        least = eps * jnp.maximum(jnp.abs(x1), 1e-300) / jnp.abs(x2 - x1)
        share = jnp.clip(jnp.where(safe, inverse, 0.5), jnp.minimum(least, 0.5), jnp.maximum(1 - least, 0.5))
        return count + 1, x1, f1, x2, f2, x3, f3, share

    def unfinished(carry):
        count, x1, f1, x2, *_ = carry
        is_open = (jnp.abs(x2 - x1) > 4 * eps * jnp.abs(x1)) & (f1 != 0) & jnp.isfinite(f1)
        return (count < MAX_EVALUATIONS) & jnp.any(is_open & wanted)

    falls = excess0 > excess1
    share = jnp.where(falls, excess1 / jnp.where(falls, excess1 - excess0, -1.0), 0.5)
    first = (0, t1, excess1, t0, excess0, t0, excess0, share)
    _, x1, f1, x2, f2, *_ = jax.lax.while_loop(unfinished, body, first)
    return jnp.where(excess0 <= 0, t0, jnp.where(jnp.abs(f1) <= jnp.abs(f2), x1, x2))
