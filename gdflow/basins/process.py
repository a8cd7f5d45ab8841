"""Gradient flows and other methods in lanes: starts, a method, a verdict and riders put together for the batch engine."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gdflow.basins.lanes import AbstractLaneState, AbstractProcess
from gdflow.basins.methods import AbstractMethod, Place, Step
from gdflow.basins.outcomes import Status
from gdflow.basins.riders import AbstractRider, Event, Stride, only_if
from gdflow.basins.starts import AbstractStarts
from gdflow.checks import check_count, check_number
from gdflow.dynamics.crossings import first_crossing
from gdflow.layouts import AbstractLayout
from gdflow.objective import LinearObjective, Objective
from gdflow.problem import AbstractProblem
from gdflow.rounding import coarse_is_enough, coarse_residual_error, residual_error
from gdflow.smoothness import largest_curvature
from gdflow.verdicts import AbstractVerdict, Moment

#: A gradient of this norm or less is zero for the purposes of stepping: any step size would do, and overflow; below it the
#: squares of its entries underflow.
VANISHING = 1e-150

#: A step shorter than this many units in the last place of `t` makes no progress.
SMALLEST_STEP = 8.0

#: Iterates return to one if they come this close to it, in strides; strides are longer than this part of the size of the iterate;
#: and they return so often in a row.
_RETURNED, _STRIDE, _ROUNDS = 1e-8, 1e-6, 3

#: Steps after which a start is given up by default.
DEFAULT_STEPS = 10_000

#: The first step where a method finds none.
FIRST_STEP = 0.01


def _count_or_none(max_steps: Any) -> int | None:
    return None if max_steps is None else check_count("max_steps", max_steps)


class Limits(eqx.Module):
    """When a start is given up as undecided.

    - `t1`: flow time; infinite by default.
    - `max_steps`: number of steps, accepted and rejected; by default 10 000, and ten to thirty times as many where limits are to
      be found in the run: there no certificate ends it early.
    - `gradient_tolerance`, `dwell`: a start whose gradient norm has stayed at or below the tolerance for a flow time of
      `dwell` has converged numerically, which decides nothing: it may be passing a saddle. Off (0) by default: a certificate
      needs no such guess. Where the gradient jumps (`Objective.smooth`) its norm says nothing: there the root of the rate at
      which the loss falls, `L̇ = −‖∇L‖²`, takes its place, from the means of the loss over one `dwell` and the next.
    - `largest`: a start whose weights exceed this Frobenius norm diverges; by default 10^12 times what the data ask for.
    """

    t1: float = np.inf
    max_steps: int | None = eqx.field(static=True, default=None, converter=_count_or_none)
    gradient_tolerance: float = 0.0
    dwell: float = 0.0
    largest: float | None = None

    def __check_init__(self):
        for name in ("t1", "largest"):
            value = getattr(self, name)
            if value is not None and value != np.inf and not check_number(name, value) > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        for name in ("gradient_tolerance", "dwell"):
            if check_number(name, getattr(self, name)) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")

    @property
    def most_steps(self) -> int:
        """`max_steps`, or its default where no limits are to be found."""
        return DEFAULT_STEPS if self.max_steps is None else self.max_steps

    def longer(self, factor: int, tighter: float) -> "Limits":
        """So many times the steps and the time, and a gradient tolerance smaller by a factor."""
        return Limits(
            factor * self.t1,
            factor * self.most_steps,
            self.gradient_tolerance / tighter,
            factor * self.dwell,
            self.largest,
        )


class _Window(eqx.Module):
    """A stretch of flow time over which the loss is averaged: since when, its integral, and the mean over the one before."""

    since: Float[Array, " lanes"]
    integral: Float[Array, " lanes"]
    before: Float[Array, " lanes"]

    def moved(
        self, moved: Array, t0: Array, t: Array, loss0: Array, loss: Array, span: Array
    ) -> tuple["_Window", Array]:
        """After a step of the lanes that `moved`: the window, and the rate at which the mean fell where one is over, else ∞."""
        integral = jnp.where(moved, self.integral + 0.5 * (t - t0) * (loss0 + loss), self.integral)
        over = moved & (t - self.since >= span)
        length = jnp.where(over, t - self.since, 1.0)
        mean = integral / length
        rate = jnp.where(over, (self.before - mean) / length, jnp.inf)
        window = _Window(
            jnp.where(over, t, self.since), jnp.where(over, 0.0, integral), jnp.where(over, mean, self.before)
        )
        return window, rate


class _Cycle(eqx.Module):
    """Whether the iterates of a descent repeat, after Brent: one iterate is kept until so many steps have passed again.

    - `anchor`: the iterate; `since`: after how many steps it was.
    - `period`: after how many more it was met again, `hits` times in a row at the same distance; 0 for never.
    """

    anchor: Any
    since: Int[Array, " lanes"]
    period: Int[Array, " lanes"]
    hits: Int[Array, " lanes"]

    @classmethod
    def begin(cls, y: Any, like: Array) -> "_Cycle":
        zero = jnp.zeros(like.shape, int)
        return cls(y, zero, zero, zero)

    def moved(
        self, layout: AbstractLayout, moved: Array, old: Any, new: Any, steps: Array
    ) -> tuple["_Cycle", Bool[Array, " lanes"]]:
        """After a step, from `old` to `new`, of the lanes that `moved`; and which of them go round a cycle."""

        def apart(a, b):
            return layout.norm(jax.tree.map(jnp.subtract, a, b))

        stride = apart(new, old)
        # Around a limit everything returns, within round-off: only a stride that stands out from it tells.
        back = (apart(new, self.anchor) <= _RETURNED * stride) & (stride > _STRIDE * layout.norm(new)) & moved
        lag = steps - self.since
        again = back & (self.hits > 0) & (lag == (self.hits + 1) * self.period)
        hits = jnp.where(again, self.hits + 1, jnp.where(back & (self.hits == 0), 1, self.hits))
        period = jnp.where(back & (self.hits == 0), lag, self.period)
        found = hits >= _ROUNDS
        late = moved & ~found & (steps >= 2 * self.since + 1)
        return (
            _Cycle(
                layout.select(late, new, self.anchor),
                jnp.where(late, steps, self.since),
                jnp.where(late, 0, period),
                jnp.where(late, 0, hits),
            ),
            found & moved,
        )


class _State(AbstractLaneState):
    """Lanes on their way. Once a lane is `done` nothing in it changes.

    A lane whose step decides it stays at the *beginning* of that step: repeated, it gives its interpolant again. Where riders
    may hold lanes, `mark` is where that step began, `settled` which lanes are decided, and `here` the end of the last step.
    """

    here: Place
    settled: Bool[Array, " lanes"]
    mark: Place | None
    control: Any
    verdict: Any
    riders: tuple[Any, ...]
    steps: Int[Array, " lanes"]
    quiet_since: Float[Array, " lanes"]
    window: _Window | None
    cycle: _Cycle | None
    status: Int[Array, " lanes"]
    done: Bool[Array, " lanes"]


def _evaluated_once(evaluate: Callable[[], Any], *, unless: Array) -> Any:
    """`evaluate()`, or zeros where it is not needed.

    The point of the branch is less to save the work than that on CPU the compiler fuses nothing across it: what is computed
    in it would otherwise be computed again for each of its users. On an accelerator a branch costs a round trip to the host.
    """
    if jax.default_backend() != "cpu":
        return evaluate()
    empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), eqx.filter_eval_shape(evaluate))
    return jax.lax.cond(unless, lambda: empty, evaluate)


def _first_true(ends: dict[Status, Array], otherwise: Array) -> Array:
    """The first status whose condition holds."""
    for status, condition in reversed(ends.items()):
        otherwise = jnp.where(condition, status, otherwise)
    return otherwise


def _is_place(x: Any) -> bool:
    return isinstance(x, Place)


class LaneProcess(AbstractProcess):
    """What runs in the lanes: `method` steps the starts until the `verdict` or the limits end them; `riders` look on.

    Fields: `source`, the coordinates of the starts; `problem`, in those of the method.
    """

    starts: AbstractStarts
    problem: AbstractProblem
    source: str = eqx.field(static=True)
    method: AbstractMethod
    verdict: AbstractVerdict
    riders: tuple[AbstractRider, ...]
    limits: Limits
    largest: Float[Array, ""]

    def __init__(
        self,
        problem: AbstractProblem,
        starts: AbstractStarts,
        method: AbstractMethod,
        verdict: AbstractVerdict,
        riders: tuple[AbstractRider, ...],
        limits: Limits,
    ):
        self.method = method.suited(starts.widths).traced()
        self.source, self.problem = problem.coordinates, self.method.problem(problem).without_info()
        self.starts, self.verdict, self.riders = starts, verdict.without_info(), riders
        # An array: it depends on the data, for which nothing is to be compiled anew.
        self.largest = jnp.asarray(np.inf if limits.largest is None else limits.largest, float)
        self.limits = dataclasses.replace(limits, largest=None)
        for name in ("gradient_tolerance", "dwell"):
            if getattr(limits, name):  # that of zero is simplified away
                value = jnp.asarray(getattr(limits, name), float)
                self.limits = eqx.tree_at(lambda some: getattr(some, name), self.limits, value)  # noqa: B023 (called at once)

    @property
    def layout(self) -> AbstractLayout:
        return self.method.layout

    @property
    def objective(self) -> Objective:
        return self.problem.objective

    def draw(self, high: Array, low: Array) -> tuple[Any, tuple[Array, Array]]:
        """The starts, packed, and their ids."""
        nets = self.problem.convert(self.starts.draw(high, low), self.source, self.problem.coordinates)
        return self.layout.pack(nets), (high, low)

    # -- what verdicts and riders see ----------------------------------------------------------------------------------

    def moment(self, y: Any, memory: Any, t: Array, loss: Array) -> Moment:
        """The lanes as verdicts and riders see them; what they do not look at is not computed."""
        nets, squares = self.layout.unpack(y), self.layout.squares(y)
        if not isinstance(self.objective, LinearObjective):
            error = jnp.full_like(loss, jnp.nan)
        elif coarse_is_enough(self.starts.widths):
            error = coarse_residual_error(self.objective, self.starts.widths, squares)
        else:
            error = jax.vmap(functools.partial(residual_error, self.objective))(nets)
        return Moment(t, nets, loss, error, self.method.gradient_norm(self.objective, y, memory))

    def _pack(self, state: Any) -> Any:
        layout = self.layout
        return jax.tree.map(lambda x: x if _is_place(x) else layout.pack(x), state, is_leaf=_is_place)

    def _unpack(self, state: Any) -> Any:
        layout = self.layout
        return jax.tree.map(lambda x: x if _is_place(x) else layout.unpack(x), state, is_leaf=_is_place)

    def _held(self, riders: tuple[Any, ...]) -> Array | None:
        """Which lanes some rider holds; `None` if no rider ever does."""
        held = [
            rider.holds(self.objective, self._unpack(carried))
            for rider, carried in zip(self.riders, riders, strict=True)
        ]
        some = [lanes for lanes in held if lanes is not None]
        return functools.reduce(jnp.logical_or, some) if some else None

    # -- the process ---------------------------------------------------------------------------------------------------

    def init(self, drawn: tuple[Any, tuple[Array, Array]]) -> _State:
        method, objective, limits = self.method, self.objective, self.limits
        starts, ids = drawn
        loss, size = method.loss(objective, starts), self.layout.norm(starts)
        zero = jnp.zeros_like(loss)
        memory, t_next, control = method.begin_with(objective, starts, ids)
        # Where the start is critical the selection of the first step has nothing to go by and may return no number.
        t_next = jnp.minimum(jnp.where(jnp.isfinite(t_next) & (t_next > 0), t_next, FIRST_STEP), limits.t1)
        here = Place(starts, memory, zero, t_next, loss)
        now = self.moment(starts, memory, zero, loss)
        verdict, decided = self.verdict.begin(objective, now)
        riders = tuple(self._pack(rider.begin(objective, now, method.forget(here))) for rider in self.riders)
        held, mark = self._held(riders), None
        if held is not None:
            mark = eqx.tree_at(lambda p: p.t_next, method.forget(here), jnp.where(decided, 0.0, jnp.nan))
        ends = {
            Status.NON_FINITE: ~(jnp.isfinite(size) & jnp.isfinite(loss)),
            Status.CERTIFIED: decided if held is None else decided & ~held,
            Status.STATIONARY: now.gradient_norm <= VANISHING,
            Status.DIVERGING: size > self.largest,
        }
        return _State(
            here=here,
            settled=decided,
            mark=mark,
            control=control,
            verdict=self._pack(verdict),
            riders=riders,
            steps=jnp.zeros(loss.shape, int),
            quiet_since=jnp.where(now.gradient_norm <= limits.gradient_tolerance, 0.0, jnp.inf),
            window=None if objective.smooth else _Window(zero, zero, jnp.full_like(zero, jnp.inf)),
            cycle=None if method.descent_step is None else _Cycle.begin(starts, loss),
            status=_first_true(ends, jnp.full(loss.shape, Status.STEP_LIMIT)),
            done=functools.reduce(jnp.logical_or, ends.values()),
        )

    def step(self, state: _State) -> _State:
        method, objective, limits, here = self.method, self.objective, self.limits, state.here

        def attempt():
            step = method.attempt(objective, here)
            # Interpolants are made anew where they are needed (`rows`), unless a rider wants them at every step.
            return (
                step
                if any(rider.wants_dense for rider in self.riders)
                else eqx.tree_at(lambda s: s.dense, step, None, is_leaf=lambda x: x is None)
            )

        step = _evaluated_once(attempt, unless=jnp.all(state.done))
        decision = method.accept(objective, here, step, state.control)
        t, t_next = decision.t, decision.t_next
        active = ~state.done
        keep = decision.keep & active
        end = self.moment(step.y, step.memory, here.t_next, step.loss)
        verdict, decided = self.verdict.look(objective, self._unpack(state.verdict), end, keep)
        decided = decided & keep
        stride = Stride(method, here, step, keep, end)
        riders = tuple(
            self._pack(rider.after(objective, self._unpack(carried), stride))
            for rider, carried in zip(self.riders, state.riders, strict=True)
        )
        held, mark, settled = self._held(riders), state.mark, state.settled | decided
        if held is None:
            finished = decided
            moved, active = keep & ~decided, active & ~decided
        else:
            first, moved = decided & ~state.settled, keep
            mark = only_if(
                jnp.any(first), lambda new, old: self.layout.select(first, new, old), method.forget(here), state.mark
            )
            finished = active & settled & ~held
        y, memory = self.layout.select(moved, (step.y, step.memory), (here.y, here.memory))
        gradient_norm = method.gradient_norm(objective, y, memory)
        quiet = moved & (gradient_norm <= limits.gradient_tolerance)
        quiet_since = jnp.where(moved, jnp.where(quiet, jnp.minimum(state.quiet_since, t), jnp.inf), state.quiet_since)
        converged, window = quiet & (t - quiet_since >= limits.dwell), None
        if state.window is not None:
            window, rate = state.window.moved(
                moved, here.t, here.t_next, here.loss, step.loss, jnp.asarray(limits.dwell)
            )
            converged = (rate <= limits.gradient_tolerance**2) & (limits.gradient_tolerance > 0)
        too_short = active & (t_next - t <= SMALLEST_STEP * jnp.finfo(t.dtype).eps * t)
        steps = jnp.where(state.done, state.steps, state.steps + 1)
        cycle, cycling = state.cycle, jnp.zeros_like(quiet)
        if cycle is not None:
            cycle, cycling = cycle.moved(self.layout, moved, here.y, step.y, steps)
        ends = {
            Status.CERTIFIED: finished,
            Status.STATIONARY: moved & (gradient_norm <= VANISHING),
            Status.CONVERGED: converged,
            Status.CYCLING: cycling,
            Status.DIVERGING: (moved & (self.layout.norm(step.y) > self.largest)) | (too_short & decision.finite),
            Status.NON_FINITE: too_short,
            Status.TIME_LIMIT: active & (t >= limits.t1),
            Status.STEP_LIMIT: active & (steps >= limits.most_steps),
        }
        done = functools.reduce(jnp.logical_or, ends.values(), state.done)
        status = _first_true(ends, state.status)
        if held is not None:  # what holds a lane does not undo its verdict
            status = jnp.where(settled & done & ~state.done, Status.CERTIFIED, status)
        return _State(
            here=Place(
                y=y,
                memory=memory,
                t=jnp.where(active, t, here.t),
                t_next=jnp.where(active, jnp.minimum(t_next, limits.t1), here.t_next),
                loss=jnp.where(moved, step.loss, here.loss),
            ),
            settled=settled,
            mark=mark,
            control=self.layout.select(active, decision.control, state.control),
            verdict=self._pack(verdict),
            riders=riders,
            steps=steps,
            quiet_since=quiet_since,
            window=window,
            cycle=cycle,
            status=status,
            done=done,
        )

    def rows(self, state: _State) -> dict[str, Array]:
        method, objective = self.method, self.objective
        decided = state.status == Status.CERTIFIED
        here, deciding = state.here, state.here
        last = decided & (state.steps > 0)
        if state.mark is not None:
            deciding = method.recall(objective, state.mark)
            last = decided & (state.mark.t_next > state.mark.t)
        verdict = self._unpack(state.verdict)
        riders = tuple(map(self._unpack, state.riders))
        events = [list(rider.events(carried)) for rider, carried in zip(self.riders, riders, strict=True)]
        lanes = state.done.shape[0]
        # The step that decided and all those with an event together, as so many lanes more.
        flat = [event for some in events for event in some]
        every = self.layout.join([deciding, *(method.recall(objective, event.place) for event in flat)])
        step = method.attempt(objective, every)
        first = self.layout.take((step.y, step.memory, step.loss), jnp.arange(lanes))
        y, memory, loss = first
        end = self.moment(y, memory, deciding.t_next, loss)
        goal = self.verdict.goal(objective, verdict, end)
        own = Event(deciding, jnp.full(lanes, jnp.nan) if goal is None else goal, last & (goal is not None))
        times = self.crossing_times(every, step, [own, *flat]).reshape(-1, lanes)
        if state.mark is None:
            y, memory, loss = self.layout.select(last, first, (here.y, here.memory, here.loss))
            time = jnp.where(last, here.t_next if goal is None else times[0], here.t)
        else:
            y, memory, loss = here.y, here.memory, here.loss
            found = state.mark.t_next if goal is None else times[0]
            time = jnp.where(decided, jnp.where(last, found, 0.0), here.t)
        now = self.moment(y, memory, time, loss)
        limit, highest = self.verdict.settle(objective, verdict, now, decided)
        limit = jnp.where(decided, limit, -1)
        status = jnp.where(decided & (limit < 0), Status.STRAYED, state.status)
        resting = self.verdict.at_rest(objective, verdict, now)
        if resting is not None:
            place, certain = resting
            rests = ((status == Status.CONVERGED) | (status == Status.STATIONARY)) & (place >= 0)
            stays = self._stays(now, rests & ~certain)
            kind = jnp.where(certain, Status.CERTIFIED, jnp.where(stays, Status.LOCATED, Status.REACHED))
            status = jnp.where(rests, kind, status)
            limit, highest = jnp.where(rests, place, limit), jnp.where(rests, place, highest)
        table = dict(
            status=status,
            limit=limit,
            highest=highest,
            time=time,
            steps=state.steps,
            loss=loss,
            gradient_norm=now.gradient_norm,
        )
        if state.cycle is not None:
            table["period"] = jnp.where(status == Status.CYCLING, state.cycle.period, jnp.nan)
        if self.verdict.discovers:
            table["point"] = jnp.concatenate([x.reshape(lanes, -1) for x in jax.tree.leaves(now.networks)], axis=1)
        rest = list(times[1:])
        for rider, carried, some in zip(self.riders, riders, events, strict=True):
            columns = rider.rows(objective, carried, now, [rest.pop(0) for _ in some])
            if set(columns) != set(rider.columns):
                raise ValueError(
                    f"{type(rider).__name__} announces the columns {sorted(rider.columns)} but reports {sorted(columns)}"
                )
            table |= columns
        return table

    def _stays(self, now: Moment, asked: Array) -> Array:
        """Whether the curvature at the lanes' points is so small that a descent with this step stays near a minimum there.

        The largest curvature is estimated from below: of steps close to the edge nothing sure is said.
        """
        below = self.method.stable_below
        if below is None:
            return jnp.zeros(asked.shape, bool)

        def measured():
            return jax.vmap(functools.partial(largest_curvature, self.objective))(now.networks)

        return _evaluated_once(measured, unless=~jnp.any(asked)) < below

    def crossing_times(self, place: Place, step: Step, events: list[Event]) -> Float[Array, " lanes"]:
        """When the loss fell to the levels of all events, on the method's own interpolant; the events' lanes one after another.

        A loss may be below its level at the beginning of the step: that of a verdict, whose level moves with round-off.
        """
        level = jnp.concatenate([event.level for event in events])
        wanted = jnp.concatenate([event.wanted for event in events])

        def excess(t):
            return self.method.loss(self.objective, self.method.interpolate(self.objective, place, step, t)) - level

        return first_crossing(excess, place.t, place.loss - level, place.t_next, step.loss - level, wanted)
