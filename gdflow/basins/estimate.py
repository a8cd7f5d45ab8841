"""Monte Carlo estimates of basin sizes: how likely a random start converges where, with intervals that hold."""

import dataclasses
import math
import time
from typing import Any

import diffrax
import jax
import jaxlib
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import rich.console
import rich.progress
from jaxtyping import Array, Key

from gdflow.basins.flows import LaneSettings, gradient_flow_process
from gdflow.basins.intervals import Audit, verdict_interval
from gdflow.basins.lanes import default_lanes, default_threads, run_lanes
from gdflow.basins.outcomes import VERDICTS, Status, outcome_table
from gdflow.certificates import LevelCertificate, certificate_levels
from gdflow.initialization import AbstractInitialization, id_range
from gdflow.levels import CriticalValues
from gdflow.network import count_parameters
from gdflow.problem import Problem
from gdflow.tables import Printable, column_table, key_value_table

#: An audit re-runs at tolerances tighter by this factor.
AUDIT_FACTOR = 100.0
#: A lane holds about so many copies of its state (stages, interpolant, old and new) …
_COPIES = 32
#: … and all lanes together may take this many bytes.
_MEMORY = 2**32
#: Starts are drawn in pools of about this many numbers.
_POOL = 2**19
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


@dataclasses.dataclass(frozen=True)
class BasinRow:
    """One level: how many starts are certified to converge to it, how many may, and the probability's intervals."""

    level: int
    value: float
    subsets: tuple[tuple[int, ...], ...]
    certified: int
    possible: int
    interval: tuple[float, float]
    simultaneous: tuple[float, float]


@dataclasses.dataclass(frozen=True, repr=False)
class BasinEstimate(Printable):
    """The result of `gdflow.basin_sizes`; prints as a table.

    - `outcomes`: one row per start, a `pyarrow.Table` (`.to_pandas()` for a frame) with the columns
      `id, status, verdict, level, time, steps, loss, gradient_norm, drift`.
    - `levels`: the lowest critical values, and `widths` those of the networks.
    - `confidence`: of the intervals.
    - `audit`: the audit, or `None`.
    - `configuration`: everything needed to repeat the run.
    - `seconds`: wall time, compilation included.
    """

    outcomes: pa.Table
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
        return self.outcomes.num_rows

    @property
    def statuses(self) -> dict[Status, int]:
        """How many starts ended how."""
        counts = {c["values"].as_py(): c["counts"].as_py() for c in pc.value_counts(self.outcomes["status"])}
        return {status: counts.get(status.label, 0) for status in Status}

    @property
    def certified(self) -> int:
        """Starts with a certified global minimum."""
        return self.statuses[Status.CERTIFIED]

    @property
    def undecided(self) -> int:
        """All others."""
        return self.num - self.certified

    @property
    def fraction(self) -> float:
        """Share of starts with a certified global minimum."""
        return self.certified / self.num

    @property
    def interval(self) -> tuple[float, float]:
        """Exact interval for the probability of converging to a global minimum."""
        return self.rows[0].interval

    @property
    def rows(self) -> tuple[BasinRow, ...]:
        """One row per level, from the minimum; the last stands for its level and all above.

        Simultaneous intervals are Bonferroni's over all these possible verdicts, observed or not.
        """
        reached = self.outcomes["level"].to_numpy()
        alpha = 1 - self.confidence
        rows = []
        for k, level in enumerate(self.levels):
            certified = self.certified if k == 0 else 0
            possible = self.num if k == 0 else int(np.sum(reached >= k))
            intervals = [
                verdict_interval(certified, possible, self.num, a, self.audit)
                for a in (alpha, alpha / len(self.levels))
            ]
            rows.append(BasinRow(k, level.value, level.subsets, certified, possible, *intervals))
        return tuple(rows)

    @property
    def certificate_times(self) -> np.ndarray:
        """Flow times at which the certified starts were certified, unordered."""
        table = self.outcomes.filter(pc.equal(self.outcomes["level"], 0))
        return table["time"].to_numpy()

    def summary(self) -> dict[str, Any]:
        """Numbers and configuration, ready for JSON."""
        times = self.certificate_times
        return {
            "num": self.num,
            "certified": self.certified,
            "undecided": self.undecided,
            "fraction": self.fraction,
            "confidence": self.confidence,
            "interval": self.interval,
            "statuses": {status.label: n for status, n in self.statuses.items()},
            "levels": [dataclasses.asdict(row) for row in self.rows],
            "certificate_time_quantiles": {
                str(q): float(np.quantile(times, q)) if times.size else None for q in QUANTILES
            },
            "largest_drift": float(np.nanmax(self.outcomes["drift"].to_numpy(), initial=0.0)),
            "audit": None if self.audit is None else dataclasses.asdict(self.audit),
            "seconds": self.seconds,
            "configuration": self.configuration,
        }

    def __rich__(self) -> rich.console.RenderableType:
        percent = f"{100 * self.confidence:g} %"
        verdict = VERDICTS[self.kind]
        table = column_table(
            f"Basins of {self.num} starts", "limit", "loss", "certified", "possible", f"{percent} interval", "simultaneous",
            caption="possible: not excluded. Intervals are exact (Clopper–Pearson); undecided starts widen them.",
        )  # fmt: skip
        for row in self.rows:
            name = verdict if row.level == 0 else f"level {row.level}"
            if row.level and row.level == len(self.levels) - 1 and not self.levels.complete:
                name += " or above"
            elif row.level:
                name += " {" + ",".join(map(str, row.subsets[0])) + "}" + (" …" if len(row.subsets) > 1 else "")
            table.add_row(
                name, f"{row.value:.6g}", str(row.certified), str(row.possible),
                _interval(row.interval), _interval(row.simultaneous),
            )  # fmt: skip
        times = self.certificate_times
        facts = [
            ("starts", "-".join(map(str, self.widths)) + f", {self.configuration['coordinates']} coordinates, "
                f"{self.configuration['initialization']}"),
            ("ended", ", ".join(f"{n} {status.label}" for status, n in self.statuses.items() if n)),
        ]  # fmt: skip
        facts += [(status.label, status.message) for status, n in self.statuses.items() if n and status]
        if times.size:
            shown = ", ".join(f"{q:.0%}: {np.quantile(times, q):.4g}" for q in (0.05, 0.5, 0.95))
            facts.append(("flow time to certificate", f"{shown}, longest: {times.max():.4g}"))
        steps = self.outcomes["steps"].to_numpy()
        facts.append(("steps", f"median {np.median(steps):.0f}, most {steps.max()}"))
        drift = np.nanmax(self.outcomes["drift"].to_numpy(), initial=0.0)
        facts.append(("largest drift of C_j", f"{drift:.1e} (relative; zero for the exact flow)"))
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
    kind: str = "exact",
    confidence: float = 0.95,
    audit: int = 0,
    lanes: int | None = None,
    first_id: int = 0,
    num_levels: int = 16,
    progress: bool = True,
    allow_float32: bool = False,
) -> BasinEstimate:
    """How likely a random start converges to a global minimum: runs `num` starts until each limit is decided.

    A start is certified when its loss falls below the second-lowest critical value. It counts as undecided, with its
    reason, if that has not happened by `t1` or within `max_steps`. Start `i` depends on `key` and `i` alone, and ids are
    fixed in advance, so fast basins are not favoured and results do not depend on the number of lanes or threads.

    **Arguments:**

    - `problem`: with the squared error; the starts are drawn in its coordinates.
    - `initialization`: the law of starts, e.g. `gf.initialization.Gaussian(problem.widths([5, 5]))`.
    - `num`: how many, ids `first_id, …, first_id + num − 1` (64 bits).
    - `t1`, `max_steps`: when to give a start up.
    - `rtol`, `atol`, `solver`: of the integration; any adaptive Diffrax solver, Tsit5 by default.
    - `kind`: `"exact"` or `"almost sure"`, see `gdflow.certificates.LevelCertificate`.
    - `confidence`: of the intervals.
    - `audit`: how many of the starts, chosen at random, to re-run with another solver at 100× tighter tolerances.
    - `lanes`: starts in flight at once per thread, by default `gdflow.basins.lanes.default_lanes`; memory grows with them,
      results do not depend on them.
    - `num_levels`: how many levels above the lowest are told apart.
    - `progress`: show a progress bar.
    - `allow_float32`: certify in single precision.

    **Returns:** a `gdflow.basins.BasinEstimate`.

    **Raises:** `ValueError` for options out of range, widths that do not fit the problem, and float32 without
    `allow_float32`, all before anything is run. What happens to single starts never raises.

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
    certificate = LevelCertificate(problem, widths, kind=kind, depth=num_levels, allow_float32=allow_float32)
    settings = LaneSettings(solver or diffrax.Tsit5(), rtol, atol, t1, max_steps)
    ids = id_range(first_id, num)
    lanes = min(lanes or default_lanes(widths), num)
    parameters = count_parameters(widths)
    needed = lanes * parameters * problem.target.dtype.itemsize * _COPIES
    if needed > _MEMORY:
        raise ValueError(
            f"{lanes} networks of widths {widths} ({parameters:.2g} parameters each) would need {needed / 2**30:.0f} GiB: "
            "fewer lanes, or narrower layers"
        )

    with rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
        transient=True,
        disable=not progress,
    ) as bar:
        columns = _run_all(problem, initialization, key, ids, certificate, settings, lanes, bar, "integrating")
        result = None
        if audit:
            chosen = _choose(key, num, audit)
            result = _audit(
                problem, initialization, key, ids[chosen], certificate, settings, lanes, bar, columns["level"][chosen]
            )

    configuration = dict(
        widths=widths, coordinates=problem.coordinates, initialization=_describe(initialization), source=problem.info.source,
        features=problem.info.features, targets=problem.info.targets, notes=problem.info.notes,
        singular_values=np.asarray(problem.singular_values).tolist(),
        key=np.asarray(jax.random.key_data(key)).tolist(), key_impl=str(jax.random.key_impl(key)),
        num=num, first_id=first_id, t1=t1 if math.isfinite(t1) else None, max_steps=max_steps, rtol=rtol, atol=atol,
        solver=type(settings.solver).__name__, kind=kind, confidence=confidence, num_audited=audit, lanes=lanes,
        num_levels=num_levels, dtype=str(problem.target.dtype), backend=jax.default_backend(),
        versions=dict(jax=jax.__version__, jaxlib=jaxlib.__version__, diffrax=diffrax.__version__, numpy=np.__version__),
    )  # fmt: skip
    return BasinEstimate(
        outcomes=outcome_table({"id": ids, **columns}, kind),
        levels=certificate_levels(problem, widths, kind=kind, depth=num_levels),
        widths=widths,
        kind=kind,
        confidence=confidence,
        audit=result,
        configuration=configuration,
        seconds=time.perf_counter() - begin,
    )


def _describe(law: AbstractInitialization) -> str:
    options = [f"{k}={v!r}" for k, v in vars(law).items() if k not in ("widths", "center")]
    return f"{type(law).__name__}({', '.join(options)})"


def _run_all(problem, law, key, ids, certificate, settings, lanes, bar, description) -> dict[str, np.ndarray]:
    task = bar.add_task(description, total=len(ids))
    pool = int(np.clip(_POOL // count_parameters(law.widths), lanes, 2**14))
    pool = min(pool, 2 ** math.ceil(math.log2(max(len(ids), lanes))))
    process = gradient_flow_process(problem, law, key, certificate, settings)
    threads = default_threads(len(ids), pool)
    return run_lanes(process, ids, lanes=lanes, pool=pool, threads=threads, report=lambda n: bar.advance(task, n))


def _choose(key, num: int, audit: int) -> np.ndarray:
    """Which rows to audit: a simple random sample, fixed by the key but independent of the starts."""
    seed = np.asarray(jax.random.key_data(key)).ravel().tolist()
    return np.sort(np.random.default_rng([0x61756469, *seed]).choice(num, audit, replace=False))


def _audit(problem, law, key, ids, certificate, settings, lanes, bar, levels) -> Audit:
    other = diffrax.Tsit5() if isinstance(settings.solver, diffrax.Dopri8) else diffrax.Dopri8()
    rtol, atol = max(settings.rtol / AUDIT_FACTOR, 1e-13), settings.atol / AUDIT_FACTOR
    tight = LaneSettings(other, rtol, atol, settings.t1, 10 * settings.max_steps)
    columns = _run_all(problem, law, key, ids, certificate, tight, min(lanes, len(ids)), bar, "auditing")
    flipped = ids[columns["level"] != levels]
    method = f"{type(other).__name__}, rtol={rtol:.0e}, atol={atol:.0e}"
    return Audit(len(ids), len(flipped), method, tuple(int(i) for i in flipped))
