"""What is known of a problem before any flow: where its data come from, which assumptions hold, which limits there can be."""

import dataclasses
import os

import numpy as np
import rich.console

from gdflow.assumptions import Assumption, check_dimensions, check_distinct, check_ranks, check_subset_sums
from gdflow.levels import CriticalValues
from gdflow.network import count_parameters
from gdflow.ranks import RankDecision
from gdflow.tables import Printable, key_value_table, some_names, some_numbers


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """What is known of the data.

    - `m`, `d_x`, `d_y`: numbers of samples, of features and of targets.
    - `rank_x`, `rank_y`, `rank_targets`: the ranks of `X`, of the effective target and of `Y`, with the margins by which they
      were decided; `None` for losses other than the squared error.
    - `features`, `targets`, `source`: names, for reading. Targets that are classes are named in their order, also where a single
      row of `Y` holds two of them as -1 and 1.
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


def _data_rows(info: DataInfo) -> list[tuple[str, str]]:
    return [
        ("data", f"{os.path.basename(info.source)}: m={info.m} samples, d_x={info.d_x}, d_y={info.d_y}"),
        *([("features", some_names(info.features))] if info.features else []),
        *([("targets", some_names(info.targets))] if info.targets else []),
    ]


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
            *_data_rows(info),
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


@dataclasses.dataclass(frozen=True, repr=False)
class ShortReport(Printable):
    """A problem whose critical values are not known before any flow, from `problem.report(widths)`; prints as a table.

    - `info`: of the data.
    - `widths`: of the networks, if they are given. With biases they count the constant units.
    - `loss`, `activations`: their names; a single activation is that of all hidden layers.
    - `weight_decay`, `biases`: as of the problem.
    - `smooth`: whether the gradient is continuous.
    - `separates`: whether the loss of targets that are classes can come arbitrarily close to zero without reaching it.
    - `why_no_levels`: what the problem has that linear networks with the squared error do not.
    """

    info: DataInfo
    widths: tuple[int, ...] | None
    loss: str
    activations: tuple[str, ...]
    weight_decay: float
    biases: bool
    smooth: bool
    separates: bool
    why_no_levels: str

    @property
    def num_parameters(self) -> int | None:
        """How many entries the layers have; `None` without widths."""
        return None if self.widths is None else count_parameters(self.widths)

    @property
    def num_idle(self) -> int:
        """How many of them have no effect: with biases, the weights that enter constant units."""
        return sum(self.widths[:-2]) if self.biases and self.widths is not None else 0

    def __rich__(self) -> rich.console.RenderableType:
        activations = self.activations[0] if len(self.activations) == 1 else ", ".join(self.activations)
        where = "" if self.activations[:1] == ("Identity",) and len(self.activations) == 1 else " in all hidden layers"
        idle = f", {self.num_idle} of them without effect (they enter constant units)" if self.num_idle else ""
        decay = f"½·{self.weight_decay:g}·Σ‖W_j‖²"
        rows = [
            *_data_rows(self.info),
            *([("widths", "-".join(map(str, self.widths)))] if self.widths else []),
            *([("parameters", f"{self.num_parameters}{idle}")] if self.widths else []),
            ("loss", f"{self.loss}, the sum over samples" + (f", and {decay}" if self.weight_decay else "")),
            ("activations", activations + (where if len(self.activations) == 1 else ", layer by layer")),
            ("biases", "a constant unit in the inputs and in every hidden layer" if self.biases else "none"),
            ("gradient", "continuous" if self.smooth else "has kinks, where units switch on or off"),
            ("critical values", f"not known before any flow: {self.why_no_levels}"),
        ]
        if self.separates and not self.weight_decay:
            rows.append(("minimum", "none if a network can separate the classes: then its weights grow without bound"))
        return key_value_table("Problem", [*rows, *(("note", note) for note in self.info.notes)])
