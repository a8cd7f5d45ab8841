"""Tables and picture of spurious minima."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gdflow.binomial import clopper_pearson_upper
from gdflow.experiments.spurious_minima.runs import (
    ALPHA,
    DWELL,
    FIRST,
    FLOW,
    NEAR_ZERO,
    STEP,
    TOLERANCE,
    Results,
    Sweep,
    difference,
)
from gdflow.plotting import COLORS
from gdflow.plotting.style import FONT, hide_box, log_ticks, set_ticks


def class_table(results: Results) -> pa.Table:
    """One row for every run and class of minima, with how many starts end there."""
    rows = []
    for run in results.runs:
        order = sorted(range(len(run.classes)), key=lambda i: run.classes[i].loss)
        for place, i in enumerate(order):
            m, (count, low, high) = run.classes[i], run.share(i)
            rows.append({
                "k": run.k, "method": run.method, "step": run.step, "rtol": run.rtol, "class": place,
                "loss": m.loss, "global": m.is_global, "along": m.along, "against": m.against, "shared directions": m.shared,
                "alike teachers": "+".join(map(str, m.alike)), "index": m.index, "zero eigenvalues": m.zero,
                "smallest eigenvalue": m.smallest, "largest eigenvalue": m.largest,
                "starts": run.num, "ended there": count, "fraction": count / run.num, "low": low, "high": high,
            })  # fmt: skip
    return pa.Table.from_pylist(rows)


def run_table(results: Results) -> pa.Table:
    """One row for every run."""
    flows = {flow.k: flow for flow in results.flows}
    return pa.Table.from_pylist([
        {
            "k": run.k, "method": run.name, "starts": run.num, "spurious": run.count, "fraction": run.fraction,
            "low": run.interval()[0], "high": run.interval()[1], "without a limit": int(np.sum(run.labels < 0)),
            "near zero": int(run.near_zero.sum()), "classes": len(np.unique(run.labels[run.labels >= 0])),
            "other limit than the flow": int(np.sum(run.labels != flows[run.k].labels)),
            "median time": float(np.median(run.times)), "longest time": float(run.times.max()),
            "mean steps": float(run.steps.mean()), "smallest student": float(run.smallest.min()), "seconds": run.seconds,
        }
        for run in results.runs
    ])  # fmt: skip


def draw(results: Results) -> Figure:
    """Fractions against `k`, fractions against the step, losses of the spurious minima."""
    figure = Figure(figsize=(13.5, 4.3), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.15, 1, 1))
    _draw_sizes(left, results)
    _draw_steps(middle, results)
    _draw_losses(right, results)
    for axes in (left, middle, right):
        hide_box(axes)
        axes.grid(color="0.92", lw=0.6)
        axes.set_axisbelow(True)
    return figure


def _draw_sizes(axes: Axes, results: Results) -> None:
    styles = ((results.flows, "o", COLORS[0], -0.1), (results.descents, "s", COLORS[1], 0.1))
    for sweeps, marker, color, shift in styles:
        for sweep in sweeps:
            low, high = sweep.interval()
            x = sweep.k + shift
            if sweep.count:
                axes.plot([x, x], [low, high], color=color, lw=1.4)
                axes.plot(x, sweep.fraction, marker, color=color, ms=5)
            else:  # an upper bound: with the same confidence, on one side
                top = clopper_pearson_upper(int(sweep.unknown.sum()), sweep.num, ALPHA)
                axes.plot(x, top, "v", mec=color, mfc="white", ms=6)
    axes.set_yscale("log")
    tops = [sweep.interval()[1] for sweeps, *_ in styles for sweep in sweeps]
    lows = [sweep.interval()[0] for sweeps, *_ in styles for sweep in sweeps if sweep.count]
    top = min(1.0, 1.3 * max(tops))
    bottom = min(0.6 * min([*lows, *(clopper_pearson_upper(0, s.num, ALPHA) for s in results.flows)]), 0.1 * top)
    axes.set_ylim(bottom, 1.05 * top)
    ticks = log_ticks(bottom, top)
    set_ticks(axes, "y", ticks, [f"{100 * t:g} %" for t in ticks])
    sizes = [flow.k for flow in results.flows]
    axes.set_xticks(sizes)
    axes.set_xlim(min(sizes) - 0.6, max(sizes) + 0.6)
    axes.set(xlabel="students and teachers $k$", ylabel="starts that end at a spurious minimum")
    axes.set_title(f"{_starts(results.flows)} starts for every $k$", fontsize=10)
    handles = [
        Line2D([], [], color=COLORS[0], marker="o", ms=5, lw=1.4, label="gradient flow"),
        Line2D([], [], color=COLORS[1], marker="s", ms=5, lw=1.4, label=f"gradient descent, step {STEP:g}"),
        Line2D([], [], mec="0.3", mfc="white", marker="v", ms=6, lw=0, label="none: upper bound"),
    ]
    axes.legend(handles=handles, fontsize=FONT, loc="lower right")


def _starts(sweeps: Sequence[Sweep]) -> str:
    counts = sorted({sweep.num for sweep in sweeps})
    return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"


def _draw_steps(axes: Axes, results: Results) -> None:
    flow = results.reference
    low, high = flow.interval()
    axes.axhspan(low, high, color=COLORS[0], alpha=0.12, lw=0)
    axes.axhline(flow.fraction, color=COLORS[0], lw=1.4)
    tops, bottoms = [high], [low]
    for run in results.steps:
        own, paired = run.interval(), difference(run, flow).interval
        axes.plot([run.step] * 2, own, color=COLORS[1], lw=1.0)
        ends = [flow.fraction + d for d in paired]
        axes.plot([run.step] * 2, ends, color=COLORS[1], lw=4.5, alpha=0.45, solid_capstyle="butt")
        axes.plot(run.step, run.fraction, "s", color=COLORS[1], ms=5)
        tops += [own[1], flow.fraction + paired[1]]
        bottoms += [own[0], flow.fraction + paired[0]]
    axes.set_xscale("log")
    steps = [run.step for run in results.steps]
    set_ticks(axes, "x", steps, [f"{step:g}" for step in steps])
    axes.set_xlim(min(steps) / 1.4, max(steps) * 1.4)
    room = 0.08 * (max(tops) - min(bottoms))
    axes.set_ylim(max(0.0, min(bottoms) - room), max(tops) + 4.5 * room)  # with room for the legend
    axes.yaxis.set_major_formatter(lambda y, _: f"{round(100 * y, 6):g} %")
    axes.set(xlabel="step of gradient descent", ylabel="starts that end at a spurious minimum")
    axes.set_title(f"$k = {flow.k}$, the same {flow.num:,} starts", fontsize=10)
    handles = [
        Line2D([], [], color=COLORS[0], lw=1.4, label="gradient flow, 95 % interval shaded"),
        Line2D([], [], color=COLORS[1], marker="s", ms=5, lw=1.0, label="gradient descent, 95 % interval"),
        Line2D([], [], color=COLORS[1], lw=4.5, alpha=0.45, label="its difference to the flow, 95 % interval"),
    ]
    axes.legend(handles=handles, fontsize=FONT, loc="upper center")


#: Marks of minima with one, two, three, more students against a teacher.
_AGAINST = (("o", COLORS[1], "1"), ("^", COLORS[2], "2"), ("D", COLORS[3], "3"), ("P", COLORS[4], "more"))


def _draw_losses(axes: Axes, results: Results) -> None:
    used, highest = set(), 0.0
    for flow, descent in results.pairs:
        for i, minimum in enumerate(flow.classes):
            share = (flow.share(i)[0] + descent.share(i)[0]) / (flow.num + descent.num)
            if minimum.is_global or not share:
                continue
            style = min(max(minimum.against, 1), len(_AGAINST)) - 1
            used.add(style)
            highest = max(highest, minimum.loss)
            marker, color, _ = _AGAINST[style]
            axes.scatter(flow.k, minimum.loss, s=18 + 400 * share, marker=marker, color=color, alpha=0.75, lw=0)
    sizes = [flow.k for flow in results.flows if flow.k >= FIRST] or [flow.k for flow in results.flows]
    axes.set_xticks(sizes)
    axes.set_xlim(min(sizes) - 0.6, max(sizes) + 0.6)
    axes.set_ylim(0, 1.3 * highest or 1.0)  # with room for the legend
    axes.set(xlabel="students and teachers $k$", ylabel="loss of the minimum")
    axes.set_title("spurious minima found, size by frequency", fontsize=10)
    handles = [
        Line2D([], [], marker=_AGAINST[i][0], color=_AGAINST[i][1], alpha=0.75, lw=0, ms=6, mew=0, label=_AGAINST[i][2])
        for i in sorted(used)
    ]
    if handles:
        title = "students against\na teacher"
        axes.legend(handles=handles, fontsize=FONT, loc="upper left", title=title, title_fontsize=FONT)


def class_notes(results: Results) -> list[str]:
    """The spurious minima of every `k` in words."""
    notes = []
    for flow, descent in results.pairs:
        bad = sorted((i for i, m in enumerate(flow.classes) if not m.is_global), key=lambda i: flow.classes[i].loss)
        if bad:
            texts = [
                f"{flow.classes[i].loss:.10g} ({flow.classes[i].pattern}; λ_min {flow.classes[i].smallest:.2g}): "
                f"{flow.share(i)[0]} by the flow, {descent.share(i)[0]} by descent"
                for i in bad
            ]
            notes.append(f"k = {flow.k}, of {flow.num} starts: " + "; ".join(texts) + ".")
    return notes


NOTES = (
    f"Flow: Tsit5, rtol {FLOW[0]:g}, atol {FLOW[1]:g}. A start has converged when ‖∇L‖ has stayed below {TOLERANCE:g} for a flow "
    f"time of {DWELL:g}; the critical point nearby is then computed to round-off, with its Hessian.",
    f"Intervals are Clopper–Pearson's at {100 * (1 - ALPHA):g} %. Starts without a limit, and those with a student shorter than "
    f"{NEAR_ZERO:g} on the way, widen them on both sides. They take labels to be right.",
    "A student is *along* a teacher if its largest component, by size, is positive, *against* it if negative. *Teachers 7+1*: "
    "seven that the students' components do not tell apart, and one.",
)
