"""Reading what runs have left in folders: estimates, the state of a campaign, all rows as one file. Nothing is changed there."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import rich.console

from gdflow.basins import units
from gdflow.basins.campaign import OUTCOMES, SET_ASIDE, read_campaign, who_is_at_work
from gdflow.basins.catalogue import limit_labels
from gdflow.basins.estimate import BasinEstimate
from gdflow.basins.intervals import Audit
from gdflow.basins.ledger import Ledger
from gdflow.basins.plan import Plan
from gdflow.basins.stopping import Request
from gdflow.basins.storage import SUMMARY, read_summary
from gdflow.basins.units import DamagedUnit
from gdflow.checks import check_count, check_number
from gdflow.ids import id_range
from gdflow.tables import Printable, key_value_table, shortened, visible


def load(folder: str | os.PathLike) -> BasinEstimate:
    """Opens the results that a run has left in a folder; of a run that is not finished, those of the starts before the first gap.

    The first 10^6 rows are read, and checked; of the others what their files say of themselves is taken.

    **Raises:** `FileNotFoundError` where there are none; `ValueError` for files that are damaged or do not belong together, and
    for plans that name classes which are not there: import the modules of your own ones first.

    ```python
    >>> estimate = gf.load("gdflow-out")
    ```
    """
    stored = read_campaign(folder)
    plan = stored_plan(stored)
    try:
        summary = read_summary(folder)
    except FileNotFoundError:
        summary = None
    if summary is not None and (summary["digest"], summary["first_id"]) != (plan.digest, stored["first_id"]):
        raise ValueError(f"{visible(str(folder))} holds {SUMMARY} of another campaign: they do not belong together")
    found = list(_peeked(folder, plan))
    most = max((unit.ids.stop for unit in found), default=stored["first_id"]) - stored["first_id"]
    request = stored_request(stored)
    num = most if summary is None or (request or {}).get("num") != summary["num"] else summary["num"]
    ledger = Ledger(plan, id_range(stored["first_id"], max(num, 1)), None, ())
    try:
        for unit in found:
            ledger.open(unit)
    except DamagedUnit as damaged:
        raise ValueError(_damaged(folder, damaged)) from None
    if not ledger.num:
        raise FileNotFoundError(f"there are no results in {visible(str(folder))} yet")
    finished = summary is not None and ledger.num == summary["num"]
    if summary is not None and ledger.num < summary["num"]:
        raise ValueError(_damaged(folder, f"{summary['num'] - ledger.num} of {summary['num']} starts are missing"))
    ledger.settle(write=False)
    told: dict[str, Any] = dict(confidence=0.95, lanes=1, seconds=0.0) | (request or {}) | (summary or {})
    return BasinEstimate(
        plan=plan,
        ids=range(stored["first_id"], stored["first_id"] + ledger.num),
        tally=ledger.tally,
        outcomes=ledger.table,
        confidence=told["confidence"],
        audit=stored_audit(summary) if finished and summary is not None else None,
        lanes=told["lanes"] or 1,
        seconds=told["seconds"],
        found=ledger.found,
        anytime=summary["anytime"] if finished and summary is not None else "a run that is not finished",
        opened_from=os.fspath(folder),
    )


def _damaged(folder: str | os.PathLike, why: Any) -> str:
    return f"{visible(shortened(str(folder)))} is damaged: {why}. The same run in this folder, or gf.resume, repairs it"


def _peeked(folder: str | os.PathLike, plan: Plan) -> Iterator[units.Unit]:
    for path, found in units.survey(pathlib.Path(folder) / OUTCOMES, plan, whole=False):
        if isinstance(found, DamagedUnit):
            raise ValueError(_damaged(folder, f"{visible(shortened(path.name))}: {found}"))
        yield found


def stored_plan(stored: dict[str, Any]) -> Plan:
    """The plan of a `campaign.json` or a `summary.json`."""
    plan = Plan.from_record(stored["plan"])
    # What was computed by other versions, or elsewhere, keeps its record.
    object.__setattr__(plan, "record", stored["plan"])
    if plan.digest != stored["digest"]:
        raise ValueError("the stored plan has been changed: its fingerprint is another one")
    return plan


def stored_request(stored: dict[str, Any]) -> dict[str, Any] | None:
    try:
        for request in stored["requests"]:
            Request.from_record(request)
            check_count("num", request["num"])
            if not 0 < check_number("confidence", request["confidence"]) < 1:
                raise ValueError("the confidence must lie between 0 and 1")
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"campaign.json is damaged: what was asked for cannot be ({error})") from None
    return stored["requests"][-1] if stored["requests"] else None


def stored_audit(summary: dict[str, Any]) -> Audit | None:
    stored = summary["audit"]
    try:
        audit = None if stored is None else Audit(**stored | {"flipped_ids": tuple(stored["flipped_ids"])})
        sound = audit is None or 0 <= audit.flips == len(audit.flipped_ids) <= audit.num <= summary["num"]
    except (TypeError, KeyError):
        sound = False
    if not sound or not 0 < summary["confidence"] < 1:
        raise ValueError(f"{SUMMARY} is damaged: its audit or its confidence cannot be")
    return audit


# -- campaigns ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, repr=False)
class CampaignStatus(Printable):
    """What there is of a campaign; prints as a table.

    - `folder`; `first_id`: of the first start; `wanted`: how many starts were asked for, `None` if that is not known.
    - `num`: how many rows there are; `num_units`: in how many files, of at most `unit` starts.
    - `gaps`: the first and the last id of every gap between them.
    - `damaged`: names of files that are no units of the plan, and why; `set_aside`: how many files were set aside before.
    - `size`: bytes of the units; `busy`: the process that is at work there, if any.
    """

    folder: str
    first_id: int
    wanted: int | None
    num: int
    num_units: int
    unit: int
    gaps: tuple[tuple[int, int], ...]
    damaged: tuple[tuple[str, str], ...]
    set_aside: int
    size: int
    busy: str | None

    @property
    def complete(self) -> bool:
        """Whether all starts that were asked for are there."""
        return not (self.gaps or self.damaged) and self.wanted is not None and self.num >= self.wanted

    def __rich__(self) -> rich.console.RenderableType:
        wanted = "" if self.wanted is None else f" of {self.wanted}"
        facts = [
            ("folder", visible(shortened(self.folder))),
            ("starts", f"{self.num}{wanted}" + (", complete" if self.complete else "")),
            ("units", f"{self.num_units} files of at most {self.unit} starts, {self.size / 2**20:.1f} MiB"),
        ]
        facts += [("gap", f"{first} … {last}") for first, last in self.gaps[:_SHOWN]]
        facts += [("damaged", f"{visible(shortened(name))}: {why}") for name, why in self.damaged[:_SHOWN]]
        for what, some in (("gaps", self.gaps), ("damaged", self.damaged)):
            if len(some) > _SHOWN:
                facts.append((what, f"{len(some)} in all"))
        if self.set_aside:
            facts.append(("set aside", f"{self.set_aside} files, in {SET_ASIDE}{os.sep}"))
        if self.busy is not None:
            facts.append(("at work", visible(shortened(self.busy))))
        return key_value_table("Campaign", facts)


#: Of gaps and damaged files so many are shown.
_SHOWN = 8


def campaign_status(
    folder: str | os.PathLike, *, verify: bool = False, seen: Callable[[int, int], Any] = lambda *_: None
) -> CampaignStatus:
    """What there is of a campaign, whether or not a process is at work there.

    **Arguments:** `verify`: look at every byte, not at metadata alone; `seen`: called with the number of the file that was looked
    at, and of all files.

    **Raises:** `FileNotFoundError` where there is no campaign; `ValueError` if `campaign.json` is damaged.
    """
    stored = read_campaign(folder)
    plan, request = stored_plan(stored), stored_request(stored)
    where, aside = pathlib.Path(folder) / OUTCOMES, pathlib.Path(folder) / SET_ASIDE
    total, num, size, num_units = len(units.listed(where)), 0, 0, 0
    gaps, damaged, end = [], [], stored["first_id"]
    for k, (path, unit) in enumerate(units.survey(where, plan, whole=verify)):
        seen(k + 1, total)
        if isinstance(unit, DamagedUnit):
            damaged.append((path.name, str(unit)))
            continue
        if unit.ids.start > end:
            gaps.append((end, unit.ids.start - 1))
        end = max(end, unit.ids.stop)
        num, num_units = num + len(unit.ids), num_units + 1
        with contextlib.suppress(OSError):
            size += path.stat().st_size
    wanted = None if request is None else request["num"]
    return CampaignStatus(
        os.fspath(folder), stored["first_id"], wanted, num, num_units, stored["unit"], tuple(gaps), tuple(damaged),
        len(list(aside.iterdir())) if aside.is_dir() else 0, size, who_is_at_work(folder),
    )  # fmt: skip


def export(
    folder: str | os.PathLike,
    path: str | os.PathLike,
    *,
    overwrite: bool = False,
    seen: Callable[[int, int], Any] = lambda *_: None,
) -> int:
    """Writes all rows of a campaign that there are into one file, in the order of the ids; returns how many.

    Of a run whose limits are found in it, and which is not finished, those before the first gap: so limits have one numbering.

    **Arguments:** `path`: `.parquet` or `.csv`; `overwrite`: replace a file that is there; `seen`: as for `campaign_status`.

    **Raises:** `ValueError` for other suffixes and for damaged units; `FileExistsError` if there is a file.
    """
    stored = read_campaign(folder)
    plan, path = stored_plan(stored), pathlib.Path(path)
    shown = visible(shortened(str(path)))
    if path.suffix not in (".parquet", ".csv"):
        raise ValueError(f"rows are exported to a .parquet or a .csv file, got {shown}")
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{shown} is there already: choose another name, or replace it with overwrite=True (--overwrite)"
        )
    found = list(_peeked(folder, plan))
    if path.resolve().is_relative_to(pathlib.Path(folder).resolve() / OUTCOMES):
        raise ValueError(f"{shown} lies among the units of the run, which it would damage: choose another place")
    partial = path.with_name(f".{path.name}.partial")
    kind: Any = pq.ParquetWriter if path.suffix == ".parquet" else pyarrow.csv.CSVWriter
    num = 0
    # Of limits that were found every unit of a run that is not finished has a list of its own.
    tables = iter([load(folder).outcomes]) if plan.discovers else (_rows(unit, plan) for unit in found)
    try:
        with open(partial, "wb") as file, kind(file, plan.schema) as writer:
            for k, table in enumerate(tables):
                if path.suffix == ".csv":  # which knows no dictionaries
                    table = pa.table({name: _plain(table[name]) for name in table.column_names})
                writer.write_table(table)
                num += len(table)
                seen(k + 1, len(found))
        os.replace(partial, path)
    except DamagedUnit as damaged:
        raise ValueError(_damaged(folder, damaged)) from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return num


def _rows(unit: units.Unit, plan: Plan) -> pa.Table:
    labels = None if unit.limits is None else limit_labels(unit.limits)
    return plan.table(units.read(unit, plan), labels)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column
