"""Keeps what replicas decide by current with what any of them writes."""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Any, Protocol

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


class Followed(Protocol):
    """Something in memory that is written elsewhere too.

    Attributes:
        channel: Where PostgreSQL tells of writes.
    """

    channel: str

    async def load(self) -> None:
        """Reads everything anew.

        Raises:
            MeshError: `STORE_UNAVAILABLE`.
        """

    async def apply(self, names: Sequence[str]) -> None:
        """Reads what was written, named as the notifications name it.

        Raises:
            MeshError: `STORE_UNAVAILABLE`.
        """


class FollowedKeys:
    """The keyring, as it is followed.

    Args:
        store: Where the keys are read from.
        ring: The keys to keep current.
    """

    channel = CHANNEL

    def __init__(self, store: KeyStore, ring: Keyring) -> None:
        self._store = store
        self._ring = ring

    async def load(self) -> None:
        """See `Followed`."""
        async with self._ring.changing:
            await self._ring.load(self._store.all())

    async def apply(self, names: Sequence[str]) -> None:
        """See `Followed`."""
        async with self._ring.changing:
            self._ring.apply(await self._store.get(names))


class Follower:
    """Follows the notifications of PostgreSQL on a connection of its own.

    It listens first and loads everything then, after every connection that it makes: nothing that
    is committed at any time is missed. While PostgreSQL is out of reach all stays as it is.

    Attributes:
        ready: Set once everything has been loaded for the first time.

    Args:
        url: `postgresql+asyncpg://…`, as SQLAlchemy takes it.
        followed: What to keep current, in the order in which it is loaded.
    """

    def __init__(self, url: str, followed: Sequence[Followed]) -> None:
        self.ready = asyncio.Event()
        self._dsn = sa.make_url(url).set(drivername="postgresql").render_as_string(False)
        self._followed = {each.channel: each for each in followed}
        self._in_touch = True
        self._pending: dict[str, set[str]] = {channel: set() for channel in self._followed}
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
            for channel, each in self._followed.items():
                self._pending[channel].clear()
                await connection.add_listener(channel, self._on_notification)
                await each.load()
            if not self._in_touch:
                log.info("PostgreSQL is back")
            self._in_touch = True
            self.ready.set()
            while True:
                await self._apply_pending()
                await connection.execute("SELECT 1", timeout=_PING_TIMEOUT_S)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), _PING_INTERVAL_S)
        finally:
            connection.terminate()

    async def _apply_pending(self) -> None:
        self._wake.clear()
        for channel, each in self._followed.items():
            names = self._pending[channel]
            if len(names) >= _MAX_PENDING:
                names.clear()
                await each.load()
            elif names:
                changed = tuple(names)
                names.clear()
                await each.apply(changed)

    def _on_notification(self, _connection: Any, _pid: int, channel: str, payload: Any) -> None:
        # At the bound everything is loaded anew, so that which names changed no longer matters.
        names = self._pending[channel]
        if len(names) < _MAX_PENDING:
            names.add(str(payload))
        self._wake.set()

    def _on_termination(self, _connection: Any) -> None:
        self._wake.set()
