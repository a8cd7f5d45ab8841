"""From a state near a critical point to that point: polished, with its Hessian.

An integration ends where the gradient is small; the critical point nearby is found by Newton's method, of Optimistix. Where that
does not settle close by, the method of Levenberg and Marquardt takes over: several times the work, but it solves `∇L = 0` also
where the Hessian is singular, as it is along symmetries.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from gdflow.kinks import OnKinks, settle_on_kinks
from gdflow.objective import NetworkObjective, Objective
from gdflow.points import is_finite, point_norm

#: Tolerances, and most steps: of Newton's method, which needs three to five of a simple zero, and of Levenberg's and Marquardt's.
_TOLERANCE, _NEWTON_STEPS, _STEPS = 1e-13, 8, 100
#: Newton's method is trusted within this part of the size of the state, and if the inverse of the Hessian is not larger than
#: this, times one over its norm: where it is nearly singular a step goes along a family of critical points, or leaps.
_CLOSE, _REGULAR = 1e-2, 1e6
#: Hessians of more parameters than this are not computed (128 MiB each).
MOST_PARAMETERS = 4096
#: The gradient along the straight line from the critical point to the state is looked at in so many places.
_PLACES = 8


class Polished(eqx.Module):
    """Critical points near given states; the first axis of all arrays counts them.

    - `points`, `losses`, `gradient_norms`: of the critical points.
    - `hessians`: there, on raveled points; on kinks with the slopes at which the gradient vanishes.
    - `normals`: of the kinks that the points lie on (zero rows for none), to which the Hessian does not apply; `num_kinks`.
    - `canonical`: their canonical forms (`Objective.canonical`), raveled; `fingerprints` and `features` tell isolated ones, and
      families, apart.
    - `num_symmetries`: known null directions of the Hessian; `dead`: how many units are off, layer by layer.
    - `moved`: distance to the state.
    - `downhill`: whether the loss rises all along the straight line from the critical point to the state.
    """

    points: Any
    losses: Float[Array, "*n"]
    gradient_norms: Float[Array, "*n"]
    hessians: Float[Array, "*n P P"]
    normals: Float[Array, "*n K P"]
    num_kinks: Int[Array, "*n"]
    canonical: Float[Array, "*n P"]
    fingerprints: Float[Array, "*n f"]
    features: Float[Array, "*n q"]
    num_symmetries: Int[Array, "*n"]
    dead: Int[Array, "*n hidden"]
    moved: Float[Array, "*n"]
    downhill: Bool[Array, "*n"]


@eqx.filter_jit
def polish(objective: Objective, states: Any, step: Float[Array, ""] | float = 0.0) -> Polished:
    """The critical points near a batch of states, one after the other. Traceable.

    Where the method does not converge the gradient norm says so. Networks with kinks: see `gdflow.kinks`.

    **Arguments:** `step`: the shortest step of the integration that led there, where the gradient jumps.
    """
    network = objective if isinstance(objective, NetworkObjective) and objective.has_kinks else None

    def one(state):
        flat, unravel = ravel_pytree(state)

        def gradient(x):
            return ravel_pytree(objective.gradient(unravel(x)))[0]

        if network is not None:
            found = settle_on_kinks(network, state, jnp.asarray(step, flat.dtype))
        else:
            found = _critical_point(gradient, flat, unravel)
        point = found.point
        x = ravel_pytree(point)[0]
        s = jnp.arange(1, _PLACES + 1) / _PLACES
        slopes = jax.lax.map(lambda s: jnp.dot(gradient(x + s * (flat - x)), flat - x), s)
        dead = [jnp.sum(units) for units in objective.dead_units(point)]
        return Polished(
            points=point,
            losses=objective.effective_loss(point),
            gradient_norms=jnp.where(found.found, found.residual, jnp.inf) if network is not None else found.residual,
            hessians=found.hessian,
            normals=found.normals,
            num_kinks=found.num_kinks,
            canonical=ravel_pytree(objective.canonical(point))[0],
            fingerprints=objective.fingerprint(point),
            features=objective.features(point),
            num_symmetries=objective.num_symmetries(point),
            dead=jnp.stack(dead) if dead else jnp.zeros(0, int),
            moved=point_norm(x - flat),
            downhill=jnp.all(slopes >= 0),
        )

    # One at a time: large batches of LAPACK calls inside a compiled program can hang on a CPU.
    return jax.lax.map(one, states)


def _critical_point(gradient: Callable[[Array], Array], flat: Array, unravel: Callable[[Array], Any]) -> OnKinks:
    """The critical point near a raveled state, where the gradient is continuous: on no kinks."""
    options: dict[str, Any] = dict(rtol=_TOLERANCE, atol=_TOLERANCE)
    begin = point_norm(gradient(flat))

    def field(x, _):
        return gradient(x)

    def hessian(x):
        H = jax.lax.map(lambda v: jax.jvp(gradient, (x,), (v,))[1], jnp.eye(x.size, dtype=x.dtype), batch_size=x.size)
        return 0.5 * (H + H.T)

    def slowly():
        x = optx.least_squares(field, optx.LevenbergMarquardt(**options), flat, max_steps=_STEPS, throw=False).value
        x = jnp.where(is_finite(x) & (point_norm(gradient(x)) <= begin), x, flat)
        return x, hessian(x)

    solver: Any = optx.Newton(**options, linear_solver=lx.LU())
    newton: Any = optx.root_find(field, solver, flat, max_steps=_NEWTON_STEPS, throw=False)
    H = hessian(newton.value)
    settled = (newton.result == optx.RESULTS.successful) & (point_norm(gradient(newton.value)) <= begin)
    settled &= point_norm(newton.value - flat) <= _CLOSE * (1 + point_norm(flat))
    settled &= _is_regular(H)
    x, H = jax.lax.cond(settled, lambda: (newton.value, H), slowly)
    none = jnp.zeros((0, x.size), x.dtype)
    return OnKinks(unravel(x), is_finite(x), point_norm(gradient(x)), H, none, jnp.asarray(0), jnp.asarray(0.5))


def _is_regular(H: Float[Array, "P P"]) -> Bool[Array, ""]:
    """Whether a matrix is far from singular, by what its inverse does to some vector without a structure."""
    v = jax.random.normal(jax.random.key(0), H.shape[:1], H.dtype)
    grown = jnp.linalg.norm(jnp.linalg.solve(H, v)) * jnp.linalg.norm(H)
    return jnp.isfinite(grown) & (grown <= _REGULAR * jnp.linalg.norm(v))
