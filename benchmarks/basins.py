"""Time per certified start, gdflow and peers side by side in one process.

    python benchmarks/basins.py [--num 20000] [--out results.json]

Workload: widths 6-5-5-3, singular values (3, 2, 1), whitened, Gaussian fan-in starts, rtol 1e-6, atol 1e-9, float64; every
start is drawn (the drawing is timed) and integrated until its loss falls below the second-lowest critical value.
Compilation is timed apart: each contender runs once before it is measured, then three times; medians and ranges are
printed. Slow peers run fewer starts. Accuracy:
largest relative error of the certificate times of the first 50 starts against rtol 1e-11.
"""

import argparse
import json
import os
import platform
import statistics
import time

import jax

jax.config.update("jax_enable_x64", True)

import diffrax  # noqa: E402
import equinox as eqx  # noqa: E402
import numpy as np  # noqa: E402
import optimistix as optx  # noqa: E402
import scipy.integrate  # noqa: E402

import gdflow as gf  # noqa: E402

RTOL, ATOL = 1e-6, 1e-9
KEY = jax.random.key(0)
PROBLEM = gf.Problem.from_singular_values([3, 2, 1], d_x=6)
LAW = gf.initialization.Gaussian(PROBLEM.widths([5, 5]))
LEVEL = 0.5  # ½ s_3²


def with_gdflow(num: int) -> np.ndarray:
    estimate = gf.basin_sizes(PROBLEM, LAW, num, key=KEY, rtol=RTOL, atol=ATOL, progress=False)
    assert estimate.certified == num
    return estimate.outcomes["time"].to_numpy()


@eqx.filter_jit
def _vmap_diffeqsolve(starts):
    def solve(net):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: -PROBLEM.gradient(y)), diffrax.Tsit5(), 0.0, 1e4, 0.01, net,
            stepsize_controller=diffrax.PIDController(rtol=RTOL, atol=ATOL),
            event=diffrax.Event(lambda t, y, args, **_: PROBLEM.effective_loss(y) - LEVEL,
                                optx.Newton(1e-10, 1e-10), direction=False),
            max_steps=4096, throw=False,
        )  # fmt: skip
        return solution.ts[-1]

    return jax.vmap(solve)(starts)


def with_vmap_diffeqsolve(num: int, batch: int = 1000) -> np.ndarray:
    """The event of `diffeqsolve`, all starts of a batch waiting for its slowest."""
    batch = min(batch, num)
    parts = [
        np.asarray(_vmap_diffeqsolve(LAW.sample_batch(KEY, np.arange(first, first + batch))))
        for first in range(0, num, batch)
    ]
    return np.concatenate(parts)


def with_scipy(num: int, rtol: float = RTOL, atol: float = ATOL) -> np.ndarray:
    """`solve_ivp` with RK45 and a terminal event, one start after the other."""
    A, widths = np.asarray(PROBLEM.target), LAW.widths
    shapes = list(zip(widths[1:], widths[:-1], strict=True))
    cuts = np.cumsum([a * b for a, b in shapes])[:-1]

    def layers(y):
        return [w.reshape(s) for w, s in zip(np.split(y, cuts), shapes, strict=True)]

    def field(t, y):
        W1, W2, W3 = layers(y)
        P = W2 @ W1
        M = A - W3 @ P
        B = W3.T @ M
        return np.concatenate([(W2.T @ B).ravel(), (B @ W1.T).ravel(), (M @ P.T).ravel()])

    def event(t, y):
        W1, W2, W3 = layers(y)
        return 0.5 * np.sum((A - W3 @ W2 @ W1) ** 2) - LEVEL

    event.terminal, event.direction = True, -1
    times = []
    for w1, w2, w3 in zip(*map(np.asarray, LAW.sample_batch(KEY, np.arange(num)).weights), strict=True):
        y = np.concatenate([w1.ravel(), w2.ravel(), w3.ravel()])
        times.append(scipy.integrate.solve_ivp(field, (0, 1e4), y, rtol=rtol, atol=atol, events=event).t[-1])
    return np.array(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num", type=int, default=20_000, help="starts for gdflow; peers run 2000 and 200")
    parser.add_argument("--out", help="JSON file to write")
    options = parser.parse_args()
    contenders = [
        ("gdflow.basin_sizes", with_gdflow, options.num),
        ("jax.vmap(diffeqsolve), certificate event", with_vmap_diffeqsolve, 2000),
        ("SciPy solve_ivp RK45, certificate event", with_scipy, 200),
    ]
    reference = with_scipy(50, 1e-11, 1e-13)
    results = []
    for name, run, num in contenders:
        begin = time.perf_counter()
        run(num)
        first = time.perf_counter() - begin
        seconds = []
        for _ in range(3):
            begin = time.perf_counter()
            times = run(num)
            seconds.append(time.perf_counter() - begin)
        micro = [1e6 * s / num for s in seconds]
        results.append(
            dict(name=name, num=num, microseconds=statistics.median(micro), low=min(micro), high=max(micro),
                 first_run_extra=first - statistics.median(seconds),
                 error=float(np.max(abs(times[:50] - reference) / np.maximum(reference, 1e-12))))
        )  # fmt: skip
    base = results[0]["microseconds"]
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {jax.default_backend()}, jax {jax.__version__}"
    print(f"\n{machine}\n")
    print("| who | starts | µs per start (range) | times slower | first run adds | largest error of times |")
    print("|---|---|---|---|---|---|")
    for r in results:
        print(
            f"| {r['name']} | {r['num']} | {r['microseconds']:.0f} ({r['low']:.0f}–{r['high']:.0f}) "
            f"| {r['microseconds'] / base:.1f} | {r['first_run_extra']:.1f} s | {r['error']:.0e} |"
        )
    if options.out:
        with open(options.out, "w", encoding="utf-8") as file:
            json.dump(dict(machine=machine, results=results), file, indent=2)


if __name__ == "__main__":
    main()
