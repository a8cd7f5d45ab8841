"""Folders for results, and JSON files in them, each complete or not at all."""

import json
import os
import pathlib
import tempfile
from typing import Any

from gdflow.tables import shortened, visible

SUMMARY = "summary.json"


class StorageWarning(UserWarning):
    """Results could not be written where they were to go; the message says why, and where they are."""


class DamageWarning(UserWarning):
    """A file of rows is damaged, or is not of this run; the message says which, why, and where it was put."""


def prepare_folder(folder: str | os.PathLike, names: tuple[str, ...], *, overwrite: bool = False) -> pathlib.Path:
    """Makes a folder for results, before any computation, and makes sure that they can be written there.

    **Raises:** `ValueError` for names that no folder can have; `FileExistsError` if it holds one of the named files and
    `overwrite` is off; `NotADirectoryError` if it is a file; `PermissionError` if it can't be made or written to.
    """
    if not os.fspath(folder):
        raise ValueError("the name of the output folder is empty; for the current folder it is a dot")
    if "\0" in os.fspath(folder):
        raise ValueError(f"{visible(str(folder))} cannot be an output folder: it holds a null character")
    folder = pathlib.Path(folder)
    shown = visible(shortened(str(folder)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise NotADirectoryError(f"{shown} cannot be an output folder: it, or a part of its path, is a file") from None
    except OSError as error:
        raise PermissionError(f"the output folder {shown} cannot be made: {error.strerror}") from None
    except RecursionError:
        raise PermissionError(f"the output folder {shown} cannot be made: it is nested too deeply") from None
    try:
        # Of a longer name than the results will have.
        with tempfile.NamedTemporaryFile(dir=folder, prefix=max(names, key=len) + ".partial"):
            present = [name for name in names if (folder / name).exists()]
    except OSError as error:
        raise PermissionError(f"the output folder {shown} cannot be written to: {error.strerror}") from None
    if present and not overwrite:
        raise FileExistsError(
            f"{shown} already holds {', '.join(present)} of another run: choose another folder, or replace them with "
            "overwrite=True (--overwrite)"
        )
    return folder


def read_json(path: pathlib.Path, what: str) -> dict[str, Any]:
    """What a JSON file says. **Arguments:** `what`: the file is of, for messages.

    **Raises:** `FileNotFoundError` if there is none, `ValueError` if it cannot be read as one.
    """
    shown = visible(shortened(str(path)))
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"there are no results of {what}: {shown} does not exist") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{shown} is not a file of {what}: {shortened(str(error))}") from None
    if not isinstance(said, dict):
        raise ValueError(f"{shown} is not a file of {what}: it holds no names")
    return said


def write_json(what: dict[str, Any], path: pathlib.Path) -> None:
    """Writes a JSON file, complete or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(what, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


def read_summary(where: str | os.PathLike) -> dict[str, Any]:
    """The numbers and the plan of a run.

    **Arguments:** `where`: `summary.json`, or the folder that holds it.

    **Raises:** `FileNotFoundError` if there is none, `ValueError` if it is no summary of a run.
    """
    path = pathlib.Path(where)
    path = path / SUMMARY if path.is_dir() else path
    shown = visible(shortened(str(path)))
    summary = read_json(path, "a run")
    number = (int, float)
    needed: dict[str, Any] = dict(num=int, first_id=int, confidence=number, audit=(dict, type(None)), lanes=int,
        seconds=number, anytime=(str, type(None)), plan=dict, digest=str)  # fmt: skip
    missing = [name for name in needed if name not in summary]
    if missing:
        raise ValueError(f"{shown} is not a summary of a run: it has no {', '.join(missing)}")
    for name, kind in needed.items():
        if not isinstance(summary[name], kind) or isinstance(summary[name], bool):
            raise ValueError(f"{shown} is not a summary of a run: {name} is {shortened(repr(summary[name]))}")
    return summary
