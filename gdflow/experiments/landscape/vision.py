"""Figure 2: the landscape as its strata, by rank and level, and where their unstable directions lead."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gdflow.checks import check_double_precision, check_seed
from gdflow.dynamics import AtGradientNorm, simulate
from gdflow.experiments.results import Claim, FigureResult, origin, origin_text
from gdflow.landscape import Stratum, classify, inertia, sample_critical_point, strata
from gdflow.levels import subset_text
from gdflow.network import LayerTuple
from gdflow.plotting.landscape import KINDS
from gdflow.plotting.style import FONT, hide_box, set_range, set_ticks
from gdflow.problem import Problem

#: Singular values of the target, and widths of one and of two hidden layers, with more hidden units than outputs.
TARGET = (3.0, 2.0, 1.0)
ONE, TWO = (4, 4, 3), (4, 4, 4, 3)
#: A step along an unstable direction.
STEP = 1e-3
MISPRINTS = (
    "Before Proposition 5: the loss on a stratum is half the sum of the squares of the singular values that are not "
    "in S; the print has those belonging to S.",
    "Proposition 4 i: “every local minimum is a global maximum” is to read “a global minimum”.",
    "Equation (27): the dimension of a stratum of one hidden layer is r·d_1 + (d_1 − r)r + (d_1 − r)(d_x − d_y); the "
    "print has d_y for d_1 in the brackets.",
)


def stratum_point(subset: tuple[int, ...]) -> LayerTuple:
    """The balanced point of a stratum that pairs hidden unit `k` with the `k`-th singular value of `S`."""
    first, last = np.zeros((ONE[1], ONE[0])), np.zeros((ONE[2], ONE[1]))
    for unit, i in enumerate(subset):
        first[unit, i - 1] = last[i - 1, unit] = np.sqrt(TARGET[i - 1])
    return LayerTuple([first, last])


def descents(subset: tuple[int, ...]) -> list[tuple[int, int]]:
    """The unstable directions at `stratum_point`, as pairs of a hidden unit and a singular value that it takes up.

    A unit in use takes up a larger singular value than its own, or an idle unit takes up any.
    """
    left = [j for j in range(1, len(TARGET) + 1) if j not in subset]
    swaps = [(unit, j) for unit, i in enumerate(subset) for j in left if TARGET[j - 1] > TARGET[i - 1]]
    return swaps + [(len(subset), j) for j in left]


def follow(problem: Problem, subset: tuple[int, ...], unit: int, j: int) -> tuple[int, ...]:
    """The stratum at which the flow ends from `stratum_point`, moved by `STEP` along an unstable direction.

    The other directions stay exactly zero, so that the flow ends at a saddle where the exact one does.
    """
    point = stratum_point(subset)
    first, last = (np.array(w) for w in point.weights)
    first[unit, j - 1] += STEP
    last[j - 1, unit] += STEP
    flow = simulate(
        problem,
        LayerTuple([first, last]),
        jnp.inf,
        ts=[0.0],
        dense=False,
        stop=AtGradientNorm(1e-10),
        rtol=1e-10,
        atol=1e-13,
    )
    found = classify(problem, flow.final, tolerance=1e-7)
    assert found.subset is not None
    return found.subset


def figure_2(*, fast: bool = False, seed: int = 0) -> FigureResult:
    """The landscape: every stratum of critical points at its level, and where its unstable directions lead.

    **Arguments:** `fast`: fewer critical points; `seed`: of the critical points that are sampled.
    """
    check_double_precision()
    check_seed(seed)
    problem = Problem.from_singular_values(list(TARGET), ONE[0])
    rows = strata(problem, ONE)
    edges = [_edge(problem, row, unit, j) for row in rows for unit, j in descents(row.subset)]
    points, sampled = _sample(problem, 3 if fast else 20, seed)
    claims = _claims(points, edges)
    where = origin("fast" if fast else "full", seed)
    table = pa.Table.from_pylist([{**where, **point} for point in points])
    return FigureResult(
        "landscape-2", "Figure 2: the landscape of a linear network",
        "The paper draws a geometric vision of the landscape: critical sets at their levels, all of which but the "
        "lowest are saddles.",
        claims, table, pa.Table.from_pylist([{**where, **edge} for edge in edges]), _draw(rows, edges, origin_text(where)),
        (
            f"Target diag{_numbers(TARGET)}, widths {_text(ONE)} in the picture; with another hidden layer, "
            f"{_text(TWO)}, for what is said of H ≥ 2. {sampled} critical points sampled on all strata. An arrow is a "
            "connecting trajectory: the flow from a stratum's balanced point, moved along one unstable direction, to "
            "where it ends.",
        ),
        MISPRINTS,
    )  # fmt: skip


def _edge(problem: Problem, row: Stratum, unit: int, j: int) -> dict[str, object]:
    """A connecting trajectory from a stratum."""
    end = follow(problem, row.subset, unit, j)
    return {
        "from": subset_text(row.subset), "unit": unit + 1, "takes up": j, "to": subset_text(end),
        "rank": row.rank, "rank there": len(end),
        "level": row.value, "level there": 0.5 * sum(s**2 for i, s in enumerate(TARGET, 1) if i not in end),
    }  # fmt: skip


def _sample(problem: Problem, count: int, seed: int) -> tuple[list[dict[str, object]], int]:
    """Critical points of every stratum and kind, with the inertia of the Hessian and the rank of the inner product."""
    rows: list[dict[str, object]] = []
    number = 0
    for widths in (ONE, TWO):
        for row in strata(problem, widths):
            kinds = ["any"] + (["non-strict"] if "non-strict" in row.kind else [])
            for kind in kinds:
                for _ in range(count):
                    number += 1
                    key = jax.random.fold_in(jax.random.key(seed), number)
                    net = sample_critical_point(problem, widths, row.subset, key=key, kind=kind)
                    known, signs = classify(problem, net), inertia(problem, net)
                    assert known.rank is not None
                    assert known.rank_Z is not None
                    rows.append({
                        "widths": _text(widths), "subset": subset_text(row.subset), "kind": kind, "stratum": row.kind,
                        "level": row.value, "negative": signs.negative, "zero": signs.zero, "positive": signs.positive,
                        "certain": signs.certain, "r_Z": known.rank_Z.rank, "r": known.rank.rank,
                        "lower nearby": signs.negative > 0 or _is_lower_nearby(problem, net),
                        "dimension": row.dimension, "index": row.index,
                    })  # fmt: skip
    return rows, number


def _numbers(values: tuple[float, ...]) -> str:
    return f"({', '.join(f'{value:g}' for value in values)})"


def _text(widths: tuple[int, ...]) -> str:
    return "-".join(map(str, widths))


def _is_lower_nearby(problem: Problem, net: LayerTuple) -> bool:
    """Whether the loss is lower than here at points as near as one likes: at two scales, on trajectories that start nearer.

    The flow damps what raises the loss to second order, and keeps what lowers it to third.
    """
    level = float(problem.effective_loss(net))
    return all(_falls_below(problem, net, level, scale) for scale in (0.1, 0.02))


def _falls_below(problem: Problem, net: LayerTuple, level: float, scale: float) -> bool:
    """Whether the loss falls below the level within `3·scale` of a point, from one of eight random steps of size `scale`."""
    rng = np.random.default_rng(0)
    for _ in range(8):
        step = LayerTuple([rng.normal(size=w.shape) for w in net.weights])
        flow = simulate(
            problem, net + (scale / float(step.norm())) * step, 30.0, ts=200, dense=False, rtol=1e-10, atol=1e-13
        )
        distances = np.asarray(jax.vmap(lambda other: (other - net).norm())(flow.networks))
        if np.any((np.asarray(flow.losses) < level * (1 - 1e-11)) & (distances < 3 * scale)):
            return True
    return False


def _claims(points: list[dict], edges: list[dict]) -> tuple[Claim, ...]:
    saddles = [p for p in points if p["stratum"] != "global minima"]
    one = [p for p in saddles if p["widths"] == _text(ONE)]
    gaps = [p for p in saddles if p["r_Z"] > p["r"]]
    tame = [p for p in points if p["kind"] == "non-strict"]
    formula = [p for p in points if p["dimension"] is not None]
    falls = [edge for edge in edges if edge["level there"] < edge["level"] - 1e-9]
    return (
        Claim(
            "every critical point that is not a global minimum is a saddle (Proposition 4 i)",
            "every sampled one has a negative eigenvalue, or lower losses at distances of 0.3 and 0.06, on "
            "trajectories that start nearer",
            all(p["lower nearby"] for p in saddles),
            f"{sum(p['lower nearby'] for p in saddles)} of {len(saddles)} points",
        ),
        Claim(
            "H = 1: the Hessian at every saddle point has a negative eigenvalue (Proposition 4 ii)",
            "every sampled saddle of one hidden layer has one, told apart from zero by a factor 10",
            all(p["negative"] > 0 and p["certain"] for p in one),
            f"{sum(p['negative'] > 0 for p in one)} of {len(one)} points, at least {min(p['negative'] for p in one)} "
            "each",
        ),
        Claim(
            "H ≥ 2: there are saddle points with a non-negative Hessian (Proposition 4 ii)",
            "points made for it by the rank conditions have no negative eigenvalue, and lower losses nearby",
            bool(tame) and all(p["negative"] == 0 and p["lower nearby"] for p in tame),
            f"{sum(p['negative'] == 0 and p['lower nearby'] for p in tame)} of {len(tame)} points",
        ),
        Claim(
            "where r_Z > r the Hessian has a negative eigenvalue (Proposition 4 iii)",
            "every sampled saddle with r_Z > r has one",
            all(p["negative"] > 0 for p in gaps) if gaps else None,
            f"{sum(p['negative'] > 0 for p in gaps)} of {len(gaps)} points",
            "" if gaps else "no sampled point has r_Z > r",
        ),
        Claim(
            "the strata of one hidden layer have the dimension of equation (27), corrected, and the Hessian is "
            "non-degenerate across them (Proposition 5)",
            "at every sampled point the Hessian's nullity is that dimension, and its index Σ exchanges + (d_1 − "
            "r)(d_y − r)",
            all(p["zero"] == p["dimension"] and p["negative"] == p["index"] for p in formula),
            f"{sum(p['zero'] == p['dimension'] and p['negative'] == p['index'] for p in formula)} of {len(formula)} "
            "points",
        ),
        Claim(
            "every unstable direction of a pair leads down to the stratum with that pair exchanged or added",
            "the flow from every balanced point along every such direction ends at a lower level, with one more "
            "singular value or one exchanged for a larger one",
            len(falls) == len(edges) and all(edge["rank there"] - edge["rank"] in (0, 1) for edge in edges),
            f"{len(falls)} of {len(edges)} connections",
            ours=True,
        ),
    )


def _draw(rows, edges: list[dict], foot: str) -> Figure:
    """Levels upwards, ranks to the right, arrows along connecting trajectories."""
    figure = Figure(figsize=(7.2, 5.4), layout="constrained")
    axes = figure.subplots()
    places = _places(rows)
    for row in rows:
        color, _ = KINDS[row.kind]
        x, y = places[subset_text(row.subset)]
        axes.plot([x - 0.17, x + 0.17], [y, y], color=color, lw=2.5, solid_capstyle="round", zorder=3)
        index = f"index {row.index}, dim {row.dimension}"
        axes.annotate(
            f"$S$ = {subset_text(row.subset)}\n{index}", (x + 0.19, y), va="center", fontsize=FONT, zorder=4,
            bbox=dict(boxstyle="round,pad=0.1", fc="white", ec="none", alpha=0.85),
        )  # fmt: skip
    for edge in edges:
        _arrow(axes, places[edge["from"]], places[edge["to"]], swap=edge["rank"] == edge["rank there"])
    for kind, (color, _) in KINDS.items():
        if any(row.kind == kind for row in rows):
            axes.plot([], [], color=color, lw=2.5, label=kind)
    axes.plot([], [], color="0.45", lw=0.9, label="a unit takes up a singular value")
    axes.plot([], [], color="0.45", lw=0.9, ls="--", label="… a larger one for its own")
    hide_box(axes)
    set_range(axes, "y", -0.5, 0.5 * sum(s**2 for s in TARGET) + 0.5, log=False)
    ranks = sorted({row.rank for row in rows})
    set_ticks(axes, "x", ranks, list(map(str, ranks)))
    axes.set(
        xlabel="rank $r = |S|$",
        ylabel=r"level $\ell(S) = \frac{1}{2}\sum_{i\notin S}s_i^2$",
        xlim=(-0.4, len(TARGET) + 1.1),
    )
    axes.set_title(f"$s$ = {_numbers(TARGET)}, widths {_text(ONE)}", fontsize=10)
    axes.legend(fontsize=FONT, loc="upper right", frameon=False)
    figure.supxlabel(foot, fontsize=7, color="0.4", x=0.99, ha="right")
    return figure


def _places(rows) -> dict[str, tuple[float, float]]:
    return {subset_text(row.subset): (float(row.rank), float(row.value)) for row in rows}


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], *, swap: bool) -> None:
    style: dict[str, Any] = dict(ls="--", connectionstyle="arc3,rad=0.35") if swap else dict(ls="-")
    arrow = dict(arrowstyle="-|>", color="0.45", lw=0.9, shrinkA=4, shrinkB=5, **style)
    axes.annotate("", end, start, zorder=1, arrowprops=arrow)
