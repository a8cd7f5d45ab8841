"""`gdflow campaign …` and `gdflow sweep`: what they print and write; options for ending a run."""

import json

import matplotlib.image
import pandas
import pytest
from test_cli_networks import flat
from test_cli_networks import gdflow as gdflow

from gdflow import command_options

SMALL = ("--hidden", "2", "--no-staircase", "--no-proof", "--audit", "0", "--no-progress")


@pytest.fixture(autouse=True)
def _forget_tables():
    command_options.read.cache_clear()


@pytest.fixture
def run(gdflow, tmp_path):
    code, _, err = gdflow("basins", "--num", "40", *SMALL, "--out", "x")
    assert code == 0, err
    return tmp_path / "x"


def test_a_run_is_looked_at_checked_and_exported(gdflow, run, tmp_path):
    code, out, err = gdflow("campaign", "status", "x")
    assert (code, err) == (0, "")
    assert "40 of 40, complete" in flat(out)
    assert "Basins of 40 starts" in flat(out)
    code, out, err = gdflow("campaign", "verify", "x", "--no-progress")
    assert (code, err) == (0, "")
    assert "Basins" not in out
    code, out, err = gdflow("campaign", "export", "x", "rows.csv", "--no-progress")
    assert (code, err) == (0, "")
    assert "wrote 40 rows to rows.csv" in flat(out)
    assert pandas.read_csv(tmp_path / "rows.csv")["id"].tolist() == list(range(40))
    code, _, err = gdflow("campaign", "export", "x", "rows.csv", "--no-progress")
    assert code == 2
    assert "is there already" in err
    # Damage is named, nothing is changed, and resume repairs it.
    (unit,) = (run / "outcomes").iterdir()
    unit.write_bytes(unit.read_bytes()[:-1])
    for command in ("status", "verify"):
        code, out, err = gdflow("campaign", command, "x")
        assert code == 2
        assert "1 files are damaged: gdflow campaign resume" in flat(err)
        assert unit.name in out.replace("\n", "")
    assert unit.exists()
    code, out, err = gdflow("campaign", "resume", "x", "--no-progress")
    assert code == 0
    assert "was set aside" in flat(err)
    assert "Basins of 40 starts" in flat(out)
    code, out, err = gdflow("campaign", "resume", "x", "--num", "60", "--no-progress")
    assert (code, err) == (0, "")
    assert "40 starts were asked for before" in flat(out)
    assert matplotlib.image.imread(run / "basins.png").shape[2] == 4


@pytest.mark.parametrize("command", ["status", "verify", "resume"])
def test_where_there_is_no_run(gdflow, tmp_path, command):
    code, _, err = gdflow("campaign", command, "nothing")
    assert code == 2
    assert "there are no results of a campaign" in err
    assert not (tmp_path / "nothing").exists()


@pytest.mark.slow
def test_runs_end_by_rules(gdflow, tmp_path):
    code, out, err = gdflow("basins", "--half-width", "0.1", *SMALL, "--out", "y")
    assert (code, err) == (0, "")
    assert "a run that ends at intervals of ± 0.1" in flat(out)
    assert json.loads((tmp_path / "y" / "summary.json").read_text())["num"] < 10**6
    for option, value in (("--half-width", "0"), ("--seconds", "-1"), ("--half-width", "inf")):
        code, _, err = gdflow("basins", option, value, *SMALL, "--out", "z")
        assert code == 2
        assert f"{option} must be positive and finite" in err
    code, _, err = gdflow("basins", "--scheduler", "nonsense", *SMALL, "--out", "z")
    assert code == 2
    assert "there is no Dask scheduler at 'nonsense'" in err


@pytest.mark.slow
def test_sweeps(gdflow, tmp_path):
    arguments = ("sweep", "--depth", "1", "2", "--init-scale", "0.3", "1", "--num", "20", "--no-progress", "--out", "s")
    code, out, err = gdflow(*arguments)
    assert (code, err) == (0, "")
    assert "4 runs" in out
    frame = pandas.read_csv(tmp_path / "s" / "table.csv")
    assert set(frame["depth"]) == {1, 2}
    assert matplotlib.image.imread(tmp_path / "s" / "sweep.png").shape[2] == 4
    code, again, err = gdflow(*arguments)
    assert (code, err, again) == (0, "", out)
    for options, message in (
        (("--optimizer", "adam"), "--optimizer adam needs --step"),
        (("--step", "0.1"), "--step is of optimizers"),
        (("--init-scale", "0"), "--init-scale must be positive"),
        (("--depth", "1", "1"), "--depth names a value twice"),
    ):
        code, _, err = gdflow("sweep", *options, "--out", "t")
        assert code == 2
        assert message in err
