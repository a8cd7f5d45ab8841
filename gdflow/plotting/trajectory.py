"""The picture of one trajectory: loss, singular values, gradient norm and drift."""

import contextlib
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gdflow.dynamics.trajectory import AbstractTrajectory
from gdflow.levels import Level
from gdflow.objective import LinearObjective
from gdflow.plotting.style import COLORS, FONT, WIDE, draw_levels, hide_box, set_range, set_time
from gdflow.problem import Problem, check_problem, critical_values

#: More singular values than this are drawn without names.
MAX_NAMED = 6
#: Losses are drawn to their end if that is above this part of the lowest positive level; of those that fall on to round-off the
#: axis shows no more than so much.
DEEP, CUT = 1e-6, 1e-3
#: Norms and drifts are drawn to this part of their largest.
SMALLEST = 1e-20


def plot_trajectory(trajectory: AbstractTrajectory) -> Figure:
    """Loss between the levels, singular values of the end-to-end map against the target's, gradient norm and drift.

    Of a flow (`gdflow.simulate`) or a descent (`gdflow.gradient_descent`); of what is no linear network loss and gradient norm
    alone.

    **Raises:** `ValueError` for a batch.
    """
    if trajectory.ts.ndim != 1:
        raise ValueError(f"one trajectory is needed, got a batch of {trajectory.ts.shape[0]}")
    linear = isinstance(trajectory.problem.objective, LinearObjective)
    draws = (_draw_loss, _draw_singular_values, _draw_norms) if linear else (_draw_loss, _draw_norms)
    figure = Figure(figsize=(4 * len(draws), 4.2), layout="constrained")
    panels = figure.subplots(1, len(draws))
    for axes, draw in zip(panels, draws, strict=True):
        draw(axes, trajectory)
        hide_box(axes)
        # Below the axes nothing can be in its way.
        axes.legend(fontsize=FONT, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3, frameon=False)
    return figure


def _set_time(axes: Axes, trajectory: AbstractTrajectory) -> None:
    losses = np.asarray(trajectory.losses)
    levels = _levels(trajectory)
    values = [level.value for level in levels] if levels else 0.1 ** np.arange(1, 7) * losses[0]
    set_time(axes, np.asarray(trajectory.ts), losses[None], values)
    axes.set_xlabel(trajectory.time_label)


def _leveled(trajectory: AbstractTrajectory) -> Problem | None:
    """The problem, if its critical values are known beforehand."""
    problem = trajectory.problem
    return problem if isinstance(problem, Problem) and problem.why_no_levels is None else None


def _levels(trajectory: AbstractTrajectory) -> Sequence[Level]:
    problem = _leveled(trajectory)
    if problem is None:
        return ()
    widths = trajectory.start.widths
    return tuple(critical_values(problem, problem.max_rank(widths), lowest=16, num_layers=len(widths) - 1))


def _draw_loss(axes: Axes, trajectory: AbstractTrajectory) -> None:
    losses = np.asarray(trajectory.losses)
    axes.plot(trajectory.ts, np.maximum(losses, 1e-300), color=COLORS[0], label="$L(t)$")
    _set_time(axes, trajectory)
    top, low = float(losses.max()), float(losses.min())
    levels = _levels(trajectory)
    lowest = min((level.value for level in levels if level.value > 0), default=top)
    _set_log_range(axes, low if low >= DEEP * lowest else CUT * lowest, top)
    axes.set_ylabel("effective loss $L(t)$")
    if levels:
        draw_levels(axes, levels)
        axes.plot([], [], color="0.6", lw=0.8, ls="--", label=r"critical values $\ell(S)$")


def _set_log_range(axes: Axes, low: float, high: float) -> None:
    """A vertical axis with a little room at both ends."""
    low = max(low, 1e-300)
    high = max(high, 1.01 * low)
    room = (high / low) ** 0.05
    set_range(axes, "y", low / room, high * room)


def _draw_singular_values(axes: Axes, trajectory: AbstractTrajectory) -> None:
    """Effective singular values: those of `WD`, which converge to the `s_i` of the target."""
    problem, design = _leveled(trajectory), check_problem(trajectory.problem).design
    values = trajectory.map_over_time(lambda net: jnp.linalg.svd(net.end_to_end @ design, compute_uv=False))
    values = np.asarray(values)
    for k, column in enumerate(values.T):
        color = COLORS[k % len(COLORS)]
        axes.plot(trajectory.ts, column, color=color, label=rf"$\sigma_{{{k + 1}}}(WD)$" if k < MAX_NAMED else None)
        if problem is not None and k < problem.singular_values.shape[0]:
            axes.axhline(float(problem.singular_values[k]), color=color, lw=0.8, ls=":")
    if problem is not None:
        axes.plot([], [], color="0.4", lw=0.8, ls=":", label="$s_i$ of the target")
    _set_time(axes, trajectory)
    axes.set_ylabel("singular value")
    top = 1.05 * float(np.max(values))
    targets = np.asarray([] if problem is None else problem.singular_values)
    smallest = float(np.min(targets, initial=np.inf, where=targets > 0))
    if top > WIDE * smallest:
        _set_log_range(axes, 0.1 * smallest, top)
    else:
        set_range(axes, "y", 0.0, top, log=False)


def _draw_norms(axes: Axes, trajectory: AbstractTrajectory) -> None:
    norms, drift = np.asarray(trajectory.gradient_norms), np.zeros(0)
    drawn = [(norms, COLORS[0], r"$\|\nabla L\|$")]
    with contextlib.suppress(ValueError):  # where no law holds there is nothing to drift
        drift = np.asarray(trajectory.drift)
        linear = isinstance(trajectory.problem.objective, LinearObjective)
        drawn.append((drift, COLORS[1], "relative drift of " + ("$C_j$" if linear else "what is conserved")))
    for values, color, label in drawn:
        if np.any(values > 0):
            axes.plot(trajectory.ts, np.where(values > 0, values, np.nan), color=color, label=label)
    _set_time(axes, trajectory)
    positive = np.concatenate([norms[norms > 0], drift[drift > 0]])
    if positive.size:
        _set_log_range(axes, max(float(positive.min()), SMALLEST * float(positive.max())), float(positive.max()))
