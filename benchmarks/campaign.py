"""What keeping all rows costs: campaigns beside the bare engine, reading back, and a long run whose memory is watched.

    python benchmarks/campaign.py [--num NUM] [--turns NUM] [--soak SECONDS] [--folder FOLDER]

Workload A of `basins.py`. Every turn runs the same starts bare, and then as a campaign; then the campaign is opened. See
README.md beside this file.
"""

import argparse
import os
import pathlib
import re
import shutil
import statistics
import tempfile
import threading
import time

import jax

jax.config.update("jax_enable_x64", True)

from basins import machine  # noqa: E402

import gdflow as gf  # noqa: E402

WIDTHS, VALUES = (6, 5, 5, 3), (3.0, 2.0, 1.0)


def sizes(num, seed, **options):
    problem = gf.Problem.from_singular_values(VALUES, WIDTHS[0], WIDTHS[-1])
    law = gf.initialization.Gaussian(WIDTHS)
    return gf.basin_sizes(problem, law, num, key=jax.random.key(seed), audit=0, progress=False, **options)


def timed(run):
    begin = time.perf_counter()
    result = run()
    return time.perf_counter() - begin, result


def memory() -> tuple[float, int, int]:
    """MiB of memory, memory maps, and open files of this process."""
    status = pathlib.Path("/proc/self/status").read_text()
    size = int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 2**10
    maps = len(pathlib.Path("/proc/self/maps").read_text().splitlines())
    return size, maps, len(os.listdir("/proc/self/fd"))


def compare(num: int, turns: int, folder: pathlib.Path) -> None:
    sizes(10_000, 99)  # compiles
    bare, kept = [], []
    for turn in range(turns):
        where = folder / str(turn)
        seconds, one = timed(lambda: sizes(num, turn))  # noqa: B023 (called at once)
        bare.append(seconds)
        seconds, other = timed(lambda: sizes(num, turn, folder=where))  # noqa: B023
        kept.append(seconds)
        assert one.tally.certified.tolist() == other.tally.certified.tolist()
        written = sum(path.stat().st_size for path in (where / "outcomes").iterdir())
        print(f"turn {turn}: bare {bare[-1]:.2f} s, campaign {kept[-1]:.2f} s, {written / num:.1f} bytes a row, "
            f"{memory()[0]:.0f} MiB", flush=True)  # fmt: skip
    ratio = statistics.median(b / a for a, b in zip(bare, kept, strict=True))
    print(f"campaign / bare: {ratio:.3f} (median of {turns} turns of {num} starts)")
    for turn in range(turns):
        opened, _ = timed(lambda: gf.load(folder / str(turn)))  # noqa: B023
        checked, _ = timed(lambda: sizes(num, turn, folder=folder / str(turn)))  # noqa: B023
        print(f"opened by gf.load in {opened:.2f} s, by the same call, which checks every byte, in {checked:.2f} s")


def soak(seconds: float, folder: pathlib.Path) -> None:
    """One campaign for so long; a line every half minute."""
    ended = threading.Event()

    def watch():
        begin = time.monotonic()
        while not ended.wait(30):
            size, maps, files = memory()
            print(f"{time.monotonic() - begin:6.0f} s: {size:.0f} MiB, {maps} maps, {files} files", flush=True)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        taken, estimate = timed(lambda: sizes(10**9, 7, folder=folder / "soak", until=gf.basins.Until(seconds=seconds)))
    finally:
        ended.set()
        watcher.join()
    print(
        f"{estimate.num} starts in {taken:.0f} s, {1e6 * taken / estimate.num:.1f} µs each; memory at the end {memory()}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num", type=int, default=10**6, help="starts of a turn")
    parser.add_argument("--turns", type=int, default=5, help="timed turns")
    parser.add_argument("--soak", type=float, default=0.0, metavar="SECONDS", help="how long the last run goes on")
    parser.add_argument("--folder", type=pathlib.Path, help="where campaigns are kept, and then removed")
    options = parser.parse_args()
    print(machine())
    folder = pathlib.Path(tempfile.mkdtemp(prefix="gdflow-bench-", dir=options.folder))
    try:
        if options.turns:
            compare(options.num, options.turns, folder)
        if options.soak:
            soak(options.soak, folder)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
