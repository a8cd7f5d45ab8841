"""Basins as a function of the step: where the same starts end by gradient descent, or another optimizer, and by the flow."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Array, Key
from rich.console import Group, RenderableType

from gdflow.basins.campaign import check_belongs, check_readable
from gdflow.basins.estimate import BasinEstimate
from gdflow.basins.intervals import verdict_interval
from gdflow.basins.methods import AbstractMethod, Descent, GradientDescent
from gdflow.basins.outcomes import Status, is_decided
from gdflow.basins.plan import default_method, make_plan, measure
from gdflow.basins.process import Limits
from gdflow.basins.riders import Imbalance
from gdflow.basins.rows import MAX_ROWS
from gdflow.basins.running import check_ids, run_plan
from gdflow.basins.starts import as_starts
from gdflow.basins.stopping import Request
from gdflow.checks import check_positive
from gdflow.dynamics import AtGradientNorm, simulate
from gdflow.landscape import balanced_minimum_spectrum
from gdflow.minibatches import Minibatches
from gdflow.objective import LinearObjective
from gdflow.problem import AbstractProblem, Problem
from gdflow.smoothness import largest_curvature
from gdflow.tables import Printable, column_table, key_value_table

#: Steps looked at by default, as parts of the longest stable one.
_SHARES = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95, 1.1, 1.3, 1.6)
#: Limits of two runs are one if their losses differ by less than this, relative to their size.
_SAME = 1e-5
#: Where a start ends, in this order.
#: Of these nothing is known.
_OPEN = ("reached only", "undecided")
ENDS = ("lowest limit", "another limit", "reached only", "cycle", "diverges", "undecided")


@dataclasses.dataclass(frozen=True)
class StepRow:
    """What became of all starts with one step.

    - `step`: `η`.
    - `counts`: how many starts end where, in the order of `ENDS`. Reached only is a limit that the iterates may leave again, as
      those of Adam do (`gdflow.verdicts.DescentLevel`).
    - `intervals`: exact ones for the probability of each end; undecided starts, and where a limit was reached only, may end
      anywhere.
    - `compared`, `changed`: how many starts have a limit both here and by the flow, and how many of these limits differ.
    - `changed_interval`: for the probability that a start has limits by both, and that they differ; starts without a limit by the
      flow, or undecided, may be such.
    - `imbalance`: quartiles of `max_j ‖C_j‖_F` at the limits over that at the start, of linear networks; else `None`.
    - `mean_steps`: of all starts.
    """

    step: float
    counts: tuple[int, ...]
    intervals: tuple[tuple[float, float], ...]
    compared: int
    changed: int
    changed_interval: tuple[float, float]
    imbalance: tuple[float, float, float] | None
    mean_steps: float


@dataclasses.dataclass(frozen=True, repr=False)
class StepSizeBasins(Printable):
    """Basins against the step, from `gdflow.step_size_basins`; prints as a table.

    - `steps`: ascending; `estimates`: of every step a `gdflow.basins.BasinEstimate`.
    - `flow`: that of the gradient flow from the same starts, `None` if it was left out.
    - `confidence`: of the intervals.
    """

    steps: tuple[float, ...]
    estimates: tuple[BasinEstimate, ...]
    flow: BasinEstimate | None
    confidence: float

    @property
    def num(self) -> int:
        """Number of starts."""
        return self.estimates[0].num

    @property
    def optimizer(self) -> str:
        """Its name."""
        parts = self.estimates[0].plan.method.name.split(", ")
        return ", ".join(part for part in parts if not part.startswith("step="))

    @functools.cached_property
    def losses(self) -> tuple[float, ...]:
        """The losses of all limits, of all runs, from the lowest: limits of the same loss are one class."""
        found: list[float] = []
        for value in sorted(v for run in self._runs for v in _limit_losses(run)):
            if not found or value - found[-1] > _SAME * max(1.0, abs(value)):
                found.append(value)
        return tuple(found)

    @property
    def _runs(self) -> tuple[BasinEstimate, ...]:
        return (*self.estimates, *(() if self.flow is None else (self.flow,)))

    def classes(self, estimate: BasinEstimate) -> np.ndarray:
        """The class of the limit of every start of one of the runs, an index of `losses`; −1 where it has none."""
        values = np.asarray(_limit_losses(estimate, every=True))
        number = np.array([int(np.argmin(abs(np.asarray(self.losses) - v))) if self.losses else -1 for v in values])
        limit = pc.fill_null(estimate.outcomes["limit"], -1).to_numpy()
        decided = is_decided(estimate.outcomes) & (limit >= 0)
        return np.where(decided, number[np.where(decided, limit, 0)] if len(number) else -1, -1)

    @functools.cached_property
    def rows(self) -> tuple[StepRow, ...]:
        """One row per step."""
        alpha = 1 - self.confidence
        theirs = None if self.flow is None else self.classes(self.flow)
        made = []
        for step, estimate in zip(self.steps, self.estimates, strict=True):
            ours, status = self.classes(estimate), estimate.outcomes["status"].cast(pa.string()).to_numpy(False)
            cycle, reached = status == Status.CYCLING.label, status == Status.REACHED.label
            away = (status == Status.DIVERGING.label) | (status == Status.NON_FINITE.label)
            ends = [ours == 0, ours > 0, reached, cycle, away]
            undecided = ~np.any(ends, axis=0)
            open_ = undecided | reached
            counts, num = tuple(int(x.sum()) for x in (*ends, undecided)), self.num
            possible = [n if name in _OPEN else n + int(open_.sum()) for name, n in zip(ENDS, counts, strict=True)]
            intervals = tuple(verdict_interval(n, m, num, alpha) for n, m in zip(counts, possible, strict=True))
            compared = changed = 0
            differing = num
            if theirs is not None:
                both = (ours >= 0) & (theirs >= 0)
                compared, changed = int(both.sum()), int(np.sum(both & (ours != theirs)))
                unknown = open_ | ((ours >= 0) & (theirs < 0))
                differing = changed + int(np.sum(unknown & ~both))
            made.append(
                StepRow(
                    step, counts, intervals, compared, changed, verdict_interval(changed, differing, num, alpha),
                    _imbalance(estimate, ours >= 0), estimate.tally.steps / num,
                )
            )  # fmt: skip
        return tuple(made)

    @functools.cached_property
    def edges(self) -> tuple[tuple[str, float], ...]:
        """Steps above which limits are unstable, each with its name: `a/λ_max(∇²L)`, `a` being 2 for gradient descent.

        With momentum `μ` it is `2(1 + μ)`, with Nesterov's `2(1 + μ)/(1 + 2μ)`; of other optimizers, and with minibatches, none
        is known. Of linear networks in whitened coordinates the step is that of the flattest global minima, the balanced ones:
        above it no global minimum of full rank is stable. Of limits that were found in a run those of the lowest few.
        """
        method = self.estimates[0].plan.method
        if method.stable_below is None:
            return ()
        factor = method.stable_below * self.steps[0]
        problem, widths = self.estimates[0].plan.problem, self.estimates[0].widths
        if isinstance(problem, Problem) and isinstance(problem.objective, LinearObjective):
            whitened = problem.coordinates == "whitened" and problem.why_no_levels is None
            if not whitened or min(widths) < int(np.sum(np.asarray(problem.singular_values) > 0)):
                return ()
            spectrum = balanced_minimum_spectrum(
                np.asarray(problem.singular_values, float), len(widths) - 1, (widths[-1], widths[0])
            )
            return (("balanced minimum", factor / float(np.max(spectrum))),)
        found: dict[float, float] = {}
        for run in self._runs:
            for limit in run.found or ():
                if not limit.at_infinity and not limit.kinks:
                    nearest = min(self.losses, key=lambda v: abs(v - limit.loss))
                    found.setdefault(nearest, factor / limit.largest)
        return tuple((f"limit at {loss:.4g}", edge) for loss, edge in sorted(found.items())[:4])

    def __rich__(self) -> RenderableType:
        percent = f"{100 * self.confidence:g} %"
        first = self.estimates[0]
        widths = f"{'-'.join(map(str, first.widths))}, " if first.widths else ""
        facts = [
            ("starts", f"{self.num}, {widths}{first.plan.starts.name}"),
            ("optimizer", self.optimizer),
            ("limits", f"{len(self.losses)}, at effective losses " + ", ".join(f"{v:.6g}" for v in self.losses[:6])
                + (", …" if len(self.losses) > 6 else "") if self.losses else "no start has one"),
            *((f"stable below, {name}", f"η = {edge:.4g}") for name, edge in self.edges),
        ]  # fmt: skip
        rows = self.rows
        shown = [k for k in range(len(ENDS)) if any(row.counts[k] for row in rows) or k == 0]
        balanced = any(row.imbalance for row in rows)
        table = column_table(
            f"Where {self.num} starts end, by step, in %", "step", *(ENDS[k] for k in shown),
            *([] if self.flow is None else ["limit changed"]), *(["imbalance"] if balanced else []), "steps",
            caption=f"Intervals ({percent}) are exact, for every step by itself; undecided starts may end anywhere."
            + ("" if self.flow is None else " Limit changed: the flow from the same start has a limit with another loss.")
            + (" Imbalance: median of ‖C_j‖ at the limit over that at the start." if balanced else ""),
        )  # fmt: skip
        for row in rows:
            cells = [_percent(row.counts[k], self.num, row.intervals[k]) for k in shown]
            if self.flow is not None:
                cells.append(_percent(row.changed, self.num, row.changed_interval) if row.compared else "–")
            if balanced:
                cells.append("–" if row.imbalance is None else f"{row.imbalance[1]:.3f}")
            table.add_row(f"{row.step:g}", *cells, f"{row.mean_steps:.0f}")
        return Group(key_value_table("Basins against the step", facts), table)


def step_size_basins(
    problem: AbstractProblem,
    starts: Any,
    num: float | range | None = None,
    *,
    steps: Any = None,
    key: Key[Array, ""] | None = None,
    optimizer: Callable[..., Any] | None = None,
    options: dict[str, Any] | None = None,
    batches: Minibatches | None = None,
    flow: bool = True,
    limits: Limits | None = None,
    confidence: float = 0.95,
    folder: Any = None,
    overwrite: bool = False,
    progress: bool = True,
) -> StepSizeBasins:
    """Where the same starts end with every one of some steps: at the minimum, at another limit, on a cycle, or nowhere.

    **Arguments:**

    - `problem`, `starts`, `num`, `key`, `limits`, `confidence`: as for `gdflow.basin_sizes`.
    - `steps`: a sequence of `η`, at least one; by default `default_steps`.
    - `optimizer`, `options`: the function that makes an optimizer of Optax of a step, and its other arguments, as for
      `gdflow.basins.Descent`; by default gradient descent, whose limits are certified where that is proved.
    - `batches`: a `gdflow.Minibatches`, by default all samples at once.
    - `flow`: run the gradient flow from the same starts, too, and compare the limits.
    - `folder`: where the rows of every run are written, in a folder of its own; runs that are there are opened, not repeated;
      `overwrite`: replace others.
    - `progress`: show a progress bar for every run.

    **Returns:** a `StepSizeBasins`; `gdflow.plotting.plot_step_sizes` draws it.

    **Raises:** as `gdflow.basin_sizes`, and `ValueError` for steps that are none, or not positive and finite.

    ```python
    >>> law = gf.initialization.Gaussian(problem.widths([5, 5]))
    >>> print(gf.step_size_basins(problem, law, 1000, key=jax.random.key(0), steps=[0.05, 0.1, 0.15, 0.2]))
    ```
    """
    given = as_starts(starts, key)
    ids = check_ids(given, num)
    if len(ids) > MAX_ROWS:
        raise ValueError(f"steps are compared for at most {MAX_ROWS} starts, got {num}: run them in parts")
    if batches is not None:
        batches.check(problem, given.widths)
    if steps is None:
        steps = default_steps(problem, starts, key)
    values = sorted({check_positive("a step", step) for step in np.atleast_1d(np.asarray(steps, dtype=object))})
    if not values:
        raise ValueError("steps: at least one is needed")
    if optimizer is None and options:
        raise ValueError(f"options {sorted(options)} are of an optimizer, and none is given")
    riders = (Imbalance(),) if isinstance(problem.objective, LinearObjective) else None

    def method(step: float) -> AbstractMethod:
        if optimizer is None and batches is None:
            return GradientDescent(step)
        return Descent(optax.sgd if optimizer is None else optimizer, step, batches=batches, **(options or {}))

    methods: dict[str, AbstractMethod | None] = {"flow": None} if flow else {}
    methods |= {f"step-{step!r}": method(step) for step in values}
    plans = {
        name: make_plan(problem, starts, key=key, method=some, riders=riders, limits=limits, first_id=ids.start)
        for name, some in methods.items()
    }
    folders = {name: None if folder is None else pathlib.Path(folder) / name for name in plans}
    for name, where in folders.items():  # what is wrong with any folder is told before anything is run
        if where is not None:
            check_readable(plans[name])
            if not overwrite:
                check_belongs(where, plans[name], ids.start)
    asked = Request(confidence, 0, None, None)
    estimates = {
        name: run_plan(plan, ids, asked, folder=folders[name], overwrite=overwrite, progress=progress)
        for name, plan in plans.items()
    }
    followed = estimates.pop("flow", None)
    return StepSizeBasins(tuple(values), tuple(estimates.values()), followed, confidence)


def default_steps(problem: AbstractProblem, starts: Any, key: Key[Array, ""] | None = None) -> tuple[float, ...]:
    """Ten steps around the longest at which gradient descent is stable, `2/λ_max(∇²L)`: from a twentieth of it to 1.6 times.

    `λ_max` is the median over the points to which the flow takes the first eight starts, until the gradient norm has fallen to
    10⁻³ of its size: an estimate. Steps of optimizers that scale gradients (Adam) have nothing to do with it.

    **Raises:** `ValueError` where none of these points has positive curvature.
    """
    given = as_starts(starts, key)
    some = given.networks(range(8 if given.num is None else min(8, given.num)))
    objective, method = problem.objective, default_method(problem, True)
    stop = AtGradientNorm(1e-3 * float(jnp.median(measure(objective, some)[1])))
    values = []
    for i in range(jax.tree.leaves(some)[0].shape[0]):
        start = jax.tree.map(lambda x: x[i], some)  # noqa: B023 (called at once)
        end = simulate(
            problem,
            start,
            np.inf,
            stop=stop,
            solver=method.solver,
            rtol=1e-4,
            atol=1e-6,
            dense=False,
            max_steps=3000,
        ).final
        values.append(float(eqx.filter_jit(largest_curvature)(objective, end)))
    positive = [v for v in values if np.isfinite(v) and v > 0]
    if not positive:
        raise ValueError(
            "no limit of the flow has positive curvature, to which steps could be compared: give the steps"
        )
    edge = 2 / float(np.median(positive))
    return tuple(float(f"{share * edge:.3g}") for share in _SHARES)


def _limit_losses(estimate: BasinEstimate, every: bool = False) -> list[float]:
    """The losses of the limits that starts were found at, or of `every` one that is possible, in the order of their numbers."""
    if estimate.found is not None:
        return [limit.loss for limit in estimate.found]
    return [row.level.value for row in estimate.rows if row.level and (every or row.certified + row.located)]


def _percent(count: int, num: int, interval: tuple[float, float]) -> str:
    """A share with its interval, in percent to a digit: wide enough to hold the exact one."""
    low, high = 1000 * interval[0], 1000 * interval[1]
    return f"{100 * count / num:.1f} [{math.floor(low + 1e-9) / 10:g}, {math.ceil(high - 1e-9) / 10:g}]"


def _imbalance(estimate: BasinEstimate, settled: np.ndarray) -> tuple[float, float, float] | None:
    if "imbalance" not in estimate.outcomes.column_names or not settled.any():
        return None
    first, last = (estimate.outcomes[name].to_numpy()[settled] for name in ("imbalance_first", "imbalance"))
    if not np.all(first > 0) or not np.isfinite(last).all():
        return None
    low, median, high = np.quantile(last / first, [0.25, 0.5, 0.75])
    return (float(low), float(median), float(high)) if math.isfinite(median) else None
