"""How tables look in the terminal, and in a pipe."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

_GOOD = frozenset({"ready", "serving", "valid"})
_BAD = frozenset({"failed", "offline", "engine down", "down", "revoked"})
# The columns of several words, one in a table: they take the width that the others leave.
_WRAPPED = frozenset({"can", "detail", "models", "name"})
_FREE = 10_000


class FittedTable:
    """A table as wide as the terminal, or wider where a word would be broken otherwise.

    In a pipe, where a line is a record, nothing is broken at all. Print it without cropping.
    """

    def __init__(self, table: Table) -> None:
        self._table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yields the table at its width."""
        wanted = Measurement.get(console, options.update(width=_FREE), self._table)
        width = console.width if console.is_terminal else _FREE
        self._table.width = min(wanted.maximum, max(wanted.minimum, width))
        yield from console.render(self._table, options.update(width=self._table.width))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> FittedTable:
    """Returns a table of plain text; a column named `state` is coloured by what it says."""
    made = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    all_rows = list(rows)
    for column, *cells_below in zip(columns, *all_rows, strict=True):
        wraps = column in _WRAPPED
        unbroken = [word for cell in (column, *cells_below) for word in _unbroken(cell, wraps)]
        made.add_column(column, no_wrap=not wraps, min_width=max(map(cell_len, unbroken)))
    for row in all_rows:
        cells = []
        for column, cell in zip(columns, row, strict=True):
            style = _state_style(cell) if column == "state" else ""
            cells.append(Text(cell, style=style))
        made.add_row(*cells)
    return FittedTable(made)


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table, or a line that says that there is nothing in it."""
    if rows:
        Console().print(table(title, columns, rows), crop=False)
    else:
        Console().print(f"No {title.lower()}.", highlight=False)


def _unbroken(cell: str, wraps: bool) -> list[str]:
    return cell.split() if wraps else [cell]


def _state_style(state: str) -> str:
    if state in _GOOD:
        return "green"
    return "red" if state in _BAD else "yellow"
