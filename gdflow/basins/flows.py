"""Gradient flows in lanes: the process that the batch engine runs to certify limits.

What all methods have in common is here: acceptance of steps by Diffrax's `PIDController`, verdicts, crossing times on the
solver's own interpolant, rows. `SolverFlow` steps any adaptive Diffrax solver by its own `step`; explicit Runge–Kutta methods
have a faster form in `gdflow.basins.explicit`.
"""

import functools
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from gdflow.basins.lanes import AbstractLaneState, AbstractProcess
from gdflow.basins.outcomes import Status
from gdflow.certificates import LevelCertificate
from gdflow.checks import check_count, check_number
from gdflow.dynamics import gradient_flow_field
from gdflow.dynamics.options import check_tolerances
from gdflow.dynamics.runge_kutta import check_solver
from gdflow.initialization import AbstractInitialization
from gdflow.invariants import drift
from gdflow.network import LayerTuple, count_parameters
from gdflow.problem import Problem
from gdflow.rounding import coarse_is_enough, coarse_residual_error, residual_error

#: A gradient of this norm or less is zero for the purposes of stepping: any step size would do, and overflow; below it the
#: squares of its entries underflow.
_VANISHING = 1e-150

#: A step shorter than this many units in the last place of `t` makes no progress.
_SMALLEST_STEP = 8.0

#: Crossing times of at most this many levels: each keeps a copy of the state per lane.
MAX_CROSSINGS = 16


class LaneSettings(eqx.Module):
    """How lanes are stepped, and when one is given up.

    - `solver`: a Diffrax solver with an embedded error estimate.
    - `rtol`, `atol`: tolerances of the step-size controller.
    - `t1`: flow time after which an undecided start is given up; infinite by default.
    - `max_steps`: number of steps, accepted and rejected, after which it is given up.
    - `gradient_tolerance`, `dwell`: a start whose gradient norm has stayed at or below the tolerance for a flow time of
      `dwell` has converged numerically, which decides nothing: it may be passing a saddle. Off (0) by default.
    - `largest`: a start whose weights exceed this Frobenius norm diverges.
    """

    solver: diffrax.AbstractSolver = diffrax.Tsit5()
    rtol: float = 1e-6
    atol: float = 1e-9
    t1: float = np.inf
    max_steps: int = eqx.field(static=True, default=10_000, converter=functools.partial(check_count, "max_steps"))
    gradient_tolerance: float = 0.0
    dwell: float = 0.0
    largest: float = 1e12

    def __check_init__(self):
        check_solver(self.solver)
        check_tolerances(self.rtol, self.atol, self.max_steps)
        for name in ("t1", "largest"):
            value = getattr(self, name)
            if value != np.inf and not check_number(name, value) > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        for name in ("gradient_tolerance", "dwell"):
            if check_number(name, getattr(self, name)) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


def _with_tolerances(solver: diffrax.AbstractSolver, controller: diffrax.PIDController) -> diffrax.AbstractSolver:
    """Hands the controller's tolerances to the root finder of an implicit solver, as `diffeqsolve` does."""
    if not isinstance(solver, diffrax.AbstractImplicitSolver):
        return solver

    def unset(finder):
        given: dict[str, Callable[[Any], bool]] = {"rtol": np.isscalar, "atol": np.isscalar, "norm": callable}
        return [
            name for name, is_given in given.items() if hasattr(finder, name) and not is_given(getattr(finder, name))
        ]

    names = unset(solver.root_finder)
    values = [getattr(controller, name) for name in names]
    return eqx.tree_at(lambda s: [getattr(s.root_finder, name) for name in names], solver, values)


class Place(eqx.Module):
    """Where a step begins and how long it is: all that it takes to make the step, and to make it again."""

    y: Any
    memory: Any
    t: Float[Array, " lanes"]
    t_next: Float[Array, " lanes"]
    loss: Float[Array, " lanes"]


class _FlowState(AbstractLaneState):
    """Lanes on their way. Once a lane is `done` nothing in it changes.

    A lane whose step is certified stays at the *beginning* of that step, and for every other crossing that is timed there is
    a mark where its step began: repeated, these steps give their interpolants again, so that no interpolant is stored. A mark
    not yet set has `t_next` NaN; of a start below the level from the first it is 0. Marks are places as `forget` leaves them.
    `lowest` is the lowest level that the start can reach.
    """

    start: Any
    here: Place
    marks: tuple[Place, ...]
    controller: Any
    lowest: Int[Array, " lanes"]
    steps: Int[Array, " lanes"]
    quiet_since: Float[Array, " lanes"]
    level: Int[Array, " lanes"]
    status: Int[Array, " lanes"]
    done: Bool[Array, " lanes"]


class Step(eqx.Module):
    """A step that was tried: where it led, with which interpolant."""

    y: Any
    memory: Any
    loss: Float[Array, " lanes"]
    dense: Any


def _rms(x: Any) -> Array:
    """Diffrax's `rms_norm` as plain sums, which fuse in batches."""
    leaves = jax.tree.leaves(x)
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in leaves) / sum(leaf.size for leaf in leaves))


def _evaluated_once(evaluate: Callable[[], Any], *, unless: Array) -> Any:
    """`evaluate()`, or zeros where it is not needed.

    The point of the branch is less to save the work than that on CPU the compiler fuses nothing across it: what is computed
    in it would otherwise be computed again for each of its users. On an accelerator a branch costs a round trip to the host.
    """
    if jax.default_backend() != "cpu":
        return evaluate()
    empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), eqx.filter_eval_shape(evaluate))
    return jax.lax.cond(unless, lambda: empty, evaluate)


def _only_if(condition: Array, change: Callable[[Any, Any], Any], new: Any, old: Any) -> Any:
    """`change(new, old)`, or `old` where nothing changes: on CPU that saves going through it (see `_evaluated_once`)."""
    if jax.default_backend() != "cpu":
        return change(new, old)
    return jax.lax.cond(condition, change, lambda _, old: old, new, old)


def _first_true(ends: dict[Status, Array], otherwise: Array) -> Array:
    """The first status whose condition holds."""
    for status, condition in reversed(ends.items()):
        otherwise = jnp.where(condition, status, otherwise)
    return otherwise


class AbstractFlow(AbstractProcess):
    """What all gradient flows in lanes have in common: acceptance of steps, verdicts, crossing times, rows."""

    problem: eqx.AbstractVar[Problem]
    law: eqx.AbstractVar[AbstractInitialization]
    key: eqx.AbstractVar[Key[Array, ""]]
    certificate: eqx.AbstractVar[LevelCertificate]
    crossings: eqx.AbstractVar[Float[Array, " K"]]
    settings: eqx.AbstractVar[LaneSettings]

    @abstractmethod
    def begin(self, y: Any, controller: diffrax.PIDController) -> tuple[Any, Array, Any]:
        """At starts `y`: the memory of the method, the end of the first step, and the controller's state."""

    @abstractmethod
    def attempt(self, place: Place) -> tuple[Step, Any]:
        """Tries one step in every lane; also the error estimate, of the shape of `y`."""

    @abstractmethod
    def loss(self, y: Any) -> Float[Array, " lanes"]:
        """Effective losses."""

    @abstractmethod
    def gradient_norm(self, y: Any, memory: Any) -> Float[Array, " lanes"]:
        """`‖∇L‖`."""

    @abstractmethod
    def interpolate(self, place: Place, dense: Any, t: Float[Array, " lanes"]) -> Any:
        """States inside a step, by the solver's own interpolant."""

    @abstractmethod
    def networks(self, y: Any) -> LayerTuple:
        """The lanes as a batch of networks (leading axis)."""

    def forget(self, place: Place) -> Place:
        """The place without what `recall` can find again: this is what marks keep."""
        return place

    def recall(self, place: Place) -> Place:
        """The whole place again."""
        return place

    @property
    def controller(self) -> diffrax.PIDController:
        return diffrax.PIDController(rtol=self.settings.rtol, atol=self.settings.atol, norm=_rms)

    def squares(self, x: Any) -> list[Float[Array, " lanes"]]:
        """Sums of squares, layer by layer."""

        def total(a):
            return jnp.sum(jnp.square(a), axis=tuple(k for k in range(a.ndim) if k != self.lane_axis % a.ndim))

        return [total(a) for a in jax.tree.leaves(x)]

    def norm(self, x: Any) -> Float[Array, " lanes"]:
        """Euclidean norms."""
        return jnp.sqrt(sum(self.squares(x)))

    def residual_error(self, y: Any, squares: list[Float[Array, " lanes"]]) -> Float[Array, " lanes"]:
        """How far the computed residuals `A − WD` may lie from the exact ones (`gdflow.rounding`); `squares`: those of `y`."""
        if coarse_is_enough(self.law.widths):
            return coarse_residual_error(self.problem, self.law.widths, squares)
        return jax.vmap(functools.partial(residual_error, self.problem))(self.networks(y))

    def lowest_level(self, y: Any) -> Int[Array, " lanes"]:
        """The lowest level that the flow from `y` can reach."""
        return jax.vmap(functools.partial(self.certificate.lowest_level, self.problem))(self.networks(y))

    def init(self, starts: Any) -> _FlowState:
        loss, squares = self.loss(starts), self.squares(starts)
        size, loss_error = jnp.sqrt(sum(squares)), self.residual_error(starts, squares)
        zero = jnp.zeros_like(loss)
        memory, t_next, controller = self.begin(starts, self.controller)
        # Where the start is critical the selection of the first step has nothing to go by and may return no number.
        t_next = jnp.minimum(jnp.where(jnp.isfinite(t_next) & (t_next > 0), t_next, 0.01), self.settings.t1)
        here = Place(starts, memory, zero, t_next, loss)
        finite = jnp.isfinite(size) & jnp.isfinite(loss)
        gradient_norm = self.gradient_norm(starts, memory)
        lowest = self.lowest_level(starts)
        ends = {
            Status.NON_FINITE: ~finite,
            Status.CERTIFIED: self.certificate.certified(loss, loss_error, lowest),
            Status.STATIONARY: gradient_norm <= _VANISHING,
            Status.DIVERGING: size > self.settings.largest,
        }
        return _FlowState(
            start=starts,
            here=here,
            marks=tuple(
                eqx.tree_at(lambda p: p.t_next, self.forget(here), jnp.where(loss < level, 0.0, jnp.nan))
                for level in self.crossings
            ),
            controller=controller,
            lowest=lowest,
            steps=jnp.zeros(loss.shape, int),
            quiet_since=jnp.where(gradient_norm <= self.settings.gradient_tolerance, 0.0, jnp.inf),
            level=self.certificate.level(loss, loss_error),
            status=_first_true(ends, jnp.full(loss.shape, Status.STEP_LIMIT)),
            done=functools.reduce(jnp.logical_or, ends.values()),
        )

    def error_norm(self, y: Any, y1: Any, error: Any) -> Float[Array, " lanes"]:
        """Diffrax's `rms_norm(error / (atol + rtol·max(|y|, |y1|)))`, in every lane."""

        def scaled(a, b, e):
            return e / (self.settings.atol + self.settings.rtol * jnp.maximum(jnp.abs(a), jnp.abs(b)))

        return self.norm(jax.tree.map(scaled, y, y1, error)) / np.sqrt(count_parameters(self.law.widths))

    def step(self, state: _FlowState) -> _FlowState:
        s, here = self.settings, state.here

        def attempt():
            tried, error = self.attempt(here)
            return tried.y, tried.memory, tried.loss, error

        y1, memory1, loss1, error = _evaluated_once(attempt, unless=jnp.all(state.done))
        norm = self.error_norm(here.y, y1, error)
        # A step that leaves the floating-point range counts as an infinite error: it is rejected and shortened.
        finite = jnp.isfinite(norm) & jnp.isfinite(loss1)
        norm = jnp.where(finite, norm, jnp.inf)
        order: Any = s.solver.error_order(diffrax.ODETerm(gradient_flow_field))

        def adapt(t, t_next, norm, c):
            # The norm of the error is known: what is left to Diffrax is the decision and the next step size.
            decide = diffrax.PIDController(rtol=0.0, atol=1.0, norm=jnp.abs)
            return decide.adapt_step_size(t, t_next, 0.0, 0.0, None, norm, order, c)[:5]

        keep, t, t_next, _, controller = jax.vmap(adapt)(here.t, here.t_next, norm, state.controller)
        active = ~state.done
        keep = keep & finite & active
        squares1 = self.squares(y1)
        loss_error1 = self.residual_error(y1, squares1)
        certified = keep & self.certificate.certified(loss1, loss_error1, state.lowest)
        moved = keep & ~certified
        active = active & ~certified
        y, memory = self.select(moved, (y1, memory1), (here.y, here.memory))
        gradient_norm = self.gradient_norm(y, memory)
        quiet = moved & (gradient_norm <= s.gradient_tolerance)
        quiet_since = jnp.where(moved, jnp.where(quiet, jnp.minimum(state.quiet_since, t), jnp.inf), state.quiet_since)
        too_short = active & (t_next - t <= _SMALLEST_STEP * jnp.finfo(t.dtype).eps * t)
        steps = jnp.where(state.done, state.steps, state.steps + 1)
        ends = {
            Status.CERTIFIED: certified,
            Status.STATIONARY: moved & (gradient_norm <= _VANISHING),
            Status.CONVERGED: quiet & (t - quiet_since >= s.dwell),
            Status.DIVERGING: (moved & (jnp.sqrt(sum(squares1)) > s.largest)) | (too_short & finite),
            Status.NON_FINITE: too_short,
            Status.TIME_LIMIT: active & (t >= s.t1),
            Status.STEP_LIMIT: active & (steps >= s.max_steps),
        }
        marks = []
        for level, mark in zip(self.crossings, state.marks, strict=True):
            crossed = keep & jnp.isnan(mark.t_next) & (loss1 < level)
            marks.append(_only_if(jnp.any(crossed), functools.partial(self.select, crossed), self.forget(here), mark))
        return _FlowState(
            start=state.start,
            here=Place(
                y=y,
                memory=memory,
                t=jnp.where(active, t, here.t),
                t_next=jnp.where(active, jnp.minimum(t_next, s.t1), here.t_next),
                loss=jnp.where(moved, loss1, here.loss),
            ),
            marks=tuple(marks),
            controller=self.select(active, controller, state.controller),
            lowest=state.lowest,
            steps=steps,
            quiet_since=quiet_since,
            level=jnp.where(keep, jnp.minimum(self.certificate.level(loss1, loss_error1), state.level), state.level),
            status=_first_true(ends, state.status),
            done=functools.reduce(jnp.logical_or, ends.values(), state.done),
        )

    def crossing_time(self, place: Place, step: Step, level: Array, wanted: Array) -> Float[Array, " lanes"]:
        """When the loss fell to a level inside a step, on the solver's own interpolant; only lanes where it is wanted count.

        Chandrupatla's method: inverse quadratic interpolation where it is safe, bisection elsewhere.
        """

        def excess(t):
            return self.loss(self.interpolate(place, step.dense, t)) - level

        def body(c):
            count, x1, f1, x2, f2, x3, f3, share = c
            x = x1 + share * (x2 - x1)
            f = excess(x)
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

        def unfinished(c):
            count, x1, f1, x2, *_ = c
            open_ = (jnp.abs(x2 - x1) > 4 * eps * jnp.abs(x1)) & (f1 != 0) & jnp.isfinite(f1)
            return (count < 60) & jnp.any(open_ & wanted)

        eps = float(jnp.finfo(place.t.dtype).eps)
        high, low = place.loss - level, step.loss - level
        share = jnp.where(high > low, low / jnp.where(high > low, low - high, -1.0), 0.5)
        first = (0, place.t_next, low, place.t, high, place.t, high, share)
        _, x1, f1, x2, f2, *_ = jax.lax.while_loop(unfinished, body, first)
        # A loss already below the level at the beginning of the step (of a certificate, whose level moves with round-off).
        return jnp.where(high <= 0, place.t, jnp.where(jnp.abs(f1) <= jnp.abs(f2), x1, x2))

    def rows(self, state: _FlowState) -> dict[str, Array]:
        certified = state.status == Status.CERTIFIED
        places = (state.here, *map(self.recall, state.marks))
        wanted = [certified & (state.steps > 0), *[mark.t_next > mark.t for mark in state.marks]]
        lanes = state.done.shape[0]
        # The last step and all marked ones together, as so many lanes more.
        every = self.join(places)
        step, _ = self.attempt(every)
        end = self.take(step.y, jnp.arange(lanes))
        goal = self.certificate.goal(self.residual_error(end, self.squares(end)), state.lowest)
        levels = [goal, *(jnp.full(lanes, level) for level in self.crossings)]
        times = self.crossing_time(every, step, jnp.concatenate(levels), jnp.concatenate(wanted)).reshape(-1, lanes)
        last = self.take((step.y, step.memory, step.loss), jnp.arange(lanes))
        here = state.here
        y, memory, loss = self.select(wanted[0], last, (here.y, here.memory, here.loss))
        crossings = [jnp.where(w, time, mark.t_next)
                     for w, time, mark in zip(wanted[1:], times[1:], state.marks, strict=True)]  # fmt: skip
        # A start that ended on the other side of the boundary than it began was carried across by the integration's error.
        strayed = certified & (self.lowest_level(y) != state.lowest)
        level = jnp.where(
            strayed, self.certificate.thresholds.shape[0], jnp.where(certified, state.lowest, state.level)
        )
        return dict(
            status=jnp.where(strayed, Status.STRAYED, state.status),
            level=level,
            time=jnp.where(wanted[0], times[0], here.t),
            steps=state.steps,
            loss=loss,
            gradient_norm=self.gradient_norm(y, memory),
            drift=jax.vmap(drift)(self.networks(y), self.networks(state.start)),
            **{f"crossing_{i}": time for i, time in enumerate(crossings)},
        )


class SolverFlow(AbstractFlow):
    """Any adaptive Diffrax solver, implicit ones included, stepped by its own `step`. `memory` is the solver's state."""

    problem: Problem
    law: AbstractInitialization
    key: Key[Array, ""]
    certificate: LevelCertificate
    crossings: Float[Array, " K"]
    settings: LaneSettings
    lane_axis: int = eqx.field(static=True)

    def __init__(self, problem, law, key, certificate, crossings, settings):
        self.problem, self.law, self.key = problem.without_info(), law, key
        self.certificate, self.crossings, self.settings, self.lane_axis = certificate, crossings, settings, 0

    @property
    def solver(self) -> diffrax.AbstractSolver:
        return _with_tolerances(self.settings.solver, self.controller)

    @property
    def terms(self) -> diffrax.ODETerm:
        return diffrax.ODETerm(gradient_flow_field)

    def draw(self, high: Array, low: Array) -> LayerTuple:
        return self.law.draw_batch(self.key, high, low)

    def networks(self, y: LayerTuple) -> LayerTuple:
        return y

    def loss(self, y: LayerTuple) -> Float[Array, " lanes"]:
        return jax.vmap(self.problem.effective_loss)(y)

    def gradient_norm(self, y: LayerTuple, memory: Any) -> Float[Array, " lanes"]:
        return jax.vmap(lambda net: self.problem.gradient(net).norm())(y)

    def begin(self, y: LayerTuple, controller: diffrax.PIDController) -> tuple[Any, Array, Any]:
        solver, terms, zero = self.solver, self.terms, jnp.zeros(())

        def first(net):
            t_next, state = controller.init(
                terms, zero, zero, net, None, self.problem, solver.func, solver.error_order(terms)
            )
            return solver.init(terms, zero, t_next, net, self.problem), t_next, jax.tree.map(jnp.asarray, state)

        return jax.vmap(first)(y)

    def attempt(self, place: Place) -> tuple[Step, LayerTuple]:
        def one(net, t, t_next, memory):
            return self.solver.step(self.terms, t, t_next, net, self.problem, memory, made_jump=False)[:4]

        y, error, dense, memory = jax.vmap(one)(place.y, place.t, place.t_next, place.memory)
        return Step(y, memory, self.loss(y), dense), error

    def interpolate(self, place: Place, dense: Any, t: Float[Array, " lanes"]) -> LayerTuple:
        def evaluate(t0, t1, dense, t):
            return self.solver.interpolation_cls(t0=t0, t1=t1, **dense).evaluate(t)

        return jax.vmap(evaluate)(place.t, place.t_next, dense, t)
