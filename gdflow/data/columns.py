"""A table of samples, which of its columns are features and which targets, and what counts as a number in a cell."""

import collections
import dataclasses
import numbers
import re
import warnings
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float

from gdflow.tables import shortened, some_names, visible

#: A decimal number in ASCII. (Python's `float` also takes underscores and the digits of other scripts.)
NUMBER = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
_NOT_FINITE = "[+-]?(nan|inf|infinity)"
#: How other programs call a column that they put first to number the rows.
_INDEX_NAMES = ("", "index", "id", "row", "rownames", "rowid")


@dataclasses.dataclass(frozen=True)
class Table:
    """Samples in columns: `X` of shape `(d_x, m)`, `Y` of shape `(d_y, m)`, float64, with names and where they are from.

    Where the targets are classes, `label` names the column that they are from and `targets` are the names of the classes;
    see `gdflow.data.labels`. `notes` tell of columns that were left out.
    """

    X: np.ndarray
    Y: np.ndarray
    features: tuple[str, ...]
    targets: tuple[str, ...]
    source: str
    label: str | None = None
    notes: tuple[str, ...] = ()


def _as_names(columns: object) -> list[str]:
    """Names from one name or several, or none; a column of a frame may have a number for a name."""
    if columns is None:
        return []
    if isinstance(columns, str) or not isinstance(columns, Iterable):
        return [str(columns)]
    return [str(name) for name in columns]


def label(name: str) -> str:
    """What to call a column in a message."""
    return shortened(repr(name)) if name else "without a name"


def _repeated(names: Sequence[str]) -> str | None:
    return next((name for name, count in collections.Counter(names).items() if count > 1), None)


def choose_columns(
    available: Sequence[str], targets: object, features: object, source: str
) -> tuple[list[str], list[str]]:
    """Names of the feature and of the target columns; by default all columns that are no targets are features.

    **Arguments:** `available`: all columns; `source`: what to call the table.

    **Raises:** `ValueError` for columns that are not there, doubly used or repeated, and if no feature or target is left.
    """
    wanted = _as_names(targets)
    if not wanted:
        raise ValueError(
            f"name at least one target column of {source}, or its column of labels; it has {some_names(available)}"
        )
    chosen = [c for c in available if c not in set(wanted)] if features is None else _as_names(features)
    known = set(available)
    for name in (*wanted, *chosen):
        if name not in known:
            has = some_names([repr(c) for c in available])
            raise ValueError(f"{source} has no column {shortened(repr(name))}; it has {has}")
    both = next((c for c in chosen if c in set(wanted)), None)
    if both is not None:
        raise ValueError(f"column {label(both)} is named both as a feature and as a target")
    if not chosen:
        why = "all of its columns are targets" if features is None else "the list of features is empty"
        raise ValueError(f"no feature columns are left in {source}: {why}")
    for names, where in ((available, source), (wanted, "the targets"), (chosen, "the features")):
        repeated = _repeated(names)
        if repeated is not None:
            raise ValueError(f"column {label(repeated)} occurs twice in {where}: give its columns different names")
    return chosen, wanted


def one_label(targets: object, label: object) -> str | None:
    """The name of the column of labels, if there is one; `ValueError` for several, and for targets beside it."""
    if label is None:
        return None
    names, others = _as_names(label), _as_names(targets)
    if len(names) != 1:
        raise ValueError(f"the label is a single column, got {len(names)}: {some_names(names) or 'none'}")
    if others:
        raise ValueError(
            f"targets ({some_names(others)}) and a label ({some_names(names)}) exclude each other: give the columns to be "
            "fitted as targets, or the column of classes as label"
        )
    return names[0]


def left_out(names: Sequence[str]) -> tuple[str, ...]:
    """The note that columns of texts were left out by default."""
    return (f"columns without a single number were left out: {some_names(names)}",) if names else ()


def check_some_left(names: Sequence[str], source: str) -> None:
    """`ValueError` if no feature is left."""
    if not names:
        raise ValueError(f"no feature columns are left in {source}: none but the label holds a number")


def bad_cell(source: str, name: str, cell: object, *, where: str) -> ValueError:
    """The error for a cell that is no finite number; `where` it is, in words."""
    text = cell.strip() if isinstance(cell, str) else cell
    shown = shortened(visible(repr(cell)))
    if isinstance(text, str) and not text:
        what = "is empty"
    elif isinstance(text, float) or (isinstance(text, str) and re.fullmatch(_NOT_FINITE, text, re.IGNORECASE)):
        what = f"is {float(text)}"
    elif isinstance(text, numbers.Real) or (isinstance(text, str) and re.fullmatch(NUMBER, text)):
        what = f"is inf in double precision: {shown}"
    else:
        what = f"holds {shown}, which is no number"
    return ValueError(
        f"{source}: column {label(name)}, {where} {what}; mend it or leave the column out by naming the feature columns"
    )


def warn_of_index_columns(features: Sequence[str], X: Float[np.ndarray, "d_x m"], first: str, source: str) -> None:
    """Warns of columns that became features by default but look like the numbers of the rows.

    These are columns without a name, those that pandas calls `Unnamed: …`, and the first column of the table if it counts the
    rows and its name says so.

    **Arguments:** `features`: names of the rows of `X`; `first`: the name of the table's first column.
    """
    count = np.arange(X.shape[1])
    for name, row in zip(features, X, strict=True):
        unnamed = not name or re.fullmatch(r"Unnamed: [0-9]+(_level_[0-9]+)?", name)
        counts = name == first and name.lower() in _INDEX_NAMES and any(np.array_equal(row - k, count) for k in (0, 1))
        if unnamed or counts:
            what = "counts the rows" if counts else "has no name" if not name else "has no name of its own"
            warnings.warn(
                f"{source}: column {label(name)} {what}; it is taken as a feature. If it is an index, leave it out by naming "
                "the feature columns",
                UserWarning,
                stacklevel=2,
            )
