"""Gradient flow `Ẇ = −∇L(W)` of a layer tuple, solved by Diffrax."""

import math
from collections.abc import Sequence

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from gdflow.dynamics.adjoints import check_adjoint
from gdflow.dynamics.runge_kutta import RK4, has_error_estimate
from gdflow.dynamics.step_control import step_control
from gdflow.dynamics.stopping import AbstractStop, FirstNonPositive
from gdflow.dynamics.trajectory import Trajectory
from gdflow.network import LayerTuple
from gdflow.perturbation import is_traced
from gdflow.problem import Problem

#: Dense output is kept by default while its buffers stay below this many bytes.
DENSE_BYTES = 2**29


def gradient_flow_field(t: ArrayLike, net: LayerTuple, problem: Problem) -> LayerTuple:
    """`−∇L(W)` in closed form: `Ẇ_j = [(ΠW)_{j+1}^N]ᵀ M Dᵀ [(ΠW)_1^{j-1}]ᵀ`, `M = A − WD` for the squared error.

    Eq. (6) of Chitour, Liao, Couillet (2022), there for `D = I`. In the form of a Diffrax vector field.
    """
    return -problem.gradient(net)


def check_times(
    t0: float,
    t1: float,
    ts: ArrayLike | Sequence[float] | None,
    stop: Sequence[AbstractStop] = (),
    step: float | None = None,
) -> None:
    """`ValueError` for spans that run backwards or never end, save times that do not increase inside, steps that do not fit."""
    if not (t1 > t0 and math.isfinite(t0)):
        raise ValueError(f"the flow runs forwards from a finite time: t1={t1} must be larger than t0={t0}")
    if math.isinf(t1) and not stop:
        raise ValueError("t1=inf needs a stop, e.g. stop=gf.AtCertificate()")
    if ts is not None:
        ts = np.atleast_1d(np.asarray(ts))
        if ts.ndim != 1 or not ts.size:
            raise ValueError(f"save times must be a list of at least one, got shape {ts.shape}")
        if not (np.all(np.diff(ts) > 0) and ts[0] >= t0 and ts[-1] <= t1):
            raise ValueError(f"save times must increase and lie in [{t0}, {t1}], got {ts[0]} … {ts[-1]}")
    if step is not None:
        if not (step > 0 and math.isfinite(step)):
            raise ValueError(f"the step must be positive, got {step}")
        count = (t1 - t0) / step
        if math.isfinite(count) and (round(count) < 1 or abs(count - round(count)) > 1e-6):
            raise ValueError(f"a fixed step must divide t1 - t0: ({t1} - {t0})/{step} = {count}")


def check_tolerances(rtol: float, atol: float, max_steps: int) -> None:
    """`ValueError` for tolerances and numbers of steps that no integration can have."""
    if max_steps < 1 or not (0 < rtol < math.inf and 0 <= atol < math.inf):
        raise ValueError(f"need max_steps ≥ 1, rtol > 0, atol ≥ 0, all finite; got {max_steps}, {rtol}, {atol}")


def simulate(
    problem: Problem,
    net: LayerTuple,
    t1: float | Float[Array, ""],
    *,
    t0: float = 0.0,
    ts: ArrayLike | Sequence[float] | int | None = None,
    dense: bool | None = None,
    stop: AbstractStop | Sequence[AbstractStop] = (),
    solver: diffrax.AbstractSolver | None = None,
    rtol: float = 1e-8,
    atol: float = 1e-10,
    step: float | None = None,
    max_steps: int = 10_000,
    adjoint: diffrax.AbstractAdjoint | None = None,
    progress: bool = False,
    allow_float32: bool = False,
) -> Trajectory:
    """Gradient flow from a start, or from a batch of starts.

    **Arguments:**

    - `problem`, `net`: `net` in the coordinates of the problem; a leading batch axis in all weights makes a batch.
    - `t1`, `t0`: end and start; `t1=inf` is allowed together with a `stop`.
    - `ts`: times to save at, or how many equidistant ones; by default every accepted step is saved.
    - `dense`: keep the solver's interpolant for `evaluate` and `crossing_times`; by default if its buffers, which are as
      long as `max_steps`, fit into half a gigabyte.
    - `stop`: one or several of `AtCertificate()`, `AtGradientNorm(…)`, `AtEvent(…)`.
    - `solver`: any Diffrax solver, explicit or implicit (`diffrax.Kvaerno5()`), `gdflow.RK4()`, `gdflow.RKC()` for stiff
      flows, or `gdflow.GaussLegendre()`, which keeps the `C_j`; Tsit5 by default.
    - `rtol`, `atol`: tolerances of the adaptive step.
    - `step`: a fixed step instead (`t1 − t0` must be a multiple of it); RK4 is then the default solver.
    - `max_steps`: accepted and rejected steps together.
    - `adjoint`: how to differentiate, see `gdflow.dynamics.adjoints`. The default is right backwards (`jax.grad`);
      `diffrax.ForwardMode()` for `jax.jvp` and `jax.jacfwd`.
    - `progress`: a progress bar in model time.
    - `allow_float32`: let `AtCertificate` certify in single precision.

    **Returns:** a `gdflow.Trajectory`. It never raises for what happens during the integration: see its `status`.

    **Raises:** `ValueError` for networks that do not fit or are not finite, times or options that make no sense, and buffers
    that would not fit into memory.

    Inside `jax.jit`, `grad` or `vmap` the value checks are skipped; give `ts` there, since times after a stop are padded.

    ```python
    >>> trajectory = simulate(problem, net, jnp.inf, stop=AtCertificate())
    >>> trajectory.status
    'stopped: AtCertificate'
    ```
    """
    stop = (stop,) if isinstance(stop, AbstractStop) else tuple(stop)
    check_adjoint(adjoint)
    traced = is_traced(problem, net, t1)
    batch = net.batch_shape
    if len(batch) > 1:
        raise ValueError(f"one batch axis at most, got weights with leading axes {batch}")
    problem.check_widths(net.widths)
    if isinstance(ts, int | np.integer) and not isinstance(ts, bool):
        if ts < 2 or not np.isfinite(t1):
            raise ValueError(f"{ts} equidistant times up to t1={t1}: give at least 2, and a finite t1")
        ts = jnp.linspace(t0, t1, int(ts))
    if not traced:
        problem.check_network(net, batch=True)
        check_times(t0, float(t1), ts, stop, step)
    check_tolerances(rtol, atol, max_steps)
    stop = tuple(s.prepare(problem, net.widths, allow_float32) for s in stop)
    if solver is None:
        solver = diffrax.Tsit5() if step is None else RK4()
    if step is None and not has_error_estimate(solver):
        raise ValueError(
            f"{type(solver).__name__} has no error estimate: give a fixed step=…, or take an adaptive solver"
        )

    row = net.num_parameters * net.weights[0].dtype.itemsize * math.prod(batch) * max_steps
    dense_bytes = row * 9  # two states and seven stages a step
    if dense is None:
        dense = not traced and dense_bytes <= DENSE_BYTES
    needed = (dense_bytes if dense else 0) + (row if ts is None else 0)
    if needed > 2**33:
        raise ValueError(
            f"saving every step needs buffers of {needed / 2**30:.1f} GiB (max_steps={max_steps}): lower max_steps, "
            "give the times to save at (ts=…) or pass dense=False"
        )

    controller = diffrax.ConstantStepSize() if step is not None else step_control(rtol, atol)
    meter: diffrax.AbstractProgressMeter = diffrax.NoProgressMeter()
    if progress and not traced and np.isfinite(t1):
        meter = diffrax.TqdmProgressMeter()
    options = _Options(
        solver, controller, adjoint or diffrax.RecursiveCheckpointAdjoint(), meter, stop, bool(dense), max_steps, step
    )
    times = None if ts is None else jnp.asarray(ts, dtype=float)
    span = jnp.asarray(t0, dtype=float), jnp.asarray(t1, dtype=float)
    solve = _solve if not batch else eqx.filter_vmap(_solve, in_axes=(None, 0, None, None, None, None))
    parts = eqx.filter_jit(solve)(problem.without_info(), net, *span, times, options)
    names = tuple(type(s).__name__ for s in stop)
    trajectory = Trajectory(problem=problem, start=net, stops=names, **parts)
    return trajectory if traced else _trim(trajectory)


class _Options(eqx.Module):
    solver: diffrax.AbstractSolver
    controller: diffrax.AbstractStepSizeController
    adjoint: diffrax.AbstractAdjoint
    meter: diffrax.AbstractProgressMeter
    stop: tuple[AbstractStop, ...]
    dense: bool = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)
    step: float | None = eqx.field(static=True)


def _solve(problem, net, t0, t1, ts, options: _Options) -> dict:
    """The fields of a trajectory that the solver determines; one start."""
    terms = diffrax.ODETerm(gradient_flow_field)
    if options.step is None:
        # Inside diffeqsolve dt0=None would always mean 0.01: select the first step here.
        order = options.solver.error_order(terms)
        first, _ = options.controller.init(terms, t0, t1, net, None, problem, options.solver.func, order)
        dt0 = first - t0
        # Where the start is critical the selection has nothing to go by and may return no number.
        dt0 = jnp.where(jnp.isfinite(dt0) & (dt0 > 0), dt0, 0.01)
    else:
        dt0 = options.step

    def remaining(t, y, args, **_):
        """Positive until the first stop; positive at the start in any case, so that a stop already met is crossed."""
        values = jnp.stack([stop.value(t, y, args) for stop in options.stop])
        return jnp.where(t > t0, jnp.min(values), 1.0)

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
        args=problem,
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
    final = jax.tree.map(lambda x: x[0], finals)
    present = jnp.isfinite(times)
    # Rows after the end hold infinities; with NaN there, nothing computed from them can pass for a number.
    times = jnp.where(present, times, jnp.nan)
    networks = jax.tree.map(lambda x: jnp.where(present[:, None, None], x, jnp.nan), networks)

    def measure(y):
        return problem.effective_loss(y), problem.gradient(y).norm()

    losses, gradient_norms = jax.vmap(measure)(networks)
    reached = jnp.asarray(-1)
    if options.stop:
        # The root find ends where the least of the values is not positive; of these the first in order is named.
        values = jnp.stack([stop.value(final_time, final, problem) for stop in options.stop])
        met = jnp.where(jnp.any(values <= 0), jnp.argmax(values <= 0), jnp.argmin(values))
        reached = jnp.where(solution.event_mask, met, reached)
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(w)) for w in final.weights]))
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
        solved=(solution.result == diffrax.RESULTS.successful) | (solution.result == diffrax.RESULTS.event_occurred),
        exhausted=solution.result == diffrax.RESULTS.max_steps_reached,
        interpolation=solution.interpolation if options.dense else None,
    )


def _trim(trajectory: Trajectory) -> Trajectory:
    """Drops the padding after the last saved time (of the longest trajectory, for a batch)."""
    rows = int(jnp.max(jnp.sum(jnp.isfinite(trajectory.ts), axis=-1)))
    axis = trajectory.ts.ndim - 1

    def saved(tr):
        return tr.ts, tr.networks, tr.losses, tr.gradient_norms

    trimmed = jax.tree.map(lambda x: jax.lax.slice_in_dim(x, 0, rows, axis=axis), saved(trajectory))
    return eqx.tree_at(saved, trajectory, trimmed)
