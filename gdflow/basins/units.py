"""Units: the rows of consecutive starts as one Parquet file, which says whose they are and whether it is whole.

A file is written beside and renamed, so that it is there as a whole or not at all. It holds, as metadata of Parquet, the digest
of its plan, its ids, the versions that computed it, its tally, and a checksum: the SHA-256 of all bytes of the file, with zeros
in the place of the checksum. So a file that was cut off, changed by a single bit, or is of another plan is told from a good one,
and pandas, polars or DuckDB read it as any other.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import re
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gdflow.basins.catalogue import Catalogue, FoundLimit, limit_labels
from gdflow.basins.outcomes import outcome_columns
from gdflow.basins.plan import Plan
from gdflow.basins.tally import Tally
from gdflow.ids import as_uint64
from gdflow.records import record, restore
from gdflow.tables import shortened

#: A unit computes with about so many numbers (starts times numbers of a gradient), which takes seconds to a minute.
_NUMBERS = 2**24
#: … and has so many starts.
_LEAST, _MOST = 2**6, 2**17
#: Proofs, and searches for limits, cost so many times as much.
_DEARER = 4
_HEAD, _CHECKSUM = b"gdflow", b"checksum"
_MARK, _BLANK = b"sha256:", b"0" * 64
_NAME = re.compile(r"(\d{20})-(\d{20})\.parquet")
_PARTIAL = ".partial"
#: Units are looked at by so many threads: reading and hashing leave Python's lock.
_READERS = 4


class DamagedUnit(ValueError):
    """A file that is not a whole unit of the plan; the message says why."""


def default_size(plan: Plan) -> int:
    """How many starts make a unit, a power of two: what a crash can cost is a minute at most."""
    numbers = plan.problem.objective.numbers(plan.starts.num_parameters) * (_DEARER if plan.again else 1)
    return 2 ** int(np.log2(np.clip(_NUMBERS // numbers, _LEAST, _MOST)))


def cut(ids: range, size: int) -> Iterator[range]:
    """The ids in pieces that end where a multiple of the size begins: the same pieces whatever range they are of."""
    first = ids.start
    while first < ids.stop:
        end = min(first - first % size + size, ids.stop)
        yield range(first, end)
        first = end


def name(ids: range) -> str:
    """Of the file: its first and last id."""
    return f"{ids[0]:020d}-{ids[-1]:020d}.parquet"


@dataclasses.dataclass(frozen=True)
class Unit:
    """What a unit says of itself: its `path` (`None` in memory), `ids`, `tally`, and the `limits` that its rows count, if limits
    are found in the run."""

    path: pathlib.Path | None
    ids: range
    tally: Tally
    limits: tuple[FoundLimit, ...] | None = None


def own_limits(
    catalogue: Catalogue | None, ids: range, columns: dict[str, np.ndarray]
) -> tuple[tuple[FoundLimit, ...] | None, dict[str, np.ndarray]]:
    """The limits of these rows, and the rows with their numbers among them; no limits, and the rows, without a catalogue."""
    if catalogue is None:
        return None, columns
    limits, columns = catalogue.sorted({"id": as_uint64(ids), **columns})
    del columns["id"]
    return limits, columns


# -- writing -----------------------------------------------------------------------------------------------------------


def encode(plan: Plan, ids: range, columns: dict[str, np.ndarray], limits: Sequence[FoundLimit] | None) -> bytes:
    """The file.

    **Arguments:** `columns`: rows in the order of the ids, without these; `limits`: those that the rows count.
    """
    labels = plan.verdict.labels if limits is None else limit_labels(limits)
    table = plan.table({"id": as_uint64(ids), **columns}, labels)
    tally = Tally(len(labels), len(plan.methods))
    tally.add(columns)
    head = {
        "plan": plan.digest,
        "first": ids.start,
        "num": len(ids),
        "versions": plan.record["versions"],
        "tally": tally.record(),
        "limits": None if limits is None else [record(limit) for limit in limits],
    }
    out = io.BytesIO()
    with pq.ParquetWriter(out, table.schema, compression="zstd") as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({_HEAD: json.dumps(head), _CHECKSUM: (_MARK + _BLANK).decode()})
    data = out.getvalue()
    place = data.rindex(_MARK + _BLANK) + len(_MARK)
    return data[:place] + hashlib.sha256(data).hexdigest().encode() + data[place + len(_BLANK) :]


def write(folder: pathlib.Path, ids: range, data: bytes) -> pathlib.Path:
    """Writes a unit into a folder, complete or not at all; raises `OSError` if that fails."""
    path = folder / name(ids)
    partial = folder / f".{path.name}.{secrets.token_hex(4)}{_PARTIAL}"
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    return path


def clean(folder: pathlib.Path) -> None:
    """Removes what writers that were killed have left behind."""
    for path in folder.glob(f".*{_PARTIAL}"):
        with contextlib.suppress(OSError):
            path.unlink()


# -- reading -----------------------------------------------------------------------------------------------------------


def listed(folder: pathlib.Path) -> list[pathlib.Path]:
    """All there is in a folder of units, but what is hidden, in the order of the ids."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []


def check(path: pathlib.Path, plan: Plan) -> Unit:
    """What a unit says, after a look at every byte of it; `DamagedUnit` if it is damaged, or not the plan's."""
    _named(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DamagedUnit(f"it cannot be read: {error.strerror}") from None
    return _head(path, plan, _whole(data))


def peek(path: pathlib.Path, plan: Plan) -> Unit:
    """What a unit says, from its metadata alone: quick, but of the rows' bytes nothing is known then."""
    _named(path)
    with open(path, "rb") as file:  # by name PyArrow would take ~ for a home
        return _head(path, plan, file)


def read(unit: Unit, plan: Plan) -> dict[str, Any]:
    """The rows of a unit as arrays, `id` among them; `DamagedUnit` if it is damaged."""
    assert unit.path is not None
    try:
        data = unit.path.read_bytes()
    except OSError as error:
        raise DamagedUnit(f"{unit.path.name} cannot be read: {error.strerror}") from None
    return _columns(_whole(data), unit.ids)


def decode(data: bytes, plan: Plan) -> tuple[Unit, dict[str, Any]]:
    """A unit that is not in a file, and its rows."""
    unit = _head(None, plan, _whole(data))
    return unit, _columns(io.BytesIO(data), unit.ids)


def is_name(text: str) -> bool:
    """Whether a file of this name may be a unit."""
    return _NAME.fullmatch(text) is not None


def survey(folder: pathlib.Path, plan: Plan, *, whole: bool) -> Iterator[tuple[pathlib.Path, "Unit | DamagedUnit"]]:
    """All there is in a folder of units, in the order of the ids, each with what it says, or why it is no unit of the plan beside
    the others. **Arguments:** `whole`: look at every byte, not at metadata alone."""
    paths, end = listed(folder), -1

    def look(path: pathlib.Path) -> Unit | DamagedUnit:
        try:
            return (check if whole else peek)(path, plan)
        except DamagedUnit as damaged:
            return damaged

    with concurrent.futures.ThreadPoolExecutor(_READERS) as executor:
        for path, found in zip(paths, executor.map(look, paths), strict=True):
            if isinstance(found, Unit):
                if found.ids.start < end:
                    found = DamagedUnit("its starts are in another unit, too")
                else:
                    end = found.ids.stop
            yield path, found


def _named(path: pathlib.Path) -> range:
    match = _NAME.fullmatch(path.name)
    if match is None or not path.is_file():
        raise DamagedUnit("it is no unit: those are files named FIRST-LAST.parquet")
    return range(int(match[1]), int(match[2]) + 1)


def _whole(data: bytes) -> io.BytesIO:
    """The bytes as a file, if their checksum is right."""
    place = data.rfind(_MARK) + len(_MARK)
    stored = data[place : place + len(_BLANK)]
    if place < len(_MARK) or len(stored) < len(_BLANK):
        raise DamagedUnit("it has no checksum: it was cut off, or is no unit")
    blank = hashlib.sha256(data[:place])
    blank.update(_BLANK)
    blank.update(data[place + len(_BLANK) :])
    if blank.hexdigest().encode() != stored:
        raise DamagedUnit("its checksum is wrong: bytes were changed or lost")
    return io.BytesIO(data)


def _head(path: pathlib.Path | None, plan: Plan, source: Any) -> Unit:
    try:
        with pq.ParquetFile(source) as file:
            rows = file.metadata.num_rows
            head = json.loads((file.metadata.metadata or {})[_HEAD])
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise DamagedUnit(f"its metadata cannot be read: {shortened(str(error))}") from None
    try:
        if head["plan"] != plan.digest:
            raise DamagedUnit("it is of another plan")
        ids = range(head["first"], head["first"] + head["num"])
        if path is not None and _named(path) != ids:
            raise DamagedUnit(f"it holds the starts {ids[0]} … {ids[-1]}, and its name says otherwise")
        limits = None if head["limits"] is None else tuple(restore(limit) for limit in head["limits"])
        labels = plan.verdict.labels if limits is None else limits
        tally = Tally.from_record(head["tally"], len(labels), len(plan.methods))
    except DamagedUnit:
        raise
    except Exception as error:  # of whatever the damage leads to
        raise DamagedUnit(f"its metadata are damaged: {type(error).__name__}: {shortened(str(error))}") from None
    if not rows == len(ids) == tally.num:
        raise DamagedUnit(f"it holds {rows} rows, and should {len(ids)}")
    return Unit(path, ids, tally, limits)


def _columns(source: Any, ids: range) -> dict[str, Any]:
    try:
        columns = outcome_columns(pq.read_table(source))
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise DamagedUnit(f"its rows cannot be read: {shortened(str(error))}") from None
    if not np.array_equal(columns["id"], as_uint64(ids)):
        raise DamagedUnit("its rows are not those of its ids")
    return columns
