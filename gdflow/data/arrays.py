"""Arrays that a problem is made of: what is accepted as a matrix of numbers, and how its rows are prepared."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from gdflow.tables import shortened, some_names, visible

#: A row whose standard deviation is at most this fraction of its largest entry is constant but for round-off.
_CONSTANT = 1e-14


def _refuse_other_containers(name: str, value: object) -> None:
    """Things that NumPy would convert, but not to what was meant."""
    kind = type(value).__name__
    if isinstance(value, Mapping) or hasattr(value, "columns") or hasattr(value, "column_names"):
        raise TypeError(
            f"{name} is a table ({kind}), whose rows are samples, not a matrix with one column per sample: "
            f"use Problem.from_frame, or give {name} as the transposed array of its values"
        )
    if hasattr(value, "toarray"):
        raise TypeError(f"{name} is a sparse matrix ({kind}): give {name}.toarray()")
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        place = tuple(map(int, np.argwhere(np.ma.getmaskarray(value))[0]))
        raise ValueError(
            f"{name} is masked at entry {place}, {np.ma.count_masked(value)} such entries in all: "
            "leave these samples out or fill the entries in"
        )


def _not_real(name: str, array: np.ndarray) -> TypeError:
    example = ""
    if array.dtype == object and array.size:
        found = next((x for x in array.flat if not isinstance(x, int | float)), array.flat[0])
        example = f" (it holds {shortened(visible(repr(found)), 60)})"
    return TypeError(
        f"{name} must hold real numbers, got dtype {array.dtype}{example}: convert it, e.g. by .astype(float)"
    )


def check_array(name: str, value: Any) -> Float[np.ndarray, "rows samples"]:
    """A value as a matrix of finite float64 numbers, one column a sample.

    **Arguments:** `name`: what to call it in messages.

    **Raises:** `ValueError` for other shapes, empty matrices, masked entries and entries that are not finite (or not in double
    precision), naming the first; `TypeError` for what are no real numbers, tables and sparse matrices.

    ```python
    >>> check_array("X", [[1, 2], [3, 4]])
    array([[1., 2.],
           [3., 4.]])
    ```
    """
    _refuse_other_containers(name, value)
    try:
        given = np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"{name} is no matrix: {error}") from None
    if given.dtype.kind not in "fiub":
        raise _not_real(name, given)
    if given.ndim != 2:
        raise ValueError(f"{name} must be a matrix with one column per sample, got shape {given.shape}")
    if 0 in given.shape:
        raise ValueError(f"{name} is empty: shape {given.shape}")
    with np.errstate(over="ignore"):  # of a wider type; found below
        array = given.astype(np.float64)
    bad = np.argwhere(~np.isfinite(array))
    if bad.size:
        i, k = bad[0]
        wide = " in double precision" if np.isfinite(given[i, k]) else ""
        raise ValueError(
            f"{name} is {array[i, k]}{wide} at row {i}, column (sample) {k}; {len(bad)} such entries in all"
        )
    return array


def check_range(name: str, array: Float[np.ndarray, "rows samples"], dtype: np.dtype) -> None:
    """`ValueError` where products of a few entries would leave the range of `dtype`: levels would be 0 or infinite.

    **Arguments:** `name`: what to call the array in the message.
    """
    limits = np.finfo(dtype)
    least, most = float(limits.tiny) ** 0.25, float(limits.max) ** 0.25
    largest = float(abs(array).max())
    if largest and not least <= largest <= most:
        raise ValueError(
            f"the entries of {name} are up to {largest:.2g}: losses and critical values, which are made of their squares, would "
            f"leave the range of {limits.dtype}. Divide {name} by {largest:.1g}, which only changes the "
            "unit of the weights, or let scale=True standardise the rows"
        )


def standardize(
    name: str, array: Float[np.ndarray, "rows samples"], names: Sequence[str], center: bool, scale: bool
) -> Float[np.ndarray, "rows samples"]:
    """Subtracts from every row its mean (`center`) and divides it by its standard deviation (`scale`).

    Moments are taken of rows divided by a power of two near their largest entry, which is exact: so no square overflows or
    underflows, and the result depends on the unit of a row in nothing but its last bits, whatever the unit.

    **Arguments:** `name`, `names`: of the array and, where known, of its rows, for messages.

    **Raises:** `ValueError` for a row that is constant, up to round-off, and should be scaled, and for one whose differences
    from its mean exceed the largest double.
    """
    if not (center or scale):
        return array

    def label(row: int) -> str:
        return repr(names[row]) if names else f"row {row}"

    largest = abs(array).max(axis=1, keepdims=True)
    exponent = np.frexp(largest)[1]
    array = np.ldexp(array, -exponent)
    std = array.std(axis=1, keepdims=True)
    # Beside the row before centring: centring leaves round-off of a constant row, not zeros.
    constant = std <= _CONSTANT * np.ldexp(largest, -exponent)
    if scale and constant.any():
        flat = int(np.flatnonzero(constant)[0])
        raise ValueError(f"{name}: {label(flat)} is constant and cannot be scaled to unit variance; leave it out")
    if center:
        array = np.where(constant, 0.0, array - array.mean(axis=1, keepdims=True))
    if scale:
        return array / std
    with np.errstate(over="ignore"):
        array = np.ldexp(array, exponent)
    if not np.isfinite(array).all():
        row = int(np.argwhere(~np.isfinite(array))[0][0])
        raise ValueError(f"{name}: {label(row)} minus its mean exceeds the largest double; take a larger unit for it")
    return array


def prepare(
    X: Any,
    Y: Any,
    dtype: np.dtype,
    *,
    center: bool = False,
    scale: bool = False,
    features: Sequence[str] = (),
    targets: Sequence[str] = (),
) -> tuple[Float[np.ndarray, "d_x m"], Float[np.ndarray, "d_y m"], list[str]]:
    """The data of a problem, checked and standardised.

    **Arguments:** `dtype`: of the arithmetic to come, whose range losses must not leave; the others are those of
    `gdflow.Problem`.

    **Returns:** `X`, `Y`, and what was done to them in words.

    **Raises:** as `check_array`, `standardize` and `check_range` do; also for different numbers of samples, names that are not
    as many as rows, and a zero `X`.
    """
    X, Y = check_array("X", X), check_array("Y", Y)
    if X.shape[1] != Y.shape[1]:
        raise ValueError(f"X has {X.shape[1]} samples (columns) but Y has {Y.shape[1]}; shapes {X.shape}, {Y.shape}")
    for kind, names, array in (("features", features, X), ("targets", targets, Y)):
        if len(names) not in (0, len(array)):
            raise ValueError(f"{len(names)} names of {kind} for {len(array)} rows: {some_names(names)}")
    X = standardize("X", X, features, center, scale)
    Y = standardize("Y", Y, targets, center, scale)
    check_range("X", X, dtype)
    check_range("Y", Y, dtype)
    if not X.any():
        raise ValueError("X is zero" + (" after centring: there are too few distinct samples" if center else ""))
    how = {(True, True): "standardised", (True, False): "centred", (False, True): "scaled"}.get((center, scale))
    notes = [f"rows of X and Y were {how}" + (" to unit variance" if scale else "")] if how else []
    return X, Y, notes


def diagonal_target(
    singular_values: Any, d_x: int | None = None, d_y: int | None = None
) -> Float[np.ndarray, "d_y d_x"]:
    """A matrix with the given singular values on its diagonal, the largest first; sizes not given are as small as can be.

    **Raises:** `ValueError` for no values, values that are negative or not finite, and more of them than rows or columns.
    """
    s = np.atleast_1d(np.asarray(singular_values, dtype=np.float64))
    d_x, d_y = (s.size if d is None else d for d in (d_x, d_y))
    if min(d_x, d_y) < (s.size > 0):
        raise ValueError(f"d_x and d_y must be positive, got {d_x} and {d_y}")
    if s.ndim != 1 or s.size == 0 or not np.all(s >= 0) or not np.all(np.isfinite(s)):
        raise ValueError(f"singular values must be finite and not negative, at least one of them; got {s.tolist()}")
    if s.size > min(d_x, d_y):
        raise ValueError(f"a {d_y}×{d_x} target has at most {min(d_x, d_y)} singular values, got {s.size}")
    matrix = np.zeros((d_y, d_x))
    np.fill_diagonal(matrix, np.pad(-np.sort(-s), (0, min(d_x, d_y) - s.size)))
    return matrix
