"""The options that commands share: columns of the data, laws of starts, how starts are stepped and decided."""

import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Callable
from typing import Annotated, Any, Literal

from gdflow.console import ended_by_interrupts

with ended_by_interrupts():
    from cyclopts import Parameter
    from cyclopts.validators import Number

#: More hidden layers than this are taken for a mistake: compiling takes time for each.
_MOST_LAYERS = 1000

# Numbers beyond any use, which would overflow somewhere; what is sensible the library says itself.
Count = Annotated[int, Parameter(validator=Number(lt=2**63))]
Steps = Annotated[int, Parameter(validator=Number(lte=10**8))]
Width = Annotated[int, Parameter(validator=Number(lte=2**30))]
Tolerance = Annotated[float, Parameter(validator=Number(lte=1))]


@Parameter(name="*")
@dataclasses.dataclass(frozen=True)
class Columns:
    """Which columns, coordinates and widths.

    Parameters
    ----------
    targets
        Target columns of a CSV file.
    features
        Feature columns. By default all columns that are no targets.
    hidden
        Widths of the hidden layers.
    coordinates
        data: the flow a practitioner runs. whitened: the flow of Chitour, Liao and Couillet.
    center
        Subtract the mean of every column. By default for CSV, not for NPZ.
    scale
        Divide every column by its standard deviation. By default for CSV, not for NPZ.
    """

    targets: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = ()
    features: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = ()
    hidden: Annotated[tuple[Width, ...], Parameter(consume_multiple=True, negative="")] = (5, 5)
    coordinates: Literal["data", "whitened"] = "data"
    center: bool | None = None
    scale: bool | None = None

    def __post_init__(self) -> None:
        if len(self.hidden) > _MOST_LAYERS:
            raise ValueError(f"--hidden names {len(self.hidden)} layers, more than {_MOST_LAYERS}")

    def table(self, path: pathlib.Path | None) -> Any:
        """The `Table` of the data, which are read and checked; of the bundled data if there is no path. It needs no JAX."""
        for name in (*self.targets, *self.features):
            if os.path.isfile(name):
                raise ValueError(
                    f"{name!r} was read as a column name but is a file: put the data file first, e.g. "
                    f"gdflow basins {name} --targets …"
                )
        named = bool(self.targets or self.features)
        if path is None and named:
            raise ValueError("--targets and --features need a data file before them: FILE.csv --targets …")
        if _is_npz(path) and named:
            raise ValueError("an NPZ file holds X and Y: it takes no --targets or --features")
        try:
            return read(path, self.targets, self.features or None)
        except TypeError as error:  # of the data
            raise ValueError(str(error)) from error

    def problem(self, path: pathlib.Path | None) -> Any:
        """The `Problem` of the data."""
        from gdflow.problem import Problem

        table = self.table(path)
        center, scale = (not _is_npz(path) if chosen is None else chosen for chosen in (self.center, self.scale))
        return Problem(
            table.X, table.Y, features=table.features, targets=table.targets, source=table.source,
            coordinates=self.coordinates, center=center, scale=scale,
        )  # fmt: skip


def _is_npz(path: pathlib.Path | None) -> bool:
    return path is not None and path.suffix.lower() == ".npz"


@functools.cache
def read(path: pathlib.Path | None, targets: tuple[str, ...], features: tuple[str, ...] | None) -> Any:
    """The table of a file, read once for a command, although it is checked before JAX is imported and used after."""
    from gdflow.data import read_csv, read_npz
    from gdflow.data.bundled import LINNERUD_TARGETS, linnerud_path

    if path is None:
        return read_csv(linnerud_path(), LINNERUD_TARGETS, features)
    return read_npz(path) if _is_npz(path) else read_csv(path, targets, features)


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
        Integration method, by default tsit5. rkc: stabilised, for stiff flows (small singular values beside large ones), at
        looser tolerances.
    rtol
        Relative tolerance of the integration, by default 1e-6.
    atol
        Absolute tolerance of the integration, by default 1e-9. Where verdicts are proved and none of the three is given:
        dopri8, 1e-7, 1e-10.
    t1
        Flow time after which an undecided start is given up.
    max_steps
        Steps after which an undecided start is given up.
    verdict
        level: certified for this very start. almost-sure: up to starts of measure zero, stops earlier at bottlenecks, for laws
        with a density. balanced: limits of lower rank are certified too, for balanced starts. The default follows the law.
    staircase
        Time the crossing of every value ℓ({1..r}) on the way, not of the last one alone.
    """

    solver: Literal["tsit5", "dopri5", "dopri8", "rkc", "kvaerno5"] | None = None
    rtol: Tolerance | None = None
    atol: float | None = None
    t1: float = math.inf
    max_steps: Steps = 10_000
    verdict: Literal["level", "almost-sure", "balanced"] | None = None
    staircase: bool = True

    def method(self) -> Any:
        """What steps the starts; `None`, the library's choice, if nothing is said of it."""
        import diffrax

        from gdflow.basins import integrator
        from gdflow.dynamics import RKC

        if self.solver is self.rtol is self.atol is None:
            return None
        solvers: dict[str, Callable[[], Any]] = {
            "tsit5": diffrax.Tsit5, "dopri5": diffrax.Dopri5, "dopri8": diffrax.Dopri8, "kvaerno5": diffrax.Kvaerno5,
            "rkc": lambda: RKC(20),
        }  # fmt: skip
        given = {name: value for name in ("rtol", "atol") if (value := getattr(self, name)) is not None}
        return integrator(solvers[self.solver or "tsit5"](), **given)

    def options(self, problem: Any, widths: tuple[int, ...]) -> dict[str, Any]:
        """What `gdflow.basin_sizes` takes."""
        from gdflow import verdicts
        from gdflow.basins import Drift, Limits

        named = {"level": verdicts.LevelVerdict, "almost-sure": verdicts.AlmostSure, "balanced": verdicts.Balanced}
        return dict(
            method=self.method(),
            limits=Limits(t1=self.t1, max_steps=self.max_steps),
            verdict=None if self.verdict is None else named[self.verdict](problem, widths),
            riders=None if self.staircase else (Drift(),),
        )
