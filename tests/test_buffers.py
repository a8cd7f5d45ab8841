"""Buffers for states and dense output follow the steps that are needed, within limits of memory."""

import os
import pickle
import subprocess
import sys

import jax
import numpy as np
import pytest
import small_flow
from small_flow import END, PROBLEM, START, TOLERANCES

import gdflow as gf
from gdflow.dynamics import buffers


@pytest.fixture(scope="module")
def flow() -> gf.Trajectory:
    return small_flow.flow()


def num_bytes(tree) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(tree))


def test_a_trajectory_is_no_larger_than_its_steps(flow):
    """Nine states of fifteen numbers for a power of two of steps, and some more for each saved one."""
    steps = len(flow.ts) - 1
    assert 20 < steps < 128
    assert num_bytes(flow) < 8 * 15 * (9 * 128 + 2 * steps) + 10_000
    assert len(pickle.dumps(jax.tree.leaves(flow))) < 200_000


@pytest.fixture
def first_buffers(monkeypatch):
    """Buffers that begin with eight steps."""
    monkeypatch.setattr(buffers, "_FIRST_BYTES", 0)
    monkeypatch.setattr(buffers, "_FIRST_STEPS", 8)


@pytest.mark.slow
def test_buffers_that_were_too_short_leave_no_trace(first_buffers, flow):
    again = gf.simulate(PROBLEM, START, END, **TOLERANCES)
    assert len(flow.ts) > 20
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(flow), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_step_limit_holds_whatever_the_buffers(first_buffers):
    trajectory = gf.simulate(PROBLEM, START, END, **TOLERANCES, max_steps=11.0)
    assert trajectory.status == "step limit"
    assert int(trajectory.num_steps) == 11


@pytest.mark.slow
def test_steps_that_do_not_fit_into_memory_are_not_taken(first_buffers, monkeypatch):
    monkeypatch.setattr(buffers, "MOST_BYTES", 11 * 8 * 15 * 10)
    with pytest.warns(
        UserWarning, match=r"ended after 11 steps, .* give the times to save at \(ts=…\) and pass dense=False"
    ):
        trajectory = gf.simulate(PROBLEM, START, END, **TOLERANCES)
    assert trajectory.status == "step limit"
    assert len(trajectory.ts) <= 12
    assert float(trajectory.ts[-1]) == float(trajectory.final_time)


@pytest.mark.slow
def test_dense_output_that_is_too_large_is_left_out(first_buffers, monkeypatch):
    monkeypatch.setattr(buffers, "DENSE_BYTES", 20 * 8 * 15 * 9)
    options = dict(**TOLERANCES)
    assert gf.simulate(PROBLEM, START, END, **options).interpolation is None
    assert gf.simulate(PROBLEM, START, 1e-3, **options).interpolation is not None
    assert gf.simulate(PROBLEM, START, END, dense=True, **options).interpolation is not None


@pytest.mark.slow
def test_any_number_of_steps_is_allowed_where_buffers_follow_the_need():
    assert gf.simulate(PROBLEM, START, 0.1, **TOLERANCES, max_steps=10**9).status == "reached t1"
    # Compiled into something else, they are as long as they could become.
    with pytest.raises(
        ValueError, match=r"buffers of [0-9.]+ GiB \(max_steps=1000000000\): lower max_steps, give the times"
    ):
        jax.jit(lambda net: gf.simulate(PROBLEM, net, 1.0, max_steps=10**9).losses)(START)
    with pytest.raises(ValueError, match=r"buffers of [0-9.]+ GiB .* pass dense=False"):
        jax.jit(lambda net: gf.simulate(PROBLEM, net, 1.0, ts=[1.0], max_steps=10**8, dense=True).losses)(START)


_LARGE = """
import jax
jax.config.update("jax_enable_x64", True)
import numpy as np
import gdflow as gf
rng = np.random.default_rng(0)
problem = gf.Problem.from_target(rng.standard_normal((200, 200)) / 10)
net = gf.LayerTuple([rng.standard_normal((200, 200)) / 15 for _ in range(2)])
trajectory = gf.simulate(problem, net, 0.3)
assert 10 < len(trajectory.ts) < 20 and trajectory.interpolation is not None
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the peak is read from /proc")
def test_ten_steps_of_a_large_network_take_little_memory():
    """Ten states of 0.64 MB for 16 steps are 0.1 GB, kept twice while they are handed on; compiling alone takes 0.5 GB."""
    run = subprocess.run([sys.executable, "-c", _LARGE], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 10**6
