"""The picture of a sweep: shares of one limit against one setting, curves and panels for others."""

import itertools
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gdflow.basins.sweeps import Sweep, plain
from gdflow.plotting.style import COLORS, FONT, hide_box

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
#: Panels in a row.
_COLUMNS = 4
#: So many values are all labelled.
_FEW = 7


def plot_sweep(
    sweep: Sweep, x: str | None = None, *, color: str | None = None, panel: str | None = None, limit: int = 0
) -> Figure:
    """Shares of starts with a limit, with their exact intervals, against one of the axes.

    **Arguments:** `x`, `color`, `panel`: names of axes, by default those with most numbers first; all values of other axes are
    drawn as curves of the same kind. `limit`: which, 0 the lowest.

    **Raises:** `ValueError` for names that are no axes, or are given twice.
    """
    names = _chosen(sweep, x, color, panel)
    x, color, panel = names
    panels = sweep.axes[panel] if panel else (None,)
    width = min(len(panels), _COLUMNS)
    height = -(-len(panels) // width)
    figure = Figure(figsize=(1.4 + 3.1 * width, 0.9 + 2.9 * height), layout="constrained")
    all_axes = figure.subplots(height, width, squeeze=False, sharey=True, sharex=True)
    for axes, value in itertools.zip_longest(all_axes.flat, panels, fillvalue=_NOTHING):
        if value is _NOTHING:
            axes.set_visible(False)
            continue
        _draw(axes, sweep, names, value, limit)
        if panel:
            axes.set_title(f"{panel} = {plain(value)}", fontsize=FONT)
    for axes in all_axes[:, 0]:
        axes.set_ylabel("share of starts")
    what = {row.label for estimate in sweep.estimates for row in estimate.rows[limit : limit + 1]}
    percent = 100 * sweep.estimates[0].confidence
    named = next(iter(what)) if len(what) == 1 else f"limit {limit + 1}, from the lowest"
    figure.suptitle(f"{named}; {percent:g} % intervals", fontsize=FONT + 1)
    handles, labels = all_axes[0, 0].get_legend_handles_labels()
    if color and handles:
        figure.legend(
            handles, labels, title=color, fontsize=FONT, title_fontsize=FONT, loc="outside right upper", frameon=False
        )
    return figure


_NOTHING: Any = object()


def _chosen(sweep: Sweep, *given: str | None) -> tuple[str, str | None, str | None]:
    for name in given:
        if name is not None and name not in sweep.axes:
            raise ValueError(f"{name!r} is none of the axes {', '.join(sweep.axes)}")
    used = [name for name in given if name is not None]
    if len(set(used)) < len(used):
        raise ValueError(f"axes are given twice: {', '.join(used)}")
    # Numbers first, of those the axis with most of them.
    rest = sorted(
        (name for name in sweep.axes if name not in used),
        key=lambda name: (not _numbers(sweep.axes[name]) or len(sweep.axes[name]) < 2, -len(sweep.axes[name])),
    )
    x, color, panel = (name if name is not None else (rest.pop(0) if rest else None) for name in given)
    assert x is not None
    return x, color, panel


def _draw(axes: Axes, sweep: Sweep, names: tuple[str, str | None, str | None], value: Any, limit: int) -> None:
    x, color, panel = names
    values = sweep.axes[x]
    numbers = _numbers(values)
    places = [float(v) for v in (values if numbers else range(len(values)))]
    others = [name for name in sweep.axes if name not in names]
    curves = list(itertools.product(sweep.axes[color] if color else (None,), *(sweep.axes[name] for name in others)))
    apart = 0.012 * (max(places) - min(places) or 1.0)
    for k, (own, *rest) in enumerate(curves):
        fixed = (
            dict(zip(others, rest, strict=True)) | ({color: own} if color else {}) | ({panel: value} if panel else {})
        )
        at, shares, low, high = [], [], [], []
        for point, estimate in zip(sweep.points, sweep.estimates, strict=True):
            if any(point[name] != wanted for name, wanted in fixed.items()) or len(estimate.rows) <= limit:
                continue
            row = estimate.rows[limit]
            at.append(places[values.index(point[x])])
            known = estimate.undecided < estimate.num  # else there is an interval, and no share
            shares.append((row.certified + row.located) / estimate.num if known else np.nan)
            low.append(row.interval[0])
            high.append(row.interval[1])
        n = sweep.axes[color].index(own) if color else 0
        shade = COLORS[n % len(COLORS)]
        shifted = np.array(at) + apart * (k - (len(curves) - 1) / 2) * (not _log(places))
        label = (
            None
            if color is None or any(rest[i] != sweep.axes[name][0] for i, name in enumerate(others))
            else plain(own)
        )
        line = "-" if numbers else ""  # there is nothing between categories
        axes.plot(shifted, shares, line, marker=_MARKERS[n % len(_MARKERS)], ms=4, lw=1.2, label=label, color=shade)
        axes.vlines(shifted, low, high, lw=1.2, alpha=0.7, color=shade)
    if numbers and _log(places):
        axes.set_xscale("log")
    if not numbers or len(places) <= _FEW:
        axes.set_xticks(places, [str(plain(v)) for v in values])
        axes.minorticks_off()
    axes.set_xlabel(x)
    axes.set_ylim(-0.03, 1.03)
    hide_box(axes)


def _numbers(values: tuple[Any, ...]) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def _log(places: list[float]) -> bool:
    return min(places) > 0 and max(places) >= 20 * min(places)
