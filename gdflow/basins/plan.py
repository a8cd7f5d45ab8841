"""A plan: all that fixes every row of a run. Rows follow from a plan and an id, whoever computes them, where and when."""

import dataclasses
import functools
import importlib.metadata
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from jaxtyping import Array, Key

from gdflow.basins.catalogue import Catalogue, limit_labels
from gdflow.basins.engines import run_process
from gdflow.basins.lanes import default_pool, default_threads
from gdflow.basins.methods import AbstractMethod, integrator
from gdflow.basins.methods.adaptive import AbstractIntegrator
from gdflow.basins.outcomes import outcome_table, schema
from gdflow.basins.process import DEFAULT_STEPS, LaneProcess, Limits
from gdflow.basins.riders import MAX_CROSSINGS, AbstractRider, Crossings, Drift
from gdflow.basins.starts import AbstractStarts, as_starts
from gdflow.basins.tube import Tube, default_methods
from gdflow.checks import check_count
from gdflow.dynamics import RKC
from gdflow.initialization import Support
from gdflow.invariants import check_balanced, is_balanced
from gdflow.layouts import NARROW
from gdflow.levels import nested_levels
from gdflow.network import count_parameters
from gdflow.points import point_norm
from gdflow.polish import MOST_PARAMETERS
from gdflow.problem import AbstractProblem, Problem, check_any_problem
from gdflow.ranks import decide_rank
from gdflow.records import digest, is_known, record, restore
from gdflow.sides import BALANCED, check_side, sign_decides
from gdflow.thresholds import certificate_slack
from gdflow.verdicts import AbstractLevelVerdict, AbstractVerdict, Converged, default_verdict

#: An audit re-runs at tolerances tighter by this factor, …
AUDIT_FACTOR = 100.0
#: … with so many times the steps and the flow time.
_LONGER = 10
#: A lane holds about so many copies of its state (stages, interpolant, old and new) …
_COPIES = 32
#: … and all lanes together may take this many bytes.
_MEMORY = 2**32
#: Starts are drawn in pools of about this many numbers.
_POOL = 2**19
#: Starts that may have to be run again are run in blocks of so many, …
_BLOCK = 2**20
#: … and drawn in pools of at most so many, so that the few that are run again are shared among the threads.
_SMALL_POOL = 256
#: So many starts are looked at to see whether they are balanced.
_LOOKED_AT = 4
#: Weights of so many times the size that the data ask for diverge.
_LARGEST = 1e12
#: … where no data say anything, so many times the size of the starts.
_MUCH_LARGER = 1e6
#: At so many starts gradients are looked at, of whose median this part counts as converged.
_MEASURED, _FLAT = 32, 1e-6
#: Where the gradient jumps this part, the mean of the loss being taken over so many times the time in which it would fall to
#: zero; steps are no shorter than this part of that time.
_FLAT_ON_KINKS, _LONG_DWELL, _SHORT = 1e-4, 100.0, 1e-2
#: Gradients of a descent have to be small for so many steps.
_QUIET_STEPS = 10
#: Stages of the stabilised method where limits of networks are to be found.
_STAGES = 10
#: Steps after which a start is given up where limits are to be found: there is no certificate that would end it early.
_LONG = 100_000
_VERSIONS = ("gdflow", "jax", "jaxlib", "diffrax", "equinox", "numpy")

Sink = Callable[[np.ndarray, dict[str, np.ndarray]], None]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is run: made by `make_plan`, which checks it, or read from a `summary.json`.

    - `problem`; `starts`, in its coordinates.
    - `method`: how a start makes a step.
    - `verdict`: when its limit is decided, and what is claimed of it.
    - `riders`: what is carried along and reported besides.
    - `limits`: when a start is given up.
    - `again`: methods by which starts that a rider calls failed are run again, one after the other, and where limits are found in
      the run those that are not yet where their limit is certain; a row comes from the first run that did not fail, or from
      the last.
    """

    problem: AbstractProblem
    starts: AbstractStarts
    method: AbstractMethod
    verdict: AbstractVerdict
    riders: tuple[AbstractRider, ...]
    limits: Limits
    again: tuple[AbstractMethod, ...] = ()

    @property
    def methods(self) -> tuple[AbstractMethod, ...]:
        """All methods, in the order in which they are tried."""
        return (self.method, *self.again)

    @property
    def proves(self) -> bool:
        """Whether verdicts are proved for the exact flow from the start."""
        return any(isinstance(rider, Tube) for rider in self.riders)

    @property
    def descends(self) -> bool:
        """Whether starts follow gradient descent, or another algorithm, and not the flow."""
        return self.method.descent_step is not None

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the networks; `()` for starts that are none."""
        return self.starts.widths

    @property
    def discovers(self) -> bool:
        """Whether limits are found in the run, not known beforehand."""
        return self.verdict.discovers

    def catalogue(self) -> Catalogue | None:
        """A new catalogue for the limits that runs find; `None` if limits are known beforehand."""
        if not self.discovers:
            return None
        assert isinstance(self.verdict, Converged)
        process = self.processes[0]
        example = eqx.filter_jit(process.layout.unpack)(
            eqx.filter_jit(process.draw)(jnp.zeros(1, jnp.uint32), jnp.zeros(1, jnp.uint32))[0]
        )
        return Catalogue(
            process.objective,
            self.verdict,
            example,
            self.method.shortest,
            self.method.descent_step,
            self.method.stable_below,
        )

    @property
    def extra_columns(self) -> dict[str, str]:
        """The riders' columns, each with what it means."""
        own = {"attempt": "which of the plan's methods the row comes from, 0 the first"} if self.again else {}
        if self.discovers:
            own |= {"distance": "from the state where the integration ended to the critical point nearby"}
        if self.descends:
            own |= {"period": "of a cycle, in steps; no number where there is none"}
        return {name: doc for rider in self.riders for name, doc in rider.columns.items()} | own

    @functools.cached_property
    def schema(self) -> pa.Schema:
        """Of the rows; its metadata hold the fingerprint."""
        return schema(self.extra_columns).with_metadata({"plan": self.digest})

    @functools.cached_property
    def processes(self) -> tuple[LaneProcess, ...]:
        """What runs in the lanes, by each method."""
        later = self.limits.longer(_LONGER, AUDIT_FACTOR) if self.discovers else self.limits
        return tuple(
            LaneProcess(self.problem, self.starts, method, self.verdict, self.riders, later if attempt else self.limits)
            for attempt, method in enumerate(self.methods)
        )

    def run(
        self,
        ids: Sequence[int] | np.ndarray,
        sink: Sink,
        *,
        lanes: int | None = None,
        threads: int | None = None,
        catalogue: Catalogue | None = None,
        halted: Callable[[], bool] = lambda: False,
        sized_for: int = 0,
    ) -> None:
        """Runs the starts with given ids; rows go to `sink(ids, columns)` as they come, see `gdflow.basins.lanes.run_lanes`.

        **Arguments:** `lanes`: starts in flight at once per thread; results do not depend on it; `catalogue`: of the limits that
        are found, whose numbers the rows have; `halted`: whether no more starts shall be begun. Those that were begun are the
        first ones then, and all of them have their rows; `sized_for`: of how many starts these are a part, so that one program
        serves all parts.
        """
        catalogue = self.catalogue() if catalogue is None else catalogue
        num = max(len(ids), sized_for)
        lanes = self.check_lanes(num, lanes)
        threads = default_threads() if threads is None else threads
        most = _POOL // self.problem.objective.numbers(self.starts.num_parameters)
        # Ids that are to be run again are kept until their turn: of so many starts at a time.
        block = _BLOCK if self.again else max(len(ids), 1)
        large = default_pool(min(num, _BLOCK), most, threads)
        # One size of pools, so that later attempts share XLA's program.
        pool = min(large, _SMALL_POOL) if self.again else large
        for first in range(0, len(ids), block):
            waiting: Any = ids[first : first + block]
            if halted():
                break
            for attempt, process in enumerate(self.processes):
                again = _Sieve(self, attempt, sink, catalogue)
                run_process(
                    process, waiting, again, lanes=lanes, pool=pool, fused_pool=pool if attempt else large,
                    threads=min(threads, -(-len(waiting) // pool)), **({} if attempt else {"halted": halted}),
                )  # fmt: skip
                waiting = again.ids
                if not len(waiting):
                    break

    def check_lanes(self, num: int, lanes: float | None) -> int:
        """The number of lanes for so many starts; `ValueError` if they would not fit into memory."""
        if lanes is None:
            # Tubes take room in the cache, too.
            numbers = self.problem.objective.numbers(self.starts.num_parameters)
            lanes = max(8, default_lanes(self.widths, numbers) // (2 if self.proves else 1))
        lanes = check_count("lanes", lanes)
        lanes = min(lanes, num)
        _check_memory(self.starts, lanes, self.problem.dtype.itemsize)
        return lanes

    def collect(self, ids: Sequence[int] | np.ndarray, **options: Any) -> pa.Table:
        """The rows of the starts with given ids, in the order of the ids. **Arguments:** `options`: of `run`."""
        parts: list[dict[str, np.ndarray]] = []
        catalogue = self.catalogue()
        self.run(ids, lambda some, columns: parts.append({"id": some, **columns}), catalogue=catalogue, **options)
        if not parts:
            return self.schema.empty_table()
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        labels = self.verdict.labels
        if catalogue is not None:
            limits, columns = catalogue.sorted(columns)
            labels = limit_labels(limits)
        return self.table(columns, labels).sort_by("id")

    def table(self, columns: dict[str, np.ndarray], labels: Sequence[str] | None = None) -> pa.Table:
        """Arrays as rows of this plan. **Arguments:** `labels`: of the limits, if these were not known beforehand."""
        return outcome_table(columns, self.verdict.labels if labels is None else labels, self.schema)

    def audited(self) -> "Plan | None":
        """The same starts with another method, tighter tolerances, and more steps and time; `None` if the method knows none."""
        method = self.method.tighter(AUDIT_FACTOR)
        limits = self.limits.longer(_LONGER, AUDIT_FACTOR)
        if not self.problem.objective.smooth:
            # On kinks the path chatters, and its loss with it: it has converged when it has, with shorter steps.
            limits = dataclasses.replace(
                limits, gradient_tolerance=self.limits.gradient_tolerance, dwell=self.limits.dwell
            )
        return None if method is None else dataclasses.replace(self, method=method, limits=limits, riders=(), again=())

    # -- on paper ------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def record(self) -> dict[str, Any]:
        """All that fixes the rows as JSON can hold it, the versions of what computes them included."""
        parts = {field.name: record(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return parts | machine_record()

    @functools.cached_property
    def digest(self) -> str:
        """A fingerprint of the record: equal plans of equal versions give the same rows."""
        return digest(self.record)

    @property
    def is_known(self) -> bool:
        """Whether the record says it all: code that is not of a package with a version in it may have changed."""
        return is_known(self.record)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Plan":
        """The plan that was recorded; `ValueError` for records that are not complete, or name what is not there."""
        missing = [field.name for field in dataclasses.fields(cls) if field.name not in record]
        if missing:
            raise ValueError(f"the record of the plan has no {', '.join(missing)}")
        try:
            parts = {field.name: restore(record[field.name]) for field in dataclasses.fields(cls)}
        except ValueError:
            raise
        except Exception as error:  # of whatever the damage leads to
            raise ValueError(f"the record of the plan is damaged: {type(error).__name__}: {error}") from None
        for name, kind in _PARTS.items():
            if not isinstance(parts[name], kind):
                raise ValueError(f"the record of the plan is damaged: its {name} is a {type(parts[name]).__name__}")
        if not all(isinstance(rider, AbstractRider) for rider in parts["riders"]):
            raise ValueError("the record of the plan is damaged: its riders are not all riders")
        if not all(isinstance(method, AbstractMethod) for method in parts["again"]):
            raise ValueError("the record of the plan is damaged: its methods are not all methods")
        return cls(**parts)


class _Sieve:
    """Hands on the rows of one method, checked, but for those that are to be run again by the next: `ids`."""

    def __init__(self, plan: Plan, attempt: int, sink: Sink, catalogue: Catalogue | None):
        self.plan, self.attempt, self.sink, self.catalogue = plan, attempt, sink, catalogue
        self.last = attempt == len(plan.methods) - 1
        self._failed: list[np.ndarray] = []

    def __call__(self, some: np.ndarray, columns: dict[str, np.ndarray]) -> None:
        limits = len(self.plan.verdict.labels)
        if self.catalogue is not None:
            columns = self.catalogue.settle(some, columns)
        for name, least in () if self.catalogue is not None else (("limit", -1), ("highest", 0)):
            if len(some) and not least <= columns[name].min() <= columns[name].max() < limits:
                raise ValueError(
                    f"the verdict settles on a {name} from {columns[name].min()} to {columns[name].max()}, but has "
                    f"{limits} labels"
                )
        if self.plan.again:
            columns = columns | {"attempt": np.full(len(some), float(self.attempt))}
        if not self.last:
            failed = np.zeros(len(some), bool) if self.catalogue is None else self.catalogue.unsure(columns)
            for rider in self.plan.riders:
                found = rider.failed(columns)
                failed |= False if found is None else found
            self._failed.append(some[failed])
            some, columns = some[~failed], {name: column[~failed] for name, column in columns.items()}
        self.sink(some, columns)

    @property
    def ids(self) -> np.ndarray:
        """Of the starts to be run again, in order."""
        return np.sort(np.concatenate([np.zeros(0, np.uint64), *self._failed]))


_PARTS = {
    "problem": AbstractProblem, "starts": AbstractStarts, "method": AbstractMethod, "verdict": AbstractVerdict, "riders": tuple,
    "limits": Limits, "again": tuple,
}  # fmt: skip


def _check_memory(starts: AbstractStarts, lanes: int, itemsize: int) -> None:
    """`ValueError` where so many networks would not fit into memory."""
    parameters = starts.num_parameters
    # … and the largest C_j.
    needed = lanes * (parameters * _COPIES + max(starts.widths[1:-1], default=0) ** 2) * itemsize
    if needed > _MEMORY:
        many = "fewer lanes, or narrower layers" if lanes > 1 else "narrower layers"
        raise ValueError(
            f"{lanes} network{'s' if lanes > 1 else ''} of widths {starts.widths} ({parameters:.2g} parameters each) would need "
            f"{needed / 2**30:.0f} GiB: {many}"
        )


def machine_record() -> dict[str, Any]:
    """What else than a plan's parts rows may depend on: the kind of device, precision, and versions."""
    versions = {name: importlib.metadata.version(name) for name in _VERSIONS}
    return {"backend": jax.default_backend(), "x64": bool(jax.config.read("jax_enable_x64")), "versions": versions}


def default_lanes(widths: tuple[int, ...], numbers: int | None = None) -> int:
    """How many lanes suit a network of given widths on the default backend; benchmarks/layout.py measures it.

    On a CPU as many as fit into the cache: 96 small networks, fewer of larger ones; products of wide layers need only a few
    for company. On an accelerator, where launching a step costs more than computing it, as many as fill it.

    **Arguments:** `numbers`: how many numbers one evaluation of the gradient handles, if more than the weights.
    """
    numbers = count_parameters(widths) if numbers is None else numbers
    if jax.default_backend() != "cpu":
        return int(np.clip(2**27 // numbers, 8, 2**16))
    if not widths or max(widths) <= NARROW:
        vectors = int(np.clip(2**13 // numbers, 16, 96)) // 16  # pairs of whole ones
        if numbers > count_parameters(widths):
            # 32 and 64 are slower than 48 and 80 by a tenth to a third (8 ReLU students): presumably places of the cache clash.
            vectors = min(vectors | 1, 6)
        return 16 * vectors
    return int(np.clip(2**16 // numbers, 8, 64))


def make_plan(
    problem: AbstractProblem,
    starts: Any,
    *,
    key: Key[Array, ""] | None = None,
    method: AbstractMethod | None = None,
    verdict: AbstractVerdict | None = None,
    riders: Sequence[AbstractRider] | None = None,
    limits: Limits | None = None,
    first_id: int = 0,
    proof: bool = False,
    again: Sequence[AbstractMethod] | None = None,
) -> Plan:
    """A plan, checked; what is left out follows from the rest. The arguments are those of `gdflow.basin_sizes`.

    **Arguments:** `first_id`: from which id on starts are looked at; `again`: methods to try after the first where riders ask
    for it, with `proof` by default those of `gdflow.basins.tube.default_methods`.

    **Raises:** `ValueError` or `TypeError` for widths that do not fit the problem, float32, and verdicts that would mislead of
    such starts.
    """
    check_any_problem(problem)
    starts = as_starts(starts, key)
    if isinstance(problem, Problem):
        if not starts.widths:
            raise TypeError(
                "the starts of a problem of data are networks: a law of gdflow.initialization, or LayerTuples"
            )
        problem.check_widths(starts.widths)
    _check_memory(starts, 1, problem.dtype.itemsize)
    step = None
    if isinstance(method, AbstractMethod):
        method.check(problem, starts.widths)
        step = method.descent_step
    verdict = default_verdict(problem, starts, step) if verdict is None else verdict
    if isinstance(verdict, Converged) and step is not None:
        verdict = dataclasses.replace(verdict, separates=False)
    for name, value, kind in (
        ("method", method, AbstractMethod),
        ("verdict", verdict, AbstractVerdict),
        ("limits", limits, Limits),
    ):
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"the {name} must be a {kind.__name__}, got {value!r}")
    leveled = problem if isinstance(problem, Problem) and problem.why_no_levels is None else None
    if isinstance(verdict, AbstractLevelVerdict) and leveled is None:
        raise ValueError(
            f"{type(verdict).__name__} needs critical values known beforehand, and {problem.why_no_levels}"
        )
    if riders is None:
        riders = () if leveled is None else default_riders(leveled, starts.widths, verdict)
    riders = _as_riders(riders)
    if not isinstance(proof, bool):
        raise TypeError(f"proof is True or False, got {proof!r}")
    if proof and method is not None and step is not None:
        raise ValueError(
            f"proofs are of the gradient flow, and the method is {method.name}: leave the proof or the method out"
        )
    if proof:
        if not isinstance(verdict, AbstractLevelVerdict):
            raise ValueError("proofs are of verdicts by levels: leave the proof out; what is proved of limits found in a run "
                "is said by their status (certified)")  # fmt: skip
        riders = (*riders, Tube(verdict, problem.coordinates == "data"))
        method, again = (method, again) if again else default_methods(method)
    riders = _check_riders(riders)
    if not verdict.discovers and (not verdict.labels or len(set(verdict.labels)) < len(verdict.labels)):
        raise ValueError(f"a verdict needs at least one label, and different ones; got {verdict.labels}")
    if verdict.discovers and starts.num_parameters > MOST_PARAMETERS:
        raise ValueError(
            f"limits that are not known beforehand are found by dense Hessians, of at most {MOST_PARAMETERS} parameters; here "
            f"are {starts.num_parameters}: narrower layers"
        )
    verdict.check(problem, starts)
    verdict.check_step(step, "the flow's integration" if method is None else method.name)
    if leveled is not None:
        _check_balance(leveled, starts, first_id)
    limits = Limits() if limits is None else limits
    if step is not None and not limits.dwell and method is not None and problem.objective.smooth:
        limits = dataclasses.replace(limits, dwell=_QUIET_STEPS * method.step_time)
    if limits.max_steps is None:
        longer = 1 if problem.objective.smooth else 3
        limits = dataclasses.replace(limits, max_steps=longer * _LONG if verdict.discovers else DEFAULT_STEPS)
    if leveled is None:
        limits = _natural_limits(problem, starts, first_id, limits, verdict.discovers)
    elif (verdict.discovers or step is not None) and not limits.gradient_tolerance:
        limits = dataclasses.replace(_natural_limits(problem, starts, first_id, limits, True), largest=limits.largest)
    if leveled is not None and limits.largest is None:
        limits = dataclasses.replace(limits, largest=_LARGEST * max(1.0, _natural_size(leveled, starts.widths)))
    method = default_method(problem, verdict.discovers) if method is None else method
    if (
        verdict.discovers
        and not problem.objective.smooth
        and isinstance(method, AbstractIntegrator)
        and not method.shortest
    ):
        method = dataclasses.replace(method, shortest=_SHORT * limits.dwell / _LONG_DWELL)
    if again is None:
        tighter = method.tighter(AUDIT_FACTOR) if verdict.discovers and problem.objective.smooth else None
        again = () if tighter is None else (tighter,)
    for rider in riders:
        for some in (method, *again):
            rider.check(problem, verdict, starts.widths, some)
    return Plan(
        problem,
        starts,
        method,
        verdict,
        riders,
        limits,
        tuple(again),
    )


def default_method(problem: AbstractProblem, discovers: bool) -> AbstractIntegrator:
    """What steps the starts by default. **Arguments:** `discovers`: whether limits are to be found in the run.

    Networks fit data with curvatures that differ by factors of hundreds to thousands: the way to a limit is stiff, and a
    stabilised method takes it in a tenth of the time. Where the gradient jumps steps have a shortest length, which depends on
    the starts: the plan sets it.
    """
    if not discovers or not problem.objective.smooth:
        return integrator()
    if isinstance(problem, Problem):
        return integrator(RKC(_STAGES), rtol=1e-6, atol=1e-8)
    return integrator(rtol=1e-8, atol=1e-10)


@eqx.filter_jit
def measure(objective: Any, points: Any) -> tuple[Array, Array, Array]:
    """Losses, gradient norms and sizes of a batch of points."""

    def one(point):
        return objective.effective_loss(point), point_norm(objective.gradient(point)), point_norm(point)

    return jax.vmap(one)(points)


def _natural_limits(
    problem: AbstractProblem, starts: AbstractStarts, first_id: int, limits: Limits, converges: bool
) -> Limits:
    """The limits with a tolerance and a dwell that suit the gradients at some starts, and the sizes of these.

    **Raises:** `ValueError` where losses or gradients are not finite at any of them, or vanish at all.
    """
    count = _MEASURED if starts.num is None else min(_MEASURED, starts.num)
    some = starts.networks(range(first_id, min(first_id + count, 2**64)) if starts.num is None else range(count))
    problem.check_start(some, batch=True)
    losses, slopes, sizes = map(np.asarray, measure(problem.objective, some))
    good = np.isfinite(losses) & np.isfinite(slopes)
    if not good.any():
        raise ValueError(
            f"the loss or its gradient is not finite at the first {count} starts: loss {losses[0]}, ‖∇L‖ {slopes[0]}"
        )
    moving = good & (slopes > 0)
    if converges and not moving.any():
        raise ValueError(
            f"the gradient vanishes at the first {count} starts (dead units, or zero weights?): the flow goes nowhere from there"
        )
    given: dict[str, Any] = dict(
        largest=limits.largest, gradient_tolerance=limits.gradient_tolerance, dwell=limits.dwell
    )
    if limits.largest is None:
        given["largest"] = _MUCH_LARGER * max(1.0, float(sizes[good].max()))
    if converges and not limits.gradient_tolerance:
        slope = float(np.median(slopes[moving]))
        # The time in which the loss would fall to zero at the first rate.
        time = float(np.median(abs(losses[moving]) / slopes[moving] ** 2))
        smooth = problem.objective.smooth
        given["gradient_tolerance"] = (_FLAT if smooth else _FLAT_ON_KINKS) * slope
        given["dwell"] = limits.dwell or (time if smooth else _LONG_DWELL * time)
    return dataclasses.replace(limits, **given)


def _as_riders(riders: Any) -> tuple[Any, ...]:
    return (riders,) if isinstance(riders, AbstractRider) else tuple(riders)


def _check_riders(riders: tuple[Any, ...]) -> tuple[AbstractRider, ...]:
    """The riders; `TypeError` for what is none, `ValueError` for columns of a name that is taken."""
    taken = {*schema().names, "attempt", "distance", "period"}
    for rider in riders:
        if not isinstance(rider, AbstractRider):
            raise TypeError(f"riders are instances of AbstractRider, got {rider!r}")
        for name in rider.columns:
            if name in taken:
                raise ValueError(f"{type(rider).__name__} reports a column {name!r}, which there is already")
            taken.add(name)
    return riders


def default_riders(problem: Problem, widths: tuple[int, ...], verdict: AbstractVerdict) -> tuple[AbstractRider, ...]:
    """The drift of the conserved quantities, and the staircase: crossings of the values `ℓ({1, …, r})` above the verdict's."""
    s = np.asarray(problem.singular_values, dtype=np.float64)
    staircase = nested_levels(s, problem.max_rank(widths), lowest=MAX_CROSSINGS, tolerance=problem.level_tolerance)
    values = np.asarray(staircase.values)[:0:-1] - float(certificate_slack(problem))
    decisive = float(verdict.thresholds.threshold()) if isinstance(verdict, AbstractLevelVerdict) else -np.inf
    above = [float(v) for v in values if v > decisive + problem.level_tolerance]
    return (Drift(), Crossings(above)) if above else (Drift(),)


def _natural_size(problem: Problem, widths: tuple[int, ...]) -> float:
    """The size of the layers of a network that fits the data."""
    smallest = np.linalg.svd(np.asarray(problem.design), compute_uv=False).min()
    return float((float(problem.singular_values[0]) / smallest) ** (1 / (len(widths) - 1)))


def _check_balance(problem: Problem, starts: AbstractStarts, first_id: int) -> None:
    """Looks at some starts: whether they are balanced, and of the rank of the smallest width, if they say so.

    Starts that are balanced without saying so are refused where one is on the wrong side of `det W = 0`.
    """
    balanced = starts.invariant_set is Support.BALANCED
    decides = sign_decides(problem, starts.widths)
    if not (balanced or decides):
        return

    def first(count):
        if starts.num is not None:  # a list is looked at as a whole
            return starts.networks(range(starts.num))
        return starts.networks(range(first_id, min(first_id + count, 2**64)))

    some = first(_LOOKED_AT)
    alike = np.asarray(jax.vmap(lambda net: is_balanced(net, BALANCED))(some))
    if not balanced:
        if alike.any() if starts.num is not None else alike.all():
            try:
                # Half of them are expected on either side.
                check_side(problem, first(8 * _LOOKED_AT))
            except ValueError as error:
                raise ValueError(
                    f"starts of {starts.name} are balanced, though they do not say so by an `invariant_set` of "
                    f"gdflow.initialization.Support.BALANCED (balanced networks: gdflow.basins.Listed(nets, "
                    f"Support.BALANCED)): {error}"
                ) from None
        return
    for i in np.flatnonzero(~alike)[:1]:
        check_balanced(jax.tree.map(lambda w: w[i], some), BALANCED)  # noqa: B023 (called at once)
    widths = starts.widths
    products = np.asarray(jax.vmap(lambda net: net.end_to_end)(some))
    for values in np.linalg.svd(products, compute_uv=False):
        rank = decide_rank(values, size=max(products.shape[1:])).rank
        if rank < min(widths):
            thin = (widths[0], *[rank] * (len(widths) - 2), widths[-1])
            raise ValueError(
                f"starts of rank {rank} in widths {widths}: round-off leaks into ranks up to {min(widths)}; the flow "
                f"on the matrices of rank {rank} is that of the widths {thin}"
            )
