"""The picture of a proof: the loss with its rigorous band on the way below the level, and the tube."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gdflow.plotting.style import COLORS, FONT, hide_box, set_range
from gdflow.proofs import Proof


def plot_proof(proof: Proof) -> Figure:
    """Left the computed loss, the band that holds that of the exact flow, and the level; right the tube's radius and exponent."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_loss(left, proof)
    _draw_tube(right, proof)
    for axes in (left, right):
        axes.set_xlabel("flow time $t$")
        set_range(axes, "x", 0.0, max(float(proof.times[-1]), 1e-300), log=False)
        hide_box(axes)
        axes.legend(fontsize=FONT, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False)
    return figure


def _draw_loss(axes: Axes, proof: Proof) -> None:
    times, losses = proof.times, np.maximum(proof.losses, 1e-300)
    low, high = proof.band()
    top = 2 * float(max(losses.max(), proof.threshold if np.isfinite(proof.threshold) else 0.0))
    bottom = 0.5 * min(float(losses.min()), proof.threshold)
    axes.fill_between(
        times, np.clip(low, bottom, top), np.clip(np.nan_to_num(high, nan=top, posinf=top), bottom, top),
        color=COLORS[4], alpha=0.5, lw=0, label="holds the exact flow's $L$",
    )  # fmt: skip
    axes.plot(times, losses, color=COLORS[0], label="computed $L(t)$", marker="." if len(times) < 3 else None)
    if np.isfinite(proof.threshold):
        axes.axhline(proof.threshold, color="0.4", lw=0.9, ls="--", label="second-lowest level")
    if proof.proved:
        axes.plot([times[-1]], [high[-1]], "v", color=COLORS[2], label="proved to be below", clip_on=False)
    set_range(axes, "y", bottom, top, log=True)
    axes.set_ylabel("effective loss")


def _draw_tube(axes: Axes, proof: Proof) -> None:
    radius = np.where(np.isfinite(proof.radius) & (proof.radius > 0), proof.radius, np.nan)
    growth = np.exp(np.minimum(proof.exponents, 700.0))
    axes.plot(
        proof.times, radius, color=COLORS[1], label=r"radius $\varepsilon(t)$", marker="." if len(radius) < 3 else None
    )
    axes.plot(proof.times, growth, color=COLORS[0], ls=":", label=r"$e^{\int\mu}$")
    found = np.concatenate([radius[np.isfinite(radius)], growth])
    set_range(axes, "y", 0.5 * float(found.min()), 2 * float(found.max()), log=True)
    axes.set_ylabel(r"radius $\varepsilon$ and growth $e^{\int\mu}$")
