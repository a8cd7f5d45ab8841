"""Which way of differentiating a flow is right for what.

| adjoint (of Diffrax) | modes | what it differentiates | here |
|---|---|---|---|
| `RecursiveCheckpointAdjoint()` | backward | the steps that were taken, with checkpoints | right; the default |
| `ForwardMode()` | forward | the steps that were taken | right; for `jax.jvp`, `jax.jacfwd`, few inputs |
| `DirectAdjoint()` | both | the steps that were taken | right; slow, every step up to `max_steps` counts |
| `ImplicitAdjoint()` | both | the equation `∇L = 0` at the end | **wrong**, refused |
| `BacksolveAdjoint()` | backward | the flow, integrated backwards | **unstable**, refused |

Right are those that differentiate the steps ("discretise, then optimise"): states at fixed times, losses, and the times of
stops and crossings, whose root find is differentiated implicitly (there the root *is* isolated).

The implicit function theorem at a limit needs an isolated equilibrium. Minima of deep linear networks never are: they form
manifolds, which of their points is reached depends on the start, and `∇L = 0` knows nothing of it. Taken nevertheless it gives
numbers that look reasonable: for `ab → s = 2` from `(0.3, 1.1)`, `∂a_∞/∂s` is 0.3909 and not 0.3079, and `∂a_∞/∂(a_0, b_0)` is
(0.0890, −0.3262) and not 0. Derivatives of limit points: `gdflow.dynamics.limits`.

Integrated backwards, a flow that contracts towards its limit expands: errors grow like `e^{λt}` with the largest eigenvalue of
the Hessian, and what is recomputed has little to do with the trajectory.
"""

import contextlib
from collections.abc import Iterator

import diffrax


@contextlib.contextmanager
def explain_forward_mode() -> Iterator[None]:
    """Says what to do where `jax.jvp` or `jax.jacfwd` meets an adjoint for backward mode, the default one among them."""
    try:
        yield
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        raise TypeError(
            "forward-mode derivatives (jax.jvp, jax.jacfwd, jax.hessian) need adjoint=diffrax.ForwardMode(): the default adjoint "
            "is for backward mode (jax.grad, jax.jacrev)"
        ) from error


def check_adjoint(adjoint: diffrax.AbstractAdjoint | None) -> None:
    """`ValueError`, with the reason, for ways of differentiating that give wrong derivatives of a flow to its limit.

    `TypeError` for what is no adjoint.
    """
    if not isinstance(adjoint, diffrax.AbstractAdjoint | None):
        raise TypeError(f"the adjoint must be one of Diffrax's, such as diffrax.ForwardMode(); got {adjoint!r}")
    if isinstance(adjoint, diffrax.ImplicitAdjoint):
        raise ValueError(
            "ImplicitAdjoint differentiates ∇L = 0 at the end, as if limits were isolated: they form manifolds, and which "
            "point is reached depends on the start, so that its derivatives would be silently wrong. Leave adjoint out for "
            "derivatives of states and times, and use gdflow.limit for those of limit points"
        )
    if isinstance(adjoint, diffrax.BacksolveAdjoint):
        raise ValueError(
            "BacksolveAdjoint integrates the flow backwards, where it expands and errors grow exponentially. Leave adjoint "
            "out: the default differentiates the steps that were taken"
        )
