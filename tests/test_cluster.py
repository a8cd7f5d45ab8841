"""Units computed by the workers of a Dask cluster: the same rows, whoever computed them, and whatever dies."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

import gdflow as gf
from gdflow.basins import Limits, campaign_status, units

distributed = pytest.importorskip("distributed")

# What Dask's threads say at their end is not ours.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning")

KEY = jax.random.key(31)


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    monkeypatch.setattr(units, "default_size", lambda _: 64)


def sizes(num, **options):
    problem = gf.Problem.from_singular_values([2.0, 1.0])
    law = gf.initialization.Gaussian(problem.widths([2]), 0.4)
    options = {"audit": 0, "limits": Limits(t1=1.0)} | options
    return gf.basin_sizes(problem, law, num, key=KEY, progress=False, **options)


def assert_same(one, other):
    assert one.rows == other.rows
    for name in ("id", "status", "limit", "steps"):
        assert one.outcomes[name].to_pylist() == other.outcomes[name].to_pylist()
    np.testing.assert_allclose(one.outcomes["time"].to_numpy(), other.outcomes["time"].to_numpy(), rtol=1e-9)


@pytest.fixture(scope="module")
def here():
    """A cluster inside this process: what it does is what others do, without their start."""
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.mark.slow
def test_rows_do_not_depend_on_who_computed_them(here, tmp_path):
    whole = sizes(300)
    assert_same(sizes(300, client=here), whole)
    assert_same(sizes(300, client=here, folder=tmp_path / "x"), whole)
    assert sizes(300, folder=tmp_path / "x").opened_from
    # A folder that the workers do not see: they send the bytes.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gdflow.basins.cluster._visible_folder", lambda _: None)
        assert_same(sizes(300, client=here, folder=tmp_path / "y"), whole)
    assert campaign_status(tmp_path / "y", verify=True).complete
    part = sizes(10**6, client=here, until=gf.basins.Until(half_width=0.1), limits=None)
    assert 64 < part.num < 10**4


@pytest.mark.slow
def test_one_plan_is_not_taken_for_another(here):
    """What a run that failed has left with the scheduler does not reach the next one."""
    bowl = gf.Potential(lambda x: x**2)
    with pytest.raises(ValueError, match="<lambda> is needed") as caught:
        gf.basin_sizes(bowl, lambda key: jax.random.normal(key), 64, key=KEY, audit=0, client=here, progress=False)
    assert_same(sizes(128, client=here), sizes(128))
    assert caught.value is not None  # its traceback kept the run alive until now


@pytest.mark.slow
def test_wrong_clients_are_refused(here, tmp_path):
    with pytest.raises(TypeError, match=r"a client is a distributed.Client"):
        sizes(10, client="tcp://127.0.0.1:8786")
    with (
        distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
        pytest.raises(ValueError, match="the cluster has no workers"),
    ):
        sizes(10, client=client)


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_its_units_only(tmp_path):
    whole = sizes(6000)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        pids = list(client.run(os.getpid).values())

        def kill():
            while not (tmp_path / "x" / "outcomes").is_dir() or len(list((tmp_path / "x" / "outcomes").iterdir())) < 3:
                time.sleep(0.01)
            os.kill(pids[0], signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        found = sizes(6000, client=client, folder=tmp_path / "x")
        killer.join()
    assert_same(found, whole)


@pytest.mark.slow
def test_a_lost_cluster_leaves_what_was_written(tmp_path):
    cluster = distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None)
    client = distributed.Client(cluster)

    def close():
        while not (tmp_path / "x" / "outcomes").is_dir() or len(list((tmp_path / "x" / "outcomes").iterdir())) < 3:
            time.sleep(0.01)
        cluster.close()

    closer = threading.Thread(target=close)
    closer.start()
    with pytest.raises(ConnectionError, match=r"the cluster was lost .* goes on there"):
        sizes(100_000, client=client, folder=tmp_path / "x")
    closer.join()
    client.close()
    status = campaign_status(tmp_path / "x", verify=True)
    assert 64 < status.num < 100_000
    assert not status.damaged
    assert sizes(640, folder=tmp_path / "x").num == 640


@pytest.mark.slow
def test_the_script_for_slurm_runs_here(tmp_path):
    """With processes of this machine in place of SLURM's jobs."""
    script = pathlib.Path(__file__).parents[1] / "docs" / "slurm.py"
    command = [sys.executable, str(script), "--local", "--jobs", "1", "--num", "2000", "--out", "huge"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "2000 certified" in done.stdout
    assert gf.load(tmp_path / "huge").num == 2000
