"""What an experiment hands back: a picture, the numbers, and every claim of the source with a verdict decided from them."""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Sequence
from importlib.metadata import version

import numpy as np
import pyarrow as pa
import pyarrow.csv
import rich.box
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from rich.console import Group, RenderableType
from rich.markup import escape

from gdflow.plotting import COLORS
from gdflow.plotting.style import hide_box, set_range
from gdflow.tables import Printable, column_table

#: What may be said of a claim.
VERDICTS = ("confirmed", "NOT confirmed", "not decidable from the print", "not decided")


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement of the source and what was measured of it.

    - `statement`: what the source says; `criterion`: what was taken to decide it.
    - `confirmed`: whether the criterion is met, `None` where that could not be told.
    - `measured`: the numbers that decided it, in a line; `details`: all of them.
    - `reason`: why it is not decided, where it is not; `unprinted`: whether it hangs on what the source does not state.
    - `ours`: whether it is a check or an addition of ours and not in the source.
    """

    statement: str
    criterion: str
    confirmed: bool | None
    measured: str
    reason: str = ""
    ours: bool = False
    details: tuple[str, ...] = ()
    unprinted: bool = False

    @property
    def text(self) -> str:
        """The statement, marked if it is not the source's."""
        return f"(not the paper's) {self.statement}" if self.ours else self.statement

    @property
    def verdict(self) -> str:
        """One of `VERDICTS`."""
        if self.unprinted:
            return "not decidable from the print"
        return {True: "confirmed", False: "NOT confirmed", None: "not decided"}[self.confirmed]


def origin(sizes: str, seed: int) -> dict[str, object]:
    """What the files of a result say of where it comes from."""
    return dict(sizes=sizes, seed=seed, version=version("gdflow"))


def origin_text(where: dict[str, object], more: str = "") -> str:
    """The same for the foot of a picture."""
    return f"{where['sizes']} sizes, {more}seed {where['seed']}, gdflow {where['version']}"


def every(verdicts: Iterable[bool | None]) -> bool | None:
    """Whether all hold: `False` if one does not, else `None` if one is not decided."""
    verdicts = list(verdicts)
    return False if False in verdicts else None if None in verdicts else True


@dataclasses.dataclass(frozen=True)
class Bundle:
    """One quantity along several draws of one flow: `values[i]` at the times `ts`.

    Zero where a draw has arrived, NaN after the end of a draw that has not. `color`: the same in all panels.
    """

    label: str
    color: int
    ts: Float[np.ndarray, " T"]
    values: Float[np.ndarray, "draws T"]

    @property
    def end(self) -> float:
        """Until when all draws are known."""
        known = np.isfinite(self.values).all(axis=0)
        return float(self.ts[known][-1])

    @property
    def unfinished(self) -> bool:
        """Whether a draw ended before it had arrived."""
        return self.end < self.ts[-1] or not bool(np.all(self.values[:, -1] == 0))

    @property
    def smallest(self) -> float:
        """The largest of the last values before the draws arrive: below it the curves are not known."""
        last = [row[row > 0][-1] for row in self.values if row[-1] == 0 and np.any(row > 0)]
        return max(last, default=0.0)


@dataclasses.dataclass(frozen=True)
class Panel:
    """One panel of a picture."""

    title: str
    bundles: Sequence[Bundle]


#: Lines by colour, so that curves that coincide are seen.
_STYLES = ("-", "--", "-.", ":")
#: Of fewer draws no band is drawn.
_FEW = 5
#: The share of the draws between the edges of a band.
_BAND = (10, 90)


def draw_panels(panels: Sequence[Panel], ylabel: str, foot: str = "") -> Figure:
    """Panels side by side, of equal ranges, both axes logarithmic: of every bundle the median and the band of 80 % of the draws.

    Curves go down to the value from which on one of the draws is no longer known. An open circle marks where runs end before they
    have arrived.

    **Arguments:** `foot`: a line below, such as sizes, seed and version.
    """
    bundles = [bundle for panel in panels for bundle in panel.bundles]
    floor = max(bundle.smallest for bundle in bundles) or 1e-300
    figure = Figure(figsize=(5.4 * len(panels), 4.3), layout=ConstrainedLayoutEngine(wspace=0.05))
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True, sharex=True)[0]
    labels = [[bundle.label for bundle in panel.bundles] for panel in panels]
    for place, (axes, panel) in enumerate(zip(grid, panels, strict=True)):
        marked = [_draw_bundle(axes, bundle, floor) for bundle in panel.bundles]
        axes.set_title(panel.title, fontsize=10)
        axes.set_title(f"({'abcdef'[place]})", loc="left", fontsize=10, fontweight="bold")
        hide_box(axes)
        axes.grid(color="0.92", lw=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel("flow time $t$")
        _add_legend(axes, panel.bundles if place == 0 or labels[place] != labels[0] else (), any(marked))
    first, last = _shown_times(bundles, floor)
    top = 1.6 * max(float(np.max(bundle.values[:, bundle.ts <= bundle.end])) for bundle in bundles)
    for axes in grid:
        set_range(axes, "x", first, last, log=True)
        set_range(axes, "y", floor, top, log=True)
    grid[0].set_ylabel(ylabel)
    if foot:
        figure.supxlabel(foot, fontsize=7, color="0.4", x=0.99, ha="right")
    return figure


def _draw_bundle(axes: Axes, bundle: Bundle, floor: float) -> bool:
    """Draws median and band; whether the end is marked."""
    color = COLORS[bundle.color % len(COLORS)]
    shown = (bundle.ts > 0) & (bundle.ts <= bundle.end)
    ts, values = bundle.ts[shown], np.maximum(bundle.values[:, shown], 0.1 * floor)
    low, high = np.percentile(values, _BAND, axis=0)
    if len(values) >= _FEW:
        axes.fill_between(ts, low, high, color=color, alpha=0.18, lw=0)
    median = np.median(values, axis=0)
    below = np.flatnonzero(median < floor)
    stop = below[0] + 1 if below.size else len(ts)  # it leaves the panel through its lower edge
    axes.plot(ts[:stop], median[:stop], _STYLES[bundle.color % len(_STYLES)], color=color, lw=1.6)
    marked = bundle.unfinished and not below.size
    if marked:
        axes.plot(ts[-1], median[-1], "o", color=color, mfc="white", ms=5, clip_on=False, zorder=5)
    return marked


def _add_legend(axes: Axes, bundles: Sequence[Bundle], marked: bool) -> None:
    handles = [
        Line2D([], [], color=COLORS[b.color % len(COLORS)], ls=_STYLES[b.color % len(_STYLES)], lw=1.6, label=b.label)
        for b in bundles
    ]
    if marked:
        handles.append(Line2D([], [], color="0.4", ls="", marker="o", mfc="white", ms=5, label="runs end here"))
    if handles:
        axes.legend(handles=handles, fontsize=8, loc="lower left", framealpha=0.9, edgecolor="none")


def _shown_times(bundles: Sequence[Bundle], floor: float) -> tuple[float, float]:
    """From before the first curve moves to where the last one leaves the panel or ends."""
    starts, ends = [], []
    for bundle in bundles:
        known = bundle.ts <= bundle.end
        ts, median = bundle.ts[known], np.median(bundle.values[:, known], axis=0)
        moved = np.flatnonzero(abs(median / median[0] - 1) > 0.05)
        starts.append(ts[max(moved[0], 1)] if moved.size else ts[1])
        above = np.flatnonzero(np.percentile(bundle.values[:, known], _BAND[1], axis=0) >= floor)
        ends.append(ts[min(above[-1] + 1, len(ts) - 1)])
    return float(min(starts)), float(max(ends))


@dataclasses.dataclass(frozen=True, repr=False)
class FigureResult(Printable):
    """One figure of a paper, recomputed.

    - `name`: of its files; `title`; `paper`: what the source shows there.
    - `claims`: each with its verdict.
    - `table`: the curves, one row a time, solver and run; `runs`: one row a run.
    - `figure`: the picture (show it in a notebook as `result.figure`); `notes`: choices; `errata`: what is misprinted.
    """

    name: str
    title: str
    paper: str
    claims: tuple[Claim, ...]
    table: pa.Table
    runs: pa.Table
    figure: Figure
    notes: tuple[str, ...] = ()
    errata: tuple[str, ...] = ()

    def __rich__(self) -> RenderableType:
        table = column_table(f"{self.name}: {self.title}", "claim", "verdict", "measured")
        table.box = rich.box.SIMPLE
        table.columns[2].justify = "left"
        table.columns[1].max_width = len(VERDICTS[1])
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
                *(f"    - {detail}" for detail in claim.details),
                *([f"  - why not decided: {claim.reason}"] if claim.reason else []),
            ]
        lines += ["", "## Runs", "", *markdown_table(self.runs)]
        if self.errata:
            lines += ["", "## Errata", "", *(f"- {erratum}" for erratum in self.errata)]
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
        f"{verdicts.count(verdict)} {verdict}" for verdict in VERDICTS if verdict in verdicts or verdict == VERDICTS[0]
    )


#: What the words in a summary mean.
KEY = (
    "*confirmed* and *NOT confirmed*: by the criterion in the figure's own file; *not decided*: the runs do not tell, and why; "
    "*not decidable from the print*: it holds for some values of what the print leaves open, and for others not. In parentheses "
    "what was measured: ratios of times, the second over the first, each with *yes* where it shows the claim, *no* where it "
    "shows the contrary, *open* where the draws do not tell."
)


def summary_markdown(title: str, results: Sequence[FigureResult]) -> str:
    """One text for several figures: how many claims were confirmed, every verdict, then the pictures."""
    claims = [claim for result in results for claim in result.claims]
    printed, ours = ([claim for claim in claims if claim.ours == whose] for whose in (False, True))
    lines = [f"# {title}", "", f"Of {len(printed)} claims of the paper {_count(printed)}."]
    lines += [f"Of {len(ours)} that are not the paper's {_count(ours)}.", ""]
    lines += [KEY, ""]
    errata = [erratum for result in results for erratum in result.errata]
    if errata:
        lines += ["Misprints, corrected:", "", *(f"- {erratum}" for erratum in dict.fromkeys(errata)), ""]
    for result in results:
        lines += [f"## [{result.title}]({result.name}.md)", "", f"![{result.title}]({result.name}.png)", ""]
        lines += [_line(claim) for claim in result.claims] + [""]
    return "\n".join(lines)


def _line(claim: Claim) -> str:
    reason = f"; reason: {claim.reason}" if claim.reason else ""
    return f"- **{claim.verdict}**: {claim.text} ({claim.measured}{reason})"
