"""Figures 1 to 4: supervised learning, `Y = W̃X`."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from gdflow.experiments.results import Claim, FigureResult, every
from gdflow.experiments.riemannian.claims import (
    RANKED,
    are_alike,
    converges,
    slower_with_depth,
    slower_with_size,
    times_text,
    timing,
)
from gdflow.experiments.riemannian.figures import (
    BALANCED,
    FLOOR,
    GAUSSIAN,
    NOISE,
    WIDTHS_CEILING,
    Entry,
    both_starts,
    distance_to_best,
    figure_result,
    loss_of,
    measured_curve,
    measured_panels,
    panel_cases,
    size_titles,
)
from gdflow.experiments.riemannian.runs import Run, Runs

TRANSPOSE = (
    "The print has U_kΣ_kV_k(XXᵀ)^{-1/2} with U_k ∈ R^{d_x×k}, V_k ∈ R^{d_y×k}; meant is U_kΣ_kV_kᵀ(XXᵀ)^{-1/2} with "
    "U_k ∈ R^{d_y×k}, V_k ∈ R^{d_x×k}."
)


def _distance_to_teacher(run: Run, W: Float[np.ndarray, "n d d"]) -> Float[np.ndarray, " n"]:
    return np.linalg.norm(W - run.case.teacher(), axis=(1, 2))


def _spectra(panels: Sequence[Sequence[Entry]]) -> str:
    """What the dependence on depth is due to."""
    sigmas = {
        f"(d={run.case.d}, N={run.case.depth})": np.linalg.svd(run.best, compute_uv=False)[[0, run.case.rank - 1]]
        for entries in panels
        for run, _ in entries
    }
    return (
        "Depth also changes the teacher: the largest and the least singular value of W̃ are "
        + ", ".join(f"{label} {s[0]:.2g}, {s[1]:.2g}" for label, s in sigmas.items())
        + ". At the limit a direction between the range of W̃ and its complement decays at the rate σ_r^{2−2/N} times an "
        "eigenvalue of XXᵀ, so small σ_r alone make deep nets slow."
    )


def figure_1(*, fast: bool = False, runs: Runs | None = None) -> FigureResult:
    """Supervised learning, balanced starts: `‖W(t) − U_kΣ_kV_kᵀ(XXᵀ)^{-1/2}‖_F`, `(d, r) = (20, 2)` and `(200, 20)`.

    **Arguments:** `fast`: smaller right-hand panel and shorter spans; `runs`: to share runs with other figures (its own
    `fast` then counts).
    """
    runs = runs or Runs(fast)
    panels = measured_panels(runs, 1, [panel_cases(runs, "supervised", k, True) for k in (0, 1)], distance_to_best)
    claims = [
        converges(panels[0], "left panel: W(t) converges to the critical point U_kΣ_kV_kᵀ(XXᵀ)^{-1/2}"),
        converges(panels[1], "right panel: W(t) converges to that critical point"),
        slower_with_depth(panels, "convergence is slower for larger N"),
        slower_with_size(panels, "the rate decreases as d_x and r grow"),
    ]
    return figure_result(
        1, "supervised learning, balanced starts",
        "The paper shows convergence of W(t) to the critical points U_kΣ_kV_kᵀ(XXᵀ)^{-1/2}, rapid, and slower for larger N.",
        panels, "error", claims, (TRANSPOSE, WIDTHS_CEILING, BALANCED, _spectra(panels)),
        ylabel=r"$\|W(t) - U_k\Sigma_kV_k^\top(XX^\top)^{-1/2}\|_F$", titles=size_titles(panels), xscale="log",
    )  # fmt: skip


def figure_2(*, fast: bool = False, runs: Runs | None = None) -> FigureResult:
    """Figure 1 with non-balanced starts; compared with Figure 1. Arguments as `figure_1`."""
    runs = runs or Runs(fast)
    cases = both_starts(runs, "supervised")
    *panels, left, right = measured_panels(runs, 2, cases, distance_to_best)
    balanced, others = ([timing(curve) for _, curve in (*one, *other)] for one, other in ((left, right), panels))
    claims = [
        converges(panels[0], "left panel: W(t) converges to the critical point U_kΣ_kV_kᵀ(XXᵀ)^{-1/2}"),
        converges(panels[1], "right panel: W(t) converges to that critical point"),
        slower_with_depth(panels, "convergence is slower for larger N"),
        Claim(
            "convergence seems not to depend on the initial conditions, balanced or non-balanced",
            f"for every N and size the times to {RANKED:g} of the first error differ by less than a factor 2",
            every(are_alike(a, b) for a, b in zip(balanced, others, strict=True)),
            f"balanced: {times_text((*left, *right))}; others: {times_text((*panels[0], *panels[1]))}",
        ),
    ]
    return figure_result(
        2, "supervised learning, non-balanced starts",
        "The paper shows convergence to the same critical points, at rates that seem not to depend on the kind of start.",
        panels, "error", claims, (TRANSPOSE, WIDTHS_CEILING, GAUSSIAN),
        ylabel=r"$\|W(t) - U_k\Sigma_kV_k^\top(XX^\top)^{-1/2}\|_F$", titles=size_titles(panels), xscale="log",
    )  # fmt: skip


def figure_3(*, fast: bool = False, runs: Runs | None = None) -> FigureResult:
    """Supervised learning, `(d, r) = (20, 2)`: `‖W(t) − W̃‖_F`, balanced left, non-balanced right. Arguments as `figure_1`."""
    runs = runs or Runs(fast)
    panels = measured_panels(
        runs, 3, [panel_cases(runs, "supervised", 0, balanced) for balanced in (True, False)], _distance_to_teacher
    )
    apart, curves = 0.0, 0.0
    for run, curve in (*panels[0], *panels[1]):
        teacher = run.case.teacher()
        apart = max(apart, float(np.linalg.norm(run.best - teacher) / np.linalg.norm(teacher)))
        other = measured_curve(run, distance_to_best, "").values
        curves = max(curves, float(abs(other - curve.values).max() / np.linalg.norm(teacher)))
    claims = [
        Claim(
            "the critical points U_kΣ_kV_kᵀ(XXᵀ)^{-1/2} are the same as the true parameters W̃",
            "‖U_kΣ_kV_kᵀ(XXᵀ)^{-1/2} − W̃‖_F is below 1e-10 of ‖W̃‖_F for every N, and so are the differences of the curves from "
            "those of Figures 1 and 2",
            max(apart, curves) < 1e-10,
            f"largest relative difference {apart:.2g}, of the curves {curves:.2g}",
        ),
        converges(panels[0], "left panel: W(t) converges to the true parameters, balanced starts"),
        converges(panels[1], "right panel: W(t) converges to the true parameters, non-balanced starts"),
    ]
    return figure_result(
        3, "convergence to the true parameters",
        "The paper compares these curves with the left panels of Figures 1 and 2 to see that the critical point is W̃.",
        panels, "error", claims, (WIDTHS_CEILING, BALANCED, GAUSSIAN),
        ylabel=r"$\|W(t) - \widetilde W\|_F$", titles=size_titles(panels), xscale="log",
    )  # fmt: skip


def figure_4(*, fast: bool = False, runs: Runs | None = None) -> FigureResult:
    """Supervised learning, balanced starts: the loss `½‖Y − W(t)X‖²`, sizes as in Figure 1. Arguments as `figure_1`."""
    runs = runs or Runs(fast)
    panels = measured_panels(runs, 4, [panel_cases(runs, "supervised", k, True) for k in (0, 1)], loss_of)
    claims = [
        converges(panels[0], "left panel: the loss converges to 0"),
        converges(panels[1], "right panel: the loss converges to 0"),
        slower_with_depth(panels, "the loss, like the error, converges more slowly for larger N", RANKED**2),
    ]
    return figure_result(
        4, "supervised learning, loss for balanced starts",
        "The paper shows the same dependence on N in the loss as in the errors of Figure 1.",
        panels, "loss", claims, (WIDTHS_CEILING, BALANCED),
        ylabel=r"$L(W(t)) = \frac{1}{2}\|Y - W(t)X\|_F^2$", titles=size_titles(panels), xscale="log",
        floor=FLOOR**2, noise=NOISE**2,
    )  # fmt: skip
