"""Which engine runs a process: the fused program where it can, else XLA's lanes."""

import functools
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gdflow.basins.fused import NoCompiler, run_fused, why_not_fused
from gdflow.basins.lanes import AbstractProcess, run_lanes

#: The variable that chooses the engine, and what it may be.
VARIABLE, CHOICES = "GDFLOW_ENGINE", ("auto", "fused", "xla")


class EngineWarning(UserWarning):
    """A run could be several times as fast, and why it is not."""


def chosen_engine() -> str:
    """What `GDFLOW_ENGINE` says, by default `auto`; `ValueError` for anything else."""
    choice = os.environ.get(VARIABLE) or "auto"
    if choice not in CHOICES:
        raise ValueError(f"{VARIABLE} must be one of {', '.join(CHOICES)}, got {choice!r}")
    return choice


@functools.cache
def _say_once(reason: str) -> None:
    warnings.warn(
        f"{reason}. Runs of narrow linear networks are several times as fast with one: install gcc or clang, or set "
        f"{VARIABLE}=xla to do without and not be told",
        EngineWarning,
        stacklevel=2,
    )


def run_process(
    process: AbstractProcess,
    ids: Sequence[int] | np.ndarray,
    sink: Callable[[np.ndarray, dict[str, np.ndarray]], None],
    *,
    lanes: int,
    pool: int,
    fused_pool: int,
    threads: int,
    **options: Any,
) -> None:
    """Runs the starts with the given ids; the arguments are those of `gdflow.basins.lanes.run_lanes`.

    **Arguments:** `fused_pool`: how many starts the fused program is handed at once; it is compiled for no size of pools.

    **Raises:** `ValueError` where `GDFLOW_ENGINE` asks for the fused program and it cannot run the process, or is no choice.
    """
    choice = chosen_engine()
    reason = "it is not asked for" if choice == "xla" else why_not_fused(process)
    if reason is None:
        try:
            run_fused(process, ids, sink, pool=fused_pool, threads=threads, **options)  # type: ignore[arg-type]
            return
        except NoCompiler as error:
            if choice == "fused":
                raise ValueError(f"{VARIABLE}=fused, but {error}") from None
            _say_once(str(error))
    elif choice == "fused":
        raise ValueError(f"{VARIABLE}=fused, but the fused program cannot run this plan: {reason}")
    run_lanes(process, ids, sink, lanes=lanes, pool=pool, threads=threads, **options)
