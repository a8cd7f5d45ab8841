"""Files of rows on disks that fill up, and folders that cannot be."""

import contextlib
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gdflow.basins.storage import RowFile, prepare_folder

ROWS = pa.schema([("id", pa.uint64()), ("x", pa.float64())])


def rows(first, rng, num=2000):
    return pa.table({"id": np.arange(first, first + num, dtype=np.uint64), "x": rng.random(num)}, schema=ROWS)


@pytest.fixture
def small_disk():
    """No file may grow beyond 256 KiB: a write fails as on a full disk, with another number."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    @contextlib.contextmanager
    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no room can be taken in advance here")
def test_rows_stay_readable_when_the_disk_is_full(tmp_path, rng, small_disk):
    """All groups that `append` took are in the file, and only those; 2000 rows of random bits take 16 kB and more."""
    file = RowFile(tmp_path / "rows", ROWS)
    groups = [rows(2000 * k, rng) for k in range(20)]
    with small_disk():
        with pytest.raises(OSError, match="File too large") as caught:
            any(file.append(group) for group in groups)  # each returns nothing
        file.close()
    assert caught.value.filename == str(tmp_path / "rows")
    written = file.rows // 2000
    assert 3 < written < 16  # 256 KiB, less the room for the directory, over at least 16 kB
    assert pq.read_table(tmp_path / "rows").equals(pa.concat_tables(groups[:written]))
    assert (tmp_path / "rows").stat().st_size < 2**18


def test_rows_are_written_where_no_room_can_be_taken(tmp_path, rng, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    file = RowFile(tmp_path / "rows", ROWS)
    file.append(rows(0, rng))
    file.close()
    assert pq.read_table(tmp_path / "rows").num_rows == 2000


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("", ValueError, "name of the output folder is empty"),
        ("a\0b", ValueError, r"a\\x00b cannot be .* null character"),
        ("a" * 300, PermissionError, "cannot be made: File name too long"),
        ("a/" * 3000, PermissionError, "cannot be made: File name too long"),
        ("file/x", NotADirectoryError, "is a file"),
        ("/proc/x", PermissionError, "cannot be made"),
    ],
)
def test_folders_that_cannot_be(tmp_path, monkeypatch, name, error, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(error, match=message):
        prepare_folder(name, ("a.txt",))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
