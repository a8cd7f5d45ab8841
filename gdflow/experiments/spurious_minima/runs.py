"""Runs of all starts by the flow and by gradient descent; what is counted of them, and compared."""

import concurrent.futures
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gdflow.basins import AbstractMethod, AbstractRider, BasinEstimate, GradientDescent, Limits, basin_sizes, integrator
from gdflow.basins.intervals import verdict_interval
from gdflow.binomial import clopper_pearson_lower, clopper_pearson_upper
from gdflow.experiments.spurious_minima.minima import Minima, Minimum
from gdflow.initialization import Gaussian
from gdflow.teacher import TeacherStudent

NAME = "spurious-minima"
#: Where spurious minima are first expected: `k` below are controls.
FIRST = 6
#: The step of gradient descent that is compared with the flow for every `k`.
STEP = 0.1
#: Tolerances of the flow's integration; and looser ones, with which some labels are looked at once more.
FLOW, LOOSE = (1e-8, 1e-10), (1e-6, 1e-8)
#: A start has converged when `‖∇L‖` has stayed below this for this flow time; the least eigenvalues are about 10^-2.
TOLERANCE, DWELL = 1e-6, 1.0
#: A start is given up after this flow time, or so many steps.
LONGEST, MOST_STEPS = 20_000.0, 1_000_000
#: A start one of whose students was ever shorter than this is counted apart: at `w_i = 0` the flow need not be unique.
NEAR_ZERO = 1e-2
#: Fractions are called the same if their difference is certainly below this.
EQUAL = 0.01
#: All intervals, and all claims, are wrong with at most this probability each.
ALPHA = 0.05


@dataclasses.dataclass(frozen=True)
class Study:
    """What is run: flow and descent for every `k` of `sizes`, `num` starts each; for `step_size` descent with all `steps`.

    `audit`: so many starts of every flow are run again with another solver at tighter tolerances.
    """

    sizes: tuple[int, ...]
    num: int
    step_size: int
    steps: tuple[float, ...]
    audit: int


STEPS = (0.02, 0.05, 0.1, 0.2, 0.4)
FULL = Study(tuple(range(4, 21)), 2000, 8, STEPS, 100)
FAST = Study(tuple(range(4, 10)), 300, 8, STEPS, 0)


class SmallestStudent(AbstractRider):
    """The smallest norm that any student had, at the start or after any step."""

    @property
    def columns(self) -> dict[str, str]:
        return {"smallest_student": "the smallest norm of a student, at the start or after a step"}

    @staticmethod
    def _norm(networks: Any) -> Float[Array, " lanes"]:
        return jnp.sqrt(jnp.min(jnp.sum(jnp.square(networks.weights[0]), axis=2), axis=1))

    def begin(self, objective, now, place):
        return self._norm(now.networks)

    def after(self, objective, state, stride):
        return jnp.where(stride.kept, jnp.minimum(state, self._norm(stride.end.networks)), state)

    def rows(self, objective, state, now, times):
        return {"smallest_student": state}


@dataclasses.dataclass(frozen=True, eq=False)
class Sweep:
    """Where the starts of one run ended.

    - `k`; `method`: `"flow"` or `"descent"`; `step`: of descent, 0 for the flow; `rtol`: of the flow, 0 for descent.
    - `classes`: the classes of minima; `labels`: of every start which one, −1 for those without a limit.
    - `smallest`: the smallest norm of a student on the way; `times`, `steps`: flow times and steps until they had converged.
    - `audited`, `flips`: starts run again at tighter tolerances, and how many of these were contradicted.
    - `seconds`: wall time, compilation included.
    """

    k: int
    method: str
    step: float
    rtol: float
    classes: Sequence[Minimum]
    labels: Int[np.ndarray, " num"]
    smallest: Float[np.ndarray, " num"]
    times: Float[np.ndarray, " num"]
    steps: Int[np.ndarray, " num"]
    audited: int = 0
    flips: int = 0
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """The method in words."""
        if self.method == "descent":
            return f"descent, step {self.step:g}"
        return "flow" if self.rtol == FLOW[0] else f"flow, rtol {self.rtol:g}"

    @property
    def num(self) -> int:
        """Starts."""
        return len(self.labels)

    @property
    def near_zero(self) -> Bool[np.ndarray, " num"]:
        """Which starts had a student near zero: of their limits nothing is claimed."""
        return self.smallest < NEAR_ZERO

    @property
    def unknown(self) -> Bool[np.ndarray, " num"]:
        """Which starts have no limit, or none that is claimed."""
        return (self.labels < 0) | self.near_zero

    @functools.cached_property
    def spurious(self) -> Bool[np.ndarray, " num"]:
        """Which starts are at a minimum that is not global."""
        bad = np.array([not minimum.is_global for minimum in self.classes] + [False])
        return bad[self.labels] & ~self.unknown

    @property
    def count(self) -> int:
        """How many starts are at a minimum that is not global."""
        return int(self.spurious.sum())

    @property
    def fraction(self) -> float:
        """Their share."""
        return self.count / self.num

    def interval(self, alpha: float = ALPHA) -> tuple[float, float]:
        """Clopper–Pearson interval of the probability of such a start; those without a limit widen it on both sides."""
        return verdict_interval(self.count, self.count + int(self.unknown.sum()), self.num, alpha)

    def share(self, number: int) -> tuple[int, float, float]:
        """Of a class of minima, the starts at it and the interval of their probability."""
        count = int(np.sum((self.labels == number) & ~self.unknown))
        return count, *verdict_interval(count, count + int(self.unknown.sum()), self.num, ALPHA)


@dataclasses.dataclass(frozen=True)
class Difference:
    """Two runs of the same starts: `P(first is spurious) − P(second is spurious)`.

    - `num`: starts; `differ`: those with limits in different classes.
    - `first_only`, `second_only`: starts that end at a spurious minimum in one run, and at a global one in the other.
    - `interval`: of the difference.
    """

    num: int
    differ: int
    first_only: int
    second_only: int
    interval: tuple[float, float]

    @property
    def value(self) -> float:
        """The difference of the fractions."""
        return (self.first_only - self.second_only) / self.num

    @property
    def same(self) -> bool | None:
        """Whether the probabilities are the same, up to `EQUAL`; `False` if they certainly differ."""
        low, high = self.interval
        return False if low > 0 or high < 0 else True if low > -EQUAL and high < EQUAL else None

    @property
    def text(self) -> str:
        """For people."""
        low, high = self.interval
        where = f"[{100 * low:.2g}, {100 * high:.2g}]"
        return f"{100 * self.value:+.2g} % {where} ({self.differ} of {self.num} labels differ)"


def difference(first: Sweep, second: Sweep, alpha: float = ALPHA) -> Difference:
    """Compares two runs of the same starts.

    The difference is `P(A) − P(B)`, with `A` that only the first ends at a spurious minimum and `B` that only the second does;
    each of the four Clopper–Pearson bounds fails with probability at most `alpha/4`. What is unknown counts against both ends.
    """
    (sure_a, maybe_a), (sure_b, maybe_b) = (
        (int(np.sum(x.spurious & ~y.spurious & ~y.unknown)), int(np.sum((x.spurious | x.unknown) & ~y.spurious)))
        for x, y in ((first, second), (second, first))
    )
    num, tail = first.num, alpha / 4
    interval = (
        clopper_pearson_lower(sure_a, num, tail) - clopper_pearson_upper(maybe_b, num, tail),
        clopper_pearson_upper(maybe_a, num, tail) - clopper_pearson_lower(sure_b, num, tail),
    )
    differ = int(np.sum(first.labels != second.labels))
    return Difference(num, differ, sure_a, sure_b, interval)


def run_starts(k: int, num: int, method: AbstractMethod, *, seed: int = 0, audit: int = 0) -> BasinEstimate:
    """Runs the first `num` starts of a `k`, which depend on `seed` and `k` alone, by a method."""
    problem = TeacherStudent.orthonormal(k)
    return basin_sizes(
        problem,
        Gaussian(problem.widths()),
        num,
        key=jax.random.fold_in(jax.random.key(seed), k),
        method=method,
        riders=(SmallestStudent(),),
        limits=Limits(LONGEST, MOST_STEPS, TOLERANCE, DWELL),
        audit=audit,
        progress=False,
    )


def classified(minima: Minima, estimate: BasinEstimate) -> Sweep:
    """Where the starts of a run ended, by classes of minima; those that are new are added."""
    method, table = estimate.plan.method, estimate.outcomes
    place = np.array([minima.number(limit) for limit in estimate.found or ()] + [-1])
    audit = estimate.audit
    return Sweep(
        k=minima.problem.num_students,
        method="descent" if isinstance(method, GradientDescent) else "flow",
        step=float(getattr(method, "step", 0.0)),
        rtol=float(getattr(method, "rtol", 0.0)),
        classes=minima.classes,
        labels=place[table["limit"].fill_null(-1).to_numpy()],
        smallest=table["smallest_student"].to_numpy(),
        times=table["time"].to_numpy(),
        steps=table["steps"].to_numpy(),
        audited=0 if audit is None else audit.num,
        flips=0 if audit is None else audit.flips,
        seconds=estimate.seconds,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Results:
    """`flows` and `descents` for every `k`; for one `k` descent with all `steps`, and the flow with `loose` tolerances."""

    flows: tuple[Sweep, ...]
    descents: tuple[Sweep, ...]
    steps: tuple[Sweep, ...]
    loose: Sweep

    @property
    def pairs(self) -> tuple[tuple[Sweep, Sweep], ...]:
        """Flow and descent of every `k`."""
        return tuple(zip(self.flows, self.descents, strict=True))

    @property
    def reference(self) -> Sweep:
        """The flow that other steps are compared with."""
        return next(flow for flow in self.flows if flow.k == self.loose.k)

    @property
    def runs(self) -> tuple[Sweep, ...]:
        """Every run once."""
        others = tuple(run for run in self.steps if run not in self.descents)
        return (*itertools.chain.from_iterable(self.pairs), *others, self.loose)


def compute(study: Study, report: Callable[[str, int, int], None] | None = None, seed: int = 0) -> Results:
    """Runs a study, two runs at a time: compiling keeps one core busy.

    **Arguments:** `report`: told after every run what is done, `(label, done, total)`; `seed`: of the starts.
    """
    flow, loose = (integrator(rtol=rtol, atol=atol) for rtol, atol in (FLOW, LOOSE))
    steps = [GradientDescent(step) for step in sorted({*study.steps, STEP})]
    tasks: list[tuple[int, AbstractMethod, int]] = []
    for k in study.sizes:
        descents = steps if k == study.step_size else [GradientDescent(STEP)]
        tasks += [(k, flow, study.audit), *((k, descent, 0) for descent in descents)]
    tasks.append((study.step_size, loose, 0))

    def start(k: int, method: AbstractMethod, audit: int) -> BasinEstimate:
        return run_starts(k, study.num, method, seed=seed, audit=audit)

    minima, sweeps = {k: Minima(k) for k in study.sizes}, []
    tell = report or (lambda label, done, total: None)
    with concurrent.futures.ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        tell(NAME, 0, len(tasks))
        try:
            # Classes are numbered in the order of the tasks, whichever is done first.
            for estimate in pool.map(lambda task: start(*task), tasks):
                k = estimate.widths[0]
                sweeps.append(classified(minima[k], estimate))
                tell(f"k = {k}", len(sweeps), len(tasks))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    by_descent = [sweep for sweep in sweeps if sweep.method == "descent"]
    return Results(
        flows=tuple(sweep for sweep in sweeps[:-1] if sweep.method == "flow"),
        descents=tuple(sweep for sweep in by_descent if sweep.step == STEP),
        steps=tuple(sweep for sweep in by_descent if sweep.k == study.step_size),
        loose=sweeps[-1],
    )
