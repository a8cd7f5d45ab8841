"""What is kept of a stream of outcomes: counts against NumPy's, files against memory, interrupts."""

import contextlib
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

import gdflow as gf
from gdflow.basins import Status, StorageWarning
from gdflow.basins import estimate as estimate_module
from gdflow.basins import tally as tally_module
from gdflow.basins.outcomes import schema
from gdflow.basins.storage import RowFile, prepare_folder
from gdflow.basins.tally import BINS_PER_DECADE, DECADES, Tally
from gdflow.initialization import Gaussian

KEY = jax.random.key(23)
BIN = 10 ** (1 / BINS_PER_DECADE)


def sample(num, num_levels, rng):
    """Made-up columns of every kind of row."""
    status = rng.integers(0, len(Status), num)
    return dict(
        status=status,
        level=np.where(status == Status.CERTIFIED, 0, rng.integers(1, num_levels + 1, num)),
        time=10 ** rng.uniform(-11, 17, size=num),
        steps=rng.integers(0, 10_000, num),
        loss=rng.random(num),
        gradient_norm=rng.random(num),
        drift=np.where(rng.random(num) < 0.1, np.nan, 10 ** rng.normal(-9, 1, num)),
        crossing_0=np.where(rng.random(num) < 0.3, np.nan, rng.random(num)),
    )


def filled(times):
    """A tally of certified starts with given times."""
    zeros = np.zeros(len(times), dtype=int)
    rest = dict(status=zeros, level=zeros, steps=zeros, loss=zeros + 0.1, gradient_norm=zeros + 0.1, drift=zeros + 0.1)
    tally = Tally(range(len(times)), 1)
    tally.add(np.arange(len(times), dtype=np.uint64), dict(rest, time=np.asarray(times, float)))
    return tally


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


@pytest.mark.parametrize("first", [0, 2**64 - 1000])
@pytest.mark.parametrize("limit", [10**6, 300])
def test_chunks_in_any_order_add_up(first, limit, monkeypatch, rng):
    """Counts by NumPy on the whole; ids beyond 2⁶³ do not fit into signed integers."""
    monkeypatch.setattr(tally_module, "MAX_ROWS", limit)
    num, num_levels = 1000, 5
    columns = sample(num, num_levels, rng)
    ids = np.array([first + i for i in range(num)], dtype=np.uint64)
    tally = Tally(range(first, first + num), num_levels, num_crossings=1)
    order = rng.permutation(num)
    cuts = np.sort(rng.integers(0, num, 20))  # some chunks are empty
    cuts[3] = cuts[4]
    for chunk in np.split(order, cuts):
        tally.add(ids[chunk], {name: column[chunk] for name, column in columns.items()})
    assert tally.num == num
    assert tally.statuses.tolist() == [int(np.sum(columns["status"] == s)) for s in Status]
    assert tally.levels.tolist() == [int(np.sum(columns["level"] == k)) for k in range(num_levels + 1)]
    assert tally.steps == int(np.sum(columns["steps"]))
    assert tally.most_steps == int(np.max(columns["steps"]))
    assert tally.largest_drift == np.nanmax(columns["drift"])
    certified = columns["time"][columns["status"] == Status.CERTIFIED]
    np.testing.assert_array_equal(tally.times, np.histogram(certified, Tally.edges())[0])
    table, kept = tally.table(), min(num, limit)
    assert table.schema.equals(schema(1))
    np.testing.assert_array_equal(table["id"].to_numpy(), ids[:kept])
    assert table["status"].to_pylist() == [Status(s).label for s in columns["status"][:kept]]
    verdicts = {True: "global minimum", False: "undecided"}
    assert table["verdict"].to_pylist() == [verdicts[bool(s == Status.CERTIFIED)] for s in columns["status"][:kept]]
    for name in ("level", "time", "steps", "loss", "gradient_norm", "drift", "crossing_0"):
        np.testing.assert_array_equal(table[name].to_numpy(), columns[name][:kept])


def test_the_file_holds_every_row_in_the_order_of_arrival(tmp_path, monkeypatch, rng):
    """Groups of at least 64 rows, the last of what is left over; whole files are read by PyArrow."""
    monkeypatch.setattr(tally_module, "_GROUP", 64)
    monkeypatch.setattr(tally_module, "MAX_ROWS", 10)
    columns = sample(230, 5, rng)
    order = rng.permutation(230)
    tally = Tally(range(230), 5, num_crossings=1, path=tmp_path / "rows")
    for chunk in np.split(order, range(10, 230, 10)):
        tally.add(chunk.astype(np.uint64), {name: column[chunk] for name, column in columns.items()})
    tally.close()
    file = pq.ParquetFile(tmp_path / "rows")
    # Chunks of 10 fill a group at 70.
    assert [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)] == [70, 70, 70, 20]
    table = file.read()
    np.testing.assert_array_equal(table["id"].to_numpy(), order)
    assert table["status"].to_pylist() == [Status(s).label for s in columns["status"][order]]
    for name in ("level", "time", "steps", "loss", "gradient_norm", "drift", "crossing_0"):
        np.testing.assert_array_equal(table[name].to_numpy(), columns[name][order])


def test_times_outside_the_histogram():
    """0 is a start that is certified as it stands; it and everything else is counted somewhere."""
    tally = filled([0.0, 1e-300, 1e-13, 1.0, 1e30, 1e300])
    assert tally.times[0] == 3
    assert tally.times[-1] == 2
    assert tally.times.sum() == 6
    one = np.flatnonzero(tally.times[1:-1]) + 1
    low, high = Tally.edges()[[one[0], one[0] + 1]]
    assert low <= 1 < high
    assert len(Tally.edges()) == len(tally.times) + 1
    np.testing.assert_allclose(Tally.edges()[[0, -1]], [10.0**d for d in DECADES], rtol=1e-14)


@pytest.mark.parametrize("q", [1e-4, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0])
def test_quantiles_are_right_to_a_bin(q, rng):
    """The smallest time that a share of at least `q` does not exceed, from the sorted sample."""
    times = np.exp(rng.normal(scale=2, size=10_001))
    exact = np.sort(times)[math.ceil(q * times.size) - 1]
    got = filled(times).time_quantile(q)
    assert exact / BIN < got < exact * BIN


def test_the_lowest_quantile_is_the_shortest_time(rng):
    """The limit of quantiles for `q` to 0, and what NumPy says of kept rows."""
    times = np.exp(rng.normal(scale=2, size=1001))
    got = filled(times).time_quantile(0.0)
    assert times.min() / BIN < got < times.min() * BIN


def test_no_certified_start_has_no_quantile():
    tally = Tally(range(3), 2)
    assert tally.time_quantile(0.5) is None


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def problem():
    return gf.Problem.from_singular_values([2, 1])


def sizes(problem, key=KEY, **options):
    """Two hundred starts of which the time limit leaves some undecided, and some levels uncrossed."""
    law = Gaussian(problem.widths([2]), 0.4)
    return gf.basin_sizes(
        problem, law, 200, key=key, t1=1.0, crossings=[2.0, 0.6], progress=False, **{"audit": 0, **options}
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
    assert summary["certified"] == np.sum(whole.outcomes["level"].to_numpy() == 0)
    assert summary["interval"] == list(whole.interval)
    assert summary["crossings"] == list(whole.crossings)
    assert summary["steps"] == {
        "mean": np.mean(whole.outcomes["steps"].to_numpy()), "most": np.max(whole.outcomes["steps"].to_numpy()),
    }  # fmt: skip


def test_results_are_replaced_only_when_asked(problem, whole, tmp_path, monkeypatch):
    """Refused before anything is run: `run_lanes` is not reached. With `overwrite` the other key's rows are there."""
    folder = tmp_path / "x"
    sizes(problem, folder=folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(estimate_module, "run_lanes", lambda *args, **options: pytest.fail("it was run"))
        with pytest.raises(FileExistsError, match=r"already holds outcomes.parquet, summary.json"):
            sizes(problem, folder=folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    other = sizes(problem, key=jax.random.key(1), folder=folder, overwrite=True)
    assert_same(pq.read_table(folder / "outcomes.parquet"), other.outcomes)
    assert other.outcomes["loss"].to_pylist() != whole.outcomes["loss"].to_pylist()
    assert json.loads((folder / "summary.json").read_text())["certified"] == other.certified
    assert sorted(p.name for p in folder.iterdir()) == ["outcomes.parquet", "summary.json"]


@pytest.fixture
def few_kept(problem, whole, tmp_path, monkeypatch):
    """The run of `whole` with a memory of fifty rows, written in small groups."""
    monkeypatch.setattr(tally_module, "MAX_ROWS", 50)
    monkeypatch.setattr(tally_module, "_GROUP", 16)
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


class Interrupted(Tally):
    """A tally that is interrupted at its sixth chunk and, by the other threads too, from then on."""

    last: "Interrupted"
    calls = 0

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        Interrupted.last = self

    def add(self, ids, columns):
        self.calls += 1
        if self.calls > 5:
            raise KeyboardInterrupt
        super().add(ids, columns)


def test_an_interrupt_leaves_what_was_computed(problem, whole, tmp_path, monkeypatch):
    """Pools of four starts: what was counted by then can be read; earlier results stay, and the next run cleans up."""
    folder = tmp_path / "x"
    sizes(problem, folder=folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(estimate_module, "_POOL", 1)
        patch.setattr(estimate_module, "Tally", Interrupted)
        patch.setattr(tally_module, "_GROUP", 6)
        with pytest.raises(KeyboardInterrupt):
            sizes(problem, lanes=4, folder=folder, overwrite=True)
    rows = pq.read_table(folder / "outcomes.parquet.partial")
    assert 0 < len(rows) == Interrupted.last.num < 200
    ids = rows["id"].to_numpy()
    assert len(set(ids.tolist())) == len(ids)
    expected = part_of(whole.outcomes, ids)
    for name in ("status", "level"):
        assert rows[name].to_pylist() == expected[name].to_pylist()
    # Other lanes: times up to the round-off of sums in another order, amplified over a few dozen steps.
    np.testing.assert_allclose(rows["time"].to_numpy(), expected["time"].to_numpy(), rtol=1e-9)
    assert {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.endswith(".partial")} == before
    sizes(problem, folder=folder, overwrite=True)
    assert sorted(p.name for p in folder.iterdir()) == ["outcomes.parquet", "summary.json"]


# -- disks that fill up, folders that are gone -------------------------------------------------------------------------

ROWS = pa.schema([("id", pa.uint64()), ("x", pa.float64())])


def rows(first, rng, num=2000):
    return pa.table({"id": np.arange(first, first + num, dtype=np.uint64), "x": rng.random(num)}, schema=ROWS)


@pytest.fixture
def small_disk():
    """No file may grow beyond 256 KiB: a write fails as on a full disk, with another number."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    @contextlib.contextmanager
    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no room can be taken in advance here")
def test_rows_stay_readable_when_the_disk_is_full(tmp_path, rng, small_disk):
    """All groups that `append` took are in the file, and only those; 2000 rows of random bits take 16 kB and more."""
    file = RowFile(tmp_path / "rows", ROWS)
    groups = [rows(2000 * k, rng) for k in range(20)]
    with small_disk():
        with pytest.raises(OSError, match="File too large") as caught:
            any(file.append(group) for group in groups)  # each returns nothing
        file.close()
    assert caught.value.filename == str(tmp_path / "rows")
    written = file.rows // 2000
    assert 3 < written < 16  # 256 KiB, less the room for the directory, over at least 16 kB
    assert pq.read_table(tmp_path / "rows").equals(pa.concat_tables(groups[:written]))
    assert (tmp_path / "rows").stat().st_size < 2**18


def test_rows_are_written_where_no_room_can_be_taken(tmp_path, rng, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    file = RowFile(tmp_path / "rows", ROWS)
    file.append(rows(0, rng))
    file.close()
    assert pq.read_table(tmp_path / "rows").num_rows == 2000


def rescued(caught):
    """The folder named by the one warning."""
    (warning,) = caught
    folder = re.search(r"are in (\S*gdflow-\w+)/ instead", str(warning.message))
    return pathlib.Path(folder[1]), str(warning.message)


def test_a_folder_that_is_removed_during_a_run(problem, whole, tmp_path, monkeypatch):
    """The estimate is the same, and all is in a temporary folder that the warning names."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    class Removing(Tally):
        def add(self, ids, columns):
            shutil.rmtree(tmp_path / "x", ignore_errors=True)
            super().add(ids, columns)

    monkeypatch.setattr(estimate_module, "Tally", Removing)
    with pytest.warns(StorageWarning, match=r"/x/: .*No such file or directory. .*all rows are in") as caught:
        estimate = sizes(problem, folder=tmp_path / "x")
    assert estimate.rows == whole.rows
    assert_same(estimate.outcomes, whole.outcomes, **LAST_BITS)
    folder, _ = rescued(caught)
    assert_same(pq.read_table(folder / "outcomes.parquet"), estimate.outcomes)
    assert json.loads((folder / "summary.json").read_text())["certified"] == whole.certified


def test_a_disk_that_fills_up_during_a_run(problem, whole, tmp_path, monkeypatch):
    """Of more rows than are kept in memory, those that were written can be read where the warning says, and are counted."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(tally_module, "MAX_ROWS", 50)
    monkeypatch.setattr(tally_module, "_GROUP", 16)
    monkeypatch.setattr(estimate_module, "_POOL", 1)
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


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("", ValueError, "name of the output folder is empty"),
        ("a\0b", ValueError, r"a\\x00b cannot be .* null character"),
        ("a" * 300, PermissionError, "cannot be made: File name too long"),
        ("a/" * 3000, PermissionError, "cannot be made: File name too long"),
        ("file/x", NotADirectoryError, "is a file"),
        ("/proc/x", PermissionError, "cannot be made"),
    ],
)
def test_folders_that_cannot_be(tmp_path, monkeypatch, name, error, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(error, match=message):
        prepare_folder(name, ("a.txt",))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
