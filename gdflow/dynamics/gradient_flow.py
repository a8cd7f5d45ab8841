"""Gradient flow `Ẇ = −∇L(W)` of a layer tuple, solved by Diffrax."""

from collections.abc import Sequence
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from gdflow.checks import check_number, is_traced
from gdflow.dynamics.adjoints import check_adjoint, explain_forward_mode
from gdflow.dynamics.buffers import Buffers, trim
from gdflow.dynamics.options import check_span, check_step, check_tolerances, save_times
from gdflow.dynamics.runge_kutta import RK4, check_solver
from gdflow.dynamics.step_control import first_step, step_control
from gdflow.dynamics.stopping import AbstractStop, AtCertificate, FirstNonPositive
from gdflow.dynamics.trajectory import Trajectory
from gdflow.network import LayerTuple, check_layer_tuple
from gdflow.objective import Objective
from gdflow.points import is_finite, point_norm
from gdflow.problem import AbstractProblem, Problem, check_any_problem
from gdflow.programs import forget_old_programs
from gdflow.sides import check_side


def gradient_flow_field(t: ArrayLike, net: Any, objective: Objective | AbstractProblem) -> Any:
    """`−∇L(W)`, in the form of a Diffrax vector field.

    For the squared error of a linear network `Ẇ_j = [(ΠW)_{j+1}^N]ᵀ M Dᵀ [(ΠW)_1^{j-1}]ᵀ`, `M = A − WD`: eq. (6) of Chitour,
    Liao, Couillet (2022), there for `D = I`.
    """
    return jax.tree.map(jnp.negative, objective.gradient(net))


def simulate(
    problem: AbstractProblem,
    net: Any,
    t1: float | Float[Array, ""],
    *,
    t0: float = 0.0,
    ts: ArrayLike | Sequence[float] | None = None,
    dense: bool | None = None,
    stop: AbstractStop | Sequence[AbstractStop] = (),
    solver: diffrax.AbstractSolver | None = None,
    rtol: float = 1e-8,
    atol: float = 1e-10,
    shortest: float = 0.0,
    step: float | None = None,
    max_steps: float = 10_000,
    adjoint: diffrax.AbstractAdjoint | None = None,
    progress: bool = False,
    allow_float32: bool = False,
) -> Trajectory:
    """Gradient flow from a start, or from a batch of starts.

    **Arguments:**

    - `problem`, `net`: a `gdflow.Problem` and a network in its coordinates, where a leading batch axis in all weights makes a
      batch; or another problem and a point of its own, such as a `gdflow.Potential` and a pytree of arrays.
    - `t1`, `t0`: end and start; `t1=inf` is allowed together with a `stop`.
    - `ts`: times to save at, or how many equidistant ones; by default every accepted step is saved.
    - `dense`: keep the solver's interpolant for `evaluate` and `crossing_times`; by default if it fits into half a gigabyte,
      and not inside `jax.jit`, `grad` or `vmap`, where its buffers are as long as `max_steps`.
    - `stop`: one or several of `AtCertificate()`, `AtGradientNorm(…)`, `AtEvent(…)`.
    - `solver`: any Diffrax solver, explicit or implicit (`diffrax.Kvaerno5()`), `gdflow.RK4()`, `gdflow.RKC()` for stiff
      flows, or `gdflow.GaussLegendre()`, which keeps the `C_j`; Tsit5 by default.
    - `rtol`, `atol`: tolerances of the adaptive step.
    - `shortest`: steps of this length are kept whatever their error. Where the gradient jumps, as that of ReLU networks does, the
      flow can slide along a kink, across which an integration chatters: without a shortest step it comes to a halt there.
    - `step`: a fixed step instead (`t1 − t0` must be a multiple of it); RK4 is then the default solver.
    - `max_steps`: accepted and rejected steps together; where every step is saved, at most as many as fit into 8 GiB (a warning
      says so).
    - `adjoint`: how to differentiate, see `gdflow.dynamics.adjoints`. The default is right backwards (`jax.grad`);
      `diffrax.ForwardMode()` for `jax.jvp` and `jax.jacfwd`.
    - `progress`: a progress bar in model time.
    - `allow_float32`: let `AtCertificate` certify in single precision.

    **Returns:** a `gdflow.Trajectory`. It never raises for what happens during the integration: see its `status`.

    **Raises:** `ValueError` for networks that do not fit or are not finite, times or options that make no sense, solvers that
    are not for a flow of one term, buffers that would not fit into memory, and `AtCertificate` for balanced starts on the wrong
    side of `det W = 0` (`gdflow.sides.check_side`); `TypeError` for a start that is no
    `gdflow.LayerTuple`, options of another kind, and `jax.jvp` without an `adjoint` for it.

    Inside `jax.jit`, `grad` or `vmap` the value checks are skipped; give `ts` there, since times after a stop are padded.

    ```python
    >>> trajectory = simulate(problem, net, jnp.inf, stop=AtCertificate())
    >>> trajectory.status
    'stopped: AtCertificate'
    ```
    """
    check_any_problem(problem)
    if isinstance(problem, Problem):
        check_layer_tuple(net)
    elif not isinstance(net, LayerTuple):
        net = jax.tree.map(jnp.asarray, net)
    stop = (stop,) if isinstance(stop, AbstractStop) else tuple(stop)
    check_adjoint(adjoint)
    traced = is_traced(problem, net, t1)
    batch = net.batch_shape if isinstance(net, LayerTuple) else ()
    if len(batch) > 1:
        raise ValueError(f"one batch axis at most, got weights with leading axes {batch}")
    if isinstance(problem, Problem):
        problem.check_widths(net.widths)
    if not traced:
        problem.check_start(net, batch=bool(batch))
        if isinstance(problem, Problem) and any(isinstance(s, AtCertificate) for s in stop):
            check_side(problem, net)
    if not is_traced(t1):
        check_span(t0, float(t1), endless=bool(stop))
        if step is not None:
            check_step(step, t0, float(t1))
    times = None if ts is None else save_times(ts, t0, t1)
    max_steps = check_tolerances(rtol, atol, max_steps)
    if check_number("shortest", shortest) < 0:
        raise ValueError(f"the shortest step must not be negative, got {shortest}")
    stop = tuple(s.prepare(problem, net, allow_float32) for s in stop)
    if solver is None:
        solver = diffrax.Tsit5() if step is None else RK4()
    check_solver(solver, adaptive=step is None)

    if not traced:
        forget_old_programs(pause=1.0)
    controller = diffrax.ConstantStepSize() if step is not None else step_control(rtol, atol, shortest)
    meter: diffrax.AbstractProgressMeter = diffrax.NoProgressMeter()
    if progress and not traced and np.isfinite(t1):
        meter = diffrax.TqdmProgressMeter()
    span = jnp.asarray(t0, dtype=float), jnp.asarray(t1, dtype=float)
    solve = eqx.filter_jit(_solve if not batch else eqx.filter_vmap(_solve, in_axes=(None, 0, None, None, None, None)))

    def attempt(steps: int, dense: bool) -> dict:
        options = _Options(
            solver, controller, adjoint or diffrax.RecursiveCheckpointAdjoint(), meter, stop, dense, steps, step
        )
        with explain_forward_mode():
            return solve(problem.objective, net, *span, times, options)

    buffers = Buffers(net, every=ts is None, dense=dense)
    if traced:
        buffers.check(max_steps, bool(dense))
        parts = attempt(max_steps, bool(dense))
    else:
        # Round-off of the times may take one step more.
        likely = None if step is None or not np.isfinite(t1) else round((float(t1) - t0) / step) + 1
        parts = buffers.fit(attempt, max_steps, likely)
    names = tuple(type(s).__name__ for s in stop)
    trajectory = Trajectory(problem=problem, start=net, stops=names, **parts)
    return trajectory if is_traced(trajectory) else trim(trajectory)


class _Options(eqx.Module):
    solver: diffrax.AbstractSolver
    controller: diffrax.AbstractStepSizeController
    adjoint: diffrax.AbstractAdjoint
    meter: diffrax.AbstractProgressMeter
    stop: tuple[AbstractStop, ...]
    dense: bool = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)
    step: float | None = eqx.field(static=True)


def _solve(objective, net, t0, t1, ts, options: _Options) -> dict:
    """The fields of a trajectory that the solver determines; one start."""
    terms = diffrax.ODETerm(gradient_flow_field)
    dt0: Any = options.step
    if isinstance(options.controller, diffrax.AbstractAdaptiveStepSizeController):
        dt0 = first_step(terms, options.solver, options.controller, t0, t1, net, objective)

    def value(t, y, args):
        return jnp.min(jnp.stack([stop.value(t, y, args) for stop in options.stop]))

    # A stop already met ends the flow where it starts, whatever the start does: a time without derivatives. So the event
    # that ends the integration after its first step must not depend on the state.
    met = jnp.asarray(False) if not options.stop else value(t0, net, objective) <= 0

    def remaining(t, y, args, **_):
        """Positive until the first stop; positive at the start in any case, so that a stop already met is crossed."""
        return jnp.where(t > t0, jnp.where(met, t0 - t, value(t, y, args)), 1.0)

    event = None
    if options.stop:
        event = diffrax.Event(remaining, FirstNonPositive(), direction=False)

    saved = diffrax.SubSaveAt(t0=True, steps=True) if ts is None else diffrax.SubSaveAt(ts=ts)
    solution = diffrax.diffeqsolve(
        terms,
        options.solver,
        t0,
        t1,
        dt0,
        net,
        args=objective,
        saveat=diffrax.SaveAt(subs=[saved, diffrax.SubSaveAt(t1=True)], dense=options.dense),
        stepsize_controller=options.controller,
        adjoint=options.adjoint,
        event=event,
        max_steps=options.max_steps,
        throw=False,
        progress_meter=options.meter,
    )
    times, (final_time,) = solution.ts
    networks, finals = solution.ys
    final = jax.tree.map(lambda start, end: jnp.where(met, start, end[0]), net, finals)
    final_time = jnp.where(met, t0, final_time)
    present = jnp.isfinite(times) & (times <= final_time)
    # Rows after the end hold infinities; with NaN there, nothing computed from them can pass for a number.
    times = jnp.where(present, times, jnp.nan)
    networks = jax.tree.map(lambda x: jnp.where(present.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.nan), networks)

    def measure(y):
        return objective.effective_loss(y), point_norm(objective.gradient(y))

    losses, gradient_norms = jax.vmap(measure)(networks)
    reached = jnp.asarray(-1)
    if options.stop:
        # The root find ends where the least of the values is not positive; of these the first in order is named.
        values = jnp.stack([stop.value(final_time, final, objective) for stop in options.stop])
        first = jnp.where(jnp.any(values <= 0), jnp.argmax(values <= 0), jnp.argmin(values))
        reached = jnp.where(met | solution.event_mask, first, reached)
    finite = is_finite(final)
    return dict(
        ts=times,
        networks=networks,
        losses=losses,
        gradient_norms=gradient_norms,
        final_time=final_time,
        final=final,
        num_steps=solution.stats["num_steps"],
        reached=reached,
        finite=finite,
        solved=met
        | (solution.result == diffrax.RESULTS.successful)
        | (solution.result == diffrax.RESULTS.event_occurred),
        exhausted=~met & (solution.result == diffrax.RESULTS.max_steps_reached),
        interpolation=solution.interpolation if options.dense else None,
    )
