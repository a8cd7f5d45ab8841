"""What is known of a problem before any flow: where its data come from, which assumptions hold, which limits there can be."""

import dataclasses
import os

import numpy as np
import rich.console

from gdflow.assumptions import Assumption, check_dimensions, check_distinct, check_ranks, check_subset_sums
from gdflow.levels import CriticalValues
from gdflow.ranks import RankDecision
from gdflow.tables import Printable, key_value_table, some_names, some_numbers


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """What is known of the data.

    - `m`, `d_x`, `d_y`: numbers of samples, of features and of targets.
    - `rank_x`, `rank_y`, `rank_targets`: the ranks of `X`, of the effective target and of `Y`, with the margins by which they
      were decided; `None` for losses other than the squared error.
    - `features`, `targets`, `source`: names, for reading.
    - `notes`: how the data were prepared and reduced, in words.
    """

    m: int
    d_x: int
    d_y: int
    rank_x: RankDecision | None
    rank_y: RankDecision | None
    rank_targets: RankDecision | None
    features: tuple[str, ...]
    targets: tuple[str, ...]
    source: str
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True, repr=False)
class Report(Printable):
    """A problem before any flow, from `problem.report(widths)`; prints as a table.

    - `info`: of the data.
    - `coordinates`, `widths`: of the networks; `widths` is `None` if the rank is bounded by the data alone.
    - `max_rank`: the largest rank of an end-to-end matrix.
    - `levels`: the critical values of the effective loss.
    - `residual`: the residual of least squares, which no network can lower.
    """

    info: DataInfo
    coordinates: str
    widths: tuple[int, ...] | None
    max_rank: int
    levels: CriticalValues
    residual: float

    @property
    def assumptions(self) -> tuple[Assumption, ...]:
        """The assumptions (A1)–(A4) of the papers, with margins."""
        info, s = self.info, np.asarray(self.levels.singular_values)
        assert info.rank_x is not None
        assert info.rank_targets is not None
        return (
            check_dimensions(info.m, info.d_x, info.d_y, None if self.widths is None else self.widths[1:-1]),
            check_ranks(info.rank_x, info.rank_targets, info.d_x, info.d_y),
            check_distinct(s, info.d_y),
            check_subset_sums(self.levels),
        )

    def __rich__(self) -> rich.console.RenderableType:
        info = self.info
        rows = [
            ("data", f"{os.path.basename(info.source)}: m={info.m} samples, d_x={info.d_x}, d_y={info.d_y}"),
            *([("features", some_names(info.features))] if info.features else []),
            *([("targets", some_names(info.targets))] if info.targets else []),
            ("coordinates", self.coordinates),
            *([("widths", "-".join(map(str, self.widths)))] if self.widths else []),
            ("largest rank", str(self.max_rank)),
            ("singular values", some_numbers(self.levels.singular_values, 12)),
            ("least squares", f"residual ½‖Y − W_LS X‖² = {self.residual:.6g}"),
        ]
        marks = {True: "holds", False: "FAILS", None: "not checked"}
        for a in self.assumptions:
            cost = f". It costs: {a.cost}" if a.holds is False and a.cost else ""
            rows.append((a.name, f"{marks[a.holds]}: {a.margin}{cost}"))
        if any(a.holds is False for a in self.assumptions):
            rows.append(("", "certificates of limits need none of these assumptions"))
        rows += [("note", note) for note in info.notes]
        return rich.console.Group(key_value_table("Problem", rows), self.levels.__rich__())
