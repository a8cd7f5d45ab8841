"""Starts in pools: drawn by JAX, run from their beginning to their verdict by the compiled program."""

import ctypes
import functools
import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from gdflow.basins.fused.build import program
from gdflow.basins.fused.source import LARGEST_ORDER, LEAST_ATOL, NUMBERS, Shape, fused_source, joins_smoothly
from gdflow.basins.lanes import in_threads
from gdflow.basins.methods.runge_kutta import RungeKutta
from gdflow.basins.outcomes import Status
from gdflow.basins.process import FIRST_STEP, LaneProcess
from gdflow.basins.riders import Crossings, Drift
from gdflow.basins.tube import Tube
from gdflow.ids import split_ids
from gdflow.losses import SquaredError
from gdflow.objective import LinearObjective
from gdflow.rounding import coarse_error_parts, coarse_is_enough
from gdflow.verdicts import AbstractLevelVerdict, AlmostSure, Balanced, LevelVerdict

#: The program pays for layers up to this width (benchmarks/engines.py), …
WIDEST = 16
#: … with proofs for so many layers, as its source grows with the square of their number and compilers take their time, …
MOST_PROVED = 8
#: … if its arrays take so many bytes at most. Threads have two megabytes where the user's limit is none.
LARGEST_STACK = 3 * 2**19

#: How starts end, numbered as in the program.
ENDS = np.array([
    Status.CERTIFIED, Status.STATIONARY, Status.CONVERGED, Status.DIVERGING, Status.NON_FINITE, Status.TIME_LIMIT,
    Status.STEP_LIMIT,
])  # fmt: skip


def why_not_fused(process: Any) -> str | None:
    """Why a process is left to XLA; `None` if the program can run it."""
    if jax.default_backend() != "cpu" or jnp.result_type(float) != jnp.float64:
        return "it is for CPUs in double precision"
    if type(process) is not LaneProcess or type(process.method) is not RungeKutta:
        return "it is for explicit Runge–Kutta methods"
    objective, method, verdict = process.objective, process.method, process.verdict
    if not (isinstance(objective, LinearObjective) and isinstance(objective.loss, SquaredError) and objective.diagonal):
        return "it is for linear networks with the squared error"
    if objective.target.dtype != jnp.float64:
        return "it is for double precision"
    if max(process.starts.widths) > WIDEST or not coarse_is_enough(process.starts.widths):
        return f"layers are wider than {WIDEST}, or too many for one bound of their round-off"
    if not objective.design.shape[0] == objective.design.shape[1] == objective.target.shape[1]:
        return "it is for as many columns of data as the input has coordinates"
    if not joins_smoothly(method.solver) or not (isinstance(method.shortest, float) and method.shortest == 0):
        return "the method has no smooth polynomial between its steps, or a shortest step"
    if method.order not in range(1, LARGEST_ORDER + 1) or method.atol < LEAST_ATOL:
        return "the method's order or absolute tolerance is out of its range"
    if type(verdict) not in (LevelVerdict, AlmostSure, Balanced) or getattr(verdict, "has_sides", False):
        return "it is for verdicts by levels that are the same for all starts"
    kinds = [type(rider) for rider in process.riders]
    if len(set(kinds)) < len(kinds) or not set(kinds) <= {Drift, Crossings, Tube}:
        return "a rider looks at every step"
    if Tube in kinds and len(process.starts.widths) - 1 > MOST_PROVED:
        return f"the proof of more than {MOST_PROVED} layers takes long to compile"
    if shape_of(process).stack > LARGEST_STACK:
        return "networks are too large for the stack of a thread"
    return None


def widths_run(process: LaneProcess) -> tuple[int, ...]:
    """The widths of the networks that are run: those of the starts, in the coordinates of the problem.

    Fewer inputs than those of the starts where the problem's data have not full rank.
    """
    objective: Any = process.objective
    return (objective.design.shape[0], *process.starts.widths[1:-1], objective.target.shape[0])


def shape_of(process: LaneProcess) -> Shape:
    """What the program of a process is made for."""
    method: Any = process.method
    verdict: Any = process.verdict
    crossings = sum(rider.levels.shape[0] for rider in process.riders if isinstance(rider, Crossings))
    proof = any(isinstance(rider, Tube) for rider in process.riders)
    levels = verdict.thresholds.values.shape[0]
    return Shape(widths_run(process), method.solver, int(method.order), levels, crossings, proof)


@functools.cache
def _program(shape: Shape) -> Any:
    function = program(fused_source(shape)).run
    function.restype, function.argtypes = None, [ctypes.c_int64, *[ctypes.c_void_p] * 28]
    return function


@eqx.filter_jit
def _draw(process: LaneProcess, high: Any, low: Any) -> Any:
    """The starts of a pool, entry by entry: the starts along the last axis."""
    nets = process.problem.convert(process.starts.draw(high, low), process.source, process.problem.coordinates)
    return jnp.concatenate([w.reshape(high.shape[0], -1).T for w in nets.weights])


def _numbers(process: LaneProcess) -> np.ndarray:
    """The numbers that the program takes, in the order of `NUMBERS`."""
    method: Any = process.method
    objective: Any = process.objective
    limits, verdict = process.limits, process.verdict
    tubes = [rider for rider in process.riders if isinstance(rider, Tube)]
    factor, rest = coarse_error_parts(objective, process.starts.widths)
    assert isinstance(verdict, AbstractLevelVerdict)
    values = dict(
        rtol=method.rtol, atol=method.atol, t1=limits.t1, largest=process.largest,
        tolerance=limits.gradient_tolerance, dwell=limits.dwell, max_steps=limits.most_steps, round_off=factor, target_error=rest,
        bound=verdict.thresholds.bound(), first_step=FIRST_STEP, d_norm=jnp.max(jnp.abs(jnp.diagonal(objective.design))),
        a_norm=jnp.linalg.norm(objective.target), data_error=objective.data_error,
        rotation=sum(tube.rotation(widths_run(process), objective.target.dtype) for tube in tubes),
    )  # fmt: skip
    return np.array([float(values[name]) for name in NUMBERS])


class Fused:
    """The program of a process, with all that does not change from pool to pool."""

    def __init__(self, process: LaneProcess):
        objective: Any = process.objective
        assert isinstance(process.verdict, AbstractLevelVerdict)
        levels = process.verdict.thresholds.bounds
        crossings: list[Any] = [rider.levels for rider in process.riders if isinstance(rider, Crossings)]
        self.drifts, self.proves = (any(isinstance(rider, kind) for rider in process.riders) for kind in (Drift, Tube))
        data = (
            *(crossings or [np.zeros(0)]),
            objective.target,
            jnp.diagonal(objective.design),
            _numbers(process),
            levels,
        )
        self.constants = [np.ascontiguousarray(x, np.float64) for x in data]
        self.num_crossings = self.constants[0].size
        self.halt = np.zeros(1, np.int64)
        self.size = sum(a * b for a, b in itertools.pairwise(widths_run(process)))
        self.shape = shape_of(process)
        self.program = _program(self.shape)

    def end(self, starts: np.ndarray) -> dict[str, np.ndarray]:
        """Where some starts end, by the names of the program. **Arguments:** `starts`: `(parameters, num)`, entry by entry."""
        size, num = starts.shape
        assert size == self.size  # the program looks no further than at addresses
        marks = self.num_crossings + 1  # an entry more: of none there is no address
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("y", "f"), (num, size))
        shapes |= dict.fromkeys(("t", "t_next", "loss", "quiet", "steps", "status", "highest"), (num,))
        shapes |= {
            "mark_y": (marks, num, size),
            "mark_t": (marks, num),
            "mark_next": (marks, num),
            "mark_loss": (marks, num),
        }
        shapes |= dict.fromkeys(("slope", "drift", "time"), (num,)) | {"times": (marks, num)}
        shapes |= dict.fromkeys(("radius", "exponent", "proved"), (num,))
        shapes["taken"] = (1,)
        integers = ("steps", "status", "highest", "taken")
        arrays = {name: np.zeros(shape, np.int64 if name in integers else float) for name, shape in shapes.items()}
        addresses: dict[str, Any] = {name: x.ctypes.data for name, x in arrays.items()}
        if not self.drifts:
            addresses["drift"] = None
        constants = (x.ctypes.data for x in (self.halt, *self.constants))
        self.program(num, starts.ctypes.data, *addresses.values(), *constants)
        return arrays

    def run(self, starts: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of some starts, as `gdflow.basins.process.LaneProcess.rows` has them."""
        end = self.end(starts)
        decided = end["status"] == 0
        rows = dict(
            status=ENDS[end["status"]], limit=np.where(decided, 0, -1), highest=np.where(decided, 0, end["highest"]),
            time=end["time"], steps=end["steps"], loss=end["loss"], gradient_norm=end["slope"],
        )  # fmt: skip
        if self.drifts:
            rows["drift"] = end["drift"]
        if self.proves:
            rows |= {name: end[name] for name in ("proved", "radius", "exponent")}
        return rows | {f"crossing_{k}": end["times"][k] for k in range(self.num_crossings)}


class _Stop(threading.Event):
    """An event that the program sees, too."""

    def __init__(self, flag: np.ndarray):
        super().__init__()
        self.flag = flag

    def set(self) -> None:
        self.flag[0] = 1
        super().set()


def run_fused(
    process: LaneProcess,
    ids: Sequence[int] | np.ndarray,
    sink: Callable[[np.ndarray, dict[str, np.ndarray]], None],
    *,
    pool: int,
    threads: int,
    halted: Callable[[], bool] = lambda: False,
) -> None:
    """Runs the starts with the given ids, as `gdflow.basins.lanes.run_lanes`; a pool is handed on when all of it is done."""
    fused = Fused(process)
    queue, lock, stop = iter(range(0, len(ids), pool)), threading.Lock(), _Stop(fused.halt)

    def work() -> None:
        while not stop.is_set():
            with lock:
                first = None if halted() else next(queue, None)
            if first is None:
                return
            part = np.asarray(ids[first : first + pool], dtype=np.uint64)
            words = (np.pad(word, (0, pool - len(part))) for word in split_ids(part))
            starts = np.asarray(_draw(process, *words))
            columns = fused.run(np.ascontiguousarray(starts[:, : len(part)]))
            if stop.is_set():  # what was halted has no rows
                return
            with lock:
                sink(part, columns)

    in_threads([work] * threads, stop)
