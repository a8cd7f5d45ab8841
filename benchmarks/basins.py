"""Time per certified start, gdflow and peers side by side in one run.

    python benchmarks/basins.py [--workloads A B C D E F G] [--fast] [--out FOLDER]

Prints a table and, with `--out`, writes it to FOLDER/basins.md and FOLDER/basins.json. See README.md beside this file.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time

import jax
import numpy as np
from peers import PEERS, Gdflow, Peer, Run, Unavailable, compiler, cores, reference_times
from workloads import Workload, all_workloads

PACKAGES = (
    "jax", "jaxlib", "diffrax", "equinox", "optimistix", "numpy", "scipy", "torch", "torchdiffeq", "torchode",
)  # fmt: skip
STAGES = 6  # evaluations of the field in one step of Tsit5
SCALING = (10**3, 10**4, 10**5, 10**6, 10**7)


def timed(peer: Peer, num: int) -> tuple[float, Run]:
    begin = time.perf_counter()
    run = peer.run(num)
    seconds = time.perf_counter() - begin
    return seconds if run.seconds is None else run.seconds, run


def largest_error(times: np.ndarray | None, reference: np.ndarray) -> float | None:
    """Largest relative error over the starts that have a certificate time in both."""
    if times is None:
        return None
    reference = reference[: len(times)]
    both = np.isfinite(times) & np.isfinite(reference)
    if not both.any():
        return None
    gap = abs(times - reference)[both]
    return float(np.max(np.where(gap == 0, 0.0, gap / np.maximum(reference[both], 1e-300))))


def run_workload(workload: Workload, fast: bool, repeats: int) -> dict:
    """First every contender once, for compilation and accuracy; then all in turn, so that a slow spell hits all."""
    jax.clear_caches()  # nobody profits from what an earlier workload compiled
    entries, missing, mean_time = [], [], np.nan
    reference = np.empty(0)
    for name, nums in workload.nums.items():
        num = nums[fast]
        if not num:
            continue
        print(f"  {name}: {num} starts", file=sys.stderr, flush=True)
        try:
            peer = PEERS[name](workload, mean_time)
            first, run = timed(peer, num)
        except Unavailable as reason:
            print(f"  skipped: {reason}", file=sys.stderr)
            missing.append(f"{PEERS[name].label}: {reason}")
            continue
        if name == "gdflow":  # comes first
            assert run.times is not None
            mean_time = float(np.nanmean(run.times))
            # The reference could follow an undecided start forever.
            reference = reference_times(workload, np.isfinite(run.times[: workload.num_reference[fast]]))
        error = largest_error(peer.first_times(len(reference), run), reference)
        entries.append((peer, num, first, run, error, []))
    for _ in range(repeats):
        for peer, num, _, _, _, seconds in entries:
            seconds.append(timed(peer, num)[0])
    results = []
    for peer, num, first, run, error, seconds in entries:
        micro = [1e6 * s / num for s in seconds]
        median = statistics.median(micro)
        results.append(
            dict(
                contender=peer.name, label=peer.label, num=num, microseconds=median, low=min(micro), high=max(micro),
                ratio=median / results[0]["microseconds"] if results else 1.0,
                first_run_extra=max(0.0, first - statistics.median(seconds)),
                certified=run.certified, error=error, steps=run.steps,
                gflops=None if run.steps is None else 1e-3 * run.steps * STAGES * workload.flop / median,
            )
        )  # fmt: skip
    return dict(
        name=workload.name, description=workload.description, rtol=workload.rtol, atol=workload.atol,
        max_steps=workload.max_steps, t1=workload.t1, level=workload.level, flop_per_gradient=workload.flop,
        num_reference=len(reference), results=results, missing=missing,
    )  # fmt: skip


def peak_memory() -> int:
    """Largest resident memory of this process in bytes.

    Linux hands `ru_maxrss` on from parent to child, so what it says of a child may be the parent's; `VmHWM` is the
    child's own.
    """
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def scale(num: int, repeats: int) -> dict:
    """gdflow alone on workload A: time and peak memory of this process, which does nothing else."""
    peer = Gdflow(all_workloads()[0], np.nan)
    warm = min(num, 20_000)  # compiles all there is to compile
    begin = time.perf_counter()
    peer.run(warm)
    first = time.perf_counter() - begin
    micro = [1e6 * timed(peer, num)[0] / num for _ in range(repeats)]
    median = statistics.median(micro)
    return dict(num=num, microseconds=median, low=min(micro), high=max(micro), repeats=repeats,
                first_run_extra=first - 1e-6 * median * warm, peak_memory=peak_memory())  # fmt: skip


def run_scaling(fast: bool, repeats: int) -> list[dict]:
    rows = []
    for num in SCALING[:1] if fast else SCALING:
        print(f"  gdflow: {num} starts", file=sys.stderr, flush=True)
        times = repeats if num <= 10**6 else 1
        command = [sys.executable, __file__, "--scale", str(num), "--repeats", str(times)]
        rows.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    return rows


def matrix_rate() -> float:
    """GFLOP/s of a product of 1024x1024 matrices in float64, all cores: the best of NumPy and JAX."""
    a = np.random.default_rng(0).standard_normal((1024, 1024))
    on_device, product = jax.device_put(a), jax.jit(lambda x: x @ x)

    def best(multiply) -> float:
        multiply()
        seconds = []
        for _ in range(10):
            begin = time.perf_counter()
            multiply()
            seconds.append(time.perf_counter() - begin)
        return min(seconds)

    return 2e-9 * 1024**3 / min(best(lambda: a @ a), best(lambda: product(on_device).block_until_ready()))


def cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def machine() -> dict:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    command = compiler()
    if command is not None:
        done = subprocess.run([command, "--version"], capture_output=True, text=True)
        versions["compiler"] = next(iter(done.stdout.splitlines()), command)
    return dict(
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        cpu=cpu_model(), architecture=platform.machine(), cores=cores(),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        jax_backend=jax.default_backend(),
        gpu=None if jax.default_backend() == "cpu" else jax.devices()[0].device_kind,
        matrix_gflops=matrix_rate(), versions=versions,
    )  # fmt: skip


def markdown(report: dict) -> str:
    m = report["machine"]
    gpu = f", {m['gpu']}" if m["gpu"] else ""
    lines = [
        "# Time per certified start", "",
        f"{m['date']}; {m['cpu']} ({m['architecture']}), {m['cores']} cores, {m['memory_gib']} GiB{gpu}; JAX on "
        f"{m['jax_backend']}; product of 1024×1024 matrices in float64: {m['matrix_gflops']:.0f} GFLOP/s.", "",
        ", ".join(f"{name} {version}" for name, version in m["versions"].items()) + ".", "",
        f"Median (range) of {report['repeats']} runs after a first one, timed apart; drawing the starts included."
        + (" `--fast`: too few starts for figures to quote." if report["fast"] else ""),
    ]  # fmt: skip
    for w in report["workloads"]:
        lines += [
            "", f"## {w['name']}: {w['description']}", "",
            f"rtol {w['rtol']:g}, atol {w['atol']:g}, given up after {w['max_steps']} steps or time {w['t1']:g}; error "
            f"of certificate times over the first {w['num_reference']} starts.", "",
            "| who | starts | certified | µs per start | × gdflow | first run adds | largest error | steps "
            "| GFLOP/s (of matrix product) |",
            "|---|---|---|---|---|---|---|---|---|",
        ]  # fmt: skip
        for r in w["results"]:
            error = "–" if r["error"] is None else f"{r['error']:.0e}"
            steps = "–" if r["steps"] is None else f"{r['steps']:.0f}"
            rate = "–" if r["gflops"] is None else f"{r['gflops']:.2g} ({r['gflops'] / m['matrix_gflops']:.0%})"
            lines.append(
                f"| {r['label']} | {r['num']} | {r['certified']:.4g} "
                f"| {r['microseconds']:.3g} ({r['low']:.3g}–{r['high']:.3g}) | {r['ratio']:.2f} "
                f"| {r['first_run_extra']:.1f} s | {error} | {steps} | {rate} |"
            )
        lines += ["", *(f"Skipped: {reason}." for reason in w["missing"])] if w["missing"] else []
    if report["scaling"]:
        lines += [
            "", "## G: gdflow on A, by the number of starts, each in a process of its own", "",
            "| starts | runs | µs per start | first run adds | peak resident memory |",
            "|---|---|---|---|---|",
        ]  # fmt: skip
        for r in report["scaling"]:
            lines.append(
                f"| {r['num']} | {r['repeats']} | {r['microseconds']:.3g} ({r['low']:.3g}–{r['high']:.3g}) "
                f"| {r['first_run_extra']:.1f} s | {r['peak_memory'] / 2**20:.0f} MiB |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", nargs="+", default=list("ABCDEFG"), choices=list("ABCDEFG"), metavar="LETTER")
    parser.add_argument("--fast", action="store_true", help="few starts, one repeat: a check that everything runs")
    parser.add_argument("--repeats", type=int, help="timed runs after the first; 3 by default, 1 with --fast")
    parser.add_argument("--out", type=pathlib.Path, metavar="FOLDER", help="where to write basins.md and basins.json")
    parser.add_argument("--scale", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    repeats = options.repeats or (1 if options.fast else 3)
    if options.scale:
        print(json.dumps(scale(options.scale, repeats)))
        return
    report = dict(machine=machine(), fast=options.fast, repeats=repeats, workloads=[], scaling=[])

    def write() -> None:  # after every workload, so that an interrupt loses one at most
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / "basins.md").write_text(markdown(report), encoding="utf-8")
            (options.out / "basins.json").write_text(json.dumps(report, indent=2), encoding="utf-8")

    for workload in all_workloads():
        if workload.name[0] in options.workloads:
            print(workload.name, file=sys.stderr)
            report["workloads"].append(run_workload(workload, options.fast, repeats))
            write()
    if "G" in options.workloads:
        print("G", file=sys.stderr)
        report["scaling"] = run_scaling(options.fast, repeats)
        write()
    print(markdown(report))


if __name__ == "__main__":
    main()
