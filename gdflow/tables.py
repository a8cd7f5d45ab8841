"""Results that print well: one rich renderable serves the terminal, `str()` and the notebook."""

import abc
import io
from collections.abc import Iterable, Sequence

import rich.box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

#: Columns that the tables take where they are not printed to a terminal.
WIDTH = 120
#: Lists of names are cut to so many, and single values to so many characters, where they are shown.
MAX_NAMES, MAX_CHARACTERS = 12, 200


def visible(text: str, *, keep: str = "") -> str:
    r"""Text from outside made safe to show: what does not print is written as its escape sequence.

    Names from files may hold control characters, which a terminal obeys, and marks that turn the direction of writing.
    The characters in `keep` stay.

    ```python
    >>> print(visible("a\x1b[31mb"))
    a\x1b[31mb
    ```
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode("ascii") for c in text)


def shortened(text: str, most: int = MAX_CHARACTERS) -> str:
    """Text of at most `most` characters, and how many were left out."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text) - most} more characters)"


def some_names(names: Sequence[str]) -> str:
    """The first dozen of some names, separated by commas, and how many more there are; each as `visible` shows it."""
    shown = ", ".join(visible(shortened(name)) for name in names[:MAX_NAMES])
    return shown if len(names) <= MAX_NAMES else f"{shown}, … and {len(names) - MAX_NAMES} more"


def some_numbers(values: Iterable[float], most: int = 8) -> str:
    """The first of some numbers, to six digits, and a `…` where there are more."""
    numbers = list(values)
    return ", ".join(f"{x:.6g}" for x in numbers[:most]) + (", …" if len(numbers) > most else "")


class Printable(abc.ABC):
    """A result that knows how to show itself as a rich renderable."""

    @abc.abstractmethod
    def __rich__(self) -> RenderableType:
        """The renderable that is shown."""

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=WIDTH, color_system=None, force_jupyter=False)
        with console.capture() as capture:
            console.print(self.__rich__())
        return "\n".join(line.rstrip() for line in capture.get().rstrip("\n").split("\n"))

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        console = Console(file=io.StringIO(), width=WIDTH, record=True, force_jupyter=False)
        console.print(self.__rich__())
        return console.export_html(inline_styles=True, code_format="<pre style='line-height:1.25'>{code}</pre>")


def _plain(text: str, style: str = "") -> Text:
    """Text that is shown as it is: not read as markup, nor `:x:` as a picture."""
    return Text(visible(text), style=style)


def key_value_table(title: str, rows: list[tuple[str, str]]) -> Table:
    """A two-column table of named facts; names and values are shown as they are, not read as markup."""
    table = Table(title=_plain(title, "table.title"), title_justify="left", box=rich.box.SIMPLE, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in rows:
        table.add_row(_plain(key), _plain(value))
    return table


def column_table(title: str, *columns: str, caption: str | None = None) -> Table:
    """An empty table with a header; the first column is left-aligned, the others are right-aligned.

    Title, caption and header are shown as they are. Cells are rich's and may be coloured: make texts from outside `Text`s.
    """
    table = Table(
        title=_plain(title, "table.title"), title_justify="left", box=rich.box.SIMPLE_HEAD,
        caption=None if caption is None else _plain(caption, "table.caption"), caption_justify="left", pad_edge=False,
    )  # fmt: skip
    for k, column in enumerate(columns):
        table.add_column(_plain(column), justify="left" if k == 0 else "right")
    return table
