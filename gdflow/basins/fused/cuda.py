"""The fused program for NVIDIA's cards: one start a thread, refilled from a counter that all threads share.

The source is that of CPUs with other words before and after it: vectors are of one element, and loops over a pool go in strides
of all threads. Runs do not use it yet: in the tests NVIDIA's compiler takes it and threads of a CPU run it, but no card has.
"""

from gdflow.basins.fused.source import Shape, fused_source

_HEAD = """
#include <math.h>
#include <stdint.h>
#define V 1
#define restrict __restrict__
#define FUNCTION static __device__
#define APART static __device__ __noinline__
#define TABLE static __device__ const
#define SQUARE_ROOT sqrt
#define FIRST ((int64_t)blockIdx.x * blockDim.x + threadIdx.x)
#define STEP ((int64_t)gridDim.x * blockDim.x)
#define HERE __device__ __forceinline__

/* One number where CPUs have a vector, and the outcome of a comparison: all bits or none. */
struct v;
struct m {
    int64_t x;
    HERE explicit operator v() const;
    HERE int64_t &operator[](int) { return x; }
    HERE const int64_t &operator[](int) const { return x; }
};
struct v {
    double x;
    HERE double &operator[](int) { return x; }
    HERE const double &operator[](int) const { return x; }
    HERE explicit operator m() const { return m{__double_as_longlong(x)}; }
};
HERE m::operator v() const { return v{__longlong_as_double(x)}; }
#define NONE m{0}
#define CHOOSE(c, a, b) choose(c, a, b)
static HERE v choose(m c, v a, v b) { return c.x ? a : b; }
#define __builtin_convertvector(x, to) convert_##to(x)
static HERE v convert_v(m a) { return v{(double)a.x}; }
static HERE m convert_m(v a) { return m{(int64_t)a.x}; }
#define ARITHMETIC(op) \\
    static HERE v operator op(v a, v b) { return v{a.x op b.x}; } \\
    static HERE v operator op(v a, double b) { return v{a.x op b}; } \\
    static HERE v operator op(double a, v b) { return v{a op b.x}; } \\
    static HERE v &operator op##=(v &a, v b) { return a = a op b; } \\
    static HERE v &operator op##=(v &a, double b) { return a = a op b; }
ARITHMETIC(+)
ARITHMETIC(-)
ARITHMETIC(*)
ARITHMETIC(/)
static HERE v operator-(v a) { return v{-a.x}; }
#define COMPARISON(op) \\
    static HERE m operator op(v a, v b) { return m{-(int64_t)(a.x op b.x)}; } \\
    static HERE m operator op(v a, double b) { return m{-(int64_t)(a.x op b)}; } \\
    static HERE m operator op(m a, m b) { return m{-(int64_t)(a.x op b.x)}; }
COMPARISON(<)
COMPARISON(<=)
COMPARISON(>)
COMPARISON(>=)
COMPARISON(==)
COMPARISON(!=)
#define BITS(op) \\
    static HERE m operator op(m a, m b) { return m{a.x op b.x}; } \\
    static HERE m operator op(m a, int64_t b) { return m{a.x op b}; } \\
    static HERE m &operator op##=(m &a, m b) { return a = a op b; } \\
    static HERE m &operator op##=(m &a, int64_t b) { return a = a op b; }
BITS(&)
BITS(|)
BITS(+)
BITS(-)
BITS(<<)
static HERE m operator~(m a) { return m{~a.x}; }
FUNCTION int64_t take(int64_t *taken) { return (int64_t)atomicAdd((unsigned long long *)taken, 1ull); }
"""

#: Three kernels, for all starts have to be begun before any is taken up, and over before times are looked for.
_KERNELS = """
extern "C" __global__ void begin_starts(POOL) { begin(ALL); }
extern "C" __global__ void fly_starts(POOL) { fly(ALL); }
extern "C" __global__ void finish_starts(POOL) { if (!*halt) finish(ALL); }
"""


def cuda_source(shape: Shape) -> str:
    """The source of a program in CUDA C++."""
    return fused_source(shape, (_HEAD, _KERNELS))
