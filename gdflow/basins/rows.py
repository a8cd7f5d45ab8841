"""The rows of a run: the first ones in memory, all of them in a file if there is one."""

import os
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from gdflow.basins.plan import Plan
from gdflow.basins.storage import RowFile

#: At most so many rows are kept in memory.
MAX_ROWS = 10**6
#: Rows are written to the file in groups of about this many.
_GROUP = 2**16


class Rows:
    """Keeps the rows of the first ids, and writes all of them to a file if there is one.

    **Arguments:**

    - `plan`: whose rows they are; `ids`: all that will come, a `range`.
    - `path`: a Parquet file for all rows, in the order in which they finish. Every group of rows is on disk once written and
      the file is closed properly on errors and interrupts: what was computed can be read. When it can't be written any more,
      the run goes on without it.

    Fields: `kept`, how many rows are kept; `written`, how many are in the file, and `failure`, why not all of them are (`None`
    if they are).
    """

    def __init__(self, plan: Plan, ids: range, path: str | os.PathLike | None = None):
        self.plan = plan
        self.kept = min(len(ids), MAX_ROWS)
        self._first = ids.start
        self._columns: dict[str, np.ndarray] = {"id": np.asarray(ids[: self.kept], dtype=np.uint64)}
        self._waiting: list[pa.Table] = []
        self._file = None if path is None else RowFile(path, plan.schema)
        self.failure: OSError | None = None

    def add(self, ids: np.ndarray, columns: dict[str, np.ndarray]) -> None:
        """Takes in some rows."""
        if not len(ids):
            return
        position = (ids - np.uint64(self._first)).astype(np.int64)
        early = position < self.kept
        for name, column in columns.items():
            if name not in self._columns:
                self._columns[name] = np.zeros(self.kept, dtype=column.dtype)
            self._columns[name][position[early]] = column[early]
        if self._file is not None and self.failure is None:
            # Limits that are being found have no names yet.
            names = [f"found {k}" for k in range(columns["limit"].max() + 1)] if self.plan.discovers else None
            self._waiting.append(self.plan.table({"id": ids, **columns}, names))
            if sum(map(len, self._waiting)) >= _GROUP:
                self._write()

    def _write(self) -> None:
        if self._file is not None and self._waiting:
            try:
                self._file.append(pa.concat_tables(self._waiting))
            except OSError as error:
                self.failure = error
            self._waiting = []

    def close(self) -> None:
        """Finishes the file."""
        if self._file is not None:
            self._write()
            try:
                self._file.close()
            except OSError as error:
                self.failure = self.failure or error

    @property
    def written(self) -> int:
        """How many rows are in the file."""
        return 0 if self._file is None else self._file.rows

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """The kept rows as arrays, `id` among them, in the order of their ids."""
        return self._columns

    def table(self, labels: Sequence[str] | None = None) -> pa.Table:
        """The kept rows, in the order of their ids. **Arguments:** `labels`: of limits that were found in the run."""
        return self.plan.table(self._columns, labels)
