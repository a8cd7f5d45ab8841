"""Commands on the results of runs, `gdflow campaign …`; and what all commands that run starts say."""

import os
import pathlib
from collections.abc import Callable
from typing import Any

import cyclopts
import rich.progress
from rich.text import Text

from gdflow.command_options import Count, Ending, Folder
from gdflow.console import failures, kept, save_picture, say, say_written
from gdflow.tables import visible

BASINS_PICTURE = "basins.png"
DEFAULT_OUT = pathlib.Path("gdflow-out")
ENDING = Ending()

app = cyclopts.App(
    name="campaign", help="What a run has left in a folder: look at it, check it, go on with it, export its rows."
)


@app.command
def status(folder: Folder = DEFAULT_OUT, /) -> None:
    """What there is of a run, finished or not, and the estimate from the starts before the first gap.

    Parameters
    ----------
    folder
        Folder of the run.
    """
    from gdflow.basins import campaign_status, load

    found = campaign_status(folder)
    say(found)
    if found.damaged:
        failures.append(_what_is_damaged(len(found.damaged)))
    elif found.num:
        say(load(folder))


@app.command
def verify(folder: Folder = DEFAULT_OUT, /, *, progress: bool = True) -> None:
    """Looks at every byte of a run's rows, and names the files that are damaged; changes nothing.

    Parameters
    ----------
    folder
        Folder of the run.
    progress
        Show a progress bar.
    """
    from gdflow.basins import campaign_status

    with _bar(progress, "checking") as seen:
        found = campaign_status(folder, verify=True, seen=seen)
    say(found)
    if found.damaged:
        failures.append(_what_is_damaged(len(found.damaged)))


@app.command
def resume(
    folder: Folder = DEFAULT_OUT,
    /,
    *,
    num: Count | None = None,
    ending: Ending = ENDING,
    progress: bool = True,
) -> None:
    """Goes on with a run, whatever ended it, from its folder alone.

    Parameters
    ----------
    folder
        Folder of the run.
    num
        Number of starts, if not the one that was asked for.
    progress
        Show a progress bar.
    """
    from gdflow import basins

    kept.append(what_is_kept(folder))
    with ending.client() as client:
        say_basins(lambda: basins.resume(folder, num, until=ending.until, client=client, progress=progress), folder)


@app.command
def export(folder: pathlib.Path, path: pathlib.Path, /, *, overwrite: bool = False, progress: bool = True) -> None:
    """Writes all rows of a run into one file.

    Parameters
    ----------
    folder
        Folder of the run.
    path
        The file: .parquet or .csv.
    overwrite
        Replace a file that is there.
    progress
        Show a progress bar.
    """
    from gdflow import basins

    with _bar(progress, "exporting") as seen:
        num = basins.export(folder, path, overwrite=overwrite, seen=seen)
    say(Text(f"wrote {num} rows to {visible(str(path))}"))


class _bar:
    """A progress bar of files."""

    def __init__(self, show: bool, what: str):
        self._bar = rich.progress.Progress(transient=True, disable=not show)
        self._task = self._bar.add_task(what, total=None)

    def __enter__(self) -> Callable[[int, int], None]:
        self._bar.start()
        return lambda seen, total: self._bar.update(self._task, completed=seen, total=total)

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()


def prepare_for_basins(folder: pathlib.Path, overwrite: bool) -> None:
    """Makes the folder; results of a run in it are left to the library, which knows whose they are."""
    from gdflow.basins.campaign import CAMPAIGN
    from gdflow.basins.storage import prepare_folder

    if not os.path.exists(folder / CAMPAIGN):
        prepare_folder(folder, (BASINS_PICTURE,), overwrite=overwrite)
    kept.append(what_is_kept(folder))


def _what_is_damaged(num: int) -> str:
    return f"{num} files are damaged: gdflow campaign resume sets them aside and runs their starts again"


def what_is_kept(folder: pathlib.Path) -> str:
    shown = visible(str(folder))
    more = f"gdflow campaign status {shown} says how much"
    return f"what was finished is in {shown}{os.sep}, and the same command goes on there ({more})"


def say_basins(run: Callable[[], Any], folder: pathlib.Path) -> None:
    """Runs, shows the table, draws the picture."""
    from gdflow import plotting
    from gdflow.basins.campaign import OUTCOMES
    from gdflow.basins.storage import SUMMARY

    estimate = run()
    say(estimate)
    if estimate.opened_from is not None and (folder / BASINS_PICTURE).exists():
        return  # nothing to write
    written: tuple[str, ...] = () if failures or estimate.opened_from is not None else (OUTCOMES + os.sep, SUMMARY)
    if save_picture(lambda: plotting.plot_basins(estimate), folder / BASINS_PICTURE):
        written = (*written, BASINS_PICTURE)
    if written:
        say_written(written, folder)
