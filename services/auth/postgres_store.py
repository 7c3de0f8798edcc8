"""Keys in PostgreSQL, schema `auth`. Every write notifies `CHANNEL` when it commits."""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from infermesh.access.v1 import access_pb2
from services.auth import errors
from services.auth.postgres_tenants import ensure_project, metadata
from services.auth.rules import NONE, Rules
from services.auth.store import Key, Position, is_valid_admin, revoked
from services.auth.token_use import use
from services.kit.database import transaction

CHANNEL = "infermesh_auth_keys"
"""Where writes are told of; the payload is the key's id."""

_BATCH = 5000


_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("key_id", sa.Text, primary_key=True),
    sa.Column("display_name", sa.Text, nullable=False),
    sa.Column("role", sa.SmallInteger, nullable=False),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("prefix", sa.Text, nullable=False),
    sa.Column("secret_hash", sa.LargeBinary, nullable=False, unique=True),
    sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
    sa.Column("revoke_time", sa.DateTime(timezone=True)),
    sa.Column("expire_time", sa.DateTime(timezone=True)),
    sa.Column("max_uses", sa.Integer, nullable=False, server_default="0"),
    sa.Column("use_count", sa.Integer, nullable=False, server_default="0"),
    sa.Column("project", sa.Text, nullable=False, server_default="default"),
    sa.Column("old_secret_hash", sa.LargeBinary, nullable=False, server_default=""),
    sa.Column("old_secret_expire_time", sa.DateTime(timezone=True)),
    sa.Column("last_use_time", sa.DateTime(timezone=True)),
    sa.Column("node_id", sa.Text, nullable=False, server_default=""),
    sa.Column("rules", JSONB, nullable=False, server_default="{}"),
    sa.Index("api_keys_by_create_time", sa.text("create_time DESC"), sa.text("key_id DESC")),
)

_COLUMNS = tuple(_keys.c)


class PostgresKeyStore:
    """A `KeyStore` in PostgreSQL."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def add(self, key: Key) -> None:
        """See `KeyStore`."""
        async with transaction(self._engine) as connection:
            await ensure_project(connection, key.tenant, key.project)
            await connection.execute(sa.insert(_keys).values(_values(key)))
            await _notify(connection, key.key_id)

    async def put(self, key: Key) -> bool:
        """See `KeyStore`."""
        statement = insert(_keys).values(_values(key))
        changed = statement.on_conflict_do_update(
            index_elements=[_keys.c.key_id],
            set_=_values(key),
            where=sa.or_(_keys.c.secret_hash != key.secret_hash, _keys.c.role != key.role),
        ).returning(_keys.c.key_id)
        async with transaction(self._engine) as connection:
            if (await connection.execute(changed)).first() is None:
                return False
            await ensure_project(connection, key.tenant, key.project)
            await _notify(connection, key.key_id)
        return True

    async def get(self, key_ids: Iterable[str]) -> Sequence[Key]:
        """See `KeyStore`."""
        query = sa.select(*_COLUMNS).where(_keys.c.key_id.in_(list(key_ids)))
        async with transaction(self._engine) as connection:
            return [_key(row) for row in await connection.execute(query)]

    async def page(
        self, size: int, after: Position | None, role: int | None = None
    ) -> Sequence[Key]:
        """See `KeyStore`."""
        query = sa.select(*_COLUMNS)
        if role is not None:
            query = query.where(_keys.c.role == role)
        if after:
            place = sa.tuple_(_keys.c.create_time, _keys.c.key_id)
            query = query.where(place < sa.tuple_(after.create_time, after.key_id))
        query = query.order_by(_keys.c.create_time.desc(), _keys.c.key_id.desc()).limit(size)
        async with transaction(self._engine) as connection:
            return [_key(row) for row in await connection.execute(query)]

    async def all(self) -> AsyncIterator[Sequence[Key]]:
        """See `KeyStore`. A batch is a transaction; who reads it listens to changes meanwhile."""
        is_current = sa.or_(_keys.c.expire_time.is_(None), _keys.c.expire_time > sa.func.now())
        query = sa.select(*_COLUMNS).where(_keys.c.revoke_time.is_(None), is_current)
        query = query.order_by(_keys.c.key_id).limit(_BATCH)
        last = ""
        while True:
            async with transaction(self._engine) as connection:
                rows = (await connection.execute(query.where(_keys.c.key_id > last))).all()
            yield [_key(row) for row in rows]
            if len(rows) < _BATCH:
                return
            last = rows[-1].key_id

    async def redeem(self, token_id: str, key: Key, now: datetime) -> Key:
        """See `KeyStore`."""
        async with transaction(self._engine) as connection:
            # Locked, so that two at once do not both take the last use.
            row = (
                await connection.execute(
                    sa.select(*_COLUMNS).where(_keys.c.key_id == token_id).with_for_update()
                )
            ).first()
            used = use(_key(row) if row else None, now)
            await connection.execute(
                sa.update(_keys).where(_keys.c.key_id == token_id).values(use_count=used.use_count)
            )
            await ensure_project(connection, key.tenant, key.project)
            await connection.execute(sa.insert(_keys).values(_values(key)))
            await _notify(connection, key.key_id)
        return used

    async def change(self, key_id: str, alter: Callable[[Key], Key]) -> Key:
        """See `KeyStore`."""
        async with transaction(self._engine) as connection:
            # One change at a time: two at once could each take the other for the last admin.
            await connection.execute(
                sa.text("SELECT pg_advisory_xact_lock(hashtext('auth.revoke'))")
            )
            query = sa.select(*_COLUMNS).where(_keys.c.key_id == key_id).with_for_update()
            row = (await connection.execute(query)).first()
            if row is None:
                raise errors.key_not_found(key_id)
            key = _key(row)
            altered = alter(key)
            if altered == key:
                return key
            if is_valid_admin(key) and not is_valid_admin(altered):
                await _require_other_admin(connection, key_id)
            changed = sa.update(_keys).where(_keys.c.key_id == key_id).values(_values(altered))
            await connection.execute(changed)
            await _notify(connection, key_id)
        return altered

    async def touch(self, key_ids: Sequence[str], now: datetime) -> None:
        """See `KeyStore`."""
        used = sa.update(_keys).where(_keys.c.key_id.in_(key_ids)).values(last_use_time=now)
        async with transaction(self._engine) as connection:
            await connection.execute(used)

    async def revoke(self, key_id: str, now: datetime) -> Key:
        """See `KeyStore`."""
        return await self.change(key_id, lambda key: revoked(key, now))


def _values(key: Key) -> dict[str, Any]:
    values = {column.name: getattr(key, column.name) for column in _COLUMNS}
    values["rules"] = {} if key.rules == NONE else asdict(key.rules)
    return values


def _key(row: Any) -> Key:
    *values, rules = row
    values.append(_rules(rules) if rules else NONE)
    return Key(*values)


def _rules(fields: dict[str, Any]) -> Rules:
    # JSON knows no tuples.
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    return Rules(**values)


async def _notify(connection: AsyncConnection, key_id: str) -> None:
    await connection.execute(sa.select(sa.func.pg_notify(CHANNEL, key_id)))


async def _require_other_admin(connection: AsyncConnection, key_id: str) -> None:
    query = sa.select(_keys.c.key_id).where(
        _keys.c.role == access_pb2.ROLE_ADMIN,
        _keys.c.revoke_time.is_(None),
        _keys.c.expire_time.is_(None),
        _keys.c.key_id != key_id,
    )
    if (await connection.execute(query.limit(1))).first() is None:
        raise errors.last_admin_key(key_id)
