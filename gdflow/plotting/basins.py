"""The picture of an estimate: loss staircases of sample trajectories, and when the starts were certified."""

import dataclasses
import textwrap
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from gdflow.basins.estimate import BasinEstimate
from gdflow.basins.intervals import interval_text
from gdflow.basins.outcomes import is_decided
from gdflow.basins.samples import SampleTrajectories, sample_trajectories
from gdflow.basins.tally import Tally
from gdflow.plotting.found import draw_found
from gdflow.plotting.style import (
    COLORS,
    FONT,
    WIDE,
    draw_levels,
    hide_box,
    log_ticks,
    say,
    set_counts,
    set_range,
    set_ticks,
    set_time,
    tick_labels,
)

#: Colour and marker of limits at the lowest level, at lower rank, and of undecided starts.
MINIMUM, LOWER, UNDECIDED = (COLORS[0], "o"), (COLORS[1], "s"), ("0.35", "x")
#: Colour of certified limits of either kind, where they are not told apart.
EITHER = COLORS[2]
#: The width of the histogram is at least this part of the times.
NARROWEST = 1e-3
#: Characters in a line of a title.
TITLE = 46
#: Bins of the histogram, at most.
BINS = 48


@dataclasses.dataclass(frozen=True)
class TimeHistogram:
    """Counts of the certificate times of an estimate's starts.

    - `edges`: of the bins, from the first to the last positive time.
    - `counts`: by bin; one row per limit, or one for all where rows beyond the kept ones are counted, too.
    - `at_start`: how many starts were certified at `t = 0`, in the same rows.
    """

    edges: Float[np.ndarray, " B_plus_1"]
    counts: Int[np.ndarray, "limits B"]
    at_start: Int[np.ndarray, " limits"]

    @property
    def wide(self) -> bool:
        """Whether the bins are those of a logarithmic axis."""
        return bool(self.edges.size and self.edges[-1] > WIDE * self.edges[0])


def time_histogram(estimate: BasinEstimate) -> TimeHistogram:
    """The certificate times of all starts of an estimate in bins: of the kept rows by limit, of more from the tally."""
    if estimate.num > len(estimate.outcomes):
        counts, edges = estimate.tally.times, Tally.edges()
        used = np.flatnonzero(counts[1:]) + 1  # the first bin is for zero
        if not used.size:
            return TimeHistogram(np.zeros(0), np.zeros((1, 0), int), counts[:1])
        stride = -(-(used[-1] + 1 - used[0]) // BINS)
        starts = np.arange(used[0], used[-1] + 1, stride)
        stop = min(starts[-1] + stride, len(counts))
        merged = np.add.reduceat(counts[:stop], starts)
        return TimeHistogram(edges[[*starts, stop]], merged[None], counts[:1])
    certified = is_decided(estimate.outcomes)
    times = estimate.outcomes["time"].to_numpy()[certified]
    lower = estimate.outcomes["highest"].to_numpy()[certified] > 0
    groups = [times[~lower], times[lower]]
    at_start = np.array([np.sum(group == 0) for group in groups])
    positive = times[times > 0]
    if not positive.size:
        return TimeHistogram(np.zeros(0), np.zeros((2, 0), int), at_start)
    low, high = positive.min(), positive.max()
    # Equal times, too, need bins of some width, and numbers at the axis that tell these apart.
    room = max(NARROWEST * low - (high - low), 0.0) / 2
    space = np.geomspace if high > WIDE * low else np.linspace
    edges = space(low - room, high + room, BINS + 1)
    edges[-1] = max(edges[-1], high)  # round-off must not leave out the last
    counts = np.array([np.histogram(group[group > 0], edges)[0] for group in groups])
    return TimeHistogram(edges, counts, at_start)


def _draw_staircases(axes: Axes, estimate: BasinEstimate, samples: SampleTrajectories) -> None:
    set_time(axes, samples.ts, samples.losses, {*estimate.crossings, *estimate.levels.values[1:]})
    _set_losses(axes, estimate, samples.losses)
    floor, _ = axes.get_ylim()
    # The beginning of a logarithmic axis stands for zero.
    begin, _ = axes.get_xlim()
    ends = zip(samples.losses, samples.decided, samples.times, samples.limits, strict=True)
    for losses, decided, time, limit in ends:
        color, marker = (LOWER if limit else MINIMUM) if decided else UNDECIDED
        axes.plot(samples.ts, losses, color=color, lw=1.2, alpha=0.9, ls="-" if decided else "--")
        at = int(np.searchsorted(samples.ts, max(time, begin)))
        # Whole at the edges of the panel, but not below it.
        axes.plot(
            samples.ts[at], losses[at], marker, color=color, zorder=3, clip_on=losses[at] < floor, **_edge(marker)
        )
    axes.set_ylabel("effective loss $L(t)$")
    if estimate.plan.descends:
        axes.set_xlabel("time $t$, all steps together")
    draw_levels(axes, estimate.levels)
    how = _how(estimate)
    where = how if samples.decided.all() else f"{how} or given up" if samples.decided.any() else "given up"
    order = ", fast to slow" if len(samples.ids) > 1 else ""
    axes.set_title(f"{len(samples.ids)} of {estimate.num:,} starts{order}\nmarked where {where}", fontsize=10)


def _edge(marker: str) -> dict[str, Any]:
    """Size and edge of a marker: crosses have nothing but their edge."""
    return dict(ms=5, mew=1.2) if marker == "x" else dict(ms=5, mew=0.5, mec="black")


def _set_losses(axes: Axes, estimate: BasinEstimate, losses: Float[np.ndarray, "n T"]) -> None:
    """The vertical axis: from below the lowest level, or the lowest that is not zero, to above the highest start."""
    lowest = estimate.levels[0].value
    top = float(np.nanmax(losses))
    if lowest > 0:  # nothing falls below it
        top = max(top, 1.01 * lowest)
        room = (top / lowest) ** 0.05
        set_range(axes, "y", lowest / room, top * room)
        return
    second = min((level.value for level in estimate.levels if level.value > 0), default=top)
    # Low enough to see where the curves begin.
    begin = float(np.nanmin(losses[:, 0]))
    set_range(axes, "y", max(min(0.1 * second, 0.3 * begin), 1e-4 * second), 1.5 * max(top, second))


def _draw_times(axes: Axes, estimate: BasinEstimate, histogram: TimeHistogram) -> None:
    """Stacked bars by limit; starts certified at `t = 0` have a bar of their own at the left."""
    edges, wide = histogram.edges, histogram.wide
    looks = [MINIMUM[0], LOWER[0]] if len(histogram.counts) == 2 else [_only_color(estimate)]
    bottom, zero_bottom = np.zeros(len(edges) - 1), 0
    scale = np.log10 if wide else np.asarray
    unscale = (lambda u: 10.0**u) if wide else np.asarray
    low, high = scale(edges[0]), scale(edges[-1])
    width = (high - low) / BINS
    at_start = bool(histogram.at_start.any())
    if wide:
        zero, left = unscale(np.array([low - 7 * width, low - 4 * width])), low - 9 * width
    else:
        zero, left = np.array([-0.02 * high, 0.02 * high]), -0.04 * high
    for counts, count_at_start, color in zip(histogram.counts, histogram.at_start, looks, strict=True):
        axes.stairs(bottom + counts, edges, baseline=bottom, fill=True, color=color, ec="white", lw=0.3)
        bottom = bottom + counts
        if count_at_start:
            axes.stairs([zero_bottom + count_at_start], zero, baseline=zero_bottom, fill=True, color=color,
                        hatch="////", ec="white", lw=0.3)  # fmt: skip
            zero_bottom += count_at_start
    low, high = unscale(left if at_start else low - width), unscale(high + width)
    set_range(axes, "x", float(low), float(high), log=wide)
    if at_start and wide:
        ticks = log_ticks(float(edges[0]), float(high))
        set_ticks(axes, "x", [float(np.sqrt(zero[0] * zero[1])), *ticks], ["0", *tick_labels(ticks)])
    median = estimate.time_quantile(0.5)
    if median:
        axes.axvline(median, color="black", lw=1.2, ls=":")
    set_counts(axes)
    flow = "" if estimate.plan.descends else "flow "
    axes.set(xlabel=f"{flow}time to " + ("the limit" if estimate.located else "certificate"), ylabel="starts")


def _only_color(estimate: BasinEstimate) -> str:
    return EITHER if _decided(estimate) > _decided(estimate, 0) else MINIMUM[0]


def _decided(estimate: BasinEstimate, limit: int | None = None) -> int:
    """How many starts have a limit, or this one; by descent limits are located as well as certified."""
    rows = estimate.rows if limit is None else [estimate.rows[limit]]
    return sum(row.certified + row.located for row in rows)


def _how(estimate: BasinEstimate) -> str:
    """How limits are known."""
    if not estimate.located:
        return "certified"
    return "certified or located" if estimate.certified else "located"


def _lower_label(estimate: BasinEstimate) -> str:
    found = [row.label for row in estimate.rows[1:] if row.certified + row.located]
    return found[0] if len(found) == 1 else "other limits"


def _legend(estimate: BasinEstimate, histogram: TimeHistogram) -> list[Artist]:
    minimum, how = _decided(estimate, 0), _how(estimate)
    lower = _decided(estimate) - minimum
    entries = [
        (minimum, f"{estimate.labels[0]} {how}: {minimum:,}", MINIMUM, "-"),
        (lower, f"{_lower_label(estimate)} {how}: {lower:,}", LOWER, "-"),
        (estimate.undecided, f"undecided: {estimate.undecided:,}", UNDECIDED, "--"),
    ]
    handles: list[Artist] = [
        Line2D([], [], color=color, marker=marker, ls=ls, lw=1.2, label=label, **_edge(marker))
        for count, label, (color, marker), ls in entries
        if count
    ]
    if minimum and lower and len(histogram.counts) == 1:
        handles.append(Patch(color=EITHER, label="either limit"))
    if histogram.at_start.any() and histogram.edges.size:
        handles.append(Patch(fc="0.6", ec="white", hatch="////", label=f"at t = 0: {histogram.at_start.sum():,}"))
    median = estimate.time_quantile(0.5)
    if median:
        handles.append(Line2D([], [], color="black", lw=1.2, ls=":", label=f"median time {median:.3g}"))
    if len(estimate.levels) > 1:
        handles.append(Line2D([], [], color="0.6", lw=0.8, ls="--", label=r"critical values $\ell(S)$"))
    return handles


def plot_basins(estimate: BasinEstimate, *, num_trajectories: int = 8) -> Figure:
    """Loss staircases of sample trajectories between the levels, and the distribution of certificate times.

    Markers are where the limit was certified, or where an undecided start was given up. Of limits that were found in the run:
    loss curves of sample trajectories, and the probability of every limit with its interval.

    **Arguments:** `num_trajectories` starts, some of each kind of end and both fast and slow ones, are integrated anew.
    """
    return draw_basins(estimate, sample_trajectories(estimate, num_trajectories))


def draw_basins(estimate: BasinEstimate, samples: SampleTrajectories) -> Figure:
    """The picture of `plot_basins` with these trajectories."""
    if estimate.found is not None:
        return draw_found(estimate, samples)
    figure = Figure(figsize=(10, 4.3), layout="constrained")
    left, right = figure.subplots(1, 2)
    histogram = time_histogram(estimate)
    for axes in (left, right):
        hide_box(axes)
    if samples.ids and np.isfinite(samples.losses).any():
        _draw_staircases(left, estimate, samples)
    else:
        say(left, "no start is finite" if not samples.ids else "nothing to draw")
    if histogram.edges.size:
        _draw_times(right, estimate, histogram)
    elif _decided(estimate):
        say(right, f"all {_decided(estimate):,} {_how(estimate)} starts\nwere {_how(estimate)} at t = 0")
    else:
        ends = [f"{status.label}: {count:,}" for status, count in estimate.statuses.items() if count]
        say(right, "no start is certified\n" + "\n".join(ends))
    minimum = _decided(estimate, 0)
    what = textwrap.fill(f"{estimate.labels[0]}: {minimum:,} of {estimate.num:,}", TITLE)
    interval = f"{100 * estimate.confidence:g} % interval {interval_text(estimate.interval)}"
    right.set_title(f"{what}\n{interval}", fontsize=10)
    figure.legend(handles=_legend(estimate, histogram), loc="outside lower center", ncols=3, fontsize=FONT)
    return figure
