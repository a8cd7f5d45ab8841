"""Hostile command lines and files: a message and exit code 2, or a result, but no traceback and nothing that a terminal obeys.

Some two thousand cases: fixed ones, and mutations of valid files that are drawn with a fixed seed. None computes anything
large: what would be a run ends where the lanes would start.
"""

import bz2
import contextlib
import gzip
import io
import lzma
import os
import pathlib
import re
import sys
import unicodedata
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdflow import cli
from gdflow.basins import plan as plan_module

TABLE = b"a,b,y\n1,2,3\n4,5,7\n-1,2.5,1e1\n0,1,5\n"
ESCAPES = "\x1b[31m\x07\u202e[/red][bold]"


class NotRun(OSError):
    """Instead of a computation."""


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch, tmp_path):
    """Options are checked as ever, but no lane starts, no trajectory and no experiment."""
    import gdflow.experiments
    from gdflow.dynamics import gradient_flow

    def refuse(*args, **options):
        raise NotRun("nothing is run in this test")

    monkeypatch.setattr(plan_module, "run_process", refuse)
    monkeypatch.setattr(gradient_flow, "_solve", refuse)
    monkeypatch.setattr(gdflow.experiments.riemannian, "run_figures", refuse)
    monkeypatch.setenv("GDFLOW_CACHE", "")
    monkeypatch.chdir(tmp_path)


def gdflow(*arguments):
    """Exit code, standard output and standard error of a command line in this process; any exception fails the test."""
    out, err = io.StringIO(), io.StringIO()
    saved = sys.argv
    sys.argv = ["gdflow", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
        code = 0
    except SystemExit as end:
        code = end.code
    finally:
        sys.argv = saved
    return code, out.getvalue(), err.getvalue()


def check(*arguments):
    """The bargain of every command line, whatever it is; returns the exit code and the message."""
    code, out, err = gdflow(*arguments)
    case = (arguments, code, out[-500:], err[:2000])
    assert code in (0, 2), case
    messages = [line for line in err.split("\n") if line.startswith("gdflow:") and not line.startswith("gdflow: note:")]
    assert len(messages) == (code == 2), case
    assert "Traceback" not in out + err, case
    assert len(err) < 3000, case
    bad = {c for c in out + err if unicodedata.category(c)[0] == "C" and c != "\n"}
    assert not bad, (bad, case)
    return code, err


def check_file(content, name="data.csv", *options):
    """A file through `gdflow report`."""
    pathlib.Path(name).write_bytes(content)
    return check("report", name, *options, "--hidden", 2)


# -- CSV ---------------------------------------------------------------------------------------------------------------

#: What a cell may hold that is no finite decimal number, and what the message says of it.
BAD_CELLS = {
    "": "is empty", " ": "is empty", "nan": "is nan", "NaN": "is nan", "-inf": "is -inf", "infinity": "is inf", "1e999": "is inf",
    "1_000": "'1_000'", "0x10": "'0x10'", "0b1": "'0b1'", "1e5f": "'1e5f'", "1d3": "'1d3'", "1 2": "'1 2'", "1e": "'1e'",
    "٣": "'٣'", "１２": "'１２'", "−1": "'−1'", "½": "'½'", "1j": "'1j'", "1+0j": "'1\\+0j'", "True": "'True'", "null": "'null'",
    "NA": "'NA'", "#N/A": "'#N/A'", "1.2.3": "'1.2.3'", "--1": "'--1'", "+-1": "'\\+-1'", "$1": "'\\$1'", "1%": "'1%'",
    "2020-01-01": "'2020-01-01'", "=1+1": "'=1\\+1'", "\x00": r"'\\x00'", "1\x00": r"'1\\x00'", "\x1b[31m1": r"'\\x1b\[31m1'",
    "\u202e1": r"'\\u202e1'", "[/red]": r"'\[/red\]'", "[bold]1": r"'\[bold\]1'",
    "x" * 10_000: r"more characters\)", "'1'": "\"'1'\"",
}  # fmt: skip

#: Whole files that hold no table, and what the message says of them.
BAD_TABLES = {
    b"": "is empty",
    b"\n\n\r\n": "is empty",
    b"\xef\xbb\xbf": "is empty",
    b"a,b,y": "no data rows",
    b"a,b,y\r": "no data rows",
    b"a,b,y\r\n\r\n": "no data rows",
    TABLE.decode().encode("utf-16"): "not a text file in UTF-8",
    TABLE.decode().encode("utf-16-le"): "not a text file in UTF-8",
    TABLE.decode().encode("utf-32"): "not a text file in UTF-8",
    gzip.compress(TABLE, mtime=0): "gzip",
    b"PK\x03\x04" + TABLE: "zip archive or a spreadsheet",
    b"PAR1" + TABLE: "Parquet",
    b"\x89PNG\r\n\x1a\n": "not a text file in UTF-8",
    b"a,b,y\n1,2,3\n\xff,1,2\n": "UTF",
    b"a\x00,b,y\n1,2,3\n": "null characters",
    b"\x00" * 5000: "null characters",
    b"a,b,y\n1,2,3\n4,5\n": "Expected 3 columns, got 2",
    b"a,b,y\n1,2,3\n4,5,6,7\n": "Expected 3 columns, got 4",
    b"a,b,y\n1,2,3\n" + ESCAPES.encode() + b"\n": "Expected 3 columns",
    b'"a,b,y\n1,2,3\n': "has no column 'y'|cannot be read as CSV",
    b"a,b,y\n1,2," + b"9" * 1000 + b"\n": "is inf",
    b"," * 200 + b"y\n" + b"1," * 200 + b"2\n": "column without a name occurs twice",
    b"y\n1\n2\n": "no feature columns are left",
    b"a,a,y\n1,2,3\n": "column 'a' occurs twice",
    b"a" * 200_000 + b",y\n1,2\n": "header cannot be read as CSV",
    b"a b y\n1 2 3\n": "has no column 'y'; it has 'a b y'",
    ESCAPES.encode() + b"\n1\n": "has no column 'y'",
    b"a,b,y\n1,2,3\n1,2,3\n": "constant",
}


@pytest.mark.parametrize("cell", BAD_CELLS, ids=ascii)
@pytest.mark.parametrize("quote", ["", '"'])
def test_cells_that_are_no_numbers(cell, quote):
    content = f"a,b,y\n1,2,3\n4,{quote}{cell}{quote},6\n-1,5,0\n"
    code, err = check_file(content.encode(), "data.csv", "--targets", "y")
    assert code == 2
    assert re.search(rf"column 'b', data row 2 .*({BAD_CELLS[cell]})", err)


@pytest.mark.parametrize("content", BAD_TABLES, ids=lambda content: ascii(content[:20]))
def test_files_without_a_table(content):
    code, err = check_file(content, "data.csv", "--targets", "y")
    assert code == 2
    assert re.search(BAD_TABLES[content], err)


@pytest.mark.parametrize(
    "content",
    [
        TABLE.replace(b"\n", b"\r"),
        TABLE.replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + TABLE,
        b"\r\r\r" + TABLE.replace(b"\n", b"\r"),
        TABLE.replace(b"a,", b'"in\nmm",'),
        TABLE.replace(b"a,", b'"in\r\nmm [/red]\x1b[31m",'),
        TABLE.replace(b"1e1", b"1." + b"0" * 200_000),
        TABLE.replace(b"1e1", b" " * 3_000_000 + b"1"),
        TABLE.replace(b"a,", ESCAPES.encode() + b","),
        TABLE.replace(b"1,2,3", b" 1\t,\xc2\xa02, 3"),
    ],
    ids=["cr", "crlf", "bom", "cr-blank", "newline-in-name", "escape-in-name", "digits", "spaces", "escapes", "padded"],
)
def test_odd_files_that_are_read(content):
    code, err = check_file(content, "data.csv", "--targets", "y")
    assert (code, err) == (0, "")


def mutations(valid: bytes, num: int, seed: int):
    """Files made of a valid one by deleting, repeating, replacing and inserting."""
    rng = np.random.default_rng(seed)
    inserts = [b"\x00", b"\xff", b"\r", b"\n", b'"', b",", b";", b"\t", b"nan", b"1e400", b"\x1b[2J", b"[/red]", b"\xe2\x80\xae",
               b"9" * 400, b"_", b"PK\x01\x02", b"\xef\xbb\xbf", b"-", b"e", b" "]  # fmt: skip
    for _ in range(num):
        content = bytearray(valid)
        for _ in range(rng.integers(1, 4)):
            i, k = np.sort(rng.integers(0, len(content) + 1, 2))
            what = rng.integers(5)
            if what == 0:
                del content[i : min(k, i + 20)]
            elif what == 1:
                content[i:i] = content[i:k]
            elif what == 2:
                content[i : i + 1] = bytes([rng.integers(256)])
            elif what == 3:
                del content[k:]
            else:
                content[i:i] = inserts[rng.integers(len(inserts))]
        yield bytes(content)


@pytest.mark.parametrize("num", [60, pytest.param(600, marks=pytest.mark.slow)])
def test_mutated_tables(num):
    codes = [check_file(content, "data.csv", "--targets", "y")[0] for content in mutations(TABLE, num, 1)]
    assert {0, 2} == set(codes)


@settings(max_examples=60)
@given(
    text=st.text(alphabet=st.sampled_from('abyé1.-e_,;\t\n\r" \0\x1b['), max_size=60),
    head=st.sampled_from(["", "a,y\n"]),
)
def test_generated_tables(text, head):
    check_file((head + text).encode(), "data.csv", "--targets", "y")


def test_many_columns_take_no_time_and_a_short_message():
    """The columns were searched one by one, and all listed: of 100 000, minutes and a megabyte."""
    names = [f"c{k}" for k in range(30_000)]
    content = (",".join(names) + "\n").encode()
    code, err = check_file(content + b"1," * 29_999 + b"1\n", "data.csv", "--targets", "c30000")
    assert code == 2
    assert "'c0', 'c1'" in err
    assert "and 29988 more" in err
    assert len(err) < 500
    code, err = check_file(content + b"1," * 29_998 + b"x,1\n", "data.csv", "--targets", "c0")
    assert "column 'c29998', data row 1" in err


# -- NPZ ---------------------------------------------------------------------------------------------------------------


def npy(array):
    """The bytes of a `.npy` file."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def raw_npy(header: str, data: bytes = b"", version=(1, 0)):
    """A `.npy` file with any header."""
    text = header.encode("latin1", "replace")
    return b"\x93NUMPY" + bytes(version) + len(text).to_bytes(2 if version < (2, 0) else 4, "little") + text + data


def npz(members, compression=zipfile.ZIP_STORED):
    """The bytes of an archive of named members."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


GOOD_X, GOOD_Y = npy(np.array([[1.0, 2, 4], [0, 1, 5]])), npy(np.array([[1.0, 0, 2]]))


def with_x(content):
    return npz([("X.npy", content), ("Y.npy", GOOD_Y)])


def flagged(content, offset, value):
    """An archive with a field of all its headers (local and central) changed."""
    content = bytearray(content)
    for magic, shift in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
        at = content.find(magic)
        while at >= 0:
            content[at + offset + shift] = value
            at = content.find(magic, at + 1)
    return bytes(content)


BAD_ARRAYS = {
    "object": (np.array([[1, None]], dtype=object), "Python objects"),
    "string": (np.array([["1", "2", "3"]]), "real numbers, got dtype <U1"),
    "bytes": (np.array([[b"1", b"2", b"3"]]), "real numbers"),
    "complex": (np.array([[1j, 2, 3]]), "real numbers, got dtype complex128"),
    "dates": (np.array([["2020-01-01"] * 3], dtype="M8[D]"), "real numbers, got dtype datetime64"),
    "spans": (np.array([[1, 2, 3]], dtype="m8[s]"), "real numbers"),
    "fields": (np.array([[(1, 2.0)] * 3], dtype="i4,f8"), "real numbers"),
    "void": (np.zeros((1, 3), dtype="V4"), "real numbers"),
    "0-d": (np.array(1.0), r"shape \(\)"),
    "1-d": (np.arange(3.0), r"shape \(3,\)"),
    "3-d": (np.ones((1, 1, 3)), r"shape \(1, 1, 3\)"),
    "empty": (np.ones((0, 3)), "empty"),
    "no-samples": (np.ones((2, 0)), "empty"),
    "nan": (np.array([[1, np.nan, 2]]), "X is nan at row 0, column .sample. 1"),
    "longdouble": (np.array([[1, 2, np.longdouble("1e400")]]), "inf in double precision"),
    "other-samples": (np.ones((2, 5)), "5 samples"),
    "zero": (np.zeros((2, 3)), "X is zero"),
}

NUMBERS = b"\0" * 48
BAD_HEADERS = {
    "huge": "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000000,)}",
    "huge-matrix": "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000, 1000000000)}",
    "larger": "{'descr': '<f8', 'fortran_order': False, 'shape': (2, 4)}",
    "smaller": "{'descr': '<f8', 'fortran_order': False, 'shape': (2, 2)}",
    "negative": "{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 6)}",
    "two-negative": "{'descr': '<f8', 'fortran_order': False, 'shape': (-2, -3)}",
    "nested": "{'descr': '<f8', 'fortran_order': False, 'shape': ((2, 3),)}",
    "text-shape": "{'descr': '<f8', 'fortran_order': False, 'shape': ('2', 3)}",
    "float-shape": "{'descr': '<f8', 'fortran_order': False, 'shape': (2.0, 3)}",
    "no-shape": "{'descr': '<f8', 'fortran_order': False}",
    "mixed-keys": "{'descr': '<f8', 1: False, None: (2, 3)}",
    "no-type": "{'descr': 'zz', 'fortran_order': False, 'shape': (2, 3)}",
    "number-type": "{'descr': 5, 'fortran_order': False, 'shape': (2, 3)}",
    "nested-type": "{'descr': [('a', [('b', '<f8')])], 'fortran_order': False, 'shape': (2, 3)}",
    "object-type": "{'descr': '|O', 'fortran_order': False, 'shape': (2, 3)}",
    "order": "{'descr': '<f8', 'fortran_order': 5, 'shape': (2, 3)}",
    "list": "[1, 2]",
    "empty": "",
    "code": "__import__('os').abort()",
    "escape": "\x1b[31m\x07",
    "parentheses": "(" * 5000,
    "minus": "-" * 9000 + "1",
    "long": " " * 60_000,
    "attributes": "a" + ".a" * 3000,
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_arrays_that_are_no_matrices_of_numbers(name):
    array, message = BAD_ARRAYS[name]
    code, err = check_file(with_x(npy(array)), "data.npz")
    assert code == 2
    assert re.search(message, err)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0), (9, 9)])
@pytest.mark.parametrize("name", BAD_HEADERS)
def test_malformed_headers_of_arrays(name, version):
    """Sizes are compared with the file's before anything of that size is allocated: 8 EB would be refused by memory only."""
    code, err = check_file(with_x(raw_npy(BAD_HEADERS[name], NUMBERS, version)), "data.npz")
    assert code == 2
    assert re.search("array 'X' cannot be read|X must hold real numbers", err)
    assert "Type-check" not in err
    if "huge" in name and version == (1, 0):
        assert "8000000000000000000 bytes, but it holds 48 bytes" in err


ARCHIVE = with_x(GOOD_X)
BAD_ARCHIVES = {
    "empty": (b"", "is not an NPZ archive"),
    "text": (TABLE, "is not an NPZ archive"),
    "npy": (GOOD_X, "is not an NPZ archive"),
    "no-members": (npz([]), "no array 'X'; it has nothing"),
    "other-names": (npz([(f"{ESCAPES}{k}.npy", GOOD_X) for k in range(50)]), "no array 'X'.*and 38 more"),
    "folders": (npz([("X.npy/", b""), ("Y.npy/", b"")]), "no array 'X'"),
    "both-names": (npz([("X.npy", GOOD_X), ("X", GOOD_X), ("Y.npy", GOOD_Y)]), "holds array 'X' twice"),
    "encrypted": (flagged(ARCHIVE, 6, 1), "encrypted"),
    "compression-97": (flagged(ARCHIVE, 8, 97), "cannot be unpacked"),
    "compression-8": (flagged(ARCHIVE, 8, 8), "is not a readable NPZ"),
    "compression-12": (flagged(ARCHIVE, 8, 12), "is not a readable NPZ"),
    "compression-14": (flagged(ARCHIVE, 8, 14), "is not a readable NPZ"),
    "version": (flagged(ARCHIVE, 4, 99), "NPZ"),
    "crc": (ARCHIVE.replace(np.float64(5).tobytes(), np.float64(6).tobytes()), "Bad CRC"),
    "not-an-array": (npz([("X.npy", b"hello"), ("Y.npy", GOOD_Y)]), "malformed"),
    "gzip": (gzip.compress(ARCHIVE, mtime=0), "is not an NPZ archive"),
    "bz2": (bz2.compress(ARCHIVE), "is not an NPZ archive"),
    "xz": (lzma.compress(ARCHIVE), "is not an NPZ archive"),
}


@pytest.mark.parametrize("name", BAD_ARCHIVES)
def test_broken_archives(name):
    content, message = BAD_ARCHIVES[name]
    code, err = check_file(content, "data.npz")
    assert code == 2
    assert re.search(message, err), err


def test_an_array_that_is_there_twice():
    with pytest.warns(UserWarning, match="Duplicate name"):
        content = npz([("X.npy", GOOD_X), ("X.npy", GOOD_X), ("Y.npy", GOOD_Y)])
    code, err = check_file(content, "data.npz")
    assert code == 2
    assert "holds array 'X' twice" in err


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("suffix", ["", ".npy"])
@pytest.mark.parametrize("kind", ["<f8", ">f8", "<f2", "<i8", "|b1", "<f4", "<f16"])
def test_archives_that_are_read(compression, suffix, kind):
    X, Y = np.array([[1, 0, 3], [0, 1, 1]]).astype(kind), np.array([[0, 1, 1]]).astype(kind)
    content = npz([(f"X{suffix}", npy(np.asfortranarray(X))), (f"Y{suffix}", npy(Y)), ("Z", b"")], compression)
    assert check_file(content, "data.npz") == (0, "")


@pytest.mark.parametrize("num", [60, pytest.param(600, marks=pytest.mark.slow)])
def test_mutated_archives(num):
    codes = [check_file(content, "data.npz")[0] for content in mutations(ARCHIVE, num, 2)]
    assert 2 in codes


@pytest.mark.parametrize("num", [60, pytest.param(400, marks=pytest.mark.slow)])
def test_mutated_arrays(num):
    """In archives that are whole, so that the arrays are read."""
    for content in mutations(GOOD_X, num, 3):
        check_file(with_x(content), "data.npz")


# -- names of files ----------------------------------------------------------------------------------------------------

NAMES = ["a" * 300, "a/" * 3000, "x/" * 1900 + "y", "a\0b", "", ".", "..", "/", "/dev/null", "/dev/zero", ESCAPES, "a\nb",
         "missing", "\udcff", "file/below", "~", "-", "--", "½", "a b", "/proc/1/mem", "/dev/null/x", "[/red]"]  # fmt: skip


@pytest.mark.parametrize("suffix", ["", ".csv", ".npz"])
@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name[:20]))
def test_names_of_data_files(name, suffix):
    pathlib.Path("file").write_text("")
    code, _ = check("report", name + suffix, "--targets", "y")
    assert code == 2


@pytest.mark.parametrize("command", ["basins", "simulate", "experiment"])
@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name[:20]))
def test_names_of_output_folders(name, command):
    """Refused, or made and then nothing is run; nothing is written beside the folder."""
    pathlib.Path("file").write_text("")
    arguments = ["riemannian-1"] if command == "experiment" else []
    code, err = check(command, *arguments, f"--out={name}")
    assert code == 2
    if name in ("a" * 300, "a/" * 3000, "a\0b", "", "/dev/null", "file/below"):
        assert "folder" in err
        assert "nothing is run" not in err


def test_a_path_just_short_enough_for_the_folder_but_not_for_its_files():
    base = os.getcwd()
    name = base + "/d" * ((4090 - len(base)) // 2)
    code, err = check("basins", "--out", name)
    assert code == 2
    assert "cannot be" in err


def test_a_pipe_is_no_file():
    """Opening one would wait for ever."""
    os.mkfifo("pipe.csv")
    code, err = check("report", "pipe.csv", "--targets", "y")
    assert code == 2
    assert "a device or a pipe" in err


@pytest.mark.parametrize(
    "name", [f"{ESCAPES}.csv".replace("/", ""), "a\nb.csv", "[bold].csv", "\u202eb.csv"], ids=ascii
)
def test_files_and_columns_with_names_that_a_terminal_obeys(name):
    content = TABLE.replace(b"a,", f"{ESCAPES},".encode()).replace(b",y", b",[/red]")
    code, err = check_file(content, name, "--targets", "[/red]")
    assert (code, err) == (0, "")
    code, err = check_file(content, name, "--targets", "b", "--features", "c")
    assert code == 2
    assert r"it has '\x1b[31m\x07\u202e[/red][bold]', 'b', '[/red]'" in err


# -- options -----------------------------------------------------------------------------------------------------------

VALUES = ["", " ", "0", "-1", "1", "0.5", "nan", "inf", "-inf", "1e300", "1e-300", "1e400", str(2**31), str(2**63), str(2**64),
          str(10**30), str(10**400), "9" * 5000, "1_000", "0x10", "٣", "½", "True", "none", "abc", ESCAPES, "a\nb", "\0",
          "\udcff", "a" * 5000, "-", "--", "--num", "1,2", "[1]", "{}", "../..", "*"]  # fmt: skip
OPTIONS = {
    "basins": ["--num", "--t1", "--max-steps", "--rtol", "--atol", "--kind", "--confidence", "--audit", "--lanes", "--hidden",
               "--init", "--init-scale", "--seed", "--coordinates", "--targets", "--features", "--nonsense", "--progress"],
    "simulate": ["--start", "--t1", "--max-steps", "--rtol", "--atol", "--seed", "--init-scale"],
    "report": ["--lowest", "--hidden", "--coordinates", "--center"],
    "experiment": ["--seed", "--fast"],
}  # fmt: skip
LINES = [(command, option, value) for command in OPTIONS for option in OPTIONS[command] for value in VALUES]


def check_line(command, option, value):
    """With `=`, so that the value is one even if it looks like an option, and apart."""
    first = [command, *(["riemannian-1"] if command == "experiment" else [])]
    check(*first, f"{option}={value}", "--out=out" if command in ("basins", "simulate") else "--nonsense")
    check(*first, option, value)


@pytest.mark.slow
def test_option_values():
    """Every option with every third value, another third for the next option; all of them take five minutes."""
    for line in LINES[::3]:
        check_line(*line)


@pytest.mark.parametrize(
    "first", [*VALUES[:10], ESCAPES, "basins\x1b", "report ", "help", "--version=1", "--help=1"], ids=ascii
)
def test_commands_that_are_none(first):
    check(first)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num", 10**30], "--num"),
        (["--num", 2**63], "--num"),
        (["--num", 10, "--audit", 11], "cannot audit 11 of 10"),
        (["--rtol", "1e300"], "--rtol"),
        (["--rtol", "nan"], "rtol"),
        (["--rtol", "inf"], "rtol"),
        (["--atol", "nan"], "atol"),
        (["--t1", "nan"], "t1 must be a finite number, got nan"),
        (["--confidence", "nan"], "confidence must be a finite number, got nan"),
        (["--lanes", 0], "lanes must be at least 1, got 0"),
        (["--lanes", -1], "lanes must be at least 1, got -1"),
        (["--hidden", 10**9], "parameters"),
        (["--hidden", -1], "widths must be positive"),
        (["--hidden", *["2"] * 1500], "layers"),
        (["--seed", 2**63], "--seed must lie between"),
        (["--init-scale", "nan"], "positive and finite, got nan"),
        (["--max-steps", 10**30], "--max-steps"),
    ],
)
def test_options_out_of_range(arguments, message):
    code, err = check("basins", *arguments)
    assert code == 2
    assert message in err
    assert "nothing is run" not in err
