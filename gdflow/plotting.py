"""Pictures that a paper could print: labelled axes, levels, colour-blind safe colours (Okabe–Ito, viridis).

Every function returns a `matplotlib.figure.Figure` and leaves pyplot's state alone.
"""

import jax.numpy as jnp
import matplotlib
import numpy as np
from jaxtyping import Array, Key
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gdflow.basins import BasinEstimate
from gdflow.dynamics import Trajectory, simulate
from gdflow.initialization import AbstractInitialization
from gdflow.levels import CriticalValues
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
) -> tuple[Trajectory, np.ndarray]:
    """Trajectories of starts spread over the fast and the slow ones, with their certificate times (NaN: none)."""
    times = np.where(estimate.outcomes["level"].to_numpy() == 0, estimate.outcomes["time"].to_numpy(), np.nan)
    usable = np.flatnonzero(np.isfinite(estimate.outcomes["loss"].to_numpy()))
    order = usable[np.argsort(times[usable], kind="stable")]  # NaN last
    rows = order[np.unique(np.round(np.linspace(0.01, 0.99, num) * (len(order) - 1)).astype(int))]
    reached = np.where(np.isnan(times), estimate.outcomes["time"].to_numpy(), times)[rows]
    starts = initialization.sample_batch(key, estimate.outcomes["id"].to_numpy()[rows])
    end = max(1.25 * float(reached.max()), 1e-12)
    return simulate(problem, starts, end, ts=300, dense=False, rtol=1e-6, atol=1e-9), times[rows]


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
        trajectory, certified_at = _sample_trajectories(estimate, problem, initialization, key, num_trajectories)
        colors = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.85, len(certified_at)))
        top = float(np.nanmax(np.asarray(trajectory.losses)))
        positive = [level.value for level in estimate.levels if level.value > 0]
        floor = 0.1 * min([*positive, top])
        for ts, losses, time, color in zip(trajectory.ts, trajectory.losses, certified_at, colors, strict=True):
            left.plot(ts, np.maximum(losses, 1e-300), color=color, lw=1.3)
            if np.isfinite(time) and len(estimate.levels) > 1:
                left.plot(time, estimate.levels[1].value, "o", ms=4, color=color, mec="k", mew=0.5)
        left.plot([], [], "o", ms=4, color="0.5", mec="k", mew=0.5, label="global minimum certified")
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
    right.set(xlabel="flow time to certificate", ylabel="starts")
    low, high = estimate.interval
    right.set_title(
        f"{estimate.certified} of {estimate.num} certified: {100 * estimate.confidence:g} % interval "
        f"[{low:.4f}, {high:.4f}]",
        fontsize=10,
    )
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
