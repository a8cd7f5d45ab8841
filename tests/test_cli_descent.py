"""The command line: `gdflow descent`."""

import matplotlib.image
import pyarrow.parquet
import pytest
from test_cli_networks import flat
from test_cli_networks import gdflow as gdflow

from gdflow import command_options


@pytest.fixture(autouse=True)
def _forget_tables():
    command_options.read.cache_clear()


@pytest.mark.slow
def test_descent_writes_a_table_a_picture_and_all_rows(gdflow, tmp_path):
    arguments = ("descent", "--hidden", "4", "--step", "0.002", "0.004", "--num", "30", "--no-progress", "--out", "out")
    code, out, err = gdflow(*arguments)
    assert code == 0, err
    text = flat(out)
    assert "Where 30 starts end, by step" in text
    assert "gradient descent" in text
    assert "100.0 [88.4, 100]" in text  # Clopper and Pearson for 30 of 30: 0.025^(1/30) = 0.8843
    assert matplotlib.image.imread(tmp_path / "out" / "descent.png").shape[2] == 4
    for name in ("flow", "step-0.002", "step-0.004"):
        assert pyarrow.parquet.read_table(tmp_path / "out" / name / "outcomes").num_rows == 30
    # Runs that are there are opened; others are replaced only when asked, and before any is run it is said that they are there.
    code, out, err = gdflow(*arguments)
    assert code == 0, err
    assert flat(out) == text
    other = [*arguments[:3], "--step", "0.001", "0.002", "--max-steps", "50", *arguments[6:]]
    code, out, err = gdflow(*other)
    assert code == 2
    assert "flow already holds results of another run: limits.max_steps" in flat(err)
    code, out, err = gdflow(*other, "--overwrite")
    assert code == 0, err


@pytest.mark.slow
def test_steps_that_are_close_have_rows_of_their_own(gdflow, tmp_path):
    steps = ("0.002", "0.0020000001")
    code, _, err = gdflow(
        "descent", "--hidden", "4", "--step", *steps, "--num", "5", "--no-flow", "--no-progress", "--out", "out"
    )
    assert code == 0, err
    assert sorted(path.name for path in (tmp_path / "out").glob("step-*")) == [f"step-{step}" for step in steps]


@pytest.mark.slow
def test_other_optimizers_and_minibatches(gdflow, tmp_path):
    code, out, err = gdflow(
        "descent", "--hidden", "4", "--optimizer", "momentum", "--batch-size", "5", "--step", "0.0005", "--num", "10",
        "--max-steps", "200", "--no-flow", "--no-progress", "--out", "out",
    )  # fmt: skip
    assert code == 0, err
    assert "sgd" in flat(out)
    # The misfit of single samples keeps the iterates restless: nothing is claimed.
    assert "undecided" in flat(out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--step", "0"), "--step must be positive and finite, got 0"),
        (("--step", "nan"), "--step must be positive and finite, got nan"),
        (("--batch-size", "0"), "--batch-size must be at least 1, got 0"),
        (("--batch-size", "1000"), "there are only 20"),
        (("--optimizer", "lion"), "lion"),
        (("--coordinates", "whitened", "--batch-size", "2"), "minibatches are of samples"),
    ],
)
def test_bad_options(gdflow, arguments, message):
    code, _, err = gdflow("descent", *arguments, "--num", "5", "--no-progress")
    assert code == 2
    assert message in flat(err)
