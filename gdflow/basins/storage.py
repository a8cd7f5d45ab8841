"""Results on disk: `outcomes.parquet` (one row per start) and `summary.json` (numbers and all it takes to repeat them).

What was computed is worth more than where it was to go: a disk that fills up or a folder that is removed while a computation
runs does not end it, and rows that were written stay readable.
"""

import contextlib
import errno
import json
import os
import pathlib
import tempfile
import warnings
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gdflow.tables import shortened, visible

OUTCOMES, SUMMARY = "outcomes.parquet", "summary.json"
#: Rows on their way; left behind, readable, by a run that was interrupted.
PARTIAL = OUTCOMES + ".partial"
#: Bytes kept free for the directory of a Parquet file, which comes last: so many, and so many per group and column.
_DIRECTORY = (2**16, 2**9)


class StorageWarning(UserWarning):
    """Results could not be written where they were to go; the message says why, and where they are."""


def prepare_folder(folder: str | os.PathLike, names: tuple[str, ...], *, overwrite: bool = False) -> pathlib.Path:
    """Makes a folder for results, before any computation, and makes sure that they can be written there.

    **Raises:** `ValueError` for names that no folder can have; `FileExistsError` if it holds one of the named files and
    `overwrite` is off; `NotADirectoryError` if it is a file; `PermissionError` if it can't be made or written to.
    """
    if not os.fspath(folder):
        raise ValueError("the name of the output folder is empty; for the current folder it is a dot")
    if "\0" in os.fspath(folder):
        raise ValueError(f"{visible(str(folder))} cannot be an output folder: it holds a null character")
    folder = pathlib.Path(folder)
    shown = visible(shortened(str(folder)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise NotADirectoryError(f"{shown} cannot be an output folder: it, or a part of its path, is a file") from None
    except OSError as error:
        raise PermissionError(f"the output folder {shown} cannot be made: {error.strerror}") from None
    except RecursionError:
        raise PermissionError(f"the output folder {shown} cannot be made: it is nested too deeply") from None
    try:
        # Of a longer name than the results will have.
        with tempfile.NamedTemporaryFile(dir=folder, prefix=max(names, key=len) + ".partial"):
            present = [name for name in names if (folder / name).exists()]
    except OSError as error:
        raise PermissionError(f"the output folder {shown} cannot be written to: {error.strerror}") from None
    if present and not overwrite:
        raise FileExistsError(
            f"{shown} already holds {', '.join(present)} of another run: choose another folder, or replace them with "
            "overwrite=True (--overwrite)"
        )
    return folder


class RowFile:
    """A Parquet file that grows by groups of rows and is readable whenever it is closed, even if the disk is full.

    Parquet's directory comes last, and without it nothing can be read. So before a group is written, room is taken for it
    and for the directory of all groups; without that room `append` raises `OSError` and writes nothing.
    """

    def __init__(self, path: str | os.PathLike, schema: pa.Schema):
        self.rows = 0
        self._directory, self._per_group = _DIRECTORY[0], _DIRECTORY[1] * len(schema)
        self._file = open(path, "wb")  # noqa: SIM115 (closed by `close`)
        try:
            self._reserve(0)
        except OSError:
            self._file.close()
            raise
        self._writer = pq.ParquetWriter(self._file, schema, compression="zstd")

    def _reserve(self, size: int) -> None:
        if not hasattr(os, "posix_fallocate"):
            return  # here a disk that is full may leave a file without a directory
        try:
            os.posix_fallocate(self._file.fileno(), self._file.tell(), size + self._directory)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # not on this file system
                raise OSError(error.errno, error.strerror, self._file.name) from None

    def append(self, table: pa.Table) -> None:
        """Writes a group of rows; raises `OSError`, and leaves the file as it is, if there is no room for it."""
        self._directory += self._per_group
        # What does not compress gets longer by a header for every page and column.
        self._reserve(table.nbytes + table.nbytes // 8 + self._per_group)
        self._writer.write_table(table)
        self.rows += len(table)

    def close(self) -> None:
        """Finishes the file; raises `OSError` if that fails."""
        with contextlib.closing(self._file):
            self._writer.close()
            self._file.truncate(self._file.tell())


def write_table(table: pa.Table, folder: pathlib.Path) -> None:
    """Writes `outcomes.parquet`, complete or not at all."""
    partial = folder / PARTIAL
    pq.write_table(table, partial, compression="zstd")
    os.replace(partial, folder / OUTCOMES)


def read_summary(where: str | os.PathLike) -> dict[str, Any]:
    """The numbers and the plan of a run.

    **Arguments:** `where`: `summary.json`, or the folder that holds it.

    **Raises:** `FileNotFoundError` if there is none, `ValueError` if it is no summary of a run.
    """
    path = pathlib.Path(where)
    path = path / SUMMARY if path.is_dir() else path
    shown = visible(shortened(str(path)))
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"there are no results of a run: {shown} does not exist") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{shown} is not a summary of a run: {shortened(str(error))}") from None
    number = (int, float)
    needed: dict[str, Any] = dict(num=int, first_id=int, confidence=number, audit=(dict, type(None)), lanes=int,
        seconds=number, plan=dict, digest=str)  # fmt: skip
    missing = [name for name in needed if name not in summary] if isinstance(summary, dict) else list(needed)
    if missing:
        raise ValueError(f"{shown} is not a summary of a run: it has no {', '.join(missing)}")
    for name, kind in needed.items():
        if not isinstance(summary[name], kind) or isinstance(summary[name], bool):
            raise ValueError(f"{shown} is not a summary of a run: {name} is {shortened(repr(summary[name]))}")
    return summary


def write_summary(summary: dict[str, Any], folder: pathlib.Path) -> None:
    """Writes `summary.json`, complete or not at all."""
    partial = folder / (SUMMARY + ".partial")
    partial.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, folder / SUMMARY)


def keep_results(
    folder: pathlib.Path, table: pa.Table, summary: dict[str, Any], *, rows_in_file: int | None, failure: OSError | None
) -> None:
    """Writes the results into their folder or, if that fails, into a new temporary one, with a `StorageWarning`.

    **Arguments:**

    - `table`: the rows in memory. If they are not all, `rows_in_file` says how many are in the folder's file of rows on their
      way, which then becomes `outcomes.parquet`; `None` if `table` holds them all.
    - `failure`: why that file is not complete, if it is not.
    """
    rows = folder / PARTIAL
    try:
        if failure is not None:
            raise failure
        if rows_in_file is not None:
            rows = rows.replace(folder / OUTCOMES)
        else:
            write_table(table, folder)
        write_summary(summary, folder)
        return
    except OSError as error:
        why = error.strerror or visible(shortened(str(error)))
    message = f"the results could not be written to {visible(str(folder))}{os.sep}: {why}."
    try:
        rescue = pathlib.Path(tempfile.mkdtemp(prefix="gdflow-"))
        write_summary(summary, rescue)
        write_table(table, rescue)
        some = "all rows" if rows_in_file is None else f"the first {len(table)} rows"
        message += f" The estimate is complete; its summary and {some} are in {rescue}{os.sep} instead"
    except OSError as error:
        message += f" The estimate is complete but held in memory alone: no temporary folder either ({error})"
    if rows_in_file and rows.exists():
        message += f"; {rows_in_file} rows are in {visible(str(rows))}"
    warnings.warn(message + ".", StorageWarning, stacklevel=3)
