"""Time per converged start of nonlinear problems, gdflow and peers side by side in one run.

    python benchmarks/networks.py [--workloads N1-Iris N1-Linnerud N2] [--contenders NAME ...] [--fast] [--num NUM]
                                  [--peers-num NUM] [--repeats NUM] [--out FOLDER]

A start is done once the norm of its gradient is at or below a tolerance at the end of a step. Prints a table and, with `--out`,
writes it to FOLDER/networks.md and FOLDER/networks.json. See README.md beside this file.
"""

import abc
import argparse
import dataclasses
import functools
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import jax

jax.config.update("jax_enable_x64", True)

import diffrax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from basins import machine  # noqa: E402
from peers import Unavailable, _constant, compiler, cores, tableau_header  # noqa: E402

import gdflow as gf  # noqa: E402
from gdflow.basins import Limits  # noqa: E402
from gdflow.basins.lanes import default_pool, default_threads, run_lanes  # noqa: E402
from gdflow.basins.outcomes import Status  # noqa: E402
from gdflow.basins.plan import _POOL, Plan, make_plan  # noqa: E402
from gdflow.data import iris_path, linnerud_path  # noqa: E402
from gdflow.data.bundled import IRIS_LABEL, LINNERUD_TARGETS  # noqa: E402
from gdflow.network import LayerTuple  # noqa: E402

KEY = jax.random.key(0)
MAX_STEPS = 20_000
RTOL, ATOL = 1e-8, 1e-10  # gdflow's default where limits are to be found
#: Contenders that run as many starts as they are asked for; the others are slow and run few.
QUICK = ("gdflow", "lanes", "gdflow-default", "lanes-default", "cpp", "cpp-vector")


@dataclasses.dataclass(frozen=True)
class Workload:
    """A problem whose starts run until `‖∇L‖` is at or below `tolerance`.

    - `loss`: the loss as one would write it down, for automatic differentiation.
    - `header`: the problem for networks.cpp, and its definitions.
    - `nums`: starts per contender, with `--fast` in second place.
    """

    name: str
    description: str
    problem: gf.problem.AbstractProblem
    widths: tuple[int, ...]
    tolerance: float
    loss: Callable[[list[jax.Array]], jax.Array]
    header: str
    nums: dict[str, tuple[int, int]]
    definitions: tuple[str, ...] = ()

    @functools.cached_property
    def law(self) -> gf.initialization.Gaussian:
        return gf.initialization.Gaussian(self.widths)

    def starts(self, first: int, num: int) -> list[jax.Array]:
        """Layers of starts `first, …, first + num − 1`, stacked."""
        return list(self.law.sample_batch(KEY, np.arange(first, first + num)).weights)


def tanh_network(name: str, data: str, problem: gf.Problem, hidden: int, tolerance: float, nums: dict) -> Workload:
    design, target = np.asarray(problem.design), np.asarray(problem.target)
    decay = float(problem.objective.decay)

    def loss(weights):
        first, second = weights
        error = target - second @ jnp.tanh(first @ design)
        return 0.5 * jnp.sum(error**2) + 0.5 * decay * (jnp.sum(first**2) + jnp.sum(second**2))

    pad = ((0, 0), (0, -design.shape[1] % 8))  # samples of zeros add nothing: tanh 0 = 0
    sizes = dict(D=design.shape[0], H=hidden, O=target.shape[0], M=design.shape[1] + pad[1][1])
    header = "".join(f"constexpr int {n} = {value};\n" for n, value in sizes.items())
    header += "alignas(64) " + _constant("design", np.pad(design, pad)) + "alignas(64) "
    header += _constant("target", np.pad(target, pad)) + f"constexpr double decay = {decay!r};\n"
    widths = problem.widths([hidden])
    text = f"tanh network {'-'.join(map(str, widths))}, {data}, {design.shape[1]} samples, weight decay {decay:g}"
    return Workload(name, text, problem, widths, tolerance, loss, header, nums)


@jax.custom_jvp
def _angular(cosine: jax.Array) -> jax.Array:
    """`sin θ + (π − θ) cos θ`, with its derivative: that of arccos does not exist for parallel vectors."""
    cosine = jnp.clip(cosine, -1, 1)
    return jnp.sqrt(1 - cosine**2) + (jnp.pi - jnp.arccos(cosine)) * cosine


@_angular.defjvp
def _(primals, tangents):
    return _angular(*primals), (jnp.pi - jnp.arccos(jnp.clip(primals[0], -1, 1))) * tangents[0]


def students(k: int, tolerance: float, nums: dict) -> Workload:
    problem = gf.teacher.TeacherStudent.orthonormal(k)

    def loss(weights):
        (W,) = weights
        length = jnp.sqrt(jnp.sum(W**2, axis=1))
        unit, off = W / length[:, None], 1 - jnp.eye(k)
        own = 0.25 * jnp.sum(W**2) + jnp.sum(off * length[:, None] * length * _angular(unit @ unit.T * off)) / (
            4 * jnp.pi
        )
        teachers = jnp.sum(length[:, None] * _angular(unit)) / (2 * jnp.pi)  # the teachers are e_1, …, e_k
        return own - teachers + problem.objective.constant

    header = f"constexpr int D = {k}, H = {k}, O = {k};\n" + _constant("teacher", problem.teacher)
    text = f"{k} ReLU students, {k} orthonormal ReLU teachers in dimension {k}"
    return Workload("N2", text, problem, problem.widths(), tolerance, loss, header, nums, ("-DTEACHER",))


def all_workloads() -> list[Workload]:
    iris = gf.Problem.from_csv(iris_path(), label=IRIS_LABEL, activations="tanh", weight_decay=10.0)
    linnerud = gf.Problem.from_csv(linnerud_path(), LINNERUD_TARGETS, activations="tanh", weight_decay=0.5)

    def nums(many: int, few: int, fast: int) -> dict[str, tuple[int, int]]:
        """Slow contenders run few. With few starts lanes run empty towards the end, which counts against gdflow."""
        return {name: (many, fast) if name in QUICK else (few, fast // 4) for name in CONTENDERS}

    return [
        tanh_network("N1-Iris", "Iris, standardised", iris, 5, 2e-4, nums(2000, 200, 100)),
        tanh_network("N1-Linnerud", "Linnerud, standardised", linnerud, 5, 3e-5, nums(2000, 500, 200)),
        students(8, 3e-4, nums(2000, 500, 200)),
    ]


# -- contenders --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Run:
    """Which starts converged, their losses in the end (`None`: not known start by start), mean steps, seconds if timed inside."""

    converged: float
    steps: float
    losses: np.ndarray | None = None
    seconds: float | None = None


class Contender(abc.ABC):
    """A contender set up for a workload. **Raises:** `Unavailable`."""

    name: str
    label: str

    def __init__(self, workload: Workload):
        self.workload = workload

    @abc.abstractmethod
    def run(self, num: int) -> Run:
        """Draws and integrates `num` starts."""

    def first_losses(self, num: int, run: Run) -> np.ndarray:
        """Of the first `num` starts of `KEY` in the end, NaN where they do not converge."""
        assert run.losses is not None
        return run.losses[:num]


class Gdflow(Contender):
    """With the polish: limits found, told apart and certified. A start ends at once when the tolerance is met (`dwell` 0)."""

    name, label = "gdflow", "gdflow.basin_sizes"
    limits: Limits

    def __init__(self, workload: Workload):
        super().__init__(workload)
        self.options = dict(
            key=KEY, method=gf.integrator(rtol=RTOL, atol=ATOL),
            limits=Limits(max_steps=MAX_STEPS, gradient_tolerance=workload.tolerance),
        )  # fmt: skip

    def run(self, num: int) -> Run:
        w = self.workload
        estimate = gf.basin_sizes(w.problem, w.law, num, audit=0, progress=False, **self.options)
        columns = estimate.outcomes
        status, loss, steps = (
            np.asarray(columns[c].to_numpy(zero_copy_only=False)) for c in ("limit", "loss", "steps")
        )
        return Run(float(np.mean(status >= 0)), float(steps.mean()), np.where(status >= 0, loss, np.nan))


class Lanes(Gdflow):
    """The integration alone, to states at the tolerance."""

    name, label = "lanes", "gdflow's lanes, without the polish"

    def run(self, num: int) -> Run:
        plan: Plan = make_plan(self.workload.problem, self.workload.law, **self.options)
        threads, parts = default_threads(), []
        pool = default_pool(num, _POOL // plan.starts.num_parameters, threads)
        run_lanes(
            plan.processes[0], range(num), lambda ids, columns: parts.append(columns | {"id": ids}),
            lanes=plan.check_lanes(num, None), pool=pool, threads=min(threads, -(-num // pool)),
        )  # fmt: skip
        ids, status, loss, steps = (np.concatenate([p[c] for p in parts]) for c in ("id", "status", "loss", "steps"))
        losses = np.full(num, np.nan)
        good = status == Status.CONVERGED
        losses[ids[good]] = loss[good]
        return Run(float(np.mean(good)), float(steps.mean()), losses)


class GdflowDefault(Gdflow):
    """With the method that `basin_sizes` chooses itself."""

    name, label = "gdflow-default", "gdflow.basin_sizes, its own choice: {method}"

    def __init__(self, workload: Workload):
        super().__init__(workload)
        del self.options["method"]
        method = make_plan(workload.problem, workload.law, **self.options).method
        self.label = self.label.format(method=method.name)


class LanesDefault(Lanes):
    name, label = "lanes-default", "gdflow's lanes, that method, without the polish"

    def __init__(self, workload: Workload):
        super().__init__(workload)
        del self.options["method"]


class Diffrax(Contender):
    """All starts of a batch wait for its slowest. The event asks for the gradient once more at every step."""

    name, label = "diffrax", "jax.vmap(diffeqsolve), automatic gradient, batches of {batch}"
    batch, closed, rtol, atol = 1000, False, RTOL, ATOL
    solver: diffrax.AbstractSolver = diffrax.Tsit5()

    def __init__(self, workload: Workload):
        super().__init__(workload)
        objective = workload.problem.objective
        if self.closed:

            def field(t, weights, args):
                return [-w for w in objective.gradient(LayerTuple(weights)).weights]
        else:

            def field(t, weights, args):
                return jax.tree.map(jnp.negative, jax.grad(workload.loss)(weights))

        def small(t, weights, args, **_):
            return jnp.sqrt(sum(jnp.sum(g**2) for g in field(t, weights, args))) <= workload.tolerance

        @jax.jit
        @jax.vmap
        def solve(weights):
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(field), self.solver, 0.0, 1e6, None, weights, event=diffrax.Event(small),
                stepsize_controller=diffrax.PIDController(rtol=self.rtol, atol=self.atol), max_steps=MAX_STEPS, throw=False,
            )  # fmt: skip
            loss = workload.loss([w[-1] for w in solution.ys])
            return jnp.where(solution.event_mask, loss, jnp.nan), solution.stats["num_steps"]

        self._solve = solve

    def run(self, num: int) -> Run:
        size = min(self.batch, num)
        self.label = type(self).label.format(batch=size)
        parts = [jax.device_get(self._solve(self.workload.starts(first, size))) for first in range(0, num, size)]
        losses, steps = map(np.concatenate, zip(*parts, strict=True))
        return Run(float(np.isfinite(losses).mean()), float(steps.mean()), losses)


class DiffraxClosed(Diffrax):
    name, label = "diffrax-closed", "jax.vmap(diffeqsolve), gdflow's gradient, batches of {batch}"
    closed = True


class DiffraxSmall(Diffrax):
    name, label = "diffrax-100", "jax.vmap(diffeqsolve), automatic gradient, batches of {batch}"
    batch = 100


class DiffraxLoose(Diffrax):
    name, label = "diffrax-loose", "the same in batches of {batch}, at rtol 1e-6, atol 1e-8"
    batch, rtol, atol = 100, 1e-6, 1e-8


class DiffraxImplicit(Diffrax):
    """Near a minimum the flow is stiff, which an implicit method minds least; every stage solves with the Jacobian."""

    name, label = "diffrax-implicit", "the same in batches of {batch}, Kvaerno5, at rtol 1e-6, atol 1e-8"
    batch, rtol, atol = 100, 1e-6, 1e-8
    solver = diffrax.Kvaerno5()


class Cpp(Contender):
    """`networks.cpp`, compiled for the workload, one thread per core. It draws its own starts when it is timed."""

    name, label = "cpp", "C++ loop (networks.cpp)"
    options: tuple[str, ...] = ()

    def __init__(self, workload: Workload):
        super().__init__(workload)
        command = compiler()
        if command is None:
            raise Unavailable("no C++ compiler (c++, g++, clang++)")
        self._folder = tempfile.TemporaryDirectory()
        self.folder = pathlib.Path(self._folder.name)
        (self.folder / "problem.h").write_text(workload.header)
        (self.folder / "tableau.h").write_text(tableau_header())
        self._compile = [
            command, "-std=c++17", "-O3", "-march=native", *self.options, "-pthread", f"-I{self.folder}",
            *workload.definitions, str(pathlib.Path(__file__).with_name("networks.cpp")), "-o",
            str(self.folder / "networks"),
        ]  # fmt: skip

    def _call(self, num: int, *more: str) -> list[list[float]]:
        if not (self.folder / "networks").exists():  # on the first run, which is timed apart
            done = subprocess.run(self._compile, capture_output=True, text=True)
            if done.returncode:
                raise Unavailable("networks.cpp does not compile: " + done.stderr[:500])
        numbers = (num, 1, cores(), RTOL, ATOL, self.workload.tolerance, MAX_STEPS)
        arguments = [str(self.folder / "networks"), *map(str, numbers), *more]
        lines = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.splitlines()
        return [[float(x) for x in line.split()] for line in lines]

    def run(self, num: int) -> Run:
        begin = time.perf_counter()
        new = not (self.folder / "networks").exists()
        ((seconds, converged, steps),) = self._call(num)
        return Run(converged / num, steps, seconds=time.perf_counter() - begin if new else seconds)

    def first_losses(self, num: int, run: Run) -> np.ndarray:
        starts = [np.reshape(w, (num, -1)) for w in self.workload.starts(0, num)]
        np.concatenate(starts, axis=1).tofile(self.folder / "starts")
        return np.array(
            [loss if steps >= 0 else np.nan for loss, steps in self._call(num, str(self.folder / "starts"))[1:]]
        )


class CppVector(Cpp):
    name, label = "cpp-vector", "the same with -ffast-math: tanh and acos of a vector library"
    options = ("-ffast-math",)


CONTENDERS: dict[str, type[Contender]] = {
    c.name: c
    for c in (
        Lanes,
        Gdflow,
        LanesDefault,
        GdflowDefault,
        Cpp,
        CppVector,
        Diffrax,
        DiffraxClosed,
        DiffraxSmall,
        DiffraxLoose,
        DiffraxImplicit,
    )
}


# -- the run -----------------------------------------------------------------------------------------------------------


def cpu_seconds() -> float:
    """Of this process and of the programs that it has run."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def timed(contender: Contender, num: int) -> tuple[float, float, Run]:
    """Seconds, those of the processors, what came of it."""
    begin, cpu = time.perf_counter(), cpu_seconds()
    run = contender.run(num)
    seconds, cpu = time.perf_counter() - begin, cpu_seconds() - cpu
    return seconds if run.seconds is None else run.seconds, cpu, run


def run_workload(workload: Workload, names: list[str], fast: bool, repeats: int) -> dict:
    """First every contender once, for compilation and comparison; then all in turn, so that a slow spell hits all."""
    jax.clear_caches()
    entries, missing, reference = [], [], None
    for name in names:
        num = workload.nums[name][fast]
        print(f"  {name}: {num} starts", file=sys.stderr, flush=True)
        try:
            contender = CONTENDERS[name](workload)
            first, _, run = timed(contender, num)
        except Unavailable as reason:
            missing.append(f"{CONTENDERS[name].label}: {reason}")
            continue
        losses = contender.first_losses(min(200, num), run)
        reference = losses if reference is None else reference
        shared = min(len(losses), len(reference))
        apart = int(np.sum(~(abs(losses - reference[: len(losses)])[:shared] <= 1e-5)))
        entries.append((contender, num, first, run, f"{apart} of {shared}", []))
    for _ in range(repeats):
        for contender, num, _, _, _, seconds in entries:
            seconds.append(timed(contender, num)[:2])
    results: list[dict] = []
    for contender, num, first, run, apart, seconds in entries:
        micro, cpu = ([1e6 * s / num for s in all_turns] for all_turns in zip(*seconds, strict=True))
        median = statistics.median(micro)
        # Ratios turn by turn: what slows the machine for a while slows both.
        base, base_cpu = (results[0]["all"], results[0]["all_cpu"]) if results else (micro, cpu)
        results.append(
            dict(
                contender=contender.name, label=contender.label, num=num, microseconds=median, all=micro,
                all_cpu=cpu, cpu=statistics.median(cpu),
                cpu_ratio=statistics.median(a / b for a, b in zip(cpu, base_cpu, strict=True)),
                ratio=statistics.median(a / b for a, b in zip(micro, base, strict=True)),
                first_run_extra=max(0.0, first - 1e-6 * num * median),
                converged=run.converged, steps=run.steps, other_limits=apart,
            )
        )  # fmt: skip
        print(
            f"  {contender.name}: {median:.4g} µs, × {results[-1]['ratio']:.2f}, CPU × {results[-1]['cpu_ratio']:.2f}",
            file=sys.stderr,
            flush=True,
        )
    return dict(name=workload.name, description=workload.description, tolerance=workload.tolerance, results=results,
                missing=missing)  # fmt: skip


def markdown(report: dict) -> str:
    m = report["machine"]
    lines = [
        "# Time per converged start", "",
        f"{m['date']}; {m['cpu']} ({m['architecture']}), {m['cores']} cores; "
        + ", ".join(f"{name} {version}" for name, version in m["versions"].items()) + ".", "",
        f"Tsit5, rtol {RTOL:g}, atol {ATOL:g}, unless said otherwise. Median (range) of {report['repeats']} runs after a first "
        "one, timed apart; ratios are medians over the turns; drawing the starts included."
        + (" `--fast`: too few starts for figures to quote." if report["fast"] else ""),
    ]  # fmt: skip
    for w in report["workloads"]:
        lines += [
            "", f"## {w['name']}: {w['description']}", "",
            f"Until ‖∇L‖ ≤ {w['tolerance']:g}.", "",
            "| who | starts | converged | other limit | steps | µs per start | × first row | CPU µs per start | × first row "
            "| first run adds |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]  # fmt: skip
        for r in w["results"]:
            lines.append(
                f"| {r['label']} | {r['num']} | {r['converged']:.4g} | {r['other_limits']} | {r['steps']:.0f} "
                f"| {r['microseconds']:.3g} ({min(r['all']):.3g}–{max(r['all']):.3g}) | {r['ratio']:.2f} "
                f"| {r['cpu']:.3g} ({min(r['all_cpu']):.3g}–{max(r['all_cpu']):.3g}) | {r['cpu_ratio']:.2f} "
                f"| {r['first_run_extra']:.1f} s |"
            )
        lines += ["", *(f"Skipped: {reason}." for reason in w["missing"])] if w["missing"] else []
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ["N1-Iris", "N1-Linnerud", "N2"]
    parser.add_argument("--workloads", nargs="+", default=names, choices=names)
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--fast", action="store_true", help="few starts, one repeat: a check that everything runs")
    parser.add_argument("--num", type=int, help="starts of gdflow and of the C++ loops")
    parser.add_argument("--peers-num", type=int, help="starts of the other contenders")
    parser.add_argument("--repeats", type=int, help="timed runs after the first; 3 by default, 1 with --fast")
    parser.add_argument(
        "--out", type=pathlib.Path, metavar="FOLDER", help="where to write networks.md and networks.json"
    )
    options = parser.parse_args()
    repeats = options.repeats or (1 if options.fast else 3)
    report = dict(machine=machine(), fast=options.fast, repeats=repeats, workloads=[])
    for workload in all_workloads():
        if workload.name in options.workloads:
            asked = {name: options.num if name in QUICK else options.peers_num for name in CONTENDERS}
            workload.nums.update({name: (num, num) for name, num in asked.items() if num is not None})
            print(workload.name, file=sys.stderr)
            report["workloads"].append(run_workload(workload, options.contenders, options.fast, repeats))
            if options.out:  # after every workload, so that an interrupt loses one at most
                options.out.mkdir(parents=True, exist_ok=True)
                (options.out / "networks.md").write_text(markdown(report), encoding="utf-8")
                (options.out / "networks.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    print(markdown(report))


if __name__ == "__main__":
    main()
