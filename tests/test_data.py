"""Reading tables: what is accepted, and that every refusal names the file, the column and the row."""

import decimal
import fractions
import zipfile

import jax
import mpmath
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse
from hypothesis import assume, given
from hypothesis import strategies as st

from gdflow.data import check_array, from_frame, linnerud_path, read_csv, read_npz, standardize
from gdflow.data.bundled import LINNERUD_TARGETS
from gdflow.problem import Problem


@pytest.fixture
def write(tmp_path):
    def write(content, name="table.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    return write


def check_small(table):
    """The table `a = 1, 3`, `b = 2.5, −4`, `c = 1000, 0`, with target c. Decimal fractions in binary: exact."""
    assert table.features == ("a", "b")
    assert table.targets == ("c",)
    np.testing.assert_array_equal(table.X, [[1, 3], [2.5, -4]])
    np.testing.assert_array_equal(table.Y, [[1000, 0]])
    assert table.X.dtype == table.Y.dtype == np.float64


@pytest.mark.parametrize(
    "content",
    [
        "a,b,c\n1,2.5,1e3\n3,-4,0\n",
        "a;b;c\n1;2.5;1e3\n3;-4;0\n",
        "a\tb\tc\n1\t2.5\t1e3\n3\t-4\t0\n",
        "a,b,c\r\n1,2.5,1e3\r\n3,-4,0\r\n",
        "a,b,c\n1,2.5,1e3\n3,-4,0",
        "\ufeffa,b,c\n1,2.5,1e3\n3,-4,0\n",
        '"a","b","c"\n"1","2.5","1e3"\n"3","-4","0"\n',
        '\ufeff"a";"b";"c"\r\n1;2.5;1e3\r\n3;-4;0\r\n',
        " a , b , c \n 1 , 2.5 , 1e3 \n 3 , -4 , 0 \n",
        "a,b,c\n+1,2.5,1E+3\n3.,-4,.0\n",
        "a,b,c\n\n1,2.5,1e3\n\n3,-4,0\n\n",
    ],
    ids=[
        "comma",
        "semicolon",
        "tab",
        "crlf",
        "no-final-newline",
        "bom",
        "quoted",
        "bom-quoted-crlf",
        "spaces",
        "signs",
        "blanks",
    ],
)
def test_csv_dialects(write, content):
    path = write(content)
    table = read_csv(path, "c")
    check_small(table)
    assert table.source == str(path)
    check_small(read_csv(str(path), ["c"], ["a", "b"]))


def test_names_may_hold_spaces_and_non_ascii_letters(write):
    table = read_csv(write("Länge [mm],x y,Größe\n1,2,3\n"), "Größe")
    assert table.features == ("Länge [mm]", "x y")


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ('"a, in m",b\n1,2\n', "a, in m"),
        ('"a;b;c;d",b\n1,2\n', "a;b;c;d"),
        ('"say ""a""",b\n1,2\n', 'say "a"'),
        ('"a;\nin mm";b\n1;2\n', "a;\nin mm"),
        ('"a,\rin mm",b\r1,2\r', "a,\rin mm"),
        ('5" pipe,b\n1,2\n', '5" pipe'),
    ],
)
def test_quoted_names_may_hold_separators_and_quotes(write, content, name):
    table = read_csv(write(content), "b")
    assert table.features == (name,)
    np.testing.assert_array_equal(table.X, [[1]])


def test_chosen_columns_keep_the_order_of_the_request_and_leave_out_others(write):
    path = write("a,b,name,c\n1,2,Ann,3\n4,5,Bob,6\n")
    table = read_csv(path, ["c", "a"], ["b"])
    assert (table.features, table.targets) == (("b",), ("c", "a"))
    np.testing.assert_array_equal(table.X, [[2, 5]])
    np.testing.assert_array_equal(table.Y, [[3, 6], [1, 4]])
    with pytest.raises(ValueError, match=r"column 'name', data row 1 .*'Ann'.*no number"):
        read_csv(path, "c")


@pytest.mark.parametrize(
    ("targets", "features", "message"),
    [
        ("z", None, r"no column 'z'; it has 'a', 'b', 'c'"),
        ("c", ["a", "z"], r"no column 'z'"),
        ("c", ["a", "c"], r"column 'c' is named both as a feature and as a target"),
        (["c", "c"], None, r"column 'c' .*twice"),
        ("c", ["a", "a"], r"column 'a' .*twice"),
        ([], None, r"at least one target.*a, b, c"),
        (["a", "b", "c"], None, r"no feature columns are left"),
        ("c", [], r"feature"),
    ],
)
def test_columns_that_cannot_be_chosen(write, targets, features, message):
    path = write("a,b,c\n1,2,3\n")
    with pytest.raises(ValueError, match=message):
        read_csv(path, targets, features)
    with pytest.raises(ValueError, match=message):
        from_frame(pd.read_csv(path), targets, features)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"is empty"),
        ("a,b,c\n", r"header but no data"),
        ("a,b,c", r"header but no data"),
        ("a,b,c\n\n\n", r"header but no data"),
        ("a,b,a,c\n1,2,3,4\n", r"column 'a' occurs twice"),
        ("a,b,c\n1,2,3\n4,5\n", r"cannot be read as CSV: .*Expected 3 columns, got 2"),
        ("a,b,c\n1,2,3\n4,5,6,7\n", r"cannot be read as CSV: .*Expected 3 columns, got 4"),
        ("a,b,c\n1,2,3\n4,five,6\n", r"column 'b', data row 2 .*'five'.*no number"),
        ("a,b,c\n1,2,3\n4,5,six\n", r"column 'c', data row 2 .*'six'.*no number"),
        ("a;b;c\n1,5;2;3\n", r"column 'a', data row 1 .*'1,5'.*no number"),
        ("a,b,c\n1,2,3\n4,,6\n", r"column 'b', data row 2 .*is empty"),
        ('a,b,c\n1,2,3\n4,"",6\n', r"column 'b', data row 2 .*is empty"),
        ("a,b,c\n1,2,3\n4,  ,6\n", r"column 'b', data row 2 .*is empty"),
        ("a,b,c\n1,NA,3\n4,5,6\n", r"column 'b', data row 1 .*'NA'.*no number"),
        ("a,b,c\n1,2,3\n4,5,6\n7,nan,9\n", r"column 'b', data row 3 .*is nan"),
        ("a,b,c\n1,2,inf\n4,5,6\n", r"column 'c', data row 1 .*is inf"),
        ("a,b,c\n1,1e999,3\n", r"column 'b', data row 1 .*is inf"),
        (b"a,b,c\n1,2,3\n\xe9,5,6\n", r"UTF"),
        (b"\xe9,b,c\n1,2,3\n", r"not a text file in UTF-8"),
        ("a,b,c\n1,2,3\n".encode("utf-16"), r"not a text file in UTF-8"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", r"not a text file in UTF-8"),
    ],
)
def test_broken_csv_files_are_refused_with_the_place(write, content, message):
    path = write(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_csv(path, "c")
    if "occurs twice" not in message:
        assert path.name in str(caught.value)


def test_a_bad_cell_is_found_far_down_the_file(write):
    """Row 150 000 lies beyond the first block of a chunked reader."""
    rows = ["1,2,3"] * 200_000
    rows[149_999] = "1,x,3"
    with pytest.raises(ValueError, match="column 'b', data row 150000 "):
        read_csv(write("a,b,c\n" + "\n".join(rows)), "c")


def test_a_file_that_starts_with_an_empty_line_is_not_called_empty(write):
    check_small(read_csv(write("\n \na,b,c\n1,2.5,1e3\n3,-4,0\n"), "c"))


@pytest.mark.parametrize("read", [lambda path: read_csv(path, "c"), read_npz])
def test_folders_and_missing_files(tmp_path, read):
    with pytest.raises(ValueError, match="is a folder"):
        read(tmp_path)
    with pytest.raises(FileNotFoundError, match="absent"):
        read(tmp_path / "absent")


# -- NPZ ---------------------------------------------------------------------------------------------------------------


def test_npz_round_trip(tmp_path, rng):
    X, Y = rng.normal(size=(3, 7)), rng.normal(size=(2, 7))
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "data.npz", X=X, Y=Y, other=1)
        table = read_npz(tmp_path / "data.npz")
        np.testing.assert_array_equal(table.X, X)
        np.testing.assert_array_equal(table.Y, Y)
        assert (table.features, table.targets) == ((), ())
    problem = Problem.from_npz(tmp_path / "data.npz", coordinates="whitened")
    assert (problem.info.m, problem.d_in, problem.d_out) == (7, 3, 2)


@pytest.mark.parametrize(("arrays", "missing"), [({"X": 1, "Z": 2}, "Y"), ({"Y": 1}, "X"), ({}, "X")])
def test_npz_with_a_missing_array(tmp_path, arrays, missing):
    np.savez(tmp_path / "data.npz", **{name: np.ones((2, 3)) for name in arrays})
    with pytest.raises(ValueError, match=rf"no array '{missing}'.*{', '.join(arrays) or 'nothing'}"):
        read_npz(tmp_path / "data.npz")


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, -1])
def test_truncated_npz(tmp_path, rng, keep):
    path = tmp_path / "data.npz"
    np.savez_compressed(path, X=rng.normal(size=(4, 300)), Y=rng.normal(size=(2, 300)))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep) if keep == 0.5 else keep])
    with pytest.raises(ValueError, match=r"data\.npz is not .*NPZ"):
        read_npz(path)


def test_damaged_npz(tmp_path, rng):
    """The directory at the end is whole, a compressed member is not."""
    path = tmp_path / "data.npz"
    np.savez_compressed(path, X=rng.normal(size=(4, 300)), Y=rng.normal(size=(2, 300)))
    damaged = bytearray(path.read_bytes())
    damaged[300:400] = b"\xff" * 100
    path.write_bytes(bytes(damaged))
    assert zipfile.is_zipfile(path)
    with pytest.raises(ValueError, match=r"data\.npz is not .*NPZ"):
        read_npz(path)


def test_files_that_are_no_npz(tmp_path, rng):
    (tmp_path / "text.npz").write_text("X,Y\n1,2\n")
    np.save(tmp_path / "single.npy", rng.normal(size=(2, 3)))
    np.savez(tmp_path / "object.npz", X=np.array([[1, None]], dtype=object), Y=np.ones((1, 2)))
    for name in ("text.npz", "single.npy", "object.npz"):
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            read_npz(tmp_path / name)


def test_npz_arrays_are_checked_by_the_problem(tmp_path):
    np.savez(tmp_path / "data.npz", X=np.ones((2, 3)), Y=np.ones((1, 4)))
    with pytest.raises(ValueError, match=r"X has 3 samples .* Y has 4"):
        Problem.from_npz(tmp_path / "data.npz")
    np.savez(tmp_path / "text.npz", X=np.array([["a", "b"]]), Y=np.ones((1, 2)))
    with pytest.raises(TypeError, match="X must hold real numbers"):
        Problem.from_npz(tmp_path / "text.npz")


# -- frames ------------------------------------------------------------------------------------------------------------

FRAME = pd.DataFrame({"a": [1, 3], "b": [2.5, -4.0], "c": [1000, 0]}, index=["p", "q"])


@pytest.mark.parametrize(
    "frame",
    [
        FRAME,
        FRAME.astype(object),
        FRAME.assign(a=pd.array([1, 3], dtype="Int64")),
        FRAME.assign(a=np.array([1, 3], dtype=np.int8), b=np.array([2.5, -4], dtype=np.float32)),
    ],
    ids=["plain", "object", "nullable", "small"],
)
def test_frames(frame):
    table = from_frame(frame, "c")
    check_small(table)
    check_small(from_frame(frame[["c", "b", "a"]], ["c"], ["a", "b"]))
    assert table.source == "the data frame"


def test_frame_with_numbered_columns():
    table = from_frame(pd.DataFrame([[1.0, 2.0], [3.0, 4.0]]), "1")
    assert (table.features, table.targets) == (("0",), ("1",))
    np.testing.assert_array_equal(table.X, [[1, 3]])


def test_frame_with_truth_values():
    np.testing.assert_array_equal(from_frame(FRAME.assign(a=[True, False]), "c", "a").X, [[1, 0]])


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([1, np.nan], "is nan"),
        ([1.0, None], "is nan"),
        (pd.Series([1, None], dtype=object, index=FRAME.index), "None.*no number"),
        (pd.array([1, None], dtype="Int64"), "<NA>.*no number"),
        ([1, np.inf], "is inf"),
        (["1", "low"], "'low'.*no number"),
        (pd.Categorical(["1", "high"]), "'high'.*no number"),
        (pd.Series([1, 2j], dtype=object, index=FRAME.index), "2j.*no number"),
    ],
    ids=["nan", "none", "none-object", "na", "inf", "str", "categorical", "complex"],
)
def test_frame_cells_that_are_no_numbers(cells, message):
    with pytest.raises(ValueError, match=f"the data frame: column 'a', row 2 .*{message}"):
        from_frame(FRAME.assign(a=cells), "c")


def test_frames_without_rows_or_with_a_repeated_column():
    with pytest.raises(ValueError, match="no rows"):
        from_frame(FRAME.iloc[:0], "c")
    with pytest.raises(ValueError, match="column 'a' occurs twice"):
        from_frame(pd.concat([FRAME, FRAME[["a"]]], axis=1), "c")


# -- into a problem ----------------------------------------------------------------------------------------------------


def test_constant_columns_are_named_when_they_cannot_be_scaled(write):
    path = write("a,b,c\n0.1,2,3\n0.1,5,6\n0.1,7,1\n")
    with pytest.raises(ValueError, match="'a' is constant"):
        Problem.from_csv(path, "c")
    with pytest.raises(ValueError, match="'a' is constant"):
        Problem.from_csv(path, "a")
    with pytest.raises(ValueError, match="'a' is constant"):
        Problem.from_frame(pd.read_csv(path), "c", center=False)
    Problem.from_csv(path, "c", scale=False)
    assert Problem.from_csv(path, "c", "b").info.features == ("b",)


def test_nearly_constant_columns_are_not_blown_up_to_unit_variance():
    """Columns that differ from a constant by rounding only: 0.1 + 0.2 is one unit in the last place above 0.3."""
    with pytest.raises(ValueError, match="'a' is constant"):
        Problem.from_frame(pd.DataFrame({"a": [0.3, 0.1 + 0.2, 0.3, 0.3], "b": [1, 2, 4, 3], "c": [2, 1, 0, 5]}), "c")


def test_linnerud_is_the_published_table():
    """Means and standard deviations as published with the example of SAS's procedure CANCORR ("Fitness Club")."""
    table = read_csv(linnerud_path(), LINNERUD_TARGETS)
    assert (table.X.shape, table.Y.shape) == ((3, 20), (3, 20))
    assert (table.features, table.targets) == (("Chins", "Situps", "Jumps"), ("Weight", "Waist", "Pulse"))
    # The printed digits.
    np.testing.assert_allclose(table.X.mean(axis=1), [9.45, 145.55, 70.3], rtol=1e-12)
    np.testing.assert_allclose(table.Y.mean(axis=1), [178.6, 35.4, 56.1], rtol=1e-12)
    np.testing.assert_allclose(table.X.std(axis=1, ddof=1), [5.2863, 62.5666, 51.2775], rtol=1e-5)
    np.testing.assert_allclose(table.Y.std(axis=1, ddof=1), [24.6905, 3.2020, 7.2104], rtol=1e-5)


def test_singular_values_of_whitened_linnerud_are_the_published_canonical_correlations():
    """For targets with `YYᵀ = I` the singular values of `YXᵀ(XXᵀ)^{-1/2}` are Hotelling's canonical correlations.

    SAS's example prints 0.795608, 0.200556 and 0.072570.
    """
    table = read_csv(linnerud_path(), LINNERUD_TARGETS)
    X, Y = (a - a.mean(axis=1, keepdims=True) for a in (table.X, table.Y))
    whitened = np.linalg.inv(np.linalg.cholesky(Y @ Y.T)) @ Y
    # The printed digits.
    np.testing.assert_allclose(Problem(X, whitened).singular_values, [0.795608, 0.200556, 0.072570], atol=5e-7, rtol=0)


# -- columns that look like an index -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (",a,y\n7,2,3\n9,5,6\n", "column without a name has no name; it is taken as a feature"),
        ("Unnamed: 0,a,y\n7,2,3\n9,5,6\n", "column 'Unnamed: 0' has no name of its own"),
        ("a,Unnamed: 2,y\n7,2,3\n9,5,6\n", "column 'Unnamed: 2' has no name of its own"),
        ("id,a,y\n1,2,3\n2,5,6\n", "column 'id' counts the rows"),
        ("Index,a,y\n0,2,3\n1,5,6\n", "column 'Index' counts the rows"),
    ],
)
def test_columns_that_look_like_an_index_are_features_with_a_warning(write, content, message):
    path = write(content)
    for read in (
        lambda **names: read_csv(path, "y", **names),
        lambda **names: from_frame(frame_of(path), "y", **names),
    ):
        with pytest.warns(UserWarning, match=f"{message}.*leave it out by naming the feature columns"):
            assert len(read().features) == 2
        read(features=["a"])  # warnings are errors here


def frame_of(path):
    """The frame with the names as they are in the file."""
    names = path.read_text().split("\n")[0].split(",")
    return pd.read_csv(path).set_axis(names, axis=1)


@pytest.mark.parametrize("content", ["id,a,y\n1,2,3\n3,5,6\n", "a,b,y\n0,2,3\n1,5,6\n", "a,id,y\n1,1,3\n5,2,6\n"])
def test_columns_that_are_no_index_raise_no_warning(write, content):
    read_csv(write(content), "y")


# -- frames of other kinds ---------------------------------------------------------------------------------------------


class ArrowStream:
    """What polars and others offer: nothing but the Arrow stream of a table."""

    columns = ("a", "b", "c")

    def __init__(self, table):
        self.table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self.table.__arrow_c_stream__(requested_schema)


@pytest.mark.parametrize(
    "frame",
    [
        {"a": [1, 3], "b": (2.5, -4.0), "c": np.array([1000, 0])},
        pa.table({"a": [1, 3], "b": [2.5, -4.0], "c": [1000, 0]}),
        pa.record_batch({"a": [1, 3], "b": ["2.5", " -4.0"], "c": [1000, 0]}),
        ArrowStream(pa.table({"a": [1, 3], "b": [2.5, -4.0], "c": [1000, 0]})),
        FRAME.convert_dtypes(),
        FRAME.astype("float32"),
        FRAME.astype({"a": "category"}),
        FRAME.astype(str),
        FRAME.map(fractions.Fraction),
        FRAME.map(decimal.Decimal),
    ],
    ids=["dict", "arrow", "batch", "stream", "nullable", "float32", "category", "text", "fractions", "decimals"],
)
def test_frames_of_other_kinds(frame):
    check_small(from_frame(frame, "c"))


@pytest.mark.parametrize(("targets", "features"), [([2], None), (2, None), ("2", [0, 1]), ([np.int64(2)], ["0", 1])])
def test_columns_with_numbers_for_names(targets, features):
    table = from_frame(pd.DataFrame([[5, 2.0, 6], [3, 4.0, 7]]), targets, features)
    assert (table.features, table.targets) == (("0", "1"), ("2",))
    np.testing.assert_array_equal(table.Y, [[6, 7]])


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([1, "1_000"], "'1_000'.*no number"),
        ([1, "٣"], "'٣'.*no number"),
        ([1, "nan"], "is nan"),
        ([1, b"2"], "b'2'.*no number"),
        ([1, 10**400], "inf in double precision"),
        ([1, np.longdouble("1e400")], "is inf"),
        ([1, np.complex64(2)], "no number"),
        (np.ma.array([1, 2], mask=[0, 1]), "masked"),
        (np.array(["2020-01-01", "2021-01-01"], dtype="M8[ns]"), "holds times"),
        ([pd.Timestamp("2020-01-01"), 1], "Timestamp.*no number"),
        ([[1, 2], [3, 4]], r"shape is \(2, 2\)"),
        ([1, 2, 3], "different lengths"),
        (pa.chunked_array([["1", None]]), "None.*no number"),
    ],
)
def test_columns_of_a_dictionary_that_are_no_numbers(cells, message):
    with pytest.raises(ValueError, match=f"the data frame.*{message}"):
        from_frame({"a": cells, "c": [1, 2]}, "c")


def test_what_is_no_frame():
    with pytest.raises(TypeError, match=r"a data frame .* is needed, got list"):
        from_frame([[1, 2]], "c")
    levels = pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([("a", "b"), ("a", "c")]))
    with pytest.raises(ValueError, match=r"several levels of labels, e.g. \('a', 'b'\): flatten them"):
        from_frame(levels, "c")


# -- arrays ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (np.ma.array([[1, 2], [3, 4]], mask=[[0, 0], [1, 0]]), ValueError, r"masked at entry \(1, 0\), 1 such entries"),
        (np.array([[1, 2j]]), TypeError, "real numbers, got dtype complex"),
        (np.array([[1, pd.NA]]), TypeError, "it holds <NA>"),
        (np.array([[1, decimal.Decimal(2)]]), TypeError, r"it holds Decimal\('2'\)"),
        (np.array([["1", "2"]]), TypeError, "got dtype <U1"),
        (np.array([["2020-01-01"]], dtype="M8[D]"), TypeError, "got dtype datetime64"),
        (scipy.sparse.csr_array(np.eye(2)), TypeError, r"X is a sparse matrix .*: give X.toarray\(\)"),
        (scipy.sparse.csr_matrix(np.eye(2)), TypeError, r"give X.toarray\(\)"),
        (FRAME, TypeError, r"X is a table \(DataFrame\), whose rows are samples.*from_frame"),
        (pa.table({"a": [1, 2]}), TypeError, "from_frame"),
        ({"a": [1, 2]}, TypeError, "from_frame"),
        (
            np.array([[1, np.longdouble("-1e400")]]),
            ValueError,
            "X is -inf in double precision at row 0, column .sample. 1",
        ),
        ([[1, 2], [3]], ValueError, "X is no matrix"),
    ],
)
def test_arrays_that_are_refused(value, error, message):
    with pytest.raises(error, match=message):
        check_array("X", value)


@pytest.mark.parametrize(
    "value",
    [
        np.ma.array([[1, 0], [0, 1]]),
        np.array([[True, False], [False, True]]),
        np.eye(2, dtype=np.float16),
        np.eye(2, dtype=np.longdouble),
        np.eye(2, dtype=">f8"),
        np.matrix([[1, 0], [0, 1]]),
        np.eye(2, dtype=np.uint64),
        [[1, 0.0], [0, True]],
        jax.numpy.eye(2),
    ],
)
def test_arrays_that_are_taken(value):
    array = check_array("X", value)
    assert type(array) is np.ndarray
    assert array.dtype == np.float64
    np.testing.assert_array_equal(array, np.eye(2))


# -- standardising -----------------------------------------------------------------------------------------------------


def exact_standard(row, center, scale):
    """The standardised row in 60 digits."""
    with mpmath.workdps(60):
        row = [mpmath.mpf(float(x)) for x in row]
        mean = sum(row) / len(row)
        std = mpmath.sqrt(sum((x - mean) ** 2 for x in row) / len(row))
        return np.array([float((x - mean if center else x) / (std if scale else 1)) for x in row])


@given(
    row=st.lists(st.integers(-1000, 1000), min_size=3, max_size=6).filter(lambda row: len(set(row)) > 1),
    exponent=st.integers(-300, 300),
    center=st.booleans(),
    scale=st.booleans(),
)
def test_rows_of_any_magnitude_are_standardised(row, exponent, center, scale):
    """Against 60 digits: squares of these numbers overflow above 1e154 and vanish below 1e-162."""
    values = np.array([row]) * 10.0**exponent
    expected = exact_standard(values[0], center, scale)
    got = standardize("X", values, (), center, scale)[0]
    # Means and deviations are sums of at most 6 numbers below 2000 that differ by 1: 1000·6·eps.
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12 * abs(expected).max())


@given(row=st.lists(st.floats(-1, 1), min_size=3, max_size=6), power=st.integers(-1000, 1000))
def test_standardised_rows_do_not_depend_on_the_unit(row, power):
    """A power of two changes no digit, unless numbers get so small that they lose some."""
    values = np.array([row])
    scaled = np.ldexp(values, power)
    assume(np.array_equal(np.ldexp(scaled, -power), values))
    try:
        expected = standardize("X", values, (), True, True)
    except ValueError:
        with pytest.raises(ValueError, match="constant"):
            standardize("X", scaled, (), True, True)
    else:
        np.testing.assert_array_equal(standardize("X", scaled, (), True, True), expected)


def test_one_huge_cell_among_small_ones():
    """Of one cell `h` among `m` small ones all that counts is which it is: `√(m−1)` and `−1/√(m−1)`."""
    got = standardize("X", np.array([[1.0, 1e200, -2, 3, 0]]), (), True, True)
    np.testing.assert_allclose(got, [[-0.5, 2, -0.5, -0.5, -0.5]], rtol=1e-14)


def test_the_largest_doubles():
    top = np.finfo(np.float64).max
    row = np.array([[top, -top, -top, -top]])
    np.testing.assert_allclose(standardize("X", row, (), True, True), [[3**0.5] + [-(3**-0.5)] * 3], rtol=1e-14)
    with pytest.raises(ValueError, match="'a' minus its mean exceeds the largest double"):
        standardize("X", row, ("a",), True, False)
    tiny = np.array([[0.0, 5e-324, 0.0, 0.0]])
    np.testing.assert_allclose(
        standardize("X", tiny, (), True, True), [[-(3**-0.5), 3**0.5] + [-(3**-0.5)] * 2], rtol=1e-14
    )


def test_missing_files_are_named_plainly(tmp_path):
    for read in (lambda path: Problem.from_csv(path, "y"), Problem.from_npz):
        with pytest.raises(FileNotFoundError, match=r"^there is no file '.*absent.csv'$"):
            read(tmp_path / "absent.csv")
