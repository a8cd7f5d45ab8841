"""Compiled programs are forgotten before a process runs out of memory maps; by flows as well as by batches."""

import io
import os

import jax.numpy as jnp
import pytest

import gdflow as gf
from gdflow import programs

#: With a limit of 1000 maps this process, which has far more, counts as crowded.
LIMIT = "1000"


@pytest.fixture
def cleared(monkeypatch):
    """What is cleared, with a low limit, and no look yet."""
    calls, real = [], open

    def read(path, *arguments, **options):
        return io.StringIO(LIMIT) if path == "/proc/sys/vm/max_map_count" else real(path, *arguments, **options)

    monkeypatch.setattr("jax.clear_caches", lambda: calls.append(True))
    monkeypatch.setattr("builtins.open", read)
    monkeypatch.setattr(programs, "_last_look", -float("inf"))
    return calls


needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="maps are counted in /proc")


@needs_proc
def test_programs_are_forgotten_when_maps_run_out(cleared, monkeypatch):
    programs.forget_old_programs()
    assert len(cleared) == 1
    programs.forget_old_programs(pause=60.0)  # looked a moment ago
    assert len(cleared) == 1
    programs.forget_old_programs()
    assert len(cleared) == 2
    monkeypatch.setattr("builtins.open", lambda *_, **__: (_ for _ in ()).throw(OSError))  # no such files
    programs.forget_old_programs()
    assert len(cleared) == 2


@needs_proc
@pytest.mark.parametrize("flow", ["simulate", "riemannian_flow"])
def test_flows_look_after_the_maps(cleared, flow):
    problem = gf.Problem.from_singular_values([2.0])
    if flow == "simulate":
        gf.simulate(problem, gf.LayerTuple([jnp.ones((1, 1))] * 2), 1.0, ts=2, dense=False)
    else:
        gf.riemannian_flow(problem, jnp.ones((1, 1)), 2, 1.0, ts=2)
    assert cleared
