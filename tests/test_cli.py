"""The command line: files it writes, repeatability, and the message for every kind of bad input."""

import contextlib
import io
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile

import matplotlib.figure
import matplotlib.image
import numpy as np
import pyarrow.parquet
import pytest

import gdflow as gf
from gdflow import cli, plotting
from gdflow.basins.rows import Gathering
from gdflow.data import linnerud_path

LINNERUD = str(linnerud_path())
TARGETS = ["--targets", "Weight", "Waist", "Pulse"]


def assert_same_outcomes(one, other):
    """Labels and counts alike; times and norms to round-off, for root finding depends on which lanes finish together."""
    for name in one.column_names:
        if name in ("id", "status", "verdict", "limit", "highest", "steps"):
            assert one[name].equals(other[name]), name
        else:
            np.testing.assert_allclose(
                one[name].to_numpy(), other[name].to_numpy(), rtol=1e-9, atol=1e-12, err_msg=name
            )


def run(capsys, monkeypatch, *arguments):
    """Runs the entry point in this process: (exit code, standard output, standard error)."""
    monkeypatch.setattr(sys, "argv", ["gdflow", *map(str, arguments)])
    monkeypatch.setenv("GDFLOW_CACHE", "")  # this process keeps its programs as `conftest.py` says
    try:
        cli.main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err.replace("\n", " ")


@pytest.fixture
def gdflow(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: run(capsys, monkeypatch, *arguments)


@pytest.fixture
def csv(tmp_path):
    def write(text, name="table.csv"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.slow
def test_basins_without_arguments_runs_linnerud_and_writes_everything(gdflow, tmp_path):
    code, out, err = gdflow("basins", "--num", 60, "--no-progress")
    assert (code, err) == (0, "")
    for part in (
        "standardised",
        "Critical values",
        "60 certified",
        "global minimum",
        "every start",
        "gdflow-out",
    ):
        assert part in out
    folder = tmp_path / "gdflow-out"
    table = pyarrow.parquet.read_table(folder / "outcomes")
    assert table.num_rows == 60
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["certified"] + summary["undecided"] == summary["num"] == 60
    assert summary["proved"] == 60
    assert summary["data"]["notes"][0].startswith("rows of X and Y were standardised")
    assert summary["plan"]["versions"]["jax"]
    picture = matplotlib.image.imread(folder / "basins.png")
    assert picture.shape[0] > 300
    assert np.std(picture) > 0.05  # not blank

    # The same command opens them again; another one leaves the folder alone unless asked.
    before = (folder / "outcomes").stat().st_mtime_ns
    code, out, err = gdflow("basins", "--num", 60, "--no-progress")
    assert (code, err) == (0, "")
    assert "gdflow-out: of an earlier run" in out
    assert (folder / "outcomes").stat().st_mtime_ns == before
    code, _, err = gdflow("basins", "--num", 60, "--seed", 1, "--no-progress")
    assert code == 2
    assert "already holds results of another run: starts.key" in err
    assert "--overwrite" in err

    # From the summary alone, and anew, the outcomes are the same; another seed gives others.
    code, *_ = gdflow("repeat", "gdflow-out/summary.json", "--out", "again", "--no-progress")
    assert code == 0
    assert_same_outcomes(pyarrow.parquet.read_table(tmp_path / "again" / "outcomes"), table)
    code, *_ = gdflow("basins", "--num", 60, "--overwrite", "--no-progress")
    assert code == 0
    assert_same_outcomes(pyarrow.parquet.read_table(folder / "outcomes"), table)
    gdflow("basins", "--num", 60, "--seed", 1, "--out", "other", "--no-progress")
    other = pyarrow.parquet.read_table(tmp_path / "other" / "outcomes")
    assert not np.any(np.isclose(other["time"].to_numpy(), table["time"].to_numpy(), rtol=1e-9))


@pytest.mark.slow
def test_solvers_and_verdicts_by_name(gdflow):
    options = ["--hidden", 2, "--num", 20, "--audit", 0, "--no-progress", "--rtol", "1e-4"]
    code, out, _ = gdflow("basins", *options, "--solver", "rkc", "--verdict", "almost-sure", "--out", "a")
    assert code == 0
    assert "(almost surely)" in out
    code, out, _ = gdflow("basins", *options, "--max-steps", 3, "--out", "b")
    assert code == 0
    assert "--solver rkc" in out  # a hint where starts end at the step limit
    code, _, err = gdflow("basins", *options, "--verdict", "balanced", "--out", "c")
    assert code == 2
    assert "does not say that its starts are" in err


def test_report_and_coordinates(gdflow):
    code, out, _ = gdflow("report", LINNERUD, *TARGETS, "--hidden", 2, "--coordinates", "whitened", "--lowest", 2)
    assert code == 0
    assert "3-2-3" in out
    assert "whitened" in out
    assert "the lowest 2" in out


@pytest.mark.slow
def test_simulate_writes_a_picture(gdflow, tmp_path):
    code, out, _ = gdflow("simulate", "--start", 3)
    assert code == 0
    assert "global minimum certified" in out
    assert matplotlib.image.imread(tmp_path / "gdflow-out" / "trajectory.png").shape[0] > 300


def test_npz(gdflow, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", X=rng.normal(size=(3, 20)), Y=rng.normal(size=(2, 20)))
    code, out, _ = gdflow("report", "d.npz", "--hidden", 4)
    assert code == 0
    assert "standardised" not in out
    assert "3-4-2" in out
    code, _, err = gdflow("report", "d.npz", "--targets", "a")
    assert code == 2
    assert "takes no --targets" in err


def test_bare_command_prints_help(gdflow):
    code, out, _ = gdflow()
    assert code == 0
    for command in ("basins", "report", "simulate", "--install-completion"):
        assert command in out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_installed_where_asked(gdflow, monkeypatch, tmp_path, shell):
    monkeypatch.setenv("HOME", str(tmp_path))  # startup files are there
    code, out, err = gdflow("--install-completion", "--shell", shell, "--output", "completion")
    assert (code, err) == (0, "")
    assert "completion" in out
    script = (tmp_path / "completion").read_text()
    for word in ("basins", "coordinates", "whitened"):
        assert word in script


def test_version():
    process = subprocess.run([sys.executable, "-m", "gdflow", "--version"], capture_output=True, text=True, check=True)
    assert process.stdout.strip()[0].isdigit()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num", -3], "num must be at least 1, got -3"),
        (["--num", "many"], "Invalid value for --num"),
        (["--nmu", 3], "Did you mean --num?"),
        (["nothing.csv", *TARGETS], "there is no file 'nothing.csv'"),
        ([LINNERUD], "name at least one target column"),
        ([LINNERUD, "--targets", "Wieght"], "has no column 'Wieght'; it has 'Chins'"),
        ([LINNERUD, "--targets", "Weight", "--features", "Weight"], "both as a feature and as a target"),
        (["--targets", "Weight", LINNERUD], "is a file: put the data file first"),
        (["--targets", "Weight"], "need a data file"),
        (["--hidden", 0], "widths must be positive integers, got 0"),
        (["--hidden", 10**6, 10**6], "parameters, more than"),
        (["--hidden", 6000, 6000], "narrower layers"),
        (["--confidence", 95], "confidence must lie between 0 and 1, got 95"),
        (["--rtol", -1], "need 0 < rtol < 1, got rtol=-1.0"),
        (["--t1", 0], "t1 must be positive"),
        (["--max-steps", 0], "max_steps must be at least 1"),
        (["--audit", -1], "audit must be at least 0"),
        (["--seed", -1], "--seed must lie between"),
        (["--init-scale", 0], "scale must be positive and finite, got 0"),
        (["--init", "gauss"], "Invalid value"),
        (["--init", "pyramidal", "--hidden", 2, 5], "pyramidal starts need d_1 ≥ … ≥ d_N"),
        (["--coordinates", "polar"], "Invalid value"),
    ],
)
def test_bad_options(gdflow, arguments, message):
    code, out, err = gdflow("basins", *arguments)
    assert code != 0
    flat = " ".join((out + err).replace("│", " ").split())
    assert message in flat
    assert "Traceback" not in out + err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a,b,y\n", "has a header but no data rows"),
        ("a,b,y\n1,2,3\n1,x,3\n", "column 'b', data row 2 (the header not counted) holds 'x', which is no number"),
        ("a,b,y\n1,2,3\n1,,3\n", "column 'b', data row 2 (the header not counted) is empty"),
        ("a,b,y\n1,2,3\n1,nan,3\n", "column 'b', data row 2 (the header not counted) is nan"),
        ("a,b,y\n1,2,3\n", "constant and cannot be scaled"),
        ("a,b,y\n1,2,3\n1,2\n", "cannot be read as CSV"),
    ],
)
def test_bad_files(gdflow, csv, text, message):
    code, _, err = gdflow("basins", csv(text), "--targets", "y")
    assert code == 2
    assert message in " ".join(err.split())


def test_unwritable_folders(gdflow, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = gdflow("basins", "--out", "file")
    assert code == 2
    assert "cannot be an output folder" in err
    if pathlib.Path("/proc/self").exists():
        code, _, err = gdflow("basins", "--out", "/proc/gdflow")
        assert code == 2
        assert "cannot be made" in err


@pytest.mark.slow
def test_a_second_run_finds_its_programs_and_gives_the_same_outcomes(tmp_path):
    environment = {**os.environ, "GDFLOW_CACHE": str(tmp_path / "cache")}
    tables, programs = [], []
    for name in ("first", "second"):
        command = [
            sys.executable,
            "-m",
            "gdflow",
            "basins",
            "--num",
            "100",
            "--out",
            name,
            "--no-progress",
        ]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        tables.append(pyarrow.parquet.read_table(tmp_path / name / "outcomes"))
        programs.append({path.name for path in (tmp_path / "cache").rglob("*-cache")})
    assert programs[0]
    assert programs[0] == programs[1]
    assert_same_outcomes(*tables)
    assert "crossing_0" in tables[0].column_names


# -- where the output goes ---------------------------------------------------------------------------------------------


def broken_pipe():
    """A text stream that nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    return open(writing, "w", encoding="utf-8")


@pytest.fixture
def report(monkeypatch, capfd):
    """`gdflow report` with another standard output: (exit code, standard error)."""

    def report(stream):
        monkeypatch.setattr(sys, "argv", ["gdflow", "report"])
        monkeypatch.setenv("GDFLOW_CACHE", "")
        monkeypatch.setattr(sys, "stdout", stream)
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code
        return code, capfd.readouterr().err

    return report


def test_a_reader_that_leaves_is_no_error(report):
    """`gdflow report | head -1`: rich would end the command, and so a computation."""
    stream = broken_pipe()
    assert report(stream) == (0, "")
    with contextlib.suppress(BrokenPipeError):
        stream.close()


def test_a_closed_output_is_no_error(report):
    assert report(None) == (0, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_an_output_that_cannot_be_written_is_said_so(report):
    stream = pathlib.Path("/dev/full").open("w", encoding="utf-8")  # noqa: SIM115 (its closing fails)
    code, err = report(stream)
    assert code == 2
    assert err == "gdflow: standard output cannot be written: No space left on device\n"
    with contextlib.suppress(OSError):
        stream.close()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_outputs_of_any_encoding(report, encoding):
    file = io.BytesIO()
    stream = io.TextIOWrapper(file, encoding=encoding)
    assert report(stream) == (0, "")
    text = file.getvalue().decode(encoding)
    assert "largest rank" in text
    assert ("‖" in text) == (encoding == "utf-8")
    assert (r"\u2016" in text) == (encoding != "utf-8")


# -- before and after the computation ----------------------------------------------------------------------------------


@pytest.fixture
def without_jax(tmp_path):
    """Runs the command line in a process of its own, in which importing JAX does something else."""

    def run(instead, *arguments):
        (tmp_path / "jax.py").write_text(instead)
        path = os.pathsep.join([str(tmp_path), str(pathlib.Path(cli.__file__).parents[1])])
        # Whatever runs the tests may ignore interrupts, as a shell's background jobs do: the command line shall not.
        as_module = (
            "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
            "runpy.run_module('gdflow', run_name='__main__')"
        )
        return subprocess.run(
            [sys.executable, "-c", as_module, *arguments],
            env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    return run


def test_an_interrupt_amid_the_imports_leaves_no_traceback(without_jax):
    done = without_jax("import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(10)", "report")
    assert done.returncode in (130, -signal.SIGINT)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--help"], 0, "Gradient flow in deep linear networks"),
        (["basins", "--help"], 0, "Number of random starts"),
        (["--version"], 0, "."),
        (["basins", "--nmu", "3"], 2, "Did you mean --num?"),
    ],
)
def test_help_and_mistakes_do_not_wait_for_jax(without_jax, arguments, code, message):
    done = without_jax("raise SystemError('JAX is imported')", *arguments)
    assert done.returncode == code
    assert message in done.stdout + done.stderr


def test_a_note_is_one_line(gdflow, csv):
    code, out, err = gdflow("report", csv("id,a,y\n0,2,3\n1,5,4\n2,6,7\n"), "--targets", "y")
    assert code == 0
    assert "id, a" in out
    assert re.fullmatch(r"gdflow: note: \S*table.csv: column 'id' counts the rows; .* naming the feature columns ", err)


SMALL = ["basins", "--num", 20, "--hidden", 2, "--no-staircase", "--audit", 0, "--no-progress", "--out", "x"]


@pytest.mark.slow
def test_numbers_are_printed_and_kept_if_the_picture_cannot_be_drawn(gdflow, tmp_path, monkeypatch):
    monkeypatch.setattr(plotting, "plot_basins", lambda *_: (_ for _ in ()).throw(RuntimeError("no [red]ink")))
    code, out, err = gdflow(*SMALL)
    assert code == 2
    assert "Basins of 20 starts" in out
    assert "wrote outcomes/, summary.json to x/" in out
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == [".lock", "campaign.json", "outcomes", "summary.json"]
    assert err == "gdflow: the picture x/basins.png could not be made: RuntimeError: no [red]ink "


@pytest.mark.slow
def test_rows_are_kept_if_the_folder_goes(gdflow, tmp_path, monkeypatch):
    """The folder is removed while lanes run: one message, which says where the rows are."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    add = Gathering.add

    def removing(self, ids, columns):
        shutil.rmtree(tmp_path / "x", ignore_errors=True)
        add(self, ids, columns)

    monkeypatch.setattr(Gathering, "add", removing)
    code, out, err = gdflow(*SMALL)
    assert code == 2
    assert "wrote" not in out
    assert err.count("No such file or directory") == 1
    (rescue,) = (tmp_path / "elsewhere").rglob("*.parquet")
    assert str(rescue) in err
    assert pyarrow.parquet.read_table(rescue).num_rows == 20


def test_all_public_names_are_there():
    """They are imported on demand, as the stub lists them."""
    names = set(re.findall(r"import \w+ as (\w+)", pathlib.Path(gf.__file__).with_suffix(".pyi").read_text()))
    assert {"Problem", "basin_sizes", "landscape"} < names <= set(dir(gf))
    for name in names:
        assert getattr(gf, name).__name__ in (name, f"gdflow.{name}")
    assert gf.dynamics.simulate is gf.simulate
    with pytest.raises(AttributeError, match="no attribute 'Problems'"):
        _ = gf.Problems
