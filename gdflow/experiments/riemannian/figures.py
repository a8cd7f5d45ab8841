"""What the figures have in common: which runs they show, how they are measured, and how a result is put together."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from jaxtyping import Float

from gdflow.experiments.results import Claim, Curve, FigureResult, Panel, draw_panels
from gdflow.experiments.riemannian.runs import SOLVERS, STEP_FACTOR, STEP_FACTOR_OTHERS, Case, Run, Runs

#: A run and what is shown of it.
Entry = tuple[Run, Curve]
#: A quantity of a run at end-to-end matrices.
Measure = Callable[[Run, Float[np.ndarray, "n d d"]], Float[np.ndarray, " n"]]

DEPTHS = (2, 5, 10, 20)
#: Errors below this are not drawn, and the adaptive solver's not where they have fallen to this fraction of the first one.
FLOOR, NOISE = 1e-9, 1e-6
WIDTHS_CEILING = (
    "Widths by the printed ceiling, d_j = ⌈r + (d − r)(j − 1)/(N − 1)⌉ (section B.1 rounds to the nearest instead)."
)
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


def distance_to_best(run: Run, W: Float[np.ndarray, "n d d"]) -> Float[np.ndarray, " n"]:
    """`‖W − U_kΣ_kV_kᵀ(XXᵀ)^{-1/2}‖_F`."""
    return np.linalg.norm(W - run.best, axis=(1, 2))


def loss_of(run: Run, W: Float[np.ndarray, "n d d"]) -> Float[np.ndarray, " n"]:
    """`L¹(W) = ½‖Y − WX‖_F²`."""
    return np.asarray(jax.vmap(run.problem.end_to_end_loss)(jnp.asarray(W)))


def measured_curve(run: Run, measure: Measure, label: str) -> Curve:
    """What both solvers say of a quantity."""
    return Curve(label, run.ts, measure(run, run.first), measure(run, run.second))


def panel_cases(runs: Runs, task: Literal["autoencoder", "supervised"], panel: int, balanced: bool) -> list[Case]:
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
    return [Case(task, d, rank, N, balanced, t1, seed=runs.seed) for N in depths]


def both_starts(runs: Runs, task: Literal["autoencoder", "supervised"]) -> list[list[Case]]:
    """Two panels with non-balanced starts, then the same with balanced ones."""
    panels = [panel_cases(runs, task, k, False) for k in (0, 1)]
    return panels + [[dataclasses.replace(case, balanced=True) for case in panel] for panel in panels]


def by_depth(case: Case) -> str:
    """The label of a curve where panels compare depths …"""
    return f"$N = {case.depth}$"


def by_dimension(case: Case) -> str:
    """… and where they compare sizes."""
    return f"$d_x = {case.d}$, $r = {case.rank}$"


def measured_panels(
    runs: Runs,
    number: int,
    cases: Sequence[Sequence[Case]],
    measure: Measure,
    label: Callable[[Case], str] = by_depth,
) -> list[list[Entry]]:
    """The runs of the panels of a figure, each with its curve."""
    known = runs.get(f"Figure {number}", [case for panel in cases for case in panel])
    return [[(known[case], measured_curve(known[case], measure, label(case))) for case in panel] for panel in cases]


def size_titles(panels: Sequence[Sequence[Entry]]) -> list[str]:
    """Panels named by size, rank and kind of start."""
    return [f"$d_x = {p[0][0].case.d}$, $r = {p[0][0].case.rank}$, {p[0][0].case.start_name}" for p in panels]


def figure_result(
    number: int,
    title: str,
    paper: str,
    panels: Sequence[Sequence[Entry]],
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
    """Collects picture, tables and claims.

    **Arguments:** `quantity`: names the column of values; `limits`: what they tend to, for every curve, if not to 0; `until`: the
    part of a run that late rates are fitted to.
    """
    name = f"riemannian-{number}"
    picture = draw_panels(
        [Panel(t, [c for _, c in p], li) for t, p, li in zip(titles, panels, limits or [()] * len(panels), strict=True)],
        ylabel, solvers=SOLVERS, xscale=xscale, yscale=yscale, floor=floor, noise=noise,
    )  # fmt: skip
    rows, summary = [], []
    tends_to = limits or [[0.0] * len(entries) for entries in panels]
    for panel, entries, ends in zip(("left", "right"), panels, tends_to, strict=True):
        for (run, curve), end in zip(entries, ends, strict=True):
            case = run.case
            key = dict(panel=panel, d=case.d, r=case.rank, N=case.depth, start=case.start_name)
            for solver, values in zip(SOLVERS, (curve.first, curve.second), strict=True):
                for t, value in zip(run.ts, values, strict=False):
                    rows.append({**key, "solver": solver, "t": float(t), quantity: float(value)})
            course: dict[str, float] = {"limit": end}
            if limits is None:
                course = {"t to 1e-2": curve.time_to(1e-2), "t to 1e-5": curve.time_to(1e-5)}
                course["late rate"] = curve.late_rate(until=until * float(curve.times[-1]))
            summary.append(
                {
                    **key,
                    "seed": case.seed,
                    "h": run.step,
                    "λ": run.eigenvalue,
                    "RK4 to t": run.span,
                    "adaptive steps": run.num_steps,
                    "T": float(curve.times[-1]),
                    f"{quantity} at T": curve.final,
                    **course,
                    "difference": run.difference,
                    "ended": run.status,
                }
            )
    agreement = max(
        (run.difference / np.linalg.norm(run.best) for entries in panels for run, _ in entries), default=0.0
    )
    solvers = Claim(
        "the two solvers agree",
        "the largest ‖W_RK4(t) − W_adaptive(t)‖_F is below 1 % of ‖W*‖_F in every run",
        bool(agreement < 1e-2),
        f"largest relative difference {agreement:.2g}",
        ours=True,
    )
    return FigureResult(
        name, f"Figure {number}: {title}", paper, (*claims, solvers), pa.Table.from_pylist(rows),
        pa.Table.from_pylist(summary), picture, (*notes, SOLVING),
    )  # fmt: skip
