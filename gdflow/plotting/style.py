"""What the pictures share: colours, axes whose labels neither overlap nor vanish, levels, messages in empty panels."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import scipy.optimize
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, ScalarFormatter

from gdflow.levels import Level

#: Okabe and Ito's colours, without yellow, which prints badly on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")

#: Where what is drawn spans more than this factor, its axis is logarithmic …
WIDE = 10.0
#: … and the axis of time where the steps of the loss span more than this one.
WIDE_STEPS = 5.0

#: The size of labels inside panels, and the room that a line of them takes, in points.
FONT, LINE = 8, 10.5

#: A step of the loss takes it below this part of where it starts; it has moved when it is below that part.
_STEP, _MOVED = 0.5, 0.9
#: Of more levels than this only the nested ones and the lowest two have labels.
MAX_LABELS = 8
#: More decades than this are not all labelled.
_MOST_DECADES = 7
#: Runs of so many consecutive numbers in a subset are abbreviated.
_LONG_RUN = 4


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between `low` and `high` for a logarithmic axis: at most ten, three at least if it spans a decade."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    few = math.log10(high / low) < 2
    stride = 1 if few else math.ceil((last - first) / _MOST_DECADES)
    exponents = range(first - first % stride, last + 1, stride)
    ticks = [m * 10.0**e for e in exponents for m in ((1, 2, 5) if few else (1,))]
    return [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Labels of `log_ticks`: plain numbers where all are short, else powers of ten."""
    if all(1e-3 <= tick < 1e5 for tick in ticks):
        return [f"{tick:g}" for tick in ticks]

    def power(tick):
        exponent = math.floor(math.log10(tick) + 1e-9)
        mantissa = round(tick / 10.0**exponent)
        return f"$10^{{{exponent}}}$" if mantissa == 1 else rf"${mantissa}\cdot10^{{{exponent}}}$"

    return [power(tick) for tick in ticks]


def set_ticks(axes: Axes, which: str, ticks: Sequence[float], labels: Sequence[str]) -> None:
    """These ticks and labels on the axis `"x"` or `"y"`, and no others."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter(labels))
    axis.set_minor_locator(FixedLocator([]))


def set_range(axes: Axes, which: str, low: float, high: float, *, log: bool | None = None) -> None:
    """Limits, scale and ticks of the axis `"x"` or `"y"`; logarithmic where the limits are far apart, or as told.

    Matplotlib's own ticks of logarithmic axes leave short ones without labels and let them overprint on middling ones.
    """
    if log is None:
        log = low > 0 and high > WIDE * low
    axes.set(**{f"{which}scale": "log" if log else "linear", f"{which}lim": (low, high)})
    if log:
        ticks = log_ticks(low, high)
        set_ticks(axes, which, ticks, tick_labels(ticks))
    else:
        axis = axes.xaxis if which == "x" else axes.yaxis
        axis.set_major_locator(MaxNLocator(5))
        axis.set_major_formatter(ScalarFormatter(useOffset=False))


def set_counts(axes: Axes) -> None:
    """A vertical axis of counts: whole numbers from zero on."""
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_formatter("{x:,.0f}")


def step_times(ts: Float[np.ndarray, " T"], losses: Float[np.ndarray, " T"], values: Iterable[float]) -> list[float]:
    """The first saved times at which a falling loss is below given values; not of those that it starts below or never reaches."""
    falls = [int(np.argmax(losses < value)) for value in values]
    return [float(ts[k]) for k in falls if k > 0]


def set_time(
    axes: Axes, ts: Float[np.ndarray, " T"], losses: Float[np.ndarray, "n T"], values: Iterable[float]
) -> None:
    """The axis of time for curves of losses: logarithmic if the steps below these values are far apart.

    A value that a loss starts not far above is no step of it.
    """
    steps = [t for loss in losses for t in step_times(ts, loss, [v for v in values if v < _STEP * loss[0]])]
    if steps and max(steps) > WIDE_STEPS * min(steps):
        # From before the first of them moves.
        moves = [t for loss in losses for t in step_times(ts, loss, [_MOVED * loss[0]])]
        set_range(axes, "x", 0.2 * min(moves), float(ts[-1]), log=True)
    else:
        set_range(axes, "x", 0.0, float(ts[-1]), log=False)
    axes.set_xlabel("flow time $t$")


def spread(places: Float[np.ndarray, " n"], gap: float) -> Float[np.ndarray, " n"]:
    """Ascending places between 0 and 1, moved as little as possible so that neighbours are `gap` apart.

    They have room if there are at most `1 + 1/gap` of them.
    """
    steps = gap * np.arange(len(places))
    # Least squares under x_{i+1} − x_i ≥ gap is isotonic regression of what is left without the gaps.
    free = scipy.optimize.isotonic_regression(places - steps).x
    return np.clip(free, 0.0, max(1.0 - steps[-1], 0.0)) + steps


def label_gap(axes: Axes) -> float:
    """The least distance of two labels, as a part of the height of the axes."""
    height = axes.get_position().height * axes.figure.bbox.height / axes.figure.dpi * 72
    return float(LINE / height)


def axes_heights(axes: Axes, values: Sequence[float]) -> Float[np.ndarray, " n"]:
    """Where values lie on the vertical axis, 0 at the bottom and 1 at the top."""
    points = axes.transData.transform([(axes.get_xlim()[1], value) for value in values])
    return axes.transAxes.inverted().transform(points)[:, 1]


def subset_label(subset: Sequence[int]) -> str:
    r"""A subset in mathtext, long runs abbreviated: `\{1,…,8,10\}`."""
    runs: list[list[int]] = []
    for i in subset:
        if runs and i == runs[-1][-1] + 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    parts = [rf"{run[0]},\ldots,{run[-1]}" if len(run) >= _LONG_RUN else ",".join(map(str, run)) for run in runs]
    return r"\{" + ",".join(parts) + r"\}" if parts else r"\emptyset"


def _nested_subset(level: Level) -> tuple[int, ...] | None:
    """The one of a level's subsets that is `{1,…,r}`, if any is."""
    return next((subset for subset in level.subsets if subset == tuple(range(1, len(subset) + 1))), None)


def draw_levels(axes: Axes, levels: Iterable[Level]) -> None:
    """Dashed lines at the critical values inside the axes, whose limits are set, with their subsets at the right.

    Where labels would overlap they are moved apart. Of many levels those of the best fits, `{1,…,r}`, have labels,
    and the lowest two.
    """
    low, high = axes.get_ylim()
    shown = [level for level in levels if low < level.value < high]
    for level in shown:
        axes.axhline(level.value, color="0.6", lw=0.8, ls="--", zorder=0)
    gap = label_gap(axes)
    labelled = (
        shown
        if len(shown) <= MAX_LABELS
        else [level for k, level in enumerate(shown) if k < 2 or _nested_subset(level) is not None]
    )
    labelled = labelled[: int(1 / gap) + 1]
    if not labelled:
        return
    places = spread(axes_heights(axes, [level.value for level in labelled]), gap)
    for level, place in zip(labelled, places, strict=True):
        nested = _nested_subset(level)
        subset = level.subsets[0] if nested is None else nested
        more = " …" if level.num_subsets > 1 else ""
        axes.annotate(
            rf"$\ell({subset_label(subset)})${more}",
            (1.0, level.value),
            (1.04, place),
            xycoords=("axes fraction", "data"),
            textcoords="axes fraction",
            va="center",
            fontsize=FONT,
            arrowprops=dict(arrowstyle="-", color="0.6", lw=0.6, shrinkA=0, shrinkB=0, relpos=(0, 0.5)),
        )


def say(axes: Axes, message: str) -> None:
    """An empty panel with a message instead of axes."""
    axes.text(0.5, 0.5, message, transform=axes.transAxes, ha="center", va="center", fontsize=10, color="0.3")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def hide_box(axes: Axes) -> None:
    """No lines at the top and the right."""
    axes.spines[["top", "right"]].set_visible(False)
