"""Estimates of the constants `β` and `ρ` of a loss, its gradient's and its Hessian's Lipschitz constants: seen, not bounded."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key

from gdflow.losses import Huber
from gdflow.objective import DataObjective, Objective
from gdflow.problem import AbstractProblem

#: `smoothness` and `hessian_lipschitz` are estimated by the largest values seen, times this.
_FACTOR = 2.0
#: At least and at most so many descents look for them, so many steps each, and turn so often at both ends.
_PROBES, _MOST_PROBES, _PROBE_STEPS, _TURNS = 4, 64, 200, 20
#: Size of the noise with which they begin, beside `1 + ‖w_0‖`.
_SHAKE = 1e-2


def estimate_constants(problem: AbstractProblem, nets: Any, key: Key[Array, ""], wanted: bool) -> tuple[float, float]:
    """Estimates of `β` and `ρ`, no bounds; `wanted`: whether that of `ρ` is needed."""
    objective = problem.objective
    if not objective.smooth or (isinstance(objective, DataObjective) and isinstance(objective.loss, Huber)):
        raise ValueError(
            "smoothness and hessian_lipschitz cannot be estimated: the gradient or the Hessian jumps (kinks of activations, the "
            "Huber loss), so there are no such constants; give both to run it nevertheless"
        )
    count = jax.tree.leaves(nets)[0].shape[0]
    num = min(max(count, _PROBES), _MOST_PROBES)
    chosen = np.arange(num) * count // num
    seen = _probe(objective, jax.tree.map(lambda x: x[chosen], nets), jax.random.split(key, num))
    beta, rho = (_FACTOR * float(x) for x in seen)
    if not (beta > 0 and math.isfinite(beta)):
        raise ValueError(f"smoothness cannot be estimated: {beta:g} was found; give it")
    if wanted and not (rho > 0 and math.isfinite(rho)):
        raise ValueError(
            f"hessian_lipschitz cannot be estimated: {rho:g} was found. Of a quadratic function it is zero: give any positive "
            "number up to β²/ε"
        )
    return beta, rho


@eqx.filter_jit
def _probe(objective: Objective, nets: Any, keys: Key[Array, " n"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The largest `‖∇²L v‖` and `‖D³L[u, u, ·]‖` seen on descents from all starts, unit vectors `u`, `v`."""
    _, unravel = ravel_pytree(jax.tree.map(lambda x: x[0], nets))

    def gradient(x):
        return ravel_pytree(objective.gradient(unravel(x)))[0]

    def loss(x):
        return objective.effective_loss(unravel(x))

    def walk(x, key):
        # Three vectors from one key, which is used for nothing else.
        shake, v, u = (z / jnp.linalg.norm(z) for z in jax.random.normal(key, (3, x.size), x.dtype))
        shake = _SHAKE * (1 + jnp.linalg.norm(x)) * shake

        def turn(k, carry):
            """One power iteration for `v` and for `u`, and between the turns at both ends a step, too."""
            x, step, v, u, seen = carry
            x = jnp.where(k == _TURNS, x + shake, x)
            g, second = jax.jvp(gradient, (x,), (v,))
            third = jax.jvp(lambda y: jax.jvp(gradient, (y,), (u,))[1], (x,), (u,))[1]
            sizes = jnp.stack([jnp.linalg.norm(second), jnp.linalg.norm(third)])
            good = jnp.isfinite(sizes) & (sizes > 0)
            seen = jnp.maximum(seen, jnp.where(good, sizes, 0.0))
            by = jnp.where(good, sizes, 1.0)
            v = jnp.where(good[0], second / by[0], v)
            # D³L[u, u, ·] is the same for −u; with u added on its side the value does not fall back.
            moved = third / by[1] + jnp.where(jnp.dot(third, u) < 0, -1.0, 1.0) * u
            u = jnp.where(good[1], moved / jnp.linalg.norm(moved), u)
            # A step that lowers the loss as one of 1/β would is taken, or is shorter the next time.
            step = jnp.where(k == _TURNS, 1 / jnp.where(seen[0] > 0, seen[0], 1.0), step)
            good_step = loss(x - step * g) <= loss(x) - 0.5 * step * jnp.sum(g**2)
            moves = (k >= _TURNS) & (k < _TURNS + _PROBE_STEPS)
            return jnp.where(moves & good_step, x - step * g, x), jnp.where(good_step, 2.0, 0.25) * step, v, u, seen

        begin = x, jnp.zeros((), x.dtype), v, u, jnp.zeros(2, x.dtype)
        return jax.lax.fori_loop(0, _PROBE_STEPS + 2 * _TURNS, turn, begin)[-1]

    flat = jax.vmap(lambda net: ravel_pytree(net)[0])(nets)
    return tuple(jnp.max(jax.vmap(walk)(flat, keys), axis=0))
