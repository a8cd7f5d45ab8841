"""Gradient flow in deep linear networks: simulation, invariants, certificates and basins of attraction."""

import importlib
import pathlib
import re
from importlib.metadata import version as _version
from typing import Any

__version__ = _version("gdflow")

# Public names are imported when they are used first: importing all of JAX takes seconds, in which the command line could neither
# show its help nor be interrupted without a traceback. The stub lists them, for type checkers and for us.
_STUB = pathlib.Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")
_MODULES = {name: module for module, name in re.findall(r"^from (gdflow\S*) import (\w+) as", _STUB, re.MULTILINE)}


def __getattr__(name: str) -> Any:
    if _MODULES.get(name, "gdflow") != "gdflow":
        value = getattr(importlib.import_module(_MODULES[name]), name)
    elif name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    else:
        try:
            value = importlib.import_module(f"gdflow.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"gdflow.{name}":
                raise
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
