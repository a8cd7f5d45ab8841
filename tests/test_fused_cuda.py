"""The fused program for cards, without one: compiled by NVIDIA's compiler, and its logic run by threads of a CPU."""

import ctypes
import shutil
import subprocess

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdflow as gf
from gdflow.basins import make_plan
from gdflow.basins.fused import engine
from gdflow.basins.fused.cuda import cuda_source
from gdflow.basins.fused.source import Shape

#: What CUDA has and C++ has not; kernels are run by as many threads as a grid of three blocks of two has.
_EMULATION = """
#include <cstring>
#include <thread>
#include <vector>
#define __device__
#define __global__
#define __noinline__ __attribute__((noinline))
#define __forceinline__ inline
struct place { unsigned x; };
static const place blockDim = {2}, gridDim = {3};
static thread_local place blockIdx, threadIdx;
static inline long long __double_as_longlong(double a) { long long b; std::memcpy(&b, &a, 8); return b; }
static inline double __longlong_as_double(long long a) { double b; std::memcpy(&b, &a, 8); return b; }
static inline unsigned long long atomicAdd(unsigned long long *a, unsigned long long b) {
    return __atomic_fetch_add(a, b, __ATOMIC_SEQ_CST);
}
template <class Kernel> static void launch(Kernel kernel) {
    std::vector<std::thread> threads;
    for (unsigned b = 0; b < gridDim.x; ++b) for (unsigned t = 0; t < blockDim.x; ++t)
        threads.emplace_back([=] { blockIdx.x = b, threadIdx.x = t; kernel(); });
    for (auto &thread : threads) thread.join();
}
"""
_RUN = """
extern "C" void run(POOL) {
    launch([=] { begin_starts(ALL); });
    launch([=] { fly_starts(ALL); });
    launch([=] { finish_starts(ALL); });
}
"""


def plan_of(proof):
    problem = gf.Problem.from_singular_values([2.0, 1.0], 3)
    return make_plan(problem, gf.initialization.Gaussian((3, 2, 4, 2)), key=jax.random.key(3), proof=proof)


@pytest.mark.slow
@pytest.mark.parametrize("proof", [False, True])
def test_threads_that_share_a_counter_give_the_rows_of_vectors(proof, tmp_path, monkeypatch):
    process = plan_of(proof).processes[0]
    num = 53
    words = jnp.zeros(num, jnp.uint32), jnp.arange(num, dtype=jnp.uint32)
    starts = np.ascontiguousarray(engine._draw(process, *words))
    expected = engine.Fused(process).run(starts)

    def program(shape):
        (tmp_path / "fused.cpp").write_text(_EMULATION + cuda_source(shape) + _RUN, encoding="utf-8")
        made = tmp_path / "fused.so"
        command = ["g++", "-std=c++17", "-O1", "-w", "-fPIC", "-shared", "-pthread", str(tmp_path / "fused.cpp"), "-o"]
        subprocess.run([*command, str(made)], check=True)
        function = ctypes.CDLL(str(made)).run
        function.restype, function.argtypes = None, [ctypes.c_int64, *[ctypes.c_void_p] * 28]
        return function

    monkeypatch.setattr(engine, "_program", program)
    rows = engine.Fused(process).run(starts)
    assert set(rows) == set(expected)
    for name in ("status", "limit", "highest", "steps"):
        np.testing.assert_array_equal(rows[name], expected[name], err_msg=name)
    for name in (name for name in rows if name == "time" or name.startswith("crossing")):
        np.testing.assert_allclose(rows[name], expected[name], rtol=1e-9, atol=1e-12, err_msg=name)
    for name in ("loss", "gradient_norm"):
        # At the end of a step, whose length follows from an estimate of errors: round-off over the tolerance, 1e-16 over 1e-10.
        np.testing.assert_allclose(rows[name], expected[name], rtol=1e-3, err_msg=name)
    if proof:
        np.testing.assert_array_equal(rows["proved"], expected["proved"])
        np.testing.assert_allclose(rows["radius"], expected["radius"], rtol=0.01)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")
@pytest.mark.parametrize("proof", [False, True])
def test_nvidias_compiler_takes_the_source(proof, tmp_path):
    (tmp_path / "fused.cu").write_text(
        cuda_source(Shape((4, 3, 2), diffrax.Tsit5(), 5, levels=2, crossings=1, proof=proof)), encoding="utf-8"
    )
    command = ["nvcc", "-std=c++17", "-arch=sm_90", "-cubin", "-w", str(tmp_path / "fused.cu"), "-o"]
    subprocess.run([*command, str(tmp_path / "fused.cubin")], check=True)
    for kernel in (b"begin_starts", b"fly_starts", b"finish_starts"):
        assert kernel in (tmp_path / "fused.cubin").read_bytes()
