"""Keeps responses in PostgreSQL until they expire."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from services.jobs.errors import check_id, not_found, refuse
from services.jobs.identity import Scope
from services.jobs.tables import responses
from services.kit.database import transaction

MAX_TURNS = 1000
"""The longest conversation, in responses."""

MAX_CONVERSATION_BYTES = 16 * 1024 * 1024
"""The longest conversation, as JSON: what a caller could send in one request."""

_SWEPT = 1000


@dataclass(frozen=True)
class Stored:
    """A response that is kept.

    Attributes:
        id: Its id.
        previous_id: The response that it goes on from.
        body: OpenAI's object, as JSON.
        items: The items of its turn's input, as JSON.
    """

    id: str
    previous_id: str | None
    body: bytes
    items: bytes


class ResponseStore:
    """The responses of all tenants; each sees its own.

    Args:
        engine: The database.
        ttl_s: How long a response is kept, in seconds.
    """

    def __init__(self, engine: AsyncEngine, ttl_s: int) -> None:
        self._engine = engine
        self._ttl = timedelta(seconds=ttl_s)

    async def put(self, scope: Scope, key_id: str, stored: Stored, create_time_s: float) -> None:
        """Keeps a response.

        Raises:
            StoreUnavailableError: The database does not answer.
        """
        created = datetime.fromtimestamp(create_time_s, UTC)
        async with transaction(self._engine) as connection:
            await connection.execute(
                responses.insert().values(
                    id=stored.id,
                    tenant=scope.tenant,
                    project=scope.project,
                    key_id=key_id,
                    previous_id=stored.previous_id,
                    create_time=created,
                    expire_time=created + self._ttl,
                    body=stored.body,
                    input=stored.items,
                )
            )

    async def get(self, scope: Scope, response_id: str) -> Stored:
        """Returns a response.

        Raises:
            MeshError: `NOT_FOUND`.
            StoreUnavailableError: The database does not answer.
        """
        check_id("response", response_id, "response_id")
        columns: Any = (
            responses.c.id,
            responses.c.previous_id,
            responses.c.body,
            responses.c.input,
        )
        async with transaction(self._engine) as connection:
            found = await connection.execute(
                sa.select(*columns).where(
                    *_visible(responses, scope), responses.c.id == response_id
                )
            )
            row = found.one_or_none()
        if row is None:
            raise not_found("response", response_id, "response_id")
        return Stored(*row)

    async def conversation(self, scope: Scope, response_id: str, param: str) -> list[Stored]:
        """Returns a response and all that it goes on from, oldest first.

        Args:
            scope: Whose they are.
            response_id: The last of them.
            param: The field that named it, for errors.

        Raises:
            MeshError: `NOT_FOUND`, one of them is gone; `INVALID_ARGUMENT`, it is too long.
            StoreUnavailableError: The database does not answer.
        """
        check_id("response", response_id, param)
        size: Any = sa.func.octet_length(responses.c.body) + sa.func.octet_length(responses.c.input)
        columns: Any = (
            responses.c.id,
            responses.c.previous_id,
            responses.c.body,
            responses.c.input,
        )
        chain: Any = (
            sa.select(*columns, sa.literal(1).label("turn"), size.label("size"))
            .where(*_visible(responses, scope), responses.c.id == response_id)
            .cte("chain", recursive=True)
        )
        chain = chain.union_all(
            sa.select(*columns, chain.c.turn + 1, chain.c.size + size).where(
                *_visible(responses, scope),
                responses.c.id == chain.c.previous_id,
                chain.c.turn <= MAX_TURNS,
                chain.c.size <= MAX_CONVERSATION_BYTES,
            )
        )
        async with transaction(self._engine) as connection:
            rows = (await connection.execute(sa.select(chain).order_by(chain.c.turn.desc()))).all()
        if not rows:
            raise not_found("response", response_id, param)
        first = rows[0]
        if first.turn > MAX_TURNS:
            refuse(param, f"the conversation has more than {MAX_TURNS} responses")
        if first.size > MAX_CONVERSATION_BYTES:
            refuse(param, f"the conversation is longer than {MAX_CONVERSATION_BYTES} bytes")
        if first.previous_id is not None:
            raise not_found("response", first.previous_id, param)
        return [Stored(row.id, row.previous_id, row.body, row.input) for row in rows]

    async def delete(self, scope: Scope, response_id: str) -> None:
        """Forgets a response.

        Raises:
            MeshError: `NOT_FOUND`.
            StoreUnavailableError: The database does not answer.
        """
        check_id("response", response_id, "response_id")
        async with transaction(self._engine) as connection:
            done = await connection.execute(
                responses.delete()
                .where(*_visible(responses, scope), responses.c.id == response_id)
                .returning(responses.c.id)
            )
            if done.one_or_none() is None:
                raise not_found("response", response_id, "response_id")

    async def sweep(self) -> int:
        """Forgets expired responses, at most 1,000 of them; returns how many.

        Raises:
            StoreUnavailableError: The database does not answer.
        """
        expired = (
            sa.select(responses.c.id).where(responses.c.expire_time <= sa.func.now()).limit(_SWEPT)
        )
        async with transaction(self._engine) as connection:
            done = await connection.execute(
                responses.delete().where(responses.c.id.in_(expired)).returning(responses.c.id)
            )
            return len(done.all())


def _visible(table: sa.Table, scope: Scope) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        table.c.tenant == scope.tenant,
        table.c.project == scope.project,
        table.c.expire_time > sa.func.now(),
    )
