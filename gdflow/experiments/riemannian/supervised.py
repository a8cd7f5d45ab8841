"""Figures 1 to 4: supervised learning, `Y = W̃X`."""

from collections.abc import Sequence

import numpy as np

from gdflow.experiments.results import Claim, FigureResult
from gdflow.experiments.riemannian.claims import (
    alike,
    by_law,
    converges,
    ends,
    slightly_longer,
    slower_with_depth,
    slower_with_size,
    stronger,
)
from gdflow.experiments.riemannian.figures import (
    BALANCED,
    DEPTHS,
    GAUSSIAN,
    STARTS,
    WIDTHS_CEILING,
    both_kinds,
    by_start_law,
    few,
    figure_result,
    get_panels,
    hidden,
    losses_of,
    matched,
    panel_cases,
    size_titles,
)
from gdflow.experiments.riemannian.runs import Group, Runs

LIMIT = "U_kΣ_kV_kᵀ(XXᵀ)^{-1/2}"
TRANSPOSE = (
    "Figures 1 and 2: the print has U_kΣ_kV_k(XXᵀ)^{-1/2} with U_k ∈ R^{d_x×k}, V_k ∈ R^{d_y×k}; meant is "
    "U_kΣ_kV_kᵀ(XXᵀ)^{-1/2} with U_k ∈ R^{d_y×k}, V_k ∈ R^{d_x×k}."
)
TWICE = (
    "The paper says both: that convergence seems not to depend on the kind of start (section A) and that it is slightly "
    "faster from balanced ones (conclusion)."
)


def _teachers(panels: Sequence[Sequence[Group]]) -> str:
    """What the dependence on depth is due to."""
    rates = ", ".join(
        f"{group.name} {np.median([run.rate for run in group.runs]):.2g}" for panel in panels for group in panel
    )
    return (
        "Depth changes the teacher, a product of N Gaussian matrices, whose least singular value σ_r falls with N. "
        "At the limit a direction between the range of W̃ and its complement decays at σ_r^{2−2/N} times a value of XXᵀ: "
        f"the least of these rates are, in the median, {rates}. No run "
        "has the same teacher at several depths, so the two are not told apart here."
    )


def figure_1(*, fast: bool = False, runs: Runs | None = None) -> FigureResult:
    """Supervised learning, balanced starts: `‖W(t) − U_kΣ_kV_kᵀ(XXᵀ)^{-1/2}‖_F`, `(d, r) = (20, 2)` and `(200, 20)`.

    **Arguments:** `fast`: smaller right-hand panel and fewer draws; `runs`: to share runs with other figures (its own `fast` then
    counts).
    """
    runs = runs or Runs(fast)
    panels = get_panels(runs, 1, [panel_cases(runs, "supervised", k, "balanced") for k in (0, 1)])
    claims = [
        converges(panels[0], "left panel: W(t) converges to the critical point " + LIMIT),
        converges(panels[1], "right panel: W(t) converges to that critical point"),
        slower_with_depth(panels, "convergence is slower for larger N"),
        slower_with_size(panels, "the rate decreases as d_x and r grow"),
    ]
    return figure_result(
        runs, 1, "supervised learning, balanced starts",
        "The paper shows convergence of W(t) to the critical points U_kΣ_kV_kᵀ(XXᵀ)^{-1/2}, rapid, and slower for "
        "larger N.",
        panels, "error", claims, (WIDTHS_CEILING, BALANCED, _teachers(panels)),
        ylabel=r"$\|W(t) - U_k\Sigma_kV_k^\top(XX^\top)^{-1/2}\|_F$", titles=size_titles(panels), errata=(TRANSPOSE,),
    )  # fmt: skip


def figure_2(*, fast: bool = False, runs: Runs | None = None) -> FigureResult:
    """Figure 1 with non-balanced starts; compared with Figure 1. Arguments as `figure_1`."""
    runs = runs or Runs(fast)
    *others, left, right = both_kinds(runs, 2, "supervised")
    by_start, ranked = by_start_law(others)
    depths = set() if runs.fast else {f"N = {depth}" for depth in DEPTHS}
    claims = [
        by_law(by_start, lambda p: converges(p[0], "left panel: W(t) converges to the critical point " + LIMIT)),
        by_law(by_start, lambda p: converges(p[1], "right panel: W(t) converges to that critical point", depths)),
        by_law(by_start, lambda p: slower_with_depth(p, "convergence is slower for larger N")),
        by_law(ranked, lambda p: slower_with_size(p, "the rate decreases as d_x and r grow")),
        by_law(
            ranked,
            lambda p: alike(
                matched((left, right), p),
                "convergence seems not to depend on the initial conditions, balanced or non-balanced (section A)",
            ),
        ),
        by_law(
            ranked,
            lambda p: slightly_longer(
                matched((left, right), p),
                "convergence is slightly faster in the balanced than in the non-balanced case (conclusion)",
            ),
        ),
    ]
    panels = by_start[STARTS[0]]
    return figure_result(
        runs, 2, "supervised learning, non-balanced starts",
        "The paper shows convergence to the same critical points, at rates that seem not to depend on the kind of "
        "start.",
        panels, "error", claims, (WIDTHS_CEILING, GAUSSIAN, few(panels), TWICE),
        ylabel=r"$\|W(t) - U_k\Sigma_kV_k^\top(XX^\top)^{-1/2}\|_F$", titles=size_titles(panels), errata=(TRANSPOSE,),
        others=hidden(by_start),
    )  # fmt: skip


def figure_3(*, fast: bool = False, runs: Runs | None = None) -> FigureResult:
    """Supervised learning, `(d, r) = (20, 2)`: `‖W(t) − W̃‖_F`, balanced left, non-balanced right. Arguments as `figure_1`."""
    runs = runs or Runs(fast)
    panels = get_panels(runs, 3, [panel_cases(runs, "supervised", 0, start) for start in ("balanced", STARTS[0])])
    apart = max(run.teacher_error for panel in panels for group in panel for run in group.runs)
    claims = [
        Claim(
            "the critical points U_kΣ_kV_kᵀ(XXᵀ)^{-1/2} are the same as the true parameters W̃",
            "‖U_kΣ_kV_kᵀ(XXᵀ)^{-1/2} − W̃‖_F is below 1e-10 of ‖W̃‖_F in every run, so that the curves are those of "
            "Figures 1 and 2",
            apart < 1e-10,
            f"largest relative difference {apart:.2g}",
        )
    ]
    return figure_result(
        runs, 3, "convergence to the true parameters",
        "The paper compares these curves with the left panels of Figures 1 and 2 to see that the critical point is W̃.",
        panels, "error", claims, (WIDTHS_CEILING, BALANCED, GAUSSIAN),
        ylabel=r"$\|W(t) - \widetilde W\|_F$", titles=size_titles(panels),
    )  # fmt: skip


def figure_4(*, fast: bool = False, runs: Runs | None = None) -> FigureResult:
    """Supervised learning, balanced starts: the loss `½‖Y − W(t)X‖²`, sizes as in Figure 1. Arguments as `figure_1`.

    The text beside it compares the dependence on depth with that of autoencoders, whose runs are Figure 8's.
    """
    runs = runs or Runs(fast)
    asked = [panel_cases(runs, task, 0, "balanced") for task in ("supervised", "autoencoder")]
    left, autoencoder, right = get_panels(runs, 4, [*asked, panel_cases(runs, "supervised", 1, "balanced")])
    panels = [left, right]
    claims = [
        slower_with_depth(
            panels,
            "the loss, like the error, converges more slowly for larger N",
            loss=True,
        ),
        stronger(ends(autoencoder), ends(left), "the dependence on N is much stronger than in the autoencoder setting"),
    ]
    return figure_result(
        runs, 4, "supervised learning, loss for balanced starts",
        "The paper shows the same dependence on N in the loss as in the errors of Figure 1.",
        panels, "loss", claims, (WIDTHS_CEILING, BALANCED), measure=losses_of,
        ylabel=r"$L^1(W(t)) = \frac{1}{2}\|Y - W(t)X\|_F^2$", titles=size_titles(panels), others=autoencoder,
    )  # fmt: skip
