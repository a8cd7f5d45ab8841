"""Pictures of the landscape: strata by rank and level, spectra of Hessians, slices through a saddle."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gdflow.dynamics import simulate
from gdflow.landscape import Inertia, Strata, Stratum, hessian, inertia
from gdflow.levels import subset_text
from gdflow.network import LayerTuple
from gdflow.plotting.style import (
    COLORS,
    FONT,
    axes_heights,
    hide_box,
    label_gap,
    set_range,
    set_ticks,
    spread,
    tick_labels,
)
from gdflow.problem import Problem, critical_values

#: Colours and markers of strata by their kind.
KINDS = {
    "global minima": (COLORS[2], "o"),
    "strict saddles": (COLORS[1], "s"),
    "saddles, some non-strict": (COLORS[3], "^"),
}
#: Eigenvalues and differences of losses below this part of the largest are taken for zero.
ROUND_OFF = 1e-9
#: Markers of the points whose spectra are compared.
MARKERS = "os^vD<>Ph*"


def plot_strata(strata: Strata) -> Figure:
    """Every stratum of the critical set at its level, by rank; for one hidden layer with index and dimension."""
    ranks = range(max(row.rank for row in strata) + 1)
    labels = [_stratum_label(row) for row in strata]
    # A column as wide as its labels, and a bit for what is left of the first point.
    column = 0.45 + 0.062 * max(map(len, labels))
    figure = Figure(figsize=(min(max(5.0, 1.0 + column * len(ranks)), 14.0), 4.5), layout="constrained")
    axes = figure.subplots()
    hide_box(axes)
    for kind, (color, marker) in KINDS.items():
        rows = [row for row in strata if row.kind == kind]
        if rows:
            axes.plot([r.rank for r in rows], [r.value for r in rows], marker, color=color, ms=7, label=kind)
    values = [row.value for row in strata]
    low, high = min(values), max(values)
    room = 0.06 * ((high - low) or 1.0)
    set_range(axes, "y", low - room, high + room, log=False)
    set_ticks(axes, "x", list(ranks), list(map(str, ranks)))
    axes.set(xlabel="rank $r = |S|$", ylabel=r"critical value $\ell(S)$", xlim=(-0.2, ranks[-1] + 0.95))
    title = f"strata of the critical set, widths {'-'.join(map(str, strata.widths))}"
    counts = "" if strata[0].index is None else "\nin brackets: index and dimension"
    axes.set_title(title + counts, fontsize=10)
    for rank in ranks:
        _label_column(axes, [row for row in strata if row.rank == rank])
    figure.legend(fontsize=FONT, loc="outside lower center", ncols=3)
    return figure


def _stratum_label(row: Stratum) -> str:
    return subset_text(row.subset) + ("" if row.index is None else f" ({row.index}, {row.dimension})")


def _label_column(axes: Axes, rows: Sequence[Stratum]) -> None:
    """Labels at the right of the points of one rank, moved apart where they are close; the lowest only where all have no room."""
    gap = label_gap(axes)
    rows = sorted(rows, key=lambda row: row.value)
    shown = rows[: int(1 / gap) + 1]
    if len(shown) < len(rows):
        shown = shown[:-1]
    if not shown:
        return
    places = spread(axes_heights(axes, [row.value for row in rows])[: len(shown)], gap)
    style: dict[str, Any] = dict(textcoords=("data", "axes fraction"), va="center", fontsize=FONT)
    line: dict[str, Any] = dict(arrowstyle="-", color="0.6", lw=0.6, shrinkA=0, shrinkB=3, relpos=(0, 0.5))
    for row, place in zip(shown, places, strict=True):
        axes.annotate(_stratum_label(row), (row.rank, row.value), (row.rank + 0.12, place), arrowprops=line, **style)
    if len(shown) < len(rows):
        text = f"… {len(rows) - len(shown)} more"
        axes.annotate(text, (rows[-1].rank, 1.0), (rows[-1].rank + 0.12, min(places[-1] + gap, 1.0)), **style)


def plot_spectra(problem: Problem, points: Mapping[str, LayerTuple]) -> Figure:
    """Eigenvalues of the Hessian at several points, in order, on a scale that is linear about zero.

    What counts as zero, and nothing else, lies in a grey band.

    **Arguments:** `points`: critical points, say one of each stratum, by the labels they get.

    **Raises:** `ValueError` without points.
    """
    if not points:
        raise ValueError("no points to draw spectra of")
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    hide_box(axes)
    spectra = {label: inertia(problem, net) for label, net in points.items()}
    _set_eigenvalues(axes, list(spectra.values()))
    for k, (label, spectrum) in enumerate(spectra.items()):
        counts = f"{spectrum.negative}/{spectrum.zero}/{spectrum.positive}"
        # Points side by side, so that equal eigenvalues do not hide each other. No lines between them: eigenvalues of
        # one matrix are no curve, and the round-off of those that are zero would be one.
        shift = 0.7 * ((k + 0.5) / len(spectra) - 0.5)
        color = COLORS[k % len(COLORS)]
        axes.plot(
            np.arange(1, spectrum.eigenvalues.size + 1) + shift, spectrum.eigenvalues,
            MARKERS[k % len(MARKERS)], ms=3.5, mew=0, color=color, label=f"{label}: {counts}",
        )  # fmt: skip
    axes.set(xlabel="number of the eigenvalue", ylabel=r"eigenvalue of $\nabla^2L$")
    figure.legend(fontsize=FONT, title="negative/zero/positive", title_fontsize=FONT, loc="outside right upper")
    return figure


def _set_eigenvalues(axes: Axes, spectra: Sequence[Inertia]) -> None:
    """A vertical axis that is logarithmic on both sides of a band about zero, in which are the eigenvalues that count as zero."""
    sizes = np.concatenate([abs(spectrum.eigenvalues) for spectrum in spectra])
    largest = float(sizes.max())
    kept = min(spectrum.smallest_kept for spectrum in spectra)
    if not np.isfinite(kept):
        set_range(axes, "y", -1.0, 1.0, log=False)
        axes.axhline(0.0, color="0.85", lw=6, zorder=0, label="zero, up to round-off")
        return
    linear = 0.4 * kept
    axes.axhspan(-linear, linear, color="0.9", zorder=0, lw=0, label="zero, up to round-off")
    decades = math.log10(largest / linear)
    axes.set_yscale("symlog", linthresh=linear, linscale=0.08 * decades + 0.1)
    exponents = range(math.ceil(math.log10(linear)), math.floor(math.log10(largest)) + 1)
    powers = [10.0**e for e in exponents[:: -(-len(exponents) // 5)]] if exponents else [largest]
    signed = [p for p in powers if any(np.any(s.eigenvalues < -linear) for s in spectra)]
    names = tick_labels(powers)
    set_ticks(
        axes, "y", [-p for p in reversed(signed)] + [0.0, *powers],
        [_negative(name) for name in reversed(names[: len(signed)])] + ["0", *names],
    )  # fmt: skip
    low = min(float(s.eigenvalues.min()) for s in spectra)
    axes.set_ylim(1.6 * low if low < -linear else -linear, 1.6 * largest)


def _negative(label: str) -> str:
    return "$-" + label[1:] if label.startswith("$") else "−" + label


def plot_saddle(problem: Problem, saddle: LayerTuple, *, extent: float = 0.5, num_trajectories: int = 8) -> Figure:
    """Slices of the loss through a saddle with trajectories that start in them, projected.

    Left: the unstable direction (the Hessian's most negative eigenvector) against the stable one (the most positive). Right: the
    unstable direction against a tangent one, in the kernel of the Hessian, along which the loss does not change to second
    order. At a point without negative eigenvalues the three extreme eigenvectors stand in. Networks of two parameters have the
    left slice only.

    **Arguments:** `saddle`: a critical point; `extent`: half the side of the slice, in weights; `num_trajectories`: starts
    on a circle in the first slice and along the tangent direction in the second.
    """
    problem.check_network(saddle)
    eigenvalues, vectors = np.linalg.eigh(np.asarray(hessian(problem, saddle)))
    eigenvalues[abs(eigenvalues) <= ROUND_OFF * abs(eigenvalues).max()] = 0.0
    angles = 2 * np.pi * (np.arange(num_trajectories) + 0.5) / max(num_trajectories, 1)
    rim = 0.8 * extent * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    sides, line = np.resize([0.02, -0.02], num_trajectories), np.linspace(-0.9, 0.9, num_trajectories)
    slices = [("stable", -1, rim)]
    if eigenvalues.size > 2:
        tangent = 1 + int(np.argmin(abs(eigenvalues[1:-1])))
        slices.append(("tangent", tangent, extent * np.stack([sides, line], axis=1)))
    name = "unstable" if eigenvalues[0] < 0 else "lowest, not unstable"
    rates = abs(eigenvalues[0]), abs(eigenvalues).max()
    figure = Figure(figsize=(5.5 * len(slices), 4.6), layout="constrained")
    for axes, (other, k, places) in zip(np.atleast_1d(figure.subplots(1, len(slices))), slices, strict=True):
        plane = jnp.asarray(vectors[:, [0, k]])
        _draw_slice(axes, problem, saddle, plane, extent)
        if num_trajectories:
            _draw_paths(axes, problem, saddle, plane, places, rates)
        axes.plot(0, 0, "*", color="white", mec="k", ms=12, zorder=6, label="critical point")
        axes.set(
            xlabel=rf"{name} direction, $\lambda$ = {eigenvalues[0]:.3g}",
            ylabel=rf"{other} direction, $\lambda$ = {eigenvalues[k]:.3g}",
            xlim=(-extent, extent),
            ylim=(-extent, extent),
            aspect="equal",
        )
        axes.locator_params(nbins=5)
    figure.legend(*axes.get_legend_handles_labels(), fontsize=FONT, loc="outside lower center", ncols=2)
    return figure


def _draw_slice(axes: Axes, problem: Problem, saddle: LayerTuple, plane: Float[Array, "P 2"], extent: float) -> None:
    """The loss in a plane through a point, and contours at the critical values."""
    flat, unravel = ravel_pytree(saddle)
    grid = jnp.linspace(-extent, extent, 81)

    def loss(x, y):
        return problem.effective_loss(unravel(flat + plane @ jnp.stack([x, y])))

    values = np.asarray(jax.vmap(lambda y: jax.vmap(lambda x: loss(x, y))(grid))(grid))
    low, high = float(values.min()), float(values.max())
    if high - low <= ROUND_OFF * high:
        axes.set_facecolor(matplotlib.colormaps["viridis"](0.4))
        axes.set_title(f"the loss is {high:.4g} in all of this slice", fontsize=10)
        return
    filled = axes.contourf(grid, grid, values, levels=24, cmap="viridis", alpha=0.85)
    axes.figure.colorbar(filled, ax=axes, label="effective loss $L$")
    if problem.spectrum is None:
        return
    levels = critical_values(problem, problem.max_rank(saddle.widths), lowest=64)
    inside = [level.value for level in levels if low < level.value < high]
    if inside:
        lines = axes.contour(grid, grid, values, levels=inside, colors="white", linewidths=1.0)
        # Labels of contours that are close would overprint.
        labelled = [inside[0]]
        for value in inside:
            if value - labelled[-1] > 0.06 * (high - low):
                labelled.append(value)
        axes.clabel(lines, labelled, fmt=lambda v: rf"$\ell$ = {v:.3g}", fontsize=7)


def _draw_paths(
    axes: Axes,
    problem: Problem,
    saddle: LayerTuple,
    plane: Float[Array, "P 2"],
    places: Float[np.ndarray, "n 2"],
    rates: tuple[float, float],
) -> None:
    """Trajectories from places in a plane, projected to it. `rates`: of the direction that they leave along, and the fastest."""
    flat, unravel = ravel_pytree(saddle)
    slow, fast = rates
    end = 20 / (max(slow, 0.01 * fast) or 1.0)
    starts = jax.vmap(lambda place: unravel(flat + plane @ place))(jnp.asarray(places))
    # Every step is drawn: equidistant times would make polygons of paths that turn from a fast direction into a slow one.
    paths = simulate(problem, starts, end, dense=False)
    moved = jax.vmap(jax.vmap(lambda net: (ravel_pytree(net)[0] - flat) @ plane))(paths.networks)
    for x, y in np.asarray(moved).transpose(0, 2, 1):
        axes.plot(x, y, color="white", lw=1.6, zorder=3)
        axes.plot(x, y, color=COLORS[1], lw=0.9, zorder=4)
    axes.plot(*places.T, "o", color=COLORS[1], mec="white", ms=4, zorder=5, ls="", label="starts")
