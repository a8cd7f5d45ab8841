"""What is known of the starts of a run so far: counted from the first on without a gap, the first rows kept."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from gdflow.basins import units
from gdflow.basins.audit import Watch
from gdflow.basins.campaign import Campaign
from gdflow.basins.catalogue import Catalogue, FoundLimit, limit_labels
from gdflow.basins.intervals import verdict_interval
from gdflow.basins.outcomes import DECIDED
from gdflow.basins.plan import Plan
from gdflow.basins.rows import Columns, Rows
from gdflow.basins.tally import Tally
from gdflow.basins.units import Unit
from gdflow.ids import as_uint64

_ANY = np.iinfo(np.int32).max


class Ledger:
    """Takes in units as they come, new ones and those of a campaign.

    **Arguments:** `plan`: whose they are; `ids`: all that may come; `campaign`: where new ones are written, if anywhere;
    `watched`: ids whose labels are wanted; `alpha`: error of the intervals that `half_width` is of.

    Fields: `num`: how many starts there are before the first gap; `seen`: how many in all; `tally`: of the `num`; `watch`:
    labels of the watched ids. After `settle`: `found`, the limits that were found.
    """

    def __init__(self, plan: Plan, ids: range, campaign: Campaign | None, watched: Sequence[int], alpha: float = 0.05):
        self._plan, self._ids, self._campaign, self._alpha = plan, ids, campaign, alpha
        self._rows, self.watch = Rows(plan, ids), Watch(watched)
        self.num = self.seen = 0
        self.tally = self._empty()
        self.found: tuple[FoundLimit, ...] | None = None
        self._waiting: dict[int, Unit] = {}
        #: Of runs that find limits: the units before the gap; which of them are parts of files.
        self._units: list[Unit] = []
        self._parts: set[int] = set()

    def _empty(self, labels: Sequence[str] | None = None) -> Tally:
        labels = self._plan.verdict.labels if labels is None else labels
        return Tally(len(labels), len(self._plan.methods))

    # -- taking in -----------------------------------------------------------------------------------------------------

    def take(self, ids: range, columns: Columns, limits: Sequence[FoundLimit] | None) -> None:
        """New rows, in the order of the ids: they are written, and counted."""
        if self._campaign is not None:
            unit = self._campaign.add(ids, columns, limits)
        else:
            unit = Unit(None, ids, self._counted(columns, limits), None if limits is None else tuple(limits))
        self._count(unit, columns)

    @property
    def place(self) -> tuple[str, str] | None:
        """Where units are written, and the token by which others recognise the place; `None` if nowhere."""
        return None if self._campaign is None else (str(self._campaign.outcomes.resolve()), self._campaign.token)

    def receive(self, ids: range, data: bytes | None) -> None:
        """A unit that was computed elsewhere: its bytes, or `None` if it was written into the campaign's folder there."""
        if self._campaign is None:
            assert data is not None
            unit, columns = units.decode(data, self._plan)
            del columns["id"]
            self._count(unit, columns)
        elif data is None:
            self.open(self._campaign.take_in(self._campaign.outcomes / units.name(ids)))
        else:
            self.open(self._campaign.add_encoded(ids, data))

    def open(self, unit: Unit) -> None:
        """A unit that is there. Its rows are read if they are to be kept, if labels among them are wanted, or if not all of them
        are of this run; `gdflow.basins.units.DamagedUnit` if they cannot be."""
        first, end = max(unit.ids.start, self._ids.start), min(unit.ids.stop, self._ids.stop)
        if first >= end:
            return
        inside = range(first, end)
        if inside == unit.ids and not self._reads(inside):
            self._count(unit, {})
            return
        columns = units.read(unit, self._plan)
        cut = slice(first - unit.ids.start, end - unit.ids.start)
        columns = {name: column[cut] for name, column in columns.items() if name != "id"}
        if inside != unit.ids:
            unit = Unit(unit.path, inside, self._counted(columns, unit.limits), unit.limits)
            self._parts.add(first)
        self._count(unit, columns)

    def _reads(self, ids: range) -> bool:
        if ids.start - self._ids.start < self._rows.kept:
            return True
        at = np.searchsorted(self.watch.ids_array, np.uint64(ids.start))
        return bool(at < len(self.watch.ids_array) and int(self.watch.ids_array[at]) in ids)

    def _counted(self, columns: Columns, limits: Sequence[FoundLimit] | None) -> Tally:
        tally = self._empty(None if limits is None else limit_labels(limits))
        tally.add(columns)
        return tally

    def _count(self, unit: Unit, columns: Columns) -> None:
        self.seen += len(unit.ids)
        if columns:
            self._rows.add(unit.ids, columns)
            self.watch.add(as_uint64(unit.ids), columns)
        self._waiting[unit.ids.start] = unit
        while (next_unit := self._waiting.pop(self._ids.start + self.num, None)) is not None:
            self.num += len(next_unit.ids)
            if self._plan.discovers:
                self._units.append(next_unit)
            else:
                self.tally = self.tally + next_unit.tally

    # -- what it says --------------------------------------------------------------------------------------------------

    def missing(self) -> list[range]:
        """Which ids are in no unit yet, in pieces."""
        if self._campaign is not None:
            return self._campaign.missing(self._ids)
        return list(units.cut(self._ids, units.default_size(self._plan)))

    @property
    def half_width(self) -> float:
        """Half the width of the widest of the limits' intervals, for any number of starts, audits left out."""
        widths = [1.0]
        if self.num:
            sure = self.tally.certified + self.tally.located
            possible = [self.tally.possible(k) for k in range(len(sure))]
            if self._plan.proves:
                sure = self.tally.proved.sum(axis=0)
                possible = [self.tally.possible_by_proof(k) for k in range(len(sure))]
            ends = [
                verdict_interval(int(a), b, self.num, self._alpha, anytime=True)
                for a, b in zip(sure, possible, strict=True)
            ]
            widths = [high - low for low, high in ends]
        return max(widths) / 2

    def settle(self, *, write: bool = True) -> Catalogue | None:
        """Makes one list of the limits that the units found; the catalogue of it, or `None` if limits are known beforehand.

        **Arguments:** `write`: whether units of a campaign that count other limits are written anew.
        """
        catalogue = self._plan.catalogue()
        if catalogue is None:
            return None
        rows = [self._rows.part(unit.ids)["limit"] for unit in self._units]
        self.found, places = catalogue.merged([unit.limits or () for unit in self._units], list(map(np.unique, rows)))
        self.tally = self._empty(limit_labels(self.found))
        for unit, place in zip(self._units, places, strict=True):
            columns = catalogue.renumbered(self._rows.part(unit.ids), place, self.found)
            ids = columns.pop("id")
            self._rows.add(unit.ids, columns)
            self.tally.add(columns)
            # Undecided starts claim nothing that an audit could contradict: of limits that are being found the order is open.
            self.watch.add(
                ids, columns | {"highest": np.where(np.isin(columns["status"], DECIDED), columns["limit"], _ANY)}
            )
            if write and self._campaign is not None and not self._numbered_alike(unit, place):
                self._campaign.renumber(unit.ids, columns, self.found)
        return catalogue

    def _numbered_alike(self, unit: Unit, place: np.ndarray) -> bool:
        """Whether a unit has the limits of the whole run already, or is a part of a file, which stays as it is."""
        alike = len(place) == len(self.found or ()) and np.array_equal(place, np.arange(len(place)))
        return bool(alike) or unit.ids.start in self._parts

    @property
    def table(self) -> pa.Table:
        """The first rows, of those before the gap."""
        return self._rows.table(self.num, None if self.found is None else limit_labels(self.found))
