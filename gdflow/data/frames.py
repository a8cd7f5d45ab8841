"""From a data frame (pandas, polars, PyArrow, or a dictionary of columns) to arrays `X (d_x, m)`, `Y (d_y, m)`."""

import itertools
import math
import numbers
import re
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.interchange
from jaxtyping import Float

from gdflow.data.columns import (
    NUMBER,
    Table,
    bad_cell,
    check_some_left,
    choose_columns,
    left_out,
    one_label,
    warn_of_index_columns,
)
from gdflow.data.columns import label as label_of
from gdflow.data.labels import find_classes, one_hot
from gdflow.tables import shortened, visible

_SOURCE = "the data frame"


def _columns(frame: Any) -> tuple[list[Any], Callable[[int], Any]]:
    """The labels of a frame's columns, and a function that returns the column at a position."""
    if isinstance(frame, Mapping):
        labels = list(frame)
        return labels, lambda k: frame[labels[k]]
    if hasattr(frame, "columns") and hasattr(frame, "iloc"):  # pandas: labels may be numbers
        return list(frame.columns), lambda k: frame.iloc[:, k]
    if isinstance(frame, pa.Table | pa.RecordBatch):
        table = frame
    elif hasattr(frame, "__arrow_c_stream__"):
        table = pa.table(frame)
    elif hasattr(frame, "__dataframe__"):
        table = pyarrow.interchange.from_dataframe(frame)
    else:
        raise TypeError(
            f"a data frame (pandas, polars, PyArrow) or a dictionary of columns is needed, got {type(frame).__name__}"
        )
    return list(table.column_names), table.column


def _number(cell: Any) -> float:
    """A cell as a number; NaN if it is none."""
    if isinstance(cell, str):
        return float(cell) if re.fullmatch(NUMBER, cell.strip()) else np.nan
    if isinstance(cell, bytes | bytearray) or (
        isinstance(cell, numbers.Complex) and not isinstance(cell, numbers.Real)
    ):
        return np.nan
    try:
        return float(cell)
    except OverflowError:
        return np.inf
    except (TypeError, ValueError):
        return np.nan


def _numbers(column: Any, name: str) -> Float[np.ndarray, " m"]:
    """A column as float64; the error names the first cell that is no finite number."""
    if np.ma.is_masked(column):
        raise ValueError(f"{_SOURCE}: column {label_of(name)} has masked entries: leave these rows out or fill them in")
    # NumPy would make texts or complex numbers of all cells of a list if one of them is such.
    cells = np.asarray(column, dtype=object if isinstance(column, list | tuple) else None)
    if cells.ndim != 1:
        raise ValueError(f"{_SOURCE}: column {label_of(name)} is no column of numbers: its shape is {cells.shape}")
    if cells.dtype.kind in "mM":
        raise ValueError(
            f"{_SOURCE}: column {label_of(name)} holds times ({cells.dtype}), which are no numbers; convert it, e.g. to days "
            "since a date, or leave it out by naming the feature columns"
        )
    if cells.dtype.kind in "fiub":
        with np.errstate(over="ignore"):  # of a wider type; found below
            values = cells.astype(np.float64)
    else:
        values = np.array([_number(cell) for cell in cells.tolist()], dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        cell = next(itertools.islice(column, int(bad[0]), None))
        cell = cell.item() if isinstance(cell, np.generic) else cell.as_py() if isinstance(cell, pa.Scalar) else cell
        raise bad_cell(_SOURCE, name, cell, where=f"row {bad[0] + 1}")
    return values


def _as_cell(cell: Any) -> Any:
    return cell.as_py() if isinstance(cell, pa.Scalar) else cell


def _holds_a_number(column: Any) -> bool:
    """Whether a column is of numbers, or holds a finite one in any cell; times are none."""
    kind = getattr(getattr(column, "dtype", None), "kind", "O")
    return kind in "fiub" or (kind not in "mM" and any(math.isfinite(_number(_as_cell(cell))) for cell in column))


def _labels(column: Any, name: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Classes, and the index of the class of every row."""
    what = f"{_SOURCE}: column {label_of(name)}"
    if np.ma.is_masked(column):
        raise ValueError(f"{what} has masked entries: leave these rows out or fill them in")
    if isinstance(column, np.ndarray) and column.ndim != 1:
        raise ValueError(f"{what} is no column of labels: its shape is {column.shape}")
    return find_classes(map(_as_cell, column), what=what)


def from_frame(
    frame: Any,
    targets: Hashable | Iterable[Hashable] = (),
    features: Hashable | Iterable[Hashable] | None = None,
    *,
    label: Hashable | None = None,
) -> Table:
    """Takes the columns of a data frame, one row a sample.

    **Arguments:**

    - `frame`: a pandas or polars data frame, a PyArrow table, any other table that PyArrow can take, or a dictionary of columns.
    - `targets`, `features`: labels of columns, by default all that are no targets, with a warning if one looks like an index.
      Labels that are numbers may be given as numbers or as text.
    - `label`: instead of targets a column of classes, see `gdflow.data.find_classes`. `Y` is then one-hot, of shape
      `(classes, m)`, and by default the features are all other columns that hold a number anywhere.

    **Raises:** `TypeError` for what is no frame; `ValueError` for an unknown, repeated or doubly used column, an empty frame, a
    cell that is not a finite number, and a missing label, named by column and row; also for labels that are no classes.

    ```python
    >>> from_frame({"a": [1, 2], "y": [3, 4]}, "y").X
    array([[1., 2.]])
    >>> from_frame({"a": [1, 2], "y": ["no", "yes"]}, label="y").Y
    array([[1., 0.],
           [0., 1.]])
    ```
    """
    labels, column = _columns(frame)
    if any(isinstance(key, tuple) for key in labels):
        raise ValueError(
            f"{_SOURCE} has columns with several levels of labels, e.g. {shortened(visible(repr(labels[0])))}: flatten them, "
            'e.g. frame.columns = [" ".join(map(str, c)) for c in frame.columns]'
        )
    names = [str(key) for key in labels]
    one = one_label(targets, label)
    chosen, wanted = choose_columns(names, targets if one is None else [one], features, _SOURCE)
    position = {name: k for k, name in enumerate(names)}
    notes: tuple[str, ...] = ()
    if one is not None and not len(column(position[one])):
        raise ValueError(f"{_SOURCE} has no rows")
    if one is not None and features is None:
        without = [name for name in chosen if not _holds_a_number(column(position[name]))]
        chosen, notes = [name for name in chosen if name not in set(without)], left_out(without)
        check_some_left(chosen, _SOURCE)
    columns = {name: _numbers(column(position[name]), name) for name in (*chosen, *(wanted if one is None else ()))}
    index = np.zeros(0, dtype=np.int64)
    if one is not None:
        classes, index = _labels(column(position[one]), one)
        wanted = list(classes)
    lengths = {name: len(values) for name, values in columns.items()} | ({} if one is None else {one: len(index)})
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{_SOURCE} has columns of different lengths: {shortened(str(lengths))}")
    if not len(columns[chosen[0]]):
        raise ValueError(f"{_SOURCE} has no rows")
    X = np.array([columns[name] for name in chosen])
    Y = np.array([columns[name] for name in wanted]) if one is None else one_hot(index, len(wanted))
    if features is None:
        warn_of_index_columns(chosen, X, names[0], _SOURCE)
    return Table(X, Y, tuple(chosen), tuple(wanted), _SOURCE, one, notes)
