"""Documents in PostgreSQL, schema `routing`. Every write notifies `CHANNEL` when it commits."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from infermesh.errors.v1 import errors_pb2
from services.kit.database import transaction
from services.kit.errors import MeshError
from services.routing.store import MAX_DOCUMENTS, SPLIT, Counts, Document

CHANNEL = "infermesh_routing"
"""Where writes are told of."""

metadata = sa.MetaData(schema="routing")

_documents = sa.Table(
    "documents",
    metadata,
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("body", sa.LargeBinary, nullable=False),
)

_counts = sa.Table(
    "split_counts",
    metadata,
    sa.Column("alias", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("calls", sa.BigInteger, nullable=False),
)


class PostgresDocumentStore:
    """A `DocumentStore` in PostgreSQL."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def all(self) -> Sequence[Document]:
        """See `DocumentStore`."""
        async with transaction(self._engine) as connection:
            rows = await connection.execute(sa.select(*_documents.c).limit(MAX_DOCUMENTS))
            return [Document(*row) for row in rows]

    async def add(self, document: Document) -> bool:
        """See `DocumentStore`."""
        statement = insert(_documents).values(document._asdict()).on_conflict_do_nothing()
        async with transaction(self._engine) as connection:
            await _require_room(connection)
            return await _changed(connection, statement.returning(_documents.c.name))

    async def put(self, document: Document) -> None:
        """See `DocumentStore`."""
        statement = insert(_documents).values(document._asdict())
        statement = statement.on_conflict_do_update(
            index_elements=[_documents.c.kind, _documents.c.name], set_={"body": document.body}
        )
        async with transaction(self._engine) as connection:
            await _require_room(connection)
            await _changed(connection, statement.returning(_documents.c.name))

    async def replace(self, document: Document) -> bool:
        """See `DocumentStore`."""
        statement = (
            sa.update(_documents)
            .where(_is(document.kind, document.name))
            .values(body=document.body)
            .returning(_documents.c.name)
        )
        async with transaction(self._engine) as connection:
            return await _changed(connection, statement)

    async def delete(self, kind: str, name: str) -> bool:
        """See `DocumentStore`."""
        statement = sa.delete(_documents).where(_is(kind, name)).returning(_documents.c.name)
        async with transaction(self._engine) as connection:
            if kind == SPLIT:
                await connection.execute(sa.delete(_counts).where(_counts.c.alias == name))
            return await _changed(connection, statement)

    async def add_counts(self, counts: Counts) -> None:
        """See `DocumentStore`."""
        aliases = {alias for alias, _ in counts}
        query = sa.select(_documents.c.name).where(
            _documents.c.kind == SPLIT, _documents.c.name.in_(aliases)
        )
        async with transaction(self._engine) as connection:
            # A split that is deleted meanwhile waits, and takes the counts with it.
            known = set((await connection.execute(query.with_for_update(read=True))).scalars())
            rows = [
                {"alias": alias, "model": model, "calls": calls}
                # In one order, so that replicas that write at once do not wait for each other.
                for (alias, model), calls in sorted(counts.items())
                if alias in known
            ]
            if not rows:
                return
            statement = insert(_counts).values(rows)
            await connection.execute(
                statement.on_conflict_do_update(
                    index_elements=[_counts.c.alias, _counts.c.model],
                    set_={"calls": _counts.c.calls + statement.excluded.calls},
                )
            )

    async def counts(self) -> Counts:
        """See `DocumentStore`."""
        async with transaction(self._engine) as connection:
            rows = await connection.execute(sa.select(*_counts.c))
            return {(row.alias, row.model): row.calls for row in rows}


def _is(kind: str, name: str) -> "sa.ColumnElement[bool]":
    return sa.and_(_documents.c.kind == kind, _documents.c.name == name)


async def _changed(connection: AsyncConnection, statement: Any) -> bool:
    if (await connection.execute(statement)).first() is None:
        return False
    await connection.execute(sa.select(sa.func.pg_notify(CHANNEL, "")))
    return True


async def _require_room(connection: AsyncConnection) -> None:
    count = await connection.execute(sa.select(sa.func.count()).select_from(_documents))
    if count.scalar_one() >= MAX_DOCUMENTS:
        raise MeshError(
            errors_pb2.ERROR_REASON_FAILED_PRECONDITION,
            f"There are {MAX_DOCUMENTS} policies, routes and splits already; delete some first.",
        )
