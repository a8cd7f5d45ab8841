"""Results on disk: `outcomes.parquet` (one row per start) and `summary.json` (numbers and all it takes to repeat them)."""

import json
import os
import pathlib
import tempfile
from typing import Any

import pyarrow.parquet

OUTCOMES, SUMMARY = "outcomes.parquet", "summary.json"
#: Rows on their way; left behind, readable, by a run that was interrupted.
PARTIAL = OUTCOMES + ".partial"


def prepare_folder(folder: str | os.PathLike, names: tuple[str, ...], *, overwrite: bool = False) -> pathlib.Path:
    """Makes a folder for results, before any computation, and makes sure that they can be written there.

    **Raises:** `FileExistsError` if it holds one of the named files and `overwrite` is off; `NotADirectoryError` if it is a
    file; `PermissionError` if it can't be made or written to.
    """
    folder = pathlib.Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise NotADirectoryError(f"{folder} cannot be an output folder: it, or a part of its path, is a file") from None
    except OSError as error:
        raise PermissionError(f"the output folder {folder} cannot be made: {error.strerror}") from None
    present = [name for name in names if (folder / name).exists()]
    if present and not overwrite:
        raise FileExistsError(
            f"{folder} already holds {', '.join(present)}: choose another folder, or ask to overwrite"
        )
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise PermissionError(f"the output folder {folder} cannot be written to: {error.strerror}") from None
    return folder


def write_table(table: pyarrow.Table, folder: pathlib.Path) -> None:
    """Writes `outcomes.parquet`, complete or not at all."""
    partial = folder / PARTIAL
    pyarrow.parquet.write_table(table, partial, compression="zstd")
    os.replace(partial, folder / OUTCOMES)


def write_summary(summary: dict[str, Any], folder: pathlib.Path) -> None:
    """Writes `summary.json`, complete or not at all."""
    partial = folder / (SUMMARY + ".partial")
    partial.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, folder / SUMMARY)
