"""What proofs cost: time per start of plain certified runs and of proved ones, and which method is the fastest to prove with.

    python benchmarks/proofs.py [--workloads A B D N2 deep small tiny] [--num 20000] [--repeats 3] [--methods] [--rest 20]

For every workload the plain run (Tsit5, rtol 1e-6, no proof) and the proved run are timed in turn, compilation apart; with
`--methods` also proofs that begin with other solvers and tolerances. Proved runs count everything: all attempts at tighter
tolerances until the last start is proved or given up. Of the starts left over the first `--rest` are tried by `gdflow.prove`,
whose sharper bound is too dear for batches. See README.md beside this file.
"""

import argparse
import statistics
import time

import diffrax
import jax
import numpy as np
from workloads import KEY, Workload, all_workloads

import gdflow as gf
from gdflow.basins import Drift, Plan, make_plan

DEFAULT = ("Dopri8", 1e-7)
METHODS = (
    ("Tsit5", 1e-4), ("Tsit5", 1e-5), ("Tsit5", 1e-6), ("Tsit5", 1e-7),
    ("Dopri8", 1e-5), ("Dopri8", 1e-6), DEFAULT, ("Dopri8", 1e-8),
)  # fmt: skip


def more_workloads() -> list[Workload]:
    """One hidden layer, five layers, and small starts."""
    from_values = gf.Problem.from_singular_values
    two, deep, small = from_values([3, 2, 1], d_x=6), from_values([2, 1]), from_values([3, 2, 1], d_x=6)
    gaussian = gf.initialization.Gaussian
    return [
        Workload("N2", "widths 6-5-3", two, gaussian(two.widths([5])), {}),
        Workload("deep", "five layers of width 3, singular values 2, 1", deep, gaussian(deep.widths([3] * 4)), {}),
        Workload("small", "A at standard deviation 0.3", small, gaussian(small.widths([5, 5]), 0.3), {}),
        Workload("tiny", "A at standard deviation 0.1", small, gaussian(small.widths([5, 5]), 0.1), {}),
    ]


def plan_of(workload: Workload, solver: str, rtol: float, proof: bool) -> Plan:
    method = gf.integrator(getattr(diffrax, solver)(), rtol, 1e-3 * rtol)
    return make_plan(workload.problem, workload.law, key=KEY, method=method, riders=(Drift(),), proof=proof)


def run(plan: Plan, num: int) -> tuple[float, dict[str, np.ndarray]]:
    begin = time.perf_counter()
    table = plan.collect(range(num))
    seconds = time.perf_counter() - begin
    return seconds, {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}


def prove_rest(plan: Plan, ids: np.ndarray) -> str:
    """How many of these starts `gdflow.prove` proves, and how long it takes for one, compilation included."""
    nets = plan.starts.networks(ids)
    begin = time.perf_counter()
    proved = [gf.prove(plan.problem, jax.tree.map(lambda w: w[i], nets)).proved for i in range(len(ids))]  # noqa: B023
    return f"{sum(proved)} of {len(ids)}, {(time.perf_counter() - begin) / len(ids):.1f} s each"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", default=["A", "B", "D", "N2", "deep", "small", "tiny"])
    parser.add_argument("--num", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--methods", action="store_true")
    parser.add_argument("--rest", type=int, default=0)
    options = parser.parse_args()
    known = {w.name: w for w in [*all_workloads(), *more_workloads()]}
    print(
        "| workload | run | µs per start | × plain | proved | by attempt | steps | exponent (median) | rest by gdflow.prove |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for workload in (known[name] for name in options.workloads):
        jax.clear_caches()
        chosen = METHODS if options.methods else (DEFAULT,)
        runs = [("plain", plan_of(workload, "Tsit5", 1e-6, False))]
        runs += [(f"proof, {s} {rtol:g}", plan_of(workload, s, rtol, True)) for s, rtol in chosen]
        rows = [run(plan, options.num)[1] for _, plan in runs]  # compilation
        seconds: list[list[float]] = [[] for _ in runs]
        for _ in range(options.repeats):
            for times, (_, plan) in zip(seconds, runs, strict=True):
                times.append(run(plan, options.num)[0])
        plain = statistics.median(seconds[0])
        for (name, plan), times, columns in zip(runs, seconds, rows, strict=True):
            middle = statistics.median(times)
            proved, by, exponent, rest = "–", "–", "–", "–"
            if plan.proves:
                good = columns["proved"] == 1
                proved = f"{good.mean():.5g}"
                counts = [np.sum(good & (columns["attempt"] == k)) / options.num for k in range(len(plan.methods))]
                by = ", ".join(f"{share:.4f}" for share in counts)
                exponent = f"{np.median(columns['exponent'][good]):.2f}" if good.any() else "–"
                if options.rest and not good.all():
                    rest = prove_rest(plan, np.flatnonzero(~good)[: options.rest])
            print(
                f"| {workload.name} | {name} | {1e6 * middle / options.num:.3g} | {middle / plain:.2f} | {proved} | {by} "
                f"| {columns['steps'].mean():.1f} | {exponent} | {rest} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
