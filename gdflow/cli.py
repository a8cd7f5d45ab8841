"""The command line: `gdflow basins`, `report`, `simulate` and `experiment`, thin over the library."""

import contextlib
import dataclasses
import importlib.metadata
import math
import os
import pathlib
import platform
import sys
from typing import Annotated, Any, Literal

import jax

jax.config.update("jax_enable_x64", True)  # certificates need double precision

import cyclopts  # noqa: E402
import numpy as np  # noqa: E402
import rich.console  # noqa: E402
import rich.markup  # noqa: E402
from cyclopts import Parameter  # noqa: E402

from gdflow import plotting  # noqa: E402
from gdflow.basins import basin_sizes  # noqa: E402
from gdflow.basins.storage import OUTCOMES, SUMMARY, prepare_folder  # noqa: E402
from gdflow.data import linnerud_path  # noqa: E402
from gdflow.data.bundled import LINNERUD_TARGETS  # noqa: E402
from gdflow.dynamics import AtCertificate, simulate  # noqa: E402
from gdflow.experiments import find_experiment, run_experiment  # noqa: E402
from gdflow.initialization import (  # noqa: E402
    AbstractInitialization,
    Balanced,
    Gaussian,
    Orthogonal,
    Pyramidal,
    UniformBall,
)
from gdflow.problem import Problem  # noqa: E402

BASINS_PICTURE, TRAJECTORY_PICTURE = "basins.png", "trajectory.png"

# Where the output is no terminal rich would assume 80 columns, too few for the tables.
console = rich.console.Console(width=None if sys.stdout.isatty() else 100)
app = cyclopts.App(
    name="gdflow",
    help=(
        "Gradient flow in deep linear networks, with certified limits. Compiled programs are kept in the folder named by "
        "GDFLOW_CACHE (by default gdflow in the user's cache folder; empty: nowhere) and may be deleted at any time."
    ),
    version=importlib.metadata.version("gdflow"),
)


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
    hidden: Annotated[tuple[int, ...], Parameter(consume_multiple=True, negative="")] = (5, 5)
    coordinates: Literal["data", "whitened"] = "data"
    center: bool | None = None
    scale: bool | None = None

    def problem(self, path: pathlib.Path | None) -> Problem:
        """Reads and checks the data; the bundled ones if there is no path."""
        for name in (*self.targets, *self.features):
            if pathlib.Path(name).is_file():
                raise ValueError(
                    f"{name!r} was read as a column name but is a file: put the data file first, e.g. "
                    f"gdflow basins {name} --targets …"
                )
        if path is None:
            if self.targets or self.features:
                raise ValueError("--targets and --features need a data file: gdflow basins FILE.csv --targets …")
            return self._csv(linnerud_path(), LINNERUD_TARGETS)
        if not path.exists():
            raise ValueError(f"there is no file {str(path)!r}")
        if path.suffix.lower() != ".npz":
            return self._csv(path, self.targets)
        if self.targets or self.features:
            raise ValueError("an NPZ file holds X and Y: it takes no --targets or --features")
        options = dict(center=bool(self.center), scale=bool(self.scale))
        return Problem.from_npz(path, coordinates=self.coordinates, **options)

    def _csv(self, path: pathlib.Path, targets: tuple[str, ...]) -> Problem:
        options = dict(center=self.center is not False, scale=self.scale is not False)
        return Problem.from_csv(path, targets, self.features or None, coordinates=self.coordinates, **options)


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

    def law(self, widths: tuple[int, ...]) -> AbstractInitialization:
        """The law on networks of these widths."""
        if self.init == "gaussian":
            return Gaussian(widths, "fan_in" if self.init_scale is None else self.init_scale)
        size = 1.0 if self.init_scale is None else self.init_scale
        if self.init == "balanced":
            return Balanced(widths, singular_values=size)
        return {"ball": UniformBall, "orthogonal": Orthogonal, "pyramidal": Pyramidal}[self.init](widths, size)

    def key(self):
        """The random key."""
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"--seed must lie between 0 and 2**63 - 1, got {self.seed}")
        return jax.random.key(self.seed)


COLUMNS, STARTS = Columns(), Starts()
DEFAULT_OUT = pathlib.Path("gdflow-out")


@app.command
def basins(
    data: pathlib.Path | None = None,
    /,
    *,
    columns: Columns = COLUMNS,
    starts: Starts = STARTS,
    num: int = 10_000,
    t1: float = math.inf,
    max_steps: int = 10_000,
    rtol: float = 1e-6,
    atol: float = 1e-9,
    kind: Literal["exact", "almost sure", "balanced"] | None = None,
    confidence: float = 0.95,
    audit: int | None = None,
    lanes: int | None = None,
    staircase: bool = True,
    out: pathlib.Path = DEFAULT_OUT,
    overwrite: bool = False,
    progress: bool = True,
) -> None:
    """How likely does a random start converge to a global minimum? A certified answer, as table, picture and files.

    Parameters
    ----------
    data
        CSV file with a header, or NPZ file with arrays X (d_x, m) and Y (d_y, m). Without one: the bundled Linnerud data.
    num
        Number of random starts.
    t1
        Flow time after which an undecided start is given up.
    max_steps
        Steps after which an undecided start is given up.
    rtol
        Relative tolerance of the integration.
    atol
        Absolute tolerance of the integration.
    kind
        exact: certified for this very start. almost sure: up to starts of measure zero, stops earlier at bottlenecks. balanced:
        limits of lower rank are certified too, the default for balanced starts (exact for others).
    confidence
        Confidence of the intervals.
    audit
        Starts to re-run with another solver at 100 times tighter tolerances. By default 5 % of them, at most 500.
    lanes
        Starts in flight at once, per core. Results do not depend on it.
    staircase
        Time the crossing of every value ℓ({1..r}) on the way, not of the last one alone.
    out
        Folder for outcomes.parquet, summary.json and basins.png.
    overwrite
        Replace results that are in the folder.
    progress
        Show a progress bar.
    """
    problem = columns.problem(data)
    widths = problem.widths(columns.hidden)
    law, key = starts.law(widths), starts.key()
    audit = min(500, math.ceil(max(num, 0) / 20)) if audit is None else audit
    folder = prepare_folder(out, (OUTCOMES, SUMMARY, BASINS_PICTURE), overwrite=overwrite)
    console.print(problem.report(widths, lowest=16))
    estimate = basin_sizes(
        problem, law, num, key=key, t1=t1, max_steps=max_steps, rtol=rtol, atol=atol, kind=kind, confidence=confidence,
        audit=audit, lanes=lanes, crossings="staircase" if staircase else (), folder=folder, overwrite=overwrite,
        progress=progress,
    )  # fmt: skip
    console.print(estimate)
    plotting.plot_basins(estimate, problem, law, key).savefig(folder / BASINS_PICTURE, dpi=150)
    console.print(f"wrote {OUTCOMES}, {SUMMARY} and {BASINS_PICTURE} to {folder}{os.sep}")


@app.command
def report(data: pathlib.Path | None = None, /, *, columns: Columns = COLUMNS, lowest: int = 16) -> None:
    """What is known of a problem before any flow: assumptions with margins, singular values, critical values.

    Parameters
    ----------
    data
        CSV file with a header, or NPZ file with arrays X (d_x, m) and Y (d_y, m). Without one: the bundled Linnerud data.
    lowest
        How many of the lowest critical values to list.
    """
    problem = columns.problem(data)
    console.print(problem.report(problem.widths(columns.hidden), lowest=lowest))


@app.command(name="simulate")
def simulate_command(
    data: pathlib.Path | None = None,
    /,
    *,
    columns: Columns = COLUMNS,
    starts: Starts = STARTS,
    start: int = 0,
    t1: float = math.inf,
    max_steps: int = 10_000,
    rtol: float = 1e-8,
    atol: float = 1e-10,
    out: pathlib.Path = DEFAULT_OUT,
    overwrite: bool = False,
) -> None:
    """One trajectory from one random start: table and picture.

    Parameters
    ----------
    data
        CSV file with a header, or NPZ file with arrays X (d_x, m) and Y (d_y, m). Without one: the bundled Linnerud data.
    start
        Id of the start, as in outcomes.parquet.
    t1
        Flow time to integrate to. By default four times the time at which a global minimum is certified.
    max_steps
        Most steps to take.
    rtol
        Relative tolerance of the integration.
    atol
        Absolute tolerance of the integration.
    out
        Folder for trajectory.png.
    overwrite
        Replace a picture that is in the folder.
    """
    problem = columns.problem(data)
    law = starts.law(problem.widths(columns.hidden))
    net = law.sample(starts.key(), start)
    folder = prepare_folder(out, (TRAJECTORY_PICTURE,), overwrite=overwrite)
    options: dict[str, Any] = dict(rtol=rtol, atol=atol, max_steps=max_steps)
    certified = simulate(problem, net, t1, stop=AtCertificate(), **options)
    end = t1 if math.isfinite(t1) else 4 * float(certified.final_time)
    trajectory = simulate(problem, net, max(end, 1e-12), **options)
    console.print(trajectory)
    times = np.asarray(trajectory.crossing_times()) if trajectory.interpolation is not None else np.array([])
    for k, time in enumerate(times):
        if k and np.isfinite(time):
            what = ": global minimum certified" if k == 1 else ""
            console.print(f"  loss below critical value {k} from t = {time:.6g}{what}")
    plotting.plot_trajectory(trajectory).savefig(folder / TRAJECTORY_PICTURE, dpi=150)
    console.print(f"wrote {TRAJECTORY_PICTURE} to {folder}{os.sep}")


@app.command
def experiment(
    name: str,
    /,
    *,
    out: pathlib.Path = DEFAULT_OUT,
    fast: bool = False,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> None:
    """The figures of a paper, recomputed: pictures, numbers, and which of the paper's claims they confirm.

    Parameters
    ----------
    name
        riemannian: all nine figures of Terstiege, Rauhut, Bah, Westdickenberg (2022). riemannian-1 to riemannian-9: one of them.
    out
        Folder for the pictures, the numbers (CSV) and the texts (Markdown).
    fast
        Smaller sizes and shorter times: minutes instead of half an hour.
    seed
        Of data, teachers and starts: whether a claim holds for others too.
    overwrite
        Replace results that are in the folder.
    progress
        Show a progress bar.
    """
    for result in run_experiment(name, out, fast=fast, seed=seed, overwrite=overwrite, progress=progress):
        console.print(result)
    console.print(f"wrote {', '.join(find_experiment(name).files)} to {out}{os.sep}")


def keep_compiled_programs() -> pathlib.Path | None:
    """Turns on JAX's persistent compilation cache, so that a second run starts in seconds; returns its folder.

    `GDFLOW_CACHE` names the folder; empty it switches the cache off. By default it is `gdflow` in the user's cache folder
    (`XDG_CACHE_HOME`, else `~/.cache`). Each host has a folder of its own in it, since programs are compiled for its processor.
    """
    default = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "gdflow"
    named = os.environ.get("GDFLOW_CACHE", str(default))
    if not named:
        return None
    folder = pathlib.Path(named) / (platform.node() or "host")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None  # a convenience only: without a folder for it everything works, but slower
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # XLA compares a program's target with the host by names that include tuning hints ("prefer-no-gather"), which no host
    # reports, and logs a false alarm for every kernel it loads. Errors that matter are raised, not logged.
    with contextlib.suppress(ImportError):
        from jaxlib.utils import absl_set_min_log_level  # type: ignore[import-not-found]

        absl_set_min_log_level(3)
    return folder


def main() -> None:
    """Entry point: runs a command; bad input ends with a message on standard error and exit code 2."""
    keep_compiled_programs()
    try:
        app(sys.argv[1:])
    except (ValueError, OSError) as error:
        rich.console.Console(stderr=True).print(
            f"[bold red]gdflow:[/] {rich.markup.escape(str(error))}", soft_wrap=True
        )
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
