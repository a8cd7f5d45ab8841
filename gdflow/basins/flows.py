"""Gradient flows in lanes: the process that the batch engine runs to certify limits.

Explicit Runge–Kutta methods are stepped from Diffrax's public tableaus, step sizes by `PIDController`, so that accepted states
are those of `diffeqsolve`. Two layouts of the same arithmetic: with the lanes along the *last* axis, products written as an
unrolled sum over the inner index, which the compiler vectorises over lanes (small layers); and with the lanes along the
*first* axis, products by batched matrix multiplication (wide layers). All other Diffrax solvers run through `solver.step` itself.
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
from gdflow.dynamics import gradient_flow_field
from gdflow.dynamics.runge_kutta import has_error_estimate
from gdflow.initialization import AbstractInitialization
from gdflow.invariants import drift
from gdflow.network import LayerTuple, count_parameters
from gdflow.problem import Problem

#: A gradient of this norm or less is zero for the purposes of stepping: any step size would do, and overflow.
_VANISHING = 1e-290

#: Layers at most this wide are stepped with the lanes along the last axis.
NARROW = 8


class LaneSettings(eqx.Module):
    """How lanes are stepped.

    - `solver`: a Diffrax solver with an embedded error estimate.
    - `rtol`, `atol`: tolerances of the step-size controller.
    - `t1`: flow time after which an undecided start is given up; infinite by default.
    - `max_steps`: number of steps, accepted and rejected, after which it is given up.
    """

    solver: diffrax.AbstractSolver = diffrax.Tsit5()
    rtol: float = 1e-6
    atol: float = 1e-9
    t1: float = np.inf
    max_steps: int = eqx.field(static=True, default=10_000)

    def __check_init__(self):
        if not has_error_estimate(self.solver):
            raise ValueError(f"{type(self.solver).__name__} has no error estimate; take an adaptive solver")
        if not (self.rtol > 0 and np.isfinite(self.rtol) and self.atol >= 0 and np.isfinite(self.atol)):
            raise ValueError(f"need rtol > 0 and atol ≥ 0, got rtol={self.rtol}, atol={self.atol}")
        if not self.t1 > 0:
            raise ValueError(f"t1 must be positive, got {self.t1}")
        if self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {self.max_steps}")


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


class _FlowState(AbstractLaneState):
    """Lanes on their way. Once a lane is `done` nothing in it changes.

    A lane whose step is certified keeps the state at the *beginning* of that step, so that repeating the step gives its
    interpolant again: nothing has to be stored for the crossing to be located later.
    """

    start: Any
    y: Any
    memory: Any
    t: Float[Array, " lanes"]
    t_next: Float[Array, " lanes"]
    controller: Any
    steps: Int[Array, " lanes"]
    loss: Float[Array, " lanes"]
    level: Int[Array, " lanes"]
    status: Int[Array, " lanes"]
    done: Bool[Array, " lanes"]


class _Step(eqx.Module):
    """A step that was tried: where it led, with which interpolant."""

    y: Any
    memory: Any
    loss: Float[Array, " lanes"]
    dense: Any


def _rms(x: Any) -> Array:
    """Diffrax's `rms_norm` as plain sums, which fuse in batches."""
    leaves = jax.tree.leaves(x)
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in leaves) / sum(leaf.size for leaf in leaves))


def _apart(needed, evaluate: Callable[[], Any]) -> Any:
    """`evaluate()`, kept apart from what uses it.

    On CPU the compiler would fuse it into its users and compute it again and again; behind a loop of one round, which it
    cannot see through, it is computed once.
    """
    if jax.default_backend() != "cpu":
        return evaluate()
    empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), eqx.filter_eval_shape(evaluate))
    return jax.lax.cond(needed, evaluate, lambda: empty)


class AbstractFlow(AbstractProcess):
    """What all gradient flows in lanes have in common: acceptance of steps, verdicts, crossing times, rows."""

    problem: eqx.AbstractVar[Problem]
    law: eqx.AbstractVar[AbstractInitialization]
    key: eqx.AbstractVar[Key[Array, ""]]
    certificate: eqx.AbstractVar[LevelCertificate]
    settings: eqx.AbstractVar[LaneSettings]

    @abstractmethod
    def begin(self, y: Any, controller: diffrax.PIDController) -> tuple[Any, Array, Any]:
        """At starts `y`: the memory of the method, the end of the first step, and the controller's state."""

    @abstractmethod
    def attempt(self, state: _FlowState) -> tuple[_Step, Any]:
        """Tries one step in every lane; also the error estimate, of the shape of `y`."""

    @abstractmethod
    def loss(self, y: Any) -> Float[Array, " lanes"]:
        """Effective losses."""

    @abstractmethod
    def gradient_norm(self, y: Any, memory: Any) -> Float[Array, " lanes"]:
        """`‖∇L‖`."""

    @abstractmethod
    def interpolate(self, state: _FlowState, dense: Any, t: Float[Array, " lanes"]) -> Any:
        """States inside the last step, by the solver's own interpolant."""

    @abstractmethod
    def networks(self, y: Any) -> LayerTuple:
        """The lanes as a batch of networks (leading axis)."""

    @property
    def controller(self) -> diffrax.PIDController:
        return diffrax.PIDController(rtol=self.settings.rtol, atol=self.settings.atol, norm=_rms)

    def per_lane(self, x: Any, reduce) -> Array:
        """Reduces every array of a state over all but the lanes, then over the arrays."""

        def one(a):
            axes = [k for k in range(a.ndim) if k != self.lane_axis % a.ndim]
            return reduce(a, axis=tuple(axes))

        return reduce(jnp.stack([one(a) for a in jax.tree.leaves(x)]), axis=0)

    def init(self, starts: Any) -> _FlowState:
        loss = self.loss(starts)
        zero = jnp.zeros_like(loss)
        memory, t_next, controller = self.begin(starts, self.controller)
        # Where the start is critical the selection of the first step has nothing to go by and may return no number.
        t_next = jnp.minimum(jnp.where(jnp.isfinite(t_next) & (t_next > 0), t_next, 0.01), self.settings.t1)
        finite = self.per_lane(jax.tree.map(jnp.isfinite, starts), jnp.all) & jnp.isfinite(loss)
        certified = self.certificate.certified(loss)
        stationary = self.gradient_norm(starts, memory) <= _VANISHING
        status = jnp.select(
            [~finite, certified, stationary],
            [Status.NON_FINITE, Status.CERTIFIED, Status.STATIONARY],
            Status.STEP_LIMIT,
        )
        level = self.certificate.level(loss)
        return _FlowState(
            start=starts, y=starts, memory=memory, t=zero, t_next=t_next, controller=controller,
            steps=jnp.zeros(loss.shape, int), loss=loss, level=level, status=status,
            done=~finite | certified | stationary,
        )  # fmt: skip

    def error_norm(self, y: Any, y1: Any, error: Any) -> Float[Array, " lanes"]:
        """Diffrax's `rms_norm(error / (atol + rtol·max(|y|, |y1|)))`, in every lane."""

        def square(a, b, e):
            return jnp.square(e / (self.settings.atol + self.settings.rtol * jnp.maximum(jnp.abs(a), jnp.abs(b))))

        squares = jax.tree.map(square, y, y1, error)
        return jnp.sqrt(self.per_lane(squares, jnp.sum) / count_parameters(self.law.widths))

    def step(self, state: _FlowState) -> _FlowState:
        s = self.settings
        tried, error = _apart(~jnp.all(state.done), lambda: self.attempt(state))
        # A step that leaves the floating-point range counts as an infinite error: it is rejected and shortened.
        norm = self.error_norm(state.y, tried.y, error)
        ok = jnp.isfinite(norm) & jnp.isfinite(tried.loss)
        norm = jnp.where(ok, norm, jnp.inf)
        order: Any = s.solver.error_order(diffrax.ODETerm(gradient_flow_field))

        def adapt(t, t_next, norm, c):
            # The norm of the error is known: what is left to Diffrax is the decision and the next step size.
            decide = diffrax.PIDController(rtol=0.0, atol=1.0, norm=jnp.abs)
            return decide.adapt_step_size(t, t_next, 0.0, 0.0, None, norm, order, c)[:5]

        keep, t, t_next, _, controller = jax.vmap(adapt)(state.t, state.t_next, norm, state.controller)
        keep = keep & ok & ~state.done
        certified = keep & self.certificate.certified(tried.loss)
        moved = keep & ~certified
        active = ~state.done & ~certified
        y = self.select(moved, tried.y, state.y)
        memory = self.select(moved, tried.memory, state.memory)
        steps = jnp.where(state.done, state.steps, state.steps + 1)
        ends = {
            Status.CERTIFIED: certified,
            Status.STATIONARY: moved & (self.gradient_norm(y, memory) <= _VANISHING),
            Status.TIME_LIMIT: active & (t >= s.t1),
            Status.NON_FINITE: active & (t_next <= t),  # the step fell below the resolution of t
            Status.STEP_LIMIT: active & (steps >= s.max_steps),
        }
        ended = jnp.any(jnp.stack(list(ends.values())), axis=0)
        status = jnp.where(ended, jnp.select(list(ends.values()), list(ends)), state.status)
        level = jnp.where(keep, jnp.minimum(self.certificate.level(tried.loss), state.level), state.level)
        new = _FlowState(
            start=state.start, y=y, memory=memory, t=jnp.where(active, t, state.t),
            t_next=jnp.where(active, jnp.minimum(t_next, s.t1), state.t_next),
            controller=self.select(active, controller, state.controller), steps=steps,
            loss=jnp.where(moved, tried.loss, state.loss), level=level, status=status, done=state.done | ended,
        )  # fmt: skip
        return new

    def crossing_time(self, state: _FlowState, step: _Step) -> Float[Array, " lanes"]:
        """When the loss fell to the second-lowest level inside the last step, on the solver's own interpolant.

        Chandrupatla's method: inverse quadratic interpolation where it is safe, bisection elsewhere.
        """
        goal = jnp.append(self.certificate.thresholds, jnp.inf)[0]

        def excess(t):
            return self.loss(self.interpolate(state, step.dense, t)) - goal

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
            return (count < 60) & jnp.any(open_ & (state.status == Status.CERTIFIED) & (state.steps > 0))

        eps = float(jnp.finfo(state.t.dtype).eps)
        high, low = state.loss - goal, step.loss - goal
        share = jnp.where(high > low, low / jnp.where(high > low, low - high, -1.0), 0.5)
        first = (0, state.t_next, low, state.t, high, state.t, high, share)
        _, x1, f1, x2, f2, *_ = jax.lax.while_loop(unfinished, body, first)
        return jnp.where(jnp.abs(f1) <= jnp.abs(f2), x1, x2)

    def rows(self, state: _FlowState) -> dict[str, Array]:
        extra, _ = self.attempt(state)
        certified = state.status == Status.CERTIFIED
        crossed = certified & (state.steps > 0)
        y = self.select(crossed, extra.y, state.y)
        memory = self.select(crossed, extra.memory, state.memory)
        return dict(
            status=state.status,
            level=jnp.where(certified, 0, state.level),
            time=jnp.where(crossed, self.crossing_time(state, extra), state.t),
            steps=state.steps,
            loss=jnp.where(crossed, extra.loss, state.loss),
            gradient_norm=self.gradient_norm(y, memory),
            drift=jax.vmap(drift)(self.networks(y), self.networks(state.start)),
        )


class ExplicitFlow(AbstractFlow):
    """Explicit Runge–Kutta methods by their tableau, on flattened states `(P, lanes)` or `(lanes, P)`.

    Runs in coordinates in which the design is diagonal: whitened ones as they are, data coordinates as reduced ones, which is
    an isometry. `memory` is the field at the state.
    """

    problem: Problem
    law: AbstractInitialization
    key: Key[Array, ""]
    certificate: LevelCertificate
    settings: LaneSettings
    lane_axis: int = eqx.field(static=True)
    source: str = eqx.field(static=True)

    def __init__(self, problem, law, key, certificate, settings):
        self.source = problem.coordinates
        diagonal = "whitened" if problem.coordinates == "whitened" else "reduced"
        self.problem = problem.in_coordinates(diagonal).without_info()
        self.law, self.key, self.certificate, self.settings = law, key, certificate, settings
        self.lane_axis = -1 if max(law.widths) <= NARROW else 0

    def layers(self, net: LayerTuple) -> list[Array]:
        """A batch of networks (leading axis) as a state."""
        return [jnp.moveaxis(w, 0, -1) if self.lane_axis == -1 else w for w in net.weights]

    def networks(self, y: list[Array]) -> LayerTuple:
        return LayerTuple([jnp.moveaxis(w, -1, 0) if self.lane_axis == -1 else w for w in y])

    def draw(self, high: Array, low: Array) -> list[Array]:
        nets = self.law.draw_batch(self.key, high, low)
        return self.layers(self.problem.convert(nets, self.source, self.problem.coordinates))

    def residual(self, W: Array) -> tuple[Array, Array, Array]:
        """`M = A − WD`, the diagonal of `D` and the losses."""
        d = jnp.diagonal(self.problem.design)
        if self.lane_axis == -1:
            d, M = d[None, :, None], self.problem.target[:, :, None]
            M = M - W * d
            return M, d, 0.5 * jnp.sum(M * M, axis=(0, 1))
        d = d[None, None, :]
        M = self.problem.target[None] - W * d
        return M, d, 0.5 * jnp.sum(M * M, axis=(1, 2))

    def product(self, a: Array, b: Array) -> Array:
        """`ab` in every lane."""
        if self.lane_axis == 0:
            return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        return jnp.sum(a[:, :, None, :] * b[None, :, :, :], axis=1)

    def transpose(self, a: Array) -> Array:
        return jnp.swapaxes(a, 0, 1) if self.lane_axis == -1 else jnp.swapaxes(a, 1, 2)

    def field(self, y: list[Array]) -> tuple[list[Array], Float[Array, " lanes"]]:
        """`−∇L` and `L`."""
        right = [y[0]]
        for w in y[1:]:
            right.append(self.product(w, right[-1]))
        M, d, loss = self.residual(right[-1])
        left, parts = M * d, []
        for w, r in zip(y[:0:-1], right[-2::-1], strict=True):
            parts.append(self.product(left, self.transpose(r)))
            left = self.product(self.transpose(w), left)
        return [left, *parts[::-1]], loss

    def loss(self, y: list[Array]) -> Float[Array, " lanes"]:
        return self.residual(functools.reduce(lambda W, w: self.product(w, W), y))[2]

    def gradient_norm(self, y: list[Array], memory: list[Array]) -> Float[Array, " lanes"]:
        return jnp.sqrt(self.per_lane(jax.tree.map(jnp.square, memory), jnp.sum))

    def begin(self, y: list[Array], controller: diffrax.PIDController) -> tuple[Any, Array, Any]:
        # One network at a time for Diffrax, all lanes at once for the machine.
        arrays, rest = eqx.partition(self, eqx.is_array)

        @jax.custom_batching.custom_vmap
        def lane_field(arrays, weights):
            flow = eqx.combine(arrays, rest)
            return [w[0] for w in flow.networks(flow.field(flow.layers(LayerTuple([w[None] for w in weights])))[0]).weights]

        @lane_field.def_vmap
        def _(axis_size, in_batched, arrays, weights):
            flow = eqx.combine(arrays, rest)
            fields = flow.field(flow.layers(LayerTuple(weights)))[0]
            return list(flow.networks(fields).weights), [True] * len(weights)

        terms = diffrax.ODETerm(lambda t, x, args: lane_field(arrays, x))
        solver = self.settings.solver

        def first(x):
            zero = jnp.zeros(())
            return controller.init(terms, zero, zero, x, None, None, solver.func, solver.error_order(terms))

        t_next, state = jax.vmap(first)(list(self.networks(y).weights))
        state = tuple(jnp.broadcast_to(jnp.asarray(x), t_next.shape) for x in state)
        return self.field(y)[0], t_next, state

    def combine(self, factors: list[Float[Array, " lanes"]], states: list[list[Array]]) -> list[Array]:
        """`Σ factor·state`, as one sum over a stacked axis, so that it is evaluated once (see `product`)."""
        stacked = jnp.stack(factors)

        def one(*layer):
            shape = (-1,) + ((1, 1) + stacked.shape[1:] if self.lane_axis == -1 else stacked.shape[1:] + (1, 1))
            return jnp.sum(jnp.stack(layer) * stacked.reshape(shape), axis=0)

        return [one(*layer) for layer in zip(*states, strict=True)]

    def advance(self, y: list[Array], h: Array, row: np.ndarray, ks: list[list[Array]]) -> list[Array]:
        """`y + hΣ a_i k_i`."""
        used = [(float(a), k) for a, k in zip(row, ks, strict=True) if a != 0]
        return self.combine([jnp.ones_like(h), *[a * h for a, _ in used]], [y, *[k for _, k in used]])

    def attempt(self, state: _FlowState) -> tuple[_Step, list[Array]]:
        solver: Any = self.settings.solver
        tableau = solver.tableau
        h = state.t_next - state.t
        ks, y, loss = [state.memory], state.y, state.loss
        for row in tableau.a_lower:
            y = self.advance(state.y, h, row, ks)
            k, loss = self.field(y)
            ks.append(k)
        error = self.combine([float(b) * h for b in tableau.b_error], ks)
        if not (tableau.fsal and tableau.ssal):
            y = self.advance(state.y, h, tableau.b_sol, ks)
            k, loss = self.field(y)
        return _Step(y, k, loss, (y, ks)), error

    def interpolate(self, state: _FlowState, dense: Any, t: Float[Array, " lanes"]) -> list[Array]:
        # The interpolant is linear in the two ends and the stages: asked for unit vectors it tells their weights.
        y1, ks = dense
        unit = jnp.eye(2 + len(ks))

        def weights(t0, t1, t):
            return self.settings.solver.interpolation_cls(t0=t0, t1=t1, y0=unit[0], y1=unit[1], k=unit[2:]).evaluate(t)

        w = jax.vmap(weights, out_axes=-1)(state.t, state.t_next, t)
        h = state.t_next - state.t
        return self.combine([w[0], w[1], *(h * w[2:])], [state.y, y1, *ks])


class SolverFlow(AbstractFlow):
    """Any adaptive Diffrax solver, implicit ones included, stepped by its own `step`. `memory` is the solver's state."""

    problem: Problem
    law: AbstractInitialization
    key: Key[Array, ""]
    certificate: LevelCertificate
    settings: LaneSettings
    lane_axis: int = eqx.field(static=True)

    def __init__(self, problem, law, key, certificate, settings):
        self.problem, self.law, self.key = problem.without_info(), law, key
        self.certificate, self.settings, self.lane_axis = certificate, settings, 0

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

    def attempt(self, state: _FlowState) -> tuple[_Step, LayerTuple]:
        def one(net, t, t_next, memory):
            return self.solver.step(self.terms, t, t_next, net, self.problem, memory, made_jump=False)[:4]

        y, error, dense, memory = jax.vmap(one)(state.y, state.t, state.t_next, state.memory)
        return _Step(y, memory, self.loss(y), dense), error

    def interpolate(self, state: _FlowState, dense: Any, t: Float[Array, " lanes"]) -> LayerTuple:
        def evaluate(t0, t1, dense, t):
            return self.solver.interpolation_cls(t0=t0, t1=t1, **dense).evaluate(t)

        return jax.vmap(evaluate)(state.t, state.t_next, dense, t)


def gradient_flow_process(
    problem: Problem,
    law: AbstractInitialization,
    key: Key[Array, ""],
    certificate: LevelCertificate,
    settings: LaneSettings,
) -> AbstractFlow:
    """The process that integrates the gradient flow with the given solver, in the layout that suits the widths."""
    if isinstance(settings.solver, diffrax.AbstractERK):
        return ExplicitFlow(problem, law, key, certificate, settings)
    return SolverFlow(problem, law, key, certificate, settings)
