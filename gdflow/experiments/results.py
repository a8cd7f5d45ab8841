"""What an experiment hands back: a picture, the numbers, and every claim of the source with a verdict decided from them."""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.csv
import rich.box
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.console import Group, RenderableType
from rich.markup import escape

from gdflow.plotting import COLORS
from gdflow.tables import Printable, column_table


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement of the source and what was measured of it.

    - `statement`: what the source says; `criterion`: what was taken to decide it.
    - `confirmed`: whether the criterion is met, `None` where the runs ended too early to tell.
    - `measured`: the numbers that decided it.
    - `ours`: whether it is a check or an addition of ours and not in the source.
    """

    statement: str
    criterion: str
    confirmed: bool | None
    measured: str
    ours: bool = False

    @property
    def text(self) -> str:
        """The statement, marked if it is not the source's."""
        return f"(not the paper's) {self.statement}" if self.ours else self.statement

    @property
    def verdict(self) -> str:
        """`confirmed`, `NOT confirmed` or `not decided`."""
        return {True: "confirmed", False: "NOT confirmed", None: "not decided"}[self.confirmed]


def every(verdicts: Iterable[bool | None]) -> bool | None:
    """Whether all hold: `False` if one does not, else `None` if one is not decided."""
    verdicts = list(verdicts)
    return False if False in verdicts else None if None in verdicts else True


@dataclasses.dataclass(frozen=True)
class Curve:
    """A quantity along the flow by two solvers: `first` at the times `ts[:len(first)]`, `second` at `ts[:len(second)]`.

    The first may end earlier, where its budget of steps does; `values` are those of the first as far as it goes and of the
    second from there on.
    """

    label: str
    ts: Float[np.ndarray, " T"]
    first: Float[np.ndarray, " n"]
    second: Float[np.ndarray, " k"]

    @property
    def values(self) -> Float[np.ndarray, " k"]:
        """The first solver's as far as it goes, then the second's."""
        return np.concatenate([self.first, self.second[len(self.first) :]])

    @property
    def times(self) -> Float[np.ndarray, " k"]:
        """The times of `values`."""
        return self.ts[: max(len(self.first), len(self.second))]

    @property
    def final(self) -> float:
        """The last value."""
        return float(self.values[-1])

    def at(self, t: float) -> float:
        """The value at the last saved time up to `t`."""
        return float(self.values[np.searchsorted(self.times, t, side="right") - 1])

    def time_to(self, fraction: float) -> float:
        """The first saved time from which on the values stay within a fraction of the first one; infinite if none."""
        above = np.flatnonzero(self.values > fraction * self.values[0])
        return float(self.times[above[-1] + 1]) if above[-1] + 1 < len(self.values) else np.inf

    def late_rate(self, *, floor: float = 1e-6, until: float = np.inf) -> float:
        """The exponential rate at the end: minus the slope of the logarithm, by least squares over the second half of the
        time before the values fall below `floor` times the first (round-off, tolerances) or `until` is reached; NaN if that
        half has fewer than four saved times.
        """
        usable = (self.times <= until) & (np.minimum.accumulate(self.values) > floor * self.values[0])
        end = self.times[usable][-1]
        window = usable & (self.times >= end / 2)
        if window.sum() < 4:
            return np.nan
        return float(-np.polyfit(self.times[window], np.log(self.values[window]), 1)[0])


@dataclasses.dataclass(frozen=True)
class Panel:
    """One panel of a picture: `limits` are values that curves tend to, drawn dotted in the curve's colour (NaN: none)."""

    title: str
    curves: Sequence[Curve]
    limits: Sequence[float] = ()


def draw_panels(
    panels: Sequence[Panel],
    ylabel: str,
    *,
    solvers: tuple[str, str],
    xscale: str = "linear",
    yscale: str = "log",
    floor: float = 0.0,
    noise: float = 0.0,
) -> Figure:
    """Panels side by side: the first solver solid, the second dashed, one colour a curve.

    **Arguments:** `solvers`: their names; `floor`: values below it are left out; `noise`: the second solver's curves end where
    they fall to this fraction of their first value.
    """
    figure = Figure(figsize=(5.6 * len(panels), 4.2), layout="constrained")
    for axes, panel in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        _draw_panel(axes, panel, solvers, floor, noise, positive=xscale == "log")
        axes.set(xlabel="flow time $t$", ylabel=ylabel, xscale=xscale, yscale=yscale)
        axes.set_title(panel.title, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.92", lw=0.6)
    return figure


def _draw_panel(
    axes: Axes, panel: Panel, solvers: tuple[str, str], floor: float, noise: float, *, positive: bool
) -> None:
    """The curves of one panel; with `positive`, from the first positive time on."""
    limits = panel.limits or [np.nan] * len(panel.curves)
    for k, (curve, limit) in enumerate(zip(panel.curves, limits, strict=True)):
        color = COLORS[k % len(COLORS)]
        above = np.minimum.accumulate(curve.second) > noise * curve.second[0]
        for values, line, width in ((np.where(above, curve.second, np.nan), "--", 1.1), (curve.first, "-", 1.8)):
            ts = curve.ts[: len(values)]
            shown = np.where((values > floor) & ((ts > 0) | (not positive)), values, np.nan)
            axes.plot(ts, shown, line, color=color, lw=width, label=curve.label if line == "-" else None)
        if np.isfinite(limit):
            axes.axhline(limit, color=color, lw=0.9, ls=":", zorder=0)
    handles, labels = axes.get_legend_handles_labels()
    styles = [("-", 1.8, solvers[0]), ("--", 1.1, solvers[1])]
    if np.isfinite(limits).any():
        styles.append((":", 0.9, "predicted limit"))
    handles += [Line2D([], [], color="0.4", ls=line, lw=width) for line, width, _ in styles]
    axes.legend(handles, labels + [name for *_, name in styles], fontsize=8)


@dataclasses.dataclass(frozen=True, repr=False)
class FigureResult(Printable):
    """One figure of a paper, recomputed.

    - `name`: of its files; `title`; `paper`: what the source shows there.
    - `claims`: each with its verdict.
    - `table`: the curves, one row a time, solver and run; `runs`: one row a run.
    - `figure`: the picture (show it in a notebook as `result.figure`); `notes`: choices and corrections.
    """

    name: str
    title: str
    paper: str
    claims: tuple[Claim, ...]
    table: pa.Table
    runs: pa.Table
    figure: Figure
    notes: tuple[str, ...] = ()

    def __rich__(self) -> RenderableType:
        table = column_table(f"{self.name}: {self.title}", "claim", "verdict", "measured")
        table.box = rich.box.SIMPLE
        table.columns[2].justify = "left"
        table.columns[1].no_wrap = True
        for claim in self.claims:
            color = {True: "green", False: "red", None: "yellow"}[claim.confirmed]
            table.add_row(escape(claim.text), f"[{color}]{claim.verdict}[/]", escape(claim.measured))
        return Group(table)

    @property
    def markdown(self) -> str:
        """The text of the figure: the picture, what the source claims, verdicts with criteria and numbers, runs, notes."""
        lines = [f"# {self.title}", "", f"![{self.title}]({self.name}.png)", "", self.paper, "", "## Claims", ""]
        for claim in self.claims:
            lines += [
                f"- **{claim.verdict}**: {claim.text}",
                f"  - criterion: {claim.criterion}",
                f"  - measured: {claim.measured}",
            ]
        lines += ["", "## Runs", "", *markdown_table(self.runs)]
        if self.notes:
            lines += ["", "## Notes", "", *(f"- {note}" for note in self.notes)]
        return "\n".join(lines) + "\n"

    def save(self, folder: str | os.PathLike) -> list[pathlib.Path]:
        """Writes picture, numbers, runs and text into a folder; the names of `file_names`."""
        picture, numbers, runs, text = (pathlib.Path(folder) / name for name in file_names(self.name))
        pyarrow.csv.write_csv(self.table, numbers)
        pyarrow.csv.write_csv(self.runs, runs)
        text.write_text(self.markdown, encoding="utf-8")
        self.figure.savefig(picture, dpi=200)  # last: whatever happens to it, the numbers are kept
        return [picture, numbers, runs, text]


def file_names(name: str) -> tuple[str, str, str, str]:
    """Picture, numbers, runs and text of the figure of this name."""
    return f"{name}.png", f"{name}.csv", f"{name}-runs.csv", f"{name}.md"


def number_text(value: object) -> str:
    """A value for people: three significant digits, a dash for what is not there."""
    if isinstance(value, float):
        return "–" if np.isnan(value) else "not reached" if np.isinf(value) else f"{value:.3g}"
    return str(value)


def markdown_table(table: pa.Table) -> list[str]:
    """The lines of a Markdown table."""
    rows = [[number_text(value) for value in row.values()] for row in table.to_pylist()]
    return ["| " + " | ".join(row) + " |" for row in (table.column_names, ["---"] * table.num_columns, *rows)]


def _count(claims: Sequence[Claim]) -> str:
    verdicts = [claim.verdict for claim in claims]
    return ", ".join(
        f"{verdicts.count(verdict)} {verdict}" for verdict in ("confirmed", "NOT confirmed", "not decided")
    )


def summary_markdown(title: str, results: Sequence[FigureResult]) -> str:
    """One text for several figures: how many claims were confirmed, every verdict, then the pictures."""
    claims = [claim for result in results for claim in result.claims]
    printed, ours = ([claim for claim in claims if claim.ours == whose] for whose in (False, True))
    lines = [f"# {title}", "", f"Of {len(printed)} claims of the paper {_count(printed)}."]
    lines += [f"Of {len(ours)} that are not the paper's {_count(ours)}.", ""]
    for result in results:
        lines += [f"## [{result.title}]({result.name}.md)", "", f"![{result.title}]({result.name}.png)", ""]
        lines += [f"- **{claim.verdict}**: {claim.text} ({claim.measured})" for claim in result.claims] + [""]
    return "\n".join(lines)
