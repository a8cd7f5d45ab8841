"""Figures 1 to 9 of Terstiege, Rauhut, Bah, Westdickenberg (2022), *A Riemannian gradient flow perspective on learning deep
linear neural networks*, Appendix: every figure recomputed, every claim decided by a criterion.

From Python: `gdflow.experiments.riemannian.figure_5(fast=True).figure`. Figures that share runs compute them once if they are
given the same `Runs`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from jaxtyping import Float

from gdflow.experiments.results import Claim, Curve, FigureResult, Panel, draw_panels, every, number_text
from gdflow.experiments.riemannian_runs import SOLVERS, STEP_FACTOR, STEP_FACTOR_OTHERS, Case, Run, Runs
from gdflow.manifold import riemannian_hessian_form

DEPTHS = (2, 5, 10, 20)
#: A run has converged when its error is this fraction of the first one …
CONVERGED = 1e-5
#: … and runs are ranked by the times at which it falls to this one.
RANKED = 1e-2
#: Late rates are compared where the error falls below this fraction, so that faster directions have died out.
LATE = 1e-4
#: Errors below this are not drawn, and the adaptive solver's not where they have fallen to this fraction of the first one.
FLOOR, NOISE = 1e-9, 1e-6

TRANSPOSE = (
    "The print has U_kΣ_kV_k(XXᵀ)^{-1/2} with U_k ∈ R^{d_x×k}, V_k ∈ R^{d_y×k}; meant is U_kΣ_kV_kᵀ(XXᵀ)^{-1/2} with "
    "U_k ∈ R^{d_y×k}, V_k ∈ R^{d_x×k}."
)
WIDTHS_CEILING = (
    "Widths by the printed ceiling, d_j = ⌈r + (d − r)(j − 1)/(N − 1)⌉ (section B.1 rounds to the nearest instead)."
)
WIDTHS_NEAREST = "Widths by the printed rounding, d_j = ⌊r + (d − r)(j − 1)/(N − 1) + ½⌋, r = ⌊d/2 + ½⌋."
BALANCED = (
    "Balanced starts: V_0, which the print leaves undefined, is a Haar orthogonal matrix like the other V_j; U_j are the "
    "first d_1 columns of V_j."
)
GAUSSIAN = (
    "Non-balanced starts: the print gives no standard deviation; here it is 1/√d_j, as for the teacher's factors."
)
SOLVING = (
    f"RK4 with the fixed step h, hλ = {STEP_FACTOR:g} (stable below 2.785), λ the bound N·max(1, σ_1(W*))^{{2−2/N}}·λ_max(XXᵀ) "
    "for balanced starts, the larger of it and the Hessian's largest eigenvalue at the start for others, where it grows on the "
    f"way and hλ = {STEP_FACTOR_OTHERS:g}; none is printed. "
    "Beside it an adaptive solver: the Riemannian flow of W in low-rank form (Tsit5) for balanced starts, Tsit5 or "
    "Runge–Kutta–Chebyshev on the factors for others. Where RK4's budget ends before T, errors and times are those of the "
    "adaptive solver. `difference` is the largest ‖W_RK4 − W_adaptive‖_F."
)

Measure = Callable[[Run, Float[np.ndarray, "n d d"]], Float[np.ndarray, " n"]]


def _distance_to_best(run: Run, W: Float[np.ndarray, "n d d"]) -> Float[np.ndarray, " n"]:
    return np.linalg.norm(W - run.best, axis=(1, 2))


def _distance_to_teacher(run: Run, W: Float[np.ndarray, "n d d"]) -> Float[np.ndarray, " n"]:
    return np.linalg.norm(W - run.case.teacher(), axis=(1, 2))


def _distance_to_end(run: Run, W: Float[np.ndarray, "n d d"]) -> Float[np.ndarray, " n"]:
    return np.linalg.norm(W - run.final, axis=(1, 2))


def _misfit(run: Run, W: Float[np.ndarray, "n d d"]) -> Float[np.ndarray, " n"]:
    """`‖Y − WX‖_F`, which for these targets has no part that `W` cannot reach."""
    return np.sqrt(2 * _loss(run, W))


def _loss(run: Run, W: Float[np.ndarray, "n d d"]) -> Float[np.ndarray, " n"]:
    return np.asarray(jax.vmap(run.problem.end_to_end_loss)(jnp.asarray(W)))


def _slowest_rate(run: Run) -> float:
    """The least eigenvalue of the Riemannian Hessian at `U_rU_rᵀ`, on the exchange of the eigenvectors `r` and `r + 1`.

    On it `𝒜_{W,N}` is the identity, so the eigenvalue is a rate, the slowest one, and the same for every `N`.
    """
    r, U = run.case.rank, np.asarray(run.problem.decomposition.U_X)
    u, v, W = U[:, r - 1], U[:, r], jnp.asarray(run.best)

    def form(Z: Float[np.ndarray, "d d"]) -> float:
        return float(riemannian_hessian_form(run.problem, W, jnp.asarray(Z), rank=r))

    one, other = np.outer(u, v), np.outer(v, u)
    mixed = 0.25 * (form(one + other) - form(one - other))
    return float(np.linalg.eigvalsh([[form(one), mixed], [mixed, form(other)]])[0])


def _curve(run: Run, measure: Measure, label: str) -> Curve:
    return Curve(label, run.ts, measure(run, run.first), measure(run, run.second))


def _panel(runs: Runs, task: Literal["autoencoder", "supervised"], panel: int, balanced: bool) -> list[Case]:
    """The runs of one panel of Figures 1 to 4 and 8, 9.

    Fast, only the left panels with balanced starts have deep networks, which take long to compile.
    """
    small, large, fast = {
        "supervised": ((20, 2, 100.0), (200, 20, 10.0), (40, 4, 10.0)),
        "autoencoder": ((20, 1, 60.0), (200, 10, 100.0), (40, 2, 40.0)),
    }[task]
    depths = DEPTHS if not runs.fast else (2,) if panel else (2, 5, 20) if balanced else (2, 5)
    d, rank, t1 = (fast if runs.fast else large) if panel else small
    if runs.fast and not panel:
        t1 = 20.0
    return [Case(task, d, rank, N, balanced, t1) for N in depths]


def _both_kinds(runs: Runs, task: Literal["autoencoder", "supervised"]) -> list[list[Case]]:
    """Two panels with non-balanced starts, then the same with balanced ones."""
    panels = [_panel(runs, task, k, False) for k in (0, 1)]
    return panels + [[dataclasses.replace(case, balanced=True) for case in panel] for panel in panels]


def _dimensions(depth: int, dimensions: Sequence[int], balanced: bool, t1: float) -> list[Case]:
    return [Case("autoencoder", d, (d + 1) // 2, depth, balanced, t1, "nearest") for d in dimensions]


def _result(
    number: int,
    title: str,
    paper: str,
    panels: Sequence[Sequence[tuple[Run, Curve]]],
    quantity: str,
    claims: Iterable[Claim],
    notes: Sequence[str],
    *,
    ylabel: str,
    titles: Sequence[str],
    xscale: str = "linear",
    limits: Sequence[Sequence[float]] | None = None,
    yscale: str = "log",
    floor: float = FLOOR,
    noise: float = NOISE,
    until: float = np.inf,
) -> FigureResult:
    """Collects picture, tables and claims; `quantity` names the column of values."""
    name = f"riemannian-{number}"
    picture = draw_panels(
        [Panel(t, [c for _, c in p], li) for t, p, li in zip(titles, panels, limits or [()] * len(panels), strict=True)],
        ylabel, solvers=SOLVERS, xscale=xscale, yscale=yscale, floor=floor, noise=noise,
    )  # fmt: skip
    rows, summary = [], []
    for panel, entries in zip(("left", "right"), panels, strict=True):
        for run, curve in entries:
            case = run.case
            key = dict(panel=panel, d=case.d, r=case.rank, N=case.depth, start=case.start_name)
            for solver, values in zip(SOLVERS, (curve.first, curve.second), strict=True):
                for t, value in zip(run.ts, values, strict=False):
                    rows.append({**key, "solver": solver, "t": float(t), quantity: float(value)})
            summary.append(
                {
                    **key,
                    "h": run.step,
                    "λ": run.eigenvalue,
                    "RK4 to t": run.span,
                    "adaptive steps": run.num_steps,
                    "T": float(curve.times[-1]),
                    f"{quantity} at T": curve.final,
                    "t to 1e-2": curve.time_to(1e-2),
                    "t to 1e-5": curve.time_to(1e-5),
                    "late rate": curve.late_rate(until=until * float(curve.times[-1])),
                    "difference": run.difference,
                    "ended": run.status,
                }
            )
    agreement = max(
        (run.difference / np.linalg.norm(run.best) for entries in panels for run, _ in entries), default=0.0
    )
    solvers = Claim(
        "(not the paper's) the two solvers agree",
        "the largest ‖W_RK4(t) − W_adaptive(t)‖_F is below 1 % of ‖W*‖_F in every run",
        bool(agreement < 1e-2),
        f"largest relative difference {agreement:.2g}",
    )
    return FigureResult(
        name, f"Figure {number}: {title}", paper, (*claims, solvers), pa.Table.from_pylist(rows),
        pa.Table.from_pylist(summary), picture, (*notes, SOLVING),
    )  # fmt: skip


def _converges(entries: Sequence[tuple[Run, Curve]], statement: str) -> Claim:
    ratios = {_label(run): curve.final / curve.values[0] for run, curve in entries}
    falling = {_label(run): curve.final < 0.99 * curve.at(0.5 * float(curve.times[-1])) for run, curve in entries}
    return Claim(
        statement,
        f"in every run the error at T is below {CONVERGED:g} of the first one; not decided where it is not but still falls, "
        "by at least 1 % in the second half of the run",
        every(True if ratio < CONVERGED else None if falling[label] else False for label, ratio in ratios.items()),
        "error at T over the first: " + ", ".join(f"{label} {ratio:.2g}" for label, ratio in ratios.items()),
    )


def _label(run: Run) -> str:
    return f"(d={run.case.d}, N={run.case.depth}, {run.case.start_name})"


def _times(entries: Sequence[tuple[Run, Curve]], fraction: float = RANKED) -> str:
    return ", ".join(f"{_label(run)} {number_text(curve.time_to(fraction))}" for run, curve in entries)


def _longer(first: tuple[float, float], second: tuple[float, float]) -> bool | None:
    """Whether the second time is longer than the first, both given with the ends of their runs; infinite: not reached."""
    (a, end_a), (b, end_b) = first, second
    if np.isfinite(a):
        return a < b if np.isfinite(b) else True if end_b > a else None
    return False if np.isfinite(b) and end_a > b else None


def _slower_with_depth(
    panels: Sequence[Sequence[tuple[Run, Curve]]], statement: str, fraction: float = RANKED
) -> Claim:
    rows = [[(curve.time_to(fraction), float(curve.times[-1])) for _, curve in entries] for entries in panels]
    return Claim(
        statement,
        f"in every panel the time to {fraction:g} of the first value increases from every N to the next",
        every(_longer(a, b) for row in rows for a, b in zip(row[:-1], row[1:], strict=True)),
        "times: " + "; ".join(_times(entries, fraction) for entries in panels),
    )


def _slower_with_size(panels: Sequence[Sequence[tuple[Run, Curve]]], statement: str) -> Claim:
    small, large = (
        {run.case.depth: (curve.time_to(RANKED), float(curve.times[-1])) for run, curve in entries}
        for entries in panels
    )
    return Claim(
        statement,
        f"for every N the time to {RANKED:g} of the first error is longer in the right panel",
        every(_longer(small[depth], time) for depth, time in large.items()),
        ", ".join(f"N={N}: {number_text(small[N][0])} and {number_text(b)}" for N, (b, _) in large.items()),
    )


def _titles(panels: Sequence[Sequence[tuple[Run, Curve]]]) -> list[str]:
    return [f"$d_x = {p[0][0].case.d}$, $r = {p[0][0].case.rank}$, {p[0][0].case.start_name}" for p in panels]


def _by_depth(
    runs: Runs, number: int, cases: Sequence[Sequence[Case]], measure: Measure
) -> list[list[tuple[Run, Curve]]]:
    """The curves of two panels, one for every depth."""
    known = runs.get(f"Figure {number}", [case for panel in cases for case in panel])
    return [[(known[c], _curve(known[c], measure, f"$N = {c.depth}$")) for c in panel] for panel in cases]


def figure_1(*, fast: bool = False, runs: Runs | None = None) -> FigureResult:
    """Supervised learning, balanced starts: `‖W(t) − U_kΣ_kV_kᵀ(XXᵀ)^{-1/2}‖_F`, `(d, r) = (20, 2)` and `(200, 20)`.

    **Arguments:** `fast`: smaller right-hand panel and shorter spans; `runs`: to share runs with other figures (its own
    `fast` then counts).
    """
    runs = runs or Runs(fast)
    panels = _by_depth(runs, 1, [_panel(runs, "supervised", k, True) for k in (0, 1)], _distance_to_best)
    claims = [
        _converges(panels[0], "left panel: W(t) converges to the critical point U_kΣ_kV_kᵀ(XXᵀ)^{-1/2}"),
        _converges(panels[1], "right panel: W(t) converges to that critical point"),
        _slower_with_depth(panels, "convergence is slower for larger N"),
        _slower_with_size(panels, "the rate decreases as d_x and r grow"),
    ]
    return _result(
        1, "supervised learning, balanced starts",
        "The paper shows convergence of W(t) to the critical points U_kΣ_kV_kᵀ(XXᵀ)^{-1/2}, rapid, and slower for larger N.",
        panels, "error", claims, (TRANSPOSE, WIDTHS_CEILING, BALANCED, _spectra(panels)),
        ylabel=r"$\|W(t) - U_k\Sigma_kV_k^\top(XX^\top)^{-1/2}\|_F$", titles=_titles(panels), xscale="log",
    )  # fmt: skip


def _spectra(panels: Sequence[Sequence[tuple[Run, Curve]]]) -> str:
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


def _alike(first: tuple[float, float], second: tuple[float, float]) -> bool | None:
    """Whether two times, given with the ends of their runs, differ by less than a factor 2."""
    (a, end_a), (b, end_b) = first, second
    if np.isfinite(a) and np.isfinite(b):
        return bool(0.5 < a / b < 2)
    return False if (np.isfinite(a) and end_b > 2 * a) or (np.isfinite(b) and end_a > 2 * b) else None


def figure_2(*, fast: bool = False, runs: Runs | None = None) -> FigureResult:
    """Figure 1 with non-balanced starts; compared with Figure 1. Arguments as `figure_1`."""
    runs = runs or Runs(fast)
    cases = _both_kinds(runs, "supervised")
    *panels, left, right = _by_depth(runs, 2, cases, _distance_to_best)
    balanced, others = (
        [(curve.time_to(RANKED), float(curve.times[-1])) for _, curve in (*one, *other)]
        for one, other in ((left, right), panels)
    )
    claims = [
        _converges(panels[0], "left panel: W(t) converges to the critical point U_kΣ_kV_kᵀ(XXᵀ)^{-1/2}"),
        _converges(panels[1], "right panel: W(t) converges to that critical point"),
        _slower_with_depth(panels, "convergence is slower for larger N"),
        Claim(
            "convergence seems not to depend on the initial conditions, balanced or non-balanced",
            f"for every N and size the times to {RANKED:g} of the first error differ by less than a factor 2",
            every(_alike(a, b) for a, b in zip(balanced, others, strict=True)),
            f"balanced: {_times((*left, *right))}; others: {_times((*panels[0], *panels[1]))}",
        ),
    ]
    return _result(
        2, "supervised learning, non-balanced starts",
        "The paper shows convergence to the same critical points, at rates that seem not to depend on the kind of start.",
        panels, "error", claims, (TRANSPOSE, WIDTHS_CEILING, GAUSSIAN),
        ylabel=r"$\|W(t) - U_k\Sigma_kV_k^\top(XX^\top)^{-1/2}\|_F$", titles=_titles(panels), xscale="log",
    )  # fmt: skip


def figure_3(*, fast: bool = False, runs: Runs | None = None) -> FigureResult:
    """Supervised learning, `(d, r) = (20, 2)`: `‖W(t) − W̃‖_F`, balanced left, non-balanced right. Arguments as `figure_1`."""
    runs = runs or Runs(fast)
    panels = _by_depth(
        runs, 3, [_panel(runs, "supervised", 0, balanced) for balanced in (True, False)], _distance_to_teacher
    )
    apart, curves = 0.0, 0.0
    for run, curve in (*panels[0], *panels[1]):
        teacher = run.case.teacher()
        apart = max(apart, float(np.linalg.norm(run.best - teacher) / np.linalg.norm(teacher)))
        other = _curve(run, _distance_to_best, "").values
        curves = max(curves, float(abs(other - curve.values).max() / np.linalg.norm(teacher)))
    claims = [
        Claim(
            "the critical points U_kΣ_kV_kᵀ(XXᵀ)^{-1/2} are the same as the true parameters W̃",
            "‖U_kΣ_kV_kᵀ(XXᵀ)^{-1/2} − W̃‖_F is below 1e-10 of ‖W̃‖_F for every N, and so are the differences of the curves from "
            "those of Figures 1 and 2",
            max(apart, curves) < 1e-10,
            f"largest relative difference {apart:.2g}, of the curves {curves:.2g}",
        ),
        _converges(panels[0], "left panel: W(t) converges to the true parameters, balanced starts"),
        _converges(panels[1], "right panel: W(t) converges to the true parameters, non-balanced starts"),
    ]
    return _result(
        3, "convergence to the true parameters",
        "The paper compares these curves with the left panels of Figures 1 and 2 to see that the critical point is W̃.",
        panels, "error", claims, (WIDTHS_CEILING, BALANCED, GAUSSIAN),
        ylabel=r"$\|W(t) - \widetilde W\|_F$", titles=_titles(panels), xscale="log",
    )  # fmt: skip


def figure_4(*, fast: bool = False, runs: Runs | None = None) -> FigureResult:
    """Supervised learning, balanced starts: the loss `½‖Y − W(t)X‖²`, sizes as in Figure 1. Arguments as `figure_1`."""
    runs = runs or Runs(fast)
    panels = _by_depth(runs, 4, [_panel(runs, "supervised", k, True) for k in (0, 1)], _loss)
    claims = [
        _converges(panels[0], "left panel: the loss converges to 0"),
        _converges(panels[1], "right panel: the loss converges to 0"),
        _slower_with_depth(panels, "the loss, like the error, converges more slowly for larger N", RANKED**2),
    ]
    return _result(
        4, "supervised learning, loss for balanced starts",
        "The paper shows the same dependence on N in the loss as in the errors of Figure 1.",
        panels, "loss", claims, (WIDTHS_CEILING, BALANCED),
        ylabel=r"$L(W(t)) = \frac{1}{2}\|Y - W(t)X\|_F^2$", titles=_titles(panels), xscale="log",
        floor=FLOOR**2, noise=NOISE**2,
    )  # fmt: skip


def _balanced_sizes(runs: Runs) -> list[list[Case]]:
    """Dimensions between `2N` and `20N`, as printed; at `N = 20` up to 200, since 400 would take eight times as long."""
    left, right = ((10, 40), (40,)) if runs.fast else ((4, 10, 20, 40), (40, 100, 200))
    span = 40.0 if runs.fast else 100.0
    return [_dimensions(2, left, True, span), _dimensions(20, right, True, span)]


def _by_dimension(
    runs: Runs, number: int, cases: Sequence[Sequence[Case]], measure: Measure
) -> list[list[tuple[Run, Curve]]]:
    known = runs.get(f"Figure {number}", [case for panel in cases for case in panel])
    return [[(known[c], _curve(known[c], measure, f"$d_x = {c.d}$, $r = {c.rank}$")) for c in panel] for panel in cases]


def _late_rate_is_predicted(panels: Sequence[Sequence[tuple[Run, Curve]]]) -> Claim:
    entries = [entry for panel in panels for entry in panel]
    pairs = {_label(run): (curve.late_rate(), _slowest_rate(run)) for run, curve in entries}
    # Where the error has not fallen far, other directions have not died out.
    late = [pairs[_label(run)] for run, curve in entries if curve.final < LATE * curve.values[0]]
    return Claim(
        "(not the paper's) the late rate is the least eigenvalue of the Riemannian Hessian at U_rU_rᵀ, which does not depend "
        "on N and is about (λ_r − λ_{r+1})/2 for a small gap of XXᵀ",
        f"the fitted rate lies within 10 % of it in every run whose error falls below {LATE:g} of the first; not decided if "
        "none does",
        all(abs(rate / predicted - 1) < 0.1 for rate, predicted in late) if late else None,
        ", ".join(
            f"{label} {number_text(rate)} (predicted {predicted:.3g})" for label, (rate, predicted) in pairs.items()
        ),
    )


def _depth_titles(panels: Sequence[Sequence[tuple[Run, Curve]]]) -> list[str]:
    return [f"$N = {p[0][0].case.depth}$, {p[0][0].case.start_name}" for p in panels]


def figure_5(*, fast: bool = False, runs: Runs | None = None) -> FigureResult:
    """Autoencoder, balanced starts: `‖W(t) − U_rU_rᵀ‖_F` for several `d`, `r = d/2`, `N = 2`, `20`. Arguments as `figure_1`."""
    runs = runs or Runs(fast)
    panels = _by_dimension(runs, 5, _balanced_sizes(runs), _distance_to_best)
    rates = [[curve.late_rate() for _, curve in entries] for entries in panels]
    span = panels[0][0][0].case.t1
    shared = {run.case.d: curve.time_to(RANKED) for run, curve in panels[0]}
    pairs = {
        run.case.d: (shared[run.case.d], curve.time_to(RANKED)) for run, curve in panels[1] if run.case.d in shared
    }
    claims = [
        _converges(panels[0], "N = 2: the limit of W(t) is U_rU_rᵀ for all d"),
        _converges(panels[1], "N = 20: the limit of W(t) is U_rU_rᵀ for all d"),
        Claim(
            "the convergence rates decrease with an increase in d",
            "in both panels the fitted late rate decreases from every d to the next",
            all(a > b for row in rates for a, b in zip(row[:-1], row[1:], strict=True)),
            "; ".join(
                ", ".join(f"{_label(run)} {number_text(rate)}" for (run, _), rate in zip(entries, row, strict=True))
                for entries, row in zip(panels, rates, strict=True)
            ),
        ),
        Claim(
            "the convergence rates decrease with an increase in N",
            f"at every d that both panels have, the time to {RANKED:g} of the first error is longer for N = 20",
            every(_longer((a, span), (b, span)) for a, b in pairs.values()),
            ", ".join(f"d={d}: {number_text(a)} for N = 2, {number_text(b)} for N = 20" for d, (a, b) in pairs.items()),
        ),
        _late_rate_is_predicted(panels),
    ]
    return _result(
        5, "autoencoder, balanced starts",
        "The paper shows that W(t) converges to U_rU_rᵀ for all N and ranks considered, more slowly for larger d and N.",
        panels, "error", claims, (WIDTHS_NEAREST, BALANCED, _SIZES), ylabel=r"$\|W(t) - U_rU_r^\top\|_F$",
        titles=_depth_titles(panels),
    )  # fmt: skip


_SIZES = (
    "The print varies d between 2N and 20N and does not list the values; at N = 20 the largest here is 200, since 400 would take "
    "eight times as long."
)


_ROOT = (
    "The print says that L¹(W(t)) converges to the square root of the tail: it is ‖X − WX‖_F that does; L¹ converges to half the "
    "tail."
)


def figure_6(*, fast: bool = False, runs: Runs | None = None) -> FigureResult:
    """Autoencoder, balanced starts: `‖X − W(t)X‖_F` and its limit `√(Σ_{i>r}σ_i²)`, runs of Figure 5. Arguments as `figure_1`."""
    runs = runs or Runs(fast)
    panels = _by_dimension(runs, 6, _balanced_sizes(runs), _misfit)
    tails: list[list[float]] = []
    ratios, halves, falling = {}, {}, {}
    for entries in panels:
        tails.append([])
        for run, curve in entries:
            tail = float(np.sqrt(np.sum(np.asarray(run.problem.singular_values)[run.case.rank :] ** 2)))
            tails[-1].append(tail)
            ratios[_label(run)] = abs(curve.final / tail - 1)
            falling[_label(run)] = curve.final - tail < 0.99 * (curve.at(0.5 * float(curve.times[-1])) - tail)
            halves[_label(run)] = abs(0.5 * curve.final**2 / (0.5 * tail**2) - 1), 0.5 * curve.final**2 / tail
    claims = [
        Claim(
            "‖X − W(t)X‖_F converges to √(Σ_{i>r} σ_i²)",
            f"in every run the value at T differs from it by less than {CONVERGED:g} of it; not decided where it does not but "
            "the difference still falls, by at least 1 % in the second half of the run",
            every(True if ratio < CONVERGED else None if falling[label] else False for label, ratio in ratios.items()),
            "relative difference at T: " + ", ".join(f"{label} {ratio:.2g}" for label, ratio in ratios.items()),
        ),
        Claim(
            "“convergence of the functional L¹(W(t)) to … the square-root of the sum of the tail eigenvalues”, as printed",
            f"in every run L¹(W(T)) = ½‖X − WX‖² differs from √(Σ_{{i>r}} σ_i²) by less than {CONVERGED:g} of it",
            all(abs(ratio - 1) < CONVERGED for _, ratio in halves.values()),
            "L¹ over √tail: " + ", ".join(f"{label} {ratio:.3g}" for label, (_, ratio) in halves.items()),
        ),
        Claim(
            "(corrected) L¹(W(t)) converges to ½Σ_{i>r} σ_i²",
            f"in every run the relative difference at T is below {2 * CONVERGED:g}; not decided likewise",
            every(
                True if ratio < 2 * CONVERGED else None if falling[label] else False
                for label, (ratio, _) in halves.items()
            ),
            "relative difference: " + ", ".join(f"{label} {ratio:.2g}" for label, (ratio, _) in halves.items()),
        ),
    ]
    return _result(
        6, "autoencoder, balanced starts, reconstruction error",
        "The paper shows ‖X − W(t)X‖_F converging to √(Σ_{i>r} σ_i²), σ_i² the eigenvalues of XXᵀ.",
        panels, "misfit", claims,
        (WIDTHS_NEAREST, BALANCED, _SIZES, _ROOT),
        ylabel=r"$\|X - W(t)X\|_F$", titles=_depth_titles(panels), limits=tails, xscale="log", yscale="linear",
    )  # fmt: skip


_CAPTION = "The text announces N = 2 and N = 20 for this figure, its caption N = 5 and N = 10: these are shown."


def figure_7(*, fast: bool = False, runs: Runs | None = None) -> FigureResult:
    """Autoencoder, non-balanced starts: `‖W(t) − U_rU_rᵀ‖_F` for several `d`, `N = 5` and `10`. Arguments as `figure_1`."""
    runs = runs or Runs(fast)
    left, right = ((10,), (20,)) if runs.fast else ((10, 40, 100), (20, 80, 200))
    span = 40.0 if runs.fast else 100.0
    cases = [_dimensions(5, left, False, span), _dimensions(10, right, False, span)]
    panels = _by_dimension(runs, 7, cases, _distance_to_best)
    claims = [
        _converges(panels[0], "N = 5: W(t) converges to U_rU_rᵀ"),
        _converges(panels[1], "N = 10: W(t) converges to U_rU_rᵀ"),
    ]
    return _result(
        7, "autoencoder, non-balanced starts",
        "The paper shows that W(t) converges to U_rU_rᵀ as in the balanced case.",
        panels, "error", claims,
        (WIDTHS_NEAREST, GAUSSIAN, _CAPTION),
        ylabel=r"$\|W(t) - U_rU_r^\top\|_F$", titles=_depth_titles(panels),
    )  # fmt: skip


def _rate_claims(panels: Sequence[Sequence[tuple[Run, Curve]]]) -> list[Claim]:
    """From the distances to the predicted limit: those to `W(T)` say nothing where a run ended early."""
    distances = {
        _label(run): float(np.linalg.norm(run.final - run.best) / np.linalg.norm(run.best))
        for entries in panels
        for run, _ in entries
    }
    return [
        _slower_with_depth(panels, "the rate depends on N: convergence is slower for larger N"),
        _slower_with_size(panels, "the rate depends on d_x and r: convergence is slower for the larger ones"),
        Claim(
            "(not the paper's) W(T), which stands for the limit, is the limit U_rU_rᵀ",
            "‖W(T) − U_rU_rᵀ‖_F is below 1 % of ‖U_rU_rᵀ‖_F in every run",
            all(distance < 1e-2 for distance in distances.values()),
            "relative distance at T: " + ", ".join(f"{label} {x:.2g}" for label, x in distances.items()),
        ),
    ]


def figure_8(*, fast: bool = False, runs: Runs | None = None) -> FigureResult:
    """Autoencoder, balanced starts: `‖W(t) − W(T)‖_F`, `(d, r) = (20, 1)` and `(200, 10)`, all depths. Arguments as `figure_1`.

    The conclusion's comparison of the dependence on depth needs the supervised runs of Figure 1's left panel too.
    """
    runs = runs or Runs(fast)
    cases = [*(_panel(runs, "autoencoder", k, True) for k in (0, 1)), _panel(runs, "supervised", 0, True)]
    *panels, supervised = _by_depth(runs, 8, cases, _distance_to_best)
    ratios = [entries[-1][1].time_to(RANKED) / entries[0][1].time_to(RANKED) for entries in (panels[0], supervised)]
    best, panels = panels, _by_depth(runs, 8, cases[:2], _distance_to_end)
    rises = max(
        float(np.max(np.diff(curve.values)[curve.times[1:] > 0.1 * run.case.t1]) / curve.values[0])
        for entries in panels
        for run, curve in entries
    )
    claims = [
        Claim(
            "the convergence is smooth",
            "from T/10 on ‖W(t) − W(T)‖_F never rises by more than 1e-3 of its first value from one saved time to the next",
            rises < 1e-3,
            f"largest rise {rises:.2g} of the first value",
        ),
        *_rate_claims(best),
        Claim(
            "the dependence on N is stronger in the supervised than in the autoencoder case",
            f"at d = 20 the time to {RANKED:g} of the first error (to the predicted limit) grows from N = 2 to N = 20 by a "
            "larger factor in the supervised case",
            bool(ratios[1] > ratios[0]),
            f"factor {number_text(ratios[0])} for autoencoders, {number_text(ratios[1])} supervised",
        ),
        _late_rate_is_predicted(best),
    ]
    return _result(
        8, "autoencoder, convergence rates, balanced starts",
        "The paper shows smooth and very rapid convergence, with rates that depend on N, d_x and r.",
        panels, "error", claims, (WIDTHS_CEILING, BALANCED, _TO_END), ylabel=r"$\|W(t) - W(T)\|_F$", titles=_titles(panels),
        until=0.5,
    )  # fmt: skip


_TO_END = (
    "Errors to W(T) vanish at T by construction, however far W(T) is from the limit; late rates are fitted to t ≤ T/2, and the "
    "distance of W(T) from U_rU_rᵀ is given. Claims on times are decided by the distances to U_rU_rᵀ. Where both solvers ended "
    "before T, W(T) is the last matrix."
)


def figure_9(*, fast: bool = False, runs: Runs | None = None) -> FigureResult:
    """Figure 8 with non-balanced starts; compared with Figure 8. Arguments as `figure_1`."""
    runs = runs or Runs(fast)
    cases = _both_kinds(runs, "autoencoder")
    panels = _by_depth(runs, 9, cases[:2], _distance_to_end)
    *best, left, right = _by_depth(runs, 9, cases, _distance_to_best)
    balanced, others = (
        [(curve.time_to(RANKED), float(curve.times[-1])) for _, curve in (*one, *other)]
        for one, other in ((left, right), best)
    )
    claims = [
        *_rate_claims(best),
        Claim(
            "convergence is slightly faster for the balanced than for the non-balanced case",
            f"for every N and size the time to {RANKED:g} of the first error (to the predicted limit) is shorter for the "
            "balanced start, and by less than a factor 2",
            every(
                verdict for pair in zip(balanced, others, strict=True) for verdict in (_longer(*pair), _alike(*pair))
            ),
            f"balanced: {_times((*left, *right))}; others: {_times((*best[0], *best[1]))}",
        ),
    ]
    return _result(
        9, "autoencoder, convergence rates, non-balanced starts",
        "The paper shows convergence, slightly slower than for the balanced starts of Figure 8.",
        panels, "error", claims, (WIDTHS_CEILING, GAUSSIAN, _TO_END), ylabel=r"$\|W(t) - W(T)\|_F$", titles=_titles(panels),
        until=0.5,
    )  # fmt: skip


#: The figures by their numbers.
FIGURES: dict[int, Callable[..., FigureResult]] = {
    1: figure_1, 2: figure_2, 3: figure_3, 4: figure_4, 5: figure_5, 6: figure_6, 7: figure_7, 8: figure_8, 9: figure_9,
}  # fmt: skip


def run_figures(
    numbers: Sequence[int], fast: bool = False, report: Callable[[str, int, int], None] | None = None
) -> Iterator[FigureResult]:
    """The figures of these numbers one after another, each as soon as it is done; what they share is computed once."""
    runs = Runs(fast, report)
    for number in numbers:
        yield FIGURES[number](runs=runs)
