"""Trajectories of some of an estimate's starts, for pictures: chosen, integrated anew, with what was found out of them."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from gdflow.basins.estimate import BasinEstimate
from gdflow.basins.methods import Descent, GradientDescent
from gdflow.basins.outcomes import is_decided
from gdflow.dynamics import gradient_descent, simulate
from gdflow.network import LayerTuple
from gdflow.problem import AbstractProblem

#: Curves are drawn so much longer than the slowest of them takes …
LONGER = 1.25
#: … at so many equidistant times, and as many in a geometric sequence that begins at this part of the end.
NUM_TIMES, FIRST_TIME = 300, 1e-6
#: Of a descent about so many iterates are drawn.
_ITERATES = 3000


@dataclasses.dataclass(frozen=True)
class SampleTrajectories:
    """Losses of some starts over time, and how they ended.

    - `ids`: of the starts.
    - `ts`: the times, the same for all; those at which any of them was certified or crossed a level are among them.
    - `losses`: NaN after the time at which an undecided start was given up.
    - `decided`: whether the limit is certified.
    - `times`: of the certificate, or when the start was given up; one of `ts`.
    - `limits`: which limit, if decided.
    """

    ids: tuple[int, ...]
    ts: Float[np.ndarray, " T"]
    losses: Float[np.ndarray, "n T"]
    decided: Bool[np.ndarray, " n"]
    times: Float[np.ndarray, " n"]
    limits: Int[np.ndarray, " n"]


def _choose_rows(estimate: BasinEstimate, num: int) -> Int[np.ndarray, " n"]:
    """Rows of `outcomes`: of every kind of end, the `num` most frequent ones, its share, spread over the fast and the slow."""
    outcomes = estimate.outcomes
    times, decided = outcomes["time"].to_numpy(), is_decided(outcomes)
    kinds = np.where(decided, outcomes["highest"].to_numpy(), -1)
    kinds = np.where(np.isfinite(outcomes["loss"].to_numpy()), kinds, -2)  # not to be drawn
    groups = [np.flatnonzero(kinds == kind) for kind in np.unique(kinds[kinds > -2])]
    first, *others = sorted(groups, key=len, reverse=True)[:num] or [np.array([], int)]
    total = len(first) + sum(map(len, others))
    shares = [max(1, round(num * len(rows) / total)) for rows in others]
    chosen: list[int] = []
    for rows, share in zip((first, *others), (num - sum(shares), *shares), strict=True):
        order = rows[np.argsort(times[rows], kind="stable")]
        places = np.round(np.linspace(0.01, 0.99, share) * (len(order) - 1)) if share > 1 else [(len(order) - 1) // 2]
        chosen.extend(order[np.unique(np.asarray(places, int))] if len(order) else [])
    return np.array(chosen, int)


def _losses(problem: AbstractProblem, starts: Any, end: float, ts: np.ndarray, options: dict[str, Any]) -> Any:
    """Losses at these times, of all starts."""
    options = {"ts": ts, "dense": False, "rtol": 1e-8, "atol": 1e-11, **options}
    if isinstance(starts, LayerTuple):
        return simulate(problem, starts, end, **options).losses
    count = jax.tree.leaves(starts)[0].shape[0]
    one = [simulate(problem, jax.tree.map(lambda x: x[i], starts), end, **options).losses for i in range(count)]  # noqa: B023
    longest = max(len(losses) for losses in one)
    return np.stack([np.pad(losses, (0, longest - len(losses)), constant_values=np.nan) for losses in one])


def _descents(estimate: BasinEstimate, starts: Any, ids: np.ndarray, end: float, ts: np.ndarray) -> np.ndarray:
    """Losses at these times by the estimate's descent, on straight lines between the iterates; NaN after the last finite one."""
    method = estimate.plan.method
    assert isinstance(method, GradientDescent | Descent)
    unit = float(method.step_time)
    steps = max(1, math.ceil(end / unit))
    optimizer = method.step if isinstance(method, GradientDescent) else method.made()
    batches = method.batches if isinstance(method, Descent) else None
    batch = isinstance(starts, LayerTuple)
    groups = [(starts, ids)]
    if not batch:
        groups = [(jax.tree.map(lambda x: x[i], starts), ids[i : i + 1]) for i in range(len(ids))]  # noqa: B023
    rows = []
    for some, own in groups:
        run = gradient_descent(
            estimate.plan.problem, some, optimizer, steps, every=max(1, steps // _ITERATES), batches=batches, ids=own
        )
        for counts, losses in zip(np.atleast_2d(run.steps), np.atleast_2d(run.losses), strict=True):
            there = counts >= 0
            counts, losses = counts[there], losses[there]
            # All steps lead to the last time, but for round-off.
            beyond = losses[-1] if counts[-1] >= steps else np.nan
            rows.append(np.interp(ts, unit * counts, losses, right=beyond))
    return np.array(rows)


def _lowest_values(estimate: BasinEstimate) -> Float[np.ndarray, " K"]:
    """Losses of the limits, from the lowest."""
    if estimate.found is None:
        return np.asarray(estimate.levels.values)
    return np.array([limit.loss for limit in estimate.found] or [0.0])


def sample_trajectories(estimate: BasinEstimate, num: int) -> SampleTrajectories:
    """Integrates some starts of an estimate anew: at most `num`, of every kind of end, fast and slow ones.

    None if none is finite. Nothing is drawn that the estimate does not know: undecided starts end where they were given up,
    and no loss falls below the value of its certified limit, where it cannot be. (From balanced starts round-off takes an
    integration of the factors there, after a long time near the limit.)
    """
    outcomes, rows = estimate.outcomes, _choose_rows(estimate, num)
    decided, limits = is_decided(outcomes)[rows], outcomes["highest"].to_numpy()[rows]
    ids, times = outcomes["id"].to_numpy()[rows], outcomes["time"].to_numpy()[rows]
    if not len(rows):
        return SampleTrajectories((), np.zeros(0), np.zeros((0, 0)), decided, times, limits)
    end = LONGER * float(times.max()) if decided.any() else float(times.max())
    if not end > 0:  # all ended where they began: as long as the loss takes to fall, −L/L̇ = L/‖∇L‖²
        excess = outcomes["loss"].to_numpy()[rows] - _lowest_values(estimate)[0]
        with np.errstate(divide="ignore", invalid="ignore"):
            scales = excess / outcomes["gradient_norm"].to_numpy()[rows] ** 2
        end = 5 * float(np.max(scales, initial=0.0, where=np.isfinite(scales))) or 1.0
    crossings = [outcomes[f"crossing_{k}"].to_numpy()[rows] for k in range(len(estimate.crossings))]
    events = np.concatenate([times, *crossings])
    events = events[(events >= 0) & (events <= end)]
    first = min(FIRST_TIME * end, 0.1 * np.min(events, initial=end, where=events > 0))
    even, geometric = np.linspace(0, end, NUM_TIMES), np.geomspace(first, end, NUM_TIMES)
    ts = np.unique(np.concatenate([even, geometric[:-1], events]))
    problem, starts = estimate.plan.problem, estimate.plan.starts.networks(ids)
    # Where the gradient jumps steps have to be as short as those of the run, and as many.
    shortest = float(estimate.plan.method.shortest)
    options: dict[str, Any] = dict(shortest=shortest, max_steps=estimate.plan.limits.most_steps) if shortest else {}
    if estimate.plan.descends:
        losses = _descents(estimate, starts, ids, end, ts)
    else:
        losses = np.array(_losses(problem, starts, end, ts, options))
    if losses.shape[1] < len(ts):  # NaN after the last step of all of them is cut off
        losses = np.pad(losses, ((0, 0), (0, len(ts) - losses.shape[1])), constant_values=np.nan)
    values = _lowest_values(estimate)
    lowest = np.where(decided, values[np.minimum(limits, len(values) - 1)], -np.inf)
    losses = np.maximum(losses, lowest[:, None])
    losses[~decided[:, None] & (ts > times[:, None])] = np.nan
    return SampleTrajectories(tuple(map(int, ids)), ts, losses, decided, times, limits)
