"""Random command lines, tables and stored files: a message or a result, never a traceback, and nothing outside the folder."""

import contextlib
import io
import json
import os
import pathlib
import shutil
import sys

import jax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gdflow as gf
from gdflow import cli
from gdflow.basins import Limits

pytestmark = pytest.mark.slow


def quick(num):
    return settings(max_examples=num, deadline=None, suppress_health_check=list(HealthCheck))


#: Names that systems, terminals and marked-up text might trip over.
NASTY = st.sampled_from(
    ["a b", "ä→∞", "[red]x[/red]", "[/]", "..", "../x", "a/../b", "-x", "--", "a\x1b[31mb", "a\nb", "\u202eabc", "%s", "{0}",
        "$HOME", "~", "nul\0l", "x" * 300, "", " ", ".", "NaN", "1e400", "-1", "0", "2", "3", "0x10", "١", "1_0"]
)  # fmt: skip
WORDS = NASTY | st.text(max_size=12) | st.integers(-5, 10).map(str) | st.floats().map(str)
OPTIONS = st.sampled_from(
    ["--num", "--hidden", "--seed", "--out", "--targets", "--features", "--label", "--coordinates", "--activation",
        "--loss", "--init", "--init-scale", "--solver", "--rtol", "--atol", "--t1", "--max-steps", "--verdict",
        "--confidence", "--audit", "--lanes", "--proof", "--no-proof", "--half-width", "--seconds", "--depth", "--width",
        "--optimizer", "--step", "--batch-size", "--overwrite", "--weight-decay", "--biases", "--lowest", "--start", "--help",
        "--version", "--bogus", "--no-center", "--scale"]
)  # fmt: skip
COMMANDS = st.sampled_from(
    ["basins", "report", "simulate", "descent", "sweep", "repeat", "campaign", "experiment", "status", "verify", "export",
        "resume", ""]
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder to be in, with a file to stumble over; computations are replaced by an end."""
    path = tmp_path_factory.mktemp("fuzz") / "inside"
    path.mkdir()
    (path / "table.csv").write_text("a,b,y\n1,2,3\n4,5,7\n6,7,7\n9,1,0\n")
    before = os.getcwd()
    os.chdir(path)
    yield path
    os.chdir(before)


def run(arguments):
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["gdflow", *arguments])
        patch.setenv("GDFLOW_CACHE", "")
        patch.setattr("gdflow.basins.plan.run_process", _computed)
        patch.setattr("gdflow.dynamics.simulate", _computed)
        patch.setattr("gdflow.basins.step_sizes.simulate", _computed)
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
    return code, out.getvalue(), err.getvalue()


class Computed(ValueError):
    """What stands for a computation: it was asked for."""


def _computed(*_, **__):
    raise Computed("computed")


def check(code, out, err, place):
    assert code in (0, 2)
    assert "Traceback" not in err + out
    assert "\x1b[31m" not in err + out  # control characters are shown, not obeyed
    assert (code == 0) == (not err or err.startswith("gdflow: note"))
    assert [path.name for path in place.parent.iterdir()] == ["inside"]


@quick(1200)
@given(st.data())
def test_command_lines(place, data):
    command = data.draw(COMMANDS)
    rest = data.draw(st.lists(OPTIONS | WORDS, max_size=6))
    arguments = [word for word in ([command] if command else []) + rest if "\0" not in word]
    if command in ("basins", "simulate", "descent", "sweep", "repeat", "experiment"):
        arguments += ["--out", data.draw(st.sampled_from(["o 1", "ö[red]", "o\x1b[31m", "table.csv"]))]
    # What leads out of the folder by name is the user's wish, not an accident.
    if any(".." in word or word.startswith(("/", "~")) for word in arguments):
        arguments = [word for word in arguments if not (".." in word or word.startswith("/"))]
    try:
        code, out, err = run(arguments)
    except Computed:
        return
    check(code, out, err, place)


CELL = (
    st.text(max_size=6)
    | st.integers(-3, 3).map(str)
    | st.sampled_from(["nan", "inf", "1e400", "", '"', "1,2", "0.5", "-"])
)
TABLES = st.lists(st.lists(CELL, min_size=1, max_size=4).map(",".join), max_size=6).map("\n".join) | st.binary(
    max_size=60
)


@quick(600)
@given(TABLES, st.lists(st.sampled_from(["a", "b", "y", "", "1"]), max_size=2))
def test_tables(place, text, targets):
    path = place / "some.csv"
    path.write_bytes(text if isinstance(text, bytes) else b"a,b,y\n" + text.encode("utf-8", "surrogatepass"))
    code, out, err = run(["report", "some.csv", *(["--targets", *targets] if targets else [])])
    check(code, out, err, place)


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    problem = gf.Problem.from_singular_values([2.0, 1.0])
    path = tmp_path_factory.mktemp("stored") / "x"
    law = gf.initialization.Gaussian(problem.widths([2]), 0.4)
    gf.basin_sizes(problem, law, 20, key=jax.random.key(0), audit=0, limits=Limits(t1=1.0), folder=path, progress=False)
    return path


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([]) | st.just({})


def paths(said, before=()):
    """Of all entries of nested dictionaries and lists."""
    entries = said.items() if isinstance(said, dict) else enumerate(said) if isinstance(said, list) else ()
    for key, value in entries:
        yield (*before, key)
        yield from paths(value, (*before, key))


@quick(400)
@given(st.data())
def test_stored_files(place, campaign, data):
    """One entry of a stored plan, request or summary is something else."""
    folder = place / "stored"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(campaign, folder)
    name = data.draw(st.sampled_from(["campaign.json", "summary.json"]))
    said = json.loads((folder / name).read_text())
    *way, last = data.draw(st.sampled_from(list(paths(said))))
    inner = said
    for step in way:
        inner = inner[step]
    inner[last] = data.draw(VALUES)
    (folder / name).write_text(json.dumps(said))
    for command in (["campaign", "status"], ["campaign", "verify"]):
        code, out, err = run([*command, "stored"])
        check(code, out, err, place)
    with contextlib.suppress(Computed):
        check(*run(["campaign", "resume", "stored", "--no-progress"]), place)
    assert pathlib.Path.cwd() == place
