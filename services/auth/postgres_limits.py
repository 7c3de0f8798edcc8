"""Limits in PostgreSQL, schema `auth`. Every write notifies `CHANNEL` when it commits."""

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.auth import errors
from services.auth.limits import MAX_LIMITS, Limits, Scope
from services.auth.postgres_tenants import metadata
from services.kit.database import transaction

CHANNEL = "infermesh_auth_limits"
"""Where writes are told of; the payload is the scope's id."""

_BATCH = 5000


def _part(name: str) -> sa.Column[str]:
    # By bytes, so that the order of pages is the same whatever the database's language.
    return sa.Column(name, sa.Text(collation="C"), primary_key=True)


_limits = sa.Table(
    "limits",
    metadata,
    _part("tenant"),
    _part("project"),
    _part("key_id"),
    _part("model"),
    sa.Column("requests_per_minute", sa.BigInteger),
    sa.Column("tokens_per_minute", sa.BigInteger),
    sa.Column("concurrent_requests", sa.BigInteger),
    sa.Column("tokens_per_day", sa.BigInteger),
    sa.Column("usd_per_month", sa.Numeric(12, 6)),
    sa.Column("alert_percents", ARRAY(sa.SmallInteger), nullable=False),
    sa.Column("update_time", sa.DateTime(timezone=True), nullable=False),
)

_SCOPE = tuple(_limits.c[name] for name in Scope._fields)
_VALUES = tuple(_limits.c[name] for name in Limits._fields if name != "scope")
_ONE_AT_A_TIME = sa.text("SELECT pg_advisory_xact_lock(hashtext('auth.limits'))")


class PostgresLimits:
    """A `LimitStore` in PostgreSQL."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def put(self, limits: Limits) -> None:
        """See `LimitStore`."""
        values = {name: value for name, value in limits._asdict().items() if name != "scope"}
        values["alert_percents"] = list(limits.alert_percents)
        statement = insert(_limits).values(limits.scope._asdict() | values)
        async with transaction(self._engine) as connection:
            # Two at once could each take the last room.
            await connection.execute(_ONE_AT_A_TIME)
            await connection.execute(
                statement.on_conflict_do_update(index_elements=_SCOPE, set_=values)
            )
            count = await connection.scalar(sa.select(sa.func.count()).select_from(_limits))
            if (count or 0) > MAX_LIMITS:
                raise errors.precondition(f"{MAX_LIMITS} scopes have limits; that is the most.")
            await _notify(connection, limits.scope)

    async def get(self, scopes: Iterable[Scope]) -> Sequence[Limits]:
        """See `LimitStore`."""
        query = sa.select(*_SCOPE, *_VALUES).where(sa.tuple_(*_SCOPE).in_([*map(tuple, scopes)]))
        async with transaction(self._engine) as connection:
            return [_read(row) for row in await connection.execute(query)]

    async def page(self, size: int, after: Scope | None) -> Sequence[Limits]:
        """See `LimitStore`."""
        query = sa.select(*_SCOPE, *_VALUES).order_by(*_SCOPE).limit(size)
        if after is not None:
            query = query.where(sa.tuple_(*_SCOPE) > sa.tuple_(*after))
        async with transaction(self._engine) as connection:
            return [_read(row) for row in await connection.execute(query)]

    async def delete(self, scope: Scope) -> Limits | None:
        """See `LimitStore`."""
        statement = (
            sa.delete(_limits)
            .where(sa.tuple_(*_SCOPE) == sa.tuple_(*scope))
            .returning(*_SCOPE, *_VALUES)
        )
        async with transaction(self._engine) as connection:
            row = (await connection.execute(statement)).first()
            if row is None:
                return None
            await _notify(connection, scope)
        return _read(row)

    async def all(self) -> AsyncIterator[Sequence[Limits]]:
        """See `LimitStore`. A batch is a transaction; who reads it listens to changes meanwhile."""
        after: Scope | None = None
        while True:
            batch = await self.page(_BATCH, after)
            yield batch
            if len(batch) < _BATCH:
                return
            after = batch[-1].scope


def _read(row: Any) -> Limits:
    values = dict(row._mapping)
    scope = Scope(*(values.pop(name) for name in Scope._fields))
    values["alert_percents"] = tuple(values["alert_percents"])
    return Limits(scope=scope, **values)


async def _notify(connection: AsyncConnection, scope: Scope) -> None:
    await connection.execute(sa.select(sa.func.pg_notify(CHANNEL, scope.id)))
