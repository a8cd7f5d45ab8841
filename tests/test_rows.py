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
from gdflow.basins import Crossings, Drift, Limits, Status, StorageWarning
from gdflow.basins import plan as plan_module
from gdflow.basins import rows as rows_module
from gdflow.basins import running as running_module
from gdflow.basins.rows import Rows
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


NUMBERS = ("highest", "time", "steps", "loss", "gradient_norm", "drift", "crossing_0")


@pytest.mark.parametrize("first", [0, 2**64 - 1000])
@pytest.mark.parametrize("most", [10**6, 300])
def test_the_first_rows_are_kept_in_the_order_of_the_ids(plan, first, most, monkeypatch, rng):
    """Ids beyond 2⁶³ do not fit into signed integers."""
    monkeypatch.setattr(rows_module, "MAX_ROWS", most)
    columns, kept = rows_of(1000, rng), min(1000, most)
    ids = np.array([first + i for i in range(1000)], dtype=np.uint64)
    rows = Rows(plan, range(first, first + 1000))
    for chunk in np.split(rng.permutation(1000), [0, 10, 10, 400]):
        rows.add(ids[chunk], {name: column[chunk] for name, column in columns.items()})
    table = rows.table()
    assert table.schema.equals(plan.schema)
    np.testing.assert_array_equal(table["id"].to_numpy(), ids[:kept])
    assert table["status"].to_pylist() == [Status(s).label for s in columns["status"][:kept]]
    limits = columns["limit"][:kept].tolist()
    assert table["limit"].to_pylist() == [None if k < 0 else k for k in limits]
    assert table["verdict"].to_pylist() == ["undecided" if k < 0 else plan.verdict.labels[k] for k in limits]
    for name in NUMBERS:
        np.testing.assert_array_equal(table[name].to_numpy(), columns[name][:kept])


def test_the_file_holds_every_row_in_the_order_of_arrival(plan, tmp_path, monkeypatch, rng):
    """Groups of at least 64 rows, the last of what is left over; whole files are read by PyArrow."""
    monkeypatch.setattr(rows_module, "_GROUP", 64)
    monkeypatch.setattr(rows_module, "MAX_ROWS", 10)
    columns, order = rows_of(230, rng), rng.permutation(230)
    rows = Rows(plan, range(230), tmp_path / "rows")
    for chunk in np.split(order, range(10, 230, 10)):
        rows.add(chunk.astype(np.uint64), {name: column[chunk] for name, column in columns.items()})
    rows.close()
    file = pq.ParquetFile(tmp_path / "rows")
    # Chunks of 10 fill a group at 70.
    assert [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)] == [70, 70, 70, 20]
    table = file.read()
    np.testing.assert_array_equal(table["id"].to_numpy(), order)
    assert table["status"].to_pylist() == [Status(s).label for s in columns["status"][order]]
    for name in NUMBERS:
        np.testing.assert_array_equal(table[name].to_numpy(), columns[name][order])


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
    table = pq.read_table(folder / "outcomes.parquet")
    assert_same(table, saved.outcomes)
    assert_same(table, whole.outcomes, **LAST_BITS)
    assert all(field.metadata[b"doc"] for field in table.schema)
    assert sorted(p.name for p in folder.iterdir()) == ["outcomes.parquet", "summary.json"]
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
        patch.setattr(plan_module, "run_lanes", lambda *args, **options: pytest.fail("it was run"))
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
    """Of another run, refused before anything is run: `run_lanes` is not reached. With `overwrite` the other rows are there."""
    folder, key = tmp_path / "x", jax.random.key(1)
    sizes(problem, folder=folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(plan_module, "run_lanes", lambda *args, **options: pytest.fail("it was run"))
        with pytest.raises(
            FileExistsError, match=r"already holds outcomes.parquet, summary.json of another run.*overwrite"
        ):
            sizes(problem, key=key, folder=folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    other = sizes(problem, key=key, folder=folder, overwrite=True)
    assert_same(pq.read_table(folder / "outcomes.parquet"), other.outcomes)
    assert other.outcomes["loss"].to_pylist() != whole.outcomes["loss"].to_pylist()
    assert json.loads((folder / "summary.json").read_text())["certified"] == other.certified
    assert sorted(p.name for p in folder.iterdir()) == ["outcomes.parquet", "summary.json"]


@pytest.fixture
def few_kept(problem, whole, tmp_path, monkeypatch):
    """The run of `whole` with a memory of fifty rows, written in small groups."""
    monkeypatch.setattr(rows_module, "MAX_ROWS", 50)
    monkeypatch.setattr(rows_module, "_GROUP", 16)
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
    table = pq.read_table(folder / "outcomes.parquet")
    assert_same(table.sort_by("id"), whole.outcomes, **LAST_BITS)
    assert_same(table.sort_by("id").slice(0, 50), estimate.outcomes)
    assert sorted(p.name for p in folder.iterdir()) == ["outcomes.parquet", "summary.json"]
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


class Interrupted(Rows):
    """Rows whose taking in is interrupted at its sixth chunk and, by the other threads too, from then on."""

    last: "Interrupted"
    calls = num = 0

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        Interrupted.last = self

    def add(self, ids, columns):
        self.calls += 1
        if self.calls > 5:
            raise KeyboardInterrupt
        super().add(ids, columns)
        self.num += len(ids)


@pytest.mark.slow
def test_an_interrupt_leaves_what_was_computed(problem, whole, tmp_path, monkeypatch):
    """Pools of four starts: what was counted by then can be read; earlier results stay, and the next run cleans up."""
    folder = tmp_path / "x"
    sizes(problem, folder=folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(plan_module, "_POOL", 1)
        patch.setattr(running_module, "Rows", Interrupted)
        patch.setattr(rows_module, "_GROUP", 6)
        with pytest.raises(KeyboardInterrupt):
            sizes(problem, lanes=4, folder=folder, overwrite=True)
    rows = pq.read_table(folder / "outcomes.parquet.partial")
    assert 0 < len(rows) == Interrupted.last.num < 200
    ids = rows["id"].to_numpy()
    assert len(set(ids.tolist())) == len(ids)
    expected = part_of(whole.outcomes, ids)
    for name in ("status", "limit"):
        assert rows[name].to_pylist() == expected[name].to_pylist()
    # Other lanes: times up to the round-off of sums in another order, amplified over a few dozen steps.
    np.testing.assert_allclose(rows["time"].to_numpy(), expected["time"].to_numpy(), rtol=1e-9)
    assert {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.endswith(".partial")} == before
    sizes(problem, folder=folder, overwrite=True)
    assert sorted(p.name for p in folder.iterdir()) == ["outcomes.parquet", "summary.json"]


# -- disks that fill up, folders that are gone -------------------------------------------------------------------------


def rescued(caught):
    """The folder named by the one warning."""
    (warning,) = caught
    folder = re.search(r"are in (\S*gdflow-\w+)/ instead", str(warning.message))
    return pathlib.Path(folder[1]), str(warning.message)


def test_a_folder_that_is_removed_during_a_run(problem, whole, tmp_path, monkeypatch):
    """The estimate is the same, and all is in a temporary folder that the warning names."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    class Removing(Rows):
        def add(self, ids, columns):
            shutil.rmtree(tmp_path / "x", ignore_errors=True)
            super().add(ids, columns)

    monkeypatch.setattr(running_module, "Rows", Removing)
    with pytest.warns(StorageWarning, match=r"/x/: .*No such file or directory. .*all rows are in") as caught:
        estimate = sizes(problem, folder=tmp_path / "x")
    assert estimate.rows == whole.rows
    assert_same(estimate.outcomes, whole.outcomes, **LAST_BITS)
    folder, _ = rescued(caught)
    assert_same(pq.read_table(folder / "outcomes.parquet"), estimate.outcomes)
    assert json.loads((folder / "summary.json").read_text())["certified"] == whole.certified


@pytest.mark.slow
def test_a_disk_that_fills_up_during_a_run(problem, whole, tmp_path, monkeypatch):
    """Of more rows than are kept in memory, those that were written can be read where the warning says, and are counted."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(rows_module, "MAX_ROWS", 50)
    monkeypatch.setattr(rows_module, "_GROUP", 16)
    monkeypatch.setattr(plan_module, "_POOL", 1)
    room = iter(range(4))

    def allocate(*_):
        if next(room, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", allocate, raising=False)
    with pytest.warns(StorageWarning, match=r"No space left on device.*the first 50 rows are in") as caught:
        estimate = sizes(problem, lanes=4, folder=tmp_path / "x")
    assert estimate.rows == whole.rows
    folder, message = rescued(caught)
    assert pq.read_table(folder / "outcomes.parquet").num_rows == 50
    written = pq.read_table(tmp_path / "x" / "outcomes.parquet.partial")
    assert 48 <= len(written) < 200  # three groups of 16 or more, after the room for the directory
    assert f"; {len(written)} rows are in {tmp_path / 'x' / 'outcomes.parquet.partial'}." in message
    expected = part_of(whole.outcomes, written["id"].to_numpy())
    assert written["status"].to_pylist() == expected["status"].to_pylist()


def test_nothing_can_be_written_anywhere(problem, whole, tmp_path, monkeypatch):
    """The estimate is in memory, and the warning says that it is."""
    monkeypatch.setattr(tempfile, "mkdtemp", lambda **_: (_ for _ in ()).throw(FileNotFoundError("no place")))
    (tmp_path / "x" / "summary.json.partial").mkdir(parents=True)
    with pytest.warns(StorageWarning, match=r"Is a directory.*held in memory alone.*no place"):
        assert sizes(problem, folder=tmp_path / "x").rows == whole.rows
