"""From a CSV file to arrays `X (d_x, m)`, `Y (d_y, m)`, with errors that name the cell."""

import csv
import os
import pathlib
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
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

#: The longest line that is read, in bytes.
_LONGEST_LINE = 2**26
#: What files that are taken for CSV files begin with, and what they are.
_OTHER_FORMATS = {
    b"\x1f\x8b": "a gzip archive: unpack it first",
    b"PK\x03\x04": "a zip archive or a spreadsheet: unpack it, or save it as CSV",
    b"PAR1": "a Parquet file: read it with pyarrow.parquet and use Problem.from_frame",
    b"\xff\xfe": "encoded in UTF-16: save it in UTF-8",
    b"\xfe\xff": "encoded in UTF-16: save it in UTF-8",
}


def check_file(path: str | os.PathLike, kind: str) -> pathlib.Path:
    """A path to an existing, regular file.

    **Raises:** `FileNotFoundError`; `ValueError` for folders, devices and pipes, and for names that no file can have.
    """
    if not os.fspath(path):
        raise ValueError(f"the name of the {kind} file is empty")
    path = pathlib.Path(path)
    shown = visible(shortened(str(path)))
    try:
        if path.is_dir():
            raise ValueError(f"{shown} is a folder, not a {kind} file")
        if not path.exists():
            raise FileNotFoundError(f"there is no file '{shown}'")
        if not path.is_file():
            raise ValueError(f"{shown} is a device or a pipe; write the data to a {kind} file first")
    except OSError as error:
        if error.strerror is None:  # the one above
            raise
        raise OSError(f"{shown} cannot be opened: {error.strerror}") from None
    return path


def _first_row(path: pathlib.Path, separator: str) -> tuple[list[str], int]:
    """The names in the first line that is not blank, and the number of that line; lines end by CR, LF or both."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = iter(lambda: file.readline(_LONGEST_LINE), "")
        # A name in quotes may go on in the next line.
        reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
        for row in reader:
            if len(row) > 1 or "".join(row).strip():
                return [name.strip() for name in row], reader.line_num
    return [], 0


def _read_header(path: pathlib.Path, source: str) -> tuple[list[str], str, int]:
    """Names of the columns, the separator that makes most of them, and how many lines to skip before the data."""
    with path.open("rb") as file:
        start = file.read(4)
    for magic, what in _OTHER_FORMATS.items():
        if start.startswith(magic):
            raise ValueError(f"{source} is not a text file in UTF-8 but {what}")
    names: list[str] = []
    separator, skip = ",", 0
    error: csv.Error | None = None
    for candidate in ",;\t":
        try:
            row, line = _first_row(path, candidate)
        except UnicodeDecodeError:
            raise ValueError(f"{source} is not a text file in UTF-8") from None
        except csv.Error as unreadable:
            error = error or unreadable
            continue
        if len(row) > len(names):
            names, separator, skip = row, candidate, line
    if not names:
        raise ValueError(f"{source}: its header cannot be read as CSV: {error}" if error else f"{source} is empty")
    if any("\0" in name for name in names):
        raise ValueError(f"{source} is not a text file in UTF-8: it holds null characters (UTF-16?)")
    return names, separator, skip


def _numbers(cells: pa.ChunkedArray, name: str, source: str) -> Float[np.ndarray, " m"]:
    """One column of text cells as float64; the error names the first cell that is no finite number."""
    trimmed = pc.utf8_trim_whitespace(cells)
    try:
        values = pc.cast(trimmed, pa.float64()).to_numpy()
        bad = np.flatnonzero(~np.isfinite(values))
    except pa.ArrowInvalid:
        bad = np.flatnonzero(~pc.match_substring_regex(trimmed, f"^({NUMBER})$").to_numpy())
        if not bad.size:
            return np.array([float(cell) for cell in trimmed.to_pylist()])
    if bad.size:
        cell = cells[int(bad[0])].as_py()
        raise bad_cell(source, name, cell, where=f"data row {bad[0] + 1} (the header not counted)")
    return values


def _holds_a_number(cells: pa.ChunkedArray) -> bool:
    return bool(pc.any(pc.match_substring_regex(pc.utf8_trim_whitespace(cells), f"^({NUMBER})$")).as_py())


def read_csv(
    path: str | os.PathLike,
    targets: Iterable[str] | str = (),
    features: Iterable[str] | str | None = None,
    *,
    label: str | None = None,
) -> Table:
    """Reads a CSV file with a header; the separator (comma, semicolon or tab) is the one that makes most columns of it.

    **Arguments:**

    - `path`: the file, UTF-8.
    - `targets`: names of the target columns.
    - `features`: names of the feature columns; all other columns by default, with a warning if one looks like an index.
    - `label`: instead of targets the name of a column of classes, see `gdflow.data.find_classes`. `Y` is then one-hot, of shape
      `(classes, m)`, and by default the features are all other columns that hold a number anywhere.

    **Raises:** `FileNotFoundError`; `ValueError` for an empty or ragged file, an unknown, repeated or doubly used column, a
    cell that is not a finite decimal number, and a missing label, named by column and row; also for labels that are no
    classes.

    ```python
    >>> read_csv(iris_path(), label="Species").targets
    ('setosa', 'versicolor', 'virginica')
    ```
    """
    path = check_file(path, "CSV")
    source = visible(shortened(str(path)))
    available, separator, skip = _read_header(path, source)
    one = one_label(targets, label)
    chosen, wanted = choose_columns(available, targets if one is None else [one], features, source)
    table = _read_texts(path, source, available, separator, skip, [*chosen, *wanted])
    notes: tuple[str, ...] = ()
    if one is not None and features is None:
        without = [name for name in chosen if not _holds_a_number(table[name])]
        chosen, notes = [name for name in chosen if name not in set(without)], left_out(without)
        check_some_left(chosen, source)
    if one is not None:
        where = "data row {} (the header not counted)"
        classes, index = find_classes(table[one].to_pylist(), what=f"{source}: column {label_of(one)}", where=where)
        wanted, Y = list(classes), one_hot(index, len(classes))
    else:
        Y = np.array([_numbers(table[name], name, source) for name in wanted])
    X = np.array([_numbers(table[name], name, source) for name in chosen])
    if features is None:
        warn_of_index_columns(chosen, X, available[0], source)
    return Table(X, Y, tuple(chosen), tuple(wanted), str(path), one, notes)


def _read_texts(
    path: pathlib.Path, source: str, available: list[str], separator: str, skip: int, names: list[str]
) -> pa.Table:
    """Some columns of a CSV file, all cells as texts."""
    # No line is longer than the file, and none may be longer than a block.
    block = min(max(path.stat().st_size, 1), _LONGEST_LINE)
    try:
        with path.open("rb") as file:  # from a path Arrow would unpack what is named .gz
            table = pyarrow.csv.read_csv(
                file,
                read_options=pyarrow.csv.ReadOptions(column_names=available, skip_rows=skip, block_size=block),
                parse_options=pyarrow.csv.ParseOptions(delimiter=separator),
                convert_options=pyarrow.csv.ConvertOptions(
                    include_columns=names, column_types={c: pa.string() for c in names}, strings_can_be_null=False
                ),
            )
    except pa.ArrowInvalid as error:
        if "Empty CSV" in str(error) or "Could not skip" in str(error):
            raise ValueError(f"{source} has a header but no data rows") from None
        why = shortened(visible(str(error)))
        if "straddling" in why:
            why = f"a row is longer than {_LONGEST_LINE >> 20} MiB"
        raise ValueError(f"{source} cannot be read as CSV: {why}") from None
    if table.num_rows == 0:
        raise ValueError(f"{source} has a header but no data rows")
    return table
