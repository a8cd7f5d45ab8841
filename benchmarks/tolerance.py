"""How much accuracy a classification needs: labels, crossing times and cost against tolerance and method.

    python benchmarks/tolerance.py [--laws A E S] [--num 4000] [--reference 1e-10]

Three laws of starts: A (6-5-5-3, s = (3, 2, 1)), E (the same with s = (3, 0.3, 0.03), stiff) and S (scalar chains of depth two
aimed at s = 1, Gaussian, until flow time 1: some start on the slow side of a saddle and are not decided in time, so labels
differ from start to start). Every line compares with the same starts at a reference tolerance: starts whose label changed, the
largest and the median relative error of the certificate times, the drift of the conserved quantities, steps, and time per start
as a multiple of Tsit5 at rtol 1e-6.
"""

import argparse
import statistics
import time

import jax

jax.config.update("jax_enable_x64", True)

import diffrax  # noqa: E402
import numpy as np  # noqa: E402

import gdflow as gf  # noqa: E402
from gdflow.basins import Drift, Limits  # noqa: E402

KEY = jax.random.key(0)
LAWS = {
    "A": ([3.0, 2.0, 1.0], (6, 5, 5, 3), np.inf),
    "E": ([3.0, 0.3, 0.03], (6, 5, 5, 3), np.inf),
    "S": ([1.0], (1, 1, 1), 1.0),
}
METHODS = [
    (diffrax.Tsit5(), 1e-6), (diffrax.Tsit5(), 1e-5), (diffrax.Tsit5(), 1e-4), (diffrax.Tsit5(), 1e-3),
    (diffrax.Bosh3(), 1e-4), (diffrax.Bosh3(), 1e-3), (diffrax.Dopri8(), 1e-6),
    (diffrax.Kvaerno3(), 1e-3), (diffrax.Kvaerno5(), 1e-4),
]  # fmt: skip
IMPLICIT_NUM = 100


def run(law: str, num: int, solver, rtol: float) -> tuple[gf.BasinEstimate, float]:
    """The estimate, and the median microseconds per start of three runs, compiled before."""
    s, widths, t1 = LAWS[law]
    problem = gf.Problem.from_singular_values(s, d_x=widths[0])
    starts = gf.initialization.Gaussian(widths)
    seconds = []
    for _ in range(4):
        begin = time.perf_counter()
        estimate = gf.basin_sizes(
            problem, starts, num, key=KEY, method=gf.integrator(solver, rtol=rtol, atol=1e-3 * rtol),
            limits=Limits(t1=t1, max_steps=100_000), riders=(Drift(),), progress=False,
        )  # fmt: skip
        seconds.append(time.perf_counter() - begin)
    return estimate, 1e6 * statistics.median(seconds[1:]) / num


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num", type=int, default=4000, help=f"starts a line; implicit methods run {IMPLICIT_NUM}")
    parser.add_argument("--reference", type=float, default=1e-10, help="rtol of the reference, Dopri8")
    parser.add_argument("--laws", nargs="+", choices=LAWS, default=list(LAWS), metavar="LAW")
    options = parser.parse_args()
    for law in options.laws:
        exact = run(law, options.num, diffrax.Dopri8(), options.reference)[0].outcomes
        certified = float(np.mean(exact["highest"].to_numpy() == 0))
        print(f"\n{law}: {options.num} starts, {100 * certified:.1f} % certified\n")
        print("| method | rtol | labels changed | time error: median | largest | drift | steps | cost |")
        print("|---|---|---|---|---|---|---|---|")
        base = None
        for solver, rtol in METHODS:
            num = min(options.num, IMPLICIT_NUM) if isinstance(solver, diffrax.AbstractImplicitSolver) else options.num
            estimate, cost = run(law, num, solver, rtol)
            base = base or cost
            levels, times = (exact[name].to_numpy()[:num] for name in ("highest", "time"))
            both = (levels == 0) & (estimate.outcomes["highest"].to_numpy() == 0) & (times > 0)
            error = abs(estimate.outcomes["time"].to_numpy() - times)[both] / times[both]
            print(
                f"| {type(solver).__name__} | {rtol:.0e} | {np.sum(estimate.outcomes['highest'].to_numpy() != levels)} of {num} "
                f"| {np.median(error):.0e} | {error.max():.0e} | {estimate.tally.largest_drift:.0e} "
                f"| {estimate.tally.steps / num:.0f} | {cost / base:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
