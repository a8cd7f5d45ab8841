"""Which engine suits which widths: the fused program, with blocks of 2, 4 and 8 lanes, or XLA's lanes.

    python benchmarks/engines.py [--widths 2 4 6 8 12 16 24] [--layers 3] [--seconds 5]

Times `plan.collect` on networks w-…-w with the drift as the only rider, on all cores, in µs per start, drawing included and
compilation apart. The rule: what the fused program can run it does run where no layer is wider than
`gdflow.basins.fused.engine.WIDEST`, in blocks of one register. That width is put aside here, to see where
the program stops paying; what first runs take longer is shown beside.
"""

import argparse
import os
import statistics
import time

import jax

jax.config.update("jax_enable_x64", True)

import numpy as np  # noqa: E402

import gdflow as gf  # noqa: E402
from gdflow.basins import Drift, Plan, engines, make_plan  # noqa: E402
from gdflow.basins.fused import build, engine, source  # noqa: E402

BLOCKS = (2, 4, 8)


def chosen_block() -> int:
    """How many lanes a block has on this machine."""
    return build.program(f"{source._HEAD} int lanes(void) {{ return V; }}").lanes()


def plan_of(widths: tuple[int, ...]) -> Plan:
    problem = gf.Problem.from_singular_values(np.linspace(3, 1, min(widths)), widths[0], widths[-1])
    return make_plan(problem, gf.initialization.Gaussian(widths), key=jax.random.key(0), riders=(Drift(),))


def timed(plan: Plan, seconds: float) -> tuple[float, float]:
    """µs per start, the median of five runs of so many seconds in all, and what the first run took beside."""
    num, begin = 512, time.perf_counter()
    plan.collect(range(num))
    first = time.perf_counter() - begin
    while True:  # as many starts as take so long
        plan.collect(range(num))  # pools of another size are drawn by another program
        begin = time.perf_counter()
        plan.collect(range(num))
        spent = time.perf_counter() - begin
        if spent > seconds / 5:
            break
        num *= 2
    runs = []
    for _ in range(5):
        begin = time.perf_counter()
        plan.collect(range(num))
        runs.append(time.perf_counter() - begin)
    return 1e6 * statistics.median(runs) / num, first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[2, 4, 6, 8, 12, 16, 24])
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    rule, head, default = engine.why_not_fused, source._HEAD, chosen_block()
    titles = [f"fused, {lanes} lanes" for lanes in BLOCKS]
    print(
        f"| widths | XLA | {' | '.join(titles)} | XLA over fused, {default} lanes | first run: XLA, fused | by the rule |"
    )
    print("|---" * (len(BLOCKS) + 5) + "|")
    for width in options.widths:
        plan = plan_of((width,) * (options.layers + 1))
        reason = rule(plan.processes[0])
        os.environ[engines.VARIABLE] = "xla"
        slow, slow_first = timed(plan, options.seconds)
        engines.why_not_fused = lambda process: None  # type: ignore[assignment]
        os.environ[engines.VARIABLE] = "fused"
        times, firsts = {}, {}
        for lanes in BLOCKS:
            source._HEAD = f"#define V {lanes}\n{head}"
            engine._program.cache_clear()
            times[lanes], firsts[lanes] = timed(plan, options.seconds)
        source._HEAD = head
        engine._program.cache_clear()
        engines.why_not_fused = rule
        row = " | ".join(f"{times[lanes]:.3g}" for lanes in BLOCKS)
        print(
            f"| {width} | {slow:.3g} | {row} | {slow / times[default]:.2f} | {slow_first:.1f} s, {firsts[default]:.1f} s "
            f"| {'fused' if reason is None else f'XLA: {reason}'} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
