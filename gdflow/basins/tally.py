"""What is counted of a stream of outcomes, so that memory does not grow with their number; tallies of disjoint ids add up."""

from typing import Any

import numpy as np

from gdflow.basins.outcomes import DECIDED, Status

#: Bins of the histogram of times, per factor of ten …
BINS_PER_DECADE = 64
#: … between these powers of ten; what lies outside is counted in the first or the last bin.
DECADES = (-12, 18)
_NUMBERS = ("num", "steps", "most_steps", "largest_drift")
_ARRAYS = ("statuses", "certified", "located", "reached", "undecided", "proved")


class Tally:
    """Counts outcomes.

    **Arguments:** `num_limits`: how many limits the verdict tells apart; `num_methods`: by how many methods starts are tried.

    Fields: `num`, starts so far; `statuses`, counts by `Status`; `certified` and `located`, by limit, of the starts with one;
    `reached`, by limit, of those that were at one and may leave it; `undecided`, of all without a limit, but for those on a
    cycle, by the highest limit that is not excluded; `steps`, their sum, and `most_steps`; `largest_drift`, if drift is
    recorded; `proved`, by method and limit, if verdicts are proved; `times`, counts of the times of decision in logarithmic bins
    between `edges()`.
    """

    def __init__(self, num_limits: int, num_methods: int = 1):
        self.num = self.steps = self.most_steps = 0
        self.largest_drift = 0.0
        self.statuses = np.zeros(len(Status), dtype=np.int64)
        self.certified = np.zeros(num_limits, dtype=np.int64)
        self.located = np.zeros(num_limits, dtype=np.int64)
        self.reached = np.zeros(num_limits, dtype=np.int64)
        self.undecided = np.zeros(max(num_limits, 1), dtype=np.int64)
        self.proved = np.zeros((num_methods, num_limits), dtype=np.int64)
        self.times = np.zeros(BINS_PER_DECADE * (DECADES[1] - DECADES[0]), dtype=np.int64)

    def add(self, columns: dict[str, np.ndarray]) -> None:
        """Takes in some rows."""
        status = columns["status"]
        if not len(status):
            return
        certified, located = status == Status.CERTIFIED, status == Status.LOCATED
        decided = np.isin(status, DECIDED)
        self.num += len(status)
        self.statuses += np.bincount(status, minlength=len(self.statuses))
        self.certified += np.bincount(columns["limit"][certified], minlength=len(self.certified))
        self.located += np.bincount(columns["limit"][located], minlength=len(self.located))
        reached = columns["limit"][status == Status.REACHED]
        self.reached += np.bincount(reached, minlength=len(self.reached))
        open_ = ~decided & (status != Status.CYCLING)  # a cycle is no limit
        self.undecided += np.bincount(columns["highest"][open_], minlength=len(self.undecided))
        self.steps += int(columns["steps"].sum())
        self.most_steps = max(self.most_steps, int(columns["steps"].max()))
        if "proved" in columns:
            proved = certified & (columns["proved"] == 1)
            attempt = columns["attempt"][proved] if "attempt" in columns else np.zeros(proved.sum())
            if not np.isin(attempt, np.arange(len(self.proved))).all():
                raise ValueError("there is an attempt that is none of the plan's methods")
            attempt = attempt.astype(int)
            np.add.at(self.proved, (attempt, columns["limit"][proved]), 1)
        if "drift" in columns:
            self.largest_drift = max(self.largest_drift, float(np.nanmax(columns["drift"], initial=0.0)))
        with np.errstate(divide="ignore"):
            bins = np.floor((np.log10(columns["time"][decided]) - DECADES[0]) * BINS_PER_DECADE)
        self.times += np.bincount(np.clip(bins, 0, len(self.times) - 1).astype(int), minlength=len(self.times))

    def __add__(self, other: "Tally") -> "Tally":
        """The tally of both sets of starts, which have no id in common."""
        both = Tally(len(self.certified), len(self.proved))
        for name in ("num", "steps", "statuses", "certified", "located", "reached", "undecided", "proved", "times"):
            setattr(both, name, getattr(self, name) + getattr(other, name))
        for name in ("most_steps", "largest_drift"):
            setattr(both, name, max(getattr(self, name), getattr(other, name)))
        return both

    def record(self) -> dict[str, Any]:
        """The tally as JSON can hold it."""
        used = np.flatnonzero(self.times).tolist()
        arrays = {name: getattr(self, name).tolist() for name in _ARRAYS}
        return (
            {name: getattr(self, name) for name in _NUMBERS}
            | arrays
            | {"times": [[k, int(self.times[k])] for k in used]}
        )

    @classmethod
    def from_record(cls, record: dict[str, Any], num_limits: int, num_methods: int = 1) -> "Tally":
        """The tally that was recorded; `ValueError` if it is of other limits or methods, or cannot be."""
        tally = cls(num_limits, num_methods)
        for name in _NUMBERS:
            setattr(tally, name, type(getattr(tally, name))(record[name]))
        for name in _ARRAYS:
            array = np.array(record[name], dtype=np.int64).reshape(np.shape(getattr(tally, name)))
            setattr(tally, name, array)
        for k, count in record["times"]:
            tally.times[k] = count
        if tally.statuses.sum() != tally.num or any((getattr(tally, name) < 0).any() for name in (*_ARRAYS, "times")):
            raise ValueError("counts that do not add up")
        return tally

    def possible(self, limit: int) -> int:
        """For how many starts a limit is not excluded."""
        return int(self.certified[limit] + self.located[limit] + np.sum(self.undecided[limit:]))

    def possible_by_proof(self, limit: int) -> int:
        """For how many starts no proof excludes a limit."""
        return int(self.num - self.proved.sum() + self.proved[:, limit].sum())

    @staticmethod
    def edges() -> np.ndarray:
        """Edges of the bins of `times`."""
        return np.logspace(*DECADES, BINS_PER_DECADE * (DECADES[1] - DECADES[0]) + 1)

    def time_quantile(self, q: float) -> float | None:
        """A quantile of the times of decision, to the width of a bin (3.7 %); `None` if there are none."""
        total = self.times.sum()
        if not total:
            return None
        k = int(np.searchsorted(np.cumsum(self.times), max(q * total, 1)))
        low, high = self.edges()[[k, k + 1]]
        return float(np.sqrt(low * high))
