"""The ledger in PostgreSQL."""

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncEngine

from services.kit.database import transaction
from services.metrics.tables import ledger, usage_daily
from services.metrics.usage import SumKey, Sums, Usage, changes, latest_attempts, takes_place

_EVENT_COLUMNS = tuple(ledger.c)
_SUM_KEY_COLUMNS = tuple(usage_daily.primary_key.columns)
_SUM_COLUMNS = tuple(usage_daily.c[name] for name in Sums._fields)


def _unnest(columns: Sequence[sa.Column[Any]]) -> str:
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    arrays = (f"CAST(:{c.name} AS {c.type.compile(dialect)}[])" for c in columns)
    return f"unnest({', '.join(arrays)})"


def _names(columns: Sequence[sa.Column[Any]]) -> str:
    return ", ".join(column.name for column in columns)


# The names that are put in are those of the tables' columns; values are bound.
_INSERT = sa.text(
    f"INSERT INTO metrics.ledger ({_names(_EVENT_COLUMNS)})"  # noqa: S608
    f" SELECT * FROM {_unnest(_EVENT_COLUMNS)}"
    " ON CONFLICT (request_id) DO NOTHING RETURNING request_id"
)
_LOCK = (
    sa.select(ledger)
    .where(ledger.c.request_id == sa.any_(sa.bindparam("ids", type_=postgresql.ARRAY(sa.Text))))
    .order_by(ledger.c.request_id)
    .with_for_update()
)
_REPLACE = sa.text(
    f"UPDATE metrics.ledger AS l SET ({_names(_EVENT_COLUMNS[1:])})"  # noqa: S608
    f" = ({', '.join('n.' + column.name for column in _EVENT_COLUMNS[1:])})"
    f" FROM {_unnest(_EVENT_COLUMNS)} AS n ({_names(_EVENT_COLUMNS)})"
    " WHERE l.request_id = n.request_id"
)
_ADD_SUMS = sa.text(
    f"INSERT INTO metrics.usage_daily AS d ({_names(_SUM_KEY_COLUMNS + _SUM_COLUMNS)})"  # noqa: S608
    f" SELECT * FROM {_unnest(_SUM_KEY_COLUMNS + _SUM_COLUMNS)}"
    " ON CONFLICT (day, tenant, key_id, model) DO UPDATE SET "
    + ", ".join(f"{c.name} = d.{c.name} + excluded.{c.name}" for c in _SUM_COLUMNS)
)


class Ledger:
    """Writes and reads the ledger and its sums.

    Every method raises `StoreUnavailableError` when PostgreSQL does not answer.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def record(self, events: Sequence[Usage]) -> list[Usage]:
        """Writes events that the ledger has not, and attempts that take the place of what it has.

        Safe with several writers at once: rows are locked in the order of their keys.

        Returns:
            The events that were written, after they are committed.
        """
        latest = latest_attempts(events)
        async with transaction(self._engine) as connection:
            result = await connection.execute(_INSERT, _columns(latest.values()))
            new = {row.request_id for row in result}
            added = [latest[request_id] for request_id in latest if request_id in new]
            removed: list[Usage] = []
            if known := [request_id for request_id in latest if request_id not in new]:
                rows = await connection.execute(_LOCK, {"ids": known})
                removed = [
                    old for old in map(_usage, rows) if takes_place(latest[old.request_id], old)
                ]
                replacing = [latest[old.request_id] for old in removed]
                if replacing:
                    await connection.execute(_REPLACE, _columns(replacing))
                added += replacing
            if sums := changes(added, removed):
                await connection.execute(_ADD_SUMS, _sum_columns(sums))
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

    async def totals(
        self,
        *,
        first_day: dt.date | None = None,
        end_day: dt.date | None = None,
        key_id: str = "",
        model: str = "",
    ) -> list[tuple[str, str, str, Sums]]:
        """Sums by tenant, key and model over the days from `first_day` to before `end_day`."""
        groups = (usage_daily.c.tenant, usage_daily.c.key_id, usage_daily.c.model)
        query = (
            sa.select(*groups, *(sa.cast(sa.func.sum(c), sa.BigInteger) for c in _SUM_COLUMNS))
            .group_by(*groups)
            # Byte order: the same for every database, whatever its locale.
            .order_by(*(sa.collate(column, "C") for column in groups))
            # An attempt that took the place of another key's leaves a sum of nothing there.
            .having(sa.func.sum(usage_daily.c.request_count) > 0)
        )
        if first_day is not None:
            query = query.where(usage_daily.c.day >= first_day)
        if end_day is not None:
            query = query.where(usage_daily.c.day < end_day)
        if key_id:
            query = query.where(usage_daily.c.key_id == key_id)
        if model:
            query = query.where(usage_daily.c.model == model)
        async with transaction(self._engine) as connection:
            rows = await connection.execute(query)
            return [(row[0], row[1], row[2], Sums(*row[3:])) for row in rows]


def _usage(row: sa.Row[Any]) -> Usage:
    return Usage._make(row)


def _columns(events: Iterable[Usage]) -> dict[str, list[Any]]:
    columns = zip(*events, strict=True)
    return {name: list(values) for name, values in zip(Usage._fields, columns, strict=True)}


def _sum_columns(sums: Mapping[SumKey, Sums]) -> dict[str, list[Any]]:
    columns = zip(*(key + value for key, value in sums.items()), strict=True)
    names = SumKey._fields + Sums._fields
    return {name: list(values) for name, values in zip(names, columns, strict=True)}
