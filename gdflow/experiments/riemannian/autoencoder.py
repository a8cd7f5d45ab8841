"""Figures 5 to 9: the autoencoder, `Y = X`."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from gdflow.experiments.results import Claim, FigureResult, number_text
from gdflow.experiments.riemannian.claims import (
    by_law,
    converges,
    ends,
    slightly_longer,
    slower_with_depth,
    slower_with_size,
    stronger,
    takes_longer,
)
from gdflow.experiments.riemannian.figures import (
    BALANCED,
    GAUSSIAN,
    LONG,
    STARTS,
    WIDTHS_CEILING,
    Task,
    both_kinds,
    by_dimension,
    by_start_law,
    depth_titles,
    excess_of,
    few,
    figure_result,
    get_panels,
    hidden,
    matched,
    panel_cases,
    size_titles,
)
from gdflow.experiments.riemannian.runs import CONVERGED, Case, Group, Run, Runs, Start

#: Late rates are those between these fractions of the first error.
LATE = (1e-3, 3e-5)
WIDTHS_NEAREST = "Widths by the printed rounding, d_j = ⌊r + (d − r)(j − 1)/(N − 1) + ½⌋, r = ⌊d/2 + ½⌋."
SIZES = (
    "The print varies d between 2N and 20N and does not list the values; at N = 20 the largest here is 120, since "
    "400 would take twenty times as long."
)
ROOT = (
    "Figure 6: the print says that L¹(W(t)) converges to the square root of the tail Σ_{i>r}σ_i²: it is ‖X − WX‖_F "
    "that does; L¹ converges to half the tail."
)
CAPTION = "Figure 7: the text announces N = 2 and N = 20, the caption N = 5 and N = 10, which are shown here."
LIMIT = "Errors are those to the certified limit: the printed ones, to W(T), vanish at T by construction."


def _dimensions(
    depth: int, dimensions: Sequence[tuple[int, int]], start: Start, span: float = LONG
) -> list[tuple[Case, int]]:
    """Cases of half the rank, by dimension and number of draws."""
    return [
        (Case("autoencoder", d, (d + 1) // 2, depth, start, span, "nearest"), draws) for d, draws in dimensions if draws
    ]


def balanced_sizes(runs: Runs) -> list[list[tuple[Case, int]]]:
    """Dimensions between `2N` and `20N`, as printed; at `N = 20` up to 120. Fast, `N = 10` stands in for `N = 20`."""
    if runs.fast:
        return [
            _dimensions(2, ((10, 60), (20, 60), (40, 60)), "balanced"),
            _dimensions(10, ((20, 40), (40, 24)), "balanced"),
        ]
    left = ((4, 100), (10, 100), (20, 100), (40, 100))
    return [_dimensions(2, left, "balanced"), _dimensions(20, ((40, 60), (80, 24), (120, 20)), "balanced")]


def non_balanced_sizes(runs: Runs) -> list[list[tuple[Case, int]]]:
    """Left and right panel of Figure 7, for every law of starts; of the largest size a glimpse for the first law."""
    panels = []
    for start in STARTS:
        if runs.fast:
            panels += [_dimensions(5, ((10, 40), (40, 16)), start), _dimensions(10, ((20, 12),), start)]
            continue
        right = _dimensions(10, ((20, 60), (40, 20)), start)
        large = _dimensions(10, ((200, 1 if start == STARTS[0] else 0),), start, 10.0)
        panels += [_dimensions(5, ((10, 100), (40, 40), (80, 20)), start), [*right, *large]]
    return panels


def late_rates(group: Group) -> Float[np.ndarray, " draws"]:
    """The exponential rates of the fall from the one fraction in `LATE` to the other; NaN where that is not reached."""
    first, last = (group.times_of_fall(fraction).bounds[1] for fraction in LATE)
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(last), math.log(LATE[0] / LATE[1]) / (last - first), np.nan)


def _late_rates(panels: Sequence[Sequence[Group]]) -> Claim:
    """That the late rate is the eigenvalue, whatever the depth."""
    shares, total = {}, 0
    for group in (group for panel in panels for group in panel):
        values = late_rates(group) / np.array([run.rate for run in group.runs])
        total += len(values)
        shares[group.name] = values[np.isfinite(values)]
    known = {name: values for name, values in shares.items() if len(values)}
    medians = {name: float(np.median(values)) for name, values in known.items()}
    count = sum(map(len, known.values()))
    least = min((float(values.min()) for values in known.values()), default=np.nan)
    return Claim(
        "the late rate is the least eigenvalue of the Riemannian Hessian at U_rU_rᵀ, the least over i ≤ r < j of "
        "½(λ_i + λ_j − √((λ_i − λ_j)² + 4λ_j²)), λ the eigenvalues of XXᵀ, whatever N is, so that what depends on N is a "
        "transient",
        f"the rate at which the error falls from {LATE[0]:g} to {LATE[1]:g} of the first, over that eigenvalue, has a "
        "median between 0.95 and 1.1 for every N and size, and is nowhere below 0.9: it is above the least rate as "
        "long as other directions last",
        all(0.95 < median < 1.1 for median in medians.values()) and least > 0.9 if known else None,
        f"medians {min(medians.values()):.3g} to {max(medians.values()):.3g}, least {least:.3g}; {count} of {total} "
        "runs get there"
        if known
        else "no run gets there",
        "" if known else "no run gets there",
        ours=True,
        details=tuple(f"{name}: median {medians[name]:.3g} of {len(values)} runs" for name, values in known.items()),
    )


def figure_5(*, fast: bool = False, runs: Runs | None = None) -> FigureResult:
    """Autoencoder, balanced starts: `‖W(t) − U_rU_rᵀ‖_F` for several `d`, `r = d/2`, `N = 2`, `20`. Arguments as `figure_1`."""
    runs = runs or Runs(fast)
    panels = get_panels(runs, 5, balanced_sizes(runs))
    claims = [
        *(converges(p, f"N = {p[0].case.depth}: the limit of W(t) is U_rU_rᵀ for all d") for p in panels),
        takes_longer(
            [ends(panel) for panel in panels], "the convergence rates decrease with an increase in d",
            "from the least to the largest d",
        ),
        takes_longer(
            matched(panels[:1], panels[1:], depths=False), "the convergence rates decrease with an increase in N",
            "from the least to the largest N, at every d that both panels have,",
        ),
        _late_rates(panels),
    ]  # fmt: skip
    return figure_result(
        runs, 5, "autoencoder, balanced starts",
        "The paper shows that W(t) converges to U_rU_rᵀ for all N and ranks considered, more slowly for larger d and "
        "N.",
        panels, "error", claims, (WIDTHS_NEAREST, BALANCED, SIZES), ylabel=r"$\|W(t) - U_rU_r^\top\|_F$",
        titles=depth_titles(panels), label=by_dimension(panels),
    )  # fmt: skip


def figure_6(*, fast: bool = False, runs: Runs | None = None) -> FigureResult:
    """Autoencoder, balanced starts: `‖X − W(t)X‖_F/√(Σ_{i>r}σ_i²) − 1`, runs of Figure 5. Arguments as `figure_1`."""
    runs = runs or Runs(fast)
    panels = get_panels(runs, 6, balanced_sizes(runs))
    every_run = [run for panel in panels for group in panel for run in group.runs]
    left = [abs(run.losses[-1] / run.least - 1) for run in every_run]
    open_runs = sum(not run.certified for run in every_run)
    claims = [
        Claim(
            "‖X − W(t)X‖_F converges to √(Σ_{i>r} σ_i²)",
            "in every run the loss falls below the second-lowest critical value, which proves that it tends to the "
            f"lowest, ½Σ_{{i>r}}σ_i²; and it differs from it by less than {100 * CONVERGED:g} of it at the end",
            None if open_runs else bool(max(left) < 100 * CONVERGED),
            f"certified in {len(every_run) - open_runs} of {len(every_run)} runs; largest relative difference of L¹ "
            f"at the end {max(left):.2g}",
            f"{open_runs} runs are not certified at the end of their span" if open_runs else "",
        )
    ]
    return figure_result(
        runs, 6, "autoencoder, balanced starts, reconstruction error",
        "The paper shows ‖X − W(t)X‖_F converging to √(Σ_{i>r} σ_i²), σ_i² the eigenvalues of XXᵀ.",
        panels, "excess", claims, (WIDTHS_NEAREST, BALANCED, SIZES, "The picture shows the relative difference from the limit."),
        ylabel=r"$\|X - W(t)X\|_F\,/\sqrt{\sum_{i>r}\sigma_i^2}\ -\ 1$", titles=depth_titles(panels), measure=excess_of,
        label=by_dimension(panels), errata=(ROOT,),
    )  # fmt: skip


def figure_7(*, fast: bool = False, runs: Runs | None = None) -> FigureResult:
    """Autoencoder, non-balanced starts: `‖W(t) − U_rU_rᵀ‖_F` for several `d`, `N = 5` and `10`. Arguments as `figure_1`."""
    runs = runs or Runs(fast)
    by_start, ranked = by_start_law(get_panels(runs, 7, non_balanced_sizes(runs)))
    dimensions = {f"d = {group.case.d}" for group in by_start[STARTS[0]][1]}
    claims = [
        by_law(by_start, lambda p: converges(p[0], "N = 5: W(t) converges to U_rU_rᵀ")),
        by_law(by_start, lambda p: converges(p[1], "N = 10: W(t) converges to U_rU_rᵀ", dimensions)),
        by_law(
            ranked,
            lambda p: takes_longer(
                [ends(panel) for panel in p if len(panel) > 1],
                "as for balanced starts, the convergence rates decrease with an increase in d",
                "from the least to the largest d",
            ),
        ),
    ]
    panels = by_start[STARTS[0]]
    return figure_result(
        runs, 7, "autoencoder, non-balanced starts",
        "The paper shows that W(t) converges to U_rU_rᵀ as in the balanced case.",
        panels, "error", claims, (WIDTHS_NEAREST, GAUSSIAN, few(panels)), ylabel=r"$\|W(t) - U_rU_r^\top\|_F$",
        titles=depth_titles(panels), label=by_dimension(panels), errata=(CAPTION,),
        others=hidden(by_start),
    )  # fmt: skip


def _rise(run: Run) -> float:
    """The most that the error rises by between saved times once it has fallen to half of the first, as a share of the first."""
    last = np.flatnonzero(run.errors > 0.5 * run.errors[0])[-1]
    return float(np.max(np.diff(run.errors[last + 1 :]), initial=0.0) / run.errors[0])


def figure_8(*, fast: bool = False, runs: Runs | None = None) -> FigureResult:
    """Autoencoder, balanced starts: the error, `(d, r) = (20, 1)` and `(200, 10)`, all depths. Arguments as `figure_1`.

    The conclusion's comparison with supervised learning needs the runs of Figure 1, too.
    """
    runs = runs or Runs(fast)
    tasks: tuple[Task, ...] = ("autoencoder", "supervised")
    *panels, left, right = get_panels(
        runs, 8, [panel_cases(runs, task, k, "balanced") for task in tasks for k in (0, 1)]
    )
    every_run = [run for panel in panels for group in panel for run in group.runs]
    rise = max(_rise(run) for run in every_run)
    early = max(float(np.max(run.errors - np.minimum.accumulate(run.errors)) / run.errors[0]) for run in every_run)
    claims = [
        Claim(
            "the convergence is smooth",
            "from where the error has fallen to half of the first for good, it never rises from one saved time to "
            "the next, 25 of them a decade, by more than 1e-6 of the first",
            rise < 1e-6,
            f"largest rise {number_text(rise)} of the first error; before, the error rises at times, by up to "
            f"{early:.2g} of the first",
        ),
        slower_with_depth(panels, "the rate depends on N: convergence is slower for larger N"),
        slower_with_size(panels, "the rate depends on d_x and r: convergence is slower for the larger ones"),
        stronger(
            (left[0], right[0]), (panels[0][0], panels[1][0]),
            "the dependence on d_x and r is stronger in the autoencoder than in the supervised case (at N = 2)",
        ),
        _late_rates(panels),
    ]  # fmt: skip
    return figure_result(
        runs, 8, "autoencoder, convergence rates, balanced starts",
        "The paper shows smooth and very rapid convergence, with rates that depend on N, d_x and r.",
        panels, "error", claims, (WIDTHS_CEILING, BALANCED, LIMIT), ylabel=r"$\|W(t) - W(\infty)\|_F$",
        titles=size_titles(panels), others=[*left, *right],
    )  # fmt: skip


def figure_9(*, fast: bool = False, runs: Runs | None = None) -> FigureResult:
    """Figure 8 with non-balanced starts; compared with Figure 8. Arguments as `figure_1`."""
    runs = runs or Runs(fast)
    *others, left, right = both_kinds(runs, 9, "autoencoder")
    by_start, ranked = by_start_law(others)
    claims = [
        by_law(by_start, lambda p: slower_with_depth(p, "the rate depends on N: convergence is slower for larger N")),
        by_law(
            ranked,
            lambda p: slower_with_size(p, "the rate depends on d_x and r: convergence is slower for the larger ones"),
        ),
        by_law(
            ranked,
            lambda p: slightly_longer(
                matched((left, right), p),
                "convergence is slightly faster for the balanced than for the non-balanced case",
            ),
        ),
    ]
    panels = by_start[STARTS[0]]
    return figure_result(
        runs, 9, "autoencoder, convergence rates, non-balanced starts",
        "The paper shows convergence, slightly slower than for the balanced starts of Figure 8.",
        panels, "error", claims, (WIDTHS_CEILING, GAUSSIAN, LIMIT, few(panels)), ylabel=r"$\|W(t) - W(\infty)\|_F$",
        titles=size_titles(panels), others=hidden(by_start),
    )  # fmt: skip
