"""Figures 3 and 4: a manifold of saddles with its stable and unstable manifolds, and trajectories that pass it.

The smallest network with a curve of saddles: `s = (2, 1)`, widths `(2, 1, 2)`, `W_1 = aᵀ`, `W_2 = b`. The stratum `N` of
`S = {2}` is `a_1 = b_1 = 0`, `a_2b_2 = 1`. At its points the Hessian has one negative, one zero and two positive eigenvalues: `N`
is normally hyperbolic. Of the flow

    ȧ = Sb − |b|²a,   ḃ = Sa − |a|²b,   S = diag(2, 1),

`|b|² − |a|²` is conserved, so that every fibre `Wˢ(z)`, `Wᵘ(z)` lies in the level set of its `z`, and `z` is the point of `N` in
the level set of a start. The picture has the axes `a_2`, `b_2` and `u`, the coordinate along the unstable direction at `z`.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gdflow.basins import basin_sizes
from gdflow.binomial import clopper_pearson_upper
from gdflow.checks import check_double_precision, check_seed
from gdflow.dynamics import simulate
from gdflow.experiments.results import Claim, FigureResult, origin, origin_text
from gdflow.initialization import Gaussian
from gdflow.landscape import hessian, inertia
from gdflow.network import LayerTuple
from gdflow.plotting.style import COLORS, FONT
from gdflow.problem import Problem

TARGET, WIDTHS = (2.0, 1.0), (2, 1, 2)
#: The part of `N` that is looked at, `b_2 = e^θ`, `a_2 = e^{−θ}`, and the place of `z*`.
THETAS, MIDDLE = (-0.6, 0.6), 0.0
#: How far from `N` unstable manifolds are started, and trajectories of Figure 4.
CLOSE, ASIDE = 1e-4, 2e-3
#: The level of `N` is ½s_1² = 2.
LEVEL = 0.5 * TARGET[0] ** 2
#: The false-alarm probability of the bound on starts that end at saddles.
ALPHA = 0.05

Path = Float[np.ndarray, "_ 4"]


@dataclasses.dataclass(frozen=True)
class Saddle:
    """A point `z` of `N`: the rates of the flow there, minus the Hessian's eigenvalues, ascending, and their directions."""

    point: Float[np.ndarray, " 4"]
    rates: Float[np.ndarray, " 4"]
    directions: Float[np.ndarray, "4 4"]

    @property
    def unstable(self) -> Float[np.ndarray, " 4"]:
        """The direction of the largest rate, with positive `a_1`."""
        direction = self.directions[:, -1]
        return direction * np.sign(direction[0])


def network(x: Float[np.ndarray, " 4"]) -> LayerTuple:
    """`(a_1, a_2, b_1, b_2)` as layers."""
    return LayerTuple([np.reshape(x[:2], (1, 2)), np.reshape(x[2:], (2, 1))])


def flat(net: LayerTuple) -> Float[np.ndarray, "..."]:
    """Layers as `(a_1, a_2, b_1, b_2)`, over leading axes."""
    first, last = (np.asarray(w) for w in net.weights)
    return np.concatenate([first[..., 0, :], last[..., :, 0]], axis=-1)


def saddle_at(problem: Problem, theta: float) -> Saddle:
    """The point of `N` with `b_2 = e^θ`."""
    point = np.array([0.0, math.exp(-theta), 0.0, math.exp(theta)])
    eigenvalues, vectors = np.linalg.eigh(np.asarray(hessian(problem, network(point))))
    return Saddle(point, -eigenvalues[::-1], vectors[:, ::-1])


def saddle_of(problem: Problem, x: Float[np.ndarray, " 4"]) -> Saddle:
    """The point of `N` with the same `|b|² − |a|² = 2 sinh 2θ` as `x`."""
    return saddle_at(problem, 0.5 * math.asinh(0.5 * conserved(x)))


def conserved(x: Float[np.ndarray, "*T 4"]) -> float:
    """`|b|² − |a|²`, of the first point of a path."""
    x = np.atleast_2d(x)[0]
    return float(x[2:] @ x[2:] - x[:2] @ x[:2])


def path(problem: Problem, x: Float[np.ndarray, " 4"], end: float, *, count: int = 400) -> tuple[np.ndarray, Path]:
    """Times and points of the trajectory from `x`."""
    flow = simulate(problem, network(x), end, ts=count, dense=False, rtol=1e-10, atol=1e-13, max_steps=1e5)
    return np.asarray(flow.ts), flat(flow.networks)


def unstable_manifold(problem: Problem, saddle: Saddle, side: int = 1) -> Path:
    """Half of `Wᵘ(z)`: the trajectory from a point very near `z` along the unstable direction."""
    end = math.log(4 / CLOSE) / saddle.rates[-1] + 4
    return path(problem, saddle.point + side * CLOSE * saddle.unstable, end)[1]


def stable_fibre(saddle: Saddle, count: int = 60) -> Path:
    """`Wˢ(z)` in the invariant plane `a_1 = b_1 = 0`: the hyperbola `b_2² − a_2²` = const through `z`, where `a_2, b_2 > 0`."""
    half = 0.5 * conserved(saddle.point)
    if abs(half) < 1e-12:
        line = np.linspace(0.15, 1.9, count)
        return np.stack([0 * line, line, 0 * line, line], axis=1)
    root, sign = math.sqrt(2 * abs(half)), np.sign(half)
    t = np.linspace(0.05, 2.2, count)
    a, b = (root * np.sinh(t), root * np.cosh(t)) if sign > 0 else (root * np.cosh(t), root * np.sinh(t))
    inside = (a < 2.1) & (b < 2.1)
    return np.stack([0 * a, a, 0 * a, b], axis=1)[inside]


def _lift(points: Path, saddle: Saddle) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The coordinates of the picture."""
    u = points @ np.where([True, False, True, False], saddle.unstable, 0.0)
    return points[:, 1], points[:, 3], u


def _stage(problem: Problem, where: dict[str, object]) -> tuple[Figure, Any, list[Line2D]]:
    """The axes with `N`, its stable fibres, and `z*` with its unstable manifold: all of Figure 3."""
    figure = Figure(figsize=(7.0, 5.6))
    axes: Any = figure.add_axes((0.0, 0.02, 0.97, 0.93), projection="3d", computed_zorder=False)
    middle = saddle_at(problem, MIDDLE)
    thetas = np.linspace(*THETAS, 81)
    axes.plot(np.exp(-thetas), np.exp(thetas), 0 * thetas, color=COLORS[0], lw=2.6, zorder=4)
    for k, theta in enumerate(np.linspace(*THETAS, 7)):
        saddle = saddle_at(problem, theta)
        fibre = _lift(stable_fibre(saddle), saddle)
        axes.plot(*fibre, color=COLORS[2], lw=2.0 if abs(theta - MIDDLE) < 1e-9 else 1.0, zorder=3)
        if k in (1, 3, 5):
            for side in (1, -1):
                curve = _lift(unstable_manifold(problem, saddle, side), saddle)
                main = abs(theta - MIDDLE) < 1e-9
                axes.plot(*curve, color=COLORS[1], lw=2.0 if main else 1.0, zorder=5)
            name = "$z^*$" if k == 3 else f"$z_{1 if k == 1 else 2}$"
            axes.plot(*([float(v[0])] for v in _lift(saddle.point[None], saddle)), "o", color="k", ms=4, zorder=6)
            axes.text(float(saddle.point[1]) + 0.07, float(saddle.point[3]) + 0.07, 0.08, name, fontsize=10, zorder=7)
    lengths = 0.55
    for column, color in ((-1, COLORS[1]), (0, COLORS[2])):
        direction = middle.unstable if column == -1 else middle.directions[:, column]
        ends = middle.point + lengths * np.outer([-1, 1], direction)
        axes.plot(*_lift(ends, middle), color=color, lw=1.4, ls=(0, (1, 1.2)), zorder=6)
    handles = [
        Line2D([], [], color=COLORS[0], lw=2.6, label="$N$: saddles, $S=\\{2\\}$"),
        Line2D([], [], color=COLORS[2], lw=1.6, label="stable fibres $W^s(z)$"),
        Line2D([], [], color=COLORS[1], lw=1.6, label="unstable fibres $W^u(z)$"),
        Line2D([], [], color="0.3", lw=1.4, ls=(0, (1, 1.2)), label="$E^s(z^*)$, $E^u(z^*)$"),
    ]
    axes.set(
        xlabel="$a_2$", ylabel="$b_2$", zlabel="$u$, unstable direction", xlim=(0, 2), ylim=(0, 2), zlim=(-2.1, 2.1)
    )
    axes.set(xticks=[0, 0.5, 1, 1.5, 2], yticks=[0, 0.5, 1, 1.5, 2], zticks=[-2, -1, 0, 1, 2])
    axes.view_init(elev=24, azim=-50)
    axes.set_box_aspect((1, 1, 0.85), zoom=0.97)
    axes.set_title("$s = (2, 1)$, widths 2-1-2", fontsize=10)
    figure.text(0.99, 0.01, origin_text(where), ha="right", fontsize=7, color="0.4")
    return figure, axes, handles


def figure_3(*, fast: bool = False, seed: int = 0) -> FigureResult:
    """Normal hyperbolicity: a curve of saddles, its stable and unstable fibres.

    **Arguments:** `fast`: fewer points; `seed`: of the starts of the Monte Carlo estimate.
    """
    check_double_precision()
    check_seed(seed)
    problem, where = Problem.from_singular_values(list(TARGET)), origin("fast" if fast else "full", seed)
    saddles = [saddle_at(problem, theta) for theta in np.linspace(*THETAS, 9 if fast else 41)]
    signs = [inertia(problem, network(saddle.point)) for saddle in saddles]
    rates = np.array([saddle.rates for saddle in saddles])
    unstable = [
        (saddle, side, unstable_manifold(problem, saddle, side))
        for saddle in saddles[:: 4 if fast else 8]
        for side in (1, -1)
    ]
    ends = [
        _reach(problem, saddle, fibre) for saddle in saddles[:: 2 if fast else 5] for fibre in [stable_fibre(saddle)]
    ]
    num = 2_000 if fast else 20_000
    estimate = basin_sizes(problem, Gaussian(WIDTHS), num, key=jax.random.key(seed), audit=0, progress=False)
    bound = clopper_pearson_upper(num - estimate.certified, num, ALPHA)
    claims = (
        Claim(
            "along N the tangent space splits into a stable space, that of N, and an unstable space (Proposition 5, "
            "Definition 4.1)",
            "at every point looked at the Hessian has two positive eigenvalues, one zero, along N, and one negative, "
            "told apart by a factor 10",
            bool(all((s.positive, s.zero, s.negative) == (2, 1, 1) and s.certain for s in signs)),
            f"{sum((s.positive, s.zero, s.negative) == (2, 1, 1) for s in signs)} of {len(signs)} points",
        ),
        Claim(
            "the time-1 flow contracts E^s and expands E^u more strongly than anything along N, μ_1 < λ_2 ≤ μ_2 < λ_3",
            "over the part of N looked at e^(rate) is at most μ_1 < 1 on E^s, 1 on TN, and at least λ_3 > 1 on E^u",
            bool(
                np.exp(rates[:, 1]).max() < 1 - 1e-3
                and np.exp(rates[:, 3]).min() > 1 + 1e-3
                and abs(rates[:, 2]).max() < 1e-9
            ),
            f"μ_1 = {np.exp(rates[:, 1]).max():.3g}, λ_3 = {np.exp(rates[:, 3]).min():.3g}, on TN 1 ± "
            f"{abs(rates[:, 2]).max():.1g}",
        ),
        Claim(
            "on W^s(z) every trajectory tends to z",
            "from both ends of the part of every fibre that lies in the invariant plane the flow comes to within "
            "1e-6 of z",
            bool(max(ends) < 1e-6),
            f"largest distance {max(ends):.2g}, {2 * len(ends)} trajectories",
        ),
        Claim(
            "on W^s(N) and off N the loss is above the level of N, on W^u(N) below it",
            "at every computed point of both, N itself and what is within 1e-3 of it left out",
            all(_side(problem, points, saddle, +1) for saddle in saddles for points in [stable_fibre(saddle)])
            and all(_side(problem, points, saddle, -1) for saddle, _, points in unstable),
            f"{len(saddles)} stable and {len(unstable)} unstable fibres",
        ),
        Claim(
            "random starts do not tend to saddles, since W^s(N) has a lower dimension than the space",
            "of random starts none ends there, as it must be if they are of measure zero; the upper bound of their share, wrong "
            f"with a probability of {ALPHA:g}, is below 1e-2",
            bool(estimate.certified == num and bound < 1e-2),
            f"{estimate.certified} of {num} Gaussian starts certified to tend to a global minimum; at most "
            f"{bound:.2g} do not",
        ),
        Claim(
            "a fibre lies in the level set of |b|² − |a|² of its point",
            "along every unstable fibre it changes by less than 1e-8",
            bool(max(_drift(points) for *_, points in unstable) < 1e-8),
            f"largest change {max(_drift(points) for *_, points in unstable):.1g}",
            ours=True,
        ),
    )
    figure, _, handles = _stage(problem, where)
    figure.legend(handles=handles, fontsize=FONT, loc="upper left", frameon=False, bbox_to_anchor=(0.02, 0.95))
    table = [
        {**where, "fibre": name, "theta": theta, "a_1": p[0], "a_2": p[1], "b_1": p[2], "b_2": p[3]}
        for name, theta, points in [
            *(("stable", _theta(s), stable_fibre(s)) for s in saddles),
            *(("unstable", _theta(s), points) for s, _, points in unstable),
        ]
        for p in points.tolist()
    ]
    runs = [
        {**where, "theta": _theta(s), "a_2": float(s.point[1]), "b_2": float(s.point[3])}
        | {f"rate {i}": float(rate) for i, rate in enumerate(s.rates, 1)}
        for s in saddles
    ]
    return FigureResult(
        "landscape-3", "Figure 3: normal hyperbolicity",
        "The paper sketches a curve N of critical points with the stable and unstable fibres of its points.",
        claims, pa.Table.from_pylist(table), pa.Table.from_pylist(runs), figure,
        (f"N is shown for b_2 = e^θ, θ from {THETAS[0]:g} to {THETAS[1]:g}. W^s(z) has one more dimension, not in the picture.",),
    )  # fmt: skip


def _theta(saddle: Saddle) -> float:
    return float(np.log(saddle.point[3]))


def _drift(points: Path) -> float:
    """The largest change of `|b|² − |a|²` along a path."""
    values = np.sum(points[:, 2:] ** 2, axis=1) - np.sum(points[:, :2] ** 2, axis=1)
    return float(np.ptp(values))


def _reach(problem: Problem, saddle: Saddle, fibre: Path) -> float:
    """How near the flow comes to `z` from the two ends of its stable fibre."""
    return max(
        float(np.linalg.norm(path(problem, x, 40.0, count=2)[1][-1] - saddle.point)) for x in (fibre[0], fibre[-1])
    )


def _side(problem: Problem, points: Path, saddle: Saddle, sign: int) -> bool:
    """Whether the loss is above (`sign` 1) or below the level of `N` at points away from it."""
    away = points[np.linalg.norm(points - saddle.point, axis=1) > 1e-3]
    losses = np.asarray(
        jax.vmap(lambda x: problem.effective_loss(LayerTuple([x[None, :2], x[2:, None]])))(jnp.asarray(away))
    )
    return bool(np.all(sign * (losses - LEVEL) > 0))


def figure_4(*, fast: bool = False, seed: int = 0) -> FigureResult:
    """Trajectories that come along stable fibres of saddles and leave along unstable ones. Arguments as `figure_3`."""
    check_double_precision()
    check_seed(seed)
    problem, where = Problem.from_singular_values(list(TARGET)), origin("fast" if fast else "full", seed)
    rng = np.random.default_rng(seed)
    rows: list[dict[str, object]] = []
    measured: list[tuple[float, float]] = []
    drawn: list[tuple[Saddle, Path]] = []
    for k, theta in enumerate(np.linspace(-0.5, 0.5, 6 if fast else 20)):
        fibre = stable_fibre(saddle_at(problem, theta))
        start = fibre[-1 if k % 2 else 0] + ASIDE * (1 if k % 4 < 2 else -1) * rng.uniform(0.5, 1.5) * np.array(
            [1, 0, 1, 0]
        )
        ts, points = path(problem, start, 30.0, count=600)
        losses = np.array([float(problem.effective_loss(network(x))) for x in points])
        saddle = saddle_of(problem, start)
        side = 1 if start @ saddle.unstable > 0 else -1
        distances = distance_to(points, np.concatenate([saddle.point[None], unstable_manifold(problem, saddle, side)]))
        measured.append((_approach(ts, points, distances, saddle), losses[-1]))
        drawn.append((saddle, points))
        columns = [ts, *points.T, losses, distances]
        names = ("t", "a_1", "a_2", "b_1", "b_2", "loss", "distance")
        for values in np.stack(columns, axis=1).tolist():
            rows.append({**where, "trajectory": k, **dict(zip(names, values, strict=True))})
    shares = [share for share, _ in measured]
    below = sum(loss < LEVEL for _, loss in measured)
    claims = (
        Claim(
            "along every trajectory that starts off W^s(N) the loss becomes smaller than the level of N",
            "at the end of every trajectory it is",
            bool(below == len(measured)),
            f"{below} of {len(measured)} trajectories; final losses up to {max(loss for _, loss in measured):.2g}, "
            f"the level is {LEVEL:g}",
        ),
        Claim(
            "every such trajectory approaches W^u(N) at an exponential rate",
            "near N, within a distance of 0.3, the distance from W^u(z), z the point of N with the same |b|² − |a|², "
            "falls at the slower stable rate at z or faster: the fitted rate is at least 0.9 of it",
            bool(min(shares) > 0.9),
            f"fitted over predicted rate {min(shares):.3g} to {max(shares):.3g}",
        ),
    )
    figure, axes, handles = _stage(problem, where)
    for saddle, points in drawn[:: 1 if fast else 2]:
        axes.plot(*_lift(points, saddle), color=COLORS[3], lw=1.3, zorder=8)
        axes.plot(*([float(v[0])] for v in _lift(points[:1], saddle)), "o", color=COLORS[3], ms=3.5, zorder=8)
    handles.append(Line2D([], [], color=COLORS[3], lw=1.3, marker="o", ms=3.5, label="trajectories and starts"))
    figure.legend(handles=handles, fontsize=FONT, loc="upper left", frameon=False, bbox_to_anchor=(0.02, 0.95))
    runs = [
        {**where, "trajectory": k, "theta": _theta(saddle), "rate over predicted": share, "final loss": float(loss)}
        for k, ((share, loss), (saddle, _)) in enumerate(zip(measured, drawn, strict=True))
    ]
    return FigureResult(
        "landscape-4", "Figure 4: trajectories near normally hyperbolic saddles",
        "The paper sketches trajectories that come along stable fibres and leave along unstable ones.",
        claims, pa.Table.from_pylist(rows), pa.Table.from_pylist(runs), figure,
        (f"Starts lie at the ends of stable fibres, {ASIDE:g} off the invariant plane.",),
    )  # fmt: skip


def distance_to(points: Path, curve: Path) -> Float[np.ndarray, " T"]:
    """The distance of every point from a polygon."""
    start, step = curve[:-1], np.diff(curve, axis=0)
    square = np.maximum(np.sum(step**2, axis=1), 1e-300)
    share = np.clip(np.einsum("tkj,kj->tk", points[:, None] - start[None], step) / square, 0, 1)
    return np.linalg.norm(points[:, None] - start - share[..., None] * step, axis=2).min(axis=1)


def _approach(ts: np.ndarray, points: Path, distances: np.ndarray, saddle: Saddle) -> float:
    """The rate at which a distance falls near `N`, over the slower stable rate there."""
    near = (np.linalg.norm(points - saddle.point, axis=1) < 0.3) & (distances > 1e-5)
    if near.sum() < 5:
        return math.nan
    slope = -np.polyfit(ts[near], np.log(distances[near]), 1)[0]
    return float(slope / -saddle.rates[1])
