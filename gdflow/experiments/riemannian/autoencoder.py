"""Figures 5 to 9: the autoencoder, `Y = X`."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gdflow.experiments.results import Claim, FigureResult, every, number_text
from gdflow.experiments.riemannian.claims import (
    CONVERGED,
    RANKED,
    all_settle,
    are_alike,
    converges,
    is_longer,
    listed,
    run_name,
    slower_with_depth,
    slower_with_size,
    still_falls,
    times_text,
    timing,
)
from gdflow.experiments.riemannian.figures import (
    BALANCED,
    GAUSSIAN,
    WIDTHS_CEILING,
    Entry,
    both_starts,
    by_dimension,
    distance_to_best,
    figure_result,
    loss_of,
    measured_panels,
    panel_cases,
    size_titles,
)
from gdflow.experiments.riemannian.runs import Case, Run, Runs
from gdflow.manifold import riemannian_hessian_form

#: Late rates are compared where the error falls below this fraction, so that faster directions have died out.
LATE = 1e-4
WIDTHS_NEAREST = "Widths by the printed rounding, d_j = ⌊r + (d − r)(j − 1)/(N − 1) + ½⌋, r = ⌊d/2 + ½⌋."
SIZES = (
    "The print varies d between 2N and 20N and does not list the values; at N = 20 the largest here is 200, since 400 would take "
    "eight times as long."
)
ROOT = (
    "The print says that L¹(W(t)) converges to the square root of the tail: it is ‖X − WX‖_F that does; L¹ converges to half the "
    "tail."
)
CAPTION = "The text announces N = 2 and N = 20 for this figure, its caption N = 5 and N = 10: these are shown."
TO_END = (
    "Errors to W(T) vanish at T by construction, however far W(T) is from the limit; late rates are fitted to t ≤ T/2, and the "
    "distance of W(T) from U_rU_rᵀ is given. Claims on times are decided by the distances to U_rU_rᵀ. Where both solvers ended "
    "before T, W(T) is the last matrix."
)


def _distance_to_end(run: Run, W: Float[np.ndarray, "n d d"]) -> Float[np.ndarray, " n"]:
    return np.linalg.norm(W - run.final, axis=(1, 2))


def _misfit(run: Run, W: Float[np.ndarray, "n d d"]) -> Float[np.ndarray, " n"]:
    """`‖Y − WX‖_F`, which for these targets has no part that `W` cannot reach."""
    return np.sqrt(2 * loss_of(run, W))


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


def _dimensions(runs: Runs, depth: int, dimensions: Sequence[int], balanced: bool, t1: float) -> list[Case]:
    return [Case("autoencoder", d, (d + 1) // 2, depth, balanced, t1, "nearest", runs.seed) for d in dimensions]


def _balanced_sizes(runs: Runs) -> list[list[Case]]:
    """Dimensions between `2N` and `20N`, as printed; at `N = 20` up to 200, since 400 would take eight times as long."""
    left, right = ((10, 40), (40,)) if runs.fast else ((4, 10, 20, 40), (40, 100, 200))
    span = 40.0 if runs.fast else 100.0
    return [_dimensions(runs, 2, left, True, span), _dimensions(runs, 20, right, True, span)]


def _depth_titles(panels: Sequence[Sequence[Entry]]) -> list[str]:
    return [f"$N = {p[0][0].case.depth}$, {p[0][0].case.start_name}" for p in panels]


def _late_rate_is_predicted(panels: Sequence[Sequence[Entry]]) -> Claim:
    entries = [entry for panel in panels for entry in panel]
    pairs = {run_name(run): (curve.late_rate(), _slowest_rate(run)) for run, curve in entries}
    # Where the error has not fallen far, other directions have not died out.
    late = [pairs[run_name(run)] for run, curve in entries if curve.final < LATE * curve.values[0]]
    return Claim(
        "the late rate is the least eigenvalue of the Riemannian Hessian at U_rU_rᵀ, which does not depend "
        "on N and is about (λ_r − λ_{r+1})/2 for a small gap of XXᵀ",
        f"the fitted rate lies within 10 % of it in every run whose error falls below {LATE:g} of the first; not decided if "
        "none does",
        all(abs(rate / predicted - 1) < 0.1 for rate, predicted in late) if late else None,
        ", ".join(
            f"{label} {number_text(rate)} (predicted {predicted:.3g})" for label, (rate, predicted) in pairs.items()
        ),
        ours=True,
    )


def _rate_claims(panels: Sequence[Sequence[Entry]]) -> list[Claim]:
    """From the distances to the predicted limit: those to `W(T)` say nothing where a run ended early."""
    distances = {
        run_name(run): float(np.linalg.norm(run.final - run.best) / np.linalg.norm(run.best))
        for entries in panels
        for run, _ in entries
    }
    return [
        slower_with_depth(panels, "the rate depends on N: convergence is slower for larger N"),
        slower_with_size(panels, "the rate depends on d_x and r: convergence is slower for the larger ones"),
        Claim(
            "W(T), which stands for the limit, is the limit U_rU_rᵀ",
            "‖W(T) − U_rU_rᵀ‖_F is below 1 % of ‖U_rU_rᵀ‖_F in every run",
            all(distance < 1e-2 for distance in distances.values()),
            "relative distance at T: " + listed(distances),
            ours=True,
        ),
    ]


def figure_5(*, fast: bool = False, runs: Runs | None = None) -> FigureResult:
    """Autoencoder, balanced starts: `‖W(t) − U_rU_rᵀ‖_F` for several `d`, `r = d/2`, `N = 2`, `20`. Arguments as `figure_1`."""
    runs = runs or Runs(fast)
    panels = measured_panels(runs, 5, _balanced_sizes(runs), distance_to_best, by_dimension)
    rates = [[curve.late_rate() for _, curve in entries] for entries in panels]
    span = panels[0][0][0].case.t1
    shared = {run.case.d: curve.time_to(RANKED) for run, curve in panels[0]}
    pairs = {
        run.case.d: (shared[run.case.d], curve.time_to(RANKED)) for run, curve in panels[1] if run.case.d in shared
    }
    claims = [
        converges(panels[0], "N = 2: the limit of W(t) is U_rU_rᵀ for all d"),
        converges(panels[1], "N = 20: the limit of W(t) is U_rU_rᵀ for all d"),
        Claim(
            "the convergence rates decrease with an increase in d",
            "in both panels the fitted late rate decreases from every d to the next",
            all(a > b for row in rates for a, b in zip(row[:-1], row[1:], strict=True)),
            "; ".join(
                ", ".join(f"{run_name(run)} {number_text(rate)}" for (run, _), rate in zip(entries, row, strict=True))
                for entries, row in zip(panels, rates, strict=True)
            ),
        ),
        Claim(
            "the convergence rates decrease with an increase in N",
            f"at every d that both panels have, the time to {RANKED:g} of the first error is longer for N = 20",
            every(is_longer((a, span), (b, span)) for a, b in pairs.values()),
            ", ".join(f"d={d}: {number_text(a)} for N = 2, {number_text(b)} for N = 20" for d, (a, b) in pairs.items()),
        ),
        _late_rate_is_predicted(panels),
    ]
    return figure_result(
        5, "autoencoder, balanced starts",
        "The paper shows that W(t) converges to U_rU_rᵀ for all N and ranks considered, more slowly for larger d and N.",
        panels, "error", claims, (WIDTHS_NEAREST, BALANCED, SIZES), ylabel=r"$\|W(t) - U_rU_r^\top\|_F$",
        titles=_depth_titles(panels),
    )  # fmt: skip


def figure_6(*, fast: bool = False, runs: Runs | None = None) -> FigureResult:
    """Autoencoder, balanced starts: `‖X − W(t)X‖_F` and its limit `√(Σ_{i>r}σ_i²)`, runs of Figure 5. Arguments as `figure_1`."""
    runs = runs or Runs(fast)
    panels = measured_panels(runs, 6, _balanced_sizes(runs), _misfit, by_dimension)
    tails: list[list[float]] = []
    ratios, differences, printed, falling = {}, {}, {}, {}
    for entries in panels:
        tails.append([])
        for run, curve in entries:
            tail = float(np.sqrt(np.sum(np.asarray(run.problem.singular_values)[run.case.rank :] ** 2)))
            tails[-1].append(tail)
            ratios[run_name(run)] = abs(curve.final / tail - 1)
            differences[run_name(run)] = abs(0.5 * curve.final**2 / (0.5 * tail**2) - 1)
            printed[run_name(run)] = 0.5 * curve.final**2 / tail
            falling[run_name(run)] = still_falls(curve, tail)
    claims = [
        Claim(
            "‖X − W(t)X‖_F converges to √(Σ_{i>r} σ_i²)",
            f"in every run the value at T differs from it by less than {CONVERGED:g} of it; not decided where it does not but "
            "the difference still falls, by at least 1 % in the second half of the run",
            all_settle(ratios, falling, CONVERGED),
            "relative difference at T: " + listed(ratios),
        ),
        Claim(
            "“convergence of the functional L¹(W(t)) to … the square-root of the sum of the tail eigenvalues”, as printed",
            f"in every run L¹(W(T)) = ½‖X − WX‖² differs from √(Σ_{{i>r}} σ_i²) by less than {CONVERGED:g} of it",
            all(abs(ratio - 1) < CONVERGED for ratio in printed.values()),
            "L¹ over √tail: " + listed(printed, digits=3),
        ),
        Claim(
            "(corrected) L¹(W(t)) converges to ½Σ_{i>r} σ_i²",
            f"in every run the relative difference at T is below {2 * CONVERGED:g}; not decided likewise",
            all_settle(differences, falling, 2 * CONVERGED),
            "relative difference: " + listed(differences),
        ),
    ]
    return figure_result(
        6, "autoencoder, balanced starts, reconstruction error",
        "The paper shows ‖X − W(t)X‖_F converging to √(Σ_{i>r} σ_i²), σ_i² the eigenvalues of XXᵀ.",
        panels, "misfit", claims,
        (WIDTHS_NEAREST, BALANCED, SIZES, ROOT),
        ylabel=r"$\|X - W(t)X\|_F$", titles=_depth_titles(panels), limits=tails, xscale="log", yscale="linear",
    )  # fmt: skip


def figure_7(*, fast: bool = False, runs: Runs | None = None) -> FigureResult:
    """Autoencoder, non-balanced starts: `‖W(t) − U_rU_rᵀ‖_F` for several `d`, `N = 5` and `10`. Arguments as `figure_1`."""
    runs = runs or Runs(fast)
    left, right = ((10,), (20,)) if runs.fast else ((10, 40, 100), (20, 80, 200))
    span = 40.0 if runs.fast else 100.0
    cases = [_dimensions(runs, 5, left, False, span), _dimensions(runs, 10, right, False, span)]
    panels = measured_panels(runs, 7, cases, distance_to_best, by_dimension)
    claims = [
        converges(panels[0], "N = 5: W(t) converges to U_rU_rᵀ"),
        converges(panels[1], "N = 10: W(t) converges to U_rU_rᵀ"),
    ]
    return figure_result(
        7, "autoencoder, non-balanced starts",
        "The paper shows that W(t) converges to U_rU_rᵀ as in the balanced case.",
        panels, "error", claims,
        (WIDTHS_NEAREST, GAUSSIAN, CAPTION),
        ylabel=r"$\|W(t) - U_rU_r^\top\|_F$", titles=_depth_titles(panels),
    )  # fmt: skip


def figure_8(*, fast: bool = False, runs: Runs | None = None) -> FigureResult:
    """Autoencoder, balanced starts: `‖W(t) − W(T)‖_F`, `(d, r) = (20, 1)` and `(200, 10)`, all depths. Arguments as `figure_1`.

    The conclusion's comparison of the dependence on depth needs the supervised runs of Figure 1's left panel too.
    """
    runs = runs or Runs(fast)
    cases = [*(panel_cases(runs, "autoencoder", k, True) for k in (0, 1)), panel_cases(runs, "supervised", 0, True)]
    *panels, supervised = measured_panels(runs, 8, cases, distance_to_best)
    ratios = [entries[-1][1].time_to(RANKED) / entries[0][1].time_to(RANKED) for entries in (panels[0], supervised)]
    best, panels = panels, measured_panels(runs, 8, cases[:2], _distance_to_end)
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
    return figure_result(
        8, "autoencoder, convergence rates, balanced starts",
        "The paper shows smooth and very rapid convergence, with rates that depend on N, d_x and r.",
        panels, "error", claims, (WIDTHS_CEILING, BALANCED, TO_END), ylabel=r"$\|W(t) - W(T)\|_F$", titles=size_titles(panels),
        until=0.5,
    )  # fmt: skip


def figure_9(*, fast: bool = False, runs: Runs | None = None) -> FigureResult:
    """Figure 8 with non-balanced starts; compared with Figure 8. Arguments as `figure_1`."""
    runs = runs or Runs(fast)
    cases = both_starts(runs, "autoencoder")
    panels = measured_panels(runs, 9, cases[:2], _distance_to_end)
    *best, left, right = measured_panels(runs, 9, cases, distance_to_best)
    balanced, others = ([timing(curve) for _, curve in (*one, *other)] for one, other in ((left, right), best))
    claims = [
        *_rate_claims(best),
        Claim(
            "convergence is slightly faster for the balanced than for the non-balanced case",
            f"for every N and size the time to {RANKED:g} of the first error (to the predicted limit) is shorter for the "
            "balanced start, and by less than a factor 2",
            every(
                verdict
                for pair in zip(balanced, others, strict=True)
                for verdict in (is_longer(*pair), are_alike(*pair))
            ),
            f"balanced: {times_text((*left, *right))}; others: {times_text((*best[0], *best[1]))}",
        ),
    ]
    return figure_result(
        9, "autoencoder, convergence rates, non-balanced starts",
        "The paper shows convergence, slightly slower than for the balanced starts of Figure 8.",
        panels, "error", claims, (WIDTHS_CEILING, GAUSSIAN, TO_END), ylabel=r"$\|W(t) - W(T)\|_F$", titles=size_titles(panels),
        until=0.5,
    )  # fmt: skip
