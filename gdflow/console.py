"""What a command says: to standard output, to standard error, into files; and how it ends when it is interrupted."""

import contextlib
import io
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING


@contextlib.contextmanager
def ended_by_interrupts() -> Iterator[None]:
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


#: The signal that ended the command, if it was asked to end.
_signals: list[int] = []


@contextlib.contextmanager
def ended_cleanly() -> Iterator[None]:
    """Lets a request to end the process (SIGTERM, as of schedulers of clusters) do what an interrupt does: end it in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _: object) -> None:
        _signals.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def exit_code() -> int:
    """Of a command that was interrupted, as shells have it: 128 and the number of the signal."""
    return 128 + (_signals.pop() if _signals else signal.SIGINT)


with ended_by_interrupts():
    import rich.console
    from rich.text import Text

    from gdflow.tables import WIDTH, shortened, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Messages are cut to so many characters.
_LONGEST_MESSAGE = 2000

#: What went wrong without ending the command: said at its end.
failures: list[str] = []
#: What an interrupt leaves.
kept: list[str] = []


class _Console(rich.console.Console):
    """A console that leaves it to us what to do when nobody reads any more."""

    def on_broken_pipe(self) -> None:
        raise


def say(what: rich.console.RenderableType) -> None:
    """Prints to standard output. If nobody reads there any more, or the disk is full, the command goes on in silence."""
    try:
        # Where the output is no terminal rich would assume 80 columns, too few for the tables.
        _Console(width=None if sys.stdout.isatty() else WIDTH).print(what)
        sys.stdout.flush()
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            failures.append(f"standard output cannot be written: {error.strerror}")
        sys.stdout = io.StringIO()


def complain(message: str, style: str = "bold red") -> None:
    """Prints one message to standard error, safe to show."""
    text = visible(shortened(message, _LONGEST_MESSAGE), keep="\n")
    with contextlib.suppress(OSError):
        _Console(stderr=True).print(Text.assemble(("gdflow:", style), " ", text), soft_wrap=True)


def save_picture(draw: "Callable[[], Figure]", path: pathlib.Path) -> bool:
    """Draws a picture into a file, complete or not at all; a failure is said at the end, for the numbers are there."""
    partial = path.with_name(path.name + ".partial")
    try:
        draw().savefig(partial, dpi=150, format="png")
        os.replace(partial, path)
    except Exception as error:  # whatever it was
        failures.append(f"the picture {path} could not be made: {type(error).__name__}: {error}")
        return False
    return True


def say_written(names: tuple[str, ...], folder: pathlib.Path) -> None:
    say(Text(f"wrote {', '.join(names)} to {visible(str(folder))}{os.sep}"))
