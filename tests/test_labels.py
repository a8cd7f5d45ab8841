"""Columns of labels as targets of a classification, and the bundled Iris data."""

import dataclasses
import datetime
import decimal

import jax
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdflow.data import find_classes, from_frame, iris_path, one_hot, read_csv, signed
from gdflow.data.bundled import IRIS_CLASSES, IRIS_FEATURES, IRIS_LABEL
from gdflow.initialization import Gaussian
from gdflow.losses import EntryLoss, Huber, Logistic, SoftmaxCrossEntropy, SquaredError
from gdflow.problem import Problem


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "table.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return write


# -- Iris --------------------------------------------------------------------------------------------------------------


def test_iris_is_the_published_table():
    """Fisher (1936), Tables I, II: means; standard deviations as R prints them for its data set."""
    table = read_csv(iris_path(), label=IRIS_LABEL)
    assert (table.X.shape, table.Y.shape) == ((4, 150), (3, 150))
    assert (table.features, table.targets) == (IRIS_FEATURES, IRIS_CLASSES)
    np.testing.assert_array_equal(table.Y, np.kron(np.eye(3), np.ones((1, 50))))
    means = [[5.006, 3.428, 1.462, 0.246], [5.936, 2.770, 4.260, 1.326], [6.588, 2.974, 5.552, 2.026]]
    np.testing.assert_allclose(table.X @ table.Y.T / 50, np.transpose(means), rtol=1e-12)
    deviations = [[0.352, 0.379, 0.174, 0.105], [0.516, 0.314, 0.470, 0.198], [0.636, 0.322, 0.552, 0.275]]
    parts = table.X.reshape(4, 3, 50).std(axis=2, ddof=1)
    np.testing.assert_allclose(parts, np.transpose(deviations), atol=5e-4, rtol=0)


def test_iris_has_fishers_values_where_copies_differ():
    """The file of the UCI repository has 4.9, 3.1, 1.5, 0.1 in rows 35 and 38."""
    X = read_csv(iris_path(), label=IRIS_LABEL).X
    np.testing.assert_array_equal(X[:, 34], [4.9, 3.1, 1.5, 0.2])
    np.testing.assert_array_equal(X[:, 37], [4.9, 3.6, 1.4, 0.1])


# -- classes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "classes", "index"),
    [
        (["b", "a", "b", "a"], ("a", "b"), [1, 0, 1, 0]),
        ([" b", "a ", "b", "a"], ("a", "b"), [1, 0, 1, 0]),
        (["b", "B", "b", "B"], ("B", "b"), [1, 0, 1, 0]),
        ([10, 2, 10, 2], ("2", "10"), [1, 0, 1, 0]),
        (["10", "2", "10", "2"], ("2", "10"), [1, 0, 1, 0]),
        (["10", "2", "10", "x", "2", "x"], ("10", "2", "x"), [0, 1, 0, 2, 1, 2]),
        ([-1, 1, 1.0, np.float32(-1), decimal.Decimal(1)], ("-1", "1"), [0, 1, 1, 0, 1]),
        (["+1", "1.0", "-1", "01"], ("-1", "1"), [1, 1, 0, 1]),
        ([True, False, True], ("False", "True"), [1, 0, 1]),
        ([np.True_, False], ("False", "True"), [1, 0]),
        (["True", True, False], ("False", "True"), [1, 1, 0]),
        ([10**30, 0, 10**30], ("0", str(10**30)), [1, 0, 1]),
        ([np.str_("b"), "a", "b"], ("a", "b"), [1, 0, 1]),
    ],
)
def test_labels_are_sorted(cells, classes, index):
    found, places = find_classes(cells)
    assert found == classes
    np.testing.assert_array_equal(places, index)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([], "there are none"),
        (["a", "a", "a"], "all 3 labels are a, but a classification needs two classes"),
        ([1, "1", 1.0], "all 3 labels are 1, but"),
        (["a", "", "b"], "row 2 is empty: its label is missing"),
        (["a", " ", "b"], "row 2 is empty"),
        (["a", "b", None], "row 3 holds None: its label is missing"),
        (["a", "b", float("nan")], "row 3 holds nan: its label is missing"),
        ([0, 1, np.float32("nan")], "row 3 .*its label is missing"),
        ([0, 1, decimal.Decimal("nan")], "row 3 .*its label is missing"),
        ([0, 1, pd.NA], "row 3 .*its label is missing"),
        ([0, 1, pd.NaT], "row 3 .*its label is missing"),
        (["a", "NA", "b"], "row 2 holds 'NA': its label is missing"),
        (["a", "?", "b"], "row 2 holds '.': its label is missing"),
        ([0, 1, 0.5, 1], "one is 0.5, but a class is a text, a whole number or a truth value.*targets"),
        (["0", "1", "0.5", "1"], "one is 0.5, but"),
        ([0.0, float("inf"), 0.0], "one is inf, but"),
        (["a", b"b"], "row 2 holds b'b': a class is"),
        (["a", 1j], "row 2 holds 1j: a class is"),
        (["a", ["b"]], r"row 2 holds \['b'\]: a class is"),
        ([datetime.date(2020, 1, 1), "a"], r"row 1 holds datetime.date\(2020, 1, 1\): a class is"),
        (range(5), "5 different labels in 5 rows, so this is probably no column of classes.*--targets"),
        ([1, 2, 3, 1, 2], "3 different labels in 5 rows"),
    ],
)
def test_labels_that_are_no_classes(cells, message):
    with pytest.raises(ValueError, match=f"^the labels.*{message}"):
        find_classes(cells)


def test_one_hot_targets_that_would_not_fit_into_memory():
    with pytest.raises(ValueError, match=r"30000 classes in 60000 rows would take 13.4 GiB"):
        find_classes([*range(30000)] * 2)


@given(st.lists(st.sampled_from(["a", "b", "c", "Ä", "z z"]), min_size=10, max_size=30))
def test_one_hot_columns_and_classes_give_the_labels_back(cells):
    cells = ["a", "b", *cells]
    classes, index = find_classes(cells)
    assert list(classes) == sorted(set(cells))
    Y = one_hot(index, len(classes))
    np.testing.assert_array_equal(Y.sum(axis=0), 1)
    assert [classes[k] for k in Y.argmax(axis=0)] == cells


# -- tables ------------------------------------------------------------------------------------------------------------

TEXT = "id,name,a,born,passed,b\n7,Ann,1,x,yes,10\n9,Bob,2,y,no,20\n8,Cid,4,z,yes,50\n5,Dan,3,x,no,40\n"


def test_features_are_all_other_columns_with_numbers(write):
    csv, frame = read_csv(write(TEXT), label="passed"), from_frame(pd.read_csv(write(TEXT)), label="passed")
    arrow = from_frame(pa.Table.from_pandas(pd.read_csv(write(TEXT))), label="passed")
    for table in (csv, frame, arrow):
        assert table.features == ("id", "a", "b")
        assert (table.targets, table.label) == (("no", "yes"), "passed")
        np.testing.assert_array_equal(table.X, [[7, 9, 8, 5], [1, 2, 4, 3], [10, 20, 50, 40]])
        np.testing.assert_array_equal(table.Y, [[0, 1, 0, 1], [1, 0, 1, 0]])
        assert table.notes == ("columns without a single number were left out: name, born",)
        np.testing.assert_array_equal(signed(table).Y, [[1, -1, 1, -1]])
    chosen = read_csv(write(TEXT), features=["b"], label="passed")
    assert (chosen.features, chosen.notes) == (("b",), ())
    assert from_frame(pd.read_csv(write(TEXT)), features="b", label="passed").features == ("b",)


def test_a_column_with_some_numbers_is_not_left_out(write):
    text = "a,b,c\n1,2,x\n3,none,y\n5,6,x\n"
    for read in (read_csv(write("a,c\n1,x\n2,y\n"), label="c"), from_frame({"a": [1, 2], "c": "xy"}, label="c")):
        assert read.features == ("a",)
    with pytest.raises(ValueError, match=r"column 'b', data row 2 .*'none'.*no number"):
        read_csv(write(text), label="c")
    with pytest.raises(ValueError, match=r"column 'b', row 2 .*'none'.*no number"):
        from_frame(pd.read_csv(write(text)), label="c")
    with pytest.raises(ValueError, match="column 'b', row 1 is nan"):
        from_frame({"a": [1, 2], "b": np.array([np.nan, np.nan]), "c": ["x", "y"]}, label="c")


def test_times_are_left_out():
    frame = pd.DataFrame({"a": [1, 2], "t": pd.to_datetime(["2020-01-01", "2020-01-02"]), "c": ["x", "y"]})
    assert from_frame(frame, label="c").features == ("a",)


@pytest.mark.parametrize(
    "labels",
    [
        ["no", "yes", "yes", "no"],
        pd.Categorical(["no", "yes", "yes", "no"], categories=["yes", "no"]),
        pd.array(["no", "yes", "yes", "no"], dtype="string"),
        np.array(["no", "yes", "yes", "no"]),
        [False, True, True, False],
        pd.array([False, True, True, False], dtype="boolean"),
        np.array([0, 1, 1, 0], np.int8),
        pd.array([0, 1, 1, 0], dtype="Int64"),
        [0.0, 1.0, 1.0, 0.0],
        [3, 5, 5, 3],
    ],
    ids=lambda labels: f"{type(labels).__name__}-{getattr(labels, 'dtype', type(labels[0]).__name__)}",
)
def test_kinds_of_labels_in_frames(labels):
    columns = {"a": [1.0, 2.0, 4.0, 3.0], "c": labels}
    for frame in (columns, pd.DataFrame(columns), pa.Table.from_pandas(pd.DataFrame(columns))):
        np.testing.assert_array_equal(from_frame(frame, label="c").Y, [[1, 0, 0, 1], [0, 1, 1, 0]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(label="z"), "no column 'z'; it has 'id', 'name'"),
        (dict(targets="b", label="passed"), r"targets \(b\) and a label \(passed\) exclude each other"),
        (dict(features=["passed", "b"], label="passed"), "column 'passed' is named both"),
        (dict(features=[], label="passed"), "feature"),
        (dict(features="name", label="passed"), "column 'name', .*row 1 .*'Ann'.*no number"),
        (dict(), "name at least one target column of .*, or its column of labels; it has id, name"),
        (dict(label="name"), "column 'name': there are 4 different labels in 4 rows"),
    ],
)
def test_labels_that_cannot_be_chosen(write, options, message):
    path = write(TEXT)
    with pytest.raises(ValueError, match=message):
        read_csv(path, **options)
    with pytest.raises(ValueError, match=message):
        from_frame(pd.read_csv(path), **options)


def test_the_label_is_a_single_column():
    for label, message in ((("a", "c"), "a single column, got 2: a, c"), ((), "a single column, got 0: none")):
        with pytest.raises(ValueError, match=message):
            from_frame({"a": [1, 2], "c": ["x", "y"]}, label=label)


def test_a_missing_label_is_named_by_its_row(write):
    with pytest.raises(
        ValueError, match=r"table.csv: column 'c', data row 2 \(the header not counted\) is empty: its label"
    ):
        read_csv(write("a,c\n1,x\n2,\n3,y\n"), label="c")
    with pytest.raises(ValueError, match=r"the data frame: column 'c', row 2 holds nan: its label"):
        from_frame(pd.read_csv(write("a,c\n1,x\n2,\n3,y\n")), label="c")


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ({"a": [1, 2, 3], "c": ["x", "y"]}, "different lengths.*'a': 3, 'c': 2"),
        ({"a": [], "c": []}, "no rows"),
        ({"a": ["p", "q"], "c": ["x", "y"]}, "none but the label holds a number"),
        ({"a": [1, 2], "c": np.ones((2, 2))}, r"no column of labels: its shape is \(2, 2\)"),
        ({"a": [1, 2], "c": np.ma.masked_equal([1, 2], 2)}, "column 'c' has masked entries"),
    ],
)
def test_frames_with_labels_that_are_refused(frame, message):
    with pytest.raises(ValueError, match=message):
        from_frame(frame, label="c")


def test_only_texts_beside_the_label(write):
    with pytest.raises(ValueError, match="none but the label holds a number"):
        read_csv(write("a,c\np,x\nq,y\n"), label="c")


# -- problems ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [SquaredError(), Huber(), SoftmaxCrossEntropy()])
def test_a_problem_of_classes(loss):
    problem = Problem.from_csv(iris_path(), label="Species", loss=loss)
    assert problem.info.targets == ("setosa", "versicolor", "virginica")
    if isinstance(loss, SquaredError):  # of a linear network: the samples are reduced away
        assert problem.why_no_levels is None
        problem = Problem.from_csv(iris_path(), label="Species", loss=loss, activations="tanh")
    np.testing.assert_array_equal(problem.target, np.kron(np.eye(3), np.ones((1, 50))))
    X = np.asarray(problem.design)
    np.testing.assert_allclose(X.mean(axis=1), 0, atol=1e-14)
    np.testing.assert_allclose(X.std(axis=1), 1, rtol=1e-14)
    assert problem.info.notes[:2] == (
        "rows of X were standardised to unit variance",
        "classes of 'Species': setosa (50), versicolor (50), virginica (50): one row of Y each",
    )
    frame = pd.read_csv(iris_path())
    same = Problem.from_frame(frame, label="Species", loss=loss, activations="tanh")
    np.testing.assert_array_equal(same.design, problem.design)
    np.testing.assert_array_equal(same.target, problem.target)


def test_a_problem_of_two_classes_with_the_logistic_loss():
    frame = pd.read_csv(iris_path()).iloc[50:]
    problem = Problem.from_frame(frame, label="Species", loss=Logistic(), center=False, scale=False, biases=True)
    np.testing.assert_array_equal(problem.target, [[-1] * 50 + [1] * 50])
    assert problem.info.targets == ("versicolor", "virginica")
    assert problem.info.notes == ("classes of 'Species': versicolor (50), virginica (50): -1 and 1 in Y",)
    np.testing.assert_array_equal(problem.design[:4], frame[list(IRIS_FEATURES)].to_numpy().T)
    softmax = Problem.from_frame(frame, label="Species", loss=SoftmaxCrossEntropy())
    assert softmax.target.shape == (2, 100)


def test_the_logistic_loss_of_three_classes_names_them():
    with pytest.raises(
        ValueError, match=r"column 'Species' has 3 classes \(setosa, versicolor, virginica\).*two.*softmax"
    ):
        Problem.from_csv(iris_path(), label="Species", loss=Logistic())


@pytest.mark.parametrize(
    ("loss", "text", "options", "message"),
    [
        (Logistic(), "a,y\n1,0\n2,1\n4,1\n", {}, "needs labels -1 or 1, but Y contains 0.*label"),
        (Logistic(), "a,y\n1,-1\n2,1\n4,1\n", {}, "would be standardised, and then do not fit.*--no-center --no-scale"),
        (SoftmaxCrossEntropy(), "a,y,z\n1,0,1\n2,1,0\n4,1,0\n", {}, "would be standardised, and then do not fit.*center=False"),
        (SoftmaxCrossEntropy(), "a,y,z\n1,0,1\n2,1,1\n4,1,0\n", {}, "sum to 1, but column 1 of Y sums to 2.*label"),
        (SoftmaxCrossEntropy(), "a,y,z\n1,-1,2\n2,1,0\n4,1,0\n", {}, "probabilities, but Y contains -1.*label"),
    ],
)  # fmt: skip
def test_targets_of_another_kind_than_the_loss(write, loss, text, options, message):
    with pytest.raises(ValueError, match=message):
        Problem.from_csv(write(text), ["y", "z"] if "z" in text else ["y"], loss=loss, **options)


def test_targets_that_fit_the_loss_as_they_are(write):
    kept = dict(center=False, scale=False)
    path = write("a,y,z\n1,0,1\n2,1,0\n4,0.5,0.5\n")
    assert Problem.from_csv(path, ["y", "z"], loss=SoftmaxCrossEntropy(), **kept).target.shape == (2, 3)
    path = write("a,y\n1,-1\n2,1\n4,1\n")
    assert Problem.from_csv(path, "y", loss=Logistic(), **kept).info.targets == ("y",)


def test_other_losses_take_standardised_targets(write):
    path = write("a,y\n1,-1\n2,1\n4,1\n")
    for loss in (Huber(), EntryLoss(lambda output, target: (output - target) ** 2)):
        assert Problem.from_csv(path, "y", loss=loss).target.shape == (1, 3)


def test_a_loss_that_is_none_is_said_so(write):
    path = write("a,y,c\n1,-1,u\n2,1,v\n4,1,u\n")
    for columns in (dict(targets="y"), dict(label="c")):
        with pytest.raises(TypeError, match=r"the loss must be one of|parameter 'loss'"):
            Problem.from_csv(path, **columns, features="a", loss="logistic")


def test_constant_features_are_refused_by_name(write):
    with pytest.raises(ValueError, match="'b' is constant and cannot be scaled"):
        Problem.from_csv(write("a,b,c\n1,1,x\n2,1,y\n"), label="c")


def test_a_linear_network_with_the_squared_error_of_classes_has_levels():
    problem = Problem.from_csv(iris_path(), label="Species", coordinates="whitened")
    assert problem.why_no_levels is None
    assert problem.in_coordinates("data").info.targets == IRIS_CLASSES
    assert "3 classes" not in str(problem.report(problem.widths([2])))


# -- the short report --------------------------------------------------------------------------------------------------


def test_the_report_of_a_problem_without_levels():
    problem = Problem.from_csv(
        iris_path(), label="Species", loss=SoftmaxCrossEntropy(), activations=["relu", "tanh", "identity"], biases=True
    )
    report = problem.report(problem.widths([4, 6]))
    assert report.widths == (5, 5, 7, 3)
    assert report.num_parameters == 5 * 5 + 7 * 5 + 3 * 7
    assert report.num_idle == 10  # of the two constant hidden units
    text = str(report)
    for part in (
        "m=150 samples, d_x=4, d_y=3",
        "setosa, versicolor, virginica",
        "5-5-7-3",
        "81, 10 of them without effect",
        "SoftmaxCrossEntropy, the sum over samples",
        "ReLU, Tanh, Identity, layer by layer",
        "has kinks",
        "not known before any flow: this problem has activation ReLU, loss SoftmaxCrossEntropy, biases",
        "none if a network can separate the classes",
    ):
        assert part in text
    assert "parameters" not in str(problem.report())
    with pytest.raises(ValueError, match="do not fit the problem"):
        problem.report((4, 5, 3))


def test_idle_parameters_have_no_gradient():
    problem = Problem.from_csv(iris_path(), label="Species", activations="tanh", biases=True)
    widths = problem.widths([3, 2])

    gradient = problem.gradient(Gaussian(widths).sample(jax.random.key(0), 0))
    zeros = sum(int(np.sum(np.asarray(w) == 0)) for w in gradient.weights)
    assert zeros == problem.report(widths).num_idle == 5 + 4


def test_the_report_of_decay_and_of_a_linear_network():
    X, Y = np.eye(2), np.array([[1.0, -1.0]])
    report = Problem(X, Y, weight_decay=0.5).report((2, 3, 1))
    assert "½·0.5·Σ‖W_j‖²" in str(report)
    assert "weight decay 0.5" in str(report)
    report = Problem(X, Y, Logistic()).report((2, 3, 1))
    assert (report.activations, report.biases, report.smooth) == (("Identity",), False, True)
    assert "in all hidden layers" not in str(report)
    assert "minimum" in str(report)
    assert "minimum" not in str(dataclasses.replace(report, weight_decay=0.1))
