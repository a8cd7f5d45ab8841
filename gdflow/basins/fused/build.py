"""Compiled programs: made by the system's compiler when they are first needed, and kept in a folder of the user's own.

A program is named by a digest of its source, the compiler and the processor. Beside it lies the digest of its bytes: one that
does not fit is made again. Files are written beside and renamed, so that several processes may make the same program at once.
Where the folder cannot be written the program lives in a temporary one, for this process.
"""

import ctypes
import functools
import hashlib
import os
import pathlib
import platform
import shutil
import stat
import subprocess
import tempfile
import threading

from gdflow.programs import cache_folder

#: Compilers, in this order, but for the one that the variable `CC` names.
COMPILERS = ("gcc", "cc", "clang")
#: Fast where it changes no decision: what is no number stays so, and sums keep their order.
FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared", "-w")
#: A compiler that takes longer than this, in seconds, is given up.
PATIENCE = 120

_LOCK = threading.Lock()


class NoCompiler(Exception):
    """There is no compiler, or it could not make the program: why, for people."""


@functools.cache
def find_compiler() -> str:
    """The compiler's path; `NoCompiler` if there is none."""
    for name in (os.environ.get("CC", ""), *COMPILERS):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise NoCompiler(f"there is no C compiler: looked for {', '.join(COMPILERS)}, and the variable CC")


@functools.cache
def _machine() -> str:
    """What a program depends on besides its source: the compiler, its version and flags, and the processor."""
    compiler = find_compiler()
    try:
        version = subprocess.run(
            [compiler, "--version"], capture_output=True, text=True, timeout=PATIENCE, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise NoCompiler(f"{compiler} does not run: {error}") from None
    return "\n".join([compiler, version, *FLAGS, platform.machine(), _processor()])


def _processor() -> str:
    """The model and the features of the processor, as far as they can be read."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "model name", "Features"))}))


def program(source: str) -> ctypes.CDLL:
    """The compiled source; `NoCompiler` where it cannot be made. A second call in a process finds what the first one did."""
    with _LOCK:
        found = _program(source)
    if isinstance(found, NoCompiler):
        raise NoCompiler(str(found))
    return found


@functools.cache
def _program(source: str) -> ctypes.CDLL | NoCompiler:
    try:
        return _load(source)
    except NoCompiler as error:
        return error
    except OSError as error:  # a program that cannot be loaded, no room on the disk, no folder for what is temporary
        return NoCompiler(f"the compiled program is of no use: {error}")


def _load(source: str) -> ctypes.CDLL:
    name = hashlib.sha256((source + _machine()).encode()).hexdigest()
    try:
        cache = cache_folder()
        if cache is None:
            raise FileNotFoundError("no folder is wanted")
        place = cache / "programs"
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_private(place):
            raise PermissionError(f"{place} can be written by others")
        kept = place / f"{name}.so"
        if not _is_sound(kept):
            _compile(source, kept)
        return ctypes.CDLL(os.fspath(kept))
    except (OSError, RuntimeError):  # the folder is of no use, or there is no home: a program for this process alone
        with tempfile.TemporaryDirectory(prefix="gdflow-", ignore_cleanup_errors=True) as temporary:
            made = pathlib.Path(temporary) / f"{name}.so"
            _compile(source, made)
            return ctypes.CDLL(os.fspath(made))  # stays loaded when the file is gone


def _is_private(place: pathlib.Path) -> bool:
    """Whether nobody else may put programs there."""
    if not hasattr(os, "getuid"):
        return True
    status = place.stat()
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _is_sound(kept: pathlib.Path) -> bool:
    """Whether a program is there, and its bytes are those that were written."""
    try:
        return kept.with_suffix(".sha256").read_text(encoding="ascii") == hashlib.sha256(kept.read_bytes()).hexdigest()
    except (OSError, UnicodeDecodeError):
        return False


def _compile(source: str, goal: pathlib.Path) -> None:
    """Compiles a source to a file, and writes the digest of its bytes beside it."""
    with tempfile.TemporaryDirectory(prefix="gdflow-") as temporary:
        text, made = pathlib.Path(temporary) / "fused.c", pathlib.Path(temporary) / "fused.so"
        text.write_text(source, encoding="utf-8")
        command = [find_compiler(), *FLAGS, os.fspath(text), "-o", os.fspath(made), "-lm"]
        try:
            subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
        except subprocess.CalledProcessError as error:
            raise NoCompiler(f"{command[0]} failed: {error.stderr.strip()[:500]}") from None
        except (OSError, subprocess.SubprocessError) as error:
            raise NoCompiler(f"{command[0]} failed: {error}") from None
        data = made.read_bytes()
    for path, content in ((goal, data), (goal.with_suffix(".sha256"), hashlib.sha256(data).hexdigest().encode())):
        beside = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
        beside.write_bytes(content)
        beside.replace(path)
