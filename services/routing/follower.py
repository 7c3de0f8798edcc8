"""Keeps the book current with what any replica writes, and counts in the store."""

import asyncio
import contextlib
import logging
from typing import Any

import asyncpg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from services.kit.database import create_tables
from services.kit.errors import MeshError
from services.routing.book import Book
from services.routing.postgres_store import CHANNEL, metadata
from services.routing.splits import SplitCounts
from services.routing.store import DocumentStore

log = logging.getLogger(__name__)

# A connection that died without a word is noticed within the sum of the two.
_PING_INTERVAL_S = 0.5
_PING_TIMEOUT_S = 0.5

_CONNECT_TIMEOUT_S = 5.0
_RETRY_S = 0.25
_COUNT_INTERVAL_S = 1.0


class Follower:
    """Follows the notifications of PostgreSQL on a connection of its own.

    It listens first and loads everything then, after every connection that it makes and after
    every notification: there is little to load. While PostgreSQL is out of reach the book stays as
    it is.

    Attributes:
        ready: Set once the book has been loaded for the first time.

    Args:
        url: `postgresql+asyncpg://…`, as SQLAlchemy takes it.
        engine: Makes the tables where they are missing.
        store: Where the documents are read from.
        book: What is kept current.
    """

    def __init__(self, url: str, engine: AsyncEngine, store: DocumentStore, book: Book) -> None:
        self.ready = asyncio.Event()
        self._dsn = sa.make_url(url).set(drivername="postgresql").render_as_string(False)
        self._engine = engine
        self._store = store
        self._book = book
        self._in_touch = True
        self._is_stale = False
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Follows until it is cancelled."""
        has_tables = False
        while True:
            try:
                if not has_tables:
                    await create_tables(self._engine, metadata)
                    has_tables = True
                await self._follow()
            except (
                OSError,
                sa.exc.DBAPIError,
                asyncpg.PostgresError,
                asyncpg.InterfaceError,
                MeshError,
            ) as error:
                if self._in_touch:
                    log.warning(
                        "PostgreSQL is out of reach; routing by the policies in memory",
                        extra={"error": repr(error)},
                    )
                self._in_touch = False
            await asyncio.sleep(_RETRY_S)

    async def _follow(self) -> None:
        connection = await asyncpg.connect(
            self._dsn, timeout=_CONNECT_TIMEOUT_S, command_timeout=_CONNECT_TIMEOUT_S
        )
        try:
            connection.add_termination_listener(self._on_termination)
            await connection.add_listener(CHANNEL, self._on_notification)
            self._is_stale = True
            while True:
                self._wake.clear()
                if self._is_stale:
                    self._is_stale = False
                    await self._book.reload(self._store)
                    if not self._in_touch:
                        log.info("PostgreSQL is back")
                    self._in_touch = True
                    self.ready.set()
                await connection.execute("SELECT 1", timeout=_PING_TIMEOUT_S)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), _PING_INTERVAL_S)
        finally:
            connection.terminate()

    def _on_notification(self, _connection: Any, _pid: int, _channel: str, _payload: Any) -> None:
        self._is_stale = True
        self._wake.set()

    def _on_termination(self, _connection: Any) -> None:
        self._wake.set()


async def store_counts(counts: SplitCounts, store: DocumentStore) -> None:
    """Takes counts to the store every second, until it is cancelled, and then once more."""
    try:
        while True:
            await asyncio.sleep(_COUNT_INTERVAL_S)
            await _store_once(counts, store)
    finally:
        await _store_once(counts, store)


async def _store_once(counts: SplitCounts, store: DocumentStore) -> None:
    taken = counts.take()
    if not taken:
        return
    try:
        await store.add_counts(taken)
    except MeshError:  # They wait for the store to be back; there are as many as there are targets.
        counts.give_back(taken)
