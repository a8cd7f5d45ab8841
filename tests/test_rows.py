"""Rows of runs: in memory and in files, after interrupts, on disks that fill up."""

import errno
import json
import math
import os
import pathlib
import re
import shutil
import tempfile

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_tally import sample

import gdflow as gf
from gdflow.basins import Crossings, Drift, Limits, Status, StorageWarning, units
from gdflow.basins import plan as plan_module
from gdflow.basins import rows as rows_module
from gdflow.basins import running as running_module
from gdflow.basins.rows import Gathering, Rows
from gdflow.basins.tally import BINS_PER_DECADE
from gdflow.initialization import Gaussian

KEY = jax.random.key(23)
BIN = 10 ** (1 / BINS_PER_DECADE)


def assert_same(a, b, **tolerances):
    """The same tables, where no number equals no number; numbers with a fraction to a tolerance, if one is given."""
    assert a.column_names == b.column_names
    assert a.schema.types == b.schema.types
    for name in a.column_names:
        one, two = a[name].to_numpy(), b[name].to_numpy()
        if tolerances and one.dtype.kind == "f":
            np.testing.assert_allclose(one, two, **tolerances)
        else:
            np.testing.assert_array_equal(one, two)


#: For two runs: root finding goes on until the last lane has converged; who finishes together is up to the threads.
#: So last bits of times may differ, and all that is evaluated there; drifts, of 1e-7, by round-off of squared weights.
LAST_BITS = dict(rtol=1e-12, atol=1e-15)


def part_of(table, ids):
    """The rows with given ids, in that order, of a table whose ids are 0, 1, …"""
    return table.take(pa.array(np.asarray(ids, dtype=np.int64)))


@pytest.fixture(scope="module")
def plan():
    """Of which nothing is run."""
    problem = gf.Problem.from_singular_values([3, 2, 1])
    return gf.basins.make_plan(problem, Gaussian((3, 4, 3)), key=KEY, riders=(Drift(), Crossings([20.0])))


def rows_of(num, rng):
    return sample(num, 8, rng) | dict(crossing_0=np.where(rng.random(num) < 0.3, np.nan, rng.random(num)))


FILES = [".lock", "campaign.json", "outcomes", "summary.json"]
NUMBERS = ("highest", "time", "steps", "loss", "gradient_norm", "drift", "crossing_0")


@pytest.mark.parametrize("first", [0, 2**64 - 1000])
@pytest.mark.parametrize("most", [10**6, 300])
def test_the_first_rows_are_kept_in_the_order_of_the_ids(plan, first, most, monkeypatch, rng):
    """Ids beyond 2⁶³ do not fit into signed integers."""
    monkeypatch.setattr(rows_module, "MAX_ROWS", most)
    columns, kept = rows_of(1000, rng), min(1000, most)
    ids = np.array([first + i for i in range(1000)], dtype=np.uint64)
    rows = Rows(plan, range(first, first + 1000))
    for low, high in ((400, 1000), (0, 10), (10, 400)):
        rows.add(range(first + low, first + high), {name: column[low:high] for name, column in columns.items()})
    table = rows.table(1000)
    assert table.schema.equals(plan.schema)
    np.testing.assert_array_equal(table["id"].to_numpy(), ids[:kept])
    assert table["status"].to_pylist() == [Status(s).label for s in columns["status"][:kept]]
    limits = columns["limit"][:kept].tolist()
    assert table["limit"].to_pylist() == [None if k < 0 else k for k in limits]
    assert table["verdict"].to_pylist() == ["undecided" if k < 0 else plan.verdict.labels[k] for k in limits]
    for name in NUMBERS:
        np.testing.assert_array_equal(table[name].to_numpy(), columns[name][:kept])


def test_pieces_are_handed_on_as_soon_as_they_are_whole(rng):
    """Rows in any order, ids beyond 2⁶³ too; what is not whole is handed on at the end, up to its first gap."""
    first = 2**64 - 1000
    pieces = [range(first, first + 64), range(first + 64, first + 128), range(first + 200, first + 264)]
    ids = np.array([i for piece in pieces for i in piece], dtype=np.uint64)
    columns = {"x": rng.random(len(ids)), "k": rng.integers(0, 9, len(ids))}
    order, handed = rng.permutation(len(ids)), []
    gathering = Gathering(pieces, lambda *piece: handed.append(piece))
    lost = len(ids) - 20  # an id of the last piece never comes
    for chunk in np.split(order[order != lost], range(7, len(ids), 7)):
        gathering.add(ids[chunk], {name: column[chunk] for name, column in columns.items()})
    assert sorted(piece.start for piece, _ in handed) == [first, first + 64]
    gathering.finish()
    assert handed[-1][0] == range(first + 200, first + 200 + lost - 128)
    for piece, rows in handed:
        k = np.flatnonzero(ids == np.uint64(piece.start))[0]
        for name, column in columns.items():
            np.testing.assert_array_equal(rows[name], column[k : k + len(piece)])
    gathering.finish()
    assert len(handed) == 3


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def problem():
    return gf.Problem.from_singular_values([2, 1])


def sizes(problem, key=KEY, **options):
    """Two hundred starts of which the time limit leaves some undecided, and some levels uncrossed."""
    law = Gaussian(problem.widths([2]), 0.4)
    return gf.basin_sizes(
        problem,
        law,
        200,
        key=key,
        progress=False,
        **{"audit": 0, **options},
        limits=Limits(t1=1.0),
        riders=(Drift(), Crossings([2.0, 0.6])),
    )


@pytest.fixture(scope="module")
def whole(problem):
    """All in memory."""
    estimate = sizes(problem)
    assert 20 < estimate.certified < 180
    assert 20 < np.sum(np.isnan(estimate.outcomes["crossing_1"].to_numpy())) < 180
    return estimate


def test_a_folder_holds_what_memory_holds(problem, whole, tmp_path):
    """Rows in the order of the ids, `NaN` included; numbers as JSON."""
    folder = tmp_path / "x"
    saved = sizes(problem, folder=folder)
    table = pq.read_table(folder / "outcomes")
    assert_same(table, saved.outcomes)
    assert_same(table, whole.outcomes, **LAST_BITS)
    assert all(field.metadata[b"doc"] for field in table.schema)
    assert sorted(p.name for p in folder.iterdir()) == FILES
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["num"] == 200
    assert summary["certified"] == np.sum(whole.outcomes["limit"].to_numpy() == 0)
    assert summary["interval"] == list(whole.interval)
    assert summary["crossings"] == list(whole.crossings)
    assert summary["steps"] == {
        "mean": np.mean(whole.outcomes["steps"].to_numpy()), "most": np.max(whole.outcomes["steps"].to_numpy()),
    }  # fmt: skip


def test_a_folder_of_the_same_run_is_opened(problem, tmp_path, monkeypatch):
    """The same plan, starts, confidence and audit: nothing is run, and the estimate is the stored one."""
    folder = tmp_path / "x"
    first = sizes(problem, folder=folder)
    with monkeypatch.context() as patch:
        patch.setattr(plan_module, "run_process", lambda *args, **options: pytest.fail("it was run"))
        again = sizes(problem, folder=folder)
        assert again.opened_from == str(folder)
        assert "of an earlier run" in " ".join(str(again).split())
        assert_same(again.outcomes, first.outcomes)
        assert (again.rows, again.statuses, again.seconds) == (first.rows, first.statuses, first.seconds)
        assert again.summary() == json.loads(json.dumps(first.summary())) | {
            name: first.summary()[name] for name in ("interval", "limits", "crossings", "certificate_time_histogram")
        } | {"data": again.summary()["data"]}
    assert first.opened_from is None


def test_results_are_replaced_only_when_asked(problem, whole, tmp_path, monkeypatch):
    """Of another run, refused before anything is run: `run_process` is not reached. With `overwrite` the other rows are there."""
    folder, key = tmp_path / "x", jax.random.key(1)
    sizes(problem, folder=folder)
    before = contents(folder)
    with monkeypatch.context() as patch:
        patch.setattr(plan_module, "run_process", lambda *args, **options: pytest.fail("it was run"))
        with pytest.raises(
            FileExistsError, match=r"already holds results of another run: starts.key.* there, 1 here.*overwrite"
        ):
            sizes(problem, key=key, folder=folder)
    assert contents(folder) == before
    other = sizes(problem, key=key, folder=folder, overwrite=True)
    assert_same(pq.read_table(folder / "outcomes"), other.outcomes)
    assert other.outcomes["loss"].to_pylist() != whole.outcomes["loss"].to_pylist()
    assert json.loads((folder / "summary.json").read_text())["certified"] == other.certified
    assert sorted(p.name for p in folder.iterdir()) == FILES


def contents(folder):
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def few_kept(problem, whole, tmp_path, monkeypatch):
    """The run of `whole` with a memory of fifty rows, written in small groups."""
    monkeypatch.setattr(rows_module, "MAX_ROWS", 50)
    monkeypatch.setattr(units, "default_size", lambda _: 16)
    return sizes(problem, folder=tmp_path / "x"), tmp_path / "x"


def test_more_rows_than_are_kept(few_kept, whole):
    """Nothing but the table in memory depends on how many rows are kept."""
    estimate, folder = few_kept
    assert estimate.num == 200
    assert_same(estimate.outcomes, part_of(whole.outcomes, range(50)), **LAST_BITS)
    assert estimate.statuses == whole.statuses
    assert estimate.rows == whole.rows
    assert estimate.interval == whole.interval
    assert (estimate.tally.steps, estimate.tally.most_steps) == (whole.tally.steps, whole.tally.most_steps)
    table = pq.read_table(folder / "outcomes")
    assert_same(table.sort_by("id"), whole.outcomes, **LAST_BITS)
    assert_same(table.sort_by("id").slice(0, 50), estimate.outcomes)
    assert sorted(p.name for p in folder.iterdir()) == FILES
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    expected = json.loads(json.dumps(whole.summary()))
    np.testing.assert_allclose(summary["largest_drift"], np.max(whole.outcomes["drift"].to_numpy()), **LAST_BITS)
    for name in ("seconds", "certificate_time_quantiles", "largest_drift"):
        del summary[name], expected[name]
    assert summary == expected
    assert sum(n for *_, n in summary["certificate_time_histogram"]) == whole.certified


@pytest.mark.parametrize("q", [0.05, 0.5, 0.95, 0.99, 1.0])
def test_quantiles_of_more_rows_than_are_kept(few_kept, whole, q):
    """Of all rows, not of those kept: the sorted times of the run that keeps all."""
    times = np.sort(whole.certificate_times)
    exact = times[math.ceil(q * times.size) - 1]
    assert exact / BIN < few_kept[0].time_quantile(q) < exact * BIN


@pytest.fixture
def small_units(monkeypatch):
    """Units of sixteen starts, pools of as many."""
    monkeypatch.setattr(units, "default_size", lambda _: 16)
    monkeypatch.setattr(plan_module, "_POOL", 1)


@pytest.mark.parametrize("when", [3, 60, 150])
def test_an_interrupt_leaves_what_was_computed(problem, whole, tmp_path, monkeypatch, small_units, when):
    """What was handed over by then without a gap can be read, and the same run goes on from there."""
    folder, arrived, add = tmp_path / "x", [0], Gathering.add

    def interrupted(self, ids, columns):
        add(self, ids, columns)
        arrived[0] += len(ids)
        if arrived[0] > when:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Gathering, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sizes(problem, lanes=4, folder=folder)
    rows = pq.read_table(folder / "outcomes") if any((folder / "outcomes").iterdir()) else whole.outcomes.slice(0, 0)
    assert len(rows) < 200
    assert rows["status"].to_pylist() == part_of(whole.outcomes, rows["id"].to_numpy())["status"].to_pylist()
    again = sizes(problem, lanes=4, folder=folder)
    assert again.anytime is None  # nobody has seen an estimate before
    for name in ("id", "status", "limit", "steps"):
        assert again.outcomes[name].equals(whole.outcomes[name])
    np.testing.assert_allclose(again.outcomes["time"].to_numpy(), whole.outcomes["time"].to_numpy(), rtol=1e-9)
    assert again.rows == whole.rows


# -- disks that fill up, folders that are gone -------------------------------------------------------------------------


def test_a_folder_that_is_removed_during_a_run(problem, whole, tmp_path, monkeypatch):
    """The rows that could not be written are in a temporary folder that the error names, as a unit."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    add = Gathering.add

    def removing(self, ids, columns):
        shutil.rmtree(tmp_path / "x", ignore_errors=True)
        add(self, ids, columns)

    with monkeypatch.context() as patch:
        patch.setattr(Gathering, "add", removing)
        with pytest.raises(OSError, match=r"starts 0 … 199 could not .*/x/outcomes: No such file") as caught:
            sizes(problem, folder=tmp_path / "x")
    rescued = pathlib.Path(re.search(r"They are in (\S*\.parquet) instead", str(caught.value))[1])
    assert_same(pq.read_table(rescued), whole.outcomes, **LAST_BITS)
    (tmp_path / "x" / "outcomes").mkdir(parents=True)
    with pytest.raises(FileExistsError, match=r"holds outcomes, but no campaign\.json"):
        sizes(problem, folder=tmp_path / "x")


def test_a_disk_that_fills_up_during_a_run(problem, whole, tmp_path, monkeypatch, small_units):
    """The fourth unit finds no room, and nor does its rescue: the three before are whole, and the same run goes on after them."""
    fsync, room = os.fsync, iter(range(3))

    def full(file):
        if next(room, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device\. What was written before is whole"):
            sizes(problem, lanes=4, folder=tmp_path / "x")
    names = sorted(p.name for p in (tmp_path / "x" / "outcomes").iterdir())
    assert len(names) == 3
    assert not any(name.startswith(".") for name in names)
    again = sizes(problem, lanes=4, folder=tmp_path / "x")
    assert again.rows == whole.rows
    assert all((tmp_path / "x" / "outcomes" / name).exists() for name in names)


def test_a_summary_that_cannot_be_written(problem, whole, tmp_path, monkeypatch):
    """The estimate is returned, and all rows are there: the same run makes the summary of them."""
    write = running_module.write_json

    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(running_module, "write_json", refuse)
        with pytest.warns(StorageWarning, match=r"summary.json could not be written .*No space left"):
            estimate = sizes(problem, folder=tmp_path / "x")
    assert estimate.rows == whole.rows
    assert running_module.write_json is write
    assert sizes(problem, folder=tmp_path / "x").rows == whole.rows
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == FILES
