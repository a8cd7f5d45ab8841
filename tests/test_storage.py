"""Folders that cannot be."""

import pytest

from gdflow.basins.storage import prepare_folder


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
