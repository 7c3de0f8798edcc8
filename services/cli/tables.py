"""How tables look in the terminal."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_GOOD = frozenset({"ready", "serving", "valid"})
_BAD = frozenset({"failed", "offline", "engine down", "down", "revoked"})


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Returns a table of plain text; a column named `state` is coloured by what it says."""
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        cells = []
        for column, cell in zip(columns, row, strict=True):
            style = _state_style(cell) if column == "state" else ""
            cells.append(Text(cell, style=style))
        made.add_row(*cells)
    return made


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table, or a line that says that there is nothing in it."""
    if rows:
        Console().print(table(title, columns, rows))
    else:
        Console().print(f"No {title.lower()}.", highlight=False)


def _state_style(state: str) -> str:
    if state in _GOOD:
        return "green"
    return "red" if state in _BAD else "yellow"
