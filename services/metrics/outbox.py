"""The outbox in PostgreSQL: which requests auth is still to be told of."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy.ext.asyncio import AsyncConnection

from services.metrics.columns import arrays, names, unnest
from services.metrics.scopes import Use
from services.metrics.tables import unsettled
from services.metrics.usage import Usage, all_tokens

_COLUMNS = tuple(unsettled.c[name] for name in ("request_id", *Use._fields))

# The names that are put in are those of the tables' columns; values are bound.
_ADD = (
    f"INSERT INTO metrics.unsettled ({names(_COLUMNS)})"  # noqa: S608
    f" SELECT * FROM {unnest(_COLUMNS)}"
)
_TAKE = (
    f"SELECT u.id, {', '.join('u.' + column.name for column in _COLUMNS)},"  # noqa: S608
    " l.operation, l.prompt_tokens, l.completion_tokens"
    " FROM metrics.unsettled u JOIN metrics.ledger l USING (request_id)"
    " ORDER BY u.id LIMIT $1 FOR UPDATE OF u SKIP LOCKED"
)
_REMOVE = "DELETE FROM metrics.unsettled WHERE id = ANY($1::BIGINT[])"


class Entry(NamedTuple):
    """A request to settle, and whose totals it changed."""

    request_id: str
    use: Use


class Taken(NamedTuple):
    """An entry that was taken out, with what the request took by the ledger.

    Args:
        id: Of the row.
        entry: What it says.
        tokens: All tokens of the request; None is unknown.
    """

    id: int
    entry: Entry
    tokens: int | None


def entries(added: Iterable[Usage], removed: Iterable[Usage]) -> list[Entry]:
    """Returns what a change of the ledger leaves to settle.

    Requests for which auth reserved nothing leave nothing. One that takes another's place changes
    the totals of both.
    """
    found = {Entry(each.request_id, each.use): None for each in added if each.reserved}
    found |= {Entry(each.request_id, each.use): None for each in removed if each.reserved}
    return list(found)


async def add(connection: AsyncConnection, new: Sequence[Entry]) -> None:
    """Writes entries in a transaction that is open."""
    rows = ((each.request_id, *each.use) for each in new)
    await connection.exec_driver_sql(_ADD, arrays(rows))


async def take(connection: AsyncConnection, most: int) -> list[Taken]:
    """Returns the oldest entries, which no other transaction is given until this one ends."""
    rows: Any = await connection.exec_driver_sql(_TAKE, (most,))
    return [
        Taken(number, Entry(request_id, Use(*use)), all_tokens(operation, prompt, made))
        for number, request_id, *use, operation, prompt, made in rows
    ]


async def remove(connection: AsyncConnection, taken: Sequence[Taken]) -> None:
    """Deletes entries that are settled."""
    await connection.exec_driver_sql(_REMOVE, ([each.id for each in taken],))
