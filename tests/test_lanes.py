"""The batch engine: every id once, whatever the lanes, pools, threads and layout; slow starts are not left out."""

import os
import subprocess
import sys

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet
import pytest
from lane_runs import process

import gdflow as gf
from gdflow.basins import Limits, Status
from gdflow.basins.lanes import AbstractLaneState, AbstractProcess, default_pool, default_threads, run_lanes
from gdflow.basins.methods import DiffraxSolver, RungeKutta
from gdflow.basins.plan import default_lanes
from gdflow.ids import id_range
from gdflow.initialization import Gaussian
from gdflow.layouts import AbstractLayout, LanesFirst, LanesLast

KEY = jax.random.key(3)


class _Countdown(AbstractLaneState):
    left: jax.Array
    total: jax.Array
    done: jax.Array


class Countdown(AbstractProcess):
    """A process without mathematics: start `i` takes `1 + (7i mod 23)` steps, one in ten of them a hundred times as many."""

    layout: AbstractLayout = LanesLast()

    def draw(self, high, low):
        i = low.astype(int)
        return jnp.where(i % 10 == 0, 100, 1) * (1 + (7 * i) % 23)

    def init(self, starts):
        return _Countdown(starts, starts, starts == 0)

    def step(self, state):
        left = jnp.where(state.done, state.left, state.left - 1)
        return _Countdown(left, state.total, left == 0)

    def rows(self, state):
        return dict(steps=state.total, left=state.left)


def run(process, ids, **options):
    """All rows, in the order of the ids."""
    ids = np.asarray(ids, dtype=np.uint64)
    parts = []
    run_lanes(process, ids, lambda *part: parts.append(part), **options)
    finished = np.concatenate([i for i, _ in parts])
    assert sorted(finished) == sorted(ids)
    place = {i: k for k, i in enumerate(finished.tolist())}
    order = [place[i] for i in ids.tolist()]
    return {name: np.concatenate([columns[name] for _, columns in parts])[order] for name in parts[0][1]}


@pytest.mark.parametrize(
    ("num", "lanes", "pool", "threads"),
    [(1, 1, 1, 1), (5, 64, 64, 1), (100, 3, 7, 1), (100, 16, 128, 2), (333, 8, 50, 2), (64, 64, 8, 3)],
)
def test_every_id_is_run_once_to_its_end(num, lanes, pool, threads):
    ids = id_range(2**32 - 50, num)  # ids on both sides of 2³²: the low word starts again
    rows = run(Countdown(), ids, lanes=lanes, pool=pool, threads=threads)
    low = np.asarray(ids, dtype=np.int64) & 0xFFFFFFFF
    np.testing.assert_array_equal(rows["steps"], np.where(low % 10 == 0, 100, 1) * (1 + (7 * low) % 23))
    np.testing.assert_array_equal(rows["left"], 0)


def test_ids_need_not_be_in_order():
    ids = np.array([7, 3, 2**40, 5], dtype=np.uint64)
    rows = run(Countdown(), ids, lanes=2, pool=2, threads=1)
    np.testing.assert_array_equal(rows["steps"], [1 + 49 % 23, 1 + 21 % 23, 100, 1 + 35 % 23])


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(5)
    return gf.Problem(rng.normal(size=(4, 30)) / 5, rng.normal(size=(3, 30)) / 2)


def gaussian(problem, hidden, method=None):
    return process(problem, Gaussian(problem.widths(hidden)), method=method, key=KEY)


@pytest.mark.slow
def test_threads_give_the_same_outcomes(problem):
    flow = gaussian(problem, [5, 4])
    one, two = (run(flow, id_range(0, 96), lanes=8, pool=16, threads=n) for n in (1, 2))
    for name in ("status", "limit", "steps"):
        np.testing.assert_array_equal(one[name], two[name])
    # Root finding goes on until the last lane of a batch has converged, so the others' last bits depend on their company.
    np.testing.assert_allclose(one["time"], two["time"], rtol=1e-12)


@pytest.mark.slow
def test_layouts_and_solver_steps_agree(problem):
    """Unrolled products with lanes last, batched products with lanes first, and Diffrax's own `step`: one integration.

    The first two run in reduced coordinates and so does the third here, so that all control the same error norm. States agree
    to round-off amplified over a few dozen steps.
    """
    reduced = problem.in_coordinates("reduced")
    last = gaussian(reduced, [5, 4])
    assert isinstance(last.method, RungeKutta)
    assert last.layout == LanesLast()
    first = gaussian(reduced, [5, 4], RungeKutta(chosen_layout=LanesFirst()))
    own = gaussian(reduced, [5, 4], DiffraxSolver(diffrax.Tsit5()))
    a, b, c = (run(p, id_range(0, 40), lanes=8, pool=64, threads=1) for p in (last, first, own))
    assert np.all(a["status"] == Status.CERTIFIED)
    for other in (b, c):
        np.testing.assert_array_equal(other["limit"], a["limit"])
        assert np.mean(other["steps"] == a["steps"]) >= 0.95
        np.testing.assert_allclose(other["time"], a["time"], rtol=1e-9)
        np.testing.assert_allclose(other["gradient_norm"], a["gradient_norm"], rtol=1e-6)
    assert gaussian(problem, [16]).layout == LanesFirst()


@pytest.mark.slow
@pytest.mark.parametrize("solver", [diffrax.Dopri5(), diffrax.Bosh3(), diffrax.Dopri8()])
def test_explicit_methods_of_every_kind(problem, solver):
    """With and without the first-same-as-last property: the crossing times of Tsit5 at much tighter tolerance."""
    reference = run(
        gaussian(problem, [4], gf.integrator(rtol=1e-10, atol=1e-12)), id_range(0, 12), lanes=4, pool=16, threads=1
    )
    rows = run(
        gaussian(problem, [4], gf.integrator(solver, rtol=1e-7, atol=1e-9)),
        id_range(0, 12),
        lanes=4,
        pool=16,
        threads=1,
    )
    assert np.all(rows["status"] == Status.CERTIFIED)
    # Local errors of 1e-7 a step over at most a few hundred steps.
    np.testing.assert_allclose(rows["time"], reference["time"], rtol=2e-5)


@pytest.mark.slow
def test_slow_starts_are_not_left_out():
    """A law in which speed and limit go together: every start is in the count, however few lanes there are.

    Scalar chains: large ones are certified at once, tiny ones stay near the saddle until the time limit. An engine that counted
    the first to finish would see large ones only.
    """
    from test_basins import Chains

    chain = gf.Problem.from_singular_values([1.0])
    law = Chains()
    few, many = (
        gf.basin_sizes(chain, law, 120, key=KEY, lanes=n, progress=False, audit=0, limits=Limits(t1=6.0))
        for n in (2, 60)
    )
    assert few.outcomes["verdict"].to_pylist() == many.outcomes["verdict"].to_pylist()
    sizes = [float(law.sample(KEY, i).end_to_end[0, 0]) for i in range(120)]
    assert few.outcomes["verdict"].to_pylist() == ["global minimum" if s > 0.1 else "undecided" for s in sizes]


def test_rules():
    assert default_lanes((6, 5, 5, 3)) == 96
    assert default_lanes((10, 8, 8, 4)) == 32
    assert default_lanes((1000, 1000, 1000)) == 8
    assert default_threads() >= 1
    assert [default_pool(n, 5000, 2) for n in (1, 200, 10_000, 10**6)] == [16, 16, 1024, 4096]


@pytest.mark.parametrize("option", ["lanes", "pool", "threads"])
def test_numbers_below_one_are_refused(option):
    options = dict(lanes=1, pool=1, threads=1) | {option: 0}
    with pytest.raises(ValueError, match=f"{option} must be at least 1, got 0"):
        run_lanes(Countdown(), range(3), lambda *_: None, **options)


def test_an_error_in_the_sink_ends_the_run():
    """What goes wrong while rows are taken in (a full disk) reaches the caller."""

    def full(ids, rows):
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        run_lanes(Countdown(), range(200), full, lanes=4, pool=8, threads=2)


_DEVICES = """
import jax
jax.config.update("jax_enable_x64", True)
import gdflow as gf
assert jax.local_device_count() == {devices}
problem = gf.Problem.from_singular_values([3, 2, 1])
law = gf.initialization.Gaussian((3, 4, 3))
estimate = gf.basin_sizes(problem, law, 100, key=jax.random.key(5), audit=0, progress=False, folder="out{devices}")
print(estimate.num)
"""


@pytest.mark.slow
def test_several_devices_give_the_same_outcomes(tmp_path):
    """Two host devices against one, each in a process of its own, for the number of devices is fixed at the start."""
    tables = []
    for devices in (1, 2):
        flags = f"--xla_force_host_platform_device_count={devices}"
        command = [sys.executable, "-c", _DEVICES.format(devices=devices)]
        subprocess.run(command, cwd=tmp_path, env={**os.environ, "XLA_FLAGS": flags}, check=True)
        tables.append(pyarrow.parquet.read_table(tmp_path / f"out{devices}" / "outcomes"))
    for name in ("id", "status", "verdict", "limit", "steps"):
        assert tables[0][name].equals(tables[1][name]), name
    np.testing.assert_allclose(tables[0]["time"].to_numpy(), tables[1]["time"].to_numpy(), rtol=1e-9)
