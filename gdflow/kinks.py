"""Critical points at which the gradient jumps: minima of networks with ReLU-like activations that lie on kinks.

Where some inputs `z_i` of such activations vanish, the flow `Ẇ ∈ −∂L(W)` (Clarke's subdifferential) may slide along `z_i = 0` and
end there. At its limit some element of `∂L` is zero: with slopes `α_i` between those on both sides, `g(W, α) = 0` and
`z_i(W) = 0` for all kinks `i` of a set `A`. If no `α_i` is at an end of its interval, and the slope of `L` across each kink
rises from one side to the other, `L` rises on either side of every kink of `A` to first order. On the surface where all of them
vanish `L` is smooth with the Hessian `ZᵀHZ`: `H` that of the loss with the slopes `α` fixed, the columns of `Z` a basis of the
tangent space. Is it positive (but for symmetries), `W` is a strict local minimum.

An integration with steps of some shortest length chatters across the kinks that the exact flow slides on, at a distance of the
order of the step. Here the step is made smaller and smaller; kinks at which both slopes are met to the last are those of `A`, the
share of each is `α_i`; and the equations are solved by the Levenberg–Marquardt method of Optimistix.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from gdflow.objective import NetworkObjective
from gdflow.points import is_finite, point_norm

#: At most so many kinks are looked for at one point.
MOST_KINKS = 32
#: Steps that get smaller, and by which factor in all; slopes are averaged over the last half.
_STEPS, _SMALLER = 4000, 1e-4
#: A kink counts as met on both sides if each has at least this share.
_SHARE = 0.01
_TOLERANCE, _SOLVER_STEPS = 1e-13, 100


class OnKinks(eqx.Module):
    """What was found near a state.

    - `point`: the critical point, or the state where none was found; `found`: whether it was.
    - `residual`: norm of the equations there.
    - `hessian`: of the loss with these slopes; `normals`: gradients of the `z_i` of `A`, other rows are zero.
    - `num_kinks`: how many are in `A`; `margin`: the least distance of an `α_i` from the ends of `[0, 1]` (relative slopes).
    """

    point: Any
    found: Bool[Array, "*n"]
    residual: Float[Array, "*n"]
    hessian: Float[Array, "*n P P"]
    normals: Float[Array, "*n K P"]
    num_kinks: Int[Array, "*n"]
    margin: Float[Array, "*n"]


def settle_on_kinks(objective: NetworkObjective, state: Any, step: Float[Array, ""]) -> OnKinks:
    """The critical point near a state, on kinks or not. Traceable.

    **Arguments:** `step`: how far in flow time the state may be from the kinks: the shortest step of the integration.
    """
    flat, unravel = ravel_pytree(state)

    def inputs_of(x):
        """What enters the activations that have kinks, and on which side of them it is: 0 left, 1 right."""
        z = objective.kink_inputs(unravel(x))
        return z, (z > 0).astype(x.dtype)

    def gradient(x, shares):
        return ravel_pytree(objective.gradient_between(unravel(x), shares))[0]

    def descend(carry, h):
        x, total, weight = carry
        _, side = inputs_of(x)
        late = (h <= step * jnp.sqrt(_SMALLER)).astype(x.dtype)
        x = x - h * ravel_pytree(objective.gradient(unravel(x)))[0]
        return (x, total + late * side, weight + late), None

    lengths = step * _SMALLER ** (jnp.arange(_STEPS) / (_STEPS - 1))
    z, _ = inputs_of(flat)
    (x, total, weight), _ = jax.lax.scan(descend, (flat, jnp.zeros_like(z), jnp.zeros(())), lengths)
    share = total / weight
    active = (share >= _SHARE) & (share <= 1 - _SHARE)
    # The kinks in A come first in a list of fixed length; other places in it are idle.
    index = jnp.argsort(~active, stable=True)[: min(MOST_KINKS, share.size)]
    used = active[index]
    side = jnp.where(share > 0.5, 1.0, 0.0)

    def spread(alpha):
        """Shares of all kinks: of those in A unknown, of the others a side: NaN for what is decided by the input itself."""
        return jnp.full_like(share, jnp.nan).at[index].set(jnp.where(used, alpha, jnp.nan))

    def equations(unknown, _):
        x, alpha = unknown
        z, _ = inputs_of(x)
        return gradient(x, spread(alpha)), jnp.where(used, z[index], alpha - 0.5)

    solver: Any = optx.LevenbergMarquardt(rtol=_TOLERANCE, atol=_TOLERANCE)
    begin = (x, jnp.where(used, share[index], 0.5))
    x1, alpha = optx.least_squares(equations, solver, begin, max_steps=_SOLVER_STEPS, throw=False).value
    finite = is_finite((x1, alpha))
    x1, alpha = jnp.where(finite, x1, x), jnp.where(finite, alpha, 0.5)
    _, side1 = inputs_of(x1)
    stayed = jnp.all(active | (side1 == side))  # no other kink was crossed on the way
    margin = jnp.min(jnp.where(used, jnp.minimum(alpha, 1 - alpha), 0.5), initial=0.5)
    residual = point_norm(equations((x1, alpha), None))
    found = finite & stayed & (margin > 0) & (jnp.sum(active) <= index.size)
    shares = spread(alpha)
    H = jax.lax.map(
        lambda v: jax.jvp(lambda x: gradient(x, shares), (x1,), (v,))[1], jnp.eye(flat.size, dtype=flat.dtype)
    )
    # A unit whose weights have shrunk to zero is at its kinks on all samples, but off: these do not count.
    alone = jnp.concatenate([jnp.ravel(jnp.broadcast_to(d[:, None], (d.size, objective.design.shape[1])))
                             for d in objective.dead_kinks(unravel(x1))])  # fmt: skip
    num_kinks = jnp.sum(used & ~alone[index])
    # Across a kink the slope must rise: along its normal, the change of the gradient with the share.
    change = jax.jacfwd(lambda alpha: gradient(x1, spread(alpha)))(alpha)
    across = jnp.sum(jax.jacrev(lambda x: inputs_of(x)[0][index])(x1) * change.T, axis=1)
    found = found & jnp.all(~used | alone[index] | (across > 0))
    normals = jnp.where(used[:, None], jax.jacrev(lambda x: inputs_of(x)[0][index])(x1), 0.0)
    return OnKinks(unravel(jnp.where(found, x1, flat)), found, residual, 0.5 * (H + H.T), normals, num_kinks, margin)
