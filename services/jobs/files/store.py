"""Keeps files in PostgreSQL, in pieces, until they expire."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.jobs.errors import check_id, not_found
from services.jobs.identity import Scope
from services.jobs.tables import file_pieces, files
from services.kit.database import transaction

_UPLOAD = timedelta(hours=1)
_SWEPT = 50


@dataclass(frozen=True)
class File:
    """What is known of a file, in the order of the table's columns below."""

    id: str
    filename: str
    purpose: str
    bytes: int
    create_time: datetime
    expire_time: datetime


_COLUMNS: Any = (
    files.c.id,
    files.c.filename,
    files.c.purpose,
    files.c.bytes,
    files.c.create_time,
    files.c.expire_time,
)


class FileStore:
    """The files of all tenants; each sees its own.

    Args:
        engine: The database.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def begin(self, scope: Scope, file_id: str) -> None:
        """Makes a file that nobody sees until it is whole, and that is forgotten if it never is."""
        async with transaction(self._engine) as connection:
            await begin(connection, scope, file_id)

    async def append(self, scope: Scope, file_id: str, number: int, data: bytes) -> int:
        """Adds a piece; they count from 0. Returns how many bytes the tenant's files have now."""
        async with transaction(self._engine) as connection:
            await append(connection, file_id, number, data)
            # At once, so that uploads that are under way see each other.
            await connection.execute(
                files.update().where(files.c.id == file_id).values(bytes=files.c.bytes + len(data))
            )
            return await _size_of(connection, scope.tenant)

    async def finish(
        self, file_id: str, filename: str, purpose: str, size: int, ttl_s: int
    ) -> File:
        """Lets the file be seen; returns it."""
        async with transaction(self._engine) as connection:
            return await finish(connection, file_id, filename, purpose, size, ttl_s)

    async def abandon(self, file_id: str) -> None:
        """Forgets a file that will not be whole."""
        async with transaction(self._engine) as connection:
            await connection.execute(files.delete().where(files.c.id == file_id))

    async def size_of(self, tenant: str) -> int:
        """Returns how many bytes a tenant's files have, those that are under way included."""
        async with transaction(self._engine) as connection:
            return await _size_of(connection, tenant)

    async def get(self, scope: Scope, file_id: str, param: str = "file_id") -> File:
        """Returns a file.

        Raises:
            MeshError: `NOT_FOUND`.
        """
        check_id("file", file_id, param)
        async with transaction(self._engine) as connection:
            found = await connection.execute(
                sa.select(*_COLUMNS).where(*_visible(scope), files.c.id == file_id)
            )
            row = found.one_or_none()
        if row is None:
            raise not_found("file", file_id, param)
        return File(*row)

    async def list_page(
        self, scope: Scope, limit: int, *, is_ascending: bool, after: str, purpose: str
    ) -> list[File]:
        """Returns files by time of creation, after the one with the id `after`.

        Raises:
            MeshError: `NOT_FOUND`, there is no such file.
        """
        if purpose not in ("", "batch", "batch_output"):
            return []
        query = sa.select(*_COLUMNS).where(*_visible(scope)).limit(limit)
        place = sa.tuple_(files.c.create_time, files.c.id)
        if purpose:
            query = query.where(files.c.purpose == purpose)
        if after:
            last = await self.get(scope, after, "after")
            at = sa.tuple_(sa.literal(last.create_time), sa.literal(last.id))
            query = query.where(place > at if is_ascending else place < at)
        order = (files.c.create_time, files.c.id)
        query = query.order_by(*(order if is_ascending else (each.desc() for each in order)))
        async with transaction(self._engine) as connection:
            return [File(*row) for row in await connection.execute(query)]

    async def piece(self, file_id: str, number: int) -> bytes | None:
        """Returns a piece; None after the last, and where the file is gone."""
        query = sa.select(file_pieces.c.data).where(
            file_pieces.c.file_id == file_id, file_pieces.c.number == number
        )
        async with transaction(self._engine) as connection:
            data = (await connection.execute(query)).scalar_one_or_none()
        return None if data is None else bytes(data)

    async def delete(self, scope: Scope, file_id: str) -> None:
        """Deletes a file.

        Raises:
            MeshError: `NOT_FOUND`.
        """
        check_id("file", file_id, "file_id")
        async with transaction(self._engine) as connection:
            done = await connection.execute(
                files.delete().where(*_visible(scope), files.c.id == file_id).returning(files.c.id)
            )
            if done.one_or_none() is None:
                raise not_found("file", file_id, "file_id")

    async def sweep(self) -> int:
        """Forgets some of the files that have expired; returns how many."""
        expired = sa.select(files.c.id).where(files.c.expire_time <= sa.func.now()).limit(_SWEPT)
        async with transaction(self._engine) as connection:
            done = await connection.execute(
                files.delete().where(files.c.id.in_(expired)).returning(files.c.id)
            )
            return len(done.all())


async def begin(connection: AsyncConnection, scope: Scope, file_id: str) -> None:
    """As `FileStore.begin`, in a transaction that runs."""
    now = datetime.now(UTC)
    await connection.execute(
        files.insert().values(
            id=file_id,
            tenant=scope.tenant,
            project=scope.project,
            filename="",
            purpose="",
            bytes=0,
            is_whole=False,
            create_time=now,
            expire_time=now + _UPLOAD,
        )
    )


async def append(connection: AsyncConnection, file_id: str, number: int, data: bytes) -> None:
    """As `FileStore.append`, in a transaction that runs."""
    await connection.execute(file_pieces.insert().values(file_id=file_id, number=number, data=data))


async def finish(
    connection: AsyncConnection, file_id: str, filename: str, purpose: str, size: int, ttl_s: int
) -> File:
    """As `FileStore.finish`, in a transaction that runs."""
    done = await connection.execute(
        files.update()
        .where(files.c.id == file_id)
        .values(
            filename=filename,
            purpose=purpose,
            bytes=size,
            is_whole=True,
            expire_time=files.c.create_time + timedelta(seconds=ttl_s),
        )
        .returning(*_COLUMNS)
    )
    return File(*done.one())


async def _size_of(connection: AsyncConnection, tenant: str) -> int:
    query = sa.select(sa.func.coalesce(sa.func.sum(files.c.bytes), 0)).where(
        files.c.tenant == tenant, files.c.expire_time > sa.func.now()
    )
    return int((await connection.execute(query)).scalar_one())


def _visible(scope: Scope) -> Iterable[sa.ColumnElement[bool]]:
    return (
        files.c.tenant == scope.tenant,
        files.c.project == scope.project,
        files.c.is_whole,
        files.c.expire_time > sa.func.now(),
    )
