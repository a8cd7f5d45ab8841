"""The command line, thin over the library: `gdflow basins`, `repeat`, `report`, `simulate`, `descent`, `campaign`, …"""

import importlib.metadata
import io
import math
import os
import pathlib
import sys
import warnings
from typing import Annotated, Any

from gdflow.console import (
    complain,
    ended_by_interrupts,
    ended_cleanly,
    exit_code,
    failures,
    kept,
    save_picture,
    say,
    say_written,
)

with ended_by_interrupts():
    import cyclopts

    from gdflow import campaign_commands
    from gdflow.campaign_commands import DEFAULT_OUT, prepare_for_basins, say_basins, what_is_kept
    from gdflow.command_options import (
        Columns,
        Count,
        Ending,
        Folder,
        Grid,
        Loss,
        Network,
        Optimizer,
        Running,
        Starts,
        Steps,
        Tolerance,
        proves,
        read,
    )

# What computes is imported by what needs it: options are checked, and help is shown, before seconds of imports.

TRAJECTORY_PICTURE, DESCENT_PICTURE, SWEEP_PICTURE = "trajectory.png", "descent.png", "sweep.png"
#: Trajectories without a certificate end where the norm of the gradient is this part of its size at the start.
GRADIENT_FALL = 1e-6

app = cyclopts.App(
    name="gdflow",
    help=(
        "Gradient flow in deep linear networks, with certified limits, and in nonlinear ones. Compiled programs are kept in the "
        "folder named by GDFLOW_CACHE (by default gdflow in the user's cache folder; empty: nowhere) and may be deleted at any "
        "time."
    ),
    version=importlib.metadata.version("gdflow"),
)
app.command(campaign_commands.app)
app.register_install_completion_command(
    help="Install completion of commands and options for your shell; the shell's startup file may get a line for it."
)

COLUMNS, NETWORK, STARTS = Columns(), Network(), Starts()
RUNNING, OPTIMIZER, ENDING, GRID = Running(), Optimizer(), Ending(), Grid()


@app.command
def basins(
    data: pathlib.Path | None = None,
    /,
    *,
    columns: Columns = COLUMNS,
    network: Network = NETWORK,
    starts: Starts = STARTS,
    num: Count | None = None,
    running: Running = RUNNING,
    confidence: float = 0.95,
    proof: bool | None = None,
    audit: int | None = None,
    ending: Ending = ENDING,
    lanes: int | None = None,
    out: Folder = DEFAULT_OUT,
    overwrite: bool = False,
    progress: bool = True,
) -> None:
    """How likely does a random start converge where, a global minimum for instance? As table, picture and files.

    Rows are kept in the folder as they come: the same command goes on where it was, and with a larger --num it adds starts.

    Parameters
    ----------
    data
        CSV file with a header, NPZ file with arrays X (d_x, m) and Y (d_y, m), or bundled data: linnerud (the default) or iris.
    num
        Number of random starts, by default 10000; with --half-width or --seconds the most, by default a billion.
    confidence
        Confidence of the intervals.
    proof
        Prove every verdict for the exact flow from the start; starts whose proof fails are run again at tighter tolerances. By
        default where it costs little: up to 500 parameters, tsit5, dopri5 or dopri8, verdict level, no --audit.
    audit
        Without proofs: starts to re-run with another solver at 100 times tighter tolerances. By default 5 %, at least 100
        and at most 500.
    lanes
        Starts in flight at once, per core. Results do not depend on it.
    out
        Folder for outcomes/ (Parquet files), campaign.json, summary.json and basins.png.
    overwrite
        Replace results that are in the folder.
    progress
        Show a progress bar.
    """
    from gdflow.basins import basin_sizes

    problem, widths = network.problem(data, columns)
    law, key = starts.law(widths), starts.key()
    options = running.options(problem, widths)
    proof = proves(problem, law, options, proof, audit)
    prepare_for_basins(out, overwrite)
    say(problem.report(widths, lowest=16))
    with ending.client() as client:
        say_basins(
            lambda: basin_sizes(
                problem, law, ending.most(num), key=key, **options, confidence=confidence, proof=proof, audit=audit,
                until=ending.until, lanes=lanes, client=client, folder=out, overwrite=overwrite, progress=progress,
            ),
            out,
        )  # fmt: skip


@app.command
def repeat(
    results: pathlib.Path,
    /,
    *,
    num: Count | None = None,
    out: Folder = DEFAULT_OUT,
    overwrite: bool = False,
    progress: bool = True,
) -> None:
    """Runs a plan again, from the summary.json of a run alone.

    Parameters
    ----------
    results
        A summary.json, or the folder that holds it.
    num
        Number of starts, if not those of the run.
    out
        Folder for outcomes/ (Parquet files), campaign.json, summary.json and basins.png.
    overwrite
        Replace results that are in the folder.
    progress
        Show a progress bar.
    """
    from gdflow import basins as library

    prepare_for_basins(out, overwrite)
    say_basins(
        lambda: library.repeat(results, num, folder=out, overwrite=overwrite, progress=progress),
        out,
    )


@app.command
def report(
    data: pathlib.Path | None = None,
    /,
    *,
    columns: Columns = COLUMNS,
    network: Network = NETWORK,
    lowest: Count = 16,
) -> None:
    """What is known of a problem before any flow: assumptions with margins, singular values, critical values.

    Parameters
    ----------
    data
        CSV file with a header, NPZ file with arrays X (d_x, m) and Y (d_y, m), or bundled data: linnerud (the default) or iris.
    lowest
        How many of the lowest critical values to list.
    """
    problem, widths = network.problem(data, columns)
    say(problem.report(widths, lowest=lowest))


@app.command(name="simulate")
def simulate_command(
    data: pathlib.Path | None = None,
    /,
    *,
    columns: Columns = COLUMNS,
    network: Network = NETWORK,
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
        CSV file with a header, NPZ file with arrays X (d_x, m) and Y (d_y, m), or bundled data: linnerud (the default) or iris.
    start
        Id of the start, as in the column id of outcomes/.
    t1
        Flow time to integrate to. By default four times the time at which a global minimum is certified; where no critical
        values are known, until the norm of the gradient has fallen to 1e-6 of its size at the start.
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
    from gdflow.dynamics import AtCertificate, AtGradientNorm, simulate
    from gdflow.verdicts import LevelVerdict

    problem, widths = network.problem(data, columns)
    net = starts.law(widths).sample(starts.key(), start)
    folder = prepare_folder(out, (TRAJECTORY_PICTURE,), overwrite=overwrite)
    options: dict[str, Any] = dict(rtol=rtol, atol=atol, max_steps=max_steps)
    if problem.why_no_levels is None:
        certified = simulate(problem, net, t1, stop=AtCertificate(), **options)
        end = t1 if math.isfinite(t1) else 4 * float(certified.final_time)
        trajectory = simulate(problem, net, max(end, 1e-12), **options)
    else:
        least = max(GRADIENT_FALL * float(problem.gradient(net).norm()), np.finfo(float).tiny)
        stop = () if math.isfinite(t1) else AtGradientNorm(least)
        trajectory = simulate(problem, net, t1, stop=stop, **options)
    say(trajectory)
    if problem.why_no_levels is None and trajectory.interpolation is not None:
        verdict = LevelVerdict(problem, net.widths).minimum
        for k, time in enumerate(np.asarray(trajectory.crossing_times())):
            if k and np.isfinite(time):
                what = f": {verdict} certified" if k == 1 else ""
                say(f"  loss below critical value {k} from t = {time:.6g}{what}")
    if save_picture(lambda: plotting.plot_trajectory(trajectory), folder / TRAJECTORY_PICTURE):
        say_written((TRAJECTORY_PICTURE,), folder)


@app.command
def descent(
    data: pathlib.Path | None = None,
    /,
    *,
    columns: Columns = COLUMNS,
    network: Network = NETWORK,
    starts: Starts = STARTS,
    num: Count = 1000,
    optimizer: Optimizer = OPTIMIZER,
    flow: bool = True,
    max_steps: Steps | None = None,
    confidence: float = 0.95,
    out: Folder = DEFAULT_OUT,
    overwrite: bool = False,
    progress: bool = True,
) -> None:
    """Where do the same random starts end by gradient descent, or another optimizer, with what step? Table and picture.

    Parameters
    ----------
    data
        CSV file with a header, NPZ file with arrays X (d_x, m) and Y (d_y, m), or bundled data: linnerud (the default) or iris.
    num
        Number of random starts.
    flow
        Run the gradient flow from the same starts, too, and count the limits that differ.
    max_steps
        Steps after which an undecided start is given up: by default 10,000; where limits are found in the run 100,000.
    confidence
        Confidence of the intervals.
    out
        Folder for the rows of every run (in folders of their own) and descent.png.
    overwrite
        Replace results that are in the folder.
    progress
        Show a progress bar.
    """
    from gdflow import plotting
    from gdflow.basins import Limits, step_size_basins
    from gdflow.basins.campaign import CAMPAIGN
    from gdflow.basins.storage import prepare_folder

    problem, widths = network.problem(data, columns)
    options = optimizer.options(problem, columns, data)
    # A picture beside the rows of runs is theirs.
    folder = prepare_folder(out, (DESCENT_PICTURE,), overwrite=overwrite or any(out.glob(f"*/{CAMPAIGN}")))
    basins = step_size_basins(
        problem, starts.law(widths), num, key=starts.key(), **options, flow=flow, limits=Limits(max_steps=max_steps),
        confidence=confidence, folder=folder, overwrite=overwrite, progress=progress,
    )  # fmt: skip
    say(basins)
    if save_picture(lambda: plotting.plot_step_sizes(basins), folder / DESCENT_PICTURE):
        say_written((DESCENT_PICTURE,), folder)


@app.command(name="sweep")
def sweep_command(
    data: pathlib.Path | None = None,
    /,
    *,
    columns: Columns = COLUMNS,
    grid: Grid = GRID,
    loss: Loss = "squared",
    weight_decay: float = 0.0,
    biases: Annotated[bool, cyclopts.Parameter(negative="")] = False,
    num: Count = 1000,
    ending: Ending = ENDING,
    confidence: float = 0.95,
    out: Folder = DEFAULT_OUT,
    overwrite: bool = False,
    progress: bool = True,
) -> None:
    """Basins at every combination of some settings: one table, one picture, every run in a folder of its own.

    Parameters
    ----------
    data
        CSV file with a header, NPZ file with arrays X (d_x, m) and Y (d_y, m), or bundled data: linnerud (the default) or iris.
    loss
        squared, logistic, softmax or huber.
    weight_decay
        κ of a further term ½κΣ‖W_j‖².
    biases
        Give every layer a bias.
    num
        Random starts of every run.
    confidence
        Confidence of the intervals.
    out
        Folder for the runs, table.csv and sweep.png.
    overwrite
        Replace results that are in the folder.
    progress
        Show a progress bar.
    """
    from gdflow import plotting
    from gdflow.basins import sweep
    from gdflow.basins.storage import prepare_folder
    from gdflow.basins.sweeps import TABLE

    make = grid.maker(data, columns, loss, weight_decay, biases)
    folder = prepare_folder(out, (SWEEP_PICTURE,), overwrite=overwrite or (out / TABLE).exists())
    kept.append(what_is_kept(folder))
    with ending.client() as client:
        result = sweep(
            make, grid.axes, num, confidence=confidence, until=ending.until, client=client, folder=folder,
            overwrite=overwrite, progress=progress,
        )  # fmt: skip
    say(result)
    written: tuple[str, ...] = (TABLE,)
    if save_picture(lambda: plotting.plot_sweep(result), folder / SWEEP_PICTURE):
        written = (*written, SWEEP_PICTURE)
    say_written(written, folder)


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
        landscape: Figures 2 to 4 of Chitour, Liao, Couillet (2022), computed. landscape-2 to landscape-4: one of them.
        spurious-minima: how often ReLU students of orthonormal teachers end at minima that are not global, by the flow and by
        descent, after Safran and Shamir (2018).
    out
        Folder for the pictures, the numbers (CSV) and the texts (Markdown).
    fast
        Smaller sizes and fewer draws: minutes instead of half an hour or more.
    seed
        Of data, teachers and starts: another one repeats the experiment on others.
    overwrite
        Replace results that are in the folder.
    progress
        Show a progress bar.
    """
    from gdflow.experiments import find_experiment, run_experiment

    for result in run_experiment(name, out, fast=fast, seed=seed, overwrite=overwrite, progress=progress):
        say(result)
    say_written(find_experiment(name).files, out)


def _warn(message: Warning | str, category: type[Warning], *_: Any) -> None:
    """Shows a warning in one line; what could not be saved is said at the end instead."""
    from gdflow.basins.storage import StorageWarning

    if issubclass(category, StorageWarning):
        failures.append(str(message))
    else:
        complain(f"note: {message}", style="bold yellow")


def _run(arguments: list[str]) -> None:
    command, bound, _ = app.parse_args(arguments, print_error=False, exit_on_error=False)
    if command.__module__ in (__name__, campaign_commands.__name__):  # neither help nor version
        bound.apply_defaults()
        if "columns" in bound.arguments:  # bad data are told of at once
            table = bound.arguments["columns"].table(bound.arguments["data"])
            if "network" in bound.arguments:
                bound.arguments["network"].check(table)
        with ended_by_interrupts():
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
    # Starts run on all cores already: threads inside of decompositions of small matrices would only wait for each other.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    failures.clear()
    kept.clear()
    read.cache_clear()
    try:
        with warnings.catch_warnings(), ended_cleanly():
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = _warn  # type: ignore[assignment]
            _run(sys.argv[1:])
    except (ValueError, OSError, MemoryError, cyclopts.CycloptsError) as error:
        failures.append(str(error) or type(error).__name__)
    except KeyboardInterrupt:
        complain("interrupted" + "".join(f"; {note}" for note in kept))
        sys.exit(exit_code())
    for message in failures:
        complain(message)
    if failures:
        sys.exit(2)
