"""What is kept of a stream of outcomes: counts, histograms and the first rows, so that memory does not grow with their number."""

import os

import numpy as np
import pyarrow as pa

from gdflow.basins.outcomes import Status, outcome_table, schema
from gdflow.basins.storage import RowFile

#: Bins of the histogram of times, per factor of ten …
BINS_PER_DECADE = 64
#: … between these powers of ten; what lies outside is counted in the first or the last bin.
DECADES = (-12, 18)
#: At most so many rows are kept in memory.
MAX_ROWS = 10**6
#: Rows are written to the file in groups of about this many.
_GROUP = 2**16


class Tally:
    """Counts a stream of outcomes; keeps the rows of the first ids, and writes all of them to a file if there is one.

    **Arguments:**

    - `ids`: all ids that will come, a `range`.
    - `num_levels`: how many levels above the lowest are told apart (`K`).
    - `verdicts`: of the certificate, for the lowest level and the one above.
    - `num_crossings`: how many levels besides are timed.
    - `path`: a Parquet file for all rows, in the order in which they finish. Every group of rows is on disk once written and
      the file is closed properly on errors and interrupts: what was computed can be read. When it can't be written any more,
      the tally goes on without it.

    Fields: `num`, rows so far; `statuses`, counts by `Status`; `levels`, counts by level, `(K+1,)`, and `certified`, of
    those the ones with a certificate; `steps`, their sum, and
    `most_steps`; `largest_drift`; `times`, counts of certificate times in logarithmic bins between `edges()`; `kept`, how many
    rows are kept; `written`, how many rows are in the file, and `failure`, why not all of them are (`None` if they are).
    """

    def __init__(
        self,
        ids: range,
        num_levels: int,
        verdicts: tuple[str, str] = ("global minimum", "lower rank"),
        num_crossings: int = 0,
        path: str | os.PathLike | None = None,
    ):
        self.num = self.steps = self.most_steps = 0
        self.largest_drift = 0.0
        self.statuses = np.zeros(len(Status), dtype=np.int64)
        self.levels = np.zeros(num_levels + 1, dtype=np.int64)
        self.certified = np.zeros(num_levels + 1, dtype=np.int64)
        self.times = np.zeros(BINS_PER_DECADE * (DECADES[1] - DECADES[0]), dtype=np.int64)
        self.kept = min(len(ids), MAX_ROWS)
        self._first, self._verdicts = ids.start, verdicts
        self._schema = schema(num_crossings)
        self._rows: dict[str, np.ndarray] = {"id": np.asarray(ids[: self.kept], dtype=np.uint64)}
        self._waiting: list[pa.Table] = []
        self._file = None if path is None else RowFile(path, self._schema)
        self.failure: OSError | None = None

    def add(self, ids: np.ndarray, columns: dict[str, np.ndarray]) -> None:
        """Takes in some rows."""
        if not len(ids):
            return
        self.num += len(ids)
        self.statuses += np.bincount(columns["status"], minlength=len(self.statuses))
        self.levels += np.bincount(columns["level"], minlength=len(self.levels))
        self.steps += int(columns["steps"].sum())
        self.most_steps = max(self.most_steps, int(columns["steps"].max()))
        self.largest_drift = max(self.largest_drift, float(np.nanmax(columns["drift"], initial=0.0)))
        certified = columns["status"] == Status.CERTIFIED
        self.certified += np.bincount(columns["level"][certified], minlength=len(self.certified))
        times = columns["time"][certified]
        with np.errstate(divide="ignore"):
            bins = np.floor((np.log10(times) - DECADES[0]) * BINS_PER_DECADE)
        self.times += np.bincount(np.clip(bins, 0, len(self.times) - 1).astype(int), minlength=len(self.times))
        position = (ids - np.uint64(self._first)).astype(np.int64)
        early = position < self.kept
        for name, column in columns.items():
            if name not in self._rows:
                self._rows[name] = np.zeros(self.kept, dtype=column.dtype)
            self._rows[name][position[early]] = column[early]
        if self._file is not None and self.failure is None:
            self._waiting.append(outcome_table({"id": ids, **columns}, self._verdicts))
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

    def table(self) -> pa.Table:
        """The kept rows, in the order of their ids."""
        return outcome_table(self._rows, self._verdicts)

    @staticmethod
    def edges() -> np.ndarray:
        """Edges of the bins of `times`."""
        return np.logspace(*DECADES, BINS_PER_DECADE * (DECADES[1] - DECADES[0]) + 1)

    def time_quantile(self, q: float) -> float | None:
        """A quantile of the certificate times, to the width of a bin (3.7 %); `None` if there are none."""
        total = self.times.sum()
        if not total:
            return None
        k = int(np.searchsorted(np.cumsum(self.times), max(q * total, 1)))
        low, high = self.edges()[[k, k + 1]]
        return float(np.sqrt(low * high))
