"""From an NPZ file to arrays `X (d_x, m)`, `Y (d_y, m)`: nothing is allocated that the file does not hold."""

import math
import os
import zipfile
import zlib
from typing import Any

import numpy as np
from numpy.lib import format as npy

from gdflow.data.columns import Table
from gdflow.data.reading import check_file
from gdflow.tables import shortened, some_names, visible

try:
    from lzma import LZMAError
except ImportError:  # Python can be built without it
    LZMAError = zlib.error  # type: ignore[assignment, misc]

#: What reading a damaged archive raises.
_DAMAGED = (zipfile.BadZipFile, zlib.error, LZMAError, EOFError, OSError, ValueError)
#: What an archive raises that takes a password or another program to unpack.
_FOREIGN = (NotImplementedError, RuntimeError)


def _find(archive: zipfile.ZipFile, name: str, source: str) -> zipfile.ZipInfo:
    """The member that holds an array, with NumPy's extension or without."""
    members = [info for info in archive.infolist() if info.filename in (name, f"{name}.npy")]
    if not members:
        found = some_names([info.filename.removesuffix(".npy") for info in archive.infolist()]) or "nothing"
        raise ValueError(f"{source} has no array {name!r}; it has {found}")
    if len(members) > 1:
        raise ValueError(f"{source} holds array {name!r} twice; it is not clear which is meant")
    if members[0].flag_bits & 1:
        raise ValueError(f"{source}: array {name!r} is encrypted; save it without a password")
    return members[0]


def _read_npy_header(file: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of the array in a `.npy` stream."""
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):  # 3.0 is for names of fields, which arrays of numbers do not have
        raise ValueError(f"its format has version {version}, not 1.0 or 2.0")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def _read_array(archive: zipfile.ZipFile, name: str, source: str) -> np.ndarray:
    info = _find(archive, name, source)
    try:
        with archive.open(info) as file:
            try:
                shape, dtype = _read_npy_header(file)
            except Exception as error:  # a hostile header gets as far as Python's own parser of literals
                raise ValueError(f"its header is malformed: {error}") from None
            if dtype.hasobject:
                raise ValueError("it holds Python objects, not numbers")
            size, held = math.prod(shape) * dtype.itemsize, info.file_size - file.tell()
            if min(shape, default=0) < 0 or size != held:
                raise ValueError(f"its header says shape {shape} of {dtype}, {size} bytes, but it holds {held} bytes")
        if dtype.kind not in "fiub":
            raise TypeError(f"{source}: {name} must hold real numbers, got dtype {dtype}")
        with archive.open(info) as file:
            return npy.read_array(file, allow_pickle=False)
    except MemoryError:
        raise ValueError(f"{source}: array {name!r} of {info.file_size} bytes does not fit into the memory") from None
    except _FOREIGN as error:
        raise ValueError(f"{source}: array {name!r} cannot be unpacked: {visible(str(error))}") from None
    except _DAMAGED as error:
        why = visible(shortened(str(error)))
        raise ValueError(f"{source} is not a readable NPZ file: array {name!r} cannot be read: {why}") from None


def read_npz(path: str | os.PathLike) -> Table:
    """Reads arrays `X (d_x, m)` and `Y (d_y, m)` from an NPZ file.

    **Raises:** `FileNotFoundError`; `ValueError` if the file is no readable NPZ or lacks one of the arrays, and `TypeError` if
    one holds no real numbers. An array whose stated size is not that of its data is refused before it is read.
    """
    path = check_file(path, "NPZ")
    source = visible(shortened(str(path)))
    try:
        archive = zipfile.ZipFile(path)
    except PermissionError:
        raise
    except (*_FOREIGN, *_DAMAGED) as error:
        why = visible(shortened(str(error)))
        raise ValueError(f"{source} is not an NPZ archive of arrays X and Y, or it is truncated: {why}") from None
    with archive:
        X, Y = (_read_array(archive, name, source) for name in ("X", "Y"))
    return Table(X, Y, (), (), str(path))
