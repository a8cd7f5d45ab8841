"""Compiled programs: kept from one process for the next, and how many a process may hold."""

import contextlib
import os
import pathlib
import platform
import time

import jax

#: The environment variable that names the folder of kept programs.
VARIABLE = "GDFLOW_CACHE"

_last_look = -float("inf")


def cache_folder() -> pathlib.Path | None:
    """The folder that `GDFLOW_CACHE` names, `None` if it is empty, else `gdflow` in the user's cache folder."""
    chosen = os.environ.get(VARIABLE)
    if chosen is not None:
        return pathlib.Path(chosen) if chosen else None
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "gdflow"


def keep_programs(folder: str | os.PathLike | None = None) -> pathlib.Path | None:
    """Keeps compiled programs in a folder, so that the next process that needs them starts in seconds.

    It turns on JAX's persistent compilation cache, for every program of the process, and silences the false alarms that XLA logs
    when it loads one. Call it before the first computation: what was compiled earlier is not kept, and a folder that JAX has
    written to already is not left for another. Everything in the folder may be deleted at any time.

    **Arguments:** `folder`: where; by default the folder that the environment variable `GDFLOW_CACHE` names, else `gdflow` in the
    user's cache folder (`XDG_CACHE_HOME`, else `~/.cache`). If the variable is set but empty, nothing is kept. Each host has
    a folder of its own in it, for programs are compiled for its processor.

    **Returns:** the host's folder; `None` if nothing is kept, because the variable is empty or the folder cannot be made.

    ```python
    >>> import gdflow as gf
    >>> gf.keep_programs()
    ```
    """
    folder = cache_folder() if folder is None else folder
    if folder is None or not os.fspath(folder):
        return None
    path = pathlib.Path(folder) / (platform.node() or "host")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None  # a convenience only: without a folder for it everything works, but slower
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # XLA compares a program's target with the host by names that include tuning hints ("prefer-no-gather"), which no host
    # reports, and logs a false alarm for every kernel it loads. Errors that matter are raised, not logged.
    with contextlib.suppress(ImportError):
        from jaxlib.utils import absl_set_min_log_level  # type: ignore[import-not-found]

        absl_set_min_log_level(3)
    return path


def forget_old_programs(*, pause: float = 0.0) -> None:
    """Clears JAX's caches when the process is about to run out of memory maps, which would crash the compiler.

    On CPU a compiled program holds a map for each of its kernels, some hundreds here, and Linux allows 65 530 by default.

    **Arguments:** `pause`: do nothing within so many seconds of the last look. Looking through ten thousand maps takes 10 ms,
    compiling a program of some hundred kernels more than a second.
    """
    global _last_look
    if time.monotonic() < _last_look + pause:
        return
    _last_look = time.monotonic()
    try:
        with open("/proc/sys/vm/max_map_count", encoding="ascii") as limit, open("/proc/self/maps", "rb") as maps:
            crowded = sum(1 for _ in maps) > int(limit.read()) // 2
    except (OSError, ValueError):
        return  # not Linux, or not ours to read
    if crowded:
        jax.clear_caches()
