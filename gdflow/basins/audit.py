"""The audit: some starts anew, with another method at tighter tolerances; what counts is in `gdflow.basins.intervals`."""

from collections.abc import Sequence

import numpy as np

from gdflow.basins.intervals import Audit, contradicts
from gdflow.basins.outcomes import DECIDED
from gdflow.basins.starts import AbstractStarts, selection_seed


def chosen_ids(starts: AbstractStarts, ids: range, num: int) -> list[int]:
    """Which starts to audit: a simple random sample, fixed by the plan but independent of the starts."""
    rng = np.random.default_rng([0x61756469, *selection_seed(starts)])
    return [ids[int(i)] for i in np.sort(rng.choice(len(ids), num, replace=False))]


class Watch:
    """The labels of some starts, picked from a stream of outcomes: the limit (−1: none), and the highest not excluded."""

    def __init__(self, ids: Sequence[int]):
        self.ids = list(ids)
        self.labels: dict[int, tuple[int, int]] = {}
        self.ids_array = np.sort(np.asarray(self.ids, dtype=np.uint64))

    def first(self, num: int) -> "Watch":
        """The labels of the first `num` of the watched ids alone."""
        some = Watch(self.ids[:num])
        some.labels = {i: self.labels[i] for i in some.ids}
        return some

    def add(self, ids: np.ndarray, columns: dict[str, np.ndarray]) -> None:
        """Takes in some rows."""
        found = np.isin(ids, self.ids_array)
        decided = np.isin(columns["status"][found], DECIDED)
        limits = np.where(decided, columns["limit"][found], -1).tolist()
        labels = zip(limits, columns["highest"][found].tolist(), strict=True)
        self.labels.update(zip(ids[found].tolist(), labels, strict=True))


def compare(watched: Watch, again: Watch, method: str) -> Audit:
    """What a new run of the watched starts, by another method, says of their labels."""
    flipped = tuple(i for i in watched.ids if contradicts(watched.labels[i], again.labels[i]))
    newly = sum(again.labels[i][0] >= 0 and watched.labels[i][0] < 0 for i in watched.ids)
    return Audit(len(watched.ids), len(flipped), method, flipped, newly)
