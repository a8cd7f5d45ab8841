"""The options that commands share: columns of the data, networks, laws of starts, how starts are stepped and decided."""

import contextlib
import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

from gdflow.console import ended_by_interrupts

with ended_by_interrupts():
    from cyclopts import Parameter
    from cyclopts.validators import Number

#: More hidden layers than this are taken for a mistake: compiling takes time for each.
_MOST_LAYERS = 1000

# Numbers beyond any use, which would overflow somewhere; what is sensible the library says itself.
#: Of options that take several values, and none is no option of its own.
_SEVERAL = Parameter(consume_multiple=True, negative="")
Count = Annotated[int, Parameter(validator=Number(lt=2**63))]
Steps = Annotated[int, Parameter(validator=Number(lte=10**8))]
Width = Annotated[int, Parameter(validator=Number(lte=2**30))]
Tolerance = Annotated[float, Parameter(validator=Number(lte=1))]


#: The names in `gdflow.activations.NAMED` and `gdflow.losses.NAMED`, which can be read here only with all of JAX.
Activation = Literal["identity", "tanh", "arctan", "sigmoid", "gelu", "relu", "leaky-relu"]
Loss = Literal["squared", "logistic", "softmax", "huber"]


@Parameter(name="*")
@dataclasses.dataclass(frozen=True)
class Columns:
    """Which columns of the data, and in which coordinates.

    Parameters
    ----------
    targets
        Target columns of a CSV file.
    features
        Feature columns. By default all columns that are no targets; beside a label all that hold numbers.
    label
        Instead of targets: a column of classes. They are sorted and become one-hot targets (logistic loss: -1 and 1), which
        are neither centred nor scaled.
    coordinates
        data: the flow a practitioner runs. whitened: the flow of Chitour, Liao and Couillet, of linear networks alone.
    center
        Subtract the mean of every column. By default for CSV, not for NPZ.
    scale
        Divide every column by its standard deviation. By default for CSV, not for NPZ.
    """

    targets: Annotated[tuple[str, ...], _SEVERAL] = ()
    features: Annotated[tuple[str, ...], _SEVERAL] = ()
    label: str | None = None
    coordinates: Literal["data", "whitened"] = "data"
    center: bool | None = None
    scale: bool | None = None

    def table(self, path: pathlib.Path | None) -> Any:
        """The `Table` of the data, which are read and checked; of the bundled data if there is no path. It needs no JAX."""
        named = bool(self.targets or self.features) or self.label is not None
        for name in (*self.targets, *self.features, *([] if self.label is None else [self.label])):
            if os.path.isfile(name):
                raise ValueError(
                    f"{name!r} was read as a column name but is a file: put the data file first, e.g. "
                    f"gdflow basins {name} --targets …"
                )
        if path is None and named:
            raise ValueError(
                "--targets, --features and --label need a data file before them: FILE.csv --targets …, or the name of "
                f"bundled data: {' or '.join(_bundled())}"
            )
        if _is_npz(path) and named:
            raise ValueError("an NPZ file holds X and Y: it takes no --targets, --features or --label")
        if self.targets and self.label is not None:
            raise ValueError(
                f"--targets {' '.join(self.targets)} and --label {self.label} exclude each other: columns to be fitted are "
                "targets, a column of classes is a label"
            )
        try:
            return read(path, self.targets, self.features or None, self.label)
        except TypeError as error:  # of the data
            raise ValueError(str(error)) from error

    def standardized(self, path: pathlib.Path | None) -> tuple[bool, bool]:
        """Whether columns are centred and scaled: by default those of a table are."""
        default = not _is_npz(path)
        return default if self.center is None else self.center, default if self.scale is None else self.scale


def _is_npz(path: pathlib.Path | None) -> bool:
    return path is not None and path.suffix.lower() == ".npz"


def _bundled() -> dict[str, Any]:
    """The bundled data sets by name."""
    from gdflow.data.bundled import NAMED

    return NAMED


@functools.cache
def read(
    path: pathlib.Path | None, targets: tuple[str, ...], features: tuple[str, ...] | None, label: str | None
) -> Any:
    """The table of a file, read once for a command, although it is checked before JAX is imported and used after.

    Where there is no such file, a path may be the name of a bundled data set, whose targets or label are the default then.
    """
    from gdflow.data import read_csv, read_npz

    path = pathlib.Path("linnerud") if path is None else path
    if not path.exists():
        known = _bundled().get(str(path))
        if known is not None:
            if not targets and label is None:
                targets, label = known.targets, known.label
            return read_csv(known.path, targets, features, label=label)
        if path.name and not path.suffix and path.parent == pathlib.Path():
            raise FileNotFoundError(
                f"there is no file {path.name!r}, nor are there bundled data of this name: {' or '.join(_bundled())}"
            )
    return read_npz(path) if _is_npz(path) else read_csv(path, targets, features, label=label)


@Parameter(name="*")
@dataclasses.dataclass(frozen=True)
class Network:
    """The networks, and what they minimise.

    Parameters
    ----------
    hidden
        Widths of the hidden layers.
    activation
        One for all hidden layers, the output being linear; or one for every layer, that of the output included.
    loss
        squared: the squared error. logistic: of two classes. softmax: cross-entropy, of two or more. huber: linear from
        errors of 1 on.
    weight_decay
        κ of a further term ½κΣ‖W_j‖².
    biases
        Give every layer a bias: a constant unit in the inputs and in every hidden layer, beside those of --hidden.
    """

    hidden: Annotated[tuple[Width, ...], _SEVERAL] = (5, 5)
    activation: Annotated[tuple[Activation, ...], _SEVERAL] = ()
    loss: Loss = "squared"
    weight_decay: float = 0.0
    biases: Annotated[bool, Parameter(negative="")] = False

    def __post_init__(self) -> None:
        if len(self.hidden) > _MOST_LAYERS:
            raise ValueError(f"--hidden names {len(self.hidden)} layers, more than {_MOST_LAYERS}")
        layers = len(self.hidden) + 1
        if len(self.activation) not in (0, 1, layers):
            raise ValueError(
                f"--activation names {len(self.activation)} activations ({' '.join(self.activation)}), but there are "
                f"{layers} layers (--hidden {' '.join(map(str, self.hidden))}, and the output): give one for all hidden layers, "
                f"or {layers}"
            )
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"--weight-decay must be finite and not negative, got {self.weight_decay:g}")

    def check(self, table: Any) -> None:
        """`ValueError` for classes that the loss is not for. It needs no JAX."""
        from gdflow.data import signed

        if table.label is not None and self.loss == "logistic":
            signed(table)

    def problem(self, path: pathlib.Path | None, columns: Columns) -> tuple[Any, tuple[int, ...]]:
        """The `Problem` of the data, and the widths of the networks."""
        from gdflow.losses import NAMED
        from gdflow.problem import Problem

        center, scale = columns.standardized(path)
        problem = Problem.from_table(
            columns.table(path), NAMED[self.loss](), coordinates=columns.coordinates, center=center, scale=scale,
            activations=self.activation or None, weight_decay=self.weight_decay, biases=self.biases,
        )  # fmt: skip
        return problem, problem.widths(self.hidden)


@Parameter(name="*")
@dataclasses.dataclass(frozen=True)
class Starts:
    """The law of starts.

    Parameters
    ----------
    init
        gaussian: independent entries. ball: uniform in a ball. orthogonal, balanced: Haar. pyramidal: with a proved rate.
    init_scale
        Standard deviation (gaussian; fan-in by default), radius (ball), scale (orthogonal), singular values of the product
        (balanced) or margin (pyramidal).
    seed
        Seed of the random key.
    """

    init: Literal["gaussian", "ball", "orthogonal", "balanced", "pyramidal"] = "gaussian"
    init_scale: float | None = None
    seed: int = 0

    def law(self, widths: tuple[int, ...]) -> Any:
        """The law, an `AbstractInitialization`, on networks of these widths."""
        from gdflow.initialization import Balanced, Gaussian, Orthogonal, Pyramidal, UniformBall, fan_in

        if self.init == "gaussian":
            return Gaussian(widths, fan_in if self.init_scale is None else self.init_scale)
        size = 1.0 if self.init_scale is None else self.init_scale
        if self.init == "balanced":
            return Balanced(widths, singular_values=size)
        return {"ball": UniformBall, "orthogonal": Orthogonal, "pyramidal": Pyramidal}[self.init](widths, size)

    def key(self):
        """The random key."""
        import jax

        if not 0 <= self.seed < 2**63:
            raise ValueError(f"--seed must lie between 0 and 2**63 - 1, got {self.seed}")
        return jax.random.key(self.seed)


def _as_folder(_: Any, tokens: Any) -> pathlib.Path:
    """The folder that an option names; an empty name is none, while `Path("")` is the current folder."""
    if not tokens[0].value:
        raise ValueError("the name of the output folder is empty; for the current folder it is a dot")
    return pathlib.Path(tokens[0].value)


Folder = Annotated[pathlib.Path, Parameter(converter=_as_folder)]


@Parameter(name="*")
@dataclasses.dataclass(frozen=True)
class Running:
    """How starts are stepped, when they are decided or given up.

    Parameters
    ----------
    solver
        Integration method, by default tsit5, and rkc for smooth networks whose limits are found in the run. rkc: stabilised, for
        stiff flows (curvatures of very different size), at looser tolerances.
    rtol
        Relative tolerance of the integration, by default 1e-6.
    atol
        Absolute tolerance of the integration, by default 1e-9; with rkc for limits that are found 1e-8. Where verdicts are proved
        and none of the three is given: dopri8, 1e-7, 1e-10.
    t1
        Flow time after which an undecided start is given up.
    max_steps
        Steps after which an undecided start is given up: by default 10,000; where limits are found in the run 100,000, with kinks
        300,000, and ten times as many for starts that are run again at tighter tolerances.
    verdict
        level: certified for this very start. almost-sure: up to starts of measure zero, stops earlier at bottlenecks, for laws
        with a density. balanced: limits of lower rank are certified too, for balanced starts. The default follows the law. Linear
        networks with the squared error only.
    staircase
        Time the crossing of every value ℓ({1..r}) on the way, not of the last one alone; by default. Linear networks with the
        squared error only.
    """

    solver: Literal["tsit5", "dopri5", "dopri8", "rkc", "kvaerno5"] | None = None
    rtol: Tolerance | None = None
    atol: float | None = None
    t1: float = math.inf
    max_steps: Steps | None = None
    verdict: Literal["level", "almost-sure", "balanced"] | None = None
    staircase: bool | None = None

    def method(self, problem: Any) -> Any:
        """What steps the starts; `None`, the library's choice, if nothing is said of it."""
        import diffrax

        from gdflow.basins import integrator
        from gdflow.basins.plan import default_method
        from gdflow.dynamics import RKC

        if self.solver is self.rtol is self.atol is None:
            return None
        solvers: dict[str, Callable[[], Any]] = {
            "tsit5": diffrax.Tsit5, "dopri5": diffrax.Dopri5, "dopri8": diffrax.Dopri8, "kvaerno5": diffrax.Kvaerno5,
            "rkc": lambda: RKC(20),
        }  # fmt: skip
        given = {name: value for name in ("rtol", "atol") if (value := getattr(self, name)) is not None}
        if self.solver is not None:
            return integrator(solvers[self.solver](), **given)
        # The tolerances alone: the library's choice with these.
        chosen = default_method(problem, problem.why_no_levels is not None)
        return integrator(chosen.solver, **dict(rtol=chosen.rtol, atol=chosen.atol) | given)

    def options(self, problem: Any, widths: tuple[int, ...]) -> dict[str, Any]:
        """What `gdflow.basin_sizes` takes.

        **Raises:** `ValueError` for options about critical values where none are known.
        """
        from gdflow import verdicts
        from gdflow.basins import Drift, Limits

        staircase = None if self.staircase is None else f"--{'' if self.staircase else 'no-'}staircase"
        _refuse_without_levels(problem, self.verdict and f"--verdict {self.verdict}", staircase)
        named = {"level": verdicts.LevelVerdict, "almost-sure": verdicts.AlmostSure, "balanced": verdicts.Balanced}
        return dict(
            method=self.method(problem),
            limits=Limits(t1=self.t1, max_steps=self.max_steps),
            verdict=None if self.verdict is None else named[self.verdict](problem, widths),
            riders=(Drift(),) if self.staircase is False else None,
        )


@Parameter(name="*")
@dataclasses.dataclass(frozen=True)
class Grid:
    """The axes of a sweep: a run is made at every combination of the values.

    Parameters
    ----------
    depth
        Numbers of hidden layers.
    width
        Widths of all hidden layers.
    init_scale
        Standard deviations of the Gaussian starts; by default fan-in.
    activation
        linear, or the activation of all hidden layers.
    optimizer
        flow: the gradient flow. gd, momentum (0.9), nesterov, adam: with the steps of --step.
    step
        Steps of the optimizers.
    seed
        Seeds of the starts.
    """

    depth: Annotated[tuple[Width, ...], _SEVERAL] = (2,)
    width: Annotated[tuple[Width, ...], _SEVERAL] = (5,)
    init_scale: Annotated[tuple[float, ...], _SEVERAL] = ()
    activation: Annotated[tuple[Activation | Literal["linear"], ...], _SEVERAL] = ("linear",)
    optimizer: Annotated[tuple[Literal["flow", "gd", "momentum", "nesterov", "adam"], ...], _SEVERAL] = ("flow",)
    step: Annotated[tuple[float, ...], _SEVERAL] = ()
    seed: Annotated[tuple[int, ...], _SEVERAL] = (0,)

    def __post_init__(self) -> None:
        for name in ("depth", "width", "seed"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"--{name} names a value twice: {' '.join(map(str, values))}")
        for name in ("init_scale", "step"):
            for value in getattr(self, name):
                if not 0 < value < math.inf:
                    raise ValueError(f"--{name.replace('_', '-')} must be positive and finite, got {value:g}")
        if max(self.depth, default=1) > _MOST_LAYERS:
            raise ValueError(f"--depth {max(self.depth)}: more than {_MOST_LAYERS} hidden layers")
        if set(self.optimizer) - {"flow"} and not self.step:
            raise ValueError(f"--optimizer {' '.join(self.optimizer)} needs --step")
        if self.step and "flow" in self.optimizer:
            raise ValueError("--step is of optimizers, and the flow has none: name them with --optimizer, without flow")

    @property
    def axes(self) -> dict[str, tuple[Any, ...]]:
        """Those with more than one value; depth, if there is none."""
        every = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: values for name, values in every.items() if len(values) > 1} or {"depth": self.depth}

    def maker(self, path: pathlib.Path | None, columns: Columns, loss: Any, weight_decay: float, biases: bool) -> Any:
        """What makes the parts of a run of a point of the grid, for `gdflow.sweep`."""
        fixed: dict[str, Any] = {
            field.name: (*getattr(self, field.name), None)[0] for field in dataclasses.fields(self)
        }

        @functools.cache
        def problem_of(activation: str, depth: int) -> Any:
            chosen: Any = () if activation == "linear" else (activation,)
            network = Network((1,) * depth, chosen, loss, weight_decay, biases)
            return network.problem(path, columns)[0]

        def make(**point: Any) -> dict[str, Any]:
            from gdflow.initialization import Gaussian, fan_in

            at = fixed | point
            problem = problem_of(at["activation"], at["depth"])
            widths = problem.widths((at["width"],) * at["depth"])
            scale = fan_in if at["init_scale"] is None else at["init_scale"]
            parts = dict(problem=problem, starts=Gaussian(widths, scale), key=Starts(seed=at["seed"]).key())
            return parts | ({} if at["optimizer"] == "flow" else dict(method=_method(at["optimizer"], at["step"])))

        return make


def _method(optimizer: str, step: float) -> Any:
    from gdflow.basins import Descent, GradientDescent

    if optimizer == "gd":
        return GradientDescent(step)
    made = Optimizer(optimizer).made()  # type: ignore[arg-type]
    return Descent(made["optimizer"], step, **made.get("options", {}))


@Parameter(name="*")
@dataclasses.dataclass(frozen=True)
class Ending:
    """When a run has enough starts, and who computes them.

    Parameters
    ----------
    half_width
        End as soon as half the width of every limit's interval is at most this (audits left out). Intervals then hold for any
        number of starts.
    seconds
        Begin no more starts after so much time.
    scheduler
        Address of a Dask scheduler, for instance tcp://HOST:8786, whose workers compute the starts.
    """

    half_width: float | None = None
    seconds: float | None = None
    scheduler: str | None = None

    def __post_init__(self) -> None:
        for name in ("half_width", "seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"--{name.replace('_', '-')} must be positive and finite, got {value:g}")

    @property
    def until(self) -> Any:
        """The rule, a `gdflow.basins.Until`, if there is one."""
        from gdflow.basins import Until

        return None if self.half_width is self.seconds is None else Until(self.half_width, self.seconds)

    def most(self, num: int | None) -> int:
        """The number of starts."""
        if num is not None:
            return num
        return 10_000 if self.half_width is self.seconds is None else 10**9

    @contextlib.contextmanager
    def client(self) -> Iterator[Any]:
        """The client of the scheduler, if one is named.

        **Raises:** `ConnectionError` if there is none at the address; `ValueError` without Dask.
        """
        if self.scheduler is None:
            yield None
            return
        try:
            import distributed
        except ImportError:
            raise ValueError("--scheduler needs Dask: pip install 'gdflow[cluster]'") from None
        try:
            client = distributed.Client(self.scheduler, timeout=10)
        except (OSError, ValueError) as error:
            raise ConnectionError(f"there is no Dask scheduler at {self.scheduler!r}: {error}") from None
        with client:
            yield client


@Parameter(name="*")
@dataclasses.dataclass(frozen=True)
class Optimizer:
    """What makes the steps, and how long they are.

    Parameters
    ----------
    optimizer
        gd: gradient descent. momentum: with momentum 0.9. nesterov: the same, Nesterov's. adam. Optax has them and others: from
        Python any.
    step
        Steps to compare. By default ten around the longest at which gradient descent is stable near the flow's limits; for adam
        six from 0.001 to 0.3.
    batch_size
        Samples a step, drawn anew in every epoch; by default all of them.
    """

    optimizer: Literal["gd", "momentum", "nesterov", "adam"] = "gd"
    step: Annotated[tuple[float, ...], _SEVERAL] = ()
    batch_size: Width | None = None

    def __post_init__(self) -> None:
        for step in self.step:
            if not 0 < step < math.inf:
                raise ValueError(f"--step must be positive and finite, got {step:g}")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"--batch-size must be at least 1, got {self.batch_size}")

    def options(self, problem: Any, columns: Columns, path: pathlib.Path | None) -> dict[str, Any]:
        """What `gdflow.step_size_basins` takes."""
        made = self.made()
        steps = self.step or ((0.001, 0.003, 0.01, 0.03, 0.1, 0.3) if self.optimizer == "adam" else None)
        return made | dict(steps=steps, batches=self._batches(problem, columns, path))

    def made(self) -> dict[str, Any]:
        """The function that makes the optimizer of a step, and its options; nothing for gradient descent."""
        import optax

        return {
            "gd": {},
            "momentum": dict(optimizer=optax.sgd, options=dict(momentum=0.9)),
            "nesterov": dict(optimizer=optax.sgd, options=dict(momentum=0.9, nesterov=True)),
            "adam": dict(optimizer=optax.adam),
        }[self.optimizer]

    def _batches(self, problem: Any, columns: Columns, path: pathlib.Path | None) -> Any:
        if self.batch_size is None:
            return None
        import jax
        import jax.numpy as jnp

        from gdflow.data import prepare
        from gdflow.minibatches import Minibatches
        from gdflow.objective import LinearObjective

        table = columns.table(path)
        if not isinstance(problem.objective, LinearObjective):  # such a problem keeps its samples
            return Minibatches(self.batch_size, jax.random.key(0))
        center, scale = columns.standardized(path)
        X, Y, _ = prepare(table.X, table.Y, jnp.result_type(float), center=center, scale=scale)
        return Minibatches(self.batch_size, jax.random.key(0), (X, Y))


def _refuse_without_levels(problem: Any, *options: str | None) -> None:
    """`ValueError` where one of some options, written out if it was given, needs critical values that are not known."""
    given = [option for option in options if option]
    if given and problem.why_no_levels is not None:
        raise ValueError(
            f"{given[0]} needs the critical values, which are known of linear networks with the squared error only: "
            f"{problem.why_no_levels}. Leave it out"
        )


def proves(problem: Any, law: Any, options: dict[str, Any], proof: bool | None, audit: int | None) -> bool:
    """Whether verdicts are proved: as `--proof` says, by default where it costs little.

    **Arguments:** `options`: from `Running.options`.

    **Raises:** `ValueError` if they shall be, but no critical values are known.
    """
    from gdflow.basins.tube import proves_by_default

    _refuse_without_levels(problem, "--proof" if proof else None)
    if proof is not None or problem.why_no_levels is not None:
        return bool(proof)
    return audit is None and proves_by_default(problem, law, options["method"], options["verdict"])
