"""What became of each start: one row per start, and what the columns mean."""

import enum
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool


class Status(enum.IntEnum):
    """How the integration of one start ended."""

    CERTIFIED = 0
    TIME_LIMIT = 1
    STEP_LIMIT = 2
    STATIONARY = 3
    NON_FINITE = 4
    CONVERGED = 5
    DIVERGING = 6
    STRAYED = 7
    LOCATED = 8
    CYCLING = 9
    REACHED = 10

    @property
    def message(self) -> str:
        """What it means, for people."""
        return _MESSAGES[self]

    @property
    def label(self) -> str:
        """The word that stands in tables and files."""
        return self.name.lower().replace("_", " ")


_MESSAGES = {
    Status.CERTIFIED: "the verdict is that the limit is known",
    Status.TIME_LIMIT: "not decided by t1",
    Status.STEP_LIMIT: "not decided within max_steps",
    Status.STATIONARY: "the gradient vanishes (below 1e-150) at an undecided point: critical, or too near to be told apart",
    Status.NON_FINITE: "the start or the integration is not finite",
    Status.CONVERGED: "the gradient stayed below its tolerance: converged numerically, perhaps only passing a saddle",
    Status.DIVERGING: "the weights outgrew their bound, or the steps shrank to nothing",
    Status.LOCATED: "converged numerically, at a limit; without a proof that it is the limit of this start",
    Status.REACHED: "the gradient became small at a limit, but with these steps it is not stable, or that is not known: the "
    "iterates may leave it again",
    Status.CYCLING: "the iterates repeat, to 10⁻⁸ of a step: they go round a cycle, not to a limit",
    Status.STRAYED: "withdrawn: integration errors carried the start across det W = 0, which its exact flow does not cross",
}

#: With these a start has a limit.
DECIDED = (Status.CERTIFIED, Status.LOCATED)

UNDECIDED = "undecided"

_FIELDS = [
    pa.field("id", pa.uint64(), metadata={"doc": "start id; with the plan it determines the start"}),
    pa.field("status", pa.dictionary(pa.int8(), pa.string()), metadata={"doc": "how the start ended"}),
    pa.field("verdict", pa.dictionary(pa.int16(), pa.string()), metadata={"doc": "what is claimed of the limit"}),
    pa.field(
        "limit",
        pa.int32(),
        metadata={
            "doc": "the limit, or where one was reached that one: its level, or its number among those found (0: lowest); null "
            "where undecided"
        },
    ),
    pa.field(
        "highest",
        pa.int32(),
        metadata={"doc": "the highest limit that is not excluded, in the order of losses: the own one if decided"},
    ),
    pa.field("time", pa.float64(), metadata={"doc": "flow time at which the limit was decided, else the time reached"}),
    pa.field("steps", pa.int32(), metadata={"doc": "steps, accepted and rejected"}),
    pa.field("loss", pa.float64(), metadata={"doc": "effective loss where the integration ended"}),
    pa.field("gradient_norm", pa.float64(), metadata={"doc": "norm of the gradient there"}),
]


def schema(extra: Mapping[str, str] | None = None) -> pa.Schema:
    """What the columns are and mean. **Arguments:** `extra`: names and meanings of the riders' columns."""
    riders = [pa.field(name, pa.float64(), metadata={"doc": doc}) for name, doc in (extra or {}).items()]
    return pa.schema([*_FIELDS, *riders])


def is_decided(table: pa.Table) -> Bool[np.ndarray, " num"]:
    """Which rows of an outcome table hold a limit, certified or located."""
    status = table["status"].cast(pa.string())
    return pc.is_in(status, value_set=pa.array([status.label for status in DECIDED])).to_numpy()


def outcome_table(columns: Mapping[str, np.ndarray], labels: Sequence[str], fields: pa.Schema) -> pa.Table:
    """A table from arrays.

    **Arguments:** `columns["status"]` holds codes of `gdflow.basins.Status`, `columns["limit"]` −1 for none; `labels` are those
    of the verdict; `fields`: the `schema`.
    """
    status = columns["status"].astype(np.int8)
    limit = np.asarray(columns["limit"], np.int32)
    arrays = {
        "status": pa.DictionaryArray.from_arrays(pa.array(status), pa.array([s.label for s in Status])),
        "verdict": pa.DictionaryArray.from_arrays(
            pa.array((1 + limit).astype(np.int16)), pa.array([UNDECIDED, *labels])
        ),
        "limit": pa.array(limit, mask=limit < 0),
    }
    for field in fields:
        if field.name not in arrays:
            arrays[field.name] = pa.array(np.asarray(columns[field.name]), type=field.type)
    return pa.table([arrays[field.name] for field in fields], schema=fields)


def outcome_columns(table: pa.Table) -> dict[str, np.ndarray]:
    """The arrays that `outcome_table` makes a table of."""
    columns = {
        name: table[name].to_numpy() for name in table.column_names if name not in ("status", "verdict", "limit")
    }
    codes = pc.index_in(table["status"].cast(pa.string()), value_set=pa.array([status.label for status in Status]))
    if codes.null_count:
        raise ValueError("there is a status that means nothing")
    columns["status"] = codes.to_numpy()
    columns["limit"] = pc.fill_null(table["limit"], -1).to_numpy()
    return columns
