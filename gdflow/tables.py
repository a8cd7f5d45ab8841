"""Results that print well: one rich renderable serves the terminal, `str()` and the notebook."""

import abc
import io

import rich.box
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table


class Printable(abc.ABC):
    """A result that knows how to show itself as a rich renderable."""

    @abc.abstractmethod
    def __rich__(self) -> RenderableType:
        """The renderable that is shown."""

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=110, color_system=None, force_jupyter=False)
        with console.capture() as capture:
            console.print(self.__rich__())
        return "\n".join(line.rstrip() for line in capture.get().rstrip("\n").split("\n"))

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        console = Console(file=io.StringIO(), width=110, record=True, force_jupyter=False)
        console.print(self.__rich__())
        return console.export_html(inline_styles=True, code_format="<pre style='line-height:1.25'>{code}</pre>")


def key_value_table(title: str, rows: list[tuple[str, str]]) -> Table:
    """A two-column table of named facts."""
    table = Table(title=title, title_justify="left", box=rich.box.SIMPLE, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in rows:
        table.add_row(escape(key), escape(value))
    return table


def column_table(title: str, *columns: str, caption: str | None = None) -> Table:
    """An empty table with a header; the first column is left-aligned, the others are right-aligned."""
    table = Table(
        title=title, title_justify="left", box=rich.box.SIMPLE_HEAD, caption=caption, caption_justify="left",
        pad_edge=False,
    )  # fmt: skip
    for k, column in enumerate(columns):
        table.add_column(column, justify="left" if k == 0 else "right")
    return table
