"""Targets of a classification: a column of labels becomes one-hot columns, or -1 and 1."""

import dataclasses
import decimal
import numbers
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from gdflow.data.arrays import check_array, standardize
from gdflow.data.columns import NUMBER, Table, label
from gdflow.tables import shortened, some_names, visible

#: What stands in tables where a label is missing.
_MISSING = frozenset({"", "NA", "N/A", "#N/A", "<NA>", "nan", "NaN", "NAN", "null", "NULL", "?"})
#: The types that pandas marks missing values with; they belong to no number or text.
_MISSING_TYPES = ("NoneType", "NAType", "NaTType")
#: The most entries of one-hot targets: 1 GiB.
_MOST_ENTRIES = 2**27
_ADMITTED = "a class is a text, a whole number or a truth value"


def _is_missing(cell: Any) -> bool:
    if isinstance(cell, str):
        return cell in _MISSING
    if isinstance(cell, decimal.Decimal):
        return cell.is_nan()
    real = isinstance(cell, numbers.Real) and not isinstance(cell, numbers.Rational)
    return type(cell).__name__ in _MISSING_TYPES or (real and bool(cell != cell))


def _as_number(cell: Any) -> decimal.Decimal | None:
    """A cell as a number, also one that is written as a text; truth values are none."""
    if isinstance(cell, bool | np.bool_) or (isinstance(cell, str) and not re.fullmatch(NUMBER, cell)):
        return None
    if isinstance(cell, numbers.Integral):
        return decimal.Decimal(int(cell))
    try:
        return decimal.Decimal(cell if isinstance(cell, str | decimal.Decimal) else float(cell))
    except (decimal.InvalidOperation, OverflowError):  # an exponent beyond all measure
        return None


def _name_of(number: decimal.Decimal) -> str:
    return str(int(number)) if number.adjusted() < 18 else str(number)


def find_classes(
    cells: Iterable[Any], *, what: str = "the labels", where: str = "row {}"
) -> tuple[tuple[str, ...], Int[np.ndarray, " m"]]:
    """The classes of some labels, sorted, and which of them each label is.

    Labels are texts, whole numbers or truth values. If all are numbers, written as texts or not, they are sorted by value (2
    before 10); `False` comes before `True`; else they are sorted as texts, capital letters first. Spaces around texts are no
    part of them.

    **Arguments:** `cells`: `m` labels; `what`, `where`: how messages call them and, with the row counted from 1, a place.

    **Returns:** the names of the classes, and for every label the index of its class, shape `(m,)`.

    **Raises:** `ValueError` for a missing label (empty, `None`, NaN, `NA`, `?`, …), one that is no label, a single class, and
    more classes than half of the labels, or than fit into memory as targets.

    ```python
    >>> find_classes(["yes", "no", "yes"])
    (('no', 'yes'), array([1, 0, 1]))
    ```
    """
    cells = [cell.strip() if isinstance(cell, str) else cell for cell in cells]
    places: dict[Any, int] = {}
    index = np.zeros(len(cells), dtype=np.int64)
    for i, cell in enumerate(cells):
        if _is_missing(cell):
            shown = "is empty" if isinstance(cell, str) and not cell else f"holds {shortened(visible(repr(cell)))}"
            raise ValueError(
                f"{what}, {where.format(i + 1)} {shown}: its label is missing. Leave such rows out, or give them a class "
                "of their own"
            )
        if not isinstance(cell, str | bool | np.bool_ | numbers.Real | decimal.Decimal):
            shown = shortened(visible(repr(cell)))
            raise ValueError(f"{what}, {where.format(i + 1)} holds {shown}: {_ADMITTED}")
        index[i] = places.setdefault((type(cell), cell), len(places))
    found = [cell for _, cell in places]
    keys = _sort_keys(found, what)
    classes = sorted(set(keys))
    if len(classes) == 1:
        raise ValueError(f"{what}: all {len(cells)} labels are {classes[0]!s}, but a classification needs two classes")
    if len(classes) > max(2, len(cells) / 2):
        raise ValueError(
            f"{what}: there are {len(classes)} different labels in {len(cells)} rows, so this is probably no column of classes. "
            "If it holds numbers to be fitted, name it among the targets (targets=…, --targets on the command line)"
        )
    if len(classes) * len(cells) > _MOST_ENTRIES:
        raise ValueError(
            f"{what}: one-hot targets of {len(classes)} classes in {len(cells)} rows would take "
            f"{len(classes) * len(cells) / 2**27:.3g} GiB; take fewer classes or rows"
        )
    order = {key: k for k, key in enumerate(classes)}
    names = tuple(_name_of(key) if isinstance(key, decimal.Decimal) else str(key) for key in classes)
    return names, np.array([order[key] for key in keys], dtype=np.int64)[index]


def _sort_keys(found: list[Any], what: str) -> list[Any]:
    """What different labels are told apart and sorted by: numbers if all are, truth values if all are, else texts."""
    if not found:
        raise ValueError(f"{what}: there are none")
    values = [_as_number(cell) for cell in found]
    if any(value is None for value in values):
        alike = all(isinstance(cell, bool | np.bool_) for cell in found)
        return [bool(cell) if alike else str(cell) for cell in found]
    for cell, value in zip(found, values, strict=True):
        assert value is not None
        if not value.is_finite() or value != value.to_integral_value():
            shown = visible(str(cell))
            raise ValueError(
                f"{what}: all labels are numbers, and one is {shortened(shown)}, but {_ADMITTED}. If they are to be fitted, name "
                "the column among the targets (targets=…, --targets on the command line)"
            )
    return values


def one_hot(index: Int[np.ndarray, " m"], num: int) -> Float[np.ndarray, "classes m"]:
    """One column for every label: 1 in the row of its class, 0 elsewhere.

    **Arguments:** `index`: of the classes, from 0, shape `(m,)`; `num`: how many classes there are.

    **Returns:** targets of shape `(num, m)`, for the softmax cross-entropy, and for the squared error and Huber's loss.

    ```python
    >>> one_hot(np.array([1, 0, 1]), 2)
    array([[0., 1., 0.],
           [1., 0., 1.]])
    ```
    """
    return (index == np.arange(num)[:, None]).astype(np.float64)


def signed(table: Table) -> Table:
    """The same labels for the logistic loss: a single row `Y` of shape `(1, m)`, -1 for the first class and 1 for the second.

    **Arguments:** `table`: one whose targets are of a column of labels.

    **Raises:** `ValueError` naming the classes if they are not two.
    """
    classes = table.targets
    if len(classes) != 2:
        raise ValueError(
            f"{visible(shortened(table.source))}: column {label(table.label or '')} has {len(classes)} classes "
            f"({some_names(classes)}), but the logistic loss is for two. Take the softmax cross-entropy "
            "(gdflow.losses.SoftmaxCrossEntropy(), on the command line --loss softmax), or leave out the rows of all "
            "classes but two"
        )
    return dataclasses.replace(table, Y=2 * table.Y[1:] - 1)


def standardize_features(table: Table, center: bool, scale: bool) -> tuple[Float[np.ndarray, "d_x m"], list[str]]:
    """`X` of a table of labels, standardised, and what is told of the data in words; labels are never standardised.

    **Arguments:** `table`: one whose targets are of a column of labels, one-hot or signed; `center`, `scale`: whether to
    subtract the mean of every row of `X`, and to divide by its standard deviation.

    **Raises:** as `gdflow.data.standardize` does.
    """
    X = standardize("X", check_array("X", table.X), table.features, center, scale)
    how = {(True, True): "standardised", (True, False): "centred", (False, True): "scaled"}.get((center, scale))
    Y = table.Y
    counts = Y.sum(axis=1).astype(int) if len(Y) > 1 else np.count_nonzero([Y[0] < 0, Y[0] > 0], axis=1)
    sizes = [f"{name} ({count})" for name, count in zip(table.targets, counts, strict=True)]
    coded = "one row of Y each" if len(table.Y) > 1 else "-1 and 1 in Y"
    notes = [f"rows of X were {how}" + (" to unit variance" if scale else "")] if how else []
    return X, [*notes, f"classes of {label(table.label or '')}: {some_names(sizes)}: {coded}", *table.notes]
