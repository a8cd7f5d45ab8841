"""Monte Carlo estimates of basin sizes: how likely a random start converges where, with intervals that hold."""

import dataclasses
import functools
import math
import os
import time
from collections.abc import Iterable, Sequence
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pyarrow as pa
import rich.console
import rich.progress
from jaxtyping import Array, Key

from gdflow.basins.explicit import default_lanes, gradient_flow_process
from gdflow.basins.flows import MAX_CROSSINGS, LaneSettings
from gdflow.basins.intervals import Audit, check_audit, contradicts, default_audit, interval_text, verdict_interval
from gdflow.basins.lanes import default_pool, default_threads, run_lanes
from gdflow.basins.outcomes import Status, is_certified
from gdflow.basins.storage import OUTCOMES, PARTIAL, SUMMARY, keep_results, prepare_folder
from gdflow.basins.tally import Tally
from gdflow.certificates import BALANCED, LevelCertificate, certificate_levels, check_side
from gdflow.checks import check_count, check_number
from gdflow.initialization import AbstractInitialization, Support, check_key, check_law, id_range
from gdflow.invariants import check_balanced, is_balanced
from gdflow.levels import CriticalValues, nested_levels
from gdflow.network import count_parameters
from gdflow.problem import Problem, check_problem
from gdflow.ranks import decide_rank
from gdflow.tables import Printable, column_table, key_value_table

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
#: So many starts are looked at to see whether a law is balanced.
_LOOKED_AT = 4
#: Weights of so many times the size that the data ask for diverge.
_LARGEST = 1e12
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


@dataclasses.dataclass(frozen=True)
class BasinRow:
    """One level: how many starts are certified to converge to it, how many may, and the probability's intervals.

    `ranks`: of the end-to-end matrices at the level (on the range of `X`), the sizes of its `subsets`. `interval` and
    `simultaneous` (over all rows) include the audit's bound on wrong labels; `unaudited` is the interval with labels taken to
    be right.
    """

    level: int
    value: float
    subsets: tuple[tuple[int, ...], ...]
    ranks: tuple[int, ...]
    certified: int
    possible: int
    interval: tuple[float, float]
    simultaneous: tuple[float, float]
    unaudited: tuple[float, float]


@dataclasses.dataclass(frozen=True, repr=False)
class BasinEstimate(Printable):
    """The result of `gdflow.basin_sizes`; prints as a table.

    - `tally`: counts, a histogram of the times and the first 10^6 rows. `outcomes` makes a `pyarrow.Table` of these rows
      (`.to_pandas()` for a frame) with the columns `id, status, verdict, level, time, steps, loss, gradient_norm, drift`, and
      `crossing_i` for the levels in `crossings`.
    - `crossings`: the losses that are timed besides the certificate's.
    - `levels`: the lowest critical values, and `widths` those of the networks.
    - `verdicts`: what is certified of a limit at the lowest level, and of one at the level above. Where round-off cannot
      tell the lowest critical values apart, no more than that the limit's value is one of these.
    - `assumptions`: singular values of the data that were taken for zero, in words.
    - `confidence`: of the intervals.
    - `audit`: the audit, or `None`.
    - `configuration`: everything needed to repeat the run.
    - `seconds`: wall time, compilation included.
    """

    tally: Tally
    crossings: tuple[float, ...]
    levels: CriticalValues
    widths: tuple[int, ...]
    verdicts: tuple[str, str]
    assumptions: tuple[str, ...]
    confidence: float
    audit: Audit | None
    configuration: dict[str, Any]
    seconds: float

    @property
    def num(self) -> int:
        """Number of starts."""
        return self.tally.num

    @property
    def statuses(self) -> dict[Status, int]:
        """How many starts ended how."""
        return {status: int(self.tally.statuses[status]) for status in Status}

    @functools.cached_property
    def outcomes(self) -> pa.Table:
        """One row per start, in the order of the ids; of very many starts (above 10^6) the first ones only."""
        return self.tally.table()

    @property
    def certified(self) -> int:
        """Starts with a certified limit: a global minimum, or (`kind="balanced"`) the level above it."""
        return self.statuses[Status.CERTIFIED]

    @property
    def undecided(self) -> int:
        """All others."""
        return self.num - self.certified

    @property
    def fraction(self) -> float:
        """Share of starts whose limit is certified to be at the lowest level, as a rule a global minimum."""
        return self.rows[0].certified / self.num

    @property
    def interval(self) -> tuple[float, float]:
        """Exact interval for the probability of converging to the lowest level, as a rule to a global minimum."""
        return self.rows[0].interval

    @property
    def rows(self) -> tuple[BasinRow, ...]:
        """One row per level, from the minimum; the last stands for its level and all above.

        Simultaneous intervals are Bonferroni's over all these possible verdicts, observed or not.
        """
        alpha = 1 - self.confidence
        rows = []
        for k, level in enumerate(self.levels):
            certified = int(self.tally.certified[k])
            possible = int(np.sum(self.tally.levels[k:]) if k else self.num - np.sum(self.tally.certified[1:]))
            intervals = [
                verdict_interval(certified, possible, self.num, a, audit)
                for a, audit in ((alpha, self.audit), (alpha / len(self.levels), self.audit), (alpha, None))
            ]
            ranks = tuple(sorted({len(subset) for subset in level.subsets}))
            rows.append(BasinRow(k, level.value, level.subsets, ranks, certified, possible, *intervals))
        return tuple(rows)

    @property
    def certificate_times(self) -> np.ndarray:
        """Flow times at which the certified starts among the kept rows were certified, unordered."""
        return self.outcomes["time"].to_numpy()[is_certified(self.outcomes)]

    def time_quantile(self, q: float) -> float | None:
        """Quantile of the certificate times of all certified starts; `None` if there are none.

        Exact where all rows are kept, else from the histogram, to 4 %.
        """
        if self.num > self.tally.kept:
            return self.tally.time_quantile(q)
        times = self.certificate_times
        return float(np.quantile(times, q)) if times.size else None

    def summary(self) -> dict[str, Any]:
        """Numbers and configuration, ready for JSON."""
        edges = self.tally.edges()
        used = np.flatnonzero(self.tally.times)
        return {
            "num": self.num,
            "certified": self.certified,
            "undecided": self.undecided,
            "fraction": self.fraction,
            "confidence": self.confidence,
            "interval": self.interval,
            "statuses": {status.label: n for status, n in self.statuses.items()},
            "levels": [dataclasses.asdict(row) for row in self.rows],
            "certificate_time_quantiles": {str(q): self.time_quantile(q) for q in QUANTILES},
            "certificate_time_histogram": [[edges[k], edges[k + 1], int(self.tally.times[k])] for k in used],
            "crossings": self.crossings,
            "steps": {"mean": self.tally.steps / self.num, "most": self.tally.most_steps},
            "largest_drift": self.tally.largest_drift,
            "audit": None if self.audit is None else dataclasses.asdict(self.audit),
            "seconds": self.seconds,
            "configuration": self.configuration,
        }

    def __rich__(self) -> rich.console.RenderableType:
        percent = f"{100 * self.confidence:g} %"
        verdict = self.verdicts[0]
        audited = self.audit is not None
        table = column_table(
            f"Basins of {self.num} starts",
            "limit", "rank", "loss", "certified", "possible", f"{percent} interval", "simultaneous",
            *(["without audit"] if audited else []),
            caption="possible: not excluded. Intervals are exact (Clopper–Pearson); undecided starts widen them"
            + (", and so does the audit's bound on wrong labels." if audited else "."),
        )  # fmt: skip
        for row in self.rows:
            name = verdict if row.level == 0 else f"level {row.level}"
            if row.level and row.level == len(self.levels) - 1 and not self.levels.complete:
                name += " or above"
            elif row.level:
                name += " {" + ",".join(map(str, row.subsets[0])) + "}" + (" …" if len(row.subsets) > 1 else "")
            table.add_row(
                name, ", ".join(map(str, row.ranks)), f"{row.value:.6g}", str(row.certified), str(row.possible),
                *map(interval_text, [row.interval, row.simultaneous] + ([row.unaudited] if audited else [])),
            )  # fmt: skip
        facts = [
            ("starts", "-".join(map(str, self.widths)) + f", {self.configuration['coordinates']} coordinates, "
                f"{self.configuration['initialization']}"),
            ("ended", ", ".join(f"{n} {status.label}" for status, n in self.statuses.items() if n)),
        ]  # fmt: skip
        facts += [(status.label, status.message) for status, n in self.statuses.items() if n and status]
        lowest = self.levels[0]
        if lowest.width > 0:
            facts.append(("lowest levels", f"{lowest.num_subsets} critical values from {lowest.value:.6g} to "
                f"{lowest.value + lowest.width:.6g} are one for round-off: minima and saddles are not told apart"))  # fmt: skip
        facts += [("assuming", note) for note in self.assumptions]
        if self.certified:
            shown = ", ".join(f"{q:.0%}: {self.time_quantile(q):.4g}" for q in (0.05, 0.5, 0.95))
            facts.append(("flow time to certificate", f"{shown}, longest: {self.time_quantile(1.0):.4g}"))
        facts.append(("steps", f"mean {self.tally.steps / self.num:.1f}, most {self.tally.most_steps}"))
        facts.append(("largest drift of C_j", f"{self.tally.largest_drift:.1e} (relative; zero for the exact flow)"))
        facts.append(("audit", self._audit_text()))
        facts.append(("wall time", f"{self.seconds:.1f} s, compilation included"))
        return rich.console.Group(key_value_table("Basin estimate", facts), table)

    def _audit_text(self) -> str:
        if self.audit is None:
            return "none (labels are taken to be right; audit=n re-runs n starts at tighter tolerances)"
        audit, bound = self.audit, self.audit.flip_bound((1 - self.confidence) / 2)
        decided = f"; {audit.newly_decided} undecided ones it certified" if audit.newly_decided else ""
        return f"contradicts {audit.flips} of {audit.num} labels ({audit.method}); wrong labels ≤ {bound:.2e}{decided}"


def basin_sizes(
    problem: Problem,
    initialization: AbstractInitialization,
    num: float,
    *,
    key: Key[Array, ""],
    t1: float = math.inf,
    max_steps: float = 10_000,
    rtol: float = 1e-6,
    atol: float = 1e-9,
    solver: diffrax.AbstractSolver | None = None,
    kind: str | None = None,
    confidence: float = 0.95,
    audit: float | None = None,
    lanes: float | None = None,
    first_id: int = 0,
    num_levels: float = 16,
    crossings: str | Iterable[float] = "staircase",
    gradient_tolerance: float = 0.0,
    dwell: float = 0.0,
    folder: str | os.PathLike | None = None,
    overwrite: bool = False,
    progress: bool = True,
    allow_float32: bool = False,
) -> BasinEstimate:
    """How likely a random start converges to a global minimum: runs `num` starts until each limit is decided.

    A start is certified when its loss falls below the second-lowest critical value, by more than round-off. It counts as
    undecided, with its reason, if that has not happened by `t1` or within `max_steps`. Start `i` depends on `key` and `i`
    alone, and ids are fixed in advance, so fast basins are not favoured and results do not depend on the number of lanes or
    threads.

    From balanced starts this is the Riemannian flow on the matrices of rank `k`, the smallest width. There limits of lower
    rank can have positive probability: with `kind="balanced"` they are certified too, long before round-off could carry
    the integration to the wrong side of the boundary.

    **Arguments:**

    - `problem`: with the squared error; the starts are drawn in its coordinates.
    - `initialization`: the law of starts, e.g. `gf.initialization.Gaussian(problem.widths([5, 5]))`.
    - `num`: how many, ids `first_id, …, first_id + num − 1` (64 bits).
    - `t1`, `max_steps`: when to give a start up.
    - `rtol`, `atol`, `solver`: of the integration; any adaptive Diffrax solver, Tsit5 by default, `gdflow.RKC` where it is
      stiff. Labels survive rtol 1e-3; the default is tighter so that times do too (benchmarks/tolerance.py).
    - `kind`: `"exact"`, `"almost sure"` (laws with a density only) or `"balanced"` (laws of exactly balanced starts only): see
      `gdflow.certificates.LevelCertificate`. By default `"balanced"` if the law says that its starts are, else `"exact"`.
    - `confidence`: of the intervals.
    - `audit`: how many of the starts, chosen at random, to re-run with another solver at 100× tighter tolerances; by default
      5 %, at least 100 and at most 500. 0 for none: labels are then taken to be right.
    - `lanes`: starts in flight at once per thread, by default `gdflow.basins.explicit.default_lanes`; memory grows with them,
      results do not depend on them.
    - `num_levels`: how many levels above the lowest are told apart.
    - `crossings`: losses whose first crossing is timed besides the certificate's, inside the step as well: `"staircase"` for
      the values `ℓ({1, …, r})` above it (the lowest 16), or at most 16 numbers, in falling order; `()` for none, which is up to
      a fifth faster.
    - `gradient_tolerance`, `dwell`: give a start up as converged, undecided, when its gradient norm has stayed at or below the
      tolerance for that flow time. Off by default: a certificate needs no such guess.
    - `folder`: write all rows to `outcomes.parquet`, as they come, and the numbers to `summary.json`. Memory does not grow with
      `num`; without a folder the rows beyond the first 10^6 are counted only. If they can't be written in the end, a
      `gdflow.basins.StorageWarning` says why and where they are, and the estimate is returned all the same.
    - `overwrite`: replace results that are in the folder.
    - `progress`: show a progress bar.
    - `allow_float32`: certify in single precision.

    **Returns:** a `gdflow.basins.BasinEstimate`.

    **Raises:** `ValueError` or `TypeError` for options out of range, widths that do not fit the problem, float32 without
    `allow_float32`, and kinds of certificate that the law does not admit, all before anything is run. What happens to single
    starts never raises.

    ```python
    >>> law = gf.initialization.Gaussian(problem.widths([5, 5]))
    >>> print(gf.basin_sizes(problem, law, 1000, key=jax.random.key(0)))
    ```
    """
    begin = time.perf_counter()
    check_problem(problem)
    check_law(initialization)
    check_key(key)
    num, num_levels = check_count("num", num), check_count("num_levels", num_levels)
    if num >= 2**63:
        raise ValueError(f"num must be below 2**63, got {num}")
    lanes = None if lanes is None else check_count("lanes", lanes)
    if not 0 < check_number("confidence", confidence) < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    audit = default_audit(num, confidence) if audit is None else check_count("audit", audit, 0)
    check_audit(audit, num, confidence)
    ids = id_range(check_count("first_id", first_id, 0), num)
    widths = problem.check_widths(initialization.widths)
    kind = _kind_of_certificate(problem, initialization, kind)
    _check_starts(problem, initialization, key, ids)
    certificate = LevelCertificate(problem, widths, kind=kind, depth=num_levels, allow_float32=allow_float32)
    goals = _crossing_levels(problem, widths, certificate, crossings)
    solver = diffrax.Tsit5() if solver is None else solver
    largest = _LARGEST * max(1.0, _natural_size(problem, widths))
    settings = LaneSettings(solver, rtol, atol, t1, max_steps, gradient_tolerance, dwell, largest)  # type: ignore[arg-type]
    lanes = min(lanes or default_lanes(widths), num)
    parameters = count_parameters(widths)
    needed = lanes * parameters * problem.target.dtype.itemsize * _COPIES
    if needed > _MEMORY:
        raise ValueError(
            f"{lanes} networks of widths {widths} ({parameters:.2g} parameters each) would need {needed / 2**30:.0f} GiB: "
            "fewer lanes, or narrower layers"
        )

    configuration = dict(
        widths=widths, coordinates=problem.coordinates, initialization=_describe(initialization), **_describe_data(problem),
        singular_values=np.asarray(problem.singular_values).tolist(),
        key=np.asarray(jax.random.key_data(key)).tolist(), key_impl=str(jax.random.key_impl(key)),
        num=num, first_id=first_id, t1=t1 if math.isfinite(t1) else None, max_steps=max_steps, rtol=rtol, atol=atol,
        solver=type(settings.solver).__name__, kind=kind, confidence=confidence, num_audited=audit, lanes=lanes,
        num_levels=num_levels, crossings=list(goals), gradient_tolerance=gradient_tolerance, dwell=dwell,
        dtype=str(problem.target.dtype), backend=jax.default_backend(),
        versions=dict(jax=jax.__version__, jaxlib=jaxlib.__version__, diffrax=diffrax.__version__, numpy=np.__version__),
    )  # fmt: skip

    if folder is not None:
        folder = prepare_folder(folder, (OUTCOMES, SUMMARY), overwrite=overwrite)
    with rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
        transient=True,
        disable=not progress,
    ) as bar:
        chosen = [ids[int(i)] for i in _choose(key, num, audit)]
        watched = _Watch(chosen)
        tally = Tally(ids, num_levels, certificate.verdicts, len(goals), None if folder is None else folder / PARTIAL)

        def sink(some, columns):
            tally.add(some, columns)
            watched.add(some, columns)

        run = functools.partial(_run_all, problem, initialization, key, lanes=lanes, bar=bar)
        try:
            run(ids, certificate, goals, settings, sink, description="integrating")
        finally:
            tally.close()
        result = _audit(run, certificate, settings, watched) if audit else None

    estimate = BasinEstimate(
        tally=tally,
        crossings=goals,
        levels=certificate_levels(problem, widths, kind=kind, depth=num_levels),
        widths=widths,
        verdicts=certificate.verdicts,
        assumptions=problem.assumptions_of_rank,
        confidence=confidence,
        audit=result,
        configuration=configuration,
        seconds=time.perf_counter() - begin,
    )
    if folder is not None:
        in_file = tally.written if num > tally.kept else None
        keep_results(folder, tally.table(), estimate.summary(), rows_in_file=in_file, failure=tally.failure)
    return estimate


def _kind_of_certificate(problem: Problem, law: AbstractInitialization, kind: str | None) -> str:
    """The kind of certificate that fits the set that the starts of a law lie on; refuses what could only mislead."""
    name = type(law).__name__
    if kind is None:
        return "balanced" if law.balanced and problem.has_full_row_rank else "exact"
    if kind == "almost sure" and law.invariant_set is not Support.FULL:
        raise ValueError(
            f'kind="almost sure" speaks of Lebesgue-almost every start, and the starts of {name} lie on a set of measure zero '
            "(its `invariant_set`), of which that says nothing: leave kind out"
        )
    if kind == "balanced":
        if not law.balanced:
            raise ValueError(
                f'kind="balanced" is about exactly balanced starts, and {name} does not say that its starts are (its '
                "`invariant_set`): the smallest imbalance decides where the flow ends in the long run. Leave kind out"
            )
        problem.check_full_row_rank()
    if kind == "exact" and law.balanced and _sign_decides(problem, law.widths):
        raise ValueError(
            f'kind="exact" would mislead for the exactly balanced starts of {name}: their flow keeps the sign of det W, but '
            "round-off takes the integration across, to minima that the exact flow never reaches. Leave kind out: the limits of "
            "lower rank are certified then, too"
        )
    return kind


def _sign_decides(problem: Problem, widths: tuple[int, ...]) -> bool:
    """Whether balanced starts of these widths can be on the wrong side of `det W = 0`."""
    d = problem.d_out
    full = problem.has_full_row_rank and problem.d_in == d <= min(widths)
    return full and int(np.sum(np.asarray(problem.singular_values) > 0)) == d


def _check_starts(problem: Problem, law: AbstractInitialization, key: Key[Array, ""], ids: range) -> None:
    """Looks at some starts: whether they are balanced, and of the rank of the smallest width, if their law says so.

    Starts that are balanced without their law saying so are refused where one is on the wrong side of `det W = 0`.
    """
    decides = len(law.widths) > 2 and _sign_decides(problem, law.widths)
    if not (law.balanced or decides):
        return
    starts = law.sample_batch(key, ids[:_LOOKED_AT])
    several = [jax.tree.map(lambda w, i=i: w[i], starts) for i in range(starts.batch_shape[0])]
    if not law.balanced:
        if all(is_balanced(start, BALANCED) for start in several):
            try:
                # Half of them are expected on either side.
                check_side(problem, law.sample_batch(key, ids[: 8 * _LOOKED_AT]))
            except ValueError as error:
                raise ValueError(
                    f"starts of {type(law).__name__} are balanced, though the law does not say so by an `invariant_set` of "
                    f"gdflow.initialization.Support.BALANCED: {error}"
                ) from None
        return
    for start in several:
        check_balanced(start, BALANCED)
        W = start.end_to_end
        rank = decide_rank(np.linalg.svd(np.asarray(W), compute_uv=False), size=max(W.shape)).rank
        if rank < min(start.widths):
            thin = (start.widths[0], *[rank] * (start.depth - 1), start.widths[-1])
            raise ValueError(
                f"starts of rank {rank} in widths {start.widths}: round-off leaks into ranks up to {min(start.widths)}; the flow "
                f"on the matrices of rank {rank} is that of the widths {thin}"
            )


def _natural_size(problem: Problem, widths: tuple[int, ...]) -> float:
    """The size of the layers of a network that fits the data."""
    smallest = np.linalg.svd(np.asarray(problem.design), compute_uv=False).min()
    return float((float(problem.singular_values[0]) / smallest) ** (1 / (len(widths) - 1)))


def _crossing_levels(problem, widths, certificate: LevelCertificate, crossings) -> tuple[float, ...]:
    """The losses to time besides the certificate's, in falling order."""
    if isinstance(crossings, str):
        if crossings != "staircase":
            raise ValueError(f'crossings must be "staircase" or a sequence of losses, got {crossings!r}')
        s = np.asarray(problem.singular_values, dtype=np.float64)
        staircase = nested_levels(s, problem.max_rank(widths), lowest=MAX_CROSSINGS, tolerance=problem.level_tolerance)
        values = np.asarray(staircase.values)[:0:-1] - float(certificate.slack)
        return tuple(float(v) for v in values if v > certificate.threshold() + problem.level_tolerance)
    goals = tuple(float(v) for v in crossings)
    if len(goals) > MAX_CROSSINGS:
        raise ValueError(f"at most {MAX_CROSSINGS} crossings can be timed, got {len(goals)}")
    if not all(math.isfinite(v) for v in goals) or list(goals) != sorted(set(goals), reverse=True):
        raise ValueError(f"crossings must be finite losses in falling order, got {goals}")
    return goals


def _describe_data(problem: Problem) -> dict[str, Any]:
    info = problem.info
    if info is None:  # a problem without its description, as inside a trajectory of a transformed function
        return dict(source=None, features=(), targets=(), notes=())
    return dict(source=info.source, features=info.features, targets=info.targets, notes=info.notes)


def _describe(law: AbstractInitialization) -> str:
    options = [f"{k}={v!r}" for k, v in vars(law).items() if k not in ("widths", "center")]
    return f"{type(law).__name__}({', '.join(options)})"


def _run_all(problem, law, key, ids, certificate, goals, settings, sink, *, lanes, bar, description) -> None:
    task = bar.add_task(description, total=len(ids))
    threads = default_threads()
    pool = default_pool(len(ids), _POOL // count_parameters(law.widths), threads)
    levels = jnp.asarray(goals, dtype=problem.target.dtype)
    process = gradient_flow_process(problem, law, key, certificate, levels, settings)

    def count(some, columns):
        sink(some, columns)
        bar.advance(task, len(some))

    run_lanes(process, ids, count, lanes=lanes, pool=pool, threads=min(threads, -(-len(ids) // pool)))


class _Watch:
    """The labels of some starts, picked from a stream of outcomes: whether certified, and the level."""

    def __init__(self, ids: Sequence[int]):
        self.ids = list(ids)
        self.labels: dict[int, tuple[bool, int]] = {}
        self._sorted = np.sort(np.asarray(self.ids, dtype=np.uint64))

    def add(self, ids: np.ndarray, columns: dict[str, np.ndarray]) -> None:
        """Takes in some rows."""
        found = np.isin(ids, self._sorted)
        certified = (columns["status"][found] == Status.CERTIFIED).tolist()
        labels = zip(certified, columns["level"][found].tolist(), strict=True)
        self.labels.update(zip(ids[found].tolist(), labels, strict=True))


def _choose(key, num: int, audit: int) -> np.ndarray:
    """Which rows to audit: a simple random sample, fixed by the key but independent of the starts."""
    seed = np.asarray(jax.random.key_data(key)).ravel().tolist()
    return np.sort(np.random.default_rng([0x61756469, *seed]).choice(num, audit, replace=False))


def _audit(run, certificate, settings: LaneSettings, watched: _Watch) -> Audit:
    """Runs the watched starts anew, with more of everything: see `gdflow.basins.intervals` for what counts as a flip."""
    other = diffrax.Tsit5() if isinstance(settings.solver, diffrax.Dopri8) else diffrax.Dopri8()
    rtol, atol = max(settings.rtol / AUDIT_FACTOR, 1e-13), settings.atol / AUDIT_FACTOR
    tight = LaneSettings(
        other,
        rtol,
        atol,
        _LONGER * settings.t1,
        _LONGER * settings.max_steps,
        settings.gradient_tolerance / AUDIT_FACTOR,
        _LONGER * settings.dwell,
        settings.largest,
    )
    again = _Watch(watched.ids)
    run(np.asarray(watched.ids, dtype=np.uint64), certificate, (), tight, again.add, description="auditing")
    flipped = tuple(i for i in watched.ids if contradicts(watched.labels[i], again.labels[i]))
    return Audit(
        num=len(watched.ids),
        flips=len(flipped),
        method=f"{type(other).__name__}, rtol={rtol:.0e}, atol={atol:.0e}",
        flipped_ids=flipped,
        newly_decided=sum(again.labels[i][0] and not watched.labels[i][0] for i in watched.ids),
    )
