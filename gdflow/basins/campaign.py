"""Campaigns: a plan, and a folder of units of its rows, to which runs add what is missing.

    FOLDER/campaign.json   the plan, written before anything is run
    FOLDER/outcomes/       units: Parquet files of consecutive starts (`gdflow.basins.units`)
    FOLDER/summary.json    numbers of the last estimate
    FOLDER/set-aside/      what was found in outcomes/ and is no whole unit of the plan

Where limits are found in the run, the files of one that is not finished number them each in its own way; in the end all alike.

The plan fixes every row, so it does not matter who computes a unit, when, or how often. A run that was killed has lost the units
it was at; the next one computes these. Every file is written beside and renamed.
"""

import bisect
import contextlib
import os
import pathlib
import secrets
import shutil
import socket
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gdflow.basins import units
from gdflow.basins.catalogue import FoundLimit
from gdflow.basins.plan import Plan
from gdflow.basins.stopping import Request, Until
from gdflow.basins.storage import SUMMARY, DamageWarning, prepare_folder, read_json, write_json
from gdflow.basins.units import DamagedUnit, Unit
from gdflow.ids import id_range
from gdflow.records import differences
from gdflow.tables import shortened, visible

CAMPAIGN, OUTCOMES, SET_ASIDE, LOCK = "campaign.json", "outcomes", "set-aside", ".lock"
#: Of plans that differ so many differences are named.
_NAMED = 6


class FolderBusy(OSError):
    """Another process is at work in the folder."""


class UnitNotWritten(OSError):
    """A unit could not be written: a full disk, a folder that is gone; the message says where its rows are instead."""


class Campaign:
    """The units of a plan in a folder. A context manager: meanwhile no other process can be at work there.

    **Arguments:**

    - `folder`: is made if it does not exist.
    - `plan`: what is run; `first_id`: of the first start.
    - `overwrite`: remove what another campaign has left in the folder.
    - `trusted`: go on although the plan holds code of your own, of which it is not known whether it has changed.

    **Raises:** `ValueError` for plans that cannot be read back; `FileExistsError` for folders with units of another plan (the
    message says what differs), or results of something else; `FolderBusy`; those of `prepare_folder`.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        plan: Plan,
        first_id: int = 0,
        *,
        overwrite: bool = False,
        trusted: bool = False,
    ):
        check_readable(plan)
        self.folder = prepare_folder(folder, (CAMPAIGN,), overwrite=True)
        self.plan, self.first_id = plan, first_id
        self.shown = visible(shortened(str(self.folder)))
        self._lock = _Lock(self.folder / LOCK, self.shown)
        try:
            stored = None if overwrite else self._stored()
            if stored is None:
                self._begin(overwrite)
            else:
                check_belongs(self.folder, plan, first_id, trusted)
                self._record = stored
            units.clean(self.outcomes)
        except BaseException:
            self._lock.release()
            raise
        #: The ids of the units that are there, in order.
        self.spans: list[range] = []

    def __enter__(self) -> "Campaign":
        return self

    def __exit__(self, *_: Any) -> None:
        self._lock.release()

    # -- the folder ----------------------------------------------------------------------------------------------------

    @property
    def outcomes(self) -> pathlib.Path:
        """The folder of units."""
        return self.folder / OUTCOMES

    def _stored(self) -> dict[str, Any] | None:
        if not (self.folder / CAMPAIGN).exists():
            present = [name for name in (OUTCOMES, SUMMARY) if (self.folder / name).exists()]
            if present:
                raise FileExistsError(
                    f"{self.shown} already holds {', '.join(present)}, but no {CAMPAIGN}: choose another folder, or replace them "
                    "with overwrite=True (--overwrite)"
                )
            return None
        return read_campaign(self.folder)

    def _begin(self, overwrite: bool) -> None:
        if overwrite:
            self._remove()
        self.outcomes.mkdir(exist_ok=True)
        self._record = {
            "digest": self.plan.digest,
            "first_id": self.first_id,
            "unit": units.default_size(self.plan),
            "token": secrets.token_hex(8),
            "requests": [],
            "plan": self.plan.record,
        }
        self._write()

    def _remove(self) -> None:
        """What campaigns leave, and nothing else: files of the user's stay."""
        for name in (CAMPAIGN, SUMMARY):
            (self.folder / name).unlink(missing_ok=True)
        if self.outcomes.is_dir():
            units.clean(self.outcomes)
            for path in units.listed(self.outcomes):
                if units.is_name(path.name):
                    path.unlink()

    def _write(self) -> None:
        write_json(self._record, self.folder / CAMPAIGN)

    @property
    def size(self) -> int:
        """Starts of a unit."""
        return self._record["unit"]

    @property
    def token(self) -> str:
        """By which a process elsewhere recognises the folder."""
        return self._record["token"]

    def request(self, num: int, asked: Request) -> None:
        """Notes what is asked for: `resume` goes on with it, and another number before is known of."""
        made = {"num": num, **asked.record}
        if not self._record["requests"] or self._record["requests"][-1] != made:
            self._record["requests"].append(made)
            self._write()

    def why_anytime(self, num: int, audit: float | None) -> str | None:
        """Why a run of so many starts has a number that was not fixed before any was run, in words; `None` if it has.

        Nobody knows who has looked at the rows meanwhile: any other request before, or a rule, takes the number its innocence.
        """
        for made in self._record["requests"]:
            if made["until"] is not None:
                return f"before, it was to end at {Until(**made['until']).text}"
            if made["num"] != num:
                return f"{made['num']} starts were asked for before"
            if made["audit"] != audit:
                return "another audit was asked for before"
        return None

    # -- units ---------------------------------------------------------------------------------------------------------

    def check(self) -> Iterator[Unit]:
        """The units that are there, after a look at every byte of them; what is no whole unit of the plan is set aside, with a
        `DamageWarning`."""
        for path, found in units.survey(self.outcomes, self.plan, whole=True):
            if isinstance(found, DamagedUnit):
                self._set_aside(path, str(found))
            else:
                self.spans.append(found.ids)
                yield found

    def _set_aside(self, path: pathlib.Path, why: str) -> None:
        aside = self.folder / SET_ASIDE
        aside.mkdir(exist_ok=True)
        target = aside / path.name
        while target.exists():
            target = aside / f"{path.name}.{secrets.token_hex(4)}"
        shutil.move(path, target)
        warnings.warn(
            f"{visible(shortened(str(path)))} was set aside, into {SET_ASIDE}{os.sep}: {why}. What is missing then is run again",
            DamageWarning,
            stacklevel=2,
        )

    def missing(self, ids: range) -> list[range]:
        """Which of the ids are in no unit, in pieces of at most the size of a unit."""
        pieces: list[range] = []
        first = ids.start
        for span in self.spans:
            if first < span.start < ids.stop:
                pieces += units.cut(range(first, span.start), self.size)
            first = max(first, span.stop)
        return pieces + list(units.cut(range(first, ids.stop), self.size)) if first < ids.stop else pieces

    def add(self, ids: range, columns: dict[str, np.ndarray], limits: Sequence[FoundLimit] | None) -> Unit:
        """Writes the rows of some ids as a unit; raises `OSError` if that fails."""
        return self.add_encoded(ids, units.encode(self.plan, ids, columns, limits))

    def add_encoded(self, ids: range, data: bytes) -> Unit:
        """Writes a unit that was encoded elsewhere."""
        try:
            path = units.write(self.outcomes, ids, data)
        except OSError as error:
            raise UnitNotWritten(
                f"the starts {ids[0]} … {ids[-1]} could not be written to {visible(str(self.outcomes))}: {error.strerror}. "
                f"{_rescued(ids, data)}What was written before is whole: the same run in this folder goes on there"
            ) from None
        return self.take_in(path)

    def take_in(self, path: pathlib.Path) -> Unit:
        """A unit whose file was just written."""
        unit = units.peek(path, self.plan)
        bisect.insort(self.spans, unit.ids, key=lambda span: span.start)
        return unit

    def renumber(self, ids: range, columns: dict[str, np.ndarray], limits: Sequence[FoundLimit]) -> None:
        """Writes a unit anew, whose rows now count other limits."""
        units.write(self.outcomes, ids, units.encode(self.plan, ids, columns, limits))


def _rescued(ids: range, data: bytes) -> str:
    """Writes a unit into a new temporary folder, and says where it is."""
    try:
        path = units.write(pathlib.Path(tempfile.mkdtemp(prefix="gdflow-")), ids, data)
    except OSError:
        return ""
    return f"They are in {visible(str(path))} instead, and may be moved there. "


def check_readable(plan: Plan) -> None:
    """`ValueError` for plans with code that cannot be found by its name: nobody could open their runs, or go on with them."""
    try:
        Plan.from_record(plan.record)
    except ValueError as error:
        raise ValueError(
            f"a folder keeps runs that can be gone on with, and this one could not be: {error}. Define it at the top level of a "
            "module, or leave the folder out"
        ) from None


def check_belongs(
    folder: str | os.PathLike, plan: Plan, first_id: int, trusted: bool = False, going_on: str | None = None
) -> None:
    """`FileExistsError` if there is a campaign in a folder that is not of this plan, or of which it is not known that its code is
    the same. **Arguments:** `going_on`: what goes on nevertheless, for the message; by default `gf.resume`."""
    if not (pathlib.Path(folder) / CAMPAIGN).exists():
        return
    stored, shown = read_campaign(folder), visible(shortened(str(folder)))
    rest = "choose another folder, or replace them with overwrite=True (--overwrite)"
    apart = differences(stored["plan"], plan.record)
    if stored["first_id"] != first_id:
        apart.append(f"first id: {stored['first_id']} there, {first_id} here")
    if apart or stored["digest"] != plan.digest:
        said = "; ".join(apart[:_NAMED]) + (f"; and {len(apart) - _NAMED} more" if len(apart) > _NAMED else "")
        raise FileExistsError(f"{shown} already holds results of another run: {said}. Please {rest}")
    if not (trusted or plan.is_known):
        raise FileExistsError(
            f"{shown} holds results of a plan with code of your own, which may have changed since: if it has not, "
            f"{going_on or f'gf.resume({str(folder)!r})'} goes on; else {rest}"
        )


def read_campaign(folder: str | os.PathLike) -> dict[str, Any]:
    """What `campaign.json` says.

    **Raises:** `FileNotFoundError` if there is none; `ValueError` if it is damaged.
    """
    path = pathlib.Path(folder) / CAMPAIGN
    stored = read_json(path, "a campaign")
    needed: dict[str, Any] = dict(digest=str, first_id=int, unit=int, token=str, requests=list, plan=dict,
)  # fmt: skip
    for name, kind in needed.items():
        if not isinstance(stored.get(name), kind) or isinstance(stored.get(name), bool):
            raise ValueError(
                f"{visible(shortened(str(path)))} is damaged: {name} is {shortened(repr(stored.get(name)))}"
            )
    if stored["unit"] < 1:
        raise ValueError(f"{visible(shortened(str(path)))} is damaged: its unit is {stored['unit']}")
    id_range(stored["first_id"], 1)
    return stored


def who_is_at_work(folder: str | os.PathLike) -> str | None:
    """The process that is at work in a folder, in words; `None` if none is."""
    path = pathlib.Path(folder) / LOCK
    try:
        with open(path, "r+", encoding="utf-8") as file:
            try:
                _take(file)
            except OSError:
                return file.read().strip() or "unknown"
    except OSError:
        return None
    return None


class _Lock:
    """A lock on a file, which the system releases when the process ends, however that comes about."""

    def __init__(self, path: pathlib.Path, shown: str):
        self._file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (closed by `release`)
        try:
            _take(self._file)
        except OSError:
            self._file.seek(0)
            who = visible(shortened(self._file.read().strip())) or "unknown"
            self._file.close()
            raise FolderBusy(
                f"another process ({who}) is at work in {shown}: wait for it, or choose another folder"
            ) from None
        self._file.seek(0)
        self._file.truncate()
        with contextlib.suppress(OSError):  # of a full disk
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
            self._file.flush()

    def release(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()


def _take(file: Any) -> None:
    """Locks a file, or raises `OSError` at once."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
