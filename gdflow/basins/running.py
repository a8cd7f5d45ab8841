"""Runs of plans over many starts: counted, kept, audited, written down; opened again, gone on with, and repeated."""

import contextlib
import dataclasses
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import rich.progress
from jaxtyping import Array, Key

from gdflow.basins import cluster, units
from gdflow.basins.audit import Watch, chosen_ids, compare
from gdflow.basins.campaign import Campaign, read_campaign
from gdflow.basins.catalogue import Catalogue
from gdflow.basins.estimate import BasinEstimate
from gdflow.basins.intervals import Audit, check_audit, default_audit
from gdflow.basins.ledger import Ledger
from gdflow.basins.methods import AbstractMethod
from gdflow.basins.plan import Plan, make_plan
from gdflow.basins.process import Limits
from gdflow.basins.reading import stored_audit, stored_plan, stored_request
from gdflow.basins.riders import AbstractRider
from gdflow.basins.rows import MAX_ROWS, Columns, Gathering
from gdflow.basins.starts import AbstractStarts
from gdflow.basins.stopping import Request, Until
from gdflow.basins.storage import SUMMARY, StorageWarning, read_summary, write_json
from gdflow.checks import check_count, check_number
from gdflow.ids import id_range
from gdflow.problem import AbstractProblem
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
    until: Any = None,
    lanes: float | None = None,
    client: Any = None,
    folder: Any = None,
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
    - `until`: a `gf.basins.Until`: end earlier, by a rule. Intervals then hold for any number of starts.
    - `client`: a `distributed.Client`: its workers compute the units, see `gdflow.basins.cluster`.
    - `folder`: keep all rows there, see `gdflow.basins.campaign`: Parquet files of consecutive starts in `outcomes/`, plan in
      `campaign.json`, numbers in `summary.json`. What is there of the same plan is not run again: after a crash or an interrupt
      the same call goes on where it was, with a larger `num` it adds starts. Plans with code of your own are gone on with by
      `gf.resume` alone: it is not known whether that code has changed. Without a folder the rows beyond the first 10^6 are
      counted only.
    - `overwrite`: replace what is in the folder.
    - `progress`: show a progress bar.

    **Returns:** a `gdflow.basins.BasinEstimate`.

    **Raises:** `ValueError` or `TypeError` for options out of range, widths that do not fit the problem, float32, and verdicts
    that would mislead of such starts; `FileExistsError` for a folder with other results, `FolderBusy` for one where another
    process is at work; all before anything is run. `OSError` where units cannot be written: those that were are kept. What
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
    asked = Request(confidence, audit, until, lanes)
    return run_plan(plan, ids, asked, client=client, folder=folder, overwrite=overwrite, progress=progress)


def run_plan(
    plan: Plan,
    ids: range,
    options: Request,
    *,
    client: Any = None,
    folder: Any = None,
    overwrite: bool = False,
    progress: bool = True,
    trusted: bool = False,
    origin: str | None = None,
) -> BasinEstimate:
    """Runs of a plan what is not there yet, and makes an estimate of all: the arguments are those of `basin_sizes`.

    **Arguments:** `trusted`: code of the user's own is taken to be what it was; `origin`: why the number of starts is known
    not to have been fixed in advance.
    """
    begin = time.perf_counter()
    if not (folder is None or isinstance(folder, str | os.PathLike)):
        raise TypeError(f"the folder is given by its name, got {folder!r}")
    num_audited = _check_audit(plan, len(ids), options.confidence, options.audit)
    lanes, until = plan.check_lanes(len(ids), options.lanes), options.until
    if plan.discovers and len(ids) > MAX_ROWS:
        raise ValueError(
            f"limits are found among at most {MAX_ROWS} starts at a time, got {len(ids)}: run them in parts"
        )
    if until is not None and until.half_width is not None and plan.discovers:
        raise ValueError(
            "a run whose limits are not known beforehand cannot end by half_width: leave it out, or use seconds"
        )
    if client is not None:
        plan = cluster.prepared(client, plan)
    with contextlib.ExitStack() as stack:
        campaign, reason = None, origin if until is None else f"a run that ends at {until.text}"
        if folder is not None:
            opened = Campaign(folder, plan, ids.start, overwrite=overwrite, trusted=trusted)
            campaign = stack.enter_context(opened)
            campaign.request(len(ids), options)
            reason = reason or campaign.why_anytime(len(ids), options.audit)
        bar = stack.enter_context(_progress(progress))
        old = None if campaign is None else _last_summary(campaign)
        watched = chosen_ids(plan.starts, ids, num_audited) if num_audited and reason is None else ids[:num_audited]
        ledger = Ledger(plan, ids, campaign, watched, 1 - options.confidence)
        if campaign is not None:
            task = bar.add_task("checking", total=None)
            for unit in campaign.check():
                ledger.open(unit)
                bar.advance(task, len(unit.ids))
            bar.remove_task(task)
        before = ledger.num
        _complete(plan, ids, ledger, until, lanes, client, bar)
        if not ledger.num:
            raise ValueError("no start was run: the time was over before the first")
        ids = ids[: ledger.num]
        if until is not None and num_audited:
            num_audited = min(
                len(ids), default_audit(len(ids), options.confidence) if options.audit is None else num_audited
            )
        known = ledger.settle()
        same = old is not None and (old["num"], old["confidence"], old["anytime"], (old["audit"] or {"num": 0})["num"]) == (
            len(ids), options.confidence, reason, num_audited)  # fmt: skip
        if same and ledger.num == before:
            assert old is not None
            assert campaign is not None
            audit, seconds, opened_from = stored_audit(old), old["seconds"], os.fspath(campaign.folder)
        else:
            audit = _audit(plan, ledger.watch.first(num_audited), lanes, bar, known) if num_audited else None
            seconds, opened_from = time.perf_counter() - begin, None
        estimate = BasinEstimate(
            plan=plan,
            ids=ids,
            tally=ledger.tally,
            outcomes=ledger.table,
            confidence=options.confidence,
            audit=audit,
            lanes=lanes,
            seconds=seconds,
            found=ledger.found,
            anytime=reason,
            opened_from=opened_from,
        )
        if campaign is not None and opened_from is None:
            _keep(campaign, estimate)
    return estimate


def _keep(campaign: Campaign, estimate: BasinEstimate) -> None:
    """Writes the summary; rows are in their units already."""
    try:
        write_json(estimate.summary(), campaign.folder / SUMMARY)
    except OSError as error:
        warnings.warn(
            f"{SUMMARY} could not be written to {campaign.shown}: {error.strerror}. All rows are in {campaign.outcomes}; the "
            "same run in this folder makes the summary of them",
            StorageWarning,
            stacklevel=4,
        )


def _last_summary(campaign: Campaign) -> dict[str, Any] | None:
    try:
        summary = read_summary(campaign.folder)
    except (OSError, ValueError):
        return None
    return summary if summary["digest"] == campaign.plan.digest else None


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


# -- what is missing ---------------------------------------------------------------------------------------------------


def _complete(
    plan: Plan, ids: range, ledger: Ledger, until: Until | None, lanes: int, client: Any, bar: rich.progress.Progress
) -> None:
    """Runs what is in no unit yet, until the rule is met."""
    begin, arrived = time.monotonic(), ledger.num > 0
    task = bar.add_task("integrating", total=len(ids), completed=ledger.seen)

    def count(num: int) -> None:
        nonlocal arrived
        arrived = True
        bar.advance(task, num)

    def halted() -> bool:
        if until is None or not arrived:
            return False
        if until.seconds is not None and time.monotonic() - begin >= until.seconds:
            return True
        return until.half_width is not None and ledger.half_width <= until.half_width

    pieces = ledger.missing()
    if client is not None:
        cluster.run_units(client, plan, pieces, ledger, lanes, count, halted)
        return
    # What is run again, or finds limits, is finished piece by piece; else lanes go on from piece to piece.
    together = not (plan.again or plan.discovers)
    for stretch in _stretches(pieces) if together else [[piece] for piece in pieces]:
        if halted():
            return
        _run_stretch(plan, stretch, ledger, lanes, len(ids), count, halted)


def _stretches(pieces: Sequence[range]) -> Iterator[list[range]]:
    """The pieces in groups without gaps."""
    group: list[range] = []
    for piece in pieces:
        if group and piece.start != group[-1].stop:
            yield group
            group = []
        group.append(piece)
    if group:
        yield group


def _run_stretch(
    plan: Plan,
    pieces: list[range],
    ledger: Ledger,
    lanes: int,
    sized_for: int,
    count: Callable[[int], None],
    halted: Callable[[], bool],
) -> None:
    """Runs pieces without a gap between them; what is whole when it is interrupted is kept."""
    catalogue = plan.catalogue()

    def done(ids: range, columns: Columns) -> None:
        limits, columns = units.own_limits(catalogue, ids, columns)
        ledger.take(ids, columns, limits)

    gathering = Gathering(pieces, done)

    def sink(some: np.ndarray, columns: Columns) -> None:
        gathering.add(some, columns)
        count(len(some))

    try:
        plan.run(range(pieces[0].start, pieces[-1].stop), sink, lanes=lanes, catalogue=catalogue, halted=halted,
            sized_for=sized_for)  # fmt: skip
    except KeyboardInterrupt:
        gathering.finish()
        raise
    gathering.finish()


def _audit(plan: Plan, watched: Watch, lanes: int, bar: rich.progress.Progress, catalogue: Catalogue | None) -> Audit:
    tighter = plan.audited()
    assert tighter is not None
    again = Watch(watched.ids)
    task = bar.add_task("auditing", total=len(watched.ids))

    def sink(some: np.ndarray, columns: Columns) -> None:
        again.add(some, columns)
        bar.advance(task, len(some))

    tighter.run(again.ids_array, sink, lanes=lanes, catalogue=catalogue)
    return compare(watched, again, tighter.method.name)


def resume(
    folder: str | os.PathLike,
    num: float | None = None,
    *,
    until: Any = None,
    client: Any = None,
    progress: bool = True,
) -> BasinEstimate:
    """Goes on with the run in a folder, with what it was asked for, whatever ended it.

    Code of your own that its plan names is taken to be what it was: its modules have to be imported.

    **Arguments:** `num`: another number of starts; `until`: another rule; `client`, `progress`: as for `gdflow.basin_sizes`.

    **Raises:** as `gdflow.load` and `gdflow.basin_sizes`; `FileExistsError` if versions have changed since.

    ```python
    >>> estimate = gf.resume("gdflow-out", 10**6)
    ```
    """
    stored = read_campaign(folder)
    # With today's versions in its record: those of the stored one are compared with them.
    plan, request = dataclasses.replace(stored_plan(stored)), stored_request(stored)
    if num is None and request is None:
        raise ValueError("it is not known how many starts were asked for: give num")
    options = Request(0.95, None, None, None) if request is None else Request.from_record(request)
    if until is not None:
        options = dataclasses.replace(options, until=until)
    count = check_count("num", (request or {})["num"] if num is None else num)
    if options.audit is not None and options.audit > count:
        options = dataclasses.replace(options, audit=None)
    ids = check_ids(plan.starts, range(stored["first_id"], stored["first_id"] + count))
    return run_plan(plan, ids, options, client=client, folder=folder, progress=progress, trusted=True)


def repeat(
    results: BasinEstimate | str | os.PathLike,
    num: float | range | None = None,
    *,
    folder: Any = None,
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
    audit: int | None
    if isinstance(results, BasinEstimate):
        plan, ids, confidence, lanes = results.plan, results.ids, results.confidence, results.lanes
        audit, origin = 0 if results.audit is None else results.audit.num, results.anytime
    else:
        summary = read_summary(results)
        plan, confidence, lanes = Plan.from_record(summary["plan"]), summary["confidence"], summary["lanes"]
        ids, stored = id_range(summary["first_id"], summary["num"]), stored_audit(summary)
        audit, origin = 0 if stored is None else stored.num, summary["anytime"]
    if num is not None:
        origin = None
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
    asked = Request(confidence, audit, None, lanes)
    return run_plan(checked, ids, asked, folder=folder, overwrite=overwrite, progress=progress, origin=origin)
