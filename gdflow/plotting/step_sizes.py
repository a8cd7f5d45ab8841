"""The picture of basins against the step: shares of all ends, limits that the flow does not have, balancing."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gdflow.basins.step_sizes import ENDS, StepSizeBasins
from gdflow.plotting.style import COLORS, FONT, hide_box, say, set_range

_MARKERS = ("o", "s", "P", "^", "D", "v")
#: Marks at one step stand side by side, by this part of it.
_APART = 0.02


def plot_step_sizes(basins: StepSizeBasins) -> Figure:
    """Shares of starts by where they end, against the step, with their intervals; where linear stability ends; of the limits how
    many the flow from the same start does not have; and, of linear networks, how balanced the limits are."""
    rows = basins.rows
    draws = [_draw_ends]
    if basins.flow is not None:
        draws.append(_draw_changed)
    if any(row.imbalance for row in rows):
        draws.append(_draw_imbalance)
    figure = Figure(figsize=(4.4 * len(draws), 4.4), layout="constrained")
    panels = figure.subplots(1, len(draws), squeeze=False)[0]
    low, high = basins.steps[0], basins.steps[-1]
    low, high = (low / 1.1, high * 1.1) if high > low else (low / 2, high * 2)
    for axes, draw in zip(panels, draws, strict=True):
        draw(axes, basins)
        set_range(axes, "x", low, high, log=high > 4 * low)
        axes.set_xlabel(r"step $\eta$")
        _draw_edges(axes, basins, low, high)
        hide_box(axes)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=FONT, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, frameon=False)
    figure.suptitle(
        f"{basins.optimizer}, {basins.num} starts, {100 * basins.confidence:g} % intervals", fontsize=FONT + 2
    )
    return figure


def _draw_edges(axes: Axes, basins: StepSizeBasins, low: float, high: float) -> None:
    styles = ("--", "-.", ":", (0, (1, 3)))
    for (name, edge), style in zip(basins.edges, styles, strict=False):
        if low < edge < high:
            axes.axvline(edge, color="0.5", lw=0.9, ls=style, label=f"edge of stability, {name}")


def _draw_ends(axes: Axes, basins: StepSizeBasins) -> None:
    steps = np.array(basins.steps)
    for k, name in enumerate(ENDS):
        counts = np.array([row.counts[k] for row in basins.rows])
        if not counts.any() and k:
            continue
        _draw_shares(axes, steps, counts / basins.num, [row.intervals[k] for row in basins.rows], k, name)
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel("share of starts")


def _draw_shares(axes: Axes, steps, shares, intervals, k: int, name: str) -> None:
    low, high = np.array(intervals).T
    if len(steps) == 1:
        steps = steps * (1 + _APART * (k - len(ENDS) / 2))
    color = COLORS[k % len(COLORS)]
    axes.plot(steps, shares, color=color, marker=_MARKERS[k % len(_MARKERS)], ms=4, lw=1.2, label=name)
    axes.vlines(steps, low, high, color=color, lw=1.2, alpha=0.7)


def _draw_changed(axes: Axes, basins: StepSizeBasins) -> None:
    rows = [row for row in basins.rows if row.compared]
    if not rows:
        say(axes, "no start has a limit\nby descent and by the flow")
        return
    shares, steps = np.array([row.changed for row in rows]) / basins.num, np.array([row.step for row in rows])
    _draw_shares(axes, steps, shares, [row.changed_interval for row in rows], 1, "limit is not the flow's")
    axes.set_ylim(bottom=-0.03 * max(0.05, axes.get_ylim()[1]))
    axes.set_ylabel("share of starts")


def _draw_imbalance(axes: Axes, basins: StepSizeBasins) -> None:
    known = [(step, *row.imbalance) for step, row in zip(basins.steps, basins.rows, strict=True) if row.imbalance]
    steps, low, median, high = np.array(known).T
    axes.fill_between(steps, low, high, color=COLORS[0], alpha=0.2, lw=0, label="quartiles")
    axes.plot(steps, median, color=COLORS[0], marker="o", ms=4, lw=1.2, label="median")
    axes.set_ylabel(r"$\max_j\|C_j\|_F$, limit over start")
    axes.set_ylim(bottom=0)
