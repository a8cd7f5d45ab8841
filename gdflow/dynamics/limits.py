"""Limit points of the gradient flow, with derivatives that are right although limits are not isolated.

Near a nondegenerate manifold of minima every trajectory runs into one of its points, `Φ_∞(W)`. With `H` the Hessian there
and `P` the orthogonal projection onto its kernel, which is the tangent space of the manifold, to first order

    dΦ_∞ = P dΦ_T − H⁺ d(∇L),

`Φ_T` being the flow up to a late time, `d(∇L)` the change of the gradient at the limit with the data: along the manifold the
flow decides, across it the equation `∇L = 0`. The implicit function theorem alone gives the second term only
(`gdflow.dynamics.adjoints`).
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from gdflow.checks import is_traced
from gdflow.dynamics.gradient_flow import simulate
from gdflow.dynamics.stopping import AtGradientNorm
from gdflow.losses import SquaredError
from gdflow.network import LayerTuple, check_layer_tuple, matmul
from gdflow.objective import Objective
from gdflow.problem import Problem
from gdflow.sides import check_side

#: Hessians of more parameters than this are not decomposed.
MAX_PARAMETERS = 2**12
#: Newton steps from the end of the integration to the limit.
_NEWTON_STEPS = 3


def limit(
    problem: Problem,
    start: LayerTuple,
    *,
    gradient_norm: float = 1e-8,
    rtol: float = 1e-10,
    atol: float = 1e-12,
    max_steps: float = 100_000,
    **options,
) -> LayerTuple:
    """The global minimum to which the flow from a start (or a batch of starts) converges, differentiably.

    The flow is integrated until `‖∇L‖` falls to `gradient_norm`; Newton steps across the manifold of minima do the rest.
    Differentiable in the start and in the data (`gdflow.perturbation`), with the derivatives at the head of this module.

    **Arguments:** `gradient_norm`: also says how far along the manifold the limit is known, about `gradient_norm/λ` with the
    smallest positive eigenvalue `λ` of the Hessian, squared; other options are those of `gdflow.simulate`.

    **Raises:** `ValueError` for other losses than the squared error, more than 2¹² parameters, networks that do not fit,
    balanced ones on the wrong side of `det W = 0`, and options of `simulate` that have no meaning here. At run time, also
    inside `jax.jit`, an `equinox.EquinoxRuntimeError` where the integration does not get to a nondegenerate minimum: at a
    saddle, and at minima which more directions leave flat than are tangent to them, as with singular values `s_i = 0` or, at
    the bottleneck, `s_r = s_{r+1}`. There the limit has no such derivative.

    ```python
    >>> jax.grad(lambda net: limit(problem, net).weights[0][0, 0])(start)
    ```
    """
    check_layer_tuple(start)
    for name in sorted({"stop", "ts", "t0", "t1", "dense"} & set(options)):
        raise ValueError(
            f"limit runs until the gradient norm has fallen, and keeps nothing on the way: leave {name} out"
        )
    if not is_traced(problem, start):
        problem.check_network(start, batch=True)
    if not isinstance(problem.loss, SquaredError):
        raise ValueError(f"the minima of {type(problem.loss).__name__} are not known: limit is for the squared error")
    size = start.num_parameters
    if size > MAX_PARAMETERS:
        raise ValueError(
            f"limit decomposes the Hessian: {size} parameters are too many (at most {MAX_PARAMETERS}); simulate to a late time "
            "instead, whose state has derivatives that tend to those of the limit"
        )
    if not is_traced(problem, start):
        check_side(problem, start)
    if start.batch_shape:
        one = functools.partial(
            limit, gradient_norm=gradient_norm, rtol=rtol, atol=atol, max_steps=max_steps, **options
        )
        return eqx.filter_vmap(one, in_axes=(None, 0))(problem, start)
    stop = AtGradientNorm(gradient_norm)
    run = simulate(
        problem, start, np.inf, ts=[0.0], stop=stop, rtol=rtol, atol=atol, max_steps=max_steps, dense=False, **options
    )
    flat, unravel = ravel_pytree(run.final)
    flat = eqx.error_if(
        flat,
        run.reached != 0,
        "the gradient norm did not fall to `gradient_norm` within max_steps: the flow is slow or degenerate near its limit",
    )
    # The matrices of rank r form a manifold of this dimension, and so many eigenvalues of the Hessian are positive at a minimum.
    r = problem.max_rank(start.widths)
    codimension = r * (problem.rank_inputs + problem.d_out - r)
    return unravel(_settle(start.widths, codimension, flat, problem.objective))


def _network(widths: tuple[int, ...], flat: Array) -> LayerTuple:
    cuts = np.cumsum([a * b for a, b in zip(widths[:-1], widths[1:], strict=True)])
    parts = jnp.split(flat, cuts[:-1])
    return LayerTuple(w.reshape(b, a) for w, a, b in zip(parts, widths[:-1], widths[1:], strict=True))


def _gradient(widths: tuple[int, ...], flat: Array, objective: Objective) -> Array:
    return ravel_pytree(objective.gradient(_network(widths, flat)))[0]


def _split_hessian(widths: tuple[int, ...], flat: Array, objective: Objective) -> tuple[Array, Array, Array]:
    """Eigenvectors and eigenvalues of the Hessian, and the inverses of those that are positive; zero for the others."""
    H = jax.jacfwd(lambda x: _gradient(widths, x, objective))(flat)
    values, vectors = jnp.linalg.eigh(0.5 * (H + H.T))
    positive = values > np.sqrt(jnp.finfo(flat.dtype).eps) * values[-1]
    return vectors, values, jnp.where(positive, 1 / jnp.where(positive, values, 1.0), 0.0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _settle(widths: tuple[int, ...], codimension: int, flat: Array, objective: Objective) -> Array:
    """The minimum near a state at which the gradient is small, across the manifold of minima."""
    for _ in range(_NEWTON_STEPS):
        vectors, values, inverse = _split_hessian(widths, flat, objective)
        flat = flat - matmul(vectors, inverse * matmul(vectors.T, _gradient(widths, flat, objective)))
    bad = (values[0] < -np.sqrt(jnp.finfo(flat.dtype).eps) * values[-1]) | (jnp.sum(inverse > 0) != codimension)
    return eqx.error_if(
        flat,
        bad,
        "the flow came to rest at no nondegenerate global minimum: a saddle (a smaller gradient_norm passes it unless the start "
        "is on its stable set), or a minimum with more flat directions than tangent ones (zero or tied singular values)",
    )


@_settle.defjvp
def _(widths, codimension, primals, tangents):
    flat, objective = primals
    d_flat, d_objective = tangents
    end = _settle(widths, codimension, flat, objective)
    vectors, _, inverse = _split_hessian(widths, end, objective)
    _, d_gradient = jax.jvp(functools.partial(_gradient, widths, end), (objective,), (d_objective,))
    along = matmul(vectors, jnp.where(inverse > 0, 0.0, matmul(vectors.T, d_flat)))
    return end, along - matmul(vectors, inverse * matmul(vectors.T, d_gradient))
