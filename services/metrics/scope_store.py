"""The totals of scopes in PostgreSQL."""

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.kit.database import transaction
from services.metrics.columns import arrays, names, unnest
from services.metrics.scopes import DAY, Scope, Span, Total, VersionedTotal
from services.metrics.tables import scope_totals

DAYS_KEPT = 40
"""Totals of a day are for limits by day: what is older is of no use."""

_KEY = tuple(scope_totals.primary_key.columns)
_CHANGES = (scope_totals.c.tokens, scope_totals.c.cost)

# The names that are put in are those of the tables' columns; values are bound.
_ADD = (
    f"INSERT INTO metrics.scope_totals AS t ({names(_KEY + _CHANGES)}, version)"  # noqa: S608
    f" SELECT *, 1 FROM {unnest(_KEY + _CHANGES)}"
    f" ON CONFLICT ({names(_KEY)}) DO UPDATE SET tokens = t.tokens + excluded.tokens,"
    " cost = t.cost + excluded.cost, version = t.version + 1"
)
_GET = (
    f"SELECT {names(_KEY)}, tokens, cost, version"  # noqa: S608
    f" FROM metrics.scope_totals JOIN {unnest(_KEY)} AS k ({names(_KEY)}) USING ({names(_KEY)})"
)


async def add(connection: AsyncConnection, changes: Sequence[tuple[Span, Total]]) -> None:
    """Changes totals in a transaction that is open, in the order that is given."""
    rows = ((span.period, span.start, *span.scope, *total) for span, total in changes)
    await connection.exec_driver_sql(_ADD, arrays(rows))


async def read(connection: AsyncConnection, spans: Sequence[Span]) -> Mapping[Span, VersionedTotal]:
    """Returns the totals that there are, as they are committed."""
    if not spans:
        return {}
    keys = arrays((span.period, span.start, *span.scope) for span in spans)
    rows: Any = await connection.exec_driver_sql(_GET, keys)
    return {
        Span(period, start, Scope(tenant, project, key_id, model)): VersionedTotal(*total)
        for period, start, tenant, project, key_id, model, *total in rows
    }


def is_kept(span: Span, today: dt.date) -> bool:
    """Says whether a span has a total, so that one that was removed does not come back."""
    return span.period != DAY or span.start >= today - dt.timedelta(days=DAYS_KEPT)


class ScopeTotals:
    """Reads totals, and removes what is of no use.

    Every method raises `StoreUnavailableError` when PostgreSQL does not answer.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def get(self, spans: Sequence[Span]) -> list[VersionedTotal]:
        """Returns the totals in the order of the spans."""
        async with transaction(self._engine) as connection:
            found = await read(connection, spans)
        return [found.get(span, VersionedTotal()) for span in spans]

    async def sweep(self, today: dt.date) -> int:
        """Removes totals of days before the last `DAYS_KEPT`; returns how many."""
        statement = sa.delete(scope_totals).where(
            scope_totals.c.period == DAY,
            scope_totals.c.start < today - dt.timedelta(days=DAYS_KEPT),
        )
        async with transaction(self._engine) as connection:
            result: sa.CursorResult[Any] = await connection.execute(statement)
            return result.rowcount
