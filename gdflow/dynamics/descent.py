"""Gradient descent, and any optimizer of Optax, from one start or a batch of them: every step, or some of them, saved."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int
from rich.console import RenderableType
from rich.text import Text

from gdflow.checks import check_count, check_number, is_traced
from gdflow.dynamics.gradient_flow import simulate
from gdflow.dynamics.trajectory import AbstractTrajectory, is_concrete
from gdflow.ids import fold_id, split_ids
from gdflow.minibatches import Minibatches
from gdflow.network import LayerTuple, check_layer_tuple
from gdflow.objective import Objective
from gdflow.optimizers import as_optimizer, check_optimizer, update
from gdflow.points import is_finite, point_norm
from gdflow.problem import AbstractProblem, Problem, check_any_problem
from gdflow.tables import key_value_table
from gdflow.thresholds import certificate_levels

#: By default about so many points are saved, …
_SAVED = 1000
#: … and no more than fit into so many bytes.
_BYTES = 2**33


class Descent(AbstractTrajectory):
    """The iterates of an optimizer, from `gdflow.gradient_descent`.

    For a batch of starts every array has a leading batch axis.

    - `problem`, `start`.
    - `steps`: numbers of the saved steps, `(T,)`; −1 after the end.
    - `ts`: the same in flow time, `η·steps`, where the step `η` is a number; else the numbers of steps. NaN after the end.
    - `networks`, `losses`, `gradient_norms`: there; losses and gradients are those of all samples.
    - `num_steps`, `final`: how many steps were made, and the last point that is finite.
    - `finite`: whether no step led out of the floating-point range.
    - `quiet`: whether the gradient norm fell to the tolerance.
    - `step`: `η`, if it is a number.
    """

    problem: AbstractProblem
    start: Any
    steps: Int[Array, "*batch T"]
    ts: Float[Array, "*batch T"]
    networks: Any
    losses: Float[Array, "*batch T"]
    gradient_norms: Float[Array, "*batch T"]
    num_steps: Int[Array, "*batch"]
    final: Any
    finite: Bool[Array, "*batch"]
    quiet: Bool[Array, "*batch"]
    step: Any

    @property
    def time_label(self) -> str:
        return "step" if self.step is None else r"flow time $\eta k$"

    @property
    def status(self) -> str | list[str]:
        """How it ended, in words; a list for a batch."""
        ends = [np.asarray(x) for x in (self.finite, self.quiet, self.num_steps)]
        if self.num_steps.ndim:
            return [self._status(*row) for row in zip(*ends, strict=True)]
        return self._status(*ends)

    @staticmethod
    def _status(finite, quiet, num) -> str:
        if not finite:
            return f"not finite after step {int(num)}"
        return "stopped: gradient norm" if quiet else "made all steps"

    def crossing_steps(self, levels: Float[Array, " K"] | None = None) -> Int[np.ndarray, "*batch K"]:
        """The first saved steps at which the loss is at or below given levels; −1 where it is at none.

        **Arguments:** `levels`: by default the lowest critical values (at most 17) from the lowest upwards.
        """
        if levels is None:
            if not isinstance(self.problem, Problem) or self.problem.why_no_levels:
                raise ValueError("the critical values of this problem are not known beforehand: give the levels")
            levels = jnp.asarray(certificate_levels(self.problem, self.start.widths).values)
        below = np.asarray(self.losses)[..., None, :] <= np.asarray(levels)[:, None]
        first = np.argmax(below, axis=-1)
        steps = np.take_along_axis(
            np.broadcast_to(np.asarray(self.steps)[..., None, :], below.shape), first[..., None], -1
        )
        return np.where(below.any(axis=-1), steps[..., 0], -1)

    def distance_to_flow(self, *, rtol: float = 1e-10, atol: float = 1e-12, max_steps: float = 100_000) -> Array:
        """`‖w_k − w(ηk)‖` at the saved steps: how far descent is from the gradient flow from the same start, `(*batch, T)`.

        **Arguments:** of the integration, by `gdflow.simulate`.

        **Raises:** `ValueError` where steps have no flow time: of optimizers and schedules.
        """
        if self.step is None:
            raise ValueError(
                "the flow compares with descent by steps of a fixed length: give gradient_descent a number"
            )

        def one(net, ts, networks):
            # Times after the end stand still at the last one.
            last = jnp.nanmax(ts)
            times = jnp.where(jnp.isnan(ts), last, ts)
            flow = simulate(self.problem, net, last, ts=times, rtol=rtol, atol=atol, max_steps=max_steps, dense=False)
            apart = jax.tree.map(jnp.subtract, networks, flow.networks)
            return jnp.where(jnp.isnan(ts), jnp.nan, jax.vmap(point_norm)(apart))

        compare = eqx.filter_jit(eqx.filter_vmap(one) if self.num_steps.ndim else one)
        return compare(self.start, self.ts, self.networks)

    def __rich__(self) -> RenderableType:
        if not is_concrete((self.losses, self.final)):
            return Text(eqx.tree_pformat(self))
        if self.num_steps.ndim:
            counts: dict[str, int] = {}
            for status in self.status:
                kind = status.split(" after")[0]
                counts[kind] = counts.get(kind, 0) + 1
            rows = [("runs", str(len(self.status))), *((status, str(n)) for status, n in counts.items())]
            return key_value_table("Descents", rows)
        losses = np.asarray(self.losses)
        rows = [
            ("status", str(self.status)),
            ("steps", f"{int(self.num_steps)}, {self.ts.shape[-1]} points saved"),
            *([] if self.step is None else [("step", f"{float(self.step):g}")]),
            ("effective loss", f"{losses[0]:.6g} → {losses[-1]:.6g}"),
            ("gradient norm", f"{float(self.gradient_norms[-1]):.3g}"),
        ]
        return key_value_table("Descent", rows)


def gradient_descent(
    problem: AbstractProblem,
    net: Any,
    optimizer: Any,
    steps: float,
    *,
    every: float | None = None,
    batches: Any = None,
    tolerance: float = 0.0,
    ids: Any = None,
) -> Descent:
    """Gradient descent `w ← w − η∇L(w)`, or another optimizer, from a start, or from a batch of starts.

    Many starts, each until it is decided, are run by `gdflow.basin_sizes` with the methods `gdflow.basins.GradientDescent` and
    `gdflow.basins.Descent`.

    **Arguments:**

    - `problem`, `net`: as for `gdflow.simulate`.
    - `optimizer`: the step `η`, a number; a schedule of Optax, a function of the number of steps; or any optimizer of Optax, such
      as `optax.adam(0.01)`.
    - `steps`: how many, at most.
    - `every`: which are saved; by default so that about a thousand are. The start and the last one are in any case.
    - `batches`: a `gdflow.Minibatches`; by default all samples at once.
    - `ids`: of the starts, a sequence: minibatches depend on them as they do in `gdflow.basin_sizes`. By default 0, 1, ….
    - `tolerance`: stop once `‖∇L‖` (of all samples) is at or below it; by default never.

    **Returns:** a `Descent`. It never raises for what happens on the way: see its `status`. Inside `jax.jit`, `grad` or `vmap`
    value checks are left out. Differentiable, backwards and forwards, in the start, the data and a step that is a number.

    **Raises:** `ValueError` or `TypeError` for networks that do not fit or are not finite, steps or schedules that are not
    positive and finite, batches that do not fit, optimizers that need more than gradient, point and loss, and what would not
    fit into memory.

    ```python
    >>> run = gf.gradient_descent(problem, net, 0.05, 2000)
    >>> run.crossing_steps()
    ```
    """
    check_any_problem(problem)
    made, step = as_optimizer(optimizer)
    if isinstance(problem, Problem):
        check_layer_tuple(net)
        problem.check_widths(net.widths)
    elif not isinstance(net, LayerTuple):
        net = jax.tree.map(jnp.asarray, net)
    batch = net.batch_shape if isinstance(net, LayerTuple) else ()
    if len(batch) > 1:
        raise ValueError(f"one batch axis at most, got weights with leading axes {batch}")
    if not is_traced(problem, net):
        problem.check_start(net, batch=bool(batch))
    steps = check_count("steps", steps, 0)
    every = max(1, steps // _SAVED) if every is None else check_count("every", every)
    if check_number("tolerance", tolerance) < 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance}")
    if batches is not None:
        if not isinstance(batches, Minibatches):
            raise TypeError(f"batches are a gdflow.Minibatches, got {batches!r}")
        batches.check(problem, net.widths)
    saved = 1 + -(-steps // every)
    needed = saved * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(net))
    if needed > _BYTES:
        raise ValueError(
            f"{saved} saved points would need {needed / 2**30:.1f} GiB: save fewer of them (every={every} now), or run starts by "
            "gdflow.basin_sizes, which keeps none"
        )
    check_optimizer(made, jax.tree.map(lambda x: x[0], net) if batch else net)
    number = step is not None and not callable(step)
    count = batch[0] if batch else 1
    high, low = split_ids(range(count) if ids is None else ids)
    if len(low) != count:
        raise ValueError(f"ids: one for each of the {count} starts, got {len(low)}")
    parts = _run(
        problem.objective,
        net,
        (jnp.asarray(high), jnp.asarray(low)),
        jnp.asarray(step, jnp.result_type(float)) if number else None,
        None if number else made,
        steps,
        every,
        batches,
        jnp.asarray(tolerance, float),
        bool(batch),
    )
    descent = Descent(problem=problem, start=net, step=step if number else None, **parts)
    return descent if is_traced(descent.losses) else _trim(descent)


@eqx.filter_jit
def _run(
    objective: Objective,
    nets: Any,
    ids: tuple[Array, Array],
    step: Array | None,
    optimizer: Any,
    steps: int,
    every: int,
    batches: Minibatches | None,
    tolerance: Array,
    batched: bool,
) -> dict[str, Any]:
    """The fields of a descent. A step that is a number is an argument of the program, so that others share it."""
    made: Any = optax.sgd(step) if optimizer is None else optimizer

    def one(net, high, low):
        key: Any = None if batches is None else fold_id(batches.key, high, low)

        def measure(w):
            return objective.effective_loss(w), objective.gradient(w)

        def advance(carry, _):
            w, state, count, loss, gradient, finite, quiet = carry
            going = finite & ~quiet & (count < steps)
            seen = gradient if batches is None else batches.gradient(objective, w, key, count)
            new, new_state = update(made, objective, seen, state, w, loss)
            new_loss, new_gradient = measure(new)
            fine = is_finite(new) & jnp.isfinite(new_loss) & is_finite(new_gradient)
            moved = going & fine

            def select(a, b):
                return jax.tree.map(lambda x, y: jnp.where(moved, x, y), a, b)

            w, state, loss, gradient = select((new, new_state, new_loss, new_gradient), (w, state, loss, gradient))
            finite = finite & (fine | ~going)
            quiet = quiet | (moved & (point_norm(gradient) <= tolerance) & (tolerance > 0))
            return (w, state, jnp.where(moved, count + 1, count), loss, gradient, finite, quiet), None

        def stretch(carry, k):
            before = carry[2]
            carry, _ = jax.lax.scan(advance, carry, length=every)
            w, _, count, loss, gradient, _, _ = carry
            moved = count > before
            return carry, (jnp.where(moved, count, -1), w, loss, point_norm(gradient))

        loss, gradient = measure(net)
        quiet = (point_norm(gradient) <= tolerance) & (tolerance > 0)
        first = (net, made.init(net), jnp.asarray(0), loss, gradient, jnp.asarray(True), quiet)
        begin = (jnp.asarray(0), net, loss, point_norm(gradient))
        carry, rest = jax.lax.scan(stretch, first, length=-(-steps // every))
        counts, networks, losses, norms = jax.tree.map(
            lambda a, b: jnp.concatenate([jnp.asarray(a)[None], b]), begin, rest
        )
        there = counts >= 0

        def known(x):
            return jnp.where(there.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.nan)

        unit = 1.0 if step is None else step
        w, _, count, _, _, finite, quiet = carry
        return dict(
            steps=counts,
            ts=jnp.where(there, unit * counts, jnp.nan),
            networks=jax.tree.map(known, networks),
            losses=known(losses),
            gradient_norms=known(norms),
            num_steps=count,
            final=w,
            finite=finite,
            quiet=quiet,
        )

    if not batched:
        return one(nets, ids[0][0], ids[1][0])
    return jax.vmap(one)(nets, *ids)


def _trim(descent: Descent) -> Descent:
    """Without the rows in which no start was on its way any more."""
    counts = np.asarray(descent.steps)
    rows = int(np.max(np.sum(counts >= 0, axis=-1)))
    if rows == counts.shape[-1]:
        return descent
    index = (*[slice(None)] * (counts.ndim - 1), slice(0, rows))

    def saved(d):
        return d.steps, d.ts, d.networks, d.losses, d.gradient_norms

    return eqx.tree_at(saved, descent, jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[index]), saved(descent)))
