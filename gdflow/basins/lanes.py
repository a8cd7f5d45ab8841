"""The batch engine: integrates many starts at once, each with its own time and step, until its limit is decided.

Everything that steps is behind [`gdflow.basins.lanes.run_chunk`][]: callers hand it a law, ids and settings and get one
row per start.
"""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gdflow.basins.outcomes import Status
from gdflow.certificates import LevelCertificate
from gdflow.dynamics import gradient_flow_field
from gdflow.dynamics.runge_kutta import has_error_estimate
from gdflow.initialization import AbstractInitialization, split_ids
from gdflow.invariants import drift
from gdflow.network import LayerTuple
from gdflow.problem import Problem

#: A gradient of this norm or less is zero for the purposes of stepping: any step size would do, and overflow.
_VANISHING = 1e-290


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


class _Lane(eqx.Module):
    """One start on its way. Once `done`, nothing in it changes."""

    start: LayerTuple
    net: LayerTuple
    t: Float[Array, ""]
    t_next: Float[Array, ""]
    solver_state: Any
    controller_state: Any
    steps: Array
    loss: Float[Array, ""]
    level: Array
    done: Array
    status: Array
    # The last accepted step that crossed a level: between these times, with this interpolant, the loss fell to `crossed`.
    step_start: Float[Array, ""]
    step_end: Float[Array, ""]
    dense: Any
    crossed: Float[Array, ""]


def _finite(tree) -> Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


def _select(condition, new, old):
    def pick(a, b):
        return jnp.where(condition, a, b) if eqx.is_array(a) or eqx.is_array(b) else b

    return jax.tree.map(pick, new, old)


class _Engine(eqx.Module):
    problem: Problem
    certificate: LevelCertificate
    settings: LaneSettings

    @property
    def terms(self):
        return diffrax.ODETerm(gradient_flow_field)

    @property
    def controller(self):
        return diffrax.PIDController(rtol=self.settings.rtol, atol=self.settings.atol)

    @property
    def solver(self):
        return _with_tolerances(self.settings.solver, self.controller)

    def init(self, net: LayerTuple) -> _Lane:
        s = self.settings
        solver, terms, controller = self.solver, self.terms, self.controller
        t0, t1 = jnp.zeros(()), jnp.asarray(s.t1, dtype=float)
        t_next, controller_state = controller.init(
            terms, t0, t1, net, None, self.problem, solver.func, solver.error_order(terms)
        )
        # Where the start is critical the selection of the first step has nothing to go by and may return no number.
        t_next = jnp.minimum(jnp.where(jnp.isfinite(t_next) & (t_next > 0), t_next, 0.01), t1)
        solver_state = solver.init(terms, t0, t_next, net, self.problem)
        loss = self.problem.effective_loss(net)
        level = self.certificate.level(loss)
        gradient_norm = self.problem.gradient(net).norm()
        finite = _finite(net) & jnp.isfinite(loss)
        certified = self.certificate.certified(loss)
        stationary = gradient_norm <= _VANISHING
        status = jnp.where(
            finite,
            jnp.where(certified, Status.CERTIFIED, jnp.where(stationary, Status.STATIONARY, Status.STEP_LIMIT)),
            Status.NON_FINITE,
        )
        dense_shape = eqx.filter_eval_shape(self._step, net, t0, t_next, solver_state)[2]
        dense = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), dense_shape)
        return _Lane(
            start=net, net=net, t=t0, t_next=t_next, solver_state=solver_state,
            controller_state=jax.tree.map(jnp.asarray, controller_state), steps=jnp.asarray(0), loss=loss, level=level,
            done=~finite | certified | stationary, status=status, step_start=t0, step_end=t0, dense=dense, crossed=loss,
        )  # fmt: skip

    def _step(self, net, t, t_next, solver_state):
        return self.solver.step(self.terms, t, t_next, net, self.problem, solver_state, made_jump=False)

    def step(self, lane: _Lane) -> _Lane:
        s = self.settings
        net, error, dense, solver_state, _ = self._step(lane.net, lane.t, lane.t_next, lane.solver_state)
        # A step that leaves the floating-point range counts as an infinite error: it is rejected and shortened.
        ok = _finite((net, error))
        error = jax.tree.map(lambda e: jnp.where(ok, e, jnp.inf), error)
        keep, t, t_next, _, controller_state, _ = self.controller.adapt_step_size(
            lane.t,
            lane.t_next,
            lane.net,
            net,
            self.problem,
            error,
            self.solver.error_order(self.terms),
            lane.controller_state,
        )
        keep = keep & ok
        net = _select(keep, net, lane.net)
        loss = jnp.where(keep, self.problem.effective_loss(net), lane.loss)
        level = jnp.minimum(self.certificate.level(loss), lane.level)
        crossing = keep & (level < lane.level)
        steps = lane.steps + 1
        certified = keep & self.certificate.certified(loss)
        out_of_time = t >= s.t1
        out_of_steps = steps >= s.max_steps
        stuck = t_next <= t  # the step fell below the resolution of t
        stationary = self.problem.gradient(net).norm() <= _VANISHING
        done = certified | out_of_time | out_of_steps | stuck | stationary
        status = jnp.select(
            [certified, stationary, out_of_time, stuck, out_of_steps],
            [Status.CERTIFIED, Status.STATIONARY, Status.TIME_LIMIT, Status.NON_FINITE, Status.STEP_LIMIT],
            Status.STEP_LIMIT,
        )
        padded = jnp.append(self.certificate.thresholds, jnp.inf)
        new = _Lane(
            start=lane.start, net=net, t=t, t_next=jnp.minimum(t_next, s.t1),
            solver_state=_select(keep, solver_state, lane.solver_state), controller_state=controller_state, steps=steps,
            loss=loss, level=level, done=done, status=status,
            step_start=jnp.where(crossing, lane.t, lane.step_start), step_end=jnp.where(crossing, lane.t_next, lane.step_end),
            dense=_select(crossing, dense, lane.dense), crossed=jnp.where(crossing, padded[level], lane.crossed),
        )  # fmt: skip
        return _select(~lane.done, new, lane)

    def crossing_time(self, lane: _Lane) -> Float[Array, ""]:
        """When the loss fell to the last level passed, by bisection on the solver's own interpolant of that step."""
        interpolation = self.solver.interpolation_cls(t0=lane.step_start, t1=lane.step_end, **lane.dense)

        def halve(_, bracket):
            low, high = bracket
            middle = 0.5 * (low + high)
            above = self.problem.effective_loss(interpolation.evaluate(middle)) >= lane.crossed
            return jnp.where(above, middle, low), jnp.where(above, high, middle)

        # 55 halvings bring a double-precision bracket to round-off.
        return jax.lax.fori_loop(0, 55, halve, (lane.step_start, lane.step_end))[1]

    def row(self, lane: _Lane) -> dict[str, Array]:
        certified = lane.status == Status.CERTIFIED
        time = jnp.where(certified, jnp.where(lane.steps == 0, 0.0, self.crossing_time(lane)), lane.t)
        return dict(
            status=lane.status,
            level=jnp.where(certified, 0, lane.level),
            time=time,
            steps=lane.steps,
            loss=lane.loss,
            gradient_norm=self.problem.gradient(lane.net).norm(),
            drift=drift(lane.net, lane.start),
        )


@eqx.filter_jit
def _run(engine: _Engine, law: AbstractInitialization, key, high, low) -> dict[str, Array]:
    def draw(h, lo):
        return law.draw(jax.random.fold_in(jax.random.fold_in(key, h), lo))

    lanes = jax.vmap(lambda h, lo: engine.init(draw(h, lo)))(high, low)
    lanes = jax.lax.while_loop(lambda x: ~jnp.all(x.done), jax.vmap(engine.step), lanes)
    return jax.vmap(engine.row)(lanes)


def run_chunk(
    problem: Problem,
    law: AbstractInitialization,
    key: Array,
    ids: np.ndarray,
    certificate: LevelCertificate,
    settings: LaneSettings,
) -> dict[str, np.ndarray]:
    """Runs the starts with the given ids until each is decided or given up.

    **Arguments:** `ids`: `uint64`, shape `(n,)`; every new `n` compiles anew, so callers pad.

    **Returns:** the columns `status, level, time, steps, loss, gradient_norm, drift`, one row per id.
    """
    rows = _run(_Engine(problem, certificate, settings), law, key, *split_ids(ids))
    return {name: np.asarray(column) for name, column in rows.items()}
