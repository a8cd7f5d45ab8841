"""Campaigns: units on disk, what is missing and what is damaged, going on, looking, exporting."""

import contextlib
import dataclasses
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest

import gdflow as gf
from gdflow.basins import DamageWarning, FolderBusy, Limits, Until, campaign_status, export, units
from gdflow.basins import plan as plan_module
from gdflow.basins.campaign import Campaign
from gdflow.basins.units import DamagedUnit
from gdflow.initialization import Gaussian

KEY = jax.random.key(31)
SAME = ("id", "status", "limit", "steps")


@pytest.fixture(scope="module")
def problem():
    return gf.Problem.from_singular_values([2.0, 1.0])


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    monkeypatch.setattr(units, "default_size", lambda _: 32)


def sizes(problem, num, **options):
    options = {"key": KEY, "audit": 0, "limits": Limits(t1=1.0)} | options
    return gf.basin_sizes(problem, Gaussian(problem.widths([2]), 0.4), num, progress=False, **options)


@pytest.fixture(scope="module")
def whole(problem):
    """Two hundred rows in memory."""
    return sizes(problem, 200)


@pytest.fixture(scope="module")
def finished(problem, tmp_path_factory):
    path = tmp_path_factory.mktemp("campaign") / "x"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "default_size", lambda _: 32)
        sizes(problem, 200, folder=path)
    return path


@pytest.fixture
def folder(finished, tmp_path):
    """A campaign of two hundred starts in seven units, to be changed."""
    shutil.copytree(finished, tmp_path / "x")
    return tmp_path / "x"


def files(folder):
    return sorted((folder / "outcomes").iterdir())


def assert_same_rows(table, other):
    for name in SAME:
        assert table[name].to_pylist() == other[name].to_pylist()
    np.testing.assert_allclose(table["time"].to_numpy(), other["time"].to_numpy(), rtol=1e-9)


@contextlib.contextmanager
def nothing_is_run(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(plan_module, "run_process", lambda *args, **options: pytest.fail("it was run"))
        yield


def test_units_are_ordinary_parquet_files(folder, whole):
    names = [path.name for path in files(folder)]
    assert names[0] == "00000000000000000000-00000000000000000031.parquet"
    assert len(names) == 7
    table = pq.read_table(folder / "outcomes")
    assert_same_rows(table, whole.outcomes)
    frame = pandas.read_parquet(folder / "outcomes")
    assert frame["id"].tolist() == list(range(200))
    assert frame["verdict"].iloc[0] in ("global minimum", "undecided")


@pytest.mark.parametrize("first", [0, 7, 32, 2**64 - 100])
def test_ids_are_cut_at_the_same_places_whatever_the_range(first):
    pieces = list(units.cut(range(first, first + 100), 32))
    assert [i for piece in pieces for i in piece] == list(range(first, first + 100))
    assert all(len(piece) <= 32 for piece in pieces)
    assert all(piece.start % 32 == 0 for piece in pieces[1:])


def test_more_starts_are_added_to_those_that_are_there(problem, folder, whole, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in files(folder)}
    larger = sizes(problem, 300, folder=folder)
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())
    assert_same_rows(larger.outcomes.slice(0, 200), whole.outcomes)
    assert_same_rows(larger.outcomes, sizes(problem, 300).outcomes)
    # Two hundred were asked for before: the intervals hold for any number, and are wider.
    assert larger.anytime == "200 starts were asked for before"
    row = larger.rows[0]
    assert row.interval == row.anytime
    assert row.anytime[0] < row.fixed[0] < row.fixed[1] <= row.anytime[1]
    assert "not fixed in advance (200 starts were asked for before)" in " ".join(str(larger).split())
    # Fewer are opened, of a unit that goes on beyond them the first rows.
    with nothing_is_run(monkeypatch):
        fewer = sizes(problem, 50, folder=folder)
    assert_same_rows(fewer.outcomes, whole.outcomes.slice(0, 50))
    assert fewer.tally.statuses.sum() == 50


def test_what_is_missing_is_run_alone(problem, folder, whole, monkeypatch):
    lost = [files(folder)[k] for k in (1, 2, 5)]
    for path in lost:
        path.unlink()
    assert campaign_status(folder).gaps == ((32, 95), (160, 191))
    assert not campaign_status(folder).complete
    with pytest.raises(ValueError, match="168 of 200 starts are missing"):
        gf.load(folder)
    ran, run = [], plan_module.run_process

    def watched(process, ids, *args, **options):
        ran.extend(np.asarray(ids).tolist())
        return run(process, ids, *args, **options)

    monkeypatch.setattr(plan_module, "run_process", watched)
    again = sizes(problem, 200, folder=folder)
    assert sorted(ran) == [*range(32, 96), *range(160, 192)]
    assert_same_rows(again.outcomes, whole.outcomes)
    assert again.rows == whole.rows
    assert campaign_status(folder).complete


# -- damage ------------------------------------------------------------------------------------------------------------


def test_every_changed_byte_and_every_cut_is_found(problem, finished, rng):
    """Of a unit of 32 rows: one bit of every byte in turn, and every tenth length."""
    path = files(finished)[0]
    data = path.read_bytes()
    plan = gf.load(finished).plan
    units.decode(data, plan)
    for k in rng.choice(len(data), 400, replace=False).tolist() + [0, len(data) - 1]:
        changed = bytearray(data)
        changed[k] ^= 1 << int(rng.integers(8))
        with pytest.raises(DamagedUnit, match=r"checksum|metadata|rows"):
            units.decode(bytes(changed), plan)
    for length in range(0, len(data), max(1, len(data) // 100)):
        with pytest.raises(DamagedUnit):
            units.decode(data[:length], plan)
    with pytest.raises(DamagedUnit, match="checksum"):
        units.decode(data + b"x", plan)


def test_the_checksum_is_that_of_the_file(finished):
    """Anyone can check it: SHA-256 of the bytes with zeros in its place."""
    data = files(finished)[0].read_bytes()
    said = re.search(rb"sha256:([0-9a-f]{64})", data)[1]
    assert hashlib.sha256(data.replace(said, b"0" * 64)).hexdigest().encode() == said
    assert pq.read_metadata(files(finished)[0]).metadata[b"checksum"] == b"sha256:" + said


def damaged(folder, other):
    """Six kinds of damage, each to a file of its own; what is said of it."""
    some = files(folder)
    some[0].write_bytes(some[0].read_bytes()[:-100])
    changed = bytearray(some[1].read_bytes())
    changed[len(changed) // 3] ^= 1
    some[1].write_bytes(changed)
    some[2].write_bytes(files(other)[2].read_bytes())
    some[3].write_text("no Parquet at all")
    shutil.copy(some[5], folder / "outcomes" / "00000000000000000165-00000000000000000170.parquet")
    (folder / "outcomes" / "notes [red].txt").write_text("mine")
    return {
        some[0].name: "cut off|changed or lost",
        some[1].name: "changed or lost",
        some[2].name: "of another plan",
        some[3].name: "no checksum",
        "00000000000000000165-00000000000000000170.parquet": "its name says otherwise",
        "notes [red].txt": "it is no unit",
    }


def test_damaged_units_are_named_set_aside_and_run_again(problem, folder, whole, tmp_path):
    sizes(problem, 200, key=jax.random.key(9), folder=tmp_path / "other")
    expected = damaged(folder, tmp_path / "other")
    status = campaign_status(folder, verify=True)
    assert {name for name, _ in status.damaged} == set(expected)
    for name, why in status.damaged:
        assert re.search(expected[name], why)
    before = {path.name: path.read_bytes() for path in files(folder)}
    with pytest.warns(DamageWarning) as caught:
        again = sizes(problem, 200, folder=folder)
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == len(expected)
    for name, why in expected.items():
        assert any(name in text and re.search(why, text) for text in messages)
    assert_same_rows(again.outcomes, whole.outcomes)
    assert {path.name: path.read_bytes() for path in (folder / "set-aside").iterdir()} == {
        name: before[name] for name in expected
    }
    assert campaign_status(folder, verify=True).complete


def test_units_of_other_starts_are_found(problem, folder):
    """A unit that was renamed says other ids than its name; one within another is set aside."""
    some = files(folder)
    some[-1].rename(folder / "outcomes" / "00000000000000000200-00000000000000000207.parquet")
    with pytest.warns(DamageWarning, match="its name says otherwise"):
        sizes(problem, 200, folder=folder)
    plan = gf.load(folder).plan
    _, columns = units.decode(files(folder)[1].read_bytes(), plan)
    part = {name: column[:10] for name, column in columns.items() if name != "id"}
    units.write(folder / "outcomes", range(40, 50), units.encode(plan, range(40, 50), part, None))
    with pytest.warns(DamageWarning, match="its starts are in another unit, too"):
        sizes(problem, 200, folder=folder)


def test_units_that_overlap_are_seen_by_whoever_reads(problem, folder, tmp_path):
    """As after the units of two folders of one plan were put into one."""
    sizes(problem, 210, folder=tmp_path / "y")
    shutil.copy(files(tmp_path / "y")[-1], folder / "outcomes")
    (name,) = {path.name for path in files(folder)} & {files(tmp_path / "y")[-1].name}
    for verify in (False, True):
        status = campaign_status(folder, verify=verify)
        assert [found for found, _ in status.damaged] == [name]
        assert (status.num, status.complete) == (200, False)
    with pytest.raises(ValueError, match="its starts are in another unit, too"):
        export(folder, tmp_path / "rows.csv")
    with pytest.raises(ValueError, match="its starts are in another unit, too"):
        gf.load(folder)


def test_names_that_shells_would_expand(problem, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes(problem, 40, folder="~/x")
    assert gf.load("~/x").num == 40
    assert export("~/x", "~/rows.parquet") == 40
    assert sorted(path.name for path in (tmp_path / "~").iterdir()) == ["rows.parquet", "x"]
    with pytest.raises(ValueError, match="lies among the units"):
        export("~/x", "~/x/outcomes/rows.csv")
    for wrong, message in (({"until": 5}, "until is a"), ({"folder": 5}, "the folder is given by its name")):
        with pytest.raises(TypeError, match=message):
            sizes(problem, 40, **wrong)


def test_stale_partial_files_are_removed(problem, folder, whole):
    (folder / "outcomes" / ".00000000000000000000-00000000000000000031.parquet.1a2b3c4d.partial").write_bytes(b"half")
    assert_same_rows(pq.read_table(folder / "outcomes"), whole.outcomes)  # readers skip hidden files
    sizes(problem, 200, folder=folder)
    assert len(list((folder / "outcomes").glob(".*"))) == 0


# -- one folder, one plan, one process ---------------------------------------------------------------------------------


def test_another_plan_is_refused_with_what_differs(problem, folder, monkeypatch):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with nothing_is_run(monkeypatch):
        with pytest.raises(FileExistsError, match=r"limits.t1: 1.0 there, 2.0 here\. Please choose.*overwrite"):
            sizes(problem, 200, folder=folder, limits=Limits(t1=2.0))
        with pytest.raises(FileExistsError, match=r"method.rtol: 1e-06 there, 0.0001 here"):
            sizes(problem, 200, folder=folder, method=gf.integrator(rtol=1e-4))
        with pytest.raises(FileExistsError, match="first id: 0 there, 5 here"):
            sizes(problem, range(5, 100), folder=folder)
        with pytest.raises(FileExistsError, match="verdict: LevelVerdict there, AlmostSure here"):
            sizes(problem, 200, folder=folder, verdict=gf.verdicts.AlmostSure(problem, (2, 2, 2)))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_only_one_process_is_at_work_in_a_folder(problem, folder):
    plan = gf.load(folder).plan
    with Campaign(folder, plan):
        with pytest.raises(FolderBusy, match=rf"process {os.getpid()} on .* is at work in"):
            sizes(problem, 300, folder=folder)
        assert f"process {os.getpid()}" in campaign_status(folder).busy
        assert gf.load(folder).num == 200  # reading is free
    assert campaign_status(folder).busy is None
    sizes(problem, 300, folder=folder)


def test_overwrite_leaves_what_is_not_its_own(problem, folder):
    (folder / "notes.txt").write_text("mine")
    (folder / "outcomes" / "mine.csv").write_text("mine")
    with pytest.warns(DamageWarning, match=r"mine\.csv was set aside"):
        other = sizes(problem, 40, key=jax.random.key(9), folder=folder, overwrite=True)
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "set-aside" / "mine.csv").read_text() == "mine"
    assert gf.load(folder).num == other.num == 40


@pytest.mark.slow
def test_code_of_ones_own_is_gone_on_with_by_resume_alone(tmp_path):
    """Functions are recorded by name; whether they have changed is not known."""
    bowl = gf.Potential(my_potential)
    options = dict(key=KEY, audit=0, progress=False)
    first = gf.basin_sizes(bowl, my_starts, 40, folder=tmp_path / "x", **options)
    with pytest.raises(FileExistsError, match=r"code of your own.*gf\.resume\('.*x'\) goes on"):
        gf.basin_sizes(bowl, my_starts, 60, folder=tmp_path / "x", **options)
    more = gf.resume(tmp_path / "x", 60, progress=False)
    assert more.num == 60
    assert more.outcomes.slice(0, 40)["limit"].to_pylist() == first.outcomes["limit"].to_pylist()


def test_code_that_cannot_be_found_again_is_refused_before_anything_is_run(tmp_path, monkeypatch):
    monkeypatch.setattr(plan_module, "run_process", lambda *args, **options: pytest.fail("it was run"))
    bowl = gf.Potential(lambda x: (x**2 - 1) ** 2 / 4)
    with pytest.raises(
        ValueError, match=r"lambda> is needed.*Define it at the top level of a module, or leave the folder out"
    ):
        gf.basin_sizes(bowl, my_starts, 40, key=KEY, audit=0, folder=tmp_path / "x", progress=False)
    assert not (tmp_path / "x").exists()


def my_potential(x):
    return (x**2 - 1) ** 2 / 4 + 0.1 * x


def my_starts(key):
    return 1.6 * jax.random.normal(key)


# -- limits that are found ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_limits_of_all_units_are_one_list(tmp_path):
    """Two wells of different depth, in units of 16: numbered alike in memory, in the folder, and after it was extended."""
    well = gf.Potential(my_potential)
    options = dict(key=KEY, audit=0, progress=False)
    roots = np.sort(np.roots([1, 0, -1, 0.1]).real)
    expected = sorted(float(my_potential(x)) for x in roots[[0, 2]])
    starts = np.array([float(my_starts(jax.random.fold_in(jax.random.fold_in(KEY, 0), i))) for i in range(100)])
    right = (starts > roots[1]).astype(int)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "default_size", lambda _: 16)
        memory = gf.basin_sizes(well, my_starts, 100, **options)
        kept = gf.basin_sizes(well, my_starts, 60, folder=tmp_path / "x", **options)
        more = gf.resume(tmp_path / "x", 100, progress=False)
    for estimate, num in ((memory, 100), (kept, 60), (more, 100), (gf.load(tmp_path / "x"), 100)):
        assert [limit.loss for limit in estimate.found] == pytest.approx(expected, abs=1e-12)
        assert estimate.outcomes["limit"].to_pylist() == right[:num].tolist()
        assert [row.certified + row.located for row in estimate.rows] == np.bincount(right[:num]).tolist()
        assert [limit.first_id for limit in estimate.found] == [int(np.argmax(right == k)) for k in (0, 1)]
    # What other programs read counts the same limits.
    assert pq.read_table(tmp_path / "x" / "outcomes")["limit"].to_pylist() == right.tolist()
    # Fewer starts have fewer limits: those of the part of a unit that counts.
    few = gf.resume(tmp_path / "x", int(np.argmax(right != right[0])), progress=False)
    assert len(few.found) == 1
    audited = gf.basin_sizes(well, my_starts, 100, **options | {"audit": 40})
    assert (audited.audit.num, audited.audit.flips) == (40, 0)


# -- looking, ending, exporting ----------------------------------------------------------------------------------------


def test_an_unfinished_run_can_be_looked_at(problem, folder, whole):
    """The starts before the first gap, with intervals for any number; the run itself still has the number it was to have."""
    for path in (files(folder)[4], folder / "summary.json"):
        path.unlink()
    partial = gf.load(folder)
    assert partial.num == 128
    assert partial.anytime == "a run that is not finished"
    assert_same_rows(partial.outcomes, whole.outcomes.slice(0, 128))
    assert sizes(problem, 200, folder=folder).anytime is None


def test_resume_knows_what_was_asked_for(problem, folder, tmp_path):
    files(folder)[3].unlink()
    again = gf.resume(folder, progress=False)
    assert (again.num, again.confidence, again.anytime) == (200, 0.95, None)
    audited = sizes(problem, 100, folder=tmp_path / "audited", audit=50, confidence=0.9)
    more = gf.resume(tmp_path / "audited", 150, progress=False)
    assert (audited.audit.num, more.audit.num, more.confidence) == (50, 50, 0.9)
    assert gf.repeat(more, progress=False).anytime == more.anytime == "100 starts were asked for before"
    with pytest.raises(FileNotFoundError, match="there are no results of a campaign"):
        gf.resume(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_a_rule_ends_a_run(problem, tmp_path, monkeypatch):
    """As soon as every interval is narrow enough, judged at the ends of units."""
    monkeypatch.setattr(plan_module, "_POOL", 2**8)
    wide = sizes(problem, 10**6, until=Until(half_width=0.08), folder=tmp_path / "x", limits=None)
    assert 30 < wide.num < 2000  # of so few that all end alike the interval is wider
    assert wide.anytime == "a run that ends at intervals of ± 0.08"
    widths = [row.unaudited[1] - row.unaudited[0] for row in wide.rows]
    assert max(widths) <= 0.16
    again = sizes(problem, 10**6, until=Until(half_width=0.08), folder=tmp_path / "x", limits=None)
    assert (again.num, again.opened_from) == (wide.num, str(tmp_path / "x"))
    # The same number, asked for as if it had been fixed, is not: it came about by a rule. Nor is one after another was asked for.
    same = sizes(problem, wide.num, folder=tmp_path / "x", limits=None)
    assert (same.num, same.anytime) == (wide.num, "before, it was to end at intervals of ± 0.08")
    narrow = gf.resume(tmp_path / "x", 10**6, until=Until(half_width=0.02), progress=False)
    assert narrow.num > wide.num
    memory = sizes(problem, 10**6, until=Until(seconds=0.2), audit=None, limits=None)
    assert 0 < memory.num < 10**6
    assert memory.audit.num <= max(100, -(-memory.num // 20))
    np.testing.assert_array_equal(memory.outcomes["id"].to_numpy(), np.arange(min(memory.num, 10**6)))
    for wrong in ({}, {"half_width": 0.0}, {"seconds": -1.0}, {"seconds": np.nan}):
        with pytest.raises(ValueError, match=r"half_width|seconds"):
            Until(**wrong)
    with pytest.raises(ValueError, match="cannot end by half_width"):
        gf.basin_sizes(gf.Potential(my_potential), my_starts, 9, key=KEY, until=Until(half_width=0.1), audit=0)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_all_rows_as_one_file(folder, whole, tmp_path, suffix):
    path = tmp_path / f"rows.{suffix}"
    assert export(folder, path) == 200
    frame = pandas.read_parquet(path) if suffix == "parquet" else pandas.read_csv(path)
    assert frame["id"].tolist() == list(range(200))
    assert frame["status"].tolist() == whole.outcomes["status"].to_pylist()
    np.testing.assert_allclose(frame["time"], whole.outcomes["time"].to_numpy(), rtol=1e-9)
    with pytest.raises(FileExistsError, match="is there already"):
        export(folder, path)
    export(folder, path, overwrite=True)
    with pytest.raises(ValueError, match=r"\.parquet or a \.csv file"):
        export(folder, tmp_path / "rows.xlsx")
    files(folder)[2].write_bytes(b"")
    with pytest.raises(ValueError, match="is damaged"):
        export(folder, tmp_path / f"other.{suffix}")
    assert sorted(p.name for p in tmp_path.glob(".*")) == []


# -- processes that are killed -----------------------------------------------------------------------------------------

RUN = """
import jax, sys
jax.config.update("jax_enable_x64", True)
import gdflow as gf
from gdflow.basins import Limits, units
units.default_size = lambda _: 32
problem = gf.Problem.from_singular_values([2.0, 1.0])
law = gf.initialization.Gaussian(problem.widths([2]), 0.4)
print("ready", flush=True)
gf.basin_sizes(problem, law, 6000, key=jax.random.key(31), audit=0, limits=Limits(t1=1.0), folder=sys.argv[1], progress=False)
print("done", flush=True)
"""


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on(problem, tmp_path, rng):
    """kill -9 at twenty random moments of one campaign; then its rows are those of a run that was not disturbed."""
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}  # fmt: skip
    folder, killed, seen = tmp_path / "x", 0, []
    while killed < 20:
        child = subprocess.Popen(
            [sys.executable, "-c", RUN, str(folder)], env=environment, stdout=subprocess.PIPE, text=True
        )
        assert child.stdout.readline() == "ready\n"
        begin = time.monotonic()
        there = len(files(folder)) if (folder / "outcomes").is_dir() else 0
        # Once a unit has come since, a random moment of the next tenth of a second.
        while child.poll() is None and time.monotonic() - begin < 120:
            if (folder / "outcomes").is_dir() and len(list((folder / "outcomes").glob("[0-9]*"))) > there:
                break
            time.sleep(0.002)
        time.sleep(float(rng.uniform(0, 0.1)) * (killed % 4 > 0))
        child.send_signal(signal.SIGKILL)
        child.communicate()
        killed += 1
        seen.append(campaign_status(folder, verify=True))
        assert not seen[-1].damaged
        if seen[-1].complete:
            break
    assert seen[-1].num > seen[0].num
    assert killed > 5
    for status in seen:
        assert status.busy is None
    resumed = sizes(problem, 6000, folder=folder)
    assert_same_rows(resumed.outcomes, sizes(problem, 6000).outcomes)


@pytest.mark.slow
def test_a_request_to_end_ends_in_order(tmp_path):
    """SIGTERM and Ctrl-C on the command line: one message, and the same command goes on."""
    environment = {**os.environ, "GDFLOW_CACHE": str(tmp_path / "programs")}
    # Whatever runs the tests may ignore interrupts, as a shell's background jobs do: the command line shall not.
    as_module = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "runpy.run_module('gdflow', run_name='__main__')"
    )
    options = ["--num", "3000000", "--no-progress", "--no-proof", "--out", "x"]
    command = [sys.executable, "-c", as_module, "basins", *options]
    outcomes = tmp_path / "x" / "outcomes"
    for number in (signal.SIGTERM, signal.SIGINT):
        child = subprocess.Popen(
            command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        begin, before = time.monotonic(), len(list(outcomes.glob("[0-9]*")))
        while time.monotonic() - begin < 150 and child.poll() is None:
            if len(list(outcomes.glob("[0-9]*"))) > before:
                break
            time.sleep(0.05)
        child.send_signal(number)
        _, err = child.communicate(timeout=60)
        assert child.returncode == 128 + number
        assert err.startswith("gdflow: interrupted; what was finished is in x/, and the same command goes on there")
        assert "Traceback" not in err
    status = campaign_status(tmp_path / "x", verify=True)
    assert 0 < status.num < 3_000_000
    assert not status.damaged


def test_fields_of_a_plan_are_all_compared(folder):
    """Whatever differs is named: no field of a plan is left out of its record."""
    plan = gf.load(folder).plan
    assert {field.name for field in dataclasses.fields(plan)} <= set(plan.record)
