"""Pictures that a paper could print: labelled axes, levels, colour-blind safe colours (Okabe–Ito, viridis).

Every function returns a `matplotlib.figure.Figure` and leaves pyplot's state alone.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Key
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from gdflow.basins import BasinEstimate
from gdflow.basins.intervals import interval_text
from gdflow.basins.outcomes import is_certified
from gdflow.dynamics import Trajectory, simulate
from gdflow.initialization import AbstractInitialization
from gdflow.landscape import Strata, hessian, inertia, subset_text
from gdflow.levels import CriticalValues
from gdflow.network import LayerTuple
from gdflow.problem import Problem, critical_values

#: Okabe and Ito's colours, without yellow, which prints badly on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")

#: More levels than this are drawn without labels.
MAX_LABELS = 8


def _draw_levels(axes: Axes, levels: CriticalValues, lowest: float) -> None:
    """Dashed lines at the critical values above `lowest`, labelled with their subsets where there is room."""
    shown = [level for level in levels if level.value > lowest]
    previous = 0.0
    for level in shown:
        axes.axhline(level.value, color="0.6", lw=0.8, ls="--", zorder=0)
        # On a logarithmic axis labels closer than about 15 % of a decade would overprint.
        if len(shown) <= MAX_LABELS and (previous == 0 or level.value > 1.45 * previous):
            subset = ",".join(map(str, level.subsets[0]))
            more = " …" if level.num_subsets > 1 else ""
            axes.annotate(
                rf"$\ell(\{{{subset}\}})$" + more,
                (1.01, level.value),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=8,
            )
            previous = level.value


def _sample_trajectories(
    estimate: BasinEstimate, problem: Problem, initialization: AbstractInitialization, key: Key[Array, ""], num: int
) -> tuple[Trajectory, np.ndarray, np.ndarray]:
    """Trajectories of starts spread over the fast and the slow ones, with certificate times (NaN: none) and levels."""
    times = np.where(is_certified(estimate.outcomes), estimate.outcomes["time"].to_numpy(), np.nan)
    usable = np.flatnonzero(np.isfinite(estimate.outcomes["loss"].to_numpy()))
    order = usable[np.argsort(times[usable], kind="stable")]  # NaN last
    rows = order[np.unique(np.round(np.linspace(0.01, 0.99, num) * (len(order) - 1)).astype(int))]
    reached = np.where(np.isnan(times), estimate.outcomes["time"].to_numpy(), times)[rows]
    starts = initialization.sample_batch(key, estimate.outcomes["id"].to_numpy()[rows])
    end = max(1.25 * float(reached.max()), 1e-12)
    trajectory = simulate(problem, starts, end, ts=300, dense=False, rtol=1e-6, atol=1e-9)
    return trajectory, times[rows], estimate.outcomes["level"].to_numpy()[rows]


def plot_basins(
    estimate: BasinEstimate,
    problem: Problem,
    initialization: AbstractInitialization,
    key: Key[Array, ""],
    *,
    num_trajectories: int = 8,
) -> Figure:
    """Loss staircases of sample trajectories between the levels, and the distribution of certificate times.

    **Arguments:** the estimate, and the problem, law and key it was made with; `num_trajectories` starts, spread over the
    fast and the slow ones, are integrated anew.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    finite = np.isfinite(estimate.outcomes["loss"].to_numpy())
    if finite.any():
        trajectory, certified_at, limits = _sample_trajectories(
            estimate, problem, initialization, key, num_trajectories
        )
        colors = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.85, len(certified_at)))
        top = float(np.nanmax(np.asarray(trajectory.losses)))
        positive = [level.value for level in estimate.levels if level.value > 0]
        floor = 0.1 * min([*positive, top])
        parts = zip(trajectory.ts, trajectory.losses, certified_at, limits, colors, strict=True)
        for ts, losses, time, limit, color in parts:
            left.plot(ts, np.maximum(losses, 1e-300), color=color, lw=1.3)
            if np.isfinite(time) and len(estimate.levels) > limit + 1:
                left.plot(time, estimate.levels[limit + 1].value, "o", ms=4, color=color, mec="k", mew=0.5)
        what = "limit" if np.any(limits[np.isfinite(certified_at)] > 0) else estimate.verdicts[0]
        left.plot([], [], "o", ms=4, color="0.5", mec="k", mew=0.5, label=f"{what} certified")
        left.plot([], [], color="0.6", lw=0.8, ls="--", label=r"critical values $\ell(S)$")
        left.set(xlabel="flow time $t$", ylabel="effective loss $L(t)$", yscale="log", ylim=(floor, 2 * top))
        left.set_title(f"{len(certified_at)} of {estimate.num} starts, fast to slow", fontsize=10)
        _draw_levels(left, estimate.levels, floor)
        left.legend(fontsize=8)

    times = estimate.certificate_times
    positive_times = times[times > 0]
    if positive_times.size:
        low, high = positive_times.min(), positive_times.max()
        bins = np.geomspace(low, max(high, 1.01 * low), 50)
        right.hist(positive_times, bins=bins, color=COLORS[0], edgecolor="white", lw=0.3)
        median = np.median(times)
        right.axvline(median, color=COLORS[1], lw=1.5, label=f"median {median:.3g}")
        right.legend(fontsize=8)
        right.set_xscale("log")
        decades = np.log10(bins[-1] / bins[0])
        right.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 3 else (1.0,)))
        right.xaxis.set_major_formatter("{x:g}")
        right.xaxis.set_minor_formatter(NullFormatter())
    right.set(xlabel="flow time to certificate", ylabel="starts")
    minimum = estimate.rows[0].certified
    lower = f" ({estimate.certified - minimum} lower rank)" if estimate.certified > minimum else ""
    interval = f"{100 * estimate.confidence:g} % interval {interval_text(estimate.interval)}"
    text = f"{minimum} of {estimate.num} certified{lower}: {interval}"
    right.set_title(text, fontsize=10 if not lower else 8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_trajectory(trajectory: Trajectory) -> Figure:
    """Loss between the levels, singular values of the end-to-end map against the target's, gradient norm and drift."""
    if trajectory.ts.ndim != 1:
        raise ValueError(f"one trajectory is needed, got a batch of {trajectory.ts.shape[0]}")
    problem = trajectory.problem
    ts = np.asarray(trajectory.ts)
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    first, second, third = figure.subplots(1, 3)
    losses = np.asarray(trajectory.losses)
    first.plot(ts, np.maximum(losses, 1e-300), color=COLORS[0])
    first.set(xlabel="flow time $t$", ylabel="effective loss $L(t)$", yscale="log")
    second.set(xlabel="flow time $t$", ylabel="singular value")
    if problem.spectrum is not None:
        levels = critical_values(problem, problem.max_rank(trajectory.start.widths), lowest=16)
        floor = max(0.5 * float(losses.min()), 1e-3 * min((v for v in levels.values if v > 0), default=1.0))
        first.set_ylim(bottom=floor)
        _draw_levels(first, levels, floor)
        first.plot([], [], color="0.6", lw=0.8, ls="--", label=r"critical values $\ell(S)$")
        first.legend(fontsize=8)
    # Effective singular values: those of WD, which converge to the s_i of the target.
    design = trajectory.problem.design
    values = trajectory.map_over_time(lambda net: jnp.linalg.svd(net.end_to_end @ design, compute_uv=False))
    for k, column in enumerate(np.asarray(values).T):
        color = COLORS[k % len(COLORS)]
        second.plot(ts, column, color=color, label=rf"$\sigma_{{{k + 1}}}(WD)$" if k < MAX_LABELS else None)
        if problem.spectrum is not None and k < problem.singular_values.shape[0]:
            second.axhline(float(problem.singular_values[k]), color=color, lw=0.8, ls=":")
    if problem.spectrum is not None:
        second.plot([], [], color="0.4", lw=0.8, ls=":", label="$s_i$ of the target")
    second.legend(fontsize=8)
    third.plot(ts, np.maximum(np.asarray(trajectory.gradient_norms), 1e-300), color=COLORS[0], label=r"$\|\nabla L\|$")
    drift = np.asarray(trajectory.drift)
    if drift.any():
        third.plot(ts, np.where(drift > 0, drift, np.nan), color=COLORS[1], label="relative drift of $C_j$")
    third.set(xlabel="flow time $t$", yscale="log")
    third.legend(fontsize=8)
    for axes in (first, second, third):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_strata(strata: Strata) -> Figure:
    """Every stratum of the critical set at its level, by rank; for one hidden layer with index and dimension."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    looks = {"global minima": ("o", 2), "strict saddles": ("s", 1), "saddles, some non-strict": ("^", 3)}
    for kind, (marker, color) in looks.items():
        rows = [row for row in strata if row.kind == kind]
        if rows:
            axes.plot([r.rank for r in rows], [r.value for r in rows], marker, color=COLORS[color], ms=7, label=kind)
    crowded = len(strata) > 24
    for row in strata:
        counts = "" if row.index is None else f"  index {row.index}, dim {row.dimension}"
        if not crowded:
            axes.annotate(
                f"{subset_text(row.subset)}{counts}", (row.rank, row.value), xytext=(7, 0),
                textcoords="offset points", va="center", fontsize=8,
            )  # fmt: skip
    ranks = range(max(row.rank for row in strata) + 1)
    axes.set(xlabel="rank $r = |S|$", ylabel=r"critical value $\ell(S)$", xticks=list(ranks))
    axes.set_xlim(-0.3, max(ranks) + 1.0)
    axes.set_title(f"strata of the critical set, widths {'-'.join(map(str, strata.widths))}", fontsize=10)
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_spectra(problem: Problem, points: Mapping[str, LayerTuple]) -> Figure:
    """Eigenvalues of the Hessian at several points, in order, on a scale that is linear about zero.

    **Arguments:** `points`: critical points, say one of each stratum, by the labels they get.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    spectra = {label: inertia(problem, net) for label, net in points.items()}
    largest = max(float(abs(spectrum.eigenvalues).max()) for spectrum in spectra.values())
    for k, (label, spectrum) in enumerate(spectra.items()):
        counts = f"{spectrum.negative}/{spectrum.zero}/{spectrum.positive}"
        axes.plot(
            np.arange(1, spectrum.eigenvalues.size + 1), spectrum.eigenvalues,
            ".-" if k < len(COLORS) else "x--", ms=5, lw=0.8, color=COLORS[k % len(COLORS)], label=f"{label}: {counts}",
        )  # fmt: skip
    axes.axhline(0.0, color="0.6", lw=0.8, zorder=0)
    axes.set_yscale("symlog", linthresh=max(1e-3 * largest, 1e-300))
    axes.set(xlabel="number of the eigenvalue", ylabel=r"eigenvalue of $\nabla^2L$")
    axes.legend(fontsize=8, title="negative/zero/positive", title_fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_saddle(problem: Problem, saddle: LayerTuple, *, extent: float = 0.5, num_trajectories: int = 8) -> Figure:
    """Slices of the loss through a saddle with trajectories that start in them, projected.

    Left: the unstable direction (the Hessian's most negative eigenvector) against the stable one (the most positive). Right: the
    unstable direction against a tangent one, in the kernel of the Hessian, along which the loss does not change to second
    order. At a point without negative eigenvalues the three extreme eigenvectors stand in.

    **Arguments:** `saddle`: a critical point; `extent`: half the side of the slice, in weights; `num_trajectories`: starts
    on a circle in the first slice and along the tangent direction in the second.
    """
    problem.check_network(saddle)
    eigenvalues, vectors = np.linalg.eigh(np.asarray(hessian(problem, saddle)))
    flat, unravel = ravel_pytree(saddle)
    kernel = int(np.argmin(abs(eigenvalues)))
    unstable, tangent, stable = (jnp.asarray(vectors[:, k]) for k in (0, kernel, -1))
    descends = eigenvalues[0] < -1e-9 * abs(eigenvalues).max()
    name = "unstable" if descends else "lowest, not unstable"
    slices = [
        (stable, rf"stable direction, $\lambda$ = {eigenvalues[-1]:.3g}"),
        (tangent, rf"tangent direction, $\lambda$ = {abs(eigenvalues[kernel]):.1g}"),
    ]
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    grid = jnp.linspace(-extent, extent, 81)
    levels = (
        critical_values(problem, problem.max_rank(saddle.widths), lowest=64) if problem.spectrum is not None else None
    )
    angles = 2 * np.pi * (np.arange(num_trajectories) + 0.5) / max(num_trajectories, 1)
    rim = 0.8 * extent * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    line = extent * np.stack(
        [0.02 * np.resize([1, -1], num_trajectories), np.linspace(-0.9, 0.9, num_trajectories)], axis=1
    )
    for axes, (other, label), places in zip(figure.subplots(1, 2), slices, (rim, line), strict=True):

        def point(x, y, other=other):
            return unravel(flat + x * unstable + y * other)

        loss = jax.vmap(lambda y: jax.vmap(lambda x: problem.effective_loss(point(x, y)))(grid))(grid)  # noqa: B023
        values = np.asarray(loss)
        filled = axes.contourf(grid, grid, values, levels=24, cmap="viridis", alpha=0.85)
        figure.colorbar(filled, ax=axes, label="effective loss $L$")
        here = [v.value for v in levels if values.min() < v.value < values.max()] if levels is not None else []
        if here:
            lines = axes.contour(grid, grid, values, levels=sorted(here), colors="white", linewidths=1.0)
            axes.clabel(lines, fmt=lambda v: rf"$\ell$ = {v:.3g}", fontsize=7)
        if num_trajectories:
            starts = jax.vmap(point)(jnp.asarray(places[:, 0]), jnp.asarray(places[:, 1]))
            paths = simulate(problem, starts, 20 / max(abs(eigenvalues[0]), 1e-2), ts=400, dense=False)
            moved = jax.vmap(jax.vmap(lambda net: ravel_pytree(net)[0] - flat))(paths.networks)
            for path in np.asarray(moved):
                x, y = path @ np.asarray(unstable), path @ np.asarray(other)
                axes.plot(x, y, color="white", lw=1.6, zorder=3)
                axes.plot(x, y, color=COLORS[1], lw=0.9, zorder=4)
            axes.plot(*places.T, "o", color=COLORS[1], mec="white", ms=4, zorder=5, label="starts")
        axes.plot(0, 0, "*", color="white", mec="k", ms=12, zorder=6, label="critical point")
        axes.set(
            xlabel=rf"{name} direction, $\lambda$ = {eigenvalues[0]:.3g}", ylabel=label,
            xlim=(-extent, extent), ylim=(-extent, extent), aspect="equal",
        )  # fmt: skip
        axes.locator_params(nbins=5)
        axes.legend(fontsize=8, loc="upper right")
    return figure
