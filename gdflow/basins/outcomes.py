"""What became of each start: one row per start, and what the columns mean."""

import enum

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

    @property
    def message(self) -> str:
        """What it means, for people."""
        return _MESSAGES[self]

    @property
    def label(self) -> str:
        """The word that stands in tables and files."""
        return self.name.lower().replace("_", " ")


_MESSAGES = {
    Status.CERTIFIED: "the loss fell below all critical values but the lowest that the start can reach: the limit is there",
    Status.TIME_LIMIT: "not decided by t1",
    Status.STEP_LIMIT: "not decided within max_steps",
    Status.STATIONARY: "the gradient vanishes (below 1e-150) at an undecided point: critical, or too near to be told apart",
    Status.NON_FINITE: "the start or the integration is not finite",
    Status.CONVERGED: "the gradient stayed below its tolerance: converged numerically, perhaps only passing a saddle",
    Status.DIVERGING: "the weights outgrew their bound, or the steps shrank to nothing",
    Status.STRAYED: "the sign of det W changed, which the exact flow keeps: integration errors took over near its zero",
}

UNDECIDED = "undecided"

_FIELDS = [
    pa.field("id", pa.uint64(), metadata={"doc": "start id; with the key it determines the start"}),
    pa.field("status", pa.dictionary(pa.int8(), pa.string()), metadata={"doc": "how the integration ended"}),
    pa.field("verdict", pa.dictionary(pa.int8(), pa.string()), metadata={"doc": "what is certified of the limit"}),
    pa.field(
        "level", pa.int32(), metadata={"doc": "level of the limit if certified (0: minimum), else those not yet passed"}
    ),
    pa.field("time", pa.float64(), metadata={"doc": "crossing of the last level, else the time reached (flow time)"}),
    pa.field("steps", pa.int32(), metadata={"doc": "integration steps, accepted and rejected"}),
    pa.field("loss", pa.float64(), metadata={"doc": "effective loss where the integration ended"}),
    pa.field("gradient_norm", pa.float64(), metadata={"doc": "norm of the gradient there"}),
    pa.field("drift", pa.float64(), metadata={"doc": "relative drift of the conserved quantities"}),
]


def schema(num_crossings: int = 0) -> pa.Schema:
    """What the columns are and mean; `crossing_i` for every level that is timed besides the last."""
    doc = {"doc": "flow time at which the loss fell below this level; 0 if it started there, NaN if it never did"}
    extra = [pa.field(f"crossing_{i}", pa.float64(), metadata=doc) for i in range(num_crossings)]
    return pa.schema([*_FIELDS, *extra])


def is_certified(table: pa.Table) -> Bool[np.ndarray, " num"]:
    """Which rows of an outcome table hold a certified limit."""
    return pc.equal(table["status"].cast(pa.string()), Status.CERTIFIED.label).to_numpy()


def outcome_table(columns: dict[str, np.ndarray], verdicts: tuple[str, str]) -> pa.Table:
    """A table with the columns of `schema` from arrays.

    **Arguments:** `columns["status"]` holds codes of `gdflow.basins.Status`; `verdicts` are those of the certificate
    (`gdflow.certificates.LevelCertificate.verdicts`).
    """
    codes = columns["status"].astype(np.int8)
    status = pa.DictionaryArray.from_arrays(pa.array(codes), pa.array([s.label for s in Status]))
    found = np.where(codes == Status.CERTIFIED, 1 + np.minimum(columns["level"], 1), 0).astype(np.int8)
    verdict = pa.DictionaryArray.from_arrays(pa.array(found), pa.array([UNDECIDED, *verdicts]))
    arrays = {"status": status, "verdict": verdict}
    fields = schema(sum(name.startswith("crossing_") for name in columns))
    for field in fields:
        if field.name not in arrays:
            arrays[field.name] = pa.array(np.asarray(columns[field.name]), type=field.type)
    return pa.table([arrays[field.name] for field in fields], schema=fields)
