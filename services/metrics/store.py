"""The ledger in PostgreSQL."""

import datetime as dt
from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from services.kit.database import transaction
from services.metrics import outbox, price_store, scope_store
from services.metrics.columns import arrays, names, unnest
from services.metrics.prices import cost_of
from services.metrics.scopes import total_changes
from services.metrics.tables import ledger, usage_daily
from services.metrics.usage import Sums, Usage, changes, latest_attempts, takes_place, uses

_EVENT_COLUMNS = tuple(ledger.c)
_SUM_KEY_COLUMNS = tuple(usage_daily.primary_key.columns)
_SUM_COLUMNS = tuple(usage_daily.c[name] for name in Sums._fields)


# The names that are put in are those of the tables' columns; values are bound.
_INSERT = (
    f"INSERT INTO metrics.ledger ({names(_EVENT_COLUMNS)})"  # noqa: S608
    f" SELECT * FROM {unnest(_EVENT_COLUMNS)}"
    " ON CONFLICT (request_id) DO NOTHING RETURNING request_id"
)
_LOCK = (
    f"SELECT {names(_EVENT_COLUMNS)} FROM metrics.ledger"  # noqa: S608
    " WHERE request_id = ANY($1) ORDER BY request_id FOR UPDATE"
)
_REPLACE = (
    f"UPDATE metrics.ledger AS l SET ({names(_EVENT_COLUMNS[1:])})"  # noqa: S608
    f" = ({', '.join('n.' + column.name for column in _EVENT_COLUMNS[1:])})"
    f" FROM {unnest(_EVENT_COLUMNS)} AS n ({names(_EVENT_COLUMNS)})"
    " WHERE l.request_id = n.request_id"
)
_ADD_SUMS = (
    f"INSERT INTO metrics.usage_daily AS d ({names(_SUM_KEY_COLUMNS + _SUM_COLUMNS)})"  # noqa: S608
    f" SELECT * FROM {unnest(_SUM_KEY_COLUMNS + _SUM_COLUMNS)}"
    f" ON CONFLICT ({names(_SUM_KEY_COLUMNS)}) DO UPDATE SET "
    + ", ".join(f"{c.name} = d.{c.name} + excluded.{c.name}" for c in _SUM_COLUMNS)
)


class Ledger:
    """Writes and reads the ledger and its sums.

    Every method raises `StoreUnavailableError` when PostgreSQL does not answer.

    Args:
        engine: Opens connections.
        wake: Called when there is something to settle. None: nothing is ever settled, and the
            outbox stays empty.
        today: Returns the day, UTC.
    """

    def __init__(
        self, engine: AsyncEngine, wake: Callable[[], None] | None, today: Callable[[], dt.date]
    ) -> None:
        self._engine = engine
        self._wake = wake
        self._today = today

    async def record(self, events: Sequence[Usage]) -> list[Usage]:
        """Writes events that the ledger has not, and attempts that take the place of what it has.

        Safe with several writers at once: all lock rows in the same order, which is that of the
        statements here, and within a table that of the rows' keys.

        Returns:
            The events that were written, with their cost, after they are committed.
        """
        latest = latest_attempts(events)
        unsettled: list[outbox.Entry] = []
        async with transaction(self._engine) as connection:
            priced = await price_store.read(connection, {each.model for each in latest.values()})
            latest = {
                request_id: each._replace(cost=cost_of(each, priced.get(each.model)))
                for request_id, each in latest.items()
            }
            result = await connection.exec_driver_sql(_INSERT, arrays(latest.values()))
            new = {row.request_id for row in result}
            added = [latest[request_id] for request_id in latest if request_id in new]
            removed: list[Usage] = []
            if known := [request_id for request_id in latest if request_id not in new]:
                rows = await connection.exec_driver_sql(_LOCK, (known,))
                removed = [
                    old for old in map(_usage, rows) if takes_place(latest[old.request_id], old)
                ]
                replacing = [latest[old.request_id] for old in removed]
                if replacing:
                    await connection.exec_driver_sql(_REPLACE, arrays(replacing))
                added += replacing
            if self._wake and (unsettled := outbox.entries(added, removed)):
                await outbox.add(connection, unsettled)
            if sums := changes(added, removed):
                columns = arrays(key + value for key, value in sums.items())
                await connection.exec_driver_sql(_ADD_SUMS, columns)
            today = self._today()
            totals = [
                each
                for each in total_changes(uses(added, removed))
                if scope_store.is_kept(each[0], today)
            ]
            if totals:
                await scope_store.add(connection, totals)
        if self._wake and unsettled:
            self._wake()
        return added

    async def newest(
        self,
        *,
        limit: int,
        before: tuple[dt.datetime, str] | None = None,
        request_id: str = "",
        key_id: str = "",
    ) -> list[Usage]:
        """Returns the newest events first, those before `before` (start time, request id)."""
        query = sa.select(ledger).order_by(ledger.c.start_time.desc(), ledger.c.request_id.desc())
        if before is not None:
            query = query.where(
                sa.tuple_(ledger.c.start_time, ledger.c.request_id)
                < sa.tuple_(sa.literal(before[0]), sa.literal(before[1]))
            )
        if request_id:
            query = query.where(ledger.c.request_id == request_id)
        if key_id:
            query = query.where(ledger.c.key_id == key_id)
        async with transaction(self._engine) as connection:
            return [_usage(row) for row in await connection.execute(query.limit(limit))]


def _usage(row: sa.Row[Any]) -> Usage:
    return Usage._make(row)
