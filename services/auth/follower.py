"""Keeps the keyring current with what any replica writes."""

import asyncio
import contextlib
import logging
from typing import Any

import asyncpg
import sqlalchemy as sa

from services.auth.keyring import Keyring
from services.auth.postgres_store import CHANNEL
from services.auth.store import KeyStore
from services.kit.errors import MeshError

log = logging.getLogger(__name__)

# A connection that died without a word is noticed within the sum of the two.
_PING_INTERVAL_S = 0.5
_PING_TIMEOUT_S = 0.5

_CONNECT_TIMEOUT_S = 5.0
_RETRY_S = 0.25
_MAX_PENDING = 1000


class Follower:
    """Follows the notifications of PostgreSQL on a connection of its own.

    It listens first and loads all keys then, after every connection that it makes: nothing that
    is committed at any time is missed. While PostgreSQL is out of reach the ring stays as it is.

    Attributes:
        ready: Set once the ring has been loaded for the first time.

    Args:
        url: `postgresql+asyncpg://…`, as SQLAlchemy takes it.
        store: Where the keys are read from.
        ring: The keys to keep current.
    """

    def __init__(self, url: str, store: KeyStore, ring: Keyring) -> None:
        self.ready = asyncio.Event()
        self._dsn = sa.make_url(url).set(drivername="postgresql").render_as_string(False)
        self._store = store
        self._ring = ring
        self._in_touch = True
        self._pending: set[str] = set()
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Follows until it is cancelled."""
        while True:
            try:
                await self._follow()
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, MeshError) as error:
                if self._in_touch:
                    log.warning(
                        "PostgreSQL is out of reach; deciding from memory",
                        extra={"error": repr(error), "keys": len(self._ring)},
                    )
                self._in_touch = False
            await asyncio.sleep(_RETRY_S)

    async def _follow(self) -> None:
        connection = await asyncpg.connect(
            self._dsn, timeout=_CONNECT_TIMEOUT_S, command_timeout=_CONNECT_TIMEOUT_S
        )
        try:
            self._pending.clear()
            connection.add_termination_listener(self._on_termination)
            await connection.add_listener(CHANNEL, self._on_notification)
            await self._load()
            if not self._in_touch:
                log.info("PostgreSQL is back", extra={"keys": len(self._ring)})
            self._in_touch = True
            self.ready.set()
            while True:
                await self._apply_pending()
                await connection.execute("SELECT 1", timeout=_PING_TIMEOUT_S)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), _PING_INTERVAL_S)
        finally:
            connection.terminate()

    async def _load(self) -> None:
        async with self._ring.changing:
            await self._ring.load(self._store.all())

    async def _apply_pending(self) -> None:
        self._wake.clear()
        if not self._pending:
            return
        if len(self._pending) >= _MAX_PENDING:
            self._pending.clear()
            await self._load()
            return
        async with self._ring.changing:
            changed = tuple(self._pending)
            self._pending.clear()
            self._ring.apply(await self._store.get(changed))

    def _on_notification(self, _connection: Any, _pid: int, _channel: str, payload: Any) -> None:
        # At the bound everything is loaded anew, so that which keys changed no longer matters.
        if len(self._pending) < _MAX_PENDING:
            self._pending.add(str(payload))
        self._wake.set()

    def _on_termination(self, _connection: Any) -> None:
        self._wake.set()
