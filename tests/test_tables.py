"""How results print: texts from outside are shown, never obeyed."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdflow.tables import Printable, column_table, key_value_table, shortened, some_names, visible


class Shown(Printable):
    def __init__(self, table):
        self.table = table

    def __rich__(self):
        return self.table


@given(st.text(st.characters(categories=["Cc", "Cf", "Cs", "Zl", "Zp", "L", "P", "S"])))
def test_visible_text_holds_nothing_that_a_terminal_obeys(text):
    """Control and formatting characters, halves of surrogates, and separators of lines; printable text stays as it is."""
    shown = visible(text)
    assert not {c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    printable = [c for c in text if unicodedata.category(c)[0] in "LPS" and c != "\\"]
    assert [c for c in printable if c not in shown] == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\x1b[31m\n\tb", r"a\x1b[31m\n\tb"), ("\u202eb\ufeff", r"\u202eb\ufeff"), ("\udcff\x85", r"\udcff\x85"),
     ("Größe ½‖Σ‖²",) * 2],
)  # fmt: skip
def test_escapes(text, shown):
    assert visible(text) == shown


def test_lines_can_be_kept():
    assert visible("a\nb\r", keep="\n") == "a\nb\\r"


def test_long_texts_and_lists_are_cut():
    assert shortened("x" * 200) == "x" * 200
    assert shortened("x" * 205) == "x" * 200 + "… (5 more characters)"
    names = [f"c{k}" for k in range(100_000)]
    assert some_names(names) == ", ".join(names[:12]) + ", … and 99988 more"
    assert some_names(names[:12]) == ", ".join(names[:12])


HOSTILE = "[/red] [bold]x[/] \x1b[2J\u202e :smile:"


def test_tables_show_markup_and_control_characters():
    """Every place of a table: rich would raise for `[/red]`, and leave `[bold]` out."""
    shown = visible(HOSTILE)
    assert str(Shown(key_value_table(HOSTILE, [(HOSTILE, HOSTILE)]))).count(shown) == 3
    table = column_table(HOSTILE, HOSTILE, "other", caption=HOSTILE)
    table.add_row("1" * 60, "2")
    assert str(Shown(table)).count(shown) == 3
    assert "\x1b" not in Shown(table)._repr_html_()
