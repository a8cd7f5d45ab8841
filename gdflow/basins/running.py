"""Runs of plans over many starts: counted, kept, audited, written down; opened again, and repeated."""

import os
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rich.progress
from jaxtyping import Array, Key

from gdflow.basins.audit import Watch, chosen_ids, compare
from gdflow.basins.catalogue import Catalogue, FoundLimit, limit_labels
from gdflow.basins.estimate import BasinEstimate
from gdflow.basins.intervals import Audit, check_audit, default_audit
from gdflow.basins.methods import AbstractMethod
from gdflow.basins.outcomes import outcome_columns
from gdflow.basins.plan import Plan, make_plan
from gdflow.basins.process import Limits
from gdflow.basins.riders import AbstractRider
from gdflow.basins.rows import MAX_ROWS, Rows
from gdflow.basins.starts import AbstractStarts
from gdflow.basins.storage import OUTCOMES, PARTIAL, SUMMARY, keep_results, prepare_folder, read_summary
from gdflow.basins.tally import Tally
from gdflow.checks import check_count, check_number
from gdflow.ids import id_range
from gdflow.problem import AbstractProblem
from gdflow.records import restore
from gdflow.verdicts import AbstractVerdict


def basin_sizes(
    problem: AbstractProblem,
    starts: Any,
    num: float | range | None = None,
    *,
    key: Key[Array, ""] | None = None,
    method: AbstractMethod | None = None,
    verdict: AbstractVerdict | None = None,
    riders: Sequence[AbstractRider] | None = None,
    limits: Limits | None = None,
    confidence: float = 0.95,
    audit: float | None = None,
    proof: bool = False,
    lanes: float | None = None,
    folder: str | os.PathLike | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> BasinEstimate:
    """How likely a random start converges where: runs starts until each limit is decided.

    By default a start is certified when its loss falls below the second-lowest critical value, by more than round-off. It
    counts as undecided, with its reason, if that has not happened within the limits. Start `i` depends on `key` and `i` alone,
    and ids are fixed in advance, so fast basins are not favoured and results do not depend on the number of lanes or threads.

    From balanced starts this is the Riemannian flow on the matrices of rank `k`, the smallest width. There limits of lower
    rank can have positive probability: for laws that say that their starts are balanced these are certified too, long before
    round-off could carry the integration to the wrong side of the boundary.

    Where the critical values are not known beforehand (activations, other losses, weight decay, potentials) the limits are found
    in the run, told apart and counted: see `gdflow.verdicts.Converged`, the default verdict there.

    **Arguments:**

    - `problem`: a `gdflow.Problem` or another problem, such as a `gdflow.Potential`; the starts are in its coordinates.
    - `starts`: a law, e.g. `gf.initialization.Gaussian(problem.widths([5, 5]))`, with its `key`; or networks, a batch. For a
      potential a function from a key to a point, with its `key`, or points, arrays whose first axes count the same.
    - `num`: how many, ids `0, …, num − 1`, or a `range` of 64-bit ids; of given networks all by default.
    - `method`: what steps the starts, by default `gf.integrator()`: Tsit5 at rtol 1e-6, atol 1e-9; with proofs Dopri8 at
      rtol 1e-7, atol 1e-10. Where limits are found in the run: for smooth networks the stabilised `gf.RKC(10)` at rtol 1e-6, atol
      1e-8, for smooth potentials Tsit5 at rtol 1e-8, atol 1e-10; starts that are not certain then run again at 100 times tighter
      tolerances. Where the gradient jumps steps have a shortest length.
    - `verdict`: when a limit is decided, and what is claimed of it: one of `gf.verdicts`. By default `Converged` where
      critical values are not known beforehand, `Balanced` if the law says that its starts are, else `LevelVerdict`.
    - `riders`: what is carried along and reported besides, by default the drift of the conserved quantities and the
      staircase, when each value `ℓ({1, …, r})` was passed (at most 16); `(gf.basins.Drift(),)` is up to a fifth faster.
    - `limits`: when a start is given up, a `gf.basins.Limits`. Where limits are found, its `gradient_tolerance` and `dwell` say
      when a start has converged: by default 10⁻⁶ of the median gradient norm at the starts (10⁻⁴ where the gradient jumps).
    - `confidence`: of the intervals.
    - `audit`: how many of the starts, chosen at random, to re-run with another solver at 100× tighter tolerances; by default
      5 %, at least 100 and at most 500. 0 for none: labels are then taken to be right.
    - `proof`: prove each verdict for the exact flow from the start, see `gdflow.basins.tube`: a start goes on until its proof
      closes; where it fails it is run again at tighter tolerances. Intervals then count proved starts only and need no audit.
    - `lanes`: starts in flight at once per thread; memory grows with them, results do not depend on them.
    - `folder`: write all rows to `outcomes.parquet`, as they come, and numbers and plan to `summary.json`. Memory does not grow
      with `num`; without a folder the rows beyond the first 10^6 are counted only. Results of the very same plan that are there
      are opened instead of run again; not so those of plans with code of your own, of which it is not known what it did then. If
      rows can't be written in the end, a `gdflow.basins.StorageWarning` says why and where they are, and the estimate is
      returned all the same.
    - `overwrite`: run in any case, and replace results that are in the folder.
    - `progress`: show a progress bar.

    **Returns:** a `gdflow.basins.BasinEstimate`.

    **Raises:** `ValueError` or `TypeError` for options out of range, widths that do not fit the problem, float32, and verdicts
    that would mislead of such starts; `FileExistsError` for a folder with other results; all before anything is run. What
    happens to single starts never raises.

    ```python
    >>> law = gf.initialization.Gaussian(problem.widths([5, 5]))
    >>> print(gf.basin_sizes(problem, law, 1000, key=jax.random.key(0)))
    ```
    """
    first_id = num.start if isinstance(num, range) else 0
    plan = make_plan(
        problem,
        starts,
        key=key,
        method=method,
        verdict=verdict,
        riders=riders,
        limits=limits,
        first_id=first_id,
        proof=proof,
    )
    ids = check_ids(plan.starts, num)
    return _run_plan(plan, ids, confidence, audit, lanes, folder, overwrite, progress)


def _run_plan(
    plan: Plan,
    ids: range,
    confidence: float,
    audit: float | None,
    lanes: float | None,
    folder: str | os.PathLike | None,
    overwrite: bool,
    progress: bool,
) -> BasinEstimate:
    """Runs a plan and keeps its results: the arguments are those of `basin_sizes`."""
    begin = time.perf_counter()
    audit = _check_audit(plan, len(ids), confidence, audit)
    lanes = plan.check_lanes(len(ids), lanes)
    if folder is not None:
        if not overwrite and (same := _same_run(folder, plan, ids, confidence, audit)):
            return same
        folder = prepare_folder(folder, (OUTCOMES, SUMMARY), overwrite=overwrite)

    catalogue = plan.catalogue()
    if catalogue is not None and len(ids) > MAX_ROWS:
        raise ValueError(
            f"limits are found among at most {MAX_ROWS} starts at a time, got {len(ids)}: run them in parts"
        )
    tally = Tally(len(plan.verdict.labels), len(plan.methods))
    rows = Rows(plan, ids, None if folder is None else folder / PARTIAL)
    watched = Watch(chosen_ids(plan.starts, ids, audit))
    found: tuple[FoundLimit, ...] | None = None

    def sink(some, columns):
        if catalogue is None:
            tally.add(columns)
        rows.add(some, columns)
        watched.add(some, columns)

    with _progress(progress) as bar:
        try:
            _run(plan, ids, sink, lanes, bar, "integrating", catalogue)
        finally:
            rows.close()
        result = _audit(plan, watched, lanes, bar, catalogue) if audit else None
    labels = None
    if catalogue is not None:
        found, columns = catalogue.sorted(rows.columns)
        labels, tally = limit_labels(found), Tally(len(found), len(plan.methods))
        tally.add(columns)
        rows.columns.update(columns)
    estimate = BasinEstimate(
        plan=plan,
        ids=ids,
        tally=tally,
        outcomes=rows.table(labels),
        confidence=confidence,
        audit=result,
        lanes=lanes,
        seconds=time.perf_counter() - begin,
        found=found,
    )
    if folder is not None:
        in_file = rows.written if len(ids) > rows.kept else None
        keep_results(folder, estimate.outcomes, estimate.summary(), rows_in_file=in_file, failure=rows.failure)
    return estimate


def check_ids(starts: AbstractStarts, num: float | range | None) -> range:
    """The ids of a run; `ValueError` or `TypeError` unless all of them are ids of starts."""
    if num is None:
        if starts.num is None:
            raise TypeError("how many starts? A law has as many as there are ids: give num")
        num = starts.num
    if isinstance(num, range):
        if num.step != 1 or not num:
            raise ValueError(f"ids must be a range of at least one, with step 1; got {num}")
        first, count = num.start, num.stop - num.start
    else:
        first, count = 0, check_count("num", num)
    if count >= 2**63:
        raise ValueError(f"num must be below 2**63, got {count}")
    if starts.num is not None and first + count > starts.num:
        raise ValueError(f"there are {starts.num} starts: ids {first} … {first + count - 1} are not all among them")
    return id_range(first, count)


def _check_audit(plan: Plan, num: int, confidence: float, audit: float | None) -> int:
    if not 0 < check_number("confidence", confidence) < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    if plan.proves:
        if audit:
            raise ValueError("an audit is for labels that are not proved: leave it out, or the proof")
        return 0
    possible = plan.audited() is not None
    if audit is None:
        return default_audit(num, confidence) if possible else 0
    audit = check_count("audit", audit, 0)
    if not audit or possible:
        check_audit(audit, num, confidence)
    else:
        raise ValueError(
            f"{plan.method.name} knows no tighter method to audit with (`AbstractMethod.tighter`): audit=0"
        )
    return audit


def _progress(show: bool) -> rich.progress.Progress:
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
        transient=True,
        disable=not show,
    )


def _run(
    plan: Plan,
    ids: Any,
    sink: Any,
    lanes: int,
    bar: rich.progress.Progress,
    description: str,
    catalogue: Catalogue | None,
) -> None:
    task = bar.add_task(description, total=len(ids))

    def count(some, columns):
        sink(some, columns)
        bar.advance(task, len(some))

    plan.run(ids, count, lanes=lanes, catalogue=catalogue)


def _audit(plan: Plan, watched: Watch, lanes: int, bar: rich.progress.Progress, catalogue: Catalogue | None) -> Audit:
    tighter = plan.audited()
    assert tighter is not None
    again = Watch(watched.ids)
    _run(tighter, again.ids_array, again.add, lanes, bar, "auditing", catalogue)
    return compare(watched, again, tighter.method.name)


# -- results on disk ---------------------------------------------------------------------------------------------------


def _same_run(folder: str | os.PathLike, plan: Plan, ids: range, confidence: float, audit: int) -> BasinEstimate | None:
    """The results in the folder, if they are of this very run."""
    try:
        summary = read_summary(folder)
    except (OSError, ValueError):
        return None
    audited = (summary["audit"] or {}).get("num", 0)
    found = (summary["digest"], summary["first_id"], summary["num"], summary["confidence"], audited)
    if found != (plan.digest, ids.start, len(ids), confidence, audit) or not plan.is_known:
        return None
    return _opened(folder, summary)


def load(folder: str | os.PathLike) -> BasinEstimate:
    """Opens the results that a run has left in a folder.

    **Raises:** `FileNotFoundError` where there are none; `ValueError` for files that are damaged or do not belong together, and
    for plans that name classes which are not there: import the modules of your own ones first.

    ```python
    >>> estimate = gf.load("gdflow-out")
    ```
    """
    return _opened(folder, read_summary(folder))


def _opened(folder: str | os.PathLike, summary: dict[str, Any]) -> BasinEstimate:
    plan = Plan.from_record(summary["plan"])
    # What was computed by other versions, or elsewhere, keeps its record.
    object.__setattr__(plan, "record", summary["plan"])
    if plan.digest != summary["digest"]:
        raise ValueError(f"the plan in {SUMMARY} has been changed: its fingerprint is another one")
    ids, audit = id_range(summary["first_id"], summary["num"]), _stored_audit(summary)
    apart = f"{OUTCOMES} and {SUMMARY} do not belong together"
    found = _stored_limits(summary) if plan.discovers else None
    labels = plan.verdict.labels if found is None else limit_labels(found)
    tally = Tally(len(labels), len(plan.methods))
    rows = Rows(plan, ids)
    seen = np.zeros(len(ids), bool)
    for columns in _stored_columns(folder, plan.digest):
        some = columns.pop("id")
        position = some - np.uint64(ids.start)  # modulo 2⁶⁴: ids below the first are beyond the last
        if some.size and (position.max() >= len(ids) or seen[position].any()):
            raise ValueError(f"{apart}: there are ids that are not of this run, or twice")
        seen[position] = True
        tally.add(columns)
        rows.add(some, columns)
    if not seen.all():
        raise ValueError(f"{apart}: {OUTCOMES} has {tally.num} rows, and the run had {len(ids)} starts")
    return BasinEstimate(
        plan=plan,
        ids=ids,
        tally=tally,
        outcomes=rows.table(labels),
        confidence=summary["confidence"],
        audit=audit,
        lanes=summary["lanes"],
        seconds=summary["seconds"],
        found=found,
        opened_from=os.fspath(folder),
    )


def _stored_limits(summary: dict[str, Any]) -> tuple[FoundLimit, ...]:
    try:
        found = tuple(restore(limit) for limit in summary["found"])
    except Exception as error:  # of whatever the damage leads to
        raise ValueError(f"{SUMMARY} is damaged: its limits cannot be read ({type(error).__name__}: {error})") from None
    if not all(isinstance(limit, FoundLimit) for limit in found):
        raise ValueError(f"{SUMMARY} is damaged: its limits are none")
    return found


def _stored_audit(summary: dict[str, Any]) -> Audit | None:
    stored = summary["audit"]
    try:
        audit = None if stored is None else Audit(**stored | {"flipped_ids": tuple(stored["flipped_ids"])})
        sound = audit is None or 0 <= audit.flips == len(audit.flipped_ids) <= audit.num <= summary["num"]
    except (TypeError, KeyError):
        sound = False
    if not sound or not 0 < summary["confidence"] < 1:
        raise ValueError(f"{SUMMARY} is damaged: its audit or its confidence cannot be")
    return audit


def _stored_columns(folder: str | os.PathLike, digest: str) -> Iterator[dict[str, Any]]:
    path = pathlib.Path(folder) / OUTCOMES
    try:
        with pq.ParquetFile(path) as file:
            if (file.schema_arrow.metadata or {}).get(b"plan") != digest.encode():
                raise ValueError(f"it is of another plan than {SUMMARY}: they do not belong together")
            for batch in file.iter_batches(MAX_ROWS // 16):
                yield outcome_columns(pa.Table.from_batches([batch]))
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(f"there is no {OUTCOMES} in {os.fspath(folder)}") from None
        raise ValueError(f"{path} cannot be read: {error}") from None


def repeat(
    results: BasinEstimate | str | os.PathLike,
    num: float | range | None = None,
    *,
    folder: str | os.PathLike | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> BasinEstimate:
    """Runs a plan again, from an estimate or from the `summary.json` of a run (the file or its folder), which suffices.

    With the versions and on the kind of machine that the plan names, the rows are the same; times and losses up to round-off.

    **Arguments:** `num`: other starts than those of the run, a number or a `range`, with the default audit if there was one;
    `folder`, `overwrite`, `progress`: as for `gdflow.basin_sizes`.

    ```python
    >>> again = gf.repeat("gdflow-out/summary.json", folder="again")
    ```
    """
    if isinstance(results, BasinEstimate):
        plan, ids, confidence, lanes = results.plan, results.ids, results.confidence, results.lanes
        audit = 0 if results.audit is None else results.audit.num
    else:
        summary = read_summary(results)
        plan, confidence, lanes = Plan.from_record(summary["plan"]), summary["confidence"], summary["lanes"]
        ids, stored = id_range(summary["first_id"], summary["num"]), _stored_audit(summary)
        audit = 0 if stored is None else stored.num
    if num is not None:
        ids = check_ids(plan.starts, num)
        audit = default_audit(len(ids), confidence) if audit else 0
    checked = make_plan(
        plan.problem,
        plan.starts,
        method=plan.method,
        verdict=plan.verdict,
        riders=plan.riders,
        limits=plan.limits,
        first_id=ids.start,
        again=plan.again,
    )
    return _run_plan(checked, ids, confidence, audit, lanes, folder, overwrite, progress)
