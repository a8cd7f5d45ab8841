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
from gdflow.basins.intervals import Audit, verdict_interval
from gdflow.basins.lanes import default_pool, default_threads, run_lanes
from gdflow.basins.outcomes import VERDICTS, Status, is_certified
from gdflow.basins.storage import OUTCOMES, PARTIAL, SUMMARY, keep_results, prepare_folder
from gdflow.basins.tally import Tally
from gdflow.certificates import LevelCertificate, certificate_levels
from gdflow.initialization import AbstractInitialization, id_range
from gdflow.invariants import check_balanced
from gdflow.levels import CriticalValues, nested_levels
from gdflow.network import LayerTuple, count_parameters
from gdflow.problem import Problem
from gdflow.ranks import decide_rank
from gdflow.tables import Printable, column_table, key_value_table

#: An audit re-runs at tolerances tighter by this factor.
AUDIT_FACTOR = 100.0
#: A lane holds about so many copies of its state (stages, interpolant, old and new) …
_COPIES = 32
#: … and all lanes together may take this many bytes.
_MEMORY = 2**32
#: Starts are drawn in pools of about this many numbers.
_POOL = 2**19
#: So many starts are looked at to see whether a law is balanced.
_LOOKED_AT = 4
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


@dataclasses.dataclass(frozen=True)
class BasinRow:
    """One level: how many starts are certified to converge to it, how many may, and the probability's intervals.

    `ranks`: of the end-to-end matrices at the level (on the range of `X`), the sizes of its `subsets`.
    """

    level: int
    value: float
    subsets: tuple[tuple[int, ...], ...]
    ranks: tuple[int, ...]
    certified: int
    possible: int
    interval: tuple[float, float]
    simultaneous: tuple[float, float]


@dataclasses.dataclass(frozen=True, repr=False)
class BasinEstimate(Printable):
    """The result of `gdflow.basin_sizes`; prints as a table.

    - `tally`: counts, a histogram of the times and the first 10^6 rows. `outcomes` makes a `pyarrow.Table` of these rows
      (`.to_pandas()` for a frame) with the columns `id, status, verdict, level, time, steps, loss, gradient_norm, drift`, and
      `crossing_i` for the levels in `crossings`.
    - `crossings`: the losses that are timed besides the certificate's.
    - `levels`: the lowest critical values, and `widths` those of the networks.
    - `confidence`: of the intervals.
    - `audit`: the audit, or `None`.
    - `configuration`: everything needed to repeat the run.
    - `seconds`: wall time, compilation included.
    """

    tally: Tally
    crossings: tuple[float, ...]
    levels: CriticalValues
    widths: tuple[int, ...]
    kind: str
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
        """Share of starts with a certified global minimum."""
        return self.rows[0].certified / self.num

    @property
    def interval(self) -> tuple[float, float]:
        """Exact interval for the probability of converging to a global minimum."""
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
                verdict_interval(certified, possible, self.num, a, self.audit)
                for a in (alpha, alpha / len(self.levels))
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
        verdict = VERDICTS[self.kind]
        table = column_table(
            f"Basins of {self.num} starts",
            "limit", "rank", "loss", "certified", "possible", f"{percent} interval", "simultaneous",
            caption="possible: not excluded. Intervals are exact (Clopper–Pearson); undecided starts widen them.",
        )  # fmt: skip
        for row in self.rows:
            name = verdict if row.level == 0 else f"level {row.level}"
            if row.level and row.level == len(self.levels) - 1 and not self.levels.complete:
                name += " or above"
            elif row.level:
                name += " {" + ",".join(map(str, row.subsets[0])) + "}" + (" …" if len(row.subsets) > 1 else "")
            table.add_row(
                name, ", ".join(map(str, row.ranks)), f"{row.value:.6g}", str(row.certified), str(row.possible),
                _interval(row.interval), _interval(row.simultaneous),
            )  # fmt: skip
        facts = [
            ("starts", "-".join(map(str, self.widths)) + f", {self.configuration['coordinates']} coordinates, "
                f"{self.configuration['initialization']}"),
            ("ended", ", ".join(f"{n} {status.label}" for status, n in self.statuses.items() if n)),
        ]  # fmt: skip
        facts += [(status.label, status.message) for status, n in self.statuses.items() if n and status]
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
            return "none (labels taken to be right; audit=n re-runs n starts at tighter tolerances)"
        bound = self.audit.flip_bound((1 - self.confidence) / 2)
        return f"{self.audit.flips} of {self.audit.num} labels changed ({self.audit.method}); flip rate ≤ {bound:.2e}"


def _interval(bounds: tuple[float, float]) -> str:
    return f"[{bounds[0]:.4f}, {bounds[1]:.4f}]"


def _check(name: str, value: int, lowest: int) -> None:
    if value < lowest:
        raise ValueError(f"{name} must be at least {lowest}, got {value}")


def basin_sizes(
    problem: Problem,
    initialization: AbstractInitialization,
    num: int,
    *,
    key: Key[Array, ""],
    t1: float = math.inf,
    max_steps: int = 10_000,
    rtol: float = 1e-6,
    atol: float = 1e-9,
    solver: diffrax.AbstractSolver | None = None,
    kind: str | None = None,
    confidence: float = 0.95,
    audit: int = 0,
    lanes: int | None = None,
    first_id: int = 0,
    num_levels: int = 16,
    crossings: str | Iterable[float] = "staircase",
    gradient_tolerance: float = 0.0,
    dwell: float = 0.0,
    folder: str | os.PathLike | None = None,
    overwrite: bool = False,
    progress: bool = True,
    allow_float32: bool = False,
) -> BasinEstimate:
    """How likely a random start converges to a global minimum: runs `num` starts until each limit is decided.

    A start is certified when its loss falls below the second-lowest critical value. It counts as undecided, with its
    reason, if that has not happened by `t1` or within `max_steps`. Start `i` depends on `key` and `i` alone, and ids are
    fixed in advance, so fast basins are not favoured and results do not depend on the number of lanes or threads.

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
    - `kind`: `"exact"`, `"almost sure"` or, for balanced starts whose rank is the smallest width, `"balanced"`: see
      `gdflow.certificates.LevelCertificate`. By default `"balanced"` if the law says that its starts are, else `"exact"`.
    - `confidence`: of the intervals.
    - `audit`: how many of the starts, chosen at random, to re-run with another solver at 100× tighter tolerances.
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

    **Raises:** `ValueError` for options out of range, widths that do not fit the problem, float32 without `allow_float32`,
    and starts that are not balanced where they should be, all before anything is run. What happens to single starts never raises.

    ```python
    >>> law = gf.initialization.Gaussian(problem.widths([5, 5]))
    >>> print(gf.basin_sizes(problem, law, 1000, key=jax.random.key(0)))
    ```
    """
    begin = time.perf_counter()
    _check("num", num, 1)
    if lanes is not None:
        _check("lanes", lanes, 1)
    _check("audit", audit, 0)
    if audit > num:
        raise ValueError(f"cannot audit {audit} of {num} starts")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    widths = problem.check_widths(initialization.widths)
    if kind is None:
        kind = "balanced" if initialization.balanced and problem.has_full_row_rank else "exact"
    certificate = LevelCertificate(problem, widths, kind=kind, depth=num_levels, allow_float32=allow_float32)
    if kind == "balanced":
        _check_balanced(problem, initialization.sample_batch(key, np.arange(first_id, first_id + min(num, _LOOKED_AT))))
    goals = _crossing_levels(problem, widths, certificate, crossings)
    settings = LaneSettings(solver or diffrax.Tsit5(), rtol, atol, t1, max_steps, gradient_tolerance, dwell)
    ids = id_range(first_id, num)
    lanes = min(lanes or default_lanes(widths), num)
    parameters = count_parameters(widths)
    needed = lanes * parameters * problem.target.dtype.itemsize * _COPIES
    if needed > _MEMORY:
        raise ValueError(
            f"{lanes} networks of widths {widths} ({parameters:.2g} parameters each) would need {needed / 2**30:.0f} GiB: "
            "fewer lanes, or narrower layers"
        )

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
        tally = Tally(ids, num_levels, kind, len(goals), None if folder is None else folder / PARTIAL)

        def sink(some, columns):
            tally.add(some, columns)
            watched.add(some, columns)

        run = functools.partial(_run_all, problem, initialization, key, lanes=lanes, bar=bar)
        try:
            run(ids, certificate, goals, settings, sink, description="integrating")
        finally:
            tally.close()
        result = _audit(run, certificate, settings, watched) if audit else None

    configuration = dict(
        widths=widths, coordinates=problem.coordinates, initialization=_describe(initialization), source=problem.info.source,
        features=problem.info.features, targets=problem.info.targets, notes=problem.info.notes,
        singular_values=np.asarray(problem.singular_values).tolist(),
        key=np.asarray(jax.random.key_data(key)).tolist(), key_impl=str(jax.random.key_impl(key)),
        num=num, first_id=first_id, t1=t1 if math.isfinite(t1) else None, max_steps=max_steps, rtol=rtol, atol=atol,
        solver=type(settings.solver).__name__, kind=kind, confidence=confidence, num_audited=audit, lanes=lanes,
        num_levels=num_levels, crossings=list(goals), gradient_tolerance=gradient_tolerance, dwell=dwell,
        dtype=str(problem.target.dtype), backend=jax.default_backend(),
        versions=dict(jax=jax.__version__, jaxlib=jaxlib.__version__, diffrax=diffrax.__version__, numpy=np.__version__),
    )  # fmt: skip
    estimate = BasinEstimate(
        tally=tally,
        crossings=goals,
        levels=certificate_levels(problem, widths, kind=kind, depth=num_levels),
        widths=widths,
        kind=kind,
        confidence=confidence,
        audit=result,
        configuration=configuration,
        seconds=time.perf_counter() - begin,
    )
    if folder is not None:
        in_file = tally.written if num > tally.kept else None
        keep_results(folder, tally.table(), estimate.summary(), rows_in_file=in_file, failure=tally.failure)
    return estimate


def _check_balanced(problem: Problem, starts: LayerTuple) -> None:
    """Whether some starts of a law are starts of the Riemannian flow on the matrices of the rank of the smallest width."""
    problem.check_full_row_rank()
    for start in (jax.tree.map(lambda w, i=i: w[i], starts) for i in range(starts.batch_shape[0])):
        check_balanced(start)
        W = start.end_to_end
        rank = decide_rank(np.linalg.svd(np.asarray(W), compute_uv=False), size=max(W.shape)).rank
        if rank < min(start.widths):
            thin = (start.widths[0], *[rank] * (start.depth - 1), start.widths[-1])
            raise ValueError(
                f"starts of rank {rank} in widths {start.widths}: round-off leaks into ranks up to {min(start.widths)}; the flow "
                f"on the matrices of rank {rank} is that of the widths {thin}"
            )


def _crossing_levels(problem, widths, certificate: LevelCertificate, crossings) -> tuple[float, ...]:
    """The losses to time besides the certificate's, in falling order."""
    if isinstance(crossings, str):
        if crossings != "staircase":
            raise ValueError(f'crossings must be "staircase" or a sequence of losses, got {crossings!r}')
        s = np.asarray(problem.singular_values, dtype=np.float64)
        staircase = nested_levels(s, problem.max_rank(widths), lowest=MAX_CROSSINGS, tolerance=problem.level_tolerance)
        values = np.asarray(staircase.values)[:0:-1] - float(certificate.slack)
        return tuple(float(v) for v in values if v > certificate.thresholds[0] + problem.level_tolerance)
    goals = tuple(float(v) for v in crossings)
    if len(goals) > MAX_CROSSINGS:
        raise ValueError(f"at most {MAX_CROSSINGS} crossings can be timed, got {len(goals)}")
    if not all(math.isfinite(v) for v in goals) or list(goals) != sorted(set(goals), reverse=True):
        raise ValueError(f"crossings must be finite losses in falling order, got {goals}")
    return goals


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
    """The levels of some starts, picked from a stream of outcomes."""

    def __init__(self, ids: Sequence[int]):
        self.ids = list(ids)
        self.levels: dict[int, int] = {}
        self._sorted = np.sort(np.asarray(self.ids, dtype=np.uint64))

    def add(self, ids: np.ndarray, columns: dict[str, np.ndarray]) -> None:
        """Takes in some rows."""
        found = np.isin(ids, self._sorted)
        self.levels.update(zip(ids[found].tolist(), columns["level"][found].tolist(), strict=True))


def _choose(key, num: int, audit: int) -> np.ndarray:
    """Which rows to audit: a simple random sample, fixed by the key but independent of the starts."""
    seed = np.asarray(jax.random.key_data(key)).ravel().tolist()
    return np.sort(np.random.default_rng([0x61756469, *seed]).choice(num, audit, replace=False))


def _audit(run, certificate, settings: LaneSettings, watched: _Watch) -> Audit:
    other = diffrax.Tsit5() if isinstance(settings.solver, diffrax.Dopri8) else diffrax.Dopri8()
    rtol, atol = max(settings.rtol / AUDIT_FACTOR, 1e-13), settings.atol / AUDIT_FACTOR
    tight = LaneSettings(
        other, rtol, atol, settings.t1, 10 * settings.max_steps, settings.gradient_tolerance, settings.dwell
    )
    again = _Watch(watched.ids)
    run(np.asarray(watched.ids, dtype=np.uint64), certificate, (), tight, again.add, description="auditing")
    flipped = tuple(i for i in watched.ids if again.levels[i] != watched.levels[i])
    return Audit(len(watched.ids), len(flipped), f"{type(other).__name__}, rtol={rtol:.0e}, atol={atol:.0e}", flipped)
