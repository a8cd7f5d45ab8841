"""Compiled programs are kept for the next process, and forgotten before a process runs out of memory maps."""

import io
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import gdflow as gf
from gdflow import programs


def test_the_folder_of_kept_programs_is_documented_and_can_be_switched_off(monkeypatch, tmp_path):
    chosen = {}
    monkeypatch.setattr(jax.config, "update", chosen.__setitem__)
    monkeypatch.setenv("GDFLOW_CACHE", "")
    assert gf.keep_programs() is None
    assert not chosen
    monkeypatch.setenv("GDFLOW_CACHE", str(tmp_path / "named"))
    folder = gf.keep_programs()
    assert folder.parent == tmp_path / "named"
    assert folder.is_dir()
    assert chosen["jax_compilation_cache_dir"] == str(folder)
    assert gf.keep_programs(tmp_path / "given").parent == tmp_path / "given"
    monkeypatch.delenv("GDFLOW_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert gf.keep_programs().parent == tmp_path / "xdg" / "gdflow"
    (tmp_path / "file").write_text("")
    assert gf.keep_programs(tmp_path / "file") is None  # runs without


def test_programs_are_kept_from_python(tmp_path):
    code = f"import gdflow as gf, jax; gf.keep_programs({str(tmp_path)!r}); jax.jit(lambda x: 2 * x)(1.0)"
    kept = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stderr == ""
        kept.append({path.name for path in tmp_path.rglob("*-cache")})
    assert kept[0]
    assert kept[0] == kept[1]


#: With a limit of 100 maps this process, which has some hundreds at least, counts as crowded.
LIMIT = "100"


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


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("flow", ["simulate", "riemannian_flow"])
def test_flows_look_after_the_maps(cleared, flow):
    problem = gf.Problem.from_singular_values([2.0])
    if flow == "simulate":
        gf.simulate(problem, gf.LayerTuple([jnp.ones((1, 1))] * 2), 1.0, ts=2, dense=False)
    else:
        gf.riemannian_flow(problem, jnp.ones((1, 1)), 2, 1.0, ts=2)
    assert cleared
