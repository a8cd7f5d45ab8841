"""What the figures have in common: which cases they show and how often, and how a result is put together."""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from gdflow.experiments.results import Bundle, Claim, FigureResult, Panel, draw_panels, origin, origin_text
from gdflow.experiments.riemannian.claims import LATER, RANKED
from gdflow.experiments.riemannian.runs import (
    CONVERGED,
    DEVIATIONS,
    LAWS,
    RTOL,
    Case,
    Group,
    Run,
    Runs,
    Start,
    saved_times,
)

#: A quantity of a run at its saved times.
Measure = Callable[[Run], Float[np.ndarray, " T"]]

DEPTHS = (2, 5, 10, 20)
#: Colours of depths and of dimensions, the same in all figures.
_COLORS = {2: 0, 5: 1, 10: 2, 20: 3}
#: The laws of starts, the first of which is drawn: the teacher's.
STARTS: tuple[Start, ...] = tuple(LAWS)
#: Spans: whatever it takes, and for the largest networks.
LONG, LARGE = 1e6, 1e4

WIDTHS_CEILING = (
    "Widths by the printed ceiling, d_j = ⌈r + (d − r)(j − 1)/(N − 1)⌉ (section B.1 rounds to the nearest instead)."
)
BALANCED = (
    "Balanced starts: V_0, which the print leaves undefined, is a Haar orthogonal matrix like the other V_j; U_j are "
    "the first d_1 columns of V_j. The flow from them is that of widths (d, r, …, r, d), in which it is followed."
)
GAUSSIAN = (
    "Non-balanced starts: the print gives no standard deviation. Claims are decided for "
    + ", ".join(f"{DEVIATIONS[law]} ({law})" for law in STARTS)
    + f"; the picture shows {STARTS[0]}, the teacher's."
)
SOLVING = (
    f"Stabilised Runge–Kutta–Chebyshev steps at a relative tolerance of {RTOL:g} in place of RK4 with an unprinted "
    "step; times to a relative error of 0.01 are within 0.2 % of those at 1e-7. "
    "Curves are medians over draws of data, teacher and start, bands hold 80 % of the draws. A run ends when "
    f"its limit is certified and its error is {CONVERGED:g} of the first, or at the end of its span."
)

Task = Literal["autoencoder", "supervised"]


def sizes(fast: bool, task: Task) -> tuple[tuple[int, int], tuple[int, int]]:
    """`(d, r)` of the left and the right panel of Figures 1 to 4 and 8, 9; smaller on the right with `fast`."""
    if task == "supervised":
        return (20, 2), (40, 4) if fast else (200, 20)
    return (20, 1), (40, 2) if fast else (200, 10)


def panel_cases(runs: Runs, task: Task, panel: int, start: Start) -> list[tuple[Case, int]]:
    """The cases of one panel of Figures 1 to 4 and 8, 9, each with how many draws of it.

    Fast, only balanced starts on the left have networks deeper than 5: others take long to compile.
    """
    d, rank = sizes(runs.fast, task)[panel]
    if runs.fast:
        depths = (2, 5, 20) if start == "balanced" and not panel else (2, 5)
        draws = 60 if start == "balanced" or not panel else 24
        return [(Case(task, d, rank, N, start, LONG), draws) for N in depths]
    plan = [(N, *(_large(task, N, start) if panel else _small(task, N, start))) for N in DEPTHS]
    return [(Case(task, d, rank, N, start, span), draws) for N, span, draws in plan if draws]


def _small(task: Task, depth: int, start: Start) -> tuple[float, int]:
    """Span and number of draws with d = 20, where most runs take less than a second."""
    if task == "autoencoder" and start in ("balanced", "Glorot") and depth != 10:
        many = 800 if depth <= 5 else 400  # whose times are nearly the same
    elif start == "balanced":
        many = 200
    elif depth == 20 and start == STARTS[0]:  # from fan-out deep ones take ten times as long
        many = 40 if task == "supervised" else 20
    else:
        many = 120
    return (LONG if start == "balanced" else LARGE), many


def _large(task: Task, depth: int, start: Start) -> tuple[float, int]:
    """Span and number of draws with d = 200, where a run takes from a second to minutes."""
    if start == "balanced":
        return LARGE, {2: 60, 5: 40, 10: 20, 20: 20}[depth]
    if depth <= 5:
        many = 60 if start == "Glorot" else {2: 60, 5: 20}[depth]
        return 500.0, many if task == "supervised" else 20
    # Large eigenvalues of the Hessian make deep ones too dear to be followed to their limits, or for every law.
    return (10.0 if depth == 10 else 2.0), (1 if start == STARTS[0] else 0)


def get_panels(runs: Runs, number: int, asked: Sequence[Sequence[tuple[Case, int]]]) -> list[list[Group]]:
    """The groups of runs of the panels of a figure."""
    known = runs.get(f"Figure {number}", [one for panel in asked for one in panel])
    return [[known[case] for case, _ in panel] for panel in asked]


def errors_of(run: Run) -> Float[np.ndarray, " T"]:
    """`‖W(t) − W*‖_F`."""
    return run.errors


def losses_of(run: Run) -> Float[np.ndarray, " T"]:
    """`L¹(W(t)) = ½‖Y − W(t)X‖_F²`."""
    return run.losses


def excess_of(run: Run) -> Float[np.ndarray, " T"]:
    """`‖X − W(t)X‖_F/√(Σ_{i>r}σ_i²) − 1`."""
    return run.misfits / np.sqrt(2 * run.least) - 1


def by_depth(case: Case) -> tuple[str, int]:
    """Label and colour of a curve where panels compare depths …"""
    return f"$N = {case.depth}$", _COLORS[case.depth]


def by_dimension(panels: Sequence[Sequence[Group]]) -> Callable[[Case], tuple[str, int]]:
    """… and where they compare sizes: one colour a size, the same in both panels."""
    dimensions = sorted({group.case.d for panel in panels for group in panel})
    return lambda case: (f"$d_x = {case.d}$, $r = {case.rank}$", dimensions.index(case.d))


def bundle(group: Group, measure: Measure, label: Callable[[Case], tuple[str, int]]) -> Bundle:
    """The curves of a group at common times."""
    ts = saved_times(group.case.span)
    values = np.full((len(group.runs), len(ts)), np.nan)
    for row, run in zip(values, group.runs, strict=True):
        known = int(np.sum(ts <= run.end))
        row[:known] = measure(run)[:known]
        if run.converged:
            row[known:] = 0.0
    text, color = label(group.case)
    if len(group.runs) < ENOUGH:
        text = f"{text}, {len(group.runs)} draw{'s' if len(group.runs) > 1 else ''}"
    return Bundle(text, color, ts, values)


def size_titles(panels: Sequence[Sequence[Group]]) -> list[str]:
    """Panels named by size, rank and kind of start."""
    return [f"$d_x = {p[0].case.d}$, $r = {p[0].case.rank}$, {p[0].case.start_name}" for p in panels]


def depth_titles(panels: Sequence[Sequence[Group]]) -> list[str]:
    """Panels named by depth and kind of start."""
    return [f"$N = {p[0].case.depth}$, {p[0].case.start_name}" for p in panels]


#: Orders are decided from no fewer draws than these: six of six signs are needed in each half.
ENOUGH = 12


def followed(groups: Sequence[Group]) -> list[Group]:
    """Those with enough draws to decide an order."""
    return [group for group in groups if len(group.runs) >= ENOUGH]


def by_start_law(known: Sequence[list[Group]]) -> tuple[dict[Start, list[list[Group]]], dict[Start, list[list[Group]]]]:
    """Pairs of panels in the order of `STARTS`, by the law of their starts: all of their groups, and those that decide orders."""
    shown = {start: list(known[2 * i : 2 * i + 2]) for i, start in enumerate(STARTS)}
    return shown, {start: [followed(panel) for panel in panels] for start, panels in shown.items()}


def hidden(shown: dict[Start, list[list[Group]]]) -> list[Group]:
    """The groups of the laws that a picture does not show."""
    return [group for start in STARTS[1:] for panel in shown[start] for group in panel]


def both_kinds(runs: Runs, number: int, task: Task) -> list[list[Group]]:
    """The panels of all laws of starts, in the order of `STARTS`, then those of balanced ones."""
    return get_panels(
        runs, number, [panel_cases(runs, task, k, start) for start in (*STARTS, "balanced") for k in (0, 1)]
    )


def few(panels: Sequence[Sequence[Group]]) -> str:
    """Which groups of a figure decide no order."""
    names = [group.name for panel in panels for group in panel if len(group.runs) < ENOUGH]
    return (
        f"Shown, but with too few draws to decide an order: {', '.join(names)}."
        if names
        else "All groups decide orders."
    )


def matched(
    panels: Sequence[Sequence[Group]], others: Sequence[Sequence[Group]], *, depths: bool = True
) -> list[tuple[Group, Group]]:
    """Pairs of groups of equal size, and of equal depth with `depths`."""

    def key(group: Group) -> tuple[int, ...]:
        return (group.case.d, group.case.depth if depths else 0)

    first = {key(group): group for panel in panels for group in panel}
    return [(first[key(group)], group) for panel in others for group in panel if key(group) in first]


def figure_result(
    runs: Runs,
    number: int,
    title: str,
    paper: str,
    panels: Sequence[Sequence[Group]],
    quantity: str,
    claims: Iterable[Claim],
    notes: Sequence[str],
    *,
    ylabel: str,
    titles: Sequence[str],
    measure: Measure = errors_of,
    label: Callable[[Case], tuple[str, int]] = by_depth,
    errata: Sequence[str] = (),
    others: Sequence[Group] = (),
) -> FigureResult:
    """Collects picture, tables and claims.

    **Arguments:** `quantity`: names the column of values; `others`: groups that claims rest on and the picture does not show.
    """
    where = origin("fast" if runs.fast else "published", runs.seed)
    draws = sorted({len(group.runs) for panel in panels for group in panel})
    count = str(draws[0]) if len(draws) == 1 else f"{draws[0]} to {draws[-1]}"
    foot = "lines: medians, bands: 80 % of the draws; " + origin_text(where, f"{count} draws, ")
    picture = draw_panels(
        [Panel(t, [bundle(g, measure, label) for g in p]) for t, p in zip(titles, panels, strict=True)], ylabel, foot
    )
    rows: list[dict[str, object]] = []
    summary: list[dict[str, object]] = []
    for panel, groups in (*zip(("left", "right"), panels, strict=True), ("not shown", others)):
        for group in groups:
            key = {**_key(group.case), "panel": panel}
            summary.append({**where, **key, **_course(group)})
            if panel == "not shown" and group.case.start == "balanced":
                continue  # their curves are another figure's
            for run in group.runs:
                rows.extend(
                    {**where, **key, "draw": run.draw, "t": float(t), quantity: float(value)}
                    for t, value in zip(run.ts, measure(run), strict=True)
                )
    sizes_note = (
        f"{'Fast' if runs.fast else 'Published'} sizes; seed {runs.seed}; gdflow {where['version']}. The file of "
        "numbers has a curve for every draw, of the laws that are not shown too; that of runs the medians of every case."
    )
    return FigureResult(
        f"riemannian-{number}", f"Figure {number}: {title}", paper, tuple(claims), pa.Table.from_pylist(rows),
        pa.Table.from_pylist(summary), picture, (sizes_note, *notes, SOLVING), tuple(errata),
    )  # fmt: skip


def _key(case: Case) -> dict[str, object]:
    return dict(task=case.task, d=case.d, r=case.rank, N=case.depth, start=case.start_name)


def _course(group: Group) -> dict[str, object]:
    """Medians over the draws, and how many of them got where."""
    runs = group.runs
    return {
        "draws": len(runs),
        "certified": sum(run.certified for run in runs),
        "arrived": sum(run.converged for run in runs),
        "span": group.case.span,
        "end": float(np.median([run.end for run in runs])),
        f"t to {RANKED:g}": group.times(RANKED).median,
        f"t to {LATER:g}": group.times(LATER).median,
        "slowest rate (theory)": float(np.median([run.rate for run in runs])),
        "steps": float(np.median([run.steps for run in runs])),
    }
