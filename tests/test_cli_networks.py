"""The command line with activations, other losses, labels, weight decay and biases."""

import json
import os
import pathlib
import subprocess
import sys
import typing

import matplotlib.image
import numpy as np
import pyarrow.parquet
import pytest
from test_cli import run

from gdflow import activations, cli, command_options, losses
from gdflow.command_options import Columns, Network, Running, proves
from gdflow.data.bundled import IRIS_FEATURES, NAMED, iris_path
from gdflow.initialization import Gaussian

IRIS = str(iris_path())


@pytest.fixture(autouse=True)
def _forget_tables():
    """Tables are kept by name for one command, while tests write other files of the same name."""
    command_options.read.cache_clear()


@pytest.fixture
def gdflow(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: run(capsys, monkeypatch, *arguments)


@pytest.fixture
def csv(tmp_path):
    def write(text):
        path = tmp_path / "table.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def flat(text):
    return " ".join(text.replace("│", " ").split())


# -- options -----------------------------------------------------------------------------------------------------------


def test_the_names_are_those_of_the_library():
    assert typing.get_args(command_options.Activation) == tuple(activations.NAMED)
    assert typing.get_args(command_options.Loss) == tuple(losses.NAMED)


@pytest.mark.parametrize(
    ("network", "names", "widths"),
    [
        (Network(), None, (4, 5, 5, 3)),
        (Network(hidden=(3,), activation=("tanh",)), ["Tanh"], (4, 3, 3)),
        (Network(hidden=(3, 2), activation=("relu", "leaky-relu", "sigmoid")), ["ReLU", "LeakyReLU", "Sigmoid"], (4, 3, 2, 3)),
        (Network(hidden=(), activation=("tanh",)), ["Tanh"], (4, 3)),
        (Network(hidden=(3,), biases=True), ["Identity"], (5, 4, 3)),
        (Network(hidden=(3,), weight_decay=0.5), ["Identity"], (4, 3, 3)),
        (Network(hidden=(3,), activation=("identity",)), None, (4, 3, 3)),
    ],
)  # fmt: skip
def test_networks(network, names, widths):
    problem, got = network.problem(pathlib.Path("iris"), Columns())
    assert got == widths
    assert (problem.why_no_levels is None) == (names is None)
    if names:
        assert [activation.name for activation in problem.objective.activations] == names
        assert problem.objective.biases == network.biases
        assert float(problem.objective.decay) == network.weight_decay


@pytest.mark.parametrize("name", losses.NAMED)
def test_losses(name, csv):
    path = csv("a,c\n1,x\n2,y\n4,x\n5,y\n")
    problem, widths = Network(loss=name).problem(path, Columns(label="c"))
    assert isinstance(problem.loss, losses.NAMED[name])
    assert widths == (1, 5, 5, 1 if name == "logistic" else 2)
    assert problem.info.targets == ("x", "y")


def test_bundled_data_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert set(NAMED) == {"iris", "linnerud"}
    iris = Columns().table(pathlib.Path("iris"))
    assert (iris.label, iris.features) == ("Species", IRIS_FEATURES)
    assert Columns().table(pathlib.Path("linnerud")).targets == Columns().table(None).targets
    chosen = Columns(targets=("PetalWidth",), features=("PetalLength",)).table(pathlib.Path("iris"))
    assert (chosen.label, chosen.targets, chosen.features) == (None, ("PetalWidth",), ("PetalLength",))
    assert Columns(features=("Chins",)).table(pathlib.Path("linnerud")).targets == ("Weight", "Waist", "Pulse")
    # A file of this name comes first.
    command_options.read.cache_clear()
    pathlib.Path("iris").write_text("a,b\n1,2\n", encoding="utf-8")
    assert Columns(targets=("b",)).table(pathlib.Path("iris")).features == ("a",)


@pytest.mark.parametrize("verdict", ["level", "almost-sure", "balanced"])
def test_verdicts_are_refused_without_levels(verdict):
    problem, widths = Network(activation=("tanh",)).problem(None, Columns())
    with pytest.raises(
        ValueError, match=rf"--verdict {verdict} needs the critical values.*activation Tanh. Leave it out"
    ):
        Running(verdict=verdict).options(problem, widths)


def test_the_staircase_is_refused_without_levels():
    problem, widths = Network(loss="huber").problem(None, Columns())
    for given, option in ((True, "--staircase"), (False, "--no-staircase")):
        with pytest.raises(ValueError, match=f"^{option} needs the critical values.*loss Huber"):
            Running(staircase=given).options(problem, widths)
    assert Running().options(problem, widths)["riders"] is None
    linear, widths = Network().problem(None, Columns())
    assert Running(staircase=True).options(linear, widths)["riders"] is None
    assert len(Running(staircase=False).options(linear, widths)["riders"]) == 1


def test_proofs_are_refused_without_levels():
    problem, widths = Network(biases=True).problem(None, Columns())
    options, law = Running().options(problem, widths), Gaussian(widths)
    with pytest.raises(ValueError, match=r"^--proof needs the critical values.*biases"):
        proves(problem, law, options, True, None)
    assert not proves(problem, law, options, None, None)
    assert not proves(problem, law, options, False, 10)
    linear, widths = Network().problem(None, Columns())
    options, law = Running().options(linear, widths), Gaussian(widths)
    assert proves(linear, law, options, None, None)
    assert proves(linear, law, options, True, None)
    assert not proves(linear, law, options, None, 10)


# -- messages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["iris", "--activation", "tanhh"], "Invalid value"),
        (["iris", "--activation", "tanh", IRIS], "Invalid value"),
        (["iris", "--activation", "tanh", "relu"], "--activation names 2 activations (tanh relu), but there are 3 layers"),
        (["iris", "--hidden", 3, "--activation", "tanh", "relu", "relu"], "but there are 2 layers (--hidden 3, and the output)"),
        (["iris", "--loss", "hinge"], "Invalid value"),
        (["iris", "--weight-decay", -1], "--weight-decay must be finite and not negative, got -1"),
        (["iris", "--weight-decay", "nan"], "--weight-decay must be finite and not negative, got nan"),
        (["iris", "--loss", "logistic"], "has 3 classes (setosa, versicolor, virginica), but the logistic loss is for two."),
        (["iris", "--label", "PetalWidth"], "all labels are numbers, and one is 0.2, but a class is a text"),
        (["iris", "--label", "Spezies"], "has no column 'Spezies'; it has 'SepalLength'"),
        (["iris", "--label", "Species", "--targets", "PetalWidth"], "--targets PetalWidth and --label Species exclude each"),
        (["--label", "Species"], "need a data file before them: FILE.csv --targets …, or the name of bundled data: linnerud or"),
        (["--label", IRIS], "is a file: put the data file first"),
        ([IRIS], "name at least one target column"),
        (["Iris"], "there is no file 'Iris', nor are there bundled data of this name: linnerud or iris"),
        (["linnerud", "--loss", "softmax"], "cross-entropy needs columns that sum to 1, but"),
        (["linnerud", "--loss", "logistic"], "the logistic loss needs labels -1 or 1, but Y contains 191"),
        (["linnerud", "--label", "Pulse"], "different labels in 20 rows, so this is probably no column of classes"),
        (["iris", "--activation", "tanh", "--coordinates", "whitened"], "this problem has activation Tanh, which has data coord"),
        (["iris", "--activation", "tanh", "--verdict", "level"], "--verdict level needs the critical values"),
        (["iris", "--activation", "tanh", "--proof"], "--proof needs the critical values"),
        (["iris", "--loss", "softmax", "--no-staircase"], "--no-staircase needs the critical values"),
        (["iris", "--biases", "--staircase"], "--staircase needs the critical values"),
    ],
)  # fmt: skip
def test_bad_options(gdflow, arguments, message):
    code, out, err = gdflow("basins", *arguments)
    assert code != 0
    assert message in flat(out + err)
    assert "Traceback" not in out + err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,c\n1,x\n2,\n3,y\n4,y\n", "column 'c', data row 2 (the header not counted) is empty: its label is missing"),
        ("a,c\n1,x\n2,x\n", "all 2 labels are x, but a classification needs two classes"),
        ("a,b,c\n1,1,x\n2,1,y\n", "'b' is constant and cannot be scaled"),
        ("b,c\np,x\nq,y\n", "none but the label holds a number"),
        ("a,c\n1,x\nz,y\n", "column 'a', data row 2 (the header not counted) holds 'z', which is no number"),
    ],
)
def test_bad_labels(gdflow, csv, text, message):
    code, _, err = gdflow("report", csv(text), "--label", "c")
    assert code == 2
    assert message in flat(err)


def test_an_npz_file_takes_no_label(gdflow):
    np.savez("d.npz", X=np.ones((1, 3)), Y=np.ones((1, 3)))
    code, _, err = gdflow("report", "d.npz", "--label", "c")
    assert code == 2
    assert "takes no --targets, --features or --label" in flat(err)


def test_mistakes_with_labels_do_not_wait_for_jax(tmp_path):
    (tmp_path / "jax.py").write_text("raise SystemError('JAX is imported')")
    path = os.pathsep.join([str(tmp_path), str(pathlib.Path(cli.__file__).parents[1])])
    for options, message in ((["--loss", "logistic"], "3 classes"), (["--label", "PetalWidth"], "a class is a text")):
        done = subprocess.run(
            [sys.executable, "-m", "gdflow", "basins", "iris", *options],
            env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, cwd=tmp_path, timeout=60,
        )  # fmt: skip
        assert done.returncode == 2
        assert message in flat(done.stderr)


# -- report ------------------------------------------------------------------------------------------------------------


def test_report_without_levels(gdflow):
    options = ["--activation", "tanh", "--loss", "softmax", "--biases", "--weight-decay", 0.1, "--hidden", 4]
    code, out, err = gdflow("report", "iris", *options)
    assert (code, err) == (0, "")
    for part in (
        "iris.csv: m=150 samples, d_x=4, d_y=3",
        "setosa, versicolor, virginica",
        "5-5-3",
        "40, 5 of them without effect",
        "SoftmaxCrossEntropy, the sum over samples, and ½·0.1·Σ‖W_j‖²",
        "Tanh in all hidden layers",
        "a constant unit",
        "not known before any flow: this problem has activation Tanh, loss SoftmaxCrossEntropy, weight decay 0.1, biases",
        "setosa (50), versicolor (50), virginica (50)",
    ):
        assert part in flat(out)


def test_report_of_labels_with_levels(gdflow):
    """A linear network with the squared error of one-hot targets has critical values like any other."""
    code, out, err = gdflow("report", "iris", "--hidden", 2, "--lowest", 2)
    assert (code, err) == (0, "")
    for part in ("4-2-3", "Critical values", "the lowest 2", "rows of X were standardised"):
        assert part in out


def test_report_of_two_classes_from_a_file(gdflow, csv):
    path = csv("name,a,b,c\np,1,2,yes\nq,2,0,no\nr,4,1,no\ns,3,3,yes\n")
    code, out, err = gdflow("report", path, "--label", "c", "--loss", "logistic", "--hidden", 3)
    assert (code, err) == (0, "")
    for part in (
        "2-3-1",
        "no, yes",
        "no (2), yes (2): -1 and 1 in Y",
        "left out: name",
        "none if a network can separate",
    ):
        assert part in flat(out)


# -- simulate ----------------------------------------------------------------------------------------------------------

SMALL = ["--label", "c", "--hidden", 2, "--activation", "tanh", "--loss", "softmax", "--weight-decay", 1]


@pytest.fixture
def four(csv):
    return csv("a,c\n1,x\n2,y\n4,x\n5,y\n")


@pytest.mark.slow
def test_simulate_ends_where_the_gradient_has_fallen(gdflow, four):
    _, out, _ = gdflow("simulate", four, *SMALL)
    assert "stopped: AtGradientNorm" in out
    assert "certified" not in out


@pytest.mark.slow
def test_simulate_ends_at_a_time(gdflow, four):
    _, out, _ = gdflow("simulate", four, *SMALL, "--t1", 0.01)
    assert "reached t1" in out
    assert "time 0.01 after" in flat(out)


@pytest.mark.slow
def test_simulate_ends_at_the_step_limit(gdflow, four):
    _, out, _ = gdflow("simulate", four, *SMALL, "--max-steps", 5)
    assert "step limit" in out


@pytest.mark.slow
def test_a_start_without_gradient_stays(gdflow, csv):
    """The only unit is off in about half of the starts."""
    path = csv("a,y\n1,1\n2,2\n")
    options = ["--targets", "y", "--no-center", "--no-scale", "--hidden", 1, "--activation", "relu"]
    ends = []
    for start in range(5):
        _, out, _ = gdflow("simulate", path, *options, "--start", start, "--overwrite")
        assert "stopped: AtGradientNorm" in out
        ends.append("time 0 after" in flat(out))
        if ends[-1]:
            break
    assert any(ends)


def test_simulate_draws_a_picture(gdflow, four):
    code, _, err = gdflow("simulate", four, *SMALL)
    assert (code, err) == (0, "")
    assert matplotlib.image.imread("gdflow-out/trajectory.png").shape[0] > 300


# -- basins ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--activation", "tanh", "--loss", "softmax", "--weight-decay", 1], marks=pytest.mark.slow),
        pytest.param(["--activation", "tanh", "--biases", "--weight-decay", 1, "--no-proof"], marks=pytest.mark.slow),
        ["--loss", "softmax", "--weight-decay", 1, "--solver", "rkc"],
    ],
)
def test_basins_without_levels(gdflow, options):
    common = ["--hidden", 2, "--num", 12, "--audit", 0, "--no-progress"]
    code, out, err = gdflow("basins", "iris", *options, *common)
    assert (code, err) == (0, "")
    assert "not known before any flow" in out
    folder = pathlib.Path("gdflow-out")
    assert pyarrow.parquet.read_table(folder / "outcomes").num_rows == 12
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["data"]["targets"] == ["setosa", "versicolor", "virginica"]
    assert matplotlib.image.imread(folder / "basins.png").shape[0] > 300

    # The same command opens them again, and from the summary alone the outcomes are the same.
    code, out, err = gdflow("basins", "iris", *options, *common)
    assert (code, err) == (0, "")
    assert "of an earlier run" in out
    code, _, err = gdflow("repeat", "gdflow-out/summary.json", "--out", "again", "--no-progress")
    assert (code, err) == (0, "")


@pytest.mark.slow
def test_basins_of_labels_with_levels(gdflow):
    code, out, err = gdflow("basins", "iris", "--hidden", 2, "--num", 5, "--audit", 0, "--no-proof", "--no-progress")
    assert (code, err) == (0, "")
    assert "5 certified" in out


def test_help_names_the_options(gdflow):
    for command in ("basins", "report", "simulate"):
        code, out, _ = gdflow(command, "--help")
        assert code == 0
        for option in ("--activation", "--loss", "--label", "--weight-decay", "--biases", "--hidden"):
            assert option in out
