"""A trajectory: times, networks, and what is measured along it."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from rich.console import RenderableType
from rich.text import Text

from gdflow import conservation
from gdflow.dynamics.crossings import first_crossing
from gdflow.invariants import drift
from gdflow.network import LayerTuple
from gdflow.objective import LinearObjective, Objective
from gdflow.points import point_norm
from gdflow.problem import AbstractProblem, Problem
from gdflow.tables import Printable, key_value_table, some_numbers
from gdflow.thresholds import certificate_levels


def is_concrete(tree: object) -> bool:
    """Whether all leaves of a tree are arrays of known values, as they are not inside `jax.jit` and its like."""
    leaves = [x for x in jax.tree.leaves(tree) if not callable(x)]
    return bool(leaves) and all(eqx.is_array(x) and not isinstance(x, jax.core.Tracer) for x in leaves)


class AbstractTrajectory(Printable, eqx.Module):
    """Points along a path, and what is measured there; in a batch all arrays have a leading batch axis.

    - `problem`, `start`.
    - `ts`: times, `(T,)`; NaN after the end, as all that belongs to them.
    - `networks`: the points at these times (leading axis `T`).
    - `losses`, `gradient_norms`: effective loss and `‖∇L‖` there.
    """

    problem: eqx.AbstractVar[AbstractProblem]
    start: eqx.AbstractVar[Any]
    ts: eqx.AbstractVar[Float[Array, "*batch T"]]
    networks: eqx.AbstractVar[Any]
    losses: eqx.AbstractVar[Float[Array, "*batch T"]]
    gradient_norms: eqx.AbstractVar[Float[Array, "*batch T"]]

    @property
    def time_label(self) -> str:
        """What `ts` are, for the axis of a picture."""
        return "flow time $t$"

    def map_over_time(self, function: Callable[[Any], Any]) -> Any:
        """Applies a traceable function of one network at every saved time (and in every trajectory of a batch)."""
        for _ in self.ts.shape:
            function = jax.vmap(function)
        return jax.jit(function)(self.networks)

    @property
    def singular_values(self) -> Float[Array, "*batch T k"]:
        """Singular values of the end-to-end matrix at the saved times."""
        return self.map_over_time(lambda net: jnp.linalg.svd(net.end_to_end, compute_uv=False))

    @property
    def drift(self) -> Float[Array, "*batch T"]:
        """Relative drift of the conserved quantities since the start: of the `C_j` of linear networks, see `gdflow.drift`; of
        other ones by all laws that hold, see `gdflow.conservation`.

        **Raises:** `ValueError` where no law holds, or none is known.
        """

        def measure(net, start, t):
            return drift(net, start)

        if not isinstance(self.problem.objective, LinearObjective):
            laws = self._laws()

            def measure(net, start, t):
                return conservation.drift(laws, net, start, t)

        along = jax.vmap(measure, in_axes=(0, None, 0))
        for _ in self.ts.shape[:-1]:
            along = jax.vmap(along)
        return jax.jit(along)(self.networks, self.start, self.ts)

    def _laws(self) -> conservation.ConservationLaws:
        """The laws of a nonlinear network."""
        if not isinstance(self.problem, Problem):
            raise ValueError(
                "conservation laws are known of networks that fit data: this problem has none to drift from"
            )
        laws = conservation.conservation_laws(self.problem, self.start.widths)
        if not laws:
            reasons = "; ".join(f"{refusal.name}: {refusal.reason}" for refusal in laws.refused)
            raise ValueError(f"this flow has no conservation law that is known, so nothing drifts ({reasons})")
        return laws.without_refusals()


class Trajectory(AbstractTrajectory):
    """A solution of the gradient flow, from `gdflow.simulate`.

    For a batch of starts every array has a leading batch axis and shorter trajectories are padded with NaN.

    - `ts`: saved times, `(T,)`. Entries after a stop are NaN.
    - `networks`: the networks at these times (leading axis `T`).
    - `losses`, `gradient_norms`: effective loss and `‖∇L‖` there.
    - `final_time`, `final`: the end of the integration: `t1`, or the stop, located inside the step.
    - `num_steps`: accepted and rejected steps together.
    - `reached`: index of the stop that ended it (in the order given), `-1` if none did.
    - `finite`: whether the final network is finite.
    - `solved`: whether the solver got to the end; if not, `exhausted` says whether it ran out of steps.
    """

    problem: AbstractProblem
    start: Any
    ts: Float[Array, "*batch T"]
    networks: Any
    losses: Float[Array, "*batch T"]
    gradient_norms: Float[Array, "*batch T"]
    final_time: Float[Array, "*batch"]
    final: Any
    num_steps: Int[Array, "*batch"]
    reached: Int[Array, "*batch"]
    finite: Array
    solved: Array
    exhausted: Array
    stops: tuple[str, ...] = eqx.field(static=True)
    interpolation: diffrax.DenseInterpolation | None

    @property
    def status(self) -> str | list[str]:
        """How it ended, in words; a list for a batch."""
        ends = [np.asarray(x) for x in (self.reached, self.finite, self.solved, self.exhausted)]
        if self.final_time.ndim:
            return [self._status(*row) for row in zip(*map(np.ravel, ends), strict=True)]
        return self._status(*ends)

    def _status(self, reached, finite, solved, exhausted) -> str:
        if not finite:
            return "not finite"
        if reached >= 0:
            return f"stopped: {self.stops[int(reached)]}"
        if solved:
            return "reached t1"
        return "step limit" if exhausted else "solver failed"

    def evaluate(self, t: Float[Array, ""] | float) -> Any:
        """The network at any time up to `final_time`, by the solver's own interpolant.

        **Raises:** `ValueError` if the trajectory was not computed with `dense=True`.
        """
        if self.interpolation is None:
            raise ValueError("this trajectory has no dense output: simulate(..., dense=True)")
        if self.final_time.ndim:
            return eqx.filter_vmap(lambda dense: dense.evaluate(t))(self.interpolation)
        return self.interpolation.evaluate(t)

    def crossing_times(self, levels: Float[Array, " K"] | None = None) -> Float[Array, "*batch K"]:
        """First times at which the loss falls to given levels; infinite where it does not before `final_time`.

        The loss is monotone along the flow, so each crossing is one root of the dense output. Differentiable.

        **Arguments:** `levels`: by default the lowest critical values (at most 17) from the lowest upwards.

        **Raises:** `ValueError` without dense output.
        """
        if self.interpolation is None:
            raise ValueError("crossing times need dense output: simulate(..., dense=True)")
        if levels is None:
            if not isinstance(self.problem, Problem):
                raise ValueError("the critical values of this problem are not known beforehand: give the levels")
            levels = jnp.asarray(certificate_levels(self.problem, self.start.widths).values)
        crossing = _crossing_times
        if self.final_time.ndim:
            crossing = eqx.filter_vmap(crossing, in_axes=(None, None, eqx.if_array(0), 0, 0, 0))
        levels = jnp.asarray(levels, self.losses.dtype)
        return crossing(self.problem.objective, levels, self.interpolation, self.start, self.final_time, self.final)

    def __rich__(self) -> RenderableType:
        if not is_concrete(self):
            return Text(eqx.tree_pformat(self))
        if self.final_time.ndim:
            counts: dict[str, int] = {}
            for status in self.status:
                counts[status] = counts.get(status, 0) + 1
            rows = [("trajectories", str(len(self.status))), *((status, str(n)) for status, n in counts.items())]
            return key_value_table("Trajectories", rows)
        first, last, slope, *rest = map(np.asarray, _summary(self.problem.objective, self.start, self.final))
        rows = [
            ("status", str(self.status)),
            ("time", f"{float(self.final_time):.6g} after {int(self.num_steps)} steps, {self.ts.shape[-1]} saved"),
            ("effective loss", f"{first:.6g} → {last:.6g}"),
            ("gradient norm", f"{slope:.3g}"),
        ]
        if isinstance(self.start, LayerTuple):
            rows.insert(
                0, ("widths", "-".join(map(str, self.start.widths)) + f" ({self.problem.coordinates} coordinates)")
            )
        if rest:
            moved, values = rest
            rows += [
                ("singular values", some_numbers(values)),
                ("drift of C_j", f"{moved:.2e} (relative; zero for the exact flow)"),
            ]
        return key_value_table("Trajectory", rows)


@eqx.filter_jit
def _summary(objective: Objective, start: Any, end: Any) -> tuple[Array, ...]:
    """Losses at both ends, the gradient norm at the last, of linear networks drift and singular values: all in one program."""
    numbers = objective.effective_loss(start), objective.effective_loss(end), point_norm(objective.gradient(end))
    if not isinstance(objective, LinearObjective):
        return numbers
    return *numbers, drift(end, start), jnp.linalg.svd(end.end_to_end, compute_uv=False)


@eqx.filter_jit
def _crossing_times(
    objective: Objective,
    levels: Float[Array, " K"],
    dense: diffrax.DenseInterpolation,
    start: Any,
    end: Float[Array, ""],
    final: Any,
) -> Float[Array, " K"]:
    """Where the loss falls to the levels between `dense.t0` and `end`."""
    arrays, rest = eqx.partition((objective, levels, dense), eqx.is_array)
    fixed_objective, fixed_levels, fixed_dense = eqx.combine(jax.lax.stop_gradient(arrays), rest)

    def excess(times):
        losses = jax.vmap(lambda t: fixed_objective.effective_loss(fixed_dense.evaluate(t)))(times)
        return losses - fixed_levels

    first, last = objective.effective_loss(start) - levels, objective.effective_loss(final) - levels
    bracket = (jnp.full_like(levels, dense.t0), first, jnp.full_like(levels, end), last)
    times = first_crossing(excess, *jax.lax.stop_gradient(bracket), wanted=(first > 0) & (last <= 0))

    def differentiable(time, level):
        """The search has no derivative; the crossing has: `dt = (dℓ − dL)/L̇`, `L̇ = −‖∇L‖²`, none where nothing is crossed."""
        net = dense.evaluate(time)
        excess = objective.effective_loss(net) - level
        square = jax.lax.stop_gradient(point_norm(objective.gradient(net)) ** 2)
        crossed = (time > dense.t0) & (square > 0)
        return time + jnp.where(
            crossed, (excess - jax.lax.stop_gradient(excess)) / jnp.where(crossed, square, 1.0), 0.0
        )

    return jnp.where(last <= 0, jax.vmap(differentiable)(times, levels), jnp.inf)
