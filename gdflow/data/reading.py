"""From a CSV file, an NPZ file or a pandas frame to arrays `X (d_x, m)`, `Y (d_y, m)`, with errors that name the cell."""

import csv
import dataclasses
import os
import pathlib
import re
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv


@dataclasses.dataclass(frozen=True)
class Table:
    """Samples in columns: `X` of shape `(d_x, m)`, `Y` of shape `(d_y, m)`, float64, with names and where they are from."""

    X: np.ndarray
    Y: np.ndarray
    features: tuple[str, ...]
    targets: tuple[str, ...]
    source: str


def _choose_columns(
    available: Sequence[str], targets: Iterable[str] | str, features: Iterable[str] | str | None, source: str
) -> tuple[list[str], list[str]]:
    targets = [targets] if isinstance(targets, str) else list(targets)
    features = [features] if isinstance(features, str) else features
    chosen = [c for c in available if c not in targets] if features is None else list(features)
    if not targets:
        raise ValueError(f"name at least one target column of {source}; it has {', '.join(available)}")
    for name in [*targets, *chosen]:
        if name not in available:
            raise ValueError(f"{source} has no column {name!r}; it has {', '.join(map(repr, available))}")
    both = [c for c in chosen if c in targets]
    if both:
        raise ValueError(f"column {both[0]!r} is named both as a feature and as a target")
    if not chosen:
        why = "all of its columns are targets" if features is None else "the list of features is empty"
        raise ValueError(f"no feature columns are left in {source}: {why}")
    for names, where in ((list(available), source), (targets, "the targets"), (chosen, "the features")):
        repeated = [c for k, c in enumerate(names) if c in names[:k]]
        if repeated:
            raise ValueError(f"column {repeated[0]!r} occurs twice in {where}")
    return chosen, targets


def _numbers(cells: pa.ChunkedArray, name: str, source: str) -> np.ndarray:
    """One column of text cells as float64; the error names the first cell that is no finite number."""
    cells = pc.utf8_trim_whitespace(cells)
    try:
        values = pc.cast(cells, pa.float64()).to_numpy()
    except pa.ArrowInvalid:
        for row, cell in enumerate(cells.to_pylist(), 1):
            try:
                float(cell)
            except ValueError:
                what = "is empty" if cell == "" else f"holds {cell!r}, which is no number"
                raise ValueError(
                    f"{source}: column {name!r}, data row {row} (the header not counted) {what}; "
                    "mend the file or leave the column out by naming the feature columns"
                ) from None
        values = np.array([float(cell) for cell in cells.to_pylist()])
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise ValueError(
            f"{source}: column {name!r}, data row {bad[0] + 1} (the header not counted) is {values[bad[0]]}"
        )
    return values


def read_csv(
    path: str | os.PathLike, targets: Iterable[str] | str, features: Iterable[str] | str | None = None
) -> Table:
    """Reads a CSV file with a header; the separator (comma, semicolon or tab) is the commonest of the three in it.

    **Arguments:**

    - `path`: the file, UTF-8.
    - `targets`: names of the target columns.
    - `features`: names of the feature columns; all other columns by default.

    **Raises:** `FileNotFoundError`; `ValueError` for an empty or ragged file, an unknown, repeated or doubly used column,
    and a cell that is not a finite number, named by column and row.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a CSV file")
    with path.open("rb") as file:
        header_line, skip = file.readline(), 1
        while header_line and not header_line.strip():
            header_line, skip = file.readline(), skip + 1
        if not header_line:
            raise ValueError(f"{path} is empty")
        no_rows = not file.read(1)
    try:
        header = header_line.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file in UTF-8") from None
    separator = max(",;\t", key=re.sub('"[^"]*"', "", header).count)
    (available,) = csv.reader([header.rstrip("\r\n")], delimiter=separator, skipinitialspace=True)
    available = [c.strip() for c in available]
    if no_rows:
        raise ValueError(f"{path} has a header but no data rows")
    chosen, targets = _choose_columns(available, targets, features, str(path))
    names = [*chosen, *targets]
    try:
        table = pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(column_names=available, skip_rows=skip),
            parse_options=pyarrow.csv.ParseOptions(delimiter=separator),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=names, column_types={c: pa.string() for c in names}, strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        if "Empty CSV" in str(error):
            raise ValueError(f"{path} has a header but no data rows") from None
        raise ValueError(f"{path} cannot be read as CSV: {error}") from None
    if table.num_rows == 0:
        raise ValueError(f"{path} has a header but no data rows")
    columns = [_numbers(table.column(name), name, str(path)) for name in names]
    X, Y = np.array(columns[: len(chosen)]), np.array(columns[len(chosen) :])
    return Table(X, Y, tuple(chosen), tuple(targets), str(path))


def _read_array(archive: Any, name: str, path: pathlib.Path) -> np.ndarray:
    try:
        return archive[name]
    except ValueError as error:
        raise ValueError(f"{path}: array {name!r} cannot be read: {error}") from None


def read_npz(path: str | os.PathLike) -> Table:
    """Reads arrays `X (d_x, m)` and `Y (d_y, m)` from an NPZ file.

    **Raises:** `FileNotFoundError`; `ValueError` if the file is no readable NPZ or lacks one of the arrays.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not an NPZ file")
    try:
        # Opened here: NumPy leaves the file of a broken archive open.
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise ValueError(f"{path} is not an NPZ archive of arrays X and Y, or it is truncated")
            file.seek(0)
            archive = np.load(file, allow_pickle=False)
            missing = [name for name in ("X", "Y") if name not in archive.files]
            if missing:
                found = ", ".join(archive.files) or "nothing"
                raise ValueError(f"{path} has no array {missing[0]!r}; it has {found}")
            X, Y = (_read_array(archive, name, path) for name in ("X", "Y"))
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        raise ValueError(f"{path} is not a readable NPZ file (truncated?): {error}") from None
    return Table(X, Y, (), (), str(path))


def from_frame(frame: Any, targets: Iterable[str] | str, features: Iterable[str] | str | None = None) -> Table:
    """Takes the columns of a pandas data frame, one row a sample.

    **Raises:** `ValueError` for an unknown, repeated or doubly used column, an empty frame and a cell that is not a
    finite number, named by column and row.
    """
    source = "the data frame"
    chosen, targets = _choose_columns([str(c) for c in frame.columns], targets, features, source)
    if len(frame) == 0:
        raise ValueError(f"{source} has no rows")

    def numbers(name):
        column = frame[next(c for c in frame.columns if str(c) == name)]
        for row, cell in enumerate(column.tolist(), 1):
            try:
                finite = np.isfinite(float(cell))
            except (TypeError, ValueError):
                raise ValueError(f"{source}: column {name!r}, row {row} holds {cell!r}, which is no number") from None
            if not finite:
                raise ValueError(f"{source}: column {name!r}, row {row} is {cell}")
        return column.to_numpy(dtype=np.float64)

    X, Y = np.array([numbers(c) for c in chosen]), np.array([numbers(c) for c in targets])
    return Table(X, Y, tuple(chosen), tuple(targets), source)
