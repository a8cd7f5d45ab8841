"""The rows of a run as they come: gathered into pieces of consecutive ids, the first of them kept in memory."""

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from gdflow.basins.plan import Plan
from gdflow.ids import as_uint64

#: At most so many rows are kept in memory.
MAX_ROWS = 10**6

Columns = dict[str, np.ndarray]


class Gathering:
    """Gathers the rows of some pieces of ids, which come in any order; hands on each piece as soon as it is whole.

    **Arguments:** `pieces`: ranges without an id in common, in order; `done`: called with a piece and its rows, in the order of
    the ids.
    """

    def __init__(self, pieces: Sequence[range], done: Callable[[range, Columns], None]):
        self._pieces, self._done = pieces, done
        self._firsts = np.array([piece.start for piece in pieces], dtype=np.uint64)
        self._open: dict[int, tuple[np.ndarray, Columns]] = {}

    def add(self, ids: np.ndarray, columns: Columns) -> None:
        """Takes in some rows."""
        if not len(ids):
            return
        where = np.searchsorted(self._firsts, ids, side="right") - 1
        for k in np.unique(where).tolist():
            piece, mine = self._pieces[k], where == k
            if k not in self._open:
                empty = {name: np.zeros((len(piece), *x.shape[1:]), x.dtype) for name, x in columns.items()}
                self._open[k] = np.zeros(len(piece), bool), empty
            there, rows = self._open[k]
            position = (ids[mine] - np.uint64(piece.start)).astype(np.int64)
            there[position] = True
            for name, column in columns.items():
                rows[name][position] = column[mine]
            if there.all():
                del self._open[k]
                self._done(piece, rows)

    def finish(self) -> None:
        """Hands on what there is without a gap from the beginning of pieces that are not whole."""
        for k in sorted(self._open):
            there, rows = self._open.pop(k)
            count = len(there) if there.all() else int(np.argmin(there))
            if count:
                piece = self._pieces[k]
                self._done(piece[:count], {name: column[:count] for name, column in rows.items()})


class Rows:
    """Keeps the rows of the first ids.

    **Arguments:** `plan`: whose rows they are; `ids`: all that may come, a `range`.

    Field: `kept`, how many rows are kept at most.
    """

    def __init__(self, plan: Plan, ids: range):
        self.plan = plan
        self.kept = min(len(ids), MAX_ROWS)
        self._first = ids.start
        self._ids = as_uint64(ids[: self.kept])
        self._columns: Columns = {}

    def add(self, ids: range, columns: Columns) -> None:
        """Takes in the rows of a piece."""
        first = ids.start - self._first
        count = min(len(ids), self.kept - first)
        if count <= 0:
            return
        for name, column in columns.items():
            if name not in self._columns:
                self._columns[name] = np.zeros(self.kept, dtype=column.dtype)
            self._columns[name][first : first + count] = column[:count]

    def part(self, ids: range) -> Columns:
        """The kept rows of some ids as arrays, `id` among them."""
        first = ids.start - self._first
        return {name: x[first : first + len(ids)] for name, x in {"id": self._ids, **self._columns}.items()}

    def table(self, num: int, labels: Sequence[str] | None = None) -> pa.Table:
        """The first `num` rows, of those kept. **Arguments:** `labels`: of limits that were found in the run."""
        return self.plan.table(self.part(range(self._first, self._first + min(num, self.kept))), labels)
