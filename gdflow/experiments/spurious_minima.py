"""How often ReLU students end at minima that are not global: from random starts, by the gradient flow and by gradient descent.

`k` students learn `k` orthonormal ReLU teachers from Gaussian inputs in `R^k` (`gdflow.teacher`), from `w_i ~ N(0, I/k)`.
Besides the `k!` global minima, where the students are the teachers, there are other minima from some `k` on (Safran, Shamir
2018). All starts of one `k` are the same for the flow and for every step of gradient descent, so differences are paired: what
counts are the starts whose limit differs.

Minima are in one class if their losses and all products of their students with each other and with the teachers are the same
(`TeacherObjective.fingerprint`): a permutation of the students, or of the coordinates, takes one to the other.

*What comes out*, with 2000 starts for every `k` from 4 to 12 and seed 0: by the flow 0, 0, 2, 89, 254, 424, 663, 935, 1138
starts end at spurious minima, by descent with step 0.1 0, 0, 2, 88, 254, 423, 665, 933, 1138. The fractions do not differ
measurably, but up to 35 starts end elsewhere; for `k = 8` 4, 8, 12, 24, 48 do with the steps 0.02, 0.05, 0.1, 0.2, 0.4. At the
most frequent spurious minimum one student points against a teacher and all others along one; from `k = 8` on there are others.

From Python: `gdflow.experiments.spurious_minima.spurious_minima(fast=True).figure`.
"""

import concurrent.futures
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from jaxtyping import Array, Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gdflow.basins import AbstractMethod, AbstractRider, BasinEstimate, GradientDescent, Limits, basin_sizes, integrator
from gdflow.basins.catalogue import FoundLimit
from gdflow.basins.intervals import verdict_interval
from gdflow.binomial import clopper_pearson_lower, clopper_pearson_upper
from gdflow.experiments.results import Claim, FigureResult, every
from gdflow.initialization import Gaussian
from gdflow.plotting import COLORS
from gdflow.plotting.style import FONT, hide_box, log_ticks, set_ticks
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
#: A minimum whose loss is not larger is global: that of the others is above 10^-2, round-off below 10^-14.
GLOBAL = 1e-10
#: A start one of whose students was ever shorter than this is counted apart: at `w_i = 0` the flow need not be unique.
NEAR_ZERO = 1e-2
#: Losses, and products of students, that differ by less are the same.
_SAME_LOSS, _SAME = 1e-7, 1e-4
#: Students whose angle has a cosine above this share a direction.
_PARALLEL = 1 - 1e-6
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


# -- classes of minima -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Minimum:
    """A class of minima.

    - `k`, `loss`; `students`: those of a representative, one a row.
    - `along`: students whose largest component, by size, is positive; `against`: negative.
    - `shared`: students that share their direction with another one.
    - `alike`: sizes of the sets of teachers that a refinement by the students' components does not tell apart, largest first.
    - `index`, `zero`: negative eigenvalues of the Hessian and zero ones; `smallest`, `largest`: positive ones.
    """

    k: int
    loss: float
    students: Float[np.ndarray, "k k"]
    along: int
    against: int
    shared: int
    alike: tuple[int, ...]
    index: int
    zero: int
    smallest: float
    largest: float

    @property
    def is_global(self) -> bool:
        """Whether the students are the teachers: the loss is zero."""
        return self.loss <= GLOBAL

    @property
    def pattern(self) -> str:
        """In words."""
        if self.is_global:
            return "global"
        shared = f", {self.shared} share a direction" if self.shared else ""
        return f"{self.along} along, {self.against} against{shared}; teachers {'+'.join(map(str, self.alike))}"

    @classmethod
    def found(cls, limit: FoundLimit) -> "Minimum":
        """What a run has found, for orthonormal teachers `e_j`."""
        W = np.asarray(limit.point.weights[0])
        index = W.size - limit.positive - limit.zero - limit.symmetries
        return cls(
            W.shape[1],
            limit.loss,
            W,
            *directions(W),
            alike_teachers(W),
            index,
            limit.zero,
            limit.smallest,
            limit.largest,
        )


def directions(W: Float[np.ndarray, "n d"]) -> tuple[int, int, int]:
    """How many students point along a coordinate, how many against one, and how many share their direction with another.

    A student points along the coordinate in which it is largest if it is positive there, against it if it is negative.
    """
    leading = W[np.arange(len(W)), np.argmax(np.abs(W), axis=1)]
    U = W / np.linalg.norm(W, axis=1, keepdims=True)
    parallel = np.sum(U @ U.T > _PARALLEL, axis=1) > 1
    return int(np.sum(leading > 0)), int(np.sum(leading < 0)), int(np.sum(parallel))


def alike_teachers(W: Float[np.ndarray, "n d"]) -> tuple[int, ...]:
    """Sizes of the sets of columns that look alike, largest first: two columns do if they have the same entries in alike rows.

    Rows and columns are told apart by their sorted entries and by what is known already of where these stand, until nothing
    changes (colour refinement). Columns that a permutation of rows and columns exchanges are never told apart.
    """
    flat = np.sort(W.ravel())
    # Entries as whole numbers: one number between two gaps.
    number = np.searchsorted(flat[1:][np.diff(flat) > _SAME], W, side="right")
    rows, columns = np.zeros(W.shape[0], int), np.zeros(W.shape[1], int)
    for _ in range(sum(W.shape)):
        seen = len(set(rows)), len(set(columns))
        rows = _colors([sorted(zip(columns, line, strict=True)) for line in number])
        columns = _colors([sorted(zip(rows, line, strict=True)) for line in number.T])
        if (len(set(rows)), len(set(columns))) == seen:
            break
    return tuple(sorted(np.unique(columns, return_counts=True)[1].tolist(), reverse=True))


def _colors(signatures: list[Any]) -> Int[np.ndarray, " n"]:
    """The place of each signature among the different ones."""
    order = sorted(map(tuple, signatures))
    first = {signature: i for i, signature in reversed(list(enumerate(order)))}
    return np.array([first[tuple(signature)] for signature in signatures])


class Minima:
    """The classes of minima of one `k`, in the order in which runs find them."""

    def __init__(self, k: int):
        self.problem = TeacherStudent.orthonormal(k)
        self.classes: list[Minimum] = []
        self._numbers: list[np.ndarray] = []

    def number(self, limit: FoundLimit) -> int:
        """Which class a limit belongs to; a new one if it belongs to none."""
        numbers = np.asarray(self.problem.objective.fingerprint(limit.point))
        for i, (known, others) in enumerate(zip(self.classes, self._numbers, strict=True)):
            if abs(known.loss - limit.loss) < _SAME_LOSS and np.linalg.norm(others - numbers) < _SAME:
                return i
        self.classes.append(Minimum.found(limit))
        self._numbers.append(numbers)
        return len(self.classes) - 1


# -- runs --------------------------------------------------------------------------------------------------------------


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


# -- claims ------------------------------------------------------------------------------------------------------------


def percent(interval: tuple[float, float]) -> str:
    """An interval of a probability in per cent."""
    return f"[{100 * interval[0]:.3g}, {100 * interval[1]:.3g}] %"


def _large(sweeps: Sequence[Sweep]) -> list[Sweep]:
    return [sweep for sweep in sweeps if sweep.k >= FIRST]


def none_for_few(results: Results) -> Claim:
    """That below `FIRST` no start ends at a spurious minimum."""
    some = [sweep for pair in results.pairs for sweep in pair if sweep.k < FIRST]
    bounds = [clopper_pearson_upper(s.count + int(s.unknown.sum()), s.num, ALPHA) for s in some]
    return Claim(
        f"no spurious minimum is found for k ≤ {FIRST - 1}",
        "no start ends at one; not decided where a start has no limit",
        every(False if s.count else None if s.unknown.any() else True for s in some) if some else None,
        "; ".join(
            f"k={s.k}, {s.name}: {s.count} of {s.num}, probability at most {bound:.2g}"
            for s, bound in zip(some, bounds, strict=True)
        )
        or "no such k",
        ours=True,
    )


def positive_measure(results: Results) -> Claim:
    """That from `FIRST` on spurious minima are found, and are strict."""
    some, verdicts, texts = _large(results.flows), [], []
    for sweep in some:
        low, high = sweep.interval(ALPHA / len(some))
        bad = [m for m in sweep.classes if not m.is_global]
        least = min((m.smallest for m in bad if not m.zero and not m.index), default=0.0)
        verdicts.append(True if low > 0 and least > 0 else None)
        more = f", λ_min {least:.2g}" if least else "" if bad else ", none found"
        texts.append(f"k={sweep.k}: {percent((low, high))}{more}")
    return Claim(
        f"from k = {FIRST} on the flow ends at spurious minima from a set of starts of positive measure",
        "for every k the lower end of the interval, simultaneous over all k, is above 0, and a spurious minimum has a positive "
        "definite Hessian; not decided where no start of the flow ends at one",
        every(verdicts) if verdicts else None,
        "; ".join(texts) or "no such k",
    )


def grows(results: Results) -> Claim:
    """That the fraction increases with `k`."""
    some = _large(results.descents)
    intervals = [sweep.interval(ALPHA / max(len(some), 1)) for sweep in some]
    fractions = [sweep.fraction for sweep in some]
    verdict: bool | None = None
    if any(later[1] < earlier[0] for earlier, later in itertools.combinations(intervals, 2)):
        verdict = False
    elif len(some) > 1 and fractions == sorted(fractions) and intervals[-1][0] > intervals[0][1]:
        verdict = True
    return Claim(
        "the probability that gradient descent ends at a spurious minimum increases with k",
        "the fraction increases from every k to the next, and the interval of the last k lies above that of the first "
        "(simultaneous over all k); not confirmed if one lies below that of a smaller k",
        verdict,
        ", ".join(f"k={s.k}: {100 * s.fraction:.3g} % {percent(i)}" for s, i in zip(some, intervals, strict=True))
        or "no such k",
    )


def same_fractions(results: Results) -> Claim:
    """That flow and descent have the same fractions."""
    pairs = [pair for pair in results.pairs if pair[0].k >= FIRST]
    found = [difference(*pair, alpha=ALPHA / len(pairs)) for pair in pairs]
    return Claim(
        f"the flow and gradient descent with step {STEP:g} end at spurious minima equally often",
        f"for every k the interval of the difference, paired and simultaneous over all k, lies between −{100 * EQUAL:g} % and "
        f"{100 * EQUAL:g} %; not confirmed if one does not contain 0",
        every(d.same for d in found) if found else None,
        "flow − descent: "
        + ("; ".join(f"k={p[0].k}: {d.text}" for p, d in zip(pairs, found, strict=True)) or "no such k"),
        ours=True,
    )


def same_for_all_steps(results: Results) -> Claim:
    """That the fraction does not depend on the step."""
    found = [difference(run, results.reference, alpha=ALPHA / len(results.steps)) for run in results.steps]
    return Claim(
        f"for k = {results.loose.k} the fraction does not depend on the step of gradient descent",
        f"for every step the interval of the difference to the flow, paired and simultaneous, lies between −{100 * EQUAL:g} % "
        f"and {100 * EQUAL:g} %; not confirmed if one does not contain 0",
        every(d.same for d in found),
        "descent − flow: " + "; ".join(f"step {s.step:g}: {d.text}" for s, d in zip(results.steps, found, strict=True)),
        ours=True,
    )


def more_differ(results: Results) -> Claim:
    """That the longer the step, the more starts have another limit than by the flow."""
    flow, alpha = results.reference, ALPHA / len(results.steps)
    counts = [difference(run, flow).differ for run in results.steps]
    bounds = [verdict_interval(count, count, flow.num, alpha) for count in counts]
    verdict: bool | None = None
    if any(later[1] < earlier[0] for earlier, later in itertools.combinations(bounds, 2)):
        verdict = False
    elif counts == sorted(counts) and bounds[-1][0] > bounds[0][1]:
        verdict = True
    return Claim(
        f"for k = {flow.k}, the longer the step of gradient descent, the more starts end elsewhere than by the flow",
        "their number does not decrease from any step to the next, and the interval of the longest step lies above that of the "
        "shortest (simultaneous over all steps); not confirmed if one lies below that of a shorter step",
        verdict,
        ", ".join(
            f"step {s.step:g}: {c} of {s.num} {percent(b)}"
            for s, c, b in zip(results.steps, counts, bounds, strict=True)
        ),
        ours=True,
    )


def one_against(results: Results) -> Claim:
    """That at the most frequent spurious minimum one student points against a teacher."""
    verdicts: list[bool | None] = []
    texts = []
    for sweep in _large(results.flows):
        counts = np.bincount(sweep.labels[sweep.spurious], minlength=1)
        if not counts.any():
            verdicts.append(None)
            continue
        minimum, k = sweep.classes[int(np.argmax(counts))], sweep.k
        verdicts.append((minimum.along, minimum.against, minimum.alike) == (k - 1, 1, (k - 1, 1)))
        texts.append(f"k={k}: {minimum.loss:.10g} ({minimum.pattern}), {counts.max()} of {counts.sum()}")
    return Claim(
        "at the most frequent spurious minimum one student points against a teacher, all others along one, and all teachers but "
        "that one are alike",
        "for every k the most frequent class of the flow has this pattern; not decided where none was found",
        every(verdicts) if verdicts else None,
        "; ".join(texts) or "none found",
        ours=True,
    )


def all_strict(results: Results) -> Claim:
    """That all starts end at strict minima."""
    classes = {id(m): m for run in results.runs for m in run.classes}.values()
    flat = [m for m in classes if m.zero or m.index]
    lost = sum(int(np.sum(run.labels < 0)) for run in results.runs)
    return Claim(
        "every start ends at a minimum with a positive definite Hessian",
        "no start is without a limit, and no limit has a Hessian with an eigenvalue that is zero or negative",
        False if flat else True if not lost else None,
        f"{len(classes)} classes, {len(flat)} of them flat; least eigenvalue {min(m.smallest for m in classes):.2g}; "
        f"{lost} of {sum(run.num for run in results.runs)} runs without a limit",
        ours=True,
    )


def away_from_zero(results: Results) -> Claim:
    """That no start comes near a student at zero."""
    near = sum(int(run.near_zero.sum()) for run in results.runs)
    least = min(results.runs, key=lambda run: float(run.smallest.min()))
    return Claim(
        "no start comes near w_i = 0, where the flow need not be unique",
        f"after every step the norms of all students are at least {NEAR_ZERO:g}; other starts are counted as without a limit",
        near == 0,
        f"{near} of {sum(run.num for run in results.runs)} runs; "
        f"smallest norm {least.smallest.min():.3g} (k={least.k}, {least.name})",
        ours=True,
    )


def tolerances_suffice(results: Results) -> Claim:
    """That the labels of the flow do not depend on the tolerances."""
    reference, loose = results.reference, results.loose
    audited, flips = (sum(getattr(flow, name) for flow in results.flows) for name in ("audited", "flips"))
    differ = int(np.sum(reference.labels != loose.labels))
    audit = f"; audits with another solver at 100 times tighter tolerances contradict {flips} of {audited}"
    return Claim(
        "the limits of the flow do not depend on the tolerances of its integration",
        f"for k = {loose.k} no start has another limit at rtol {LOOSE[0]:g} than at {FLOW[0]:g}, and no audit contradicts one "
        "(with `fast` there is none)",
        differ == 0 and flips == 0,
        f"{differ} of {loose.num} differ" + (audit if audited else ""),
        ours=True,
    )


#: All claims, in order.
CLAIMS = (
    positive_measure, grows, none_for_few, same_fractions, same_for_all_steps, more_differ, one_against, all_strict,
    away_from_zero, tolerances_suffice,
)  # fmt: skip


# -- tables and picture ------------------------------------------------------------------------------------------------


def class_table(results: Results) -> pa.Table:
    """One row for every run and class of minima, with how many starts end there."""
    rows = []
    for run in results.runs:
        order = sorted(range(len(run.classes)), key=lambda i: run.classes[i].loss)
        for place, i in enumerate(order):
            m, (count, low, high) = run.classes[i], run.share(i)
            rows.append({
                "k": run.k, "method": run.method, "step": run.step, "rtol": run.rtol, "class": place,
                "loss": m.loss, "global": m.is_global, "along": m.along, "against": m.against, "shared directions": m.shared,
                "alike teachers": "+".join(map(str, m.alike)), "index": m.index, "zero eigenvalues": m.zero,
                "smallest eigenvalue": m.smallest, "largest eigenvalue": m.largest,
                "starts": run.num, "ended there": count, "fraction": count / run.num, "low": low, "high": high,
            })  # fmt: skip
    return pa.Table.from_pylist(rows)


def run_table(results: Results) -> pa.Table:
    """One row for every run."""
    flows = {flow.k: flow for flow in results.flows}
    return pa.Table.from_pylist([
        {
            "k": run.k, "method": run.name, "starts": run.num, "spurious": run.count, "fraction": run.fraction,
            "low": run.interval()[0], "high": run.interval()[1], "without a limit": int(np.sum(run.labels < 0)),
            "near zero": int(run.near_zero.sum()), "classes": len(np.unique(run.labels[run.labels >= 0])),
            "other limit than the flow": int(np.sum(run.labels != flows[run.k].labels)),
            "median time": float(np.median(run.times)), "longest time": float(run.times.max()),
            "mean steps": float(run.steps.mean()), "smallest student": float(run.smallest.min()), "seconds": run.seconds,
        }
        for run in results.runs
    ])  # fmt: skip


def draw(results: Results) -> Figure:
    """Fractions against `k`, fractions against the step, losses of the spurious minima."""
    figure = Figure(figsize=(13.5, 4.3), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.15, 1, 1))
    _draw_sizes(left, results)
    _draw_steps(middle, results)
    _draw_losses(right, results)
    for axes in (left, middle, right):
        hide_box(axes)
        axes.grid(color="0.92", lw=0.6)
        axes.set_axisbelow(True)
    return figure


def _draw_sizes(axes: Axes, results: Results) -> None:
    styles = ((results.flows, "o", COLORS[0], -0.1), (results.descents, "s", COLORS[1], 0.1))
    for sweeps, marker, color, shift in styles:
        for sweep in sweeps:
            low, high = sweep.interval()
            x = sweep.k + shift
            if sweep.count:
                axes.plot([x, x], [low, high], color=color, lw=1.4)
                axes.plot(x, sweep.fraction, marker, color=color, ms=5)
            else:  # an upper bound: with the same confidence, on one side
                top = clopper_pearson_upper(int(sweep.unknown.sum()), sweep.num, ALPHA)
                axes.plot(x, top, "v", mec=color, mfc="white", ms=6)
    axes.set_yscale("log")
    tops = [sweep.interval()[1] for sweeps, *_ in styles for sweep in sweeps]
    lows = [sweep.interval()[0] for sweeps, *_ in styles for sweep in sweeps if sweep.count]
    top = min(1.0, 1.3 * max(tops))
    bottom = min(0.6 * min([*lows, *(clopper_pearson_upper(0, s.num, ALPHA) for s in results.flows)]), 0.1 * top)
    axes.set_ylim(bottom, 1.05 * top)
    ticks = log_ticks(bottom, top)
    set_ticks(axes, "y", ticks, [f"{100 * t:g} %" for t in ticks])
    sizes = [flow.k for flow in results.flows]
    axes.set_xticks(sizes)
    axes.set_xlim(min(sizes) - 0.6, max(sizes) + 0.6)
    axes.set(xlabel="students and teachers $k$", ylabel="starts that end at a spurious minimum")
    axes.set_title(f"{_starts(results.flows)} starts for every $k$", fontsize=10)
    handles = [
        Line2D([], [], color=COLORS[0], marker="o", ms=5, lw=1.4, label="gradient flow"),
        Line2D([], [], color=COLORS[1], marker="s", ms=5, lw=1.4, label=f"gradient descent, step {STEP:g}"),
        Line2D([], [], mec="0.3", mfc="white", marker="v", ms=6, lw=0, label="none: upper bound"),
    ]
    axes.legend(handles=handles, fontsize=FONT, loc="lower right")


def _starts(sweeps: Sequence[Sweep]) -> str:
    counts = sorted({sweep.num for sweep in sweeps})
    return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"


def _draw_steps(axes: Axes, results: Results) -> None:
    flow = results.reference
    low, high = flow.interval()
    axes.axhspan(low, high, color=COLORS[0], alpha=0.12, lw=0)
    axes.axhline(flow.fraction, color=COLORS[0], lw=1.4)
    tops, bottoms = [high], [low]
    for run in results.steps:
        own, paired = run.interval(), difference(run, flow).interval
        axes.plot([run.step] * 2, own, color=COLORS[1], lw=1.0)
        ends = [flow.fraction + d for d in paired]
        axes.plot([run.step] * 2, ends, color=COLORS[1], lw=4.5, alpha=0.45, solid_capstyle="butt")
        axes.plot(run.step, run.fraction, "s", color=COLORS[1], ms=5)
        tops += [own[1], flow.fraction + paired[1]]
        bottoms += [own[0], flow.fraction + paired[0]]
    axes.set_xscale("log")
    steps = [run.step for run in results.steps]
    set_ticks(axes, "x", steps, [f"{step:g}" for step in steps])
    axes.set_xlim(min(steps) / 1.4, max(steps) * 1.4)
    room = 0.08 * (max(tops) - min(bottoms))
    axes.set_ylim(max(0.0, min(bottoms) - room), max(tops) + 4.5 * room)  # with room for the legend
    axes.yaxis.set_major_formatter(lambda y, _: f"{round(100 * y, 6):g} %")
    axes.set(xlabel="step of gradient descent", ylabel="starts that end at a spurious minimum")
    axes.set_title(f"$k = {flow.k}$, the same {flow.num:,} starts", fontsize=10)
    handles = [
        Line2D([], [], color=COLORS[0], lw=1.4, label="gradient flow, 95 % interval shaded"),
        Line2D([], [], color=COLORS[1], marker="s", ms=5, lw=1.0, label="gradient descent, 95 % interval"),
        Line2D([], [], color=COLORS[1], lw=4.5, alpha=0.45, label="its difference to the flow, 95 % interval"),
    ]
    axes.legend(handles=handles, fontsize=FONT, loc="upper center")


#: Marks of minima with one, two, three, more students against a teacher.
_AGAINST = (("o", COLORS[1], "1"), ("^", COLORS[2], "2"), ("D", COLORS[3], "3"), ("P", COLORS[4], "more"))


def _draw_losses(axes: Axes, results: Results) -> None:
    used, highest = set(), 0.0
    for flow, descent in results.pairs:
        for i, minimum in enumerate(flow.classes):
            share = (flow.share(i)[0] + descent.share(i)[0]) / (flow.num + descent.num)
            if minimum.is_global or not share:
                continue
            style = min(max(minimum.against, 1), len(_AGAINST)) - 1
            used.add(style)
            highest = max(highest, minimum.loss)
            marker, color, _ = _AGAINST[style]
            axes.scatter(flow.k, minimum.loss, s=18 + 400 * share, marker=marker, color=color, alpha=0.75, lw=0)
    sizes = [flow.k for flow in results.flows if flow.k >= FIRST] or [flow.k for flow in results.flows]
    axes.set_xticks(sizes)
    axes.set_xlim(min(sizes) - 0.6, max(sizes) + 0.6)
    axes.set_ylim(0, 1.3 * highest or 1.0)  # with room for the legend
    axes.set(xlabel="students and teachers $k$", ylabel="loss of the minimum")
    axes.set_title("spurious minima found, size by frequency", fontsize=10)
    handles = [
        Line2D([], [], marker=_AGAINST[i][0], color=_AGAINST[i][1], alpha=0.75, lw=0, ms=6, mew=0, label=_AGAINST[i][2])
        for i in sorted(used)
    ]
    if handles:
        title = "students against\na teacher"
        axes.legend(handles=handles, fontsize=FONT, loc="upper left", title=title, title_fontsize=FONT)


def class_notes(results: Results) -> list[str]:
    """The spurious minima of every `k` in words."""
    notes = []
    for flow, descent in results.pairs:
        bad = sorted((i for i, m in enumerate(flow.classes) if not m.is_global), key=lambda i: flow.classes[i].loss)
        if bad:
            texts = [
                f"{flow.classes[i].loss:.10g} ({flow.classes[i].pattern}; λ_min {flow.classes[i].smallest:.2g}): "
                f"{flow.share(i)[0]} by the flow, {descent.share(i)[0]} by descent"
                for i in bad
            ]
            notes.append(f"k = {flow.k}, of {flow.num} starts: " + "; ".join(texts) + ".")
    return notes


NOTES = (
    f"Flow: Tsit5, rtol {FLOW[0]:g}, atol {FLOW[1]:g}. A start has converged when ‖∇L‖ has stayed below {TOLERANCE:g} for a flow "
    f"time of {DWELL:g}; the critical point nearby is then computed to round-off, with its Hessian.",
    f"Intervals are Clopper–Pearson's at {100 * (1 - ALPHA):g} %. Starts without a limit, and those with a student shorter than "
    f"{NEAR_ZERO:g} on the way, widen them on both sides. They take labels to be right.",
    "A student is *along* a teacher if its largest component, by size, is positive, *against* it if negative. *Teachers 7+1*: "
    "seven that the students' components do not tell apart, and one.",
)


def spurious_minima(
    fast: bool = False,
    report: Callable[[str, int, int], None] | None = None,
    seed: int = 0,
    *,
    study: Study | None = None,
) -> FigureResult:
    """Fractions of random starts that end at spurious minima: ReLU students and teachers (Safran, Shamir 2018), flow and descent.

    **Arguments:** `fast`: up to `k = 9` with 300 starts each instead of `k = 20` with 2000; `report`: told of every run,
    `(label, done, total)`; `seed`: of the starts; `study`: another choice of sizes, starts and steps.

    **Raises:** `ValueError` without double precision, and for seeds that are none.
    """
    if not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise ValueError('experiments need double precision: jax.config.update("jax_enable_x64", True)')
    if not 0 <= seed < 2**63:
        raise ValueError(f"a seed lies between 0 and 2**63 - 1, got {seed}")
    return result(compute(study or (FAST if fast else FULL), report, seed))


def run(fast: bool, report: Callable[[str, int, int], None] | None, seed: int) -> Iterator[FigureResult]:
    """The one result of this experiment, for `gdflow.experiments.Experiment`."""
    yield spurious_minima(fast, report, seed)


def result(results: Results) -> FigureResult:
    """Picture, tables and claims of some runs."""
    return FigureResult(
        NAME,
        "Spurious minima of ReLU students and teachers",
        "Safran and Shamir (2018), *Spurious local minima are common in two-layer ReLU neural networks*, prove for 6 ≤ k ≤ 20 "
        "that k students of k orthonormal teachers have minima that are not global, and report that gradient descent finds them "
        "the more often the larger k is. Here: how often, with exact intervals, for gradient descent and for the flow from "
        "the same starts.",
        tuple(claim(results) for claim in CLAIMS),
        class_table(results),
        run_table(results),
        draw(results),
        (*class_notes(results), *NOTES),
    )
