"""The picture of limits that were found in a run: loss curves of sample trajectories, and the probability of every limit."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from gdflow.basins.estimate import BasinEstimate
from gdflow.basins.samples import SampleTrajectories
from gdflow.plotting.style import COLORS, FONT, hide_box, say, set_time

#: So many limits, the most frequent ones, have a bar and a colour of their own.
MOST = 8
#: What is left.
OTHER, UNDECIDED = "0.55", "0.35"


def _shown(estimate: BasinEstimate) -> list[int]:
    """The most frequent limits, in the order of their losses."""
    counts = [row.certified + row.located for row in estimate.rows]
    return sorted(sorted(range(len(counts)), key=lambda k: -counts[k])[:MOST])


def _color(shown: list[int], k: int) -> str:
    return COLORS[shown.index(k) % len(COLORS)] if k in shown else OTHER


def draw_found(estimate: BasinEstimate, samples: SampleTrajectories) -> Figure:
    """The picture of `gdflow.plotting.plot_basins` where limits were found in the run."""
    figure = Figure(figsize=(10, 4.3), layout="constrained")
    left, right = figure.subplots(1, 2)
    shown = _shown(estimate)
    for axes in (left, right):
        hide_box(axes)
    if samples.ids and np.isfinite(samples.losses).any():
        _draw_curves(left, estimate, samples, shown)
    else:
        say(left, "no start is finite" if not samples.ids else "nothing to draw")
    if estimate.rows:
        _draw_fractions(right, estimate, shown)
    else:
        ends = [f"{status.label}: {count:,}" for status, count in estimate.statuses.items() if count]
        say(right, "no limit was found\n" + "\n".join(ends))
    decided = estimate.certified + estimate.located
    right.set_title(
        f"{decided:,} of {estimate.num:,} starts have a limit ({estimate.certified:,} certified)\n"
        + f"any other limit: probability ≤ {estimate.unseen:.2g}",
        fontsize=10,
    )
    return figure


def _draw_curves(axes: Axes, estimate: BasinEstimate, samples: SampleTrajectories, shown: list[int]) -> None:
    set_time(axes, samples.ts, samples.losses, {estimate.rows[k].found.loss for k in shown})  # type: ignore[union-attr]
    begin, _ = axes.get_xlim()
    for losses, decided, time, limit in zip(
        samples.losses, samples.decided, samples.times, samples.limits, strict=True
    ):
        color = _color(shown, int(limit)) if decided else UNDECIDED
        axes.plot(samples.ts, losses, color=color, lw=1.2, alpha=0.9, ls="-" if decided else "--")
        at = int(np.searchsorted(samples.ts, max(time, begin)))
        at = min(at, len(samples.ts) - 1)
        axes.plot(samples.ts[at], losses[at], "o" if decided else "x", color=color, ms=5, zorder=3, clip_on=False)
    finite = samples.losses[np.isfinite(samples.losses)]
    lowest = min([row.found.loss for row in estimate.rows if row.found is not None] or [finite.min()])
    top, bottom = float(finite.max()), float(min(lowest, finite.min()))
    if bottom > 0:
        axes.set_yscale("log")
        axes.set_ylim(bottom * (bottom / top) ** 0.05, top * (top / bottom) ** 0.05)
    else:
        room = 0.05 * (top - bottom or 1.0)
        axes.set_ylim(bottom - room, top + room)
    axes.set_ylabel("loss $L(t)$")
    axes.set_title(f"{len(samples.ids)} of {estimate.num:,} starts\nmarked where they had converged", fontsize=10)


def _draw_fractions(axes: Axes, estimate: BasinEstimate, shown: list[int]) -> None:
    """Bars from the lowest loss downwards: shares of the starts, certified ones filled, with simultaneous intervals."""
    places = np.arange(len(shown))[::-1]
    for place, k in zip(places, shown, strict=True):
        row, color = estimate.rows[k], _color(shown, k)
        certified, located = row.certified / estimate.num, row.located / estimate.num
        axes.barh(place, certified, color=color, height=0.6)
        axes.barh(place, located, left=certified, color=color, alpha=0.45, hatch="////", ec="white", height=0.6)
        axes.plot(row.simultaneous, [place, place], color="black", lw=1.2, marker="|", ms=8)
    rest = len(estimate.rows) - len(shown)
    losses = [estimate.rows[k].found for k in shown]
    axes.set_yticks(places, ["∞" if limit.at_infinity else f"{limit.loss:.5g}" for limit in losses if limit])
    axes.set_ylabel("loss of the limit" + (f" ({rest} rarer ones not shown)" if rest else ""))
    axes.set_xlabel("probability")
    axes.set_xlim(0, max(min(1.0, 1.05 * max(estimate.rows[k].simultaneous[1] for k in shown)), 1e-6))
    handles = [
        Patch(color="0.5", label="certified"),
        Line2D(
            [],
            [],
            color="black",
            lw=1.2,
            marker="|",
            ms=8,
            label=f"{100 * estimate.confidence:g} % intervals (all together)",
        ),
    ]
    if estimate.located:
        handles.insert(1, Patch(fc="0.5", alpha=0.45, hatch="////", ec="white", label="located"))
    axes.legend(handles=handles, fontsize=FONT, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3, frameon=False)
