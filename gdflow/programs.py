"""Compiled programs: how many a process may hold."""

import time

import jax

_last_look = -float("inf")


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
