"""Minima of ReLU students of orthonormal teachers, in classes."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from gdflow.basins.catalogue import FoundLimit
from gdflow.teacher import TeacherStudent

#: A minimum whose loss is not larger is global: that of the others is above 10^-2, round-off below 10^-14.
GLOBAL = 1e-10
#: Losses, and products of students, that differ by less are the same.
_SAME_LOSS, _SAME = 1e-7, 1e-4
#: Students whose angle has a cosine above this share a direction.
_PARALLEL = 1 - 1e-6


@dataclasses.dataclass(frozen=True, eq=False)
class Minimum:
    """A class of minima.

    - `k`, `loss`; `students`: those of a representative, one a row.
    - `along`: students whose largest component, by size, is positive; `against`: negative.
    - `shared`: students that share their direction with another one.
    - `alike`: sizes of the sets of teachers that a refinement by the students' components does not tell apart, largest first.
    - `index`, `zero`: negative eigenvalues of the Hessian and zero ones; `smallest`, `largest`: positive ones.
    """

    k: int
    loss: float
    students: Float[np.ndarray, "k k"]
    along: int
    against: int
    shared: int
    alike: tuple[int, ...]
    index: int
    zero: int
    smallest: float
    largest: float

    @property
    def is_global(self) -> bool:
        """Whether the students are the teachers: the loss is zero."""
        return self.loss <= GLOBAL

    @property
    def pattern(self) -> str:
        """In words."""
        if self.is_global:
            return "global"
        shared = f", {self.shared} share a direction" if self.shared else ""
        return f"{self.along} along, {self.against} against{shared}; teachers {'+'.join(map(str, self.alike))}"

    @classmethod
    def found(cls, limit: FoundLimit) -> "Minimum":
        """What a run has found, for orthonormal teachers `e_j`."""
        W = np.asarray(limit.point.weights[0])
        index = W.size - limit.positive - limit.zero - limit.symmetries
        return cls(
            W.shape[1],
            limit.loss,
            W,
            *directions(W),
            alike_teachers(W),
            index,
            limit.zero,
            limit.smallest,
            limit.largest,
        )


def directions(W: Float[np.ndarray, "n d"]) -> tuple[int, int, int]:
    """How many students point along a coordinate, how many against one, and how many share their direction with another.

    A student points along the coordinate in which it is largest if it is positive there, against it if it is negative.
    """
    leading = W[np.arange(len(W)), np.argmax(np.abs(W), axis=1)]
    U = W / np.linalg.norm(W, axis=1, keepdims=True)
    parallel = np.sum(U @ U.T > _PARALLEL, axis=1) > 1
    return int(np.sum(leading > 0)), int(np.sum(leading < 0)), int(np.sum(parallel))


def alike_teachers(W: Float[np.ndarray, "n d"]) -> tuple[int, ...]:
    """Sizes of the sets of columns that look alike, largest first: two columns do if they have the same entries in alike rows.

    Rows and columns are told apart by their sorted entries and by what is known already of where these stand, until nothing
    changes (colour refinement). Columns that a permutation of rows and columns exchanges are never told apart.
    """
    flat = np.sort(W.ravel())
    # Entries as whole numbers: one number between two gaps.
    number = np.searchsorted(flat[1:][np.diff(flat) > _SAME], W, side="right")
    rows, columns = np.zeros(W.shape[0], int), np.zeros(W.shape[1], int)
    for _ in range(sum(W.shape)):
        seen = len(set(rows)), len(set(columns))
        rows = _colors([sorted(zip(columns, line, strict=True)) for line in number])
        columns = _colors([sorted(zip(rows, line, strict=True)) for line in number.T])
        if (len(set(rows)), len(set(columns))) == seen:
            break
    return tuple(sorted(np.unique(columns, return_counts=True)[1].tolist(), reverse=True))


def _colors(signatures: list[Any]) -> Int[np.ndarray, " n"]:
    """The place of each signature among the different ones."""
    order = sorted(map(tuple, signatures))
    first = {signature: i for i, signature in reversed(list(enumerate(order)))}
    return np.array([first[tuple(signature)] for signature in signatures])


class Minima:
    """The classes of minima of one `k`, in the order in which runs find them."""

    def __init__(self, k: int):
        self.problem = TeacherStudent.orthonormal(k)
        self.classes: list[Minimum] = []
        self._numbers: list[np.ndarray] = []

    def number(self, limit: FoundLimit) -> int:
        """Which class a limit belongs to; a new one if it belongs to none."""
        numbers = np.asarray(self.problem.objective.fingerprint(limit.point))
        for i, (known, others) in enumerate(zip(self.classes, self._numbers, strict=True)):
            if abs(known.loss - limit.loss) < _SAME_LOSS and np.linalg.norm(others - numbers) < _SAME:
                return i
        self.classes.append(Minimum.found(limit))
        self._numbers.append(numbers)
        return len(self.classes) - 1
