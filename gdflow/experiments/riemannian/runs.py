"""The runs behind the figures of Terstiege, Rauhut, Bah, Westdickenberg (2022): data, widths, starts, two solvers.

*Step.* The paper prints none. RK4 is stable for `hλ < 2.785`, `λ` the largest eigenvalue of the Hessian. Where `W` has the
singular values `σ`, the Gauss–Newton part of it is at most `Nσ_1^{2−2/N}λ_max(XXᵀ)` for balanced factors (the kernel of `𝒜_{W,N}`
in `gdflow.manifold` is largest there). So here `h = 1/λ` with `λ` this bound at the larger of start and limit. Twice the step
would be stable too, but wrong by some per cent in the first moments, where the fast modes die out. For non-balanced starts that
is no bound: there `λ` is the Hessian's largest eigenvalue at the start if that is larger, and `h = 1/(4λ)`, since the eigenvalue
grows on the way: with `h = 1/λ` the autoencoder with d = 20, r = 1, N = 20 is wrong by 7 %, with half of it by 3 %, with a
quarter by 1e-6.

*Budget.* With a fixed step some of the runs would take hours: RK4 goes as far as a budget of work lets it, the adaptive
solver several times as far, mostly all the way. The two are compared where both are.
"""

import concurrent.futures
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from gdflow.dynamics import RKC, LowRank, riemannian_flow, simulate
from gdflow.initialization import AbstractInitialization, Balanced, Gaussian, fan_out
from gdflow.landscape import extreme_eigenpairs
from gdflow.manifold import best_fit
from gdflow.network import LayerTuple, count_parameters
from gdflow.problem import Problem

#: `hλ` of RK4, which is stable below 2.785, from balanced starts and from others.
STEP_FACTOR, STEP_FACTOR_OTHERS = 1.0, 0.25
#: Relative and absolute tolerance of the adaptive solver, Tsit5. Where stability binds it, a tight one costs nothing.
RTOL, ATOL = 1e-8, 1e-11
#: On the factors RKC, of order 2, takes over where stability would bind Tsit5: its stages, and looser tolerances.
STAGES, LOOSER = 20, 1000.0

SOLVERS = ("RK4", "adaptive")


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
    """One run: `Y = X` or `Y = W̃X` of dimension `d`, with `m = 3d` samples; rank `d_1`, depth `N`, kind of start, time span.

    `seed`: what data, teacher and start are drawn with.
    """

    task: Literal["autoencoder", "supervised"]
    d: int
    rank: int
    depth: int
    balanced: bool
    t1: float
    rounding: Literal["nearest", "ceiling"] = "ceiling"
    seed: int = 0

    @property
    def widths(self) -> tuple[int, ...]:
        """`(d_0, …, d_N)`."""
        return layer_widths(self.d, self.rank, self.depth, self.rounding)

    @property
    def start_name(self) -> str:
        """`balanced` or `non-balanced`."""
        return "balanced" if self.balanced else "non-balanced"

    def teacher(self) -> Float[np.ndarray, "d d"]:
        """`W̃ = W̃_N ⋯ W̃_1` with Gaussian entries of standard deviation `1/√d_j`."""
        return _teacher(self.widths, self.seed)

    def problem(self) -> Problem:
        """The data in data coordinates: `x_i ~ N(0, I/d)`; the same `X` for all cases of this dimension."""
        shape = (self.d, 3 * self.d)
        X = np.asarray(jax.random.normal(_keys(self.seed, self.d)[0], shape)) / math.sqrt(self.d)
        return Problem(X, X if self.task == "autoencoder" else self.teacher() @ X)

    def start(self) -> LayerTuple:
        """The balanced start of section B.1, all singular values of the product 1; or Gaussian with standard deviation `1/√d_j`.

        The paper does not give the standard deviation of the second: it is the teacher's here.
        """
        law = Balanced(self.widths) if self.balanced else Gaussian(self.widths, fan_out)
        return _draw(law, _keys(self.seed, self.d)[2])


def _keys(seed: int, d: int) -> Key[Array, " 3"]:
    """For data, teacher and start."""
    return jax.random.split(jax.random.fold_in(jax.random.key(seed), d), 3)


def _draw(law: AbstractInitialization, key: Key[Array, ""]) -> LayerTuple:
    """A draw as one program, compiled in haste: it runs once, and a deep network has as many shapes as layers."""
    return jax.jit(lambda key: law.draw(key), compiler_options={"xla_backend_optimization_level": 0})(key)


@functools.lru_cache(maxsize=64)
def _teacher(widths: tuple[int, ...], seed: int) -> np.ndarray:
    return np.asarray(_draw(Gaussian(widths, fan_out), _keys(seed, widths[0])[1]).end_to_end)


@dataclasses.dataclass(frozen=True)
class Run:
    """A case and what two solvers made of it: end-to-end matrices `W` at the times `ts`.

    - `first`: by RK4 on the factors with step `step`, as far as its budget goes.
    - `second`: adaptive; balanced starts by the Riemannian flow of `W`, others on the factors. Shorter than
      `ts` only if it ended early, as `status` says.
    - `eigenvalue`: the `λ` that the step was chosen by.
    - `best`: the limit that Theorem 6 predicts, `U_kΣ_kV_kᵀ(XXᵀ)^{-1/2}`.
    """

    case: Case
    problem: Problem
    best: Float[np.ndarray, "d d"]
    ts: Float[np.ndarray, " T"]
    first: Float[np.ndarray, "n d d"]
    second: Float[np.ndarray, "k d d"]
    step: float
    eigenvalue: float
    num_steps: int
    status: str

    @property
    def difference(self) -> float:
        """The largest `‖W_RK4(t) − W_adaptive(t)‖_F` over the saved times that both reached."""
        both = min(len(self.first), len(self.second))
        return float(np.linalg.norm(self.first[:both] - self.second[:both], axis=(1, 2)).max())

    @property
    def span(self) -> float:
        """How far RK4 went."""
        return float(self.ts[len(self.first) - 1])

    @property
    def final(self) -> Float[np.ndarray, "d d"]:
        """`W` at the end: by RK4 if it got there, else by the adaptive solver."""
        return (self.first if len(self.first) >= len(self.second) else self.second)[-1]


@dataclasses.dataclass(frozen=True)
class Budget:
    """Most steps of RK4 in one run, and most work in multiplications (the larger networks meet this one first).

    `ahead`: how many times as much the adaptive solver may do on the factors.
    """

    steps: int
    work: float
    ahead: float = 3.0

    def evaluations(self, widths: tuple[int, ...]) -> int:
        """The number of gradients for RK4, with networks of these widths."""
        d = widths[0]
        # A gradient is two sweeps over the layers and two products with the design.
        return 4 * max(min(self.steps, int(self.work / (12 * d * count_parameters(widths) + 8 * d**3))), 16)


FULL, FAST = Budget(steps=10_000, work=5e11, ahead=5.0), Budget(steps=3_000, work=1e11)


def compute(case: Case, budget: Budget) -> Run:
    """Runs a case with both solvers."""
    problem, start = case.problem(), case.start()
    best = np.asarray(best_fit(problem, case.rank))
    largest = float(problem.decomposition.S_X[0]) ** 2
    sigma = max(1.0, float(np.linalg.norm(best, 2)))
    eigenvalue = case.depth * sigma ** (2 - 2 / case.depth) * largest
    if not case.balanced:
        values, _ = extreme_eigenpairs(problem, start, which="largest", tolerance=1e-2)
        eigenvalue = max(eigenvalue, float(values[0]))

    total = math.ceil(case.t1 * eigenvalue / (STEP_FACTOR if case.balanced else STEP_FACTOR_OTHERS))
    step = case.t1 / total
    # Saved times lie between two steps nowhere, so that RK4 is not interpolated; its end is one of them.
    grid = np.union1d(np.geomspace(1e-4 * case.t1, case.t1, 41), np.linspace(0.0, case.t1, 41))
    affordable = min(budget.evaluations(case.widths) // 4, total)
    counts = np.union1d(np.minimum(np.rint(grid / step).astype(int), total), affordable)
    ts = np.minimum(counts * step, case.t1)
    used = int(np.sum(counts <= affordable))
    first, _, reached = _flow(problem.without_info(), start, jnp.asarray(ts[:used]), step=step, max_steps=10**7)
    # Steps of Tsit5, of six gradients, are at most about 3/λ, and λ grows on the way.
    stiff = 3 * eigenvalue * case.t1 > budget.evaluations(case.widths)
    second, num_steps, status = _adaptive(case, problem, start, ts, stiff, budget)
    first = first[np.isfinite(first).all(axis=(1, 2))]
    second = second[np.isfinite(second).all(axis=(1, 2))]
    return Run(
        case, problem, best, ts, first, second, step, eigenvalue, num_steps, f"RK4 at t = {reached:.4g}, {status}"
    )


@eqx.filter_jit
def _simulate(problem: Problem, start: LayerTuple, ts: Float[Array, " T"], options: dict) -> tuple:
    trajectory = simulate(problem, start, ts[-1], ts=ts, dense=False, **options)
    return trajectory.map_over_time(lambda net: net.end_to_end), trajectory.num_steps, trajectory.final_time


def _flow(problem: Problem, start: LayerTuple, ts: Float[Array, " T"], **options: Any) -> tuple[np.ndarray, int, float]:
    """`W` along the flow of the factors, the number of steps and the end. One program, which keeps no networks."""
    matrices, num_steps, end = _simulate(problem, start, ts, options)
    return np.asarray(matrices), int(num_steps), float(end)


def _adaptive(
    case: Case, problem: Problem, start: LayerTuple, ts: Float[np.ndarray, " T"], stiff: bool, budget: Budget
) -> tuple[np.ndarray, int, str]:
    """`W` at the saved times by the adaptive solver, its number of steps, and how it ended."""
    if case.balanced:
        # In low-rank form a step costs so much less that Tsit5 gets far also where stability binds it.
        W = eqx.filter_jit(lambda net: net.end_to_end)(start)
        flow = riemannian_flow(
            problem, W, case.depth, case.t1, rank=case.rank, ts=jnp.asarray(ts), form=LowRank(boundary=1e-6),
            max_steps=4 * budget.steps, rtol=RTOL, atol=ATOL,
        )  # fmt: skip
        how = "boundary met" if bool(flow.at_boundary) else "Riemannian flow"
        return np.asarray(flow.matrices), int(flow.num_steps), f"{how} at t = {float(flow.final_time):.4g}"
    stages, loose = (STAGES, LOOSER) if stiff else (6, 1.0)
    matrices, num_steps, end = _flow(
        problem.without_info(), start, jnp.asarray(ts), solver=RKC(stages) if stiff else diffrax.Tsit5(),
        max_steps=int(budget.ahead * budget.evaluations(case.widths)) // stages, rtol=RTOL * loose, atol=ATOL * loose,
    )  # fmt: skip
    return matrices, num_steps, f"{'RKC' if stiff else 'Tsit5'} at t = {end:.4g}"


class Runs:
    """Computes cases, each once, two at a time.

    **Arguments:** `fast`: smaller right-hand panels and a smaller budget; `report`: told after every run what is
    done, `(label, done, total)`; `seed`: of data, teachers and starts.

    **Raises:** `ValueError` without double precision, which the errors in the figures need, and for seeds that are none.
    """

    def __init__(self, fast: bool = False, report: Callable[[str, int, int], None] | None = None, seed: int = 0):
        if not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
            raise ValueError('experiments need double precision: jax.config.update("jax_enable_x64", True)')
        if not 0 <= seed < 2**63:
            raise ValueError(f"a seed lies between 0 and 2**63 - 1, got {seed}")
        self.fast, self.seed = fast, seed
        self._report = report or (lambda label, done, total: None)
        self._known: dict[Case, Run] = {}

    def get(self, label: str, cases: Sequence[Case]) -> dict[Case, Run]:
        """The runs of these cases, of which those not yet known are computed."""
        missing = [case for case in dict.fromkeys(cases) if case not in self._known]
        budget = FAST if self.fast else FULL
        # Compilation uses one core, and so do small matrices: two runs at a time keep two of them busy.
        with concurrent.futures.ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
            self._report(label, 0, len(missing))
            try:
                for done, run in enumerate(pool.map(lambda case: compute(case, budget), missing), 1):
                    self._known[run.case] = run
                    self._report(label, done, len(missing))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return {case: self._known[case] for case in cases}
