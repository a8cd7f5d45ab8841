"""The runs behind the figures of Terstiege, Rauhut, Bah, Westdickenberg (2022): data, widths, starts, the flow to its limit.

*Balanced starts.* The start of section B.1 is `W_j = V_jI_{d_jd_1}U_{j−1}ᵀ`, with ranges `V_jI_{d_jd_1}` of dimension `d_1 = r`.
By eq. (6) of Chitour, Liao, Couillet (2022) `Ẇ_j` has its range in that of `W_{j+1}ᵀ` and its rows in the range of `W_{j−1}`, so
these spaces never move, and in their orthonormal bases the flow *is* that of widths `(d, r, …, r, d)` from the layers
`(U_0ᵀ, I, …, I, U_N)`, whatever the hidden widths were. It is followed in these.

*Solver.* Stabilised steps (`gdflow.AutomaticRKC`) on all layers as one vector: their length is chosen by accuracy, their number
of stages by the largest eigenvalue `λ` of the Hessian, so that the slow directions of deep networks are followed to the end. The
paper's RK4 would need a step of `2.785/λ` all the way.

*End.* A run ends when its limit is certified, that is, its loss has fallen below the second-lowest critical value, and its error
is `CONVERGED` times the first; or at the end of its span.
"""

import concurrent.futures
import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from gdflow.checks import check_double_precision, check_seed
from gdflow.dynamics import AutomaticRKC, gradient_flow_field
from gdflow.dynamics.step_control import first_step, step_control
from gdflow.dynamics.stopping import AtCertificate
from gdflow.initialization import fan_in, fan_out
from gdflow.manifold import best_fit
from gdflow.network import LayerTuple
from gdflow.problem import Problem

#: A run has converged when its limit is certified and its error is this fraction of the first one.
CONVERGED = 1e-5
#: Relative and absolute tolerance of a step.
RTOL, ATOL = 3e-5, 3e-8
#: Most stages and most steps.
STAGES, STEPS = 1000, 20_000
#: Saved times: from this one on, so many a decade.
FIRST_TIME, PER_DECADE = 1e-3, 25

Start = Literal["balanced", "fan-out", "Glorot", "fan-in"]
#: The laws of non-balanced starts by the standard deviation of the entries of `W_j`, which the print does not give.
LAWS: dict[Start, Callable] = {
    "fan-out": fan_out,
    "Glorot": lambda d_in, d_out: (2 / (d_in + d_out)) ** 0.5,
    "fan-in": fan_in,
}
DEVIATIONS = {"fan-out": "1/√d_j", "Glorot": "√(2/(d_{j−1} + d_j))", "fan-in": "1/√d_{j−1}"}


def layer_widths(d: int, rank: int, depth: int, rounding: Literal["nearest", "ceiling"]) -> tuple[int, ...]:
    """`d_0 = d` and `d_j = r + (d − r)(j − 1)/(N − 1)`, `j = 1, …, N`, rounded: `d_1 = r` and `d_N = d`.

    Section B.1 of the paper rounds to the nearest integer, `⌊x + ½⌋`; sections A and B.3 print a ceiling.

    ```python
    >>> layer_widths(20, 2, 5, "nearest"), layer_widths(20, 2, 5, "ceiling")
    ((20, 2, 7, 11, 16, 20), (20, 2, 7, 11, 16, 20))
    ```
    """
    top, bottom = d - rank, depth - 1  # in integers: a ceiling of round-off would be one too many
    if rounding == "ceiling":
        return (d, *(rank + -(-top * j // bottom) for j in range(depth)))
    return (d, *(rank + (2 * top * j + bottom) // (2 * bottom) for j in range(depth)))


@dataclasses.dataclass(frozen=True)
class Case:
    """What is run: `Y = X` or `Y = W̃X` of dimension `d`, with `m = 3d` samples; rank `d_1`, depth `N`, kind of start, span.

    Data, teachers and starts belong to a seed and a draw: within a draw `X` is the same for all cases of one dimension, and so is
    the balanced `W(0)` of one rank, whatever the depth.
    """

    task: Literal["autoencoder", "supervised"]
    d: int
    rank: int
    depth: int
    start: Start
    span: float
    rounding: Literal["nearest", "ceiling"] = "ceiling"

    @property
    def widths(self) -> tuple[int, ...]:
        """`(d_0, …, d_N)` as printed."""
        return layer_widths(self.d, self.rank, self.depth, self.rounding)

    @property
    def start_name(self) -> str:
        """`balanced`, or `non-balanced` with the law."""
        return self.start if self.start == "balanced" else f"non-balanced, {self.start}"

    def teacher(self, seed: int, draw: int) -> Float[np.ndarray, "d d"]:
        """`W̃ = W̃_N ⋯ W̃_1` with Gaussian entries of standard deviation `1/√d_j`."""
        return functools.reduce(
            lambda W, layer: layer @ W, self._gaussian(fan_out, self._random("teacher", seed, draw))
        )

    def problem(self, seed: int, draw: int) -> Problem:
        """The data in data coordinates: `x_i ~ N(0, I/d)`."""
        X = self._random("data", seed, draw).normal(size=(self.d, 3 * self.d)) / math.sqrt(self.d)
        return Problem(X, X if self.task == "autoencoder" else self.teacher(seed, draw) @ X)

    def begin(self, seed: int, draw: int) -> LayerTuple:
        """The start in data coordinates: a balanced one in the widths `(d, r, …, r, d)`, others in the printed ones."""
        rng = self._random("start", seed, draw)
        if self.start != "balanced":
            return LayerTuple(self._gaussian(LAWS[self.start], rng))
        first, last = (scipy.stats.ortho_group.rvs(self.d, random_state=rng) for _ in range(2))  # V_0, V_N
        return LayerTuple([first[:, : self.rank].T, *[np.eye(self.rank)] * (self.depth - 2), last[:, : self.rank]])

    def _gaussian(self, scale: Callable[[int, int], float], rng: np.random.Generator) -> list[Float[np.ndarray, "_ _"]]:
        """Layers of the printed widths, entries of standard deviation `scale(d_{j−1}, d_j)`."""
        return [scale(*pair) * rng.normal(size=pair[::-1]) for pair in itertools.pairwise(self.widths)]

    def _random(self, what: str, seed: int, draw: int) -> np.random.Generator:
        """NumPy's generator: JAX would compile a program for every size."""
        return np.random.default_rng([seed, draw, self.d, *what.encode()])


def slowest_rate(problem: Problem, case: Case, teacher: Float[np.ndarray, "d d"] | None) -> float:
    """The rate at which `W(t)` ends from balanced starts, the least eigenvalue of `𝒜_{W,N}` times the Riemannian Hessian at `W*`.

    *Autoencoder*, `W* = U_rU_rᵀ`: on the exchange of the eigenvectors `i ≤ r < j` of `XXᵀ` the operator is the identity, and the
    Hessian has the least eigenvalue `½(λ_i + λ_j − √((λ_i − λ_j)² + 4λ_j²))`; inside the range of `W*` all are at least `λ_r`,
    which is larger. So the rate does not depend on `N`. The least over all pairs need not be that of the neighbours `(r, r + 1)`.

    *Supervised*, `W* = W̃ = UΣVᵀ`, where the loss vanishes: a direction `u_rzᵀ`, `z ⊥ V`, decays at `σ_r^{2−2/N}zᵀXXᵀz` and
    `av_rᵀ`, `a ⊥ U`, at `σ_r^{2−2/N}v_rᵀXXᵀv_r`; the least of these is an upper bound of the rate.
    """
    if teacher is None:
        values = np.asarray(problem.singular_values) ** 2
        top, rest = values[: case.rank, None], values[None, case.rank :]
        return float(np.min(0.5 * (top + rest - np.sqrt((top - rest) ** 2 + 4 * rest**2))))
    _, sigma, Vt = np.linalg.svd(teacher)
    X = np.asarray(problem.design)
    stretch = min(np.sum((Vt[case.rank - 1] @ X) ** 2), np.linalg.svd(Vt[case.rank :] @ X, compute_uv=False)[-1] ** 2)
    return float(sigma[case.rank - 1] ** (2 - 2 / case.depth) * stretch)


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One flow and what is measured along it, at the saved times that it reached.

    - `errors`: `‖W(t) − W*‖_F`, `W*` the best fit of rank `r`, which Theorem 6 predicts; `losses`: `½‖Y − W(t)X‖²`.
    - `end`: how far it went; `certified`: whether its loss proves that the flow from the computed state tends to a
      global minimum; `status`.
    - `least`: the loss of `W*`; `teacher_error`: `‖W* − W̃‖_F/‖W̃‖_F`, NaN for the autoencoder.
    - `rate`: the rate at which `W(t)` ends from balanced starts, `slowest_rate`; for others, which end at other factors, NaN.
    - `level`: the loss below which a limit is certified; `steps`: of the solver.
    - `size`: `‖W*‖_F`; `null_loss`: the loss of `W = 0`.
    """

    case: Case
    draw: int
    ts: Float[np.ndarray, " T"]
    errors: Float[np.ndarray, " T"]
    losses: Float[np.ndarray, " T"]
    end: float
    certified: bool
    status: str
    least: float
    teacher_error: float
    rate: float
    level: float
    steps: int
    size: float
    null_loss: float

    @property
    def relative_errors(self) -> Float[np.ndarray, " T"]:
        """`‖W(t) − W*‖_F/‖W*‖_F`."""
        return self.errors / self.size

    @property
    def relative_losses(self) -> Float[np.ndarray, " T"]:
        """The losses over that of `W = 0`."""
        return self.losses / self.null_loss

    @property
    def misfits(self) -> Float[np.ndarray, " T"]:
        """`‖Y − W(t)X‖_F`."""
        return np.sqrt(2 * self.losses)

    @property
    def converged(self) -> bool:
        """Whether the limit is certified and the error has fallen to `CONVERGED` times the first."""
        return self.certified and bool(self.errors[-1] <= 1.05 * CONVERGED * self.errors[0])


def saved_times(span: float) -> Float[np.ndarray, " T"]:
    """Zero, and times of equal ratios to the end of the span."""
    count = math.ceil(PER_DECADE * math.log10(span / FIRST_TIME)) + 1
    return np.concatenate([[0.0], np.geomspace(FIRST_TIME, span, count)])


def compute(case: Case, seed: int, draw: int) -> Run:
    """Follows a case until its limit is certified and nearly reached, or to the end of its span."""
    data, start = case.problem(seed, draw), case.begin(seed, draw)
    problem = data.isometric()
    net = problem.convert(start, data.coordinates, problem.coordinates)
    best = jnp.asarray(best_fit(problem, case.rank))
    stop = AtCertificate().prepare(problem, net, False)
    ts = saved_times(case.span)
    result = _follow(problem.objective, net, best, stop, jnp.asarray(ts))
    saved, end, certified, steps, exhausted = jax.tree.map(np.asarray, result)
    kept = ts <= end
    errors, losses = (np.append(x[:-1][kept], x[-1]) for x in saved)
    times = np.append(ts[kept], end)
    if len(times) > 1 and times[-1] == times[-2]:
        times, errors, losses = times[:-1], errors[:-1], losses[:-1]
    return Run(
        case, draw, times, errors, losses, float(end), bool(certified),
        "steps used up" if exhausted else "end of span" if end >= case.span else "converged",
        *_of_the_limit(case, data, problem, best, seed, draw), float(np.asarray(stop.threshold)), int(steps),
        float(np.linalg.norm(best)), float(problem.end_to_end_loss(jnp.zeros_like(best))),
    )  # fmt: skip


def _of_the_limit(
    case: Case, data: Problem, problem: Problem, best: Array, seed: int, draw: int
) -> tuple[float, float, float]:
    """Loss of `W*`, its distance from the teacher, and the rate at which `W(t)` ends there."""
    least, error, teacher = float(problem.end_to_end_loss(best)), np.nan, None
    if case.task == "supervised":
        teacher = case.teacher(seed, draw)
        error = float(np.linalg.norm(np.asarray(best_fit(data, case.rank)) - teacher) / np.linalg.norm(teacher))
    rate = slowest_rate(data, case, teacher) if case.start == "balanced" else np.nan
    return least, error, rate


@eqx.filter_jit
def _follow(
    objective: Any, net: LayerTuple, best: Float[Array, "d d"], stop: AtCertificate, ts: Float[Array, " T"]
) -> tuple[Any, Array, Bool[Array, ""], Array, Bool[Array, ""]]:
    """Errors and losses at the saved times and at the end, the end, whether it is certified, steps, and whether they ran out.

    All layers are one vector: a solver's step is then a handful of operations instead of one for every layer.
    """
    y0, unravel = ravel_pytree(net)

    def field(t, y, objective):
        return ravel_pytree(gradient_flow_field(t, unravel(y), objective))[0]

    def error(y):
        return jnp.linalg.norm(unravel(y).end_to_end - best)

    def measure(t, y, objective):
        return error(y), objective.effective_loss(unravel(y))

    first = error(y0)

    def certified(t, y, objective):
        return stop.value(t, unravel(y), objective) <= 0

    def arrived(t, y, objective, **_):
        return (error(y) <= CONVERGED * first) & certified(t, y, objective)

    solver, controller, terms = AutomaticRKC(STAGES), step_control(RTOL, ATOL), diffrax.ODETerm(field)
    solution: Any = diffrax.diffeqsolve(
        terms, solver, ts[0], ts[-1], first_step(terms, solver, controller, ts[0], ts[-1], y0, objective), y0, args=objective,
        saveat=diffrax.SaveAt(subs=[diffrax.SubSaveAt(ts=ts, fn=measure), diffrax.SubSaveAt(t1=True)]),
        stepsize_controller=controller, event=diffrax.Event(arrived), max_steps=STEPS, throw=False,
        adjoint=diffrax.ForwardMode(),
    )  # fmt: skip
    saved, (last,) = solution.ys
    end = solution.ts[1][0]
    ends = jax.tree.map(lambda values, value: jnp.append(values, value), saved, measure(end, last, objective))
    exhausted = solution.result == diffrax.RESULTS.max_steps_reached
    return ends, end, certified(end, last, objective), solution.stats["num_steps"], exhausted


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """The runs of one case, one a draw."""

    case: Case
    runs: tuple[Run, ...]

    @property
    def name(self) -> str:
        """Size, depth and start."""
        return f"(d={self.case.d}, r={self.case.rank}, N={self.case.depth}, {self.case.start_name})"

    def times(self, level: float, quantity: str = "relative_errors") -> "Times":
        """When each run's relative errors, or losses, fall to a level for good."""
        return Times.of([_time_to(run.ts, getattr(run, quantity), level) for run in self.runs])

    def times_of_fall(self, fraction: float) -> "Times":
        """When each run's errors fall to a fraction of its first one for good."""
        return Times.of([_time_to(run.ts, run.errors, fraction * run.errors[0]) for run in self.runs])


@dataclasses.dataclass(frozen=True, eq=False)
class Times:
    """Times of several draws, each between two bounds: equal where it was reached, else the end of the run and infinity."""

    bounds: Float[np.ndarray, "2 draws"]

    @classmethod
    def of(cls, pairs: Sequence[tuple[float, float]]) -> "Times":
        """From the bounds of each draw."""
        return cls(np.array(pairs).T.reshape(2, -1))

    @property
    def median(self) -> float:
        """The median; infinite if half of the draws did not get there."""
        return float(np.median(self.bounds[1]))


def _time_to(ts: np.ndarray, values: np.ndarray, level: float) -> tuple[float, float]:
    above = np.flatnonzero(values > level)
    if not len(above):
        return 0.0, 0.0
    last = int(above[-1])
    if last + 1 == len(values):
        return float(ts[-1]), math.inf
    # Linear in the logarithm of the value: the ends of these curves are exponential.
    one, other = math.log(values[last]), math.log(max(values[last + 1], 1e-300))
    share = (one - math.log(level)) / (one - other)
    time = float(ts[last] + share * (ts[last + 1] - ts[last]))
    return time, time


class Runs:
    """Computes cases, each draw of each once, two at a time.

    **Arguments:** `fast`: smaller right-hand panels and fewer draws; `report`: told after every run what is done, `(label, done,
    total)`; `seed`: of data, teachers and starts.

    **Raises:** `ValueError` without double precision, which the errors in the figures need, and for seeds that are none.
    """

    def __init__(self, fast: bool = False, report: Callable[[str, int, int], None] | None = None, seed: int = 0):
        check_double_precision()
        self.fast, self.seed = fast, check_seed(seed)
        self._report = report or (lambda label, done, total: None)
        self._known: dict[tuple[Case, int], Run] = {}

    def get(self, label: str, asked: Sequence[tuple[Case, int]]) -> dict[Case, Group]:
        """So many draws of each of these cases, of which those not yet known are computed."""
        numbers: dict[Case, int] = {}
        for case, draws in asked:
            numbers[case] = max(draws, numbers.get(case, 0))
        # First draws first: each compiles a program of its own, so that no two wait for one. Then the longest, so that both
        # cores are busy to the end.
        jobs = sorted(
            ((case, k) for case, num in numbers.items() for k in range(num)),
            key=lambda job: (job[1] > 0, -job[0].depth * job[0].d ** 2),
        )
        missing = [job for job in jobs if job not in self._known]
        # Compilation uses one core, and so do small matrices: two runs at a time keep two of them busy.
        with concurrent.futures.ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
            self._report(label, 0, len(missing))
            futures = {pool.submit(compute, case, self.seed, draw): (case, draw) for case, draw in missing}
            try:
                for done, future in enumerate(concurrent.futures.as_completed(futures), 1):
                    self._known[futures[future]] = future.result()
                    self._report(label, done, len(missing))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return {case: Group(case, tuple(self._known[case, k] for k in range(num))) for case, num in numbers.items()}
