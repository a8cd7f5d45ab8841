"""The command line: `gdflow basins`, `report`, `simulate` and `experiment`, thin over the library."""

import contextlib
import dataclasses
import functools
import importlib.metadata
import io
import math
import os
import pathlib
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal


@contextlib.contextmanager
def _ended_by_interrupts() -> Iterator[None]:
    """Lets an interrupt end the process at once: amid imports it would leave a traceback, if not a broken module."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


with _ended_by_interrupts():
    import cyclopts
    import rich.console
    from cyclopts import Parameter
    from cyclopts.validators import Number
    from rich.text import Text

    from gdflow.tables import WIDTH, shortened, visible

# What computes is imported by what needs it: options are checked, and help is shown, before seconds of imports.
if TYPE_CHECKING:
    from matplotlib.figure import Figure

BASINS_PICTURE, TRAJECTORY_PICTURE = "basins.png", "trajectory.png"

#: More hidden layers than this are taken for a mistake: compiling takes time for each.
_MOST_LAYERS = 1000
#: Messages are cut to so many characters.
_LONGEST_MESSAGE = 2000

# Numbers beyond any use, which would overflow somewhere; what is sensible the library says itself.
Count = Annotated[int, Parameter(validator=Number(lt=2**63))]
Steps = Annotated[int, Parameter(validator=Number(lte=10**8))]
Width = Annotated[int, Parameter(validator=Number(lte=2**30))]
Tolerance = Annotated[float, Parameter(validator=Number(lte=1))]

app = cyclopts.App(
    name="gdflow",
    help=(
        "Gradient flow in deep linear networks, with certified limits. Compiled programs are kept in the folder named by "
        "GDFLOW_CACHE (by default gdflow in the user's cache folder; empty: nowhere) and may be deleted at any time."
    ),
    version=importlib.metadata.version("gdflow"),
)
app.register_install_completion_command(
    help="Install completion of commands and options for your shell; the shell's startup file may get a line for it."
)

#: What went wrong without ending the command: said at its end.
_failures: list[str] = []
#: What an interrupt leaves.
_kept: list[str] = []


class _Console(rich.console.Console):
    """A console that leaves it to us what to do when nobody reads any more."""

    def on_broken_pipe(self) -> None:
        raise


def _say(what: rich.console.RenderableType) -> None:
    """Prints to standard output. If nobody reads there any more, or the disk is full, the command goes on in silence."""
    try:
        # Where the output is no terminal rich would assume 80 columns, too few for the tables.
        _Console(width=None if sys.stdout.isatty() else WIDTH).print(what)
        sys.stdout.flush()
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            _failures.append(f"standard output cannot be written: {error.strerror}")
        sys.stdout = io.StringIO()


def _complain(message: str, style: str = "bold red") -> None:
    """Prints one message to standard error, safe to show."""
    text = visible(shortened(message, _LONGEST_MESSAGE), keep="\n")
    with contextlib.suppress(OSError):
        _Console(stderr=True).print(Text.assemble(("gdflow:", style), " ", text), soft_wrap=True)


def _save_picture(draw: "Callable[[], Figure]", path: pathlib.Path) -> bool:
    """Draws a picture into a file, complete or not at all; a failure is said at the end, for the numbers are there."""
    partial = path.with_name(path.name + ".partial")
    try:
        draw().savefig(partial, dpi=150, format="png")
        os.replace(partial, path)
    except Exception as error:  # whatever it was
        _failures.append(f"the picture {path} could not be made: {type(error).__name__}: {error}")
        return False
    return True


def _say_written(names: tuple[str, ...], folder: pathlib.Path) -> None:
    _say(Text(f"wrote {', '.join(names)} to {visible(str(folder))}{os.sep}"))


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
            return _read(path, self.targets, self.features or None)
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
def _read(path: pathlib.Path | None, targets: tuple[str, ...], features: tuple[str, ...] | None) -> Any:
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


COLUMNS, STARTS = Columns(), Starts()
DEFAULT_OUT = pathlib.Path("gdflow-out")


def _as_folder(_: Any, tokens: Any) -> pathlib.Path:
    """The folder that an option names; an empty name is none, while `Path("")` is the current folder."""
    if not tokens[0].value:
        raise ValueError("the name of the output folder is empty; for the current folder it is a dot")
    return pathlib.Path(tokens[0].value)


Folder = Annotated[pathlib.Path, Parameter(converter=_as_folder)]


@app.command
def basins(
    data: pathlib.Path | None = None,
    /,
    *,
    columns: Columns = COLUMNS,
    starts: Starts = STARTS,
    num: Count = 10_000,
    t1: float = math.inf,
    max_steps: Steps = 10_000,
    rtol: Tolerance = 1e-6,
    atol: float = 1e-9,
    kind: Literal["exact", "almost sure", "balanced"] | None = None,
    confidence: float = 0.95,
    audit: int | None = None,
    lanes: int | None = None,
    staircase: bool = True,
    out: Folder = DEFAULT_OUT,
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
        exact: certified for this very start. almost sure: up to starts of measure zero, stops earlier at bottlenecks, for laws
        with a density. balanced: limits of lower rank are certified too, for balanced starts. The default follows the law.
    confidence
        Confidence of the intervals.
    audit
        Starts to re-run with another solver at 100 times tighter tolerances. By default 5 %, at least 100 and at most 500.
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
    from gdflow import plotting
    from gdflow.basins import basin_sizes
    from gdflow.basins.storage import OUTCOMES, PARTIAL, SUMMARY, prepare_folder

    problem = columns.problem(data)
    widths = problem.widths(columns.hidden)
    law, key = starts.law(widths), starts.key()
    folder = prepare_folder(out, (OUTCOMES, SUMMARY, BASINS_PICTURE), overwrite=overwrite)
    _say(problem.report(widths, lowest=16))
    _kept.append(f"the rows of the starts that had finished are in {folder / PARTIAL}, a Parquet file")
    estimate = basin_sizes(
        problem, law, num, key=key, t1=t1, max_steps=max_steps, rtol=rtol, atol=atol, kind=kind, confidence=confidence,
        audit=audit, lanes=lanes, crossings="staircase" if staircase else (), folder=folder, overwrite=overwrite,
        progress=progress,
    )  # fmt: skip
    _say(estimate)
    written = () if _failures else (OUTCOMES, SUMMARY)
    if _save_picture(lambda: plotting.plot_basins(estimate, problem, law, key), folder / BASINS_PICTURE):
        written = (*written, BASINS_PICTURE)
    if written:
        _say_written(written, folder)


@app.command
def report(data: pathlib.Path | None = None, /, *, columns: Columns = COLUMNS, lowest: Count = 16) -> None:
    """What is known of a problem before any flow: assumptions with margins, singular values, critical values.

    Parameters
    ----------
    data
        CSV file with a header, or NPZ file with arrays X (d_x, m) and Y (d_y, m). Without one: the bundled Linnerud data.
    lowest
        How many of the lowest critical values to list.
    """
    problem = columns.problem(data)
    _say(problem.report(problem.widths(columns.hidden), lowest=lowest))


@app.command(name="simulate")
def simulate_command(
    data: pathlib.Path | None = None,
    /,
    *,
    columns: Columns = COLUMNS,
    starts: Starts = STARTS,
    start: int = 0,
    t1: float = math.inf,
    max_steps: Steps = 10_000,
    rtol: Tolerance = 1e-8,
    atol: float = 1e-10,
    out: Folder = DEFAULT_OUT,
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
    import numpy as np

    from gdflow import plotting
    from gdflow.basins.storage import prepare_folder
    from gdflow.certificates import LevelCertificate
    from gdflow.dynamics import AtCertificate, simulate

    problem = columns.problem(data)
    law = starts.law(problem.widths(columns.hidden))
    net = law.sample(starts.key(), start)
    folder = prepare_folder(out, (TRAJECTORY_PICTURE,), overwrite=overwrite)
    options: dict[str, Any] = dict(rtol=rtol, atol=atol, max_steps=max_steps)
    certified = simulate(problem, net, t1, stop=AtCertificate(), **options)
    end = t1 if math.isfinite(t1) else 4 * float(certified.final_time)
    trajectory = simulate(problem, net, max(end, 1e-12), **options)
    _say(trajectory)
    verdict = LevelCertificate(problem, net.widths).verdicts[0]
    times = np.asarray(trajectory.crossing_times()) if trajectory.interpolation is not None else np.array([])
    for k, time in enumerate(times):
        if k and np.isfinite(time):
            what = f": {verdict} certified" if k == 1 else ""
            _say(f"  loss below critical value {k} from t = {time:.6g}{what}")
    if _save_picture(lambda: plotting.plot_trajectory(trajectory), folder / TRAJECTORY_PICTURE):
        _say_written((TRAJECTORY_PICTURE,), folder)


@app.command
def experiment(
    name: str,
    /,
    *,
    out: Folder = DEFAULT_OUT,
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
    from gdflow.experiments import find_experiment, run_experiment

    for result in run_experiment(name, out, fast=fast, seed=seed, overwrite=overwrite, progress=progress):
        _say(result)
    _say_written(find_experiment(name).files, out)


def _warn(message: Warning | str, category: type[Warning], *_: Any) -> None:
    """Shows a warning in one line; what could not be saved is said at the end instead."""
    from gdflow.basins.storage import StorageWarning

    if issubclass(category, StorageWarning):
        _failures.append(str(message))
    else:
        _complain(f"note: {message}", style="bold yellow")


def _run(arguments: list[str]) -> None:
    command, bound, _ = app.parse_args(arguments, print_error=False, exit_on_error=False)
    if command.__module__ == __name__:  # neither help nor version
        bound.apply_defaults()
        if "columns" in bound.arguments:  # bad data are told of at once
            bound.arguments["columns"].table(bound.arguments["data"])
        with _ended_by_interrupts():
            import jax

            import gdflow.experiments  # noqa: F401 (and all below it)
            from gdflow.programs import keep_programs

        jax.config.update("jax_enable_x64", True)  # certificates need double precision
        keep_programs()
    command(*bound.args, **bound.kwargs)


def main() -> None:
    """Entry point: runs a command. Bad input, and what could not be saved, end with a message and exit code 2."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, io.StringIO())
        elif hasattr(stream := getattr(sys, name), "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # Σ in a terminal that knows ASCII only
    _failures.clear()
    _kept.clear()
    _read.cache_clear()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = _warn  # type: ignore[assignment]
            _run(sys.argv[1:])
    except (ValueError, OSError, MemoryError, cyclopts.CycloptsError) as error:
        _failures.append(str(error) or type(error).__name__)
    except KeyboardInterrupt:
        _complain("interrupted" + "".join(f"; {note}" for note in _kept))
        sys.exit(130)
    for message in _failures:
        _complain(message)
    if _failures:
        sys.exit(2)
