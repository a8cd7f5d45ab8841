"""Monte Carlo estimates of basin sizes: how likely a random start converges where, with intervals that hold."""

import dataclasses
import functools
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import rich.console

from gdflow.basins.catalogue import FoundLimit, limit_labels
from gdflow.basins.intervals import Audit, found_interval, interval_text, shared_error, unseen_bound, verdict_interval
from gdflow.basins.methods import AbstractMethod
from gdflow.basins.outcomes import Status, is_decided
from gdflow.basins.plan import Plan
from gdflow.basins.riders import Crossings
from gdflow.basins.starts import Drawn
from gdflow.basins.tally import Tally
from gdflow.levels import CriticalValues, Level
from gdflow.problem import Problem, check_problem
from gdflow.records import record
from gdflow.tables import Printable, column_table, key_value_table, visible
from gdflow.thresholds import certificate_levels
from gdflow.verdicts import AbstractLevelVerdict, DescentLevel

_DESCENT = (
    "gradient descent from the computed state ends at the limit: the step is at most 1/β wherever it goes from the start, or it "
    "settles near a minimum (gdflow.smoothness)"
)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


_THEOREM = (
    "the exact flow from {} float64 start, on the data as reduced to float64 arrays (gdflow.basins.tube); ranks of the data are "
    "assumed as reported"
)


@dataclasses.dataclass(frozen=True)
class BasinRow:
    """One limit: how many starts are certified to converge to it, how many may, and the probability's intervals.

    - `limit`, `label`: which it is, by number and in words.
    - `level`: of a verdict by levels, the critical value with its subsets, else `None`; `found`: of a limit that was found in
      the run what is known of it, else `None`.
    - `certified`, `located`, `reached`, `proved`, `possible`: how many starts; `proved` is `None` in runs without proofs. What
      was only reached (`gdflow.verdicts.DescentLevel`) is not counted as a limit. Possible are those for which the limit is not
      excluded, in runs with proofs by a proof.
    - `interval` and `simultaneous` (over all rows) include the audit's bound on wrong labels; `unaudited` is the interval with
      labels taken to be right. `fixed` is the interval if the number of starts was fixed in advance, `anytime` the one for any
      number, of which `interval` is that one which holds (`BasinEstimate.anytime`).
    """

    limit: int
    label: str
    level: Level | None
    found: FoundLimit | None
    certified: int
    located: int
    reached: int
    proved: int | None
    possible: int
    interval: tuple[float, float]
    simultaneous: tuple[float, float]
    unaudited: tuple[float, float]
    fixed: tuple[float, float]
    anytime: tuple[float, float]

    @property
    def loss(self) -> float:
        """Effective loss of the limit, as far as it is known; else no number."""
        if self.found is not None:
            return self.found.loss
        return math.nan if self.level is None else self.level.value

    @property
    def ranks(self) -> tuple[int, ...]:
        """Of the end-to-end matrices at the level (on the range of `X`): the sizes of its subsets."""
        return () if self.level is None else tuple(sorted({len(subset) for subset in self.level.subsets}))


def _row_record(row: BasinRow) -> dict[str, Any]:
    """A row for JSON: what was found of its limit stands elsewhere."""
    return dataclasses.asdict(dataclasses.replace(row, found=None)) | {"ranks": row.ranks}


@dataclasses.dataclass(frozen=True, repr=False)
class BasinEstimate(Printable):
    """The result of `gdflow.basin_sizes`; prints as a table.

    - `plan`: what was run; `ids`: which starts, a `range`.
    - `tally`: counts, and a histogram of the times.
    - `outcomes`: one row per start, in the order of the ids, a `pyarrow.Table` (`.to_pandas()` for a frame); of more than 10^6
      starts the first ones only. Columns `id, status, verdict, limit, highest, time, steps, loss, gradient_norm` and those of
      the riders: by default `drift` and `crossing_i`.
    - `confidence`: of the intervals.
    - `audit`: the audit, or `None`.
    - `lanes`: starts that were in flight at once per thread.
    - `seconds`: wall time, compilation included.
    - `found`: the limits that were found, in the order of their losses; `None` if they were known beforehand.
    - `anytime`: why the number of starts was not fixed in advance, in words; intervals then hold for any number. `None` if it
      was.
    - `opened_from`: the folder, if these are results of an earlier run.
    """

    plan: Plan
    ids: range
    tally: Tally
    outcomes: pa.Table
    confidence: float
    audit: Audit | None
    lanes: int
    seconds: float
    found: tuple[FoundLimit, ...] | None = None
    anytime: str | None = None
    opened_from: str | None = None

    @property
    def num(self) -> int:
        """Number of starts."""
        return self.tally.num

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the networks."""
        return self.plan.widths

    @property
    def statuses(self) -> dict[Status, int]:
        """How many starts ended how."""
        return {status: int(self.tally.statuses[status]) for status in Status}

    @functools.cached_property
    def levels(self) -> CriticalValues:
        """The lowest critical values: of a verdict by levels those that it tells apart.

        **Raises:** `ValueError` where they are not known.
        """
        table = self.plan.verdict.table if self._by_level else None  # type: ignore[attr-defined]
        return certificate_levels(check_problem(self.plan.problem), self.widths) if table is None else table

    @property
    def _by_level(self) -> bool:
        return isinstance(self.plan.verdict, AbstractLevelVerdict)

    @property
    def labels(self) -> tuple[str, ...]:
        """The possible limits, in words; of limits that were found, those that were."""
        return self.plan.verdict.labels if self.found is None else limit_labels(self.found)

    @property
    def crossings(self) -> tuple[float, ...]:
        """The losses whose crossing is timed besides the decision: those of columns `crossing_i`."""
        found = [rider.levels for rider in self.plan.riders if isinstance(rider, Crossings)]
        return tuple(float(v) for levels in found for v in levels)

    @property
    def assumptions(self) -> tuple[str, ...]:
        """Singular values of the data that were taken for zero, in words."""
        return () if self._leveled is None else self._leveled.assumptions_of_rank

    @property
    def certified(self) -> int:
        """Starts with a certified limit."""
        return self.statuses[Status.CERTIFIED]

    @property
    def located(self) -> int:
        """Starts that converged numerically, at a limit, without a proof that it is theirs."""
        return self.statuses[Status.LOCATED]

    @property
    def undecided(self) -> int:
        """Starts without a limit."""
        return self.num - self.certified - self.located

    @property
    def proved(self) -> int | None:
        """Starts whose verdict is proved for their exact flow; `None` in runs without proofs."""
        return int(self.tally.proved.sum()) if self.plan.proves else None

    @property
    def fraction(self) -> float:
        """Share of starts that converge to the lowest limit, as a rule a global minimum; zero if no limit was found."""
        return (self.rows[0].certified + self.rows[0].located) / self.num if self.rows else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Exact interval for the probability of converging to the lowest limit, as a rule a global minimum."""
        return self.rows[0].interval if self.rows else (0.0, 1.0)

    @functools.cached_property
    def rows(self) -> tuple[BasinRow, ...]:
        """One row per limit, from the lowest.

        Simultaneous intervals are Bonferroni's over all these possible verdicts, observed or not; of limits that were found
        in the run those of `gdflow.basins.intervals.found_interval`.
        """
        alpha, rows = 1 - self.confidence, []
        for k, label in enumerate(self.labels):
            certified, proved, possible = int(self.tally.certified[k]), None, self.tally.possible(k)
            if self.plan.proves:  # what is not proved is not known
                proved, possible = int(self.tally.proved[:, k].sum()), self.tally.possible_by_proof(k)
            located = int(self.tally.located[k])
            sure = certified + located if proved is None else proved
            level = self.levels[k] if self._by_level else None
            limit = None if self.found is None else self.found[k]
            interval, shared = functools.partial(verdict_interval, sure, possible, self.num), alpha / len(self.labels)
            if limit is not None:
                before = limit.first_id - self.ids.start
                interval = functools.partial(found_interval, sure, possible, self.num, before)
                shared = shared_error(alpha, self._discovery_ranks[k])
            anytime = self.anytime is not None
            kinds = ((alpha, self.audit, anytime), (shared, self.audit, anytime), (alpha, None, anytime),
                (alpha, self.audit, False), (alpha, self.audit, True))  # fmt: skip
            intervals = [interval(a, audit, anytime=any_number) for a, audit, any_number in kinds]
            counts = certified, located, int(self.tally.reached[k]), proved, possible
            rows.append(BasinRow(k, label, level, limit, *counts, *intervals))
        return tuple(rows)

    @functools.cached_property
    def _discovery_ranks(self) -> list[int]:
        """Of every limit that was found which it was, the first, the second, …, in the order of the ids."""
        first = np.array([limit.first_id for limit in self.found or ()])
        return (1 + np.argsort(np.argsort(first))).tolist()

    @functools.cached_property
    def unseen(self) -> float | None:
        """Upper bound, at the confidence of the estimate, of the probability of all limits together that were not found.

        `None` if limits were known beforehand. See `gdflow.basins.intervals.unseen_bound`.
        """
        if self.found is None:
            return None
        limits = pc.fill_null(self.outcomes["limit"], -1).to_numpy()
        return unseen_bound(limits, 1 - self.confidence, anytime=self.anytime is not None)

    @property
    def certificate_times(self) -> np.ndarray:
        """Flow times at which the starts with a limit, among the kept rows, were decided, unordered."""
        return self.outcomes["time"].to_numpy()[is_decided(self.outcomes)]

    def time_quantile(self, q: float) -> float | None:
        """Quantile of the certificate times of all certified starts; `None` if there are none.

        Exact where all rows are kept, else from the histogram, to 4 %.
        """
        if self.num > len(self.outcomes):
            return self.tally.time_quantile(q)
        times = self.certificate_times
        return float(np.quantile(times, q)) if times.size else None

    def summary(self) -> dict[str, Any]:
        """Numbers and plan, ready for JSON: all that it takes to repeat the run."""
        edges = self.tally.edges()
        used = np.flatnonzero(self.tally.times)
        return {
            "num": self.num,
            "first_id": self.ids.start,
            "certified": self.certified,
            "proved": self.proved,
            "proved_by": {method.name: int(n) for method, n in self._proved_by} if self.plan.proves else None,
            "undecided": self.undecided,
            "fraction": self.fraction,
            "confidence": self.confidence,
            "interval": self.interval,
            "anytime": self.anytime,
            "statuses": {status.label: n for status, n in self.statuses.items()},
            "limits": [_row_record(row) for row in self.rows],
            "found": None if self.found is None else [record(limit) for limit in self.found],
            "unseen": self.unseen,
            "certificate_time_quantiles": {str(q): self.time_quantile(q) for q in QUANTILES},
            "certificate_time_histogram": [[edges[k], edges[k + 1], int(self.tally.times[k])] for k in used],
            "crossings": self.crossings,
            "steps": {"mean": self.tally.steps / self.num, "most": self.tally.most_steps},
            "largest_drift": self.tally.largest_drift,
            "audit": None if self.audit is None else dataclasses.asdict(self.audit),
            "lanes": self.lanes,
            "seconds": self.seconds,
            "data": self._data(),
            "digest": self.plan.digest,
            "plan": self.plan.record,
        }

    @property
    def _proved_by(self) -> list[tuple[AbstractMethod, int]]:
        return list(zip(self.plan.methods, self.tally.proved.sum(axis=1).tolist(), strict=True))

    def _data(self) -> dict[str, Any]:
        """What the plan is about, for people."""
        problem, info = self.plan.problem, self.plan.problem.info
        known = (
            {}
            if info is None
            else dict(source=info.source, features=info.features, targets=info.targets, notes=info.notes)
        )
        return known | dict(
            coordinates=problem.coordinates, widths=self.widths,
            singular_values=None if self._leveled is None else np.asarray(self._leveled.singular_values).tolist(),
            starts=self._starts_text(), method=self.plan.method.name, verdict=type(self.plan.verdict).__name__,
        )  # fmt: skip

    @property
    def _leveled(self) -> Problem | None:
        """The problem, if its critical values are known beforehand."""
        problem = self.plan.problem
        return problem if isinstance(problem, Problem) and problem.why_no_levels is None else None

    def _starts_text(self) -> str:
        starts = self.plan.starts
        if not isinstance(starts, Drawn):
            return starts.name
        options = [
            f"{k}={getattr(v, '__name__', repr(v))}"
            for k, v in vars(starts.law).items()
            if k not in ("widths", "center")
        ]
        return f"{starts.name}({', '.join(options)})"

    def __rich__(self) -> rich.console.RenderableType:
        percent = f"{100 * self.confidence:g} %"
        audited, proves = self.audit is not None, self.plan.proves
        found, located, reached = self.found is not None, bool(self.located), bool(self.tally.reached.any())
        columns = ["rank", "loss"] if self._by_level else ["loss", "kind"] if found else []
        table = column_table(
            f"Basins of {self.num} starts",
            "limit", *columns, "certified", *(["located"] if located else []), *(["reached"] if reached else []),
            *(["proved"] if proves else []), "possible",
            f"{percent} interval", "simultaneous", *(["without audit"] if audited else []),
            caption="possible: not excluded" + (" by a proof" if proves else "") + ". Intervals are exact ("
            + ("Clopper–Pearson" if self.anytime is None else "beta-binomial mixture, for any number of starts") + "); "
            + ("all they leave open is sampling, and starts without a proof" if proves else "undecided starts widen them")
            + (", and so does the audit's bound on wrong labels." if audited else ".")
            + (" Only starts after the first with a limit count." if found else ""),
        )  # fmt: skip
        for row in self.rows:
            level = [", ".join(map(str, row.ranks)), f"{row.level.value:.6g}"] if row.level else []
            if row.found is not None:
                level = [f"{row.found.loss:.8g}", row.found.kind]
            table.add_row(
                row.label, *level, str(row.certified), *([str(row.located)] if located else []),
                *([str(row.reached)] if reached else []), *([str(row.proved)] if proves else []), str(row.possible),
                *map(interval_text, [row.interval, row.simultaneous] + ([row.unaudited] if audited else [])),
            )  # fmt: skip
        return rich.console.Group(key_value_table("Basin estimate", self._facts()), table)

    def _facts(self) -> list[tuple[str, str]]:
        problem = self.plan.problem
        widths = f"{'-'.join(map(str, self.widths))}, {problem.coordinates} coordinates, " if self.widths else ""
        facts = [
            ("starts", widths + self._starts_text()),
            ("ended", ", ".join(f"{n} {status.label}" for status, n in self.statuses.items() if n)),
        ]
        facts += [(status.label, status.message) for status, n in self.statuses.items() if n and status]
        facts += [("hint", hint) for hint in self._hints()]
        if self._by_level and self.levels[0].width > 0:
            lowest = self.levels[0]
            facts.append(("lowest levels", f"{lowest.num_subsets} critical values from {lowest.value:.6g} to "
                f"{lowest.value + lowest.width:.6g} are one for round-off: minima and saddles are not told apart"))  # fmt: skip
        facts += [("assuming", note) for note in self.assumptions]
        if self.found is not None:
            facts += self._found_facts()
        if self.certified + self.located:
            shown = ", ".join(f"{q:.0%}: {self.time_quantile(q):.4g}" for q in (0.05, 0.5, 0.95))
            facts.append(
                (
                    ("" if self.plan.descends else "flow ")
                    + ("time to certificate" if self.found is None else "time to the limit"),
                    f"{shown}, longest: {self.time_quantile(1.0):.4g}",
                )
            )
        facts.append(("steps", f"mean {self.tally.steps / self.num:.1f}, most {self.tally.most_steps}"))
        if isinstance(self.plan.verdict, DescentLevel) and self.certified:
            facts.append(("certified", _DESCENT))
        if "drift" in self.outcomes.column_names:
            facts.append(
                ("largest drift of C_j", f"{self.tally.largest_drift:.1e} (relative; zero for the exact flow)")
            )
        if self.plan.proves:
            every = self.plan.verdict.of_every_start  # type: ignore[attr-defined]  # what is proved are verdicts by levels
            starts = "each" if every else "an exactly balanced start close (gdflow.basins.nearly_balanced) to each"
            facts += [("proved", self._proof_text()), ("about", _THEOREM.format(starts))]
        else:
            facts.append(("audit", self._audit_text()))
        if self.rows:
            facts.append(("number of starts", self._number_text()))
        facts.append(("wall time", f"{self.seconds:.1f} s, compilation included"))
        if self.opened_from is not None:
            facts.append(
                ("opened from", f"{visible(self.opened_from)}: of an earlier run (overwrite=True runs it again)")
            )
        return facts

    def _hints(self) -> list[str]:
        """What may help starts that are undecided."""
        hints = []
        if self.statuses[Status.STEP_LIMIT] and self.tally.most_steps >= self.plan.limits.most_steps:
            if self.plan.descends:
                hints.append("more steps (--max-steps), longer ones, or a schedule; with steps beyond 2/λ_max(∇²L) of all limits "
                    "there is none to go to; with minibatches, or Adam, iterates stay restless at any fixed step, unless all "
                    "samples are fitted")  # fmt: skip
            elif self.found is None:
                hints.append("where small singular values make the flow stiff, gdflow.RKC (--solver rkc) takes longer steps; or "
                    "more steps (--max-steps)")  # fmt: skip
            else:
                hints.append("the gradient has not become small: more steps (--max-steps); where the flow is stiff gdflow.RKC "
                    "(--solver rkc); where step errors are of its size tighter tolerances (--rtol, --atol); where the loss falls "
                    "for ever weight decay")  # fmt: skip
        if self.found is None:
            return hints
        if self.statuses[Status.CONVERGED] + self.statuses[Status.STATIONARY]:
            hints.append("what converged but is at no limit passes a saddle, or creeps along a tail, where the loss may have no "
                "minimum: a smaller Limits.gradient_tolerance tells, weight decay gives it one")  # fmt: skip
        if self.statuses[Status.DIVERGING]:
            hints.append("weights that grow for ever say that the loss has no minimum there: weight decay gives it one")
        return hints

    def _found_facts(self) -> list[tuple[str, str]]:
        limits = self.plan.limits
        facts = [
            (
                "limits",
                f"{len(self.found or ())} found; of all others together the probability is at most {self.unseen:.2e}",
            ),
            ("converged", f"‖∇L‖ ≤ {limits.gradient_tolerance:.1e} for a time of {limits.dwell:.1e}"),
        ]
        if self.certified:
            radii = [limit.radius for limit in self.found or () if limit.radius]
            why = [f"balls of attraction, of radius {min(radii):.1e} … {max(radii):.1e}"] if radii else []
            why += (
                ["a loss below log 2: gdflow.separation"]
                if any(limit.at_infinity for limit in self.found or ())
                else []
            )
            what = "descent" if self.plan.descends else "flow"
            facts.append(("certified", f"the {what} from the computed state ends at the limit ({'; '.join(why)})"))
        return facts

    def _number_text(self) -> str:
        """What the intervals owe to how the number of starts came about."""
        row = self.rows[0]
        if self.anytime is None:
            return f"fixed in advance; for any number the interval of {row.label} is {interval_text(row.anytime)}"
        fixed = interval_text(row.fixed)
        return f"not fixed in advance ({self.anytime}); if it were, the interval of {row.label} would be {fixed}"

    def _proof_text(self) -> str:
        by = ", ".join(f"{n} by {method.name}" for method, n in self._proved_by if n)
        rest = self.num - int(self.tally.proved.sum())
        return (by or "none") + (f"; {rest} of {self.num} starts without a proof" if rest else "; every start")

    def _audit_text(self) -> str:
        if self.audit is None and self.plan.audited() is None:
            return "none: with other steps it would be another algorithm (labels are taken to be right)"
        if self.audit is None:
            return "none (labels are taken to be right; audit=n re-runs n starts at tighter tolerances)"
        audit, bound = self.audit, self.audit.flip_bound((1 - self.confidence) / 2, self.anytime is not None)
        decided = f"; {audit.newly_decided} undecided ones it certified" if audit.newly_decided else ""
        what = "; of errors of the integration: limits are tested alike" if self.found is not None else ""
        return f"contradicts {audit.flips} of {audit.num} labels ({audit.method}); wrong labels ≤ {bound:.2e}{decided}{what}"
