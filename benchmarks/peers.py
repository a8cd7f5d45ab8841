"""Who is measured. Every contender draws its starts and integrates them; `Run` says what came of it.

The peers share nothing with gdflow but the starts: their field is the closed form below, on NumPy, JAX or torch arrays.
"""

import abc
import dataclasses
import os
import pathlib
import shutil
import subprocess
import tempfile
import time
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np
from workloads import KEY, Workload

import gdflow as gf
from gdflow.basins import Drift, Limits

BATCH = 1000


class Unavailable(Exception):
    """The contender cannot run here, or not this workload; says why."""


@dataclasses.dataclass(frozen=True)
class Run:
    """`times` of certification (NaN: undecided), share certified, mean steps per start, seconds if timed inside."""

    times: np.ndarray | None
    certified: float
    steps: float | None = None
    seconds: float | None = None


class Peer(abc.ABC):
    """A contender set up for a workload.

    `mean_time` is gdflow's mean time of certification there, for those that cannot stop at an event.

    **Raises:** `Unavailable`.
    """

    name: str
    label: str

    def __init__(self, workload: Workload, mean_time: float):
        self.workload, self.mean_time = workload, mean_time

    @abc.abstractmethod
    def run(self, num: int) -> Run:
        """Draws and integrates `num` starts."""

    def first_times(self, num: int, run: Run) -> np.ndarray | None:
        """Certificate times of the first `num` starts of `KEY`, given a run; fewer if it was shorter."""
        return None if run.times is None else run.times[:num]


def field(weights, target, design):
    """`−∇L` layer by layer and the residual `M = A − WD`, of one network or a batch."""
    right = [weights[0]]
    for w in weights[1:]:
        right.append(w @ right[-1])
    M = target - (right[-1] if design is None else right[-1] @ design)
    left, parts = M if design is None else M @ design.mT, []
    for w, r in zip(weights[:0:-1], right[-2::-1], strict=True):
        parts.append(left @ r.mT)
        left = w.mT @ left
    return [left, *parts[::-1]], M


def end_to_end_loss(weights, target, design):
    """`½‖A − WD‖²`, of one network or a batch."""
    product = weights[0]
    for w in weights[1:]:
        product = w @ product
    M = target - (product if design is None else product @ design)
    return 0.5 * (M * M).sum((-2, -1))


class Gdflow(Peer):
    name, label = "gdflow", "gdflow.basin_sizes"

    def run(self, num: int) -> Run:
        w = self.workload
        estimate = gf.basin_sizes(
            w.problem,
            w.law,
            num,
            key=KEY,
            audit=0,
            progress=False,
            method=gf.integrator(rtol=w.rtol, atol=w.atol),
            limits=Limits(max_steps=w.max_steps, t1=w.t1),
            riders=(Drift(),),
        )
        highest, times, steps = (estimate.outcomes[c].to_numpy() for c in ("highest", "time", "steps"))
        return Run(np.where(highest == 0, times, np.nan), estimate.fraction, float(steps.mean()))


class GdflowLanes(Gdflow):
    """Without the fused program: step by step through XLA."""

    name, label = "lanes", "gdflow.basin_sizes, GDFLOW_ENGINE=xla"

    def run(self, num: int) -> Run:
        with unittest.mock.patch.dict(os.environ, GDFLOW_ENGINE="xla"):
            return super().run(num)


class Diffrax(Peer):
    """All starts of a batch wait for its slowest."""

    name, label = "diffrax", "jax.vmap(diffeqsolve), certificate event"
    steady = False

    def __init__(self, workload: Workload, mean_time: float):
        super().__init__(workload, mean_time)
        import diffrax
        import optimistix as optx

        target, design, level = workload.problem.target, workload.design, workload.level
        if self.steady:
            event = diffrax.Event(diffrax.steady_state_event())
        else:
            event = diffrax.Event(
                lambda t, y, args, **_: end_to_end_loss(y, target, design) - level,
                optx.Newton(1e-10, 1e-10), direction=False,
            )  # fmt: skip

        @jax.jit
        @jax.vmap
        def solve(weights):
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(lambda t, y, args: field(y, target, design)[0]), diffrax.Tsit5(), 0.0, workload.t1,
                workload.dt0, weights, event=event,
                stepsize_controller=diffrax.PIDController(rtol=workload.rtol, atol=workload.atol),
                max_steps=min(workload.max_steps, 4096), throw=False,
            )  # fmt: skip
            final = end_to_end_loss([w[-1] for w in solution.ys], target, design)
            at_start = end_to_end_loss(weights, target, design) < level  # an event needs a change of sign
            certified = at_start | (final < level if self.steady else solution.event_mask)
            return certified, jnp.where(at_start, 0.0, solution.ts[-1]), solution.stats["num_steps"]

        self._solve = solve

    def run(self, num: int) -> Run:
        parts = [
            jax.device_get(self._solve(self.workload.starts(first, min(BATCH, num - first))))
            for first in range(0, num, BATCH)
        ]
        certified, times, steps = map(np.concatenate, zip(*parts, strict=True))
        times = None if self.steady else np.where(certified, times, np.nan)
        return Run(times, float(certified.mean()), float(steps.mean()))


class DiffraxSteadyState(Diffrax):
    """Stops where the field is small, near saddles too, and after `max_steps` where the tolerances never let it be."""

    name, label = "steady", "jax.vmap(diffeqsolve), steady-state event"
    steady = True


def _flattened(workload: Workload):
    """Shapes of the layers and where to cut a flat state."""
    d = workload.law.widths
    shapes = list(zip(d[1:], d[:-1], strict=True))
    return shapes, np.cumsum([0] + [a * b for a, b in shapes]).tolist()


def _check_gaussian(workload: Workload) -> None:
    law = workload.law
    if not isinstance(law, gf.initialization.Gaussian) or law.scale is not gf.initialization.fan_in:
        raise Unavailable("draws Gaussian fan-in starts only")


class SciPy(Peer):
    name, label = "scipy", "SciPy solve_ivp RK45, certificate event"

    def run(self, num: int) -> Run:
        starts = [np.asarray(w) for w in self.workload.starts(0, num)]
        options = dict(method="RK45", rtol=self.workload.rtol, atol=self.workload.atol)
        times = np.array([self.solve([w[i] for w in starts], **options) for i in range(num)])
        return Run(times, float(np.isfinite(times).mean()))

    def solve(self, weights: list[np.ndarray], **options) -> float:
        """Certificate time from given weights, NaN if there is none before `t1`."""
        import scipy.integrate

        workload = self.workload
        target, design = np.asarray(workload.problem.target), workload.design
        shapes, cuts = _flattened(workload)
        parts = [(slice(a, b), shape) for a, b, shape in zip(cuts[:-1], cuts[1:], shapes, strict=True)]

        def layers(y):
            return [y[part].reshape(shape) for part, shape in parts]

        def fun(t, y):
            return np.concatenate([k.ravel() for k in field(layers(y), target, design)[0]])

        def event(t, y):
            return end_to_end_loss(layers(y), target, design) - workload.level

        event.terminal, event.direction = True, -1
        y = np.concatenate([w.ravel() for w in weights])
        if event(0.0, y) < 0:
            return 0.0
        solution = scipy.integrate.solve_ivp(fun, (0, workload.t1), y, events=event, **options)
        return solution.t[-1] if solution.status == 1 else np.nan


class _Torch(Peer):
    """A batch to a fixed time, the mean time of certification: neither has an event for every start of a batch."""

    def __init__(self, workload: Workload, mean_time: float):
        super().__init__(workload, mean_time)
        _check_gaussian(workload)
        self.label = f"{self.label}, no event: to t = {mean_time:.3g}"
        try:
            import torch

            self._load()
        except ImportError as error:
            raise Unavailable(f"{error.name} is not installed") from None
        self.torch = torch
        self.target = torch.tensor(np.asarray(workload.problem.target))
        self.design = None if workload.design is None else torch.tensor(workload.design)
        self.shapes, cuts = _flattened(workload)
        self.sizes = np.diff(cuts).tolist()

    @abc.abstractmethod
    def _load(self) -> None:
        """Imports the package."""

    @abc.abstractmethod
    def _integrate(self, y):
        """States at `mean_time`."""

    def _layers(self, y):
        return [w.reshape(-1, *shape) for w, shape in zip(y.split(self.sizes, 1), self.shapes, strict=True)]

    def _flat(self, weights):
        return self.torch.cat([w.reshape(len(w), -1) for w in weights], 1)

    def _field(self, t, y):
        return self._flat(field(self._layers(y), self.target, self.design)[0])

    def run(self, num: int) -> Run:
        torch, certified, widths = self.torch, 0, self.workload.law.widths
        with torch.no_grad():
            for first in range(0, num, BATCH):
                size = min(BATCH, num - first)
                draws = [torch.randn(size, *shape, dtype=torch.float64) for shape in self.shapes]
                y = self._flat([w / d**0.5 for w, d in zip(draws, widths[:-1], strict=True)])
                losses = end_to_end_loss(self._layers(self._integrate(y)), self.target, self.design)
                certified += int((losses < self.workload.level).sum())
        return Run(None, certified / num)


class Torchdiffeq(_Torch):
    """One step size for the whole batch."""

    name, label = "torchdiffeq", "torchdiffeq dopri5"

    def _load(self) -> None:
        import torchdiffeq

        self._odeint = torchdiffeq.odeint

    def _integrate(self, y):
        times = self.torch.tensor([0.0, self.mean_time], dtype=y.dtype)
        options = dict(method="dopri5", rtol=self.workload.rtol, atol=self.workload.atol)
        return self._odeint(self._field, y, times, **options)[-1]


class Torchode(_Torch):
    """A step size for every start; the batch waits for its slowest."""

    name, label = "torchode", "torchode Tsit5"

    def _load(self) -> None:
        import torchode

        self._problem, term = torchode.InitialValueProblem, torchode.ODETerm(self._field)
        controller = torchode.IntegralController(atol=self.workload.atol, rtol=self.workload.rtol, term=term)
        self._solver = torchode.AutoDiffAdjoint(torchode.Tsit5(term=term), controller)

    def _integrate(self, y):
        times = self.torch.tensor([0.0, self.mean_time], dtype=y.dtype).expand(len(y), 2)
        return self._solver.solve(self._problem(y0=y, t_eval=times)).ys[:, -1]


def compiler() -> str | None:
    """The system's C++ compiler."""
    return shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")


def _constant(name: str, value) -> str:
    """An array as C++ source."""
    array = np.asarray(value, dtype=float)

    def braces(a):
        return "{" + ", ".join(braces(x) if np.ndim(x) else repr(float(x)) for x in a) + "}"

    return f"constexpr double {name}" + "".join(f"[{n}]" for n in array.shape) + f" = {braces(array)};\n"


def tableau_header() -> str:
    """Diffrax's Tsit5 for flow.cpp.

    Its interpolant is linear in the two ends and the stages and a polynomial in time: asked for unit vectors at a few
    times it tells the polynomials of the stages.
    """
    import diffrax

    solver, degree = diffrax.Tsit5(), 4
    tableau = solver.tableau
    stages = len(tableau.a_lower) + 1
    lower = np.zeros((stages, stages))
    for i, row in enumerate(tableau.a_lower, 1):
        lower[i, : len(row)] = row
    unit, ends = jnp.eye(2 + stages), jnp.array([0.0, 1.0])
    interpolant = solver.interpolation_cls(t0=ends[0], t1=ends[1], y0=unit[0], y1=unit[1], k=unit[2:])
    times = np.linspace(0, 1, 9)
    values = np.array([interpolant.evaluate(jnp.array(t)) for t in times])
    powers = np.vander(times, degree + 1, increasing=True)
    dense = np.linalg.lstsq(powers, values[:, 2:], rcond=None)[0].T
    assert np.allclose(powers @ dense.T, values[:, 2:], rtol=0, atol=1e-13)
    assert np.allclose(values[:, :2], [1, 0], rtol=0, atol=1e-13)  # flow.cpp takes y + hΣ weight·k
    order = int(solver.error_order(diffrax.ODETerm(lambda t, y, args: y)))
    sizes = f"constexpr int STAGES = {stages}, ORDER = {order}, DEGREE = {degree};\n"
    return sizes + _constant("a_lower", lower) + _constant("b_error", tableau.b_error) + _constant("dense", dense)


class Cpp(Peer):
    """`flow.cpp`, compiled for the workload, one thread per core. It draws its own starts when it is timed."""

    name, label = "cpp", "C++ loop (flow.cpp)"

    def __init__(self, workload: Workload, mean_time: float):
        super().__init__(workload, mean_time)
        law, problem = workload.law, workload.problem
        _check_gaussian(workload)
        command = compiler()
        if command is None:
            raise Unavailable("no C++ compiler (c++, g++, clang++)")
        # A Gaussian law is invariant under the orthogonal change of W_1 between data and reduced coordinates.
        diagonal = problem.isometric()
        self.coordinates = diagonal.coordinates
        if diagonal.d_in != problem.d_in:
            raise Unavailable("X is rank-deficient: reduced starts have another variance")
        self._folder = tempfile.TemporaryDirectory()
        self.folder = pathlib.Path(self._folder.name)
        header = _constant("target", np.ravel(diagonal.target)) + _constant("design", np.diag(diagonal.design))
        (self.folder / "problem.h").write_text(header)
        (self.folder / "tableau.h").write_text(tableau_header())
        self._compile = [
            command, "-std=c++17", "-O3", "-march=native", "-pthread", f"-I{self.folder}",
            "-DWIDTHS=" + ",".join(map(str, law.widths)), str(pathlib.Path(__file__).with_name("flow.cpp")),
            "-o", str(self.folder / "flow"),
        ]  # fmt: skip

    def _call(self, num: int, *more: str) -> list[list[float]]:
        if not (self.folder / "flow").exists():  # on the first run, which is timed apart
            done = subprocess.run(self._compile, capture_output=True, text=True)
            if done.returncode:
                raise Unavailable("flow.cpp does not compile: " + done.stderr[:500])
        w = self.workload
        numbers = (num, 1, cores(), w.rtol, w.atol, repr(w.level), w.max_steps)
        arguments = [str(self.folder / "flow"), *map(str, numbers), *more]
        lines = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.splitlines()
        return [[float(x) for x in line.split()] for line in lines]

    def run(self, num: int) -> Run:
        begin = time.perf_counter()
        new = not (self.folder / "flow").exists()
        ((seconds, certified, steps),) = self._call(num)
        return Run(None, certified / num, steps, time.perf_counter() - begin if new else seconds)

    def first_times(self, num: int, run: Run) -> np.ndarray:
        w = self.workload
        nets = gf.LayerTuple(w.starts(0, num))
        nets = w.problem.convert(nets, w.problem.coordinates, self.coordinates)
        np.concatenate([np.reshape(a, (num, -1)) for a in nets.weights], axis=1).tofile(self.folder / "starts")
        times = np.array([line[0] for line in self._call(num, str(self.folder / "starts"))[1:]])
        return np.where(times >= 0, times, np.nan)


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def reference_times(workload: Workload, wanted: np.ndarray) -> np.ndarray:
    """Certificate times of the starts with `wanted`, by DOP853 at rtol 1e-11, atol 1e-13; NaN for the others."""
    scipy, starts = SciPy(workload, np.nan), [np.asarray(w) for w in workload.starts(0, len(wanted))]
    options = dict(method="DOP853", rtol=1e-11, atol=1e-13)
    times = np.full(len(wanted), np.nan)
    for i in np.flatnonzero(wanted):
        times[i] = scipy.solve([w[i] for w in starts], **options)
    return times


PEERS: dict[str, type[Peer]] = {
    peer.name: peer for peer in (Gdflow, GdflowLanes, Cpp, Diffrax, DiffraxSteadyState, Torchode, Torchdiffeq, SciPy)
}
