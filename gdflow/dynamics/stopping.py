"""When to stop a trajectory: at a level certificate, at a gradient norm, at an event of the user's."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Float, Int

from gdflow.objective import Objective, check_linear
from gdflow.points import point_norm
from gdflow.problem import AbstractProblem, check_problem
from gdflow.rounding import residual_error
from gdflow.thresholds import certificate_slack, certificate_threshold, check_precision, residual_bound


class _Bracket(eqx.Module):
    lower: Float[Array, ""]
    upper: Float[Array, ""]
    count: Int[Array, ""]


class FirstNonPositive(optx.AbstractRootFinder):
    """Bisection for a function that falls through zero, ending on the side where it is not positive.

    Optimistix's own bisection ends on either side, and refuses a bracket without a sign change, as the trajectories of a
    batch have that meet no stop: here those end at the upper end of the bracket.
    """

    rtol: float = 0.0
    atol: float = 0.0
    norm: Callable = jnp.abs

    #: Halvings that shrink any bracket of doubles around a root of its own magnitude to round-off.
    halvings: int = 64

    def init(self, fn, y, args, options, f_struct, aux_struct, tags):
        lower, upper = (jnp.asarray(options[end], dtype=jnp.result_type(y)) for end in ("lower", "upper"))
        return _Bracket(lower, upper, jnp.asarray(0))

    def step(self, fn, y, args, options, state, tags):
        middle = 0.5 * (state.lower + state.upper)
        value, aux = fn(middle, args)
        positive = value > 0
        lower, upper = jnp.where(positive, middle, state.lower), jnp.where(positive, state.upper, middle)
        return upper, _Bracket(lower, upper, state.count + 1), aux

    def terminate(self, fn, y, args, options, state, tags):
        return state.count >= self.halvings, optx.RESULTS.successful

    def postprocess(self, fn, y, aux, args, options, state, tags, result):
        return y, aux, {}


class AbstractStop(eqx.Module):
    """A condition that stops the flow where a real function of the state falls to zero.

    The crossing is located inside the step by the solver's own interpolant. A state at which the function is already zero
    or negative at the start stops at once.
    """

    def prepare(self, problem: AbstractProblem, start: Any, allow_float32: bool) -> "AbstractStop":
        """The condition for a given problem and start; raises before any integration if it can't be."""
        return self

    @abstractmethod
    def value(self, t: Float[Array, ""], net: Any, objective: Objective) -> Float[Array, ""]:
        """Positive while the flow goes on."""


class AtCertificate(AbstractStop):
    """Stops where a global minimum is certified, i.e. the loss falls below the second-lowest critical value.

    Where round-off cannot tell the lowest critical values apart (`gdflow.thresholds.Thresholds.separated`), this
    certifies only that the limit's value is one of them. The time is differentiable, in the start and in the data
    (`gdflow.perturbation`), which move the critical value too.

    **Arguments:** `almost_surely`: stop where that follows for almost every start, see `gdflow.verdicts.AlmostSure`.
    """

    almost_surely: bool = eqx.field(static=True, default=False)
    threshold: Float[Array, ""] | None = None

    def prepare(self, problem: AbstractProblem, start: Any, allow_float32: bool) -> "AtCertificate":
        problem, widths = check_problem(problem), start.widths
        check_precision(problem, allow_float32)
        # A slack of its own, so that the state at which the flow stops is certified whatever order its loss is summed in.
        threshold = certificate_threshold(problem, widths, nested=self.almost_surely) - certificate_slack(problem)
        return AtCertificate(self.almost_surely, threshold)

    def value(self, t: Float[Array, ""], net: Any, objective: Objective) -> Float[Array, ""]:
        assert self.threshold is not None
        objective = check_linear(objective)
        exists = jnp.isfinite(self.threshold)
        threshold = jnp.where(exists, self.threshold, 1.0)
        # The round-off of the loss is a constant as far as derivatives go.
        error = jax.lax.stop_gradient(residual_error(objective, net))
        goal = 0.5 * jnp.square(jnp.maximum(residual_bound(threshold, objective.target.size) - error, 0.0))
        # Without a second critical value there is nothing to wait for.
        return jnp.where(exists, objective.effective_loss(net) - goal, -1.0)


class AtGradientNorm(AbstractStop):
    """Stops where `‖∇L‖` falls to `norm`. This fires near saddles too: it decides nothing about the limit."""

    norm: float

    def __check_init__(self):
        if not self.norm > 0:
            raise ValueError(f"the gradient norm to stop at must be positive, got {self.norm}")

    def value(self, t: Float[Array, ""], net: Any, objective: Objective) -> Float[Array, ""]:
        return point_norm(objective.gradient(net)) - self.norm


class AtEvent(AbstractStop):
    """Stops where `function(t, net)`, real-valued and traceable, falls to zero."""

    function: Callable[[Float[Array, ""], Any], Float[Array, ""]]

    def value(self, t: Float[Array, ""], net: Any, objective: Objective) -> Float[Array, ""]:
        return self.function(t, net)
