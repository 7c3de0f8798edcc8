"""Writes down when keys were last used: now and then, many at a time, never per call."""

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime

from services.auth.keyring import Keyring
from services.auth.keys import utc_now
from services.auth.store import KeyStore
from services.kit.errors import MeshError

log = logging.getLogger(__name__)

_INTERVAL_S = 60.0
_BATCH = 1000


class LastUse:
    """Takes what the ring has seen to the store, once a minute.

    Args:
        ring: Knows which keys were used.
        store: Is told.
        now: The clock.
    """

    def __init__(
        self, ring: Keyring, store: KeyStore, now: Callable[[], datetime] = utc_now
    ) -> None:
        self._ring = ring
        self._store = store
        self._now = now

    async def run(self) -> None:
        """Writes until it is cancelled."""
        while True:
            await asyncio.sleep(_INTERVAL_S)
            await self.flush()

    async def flush(self) -> None:
        """Writes once. What a store that is away does not take is kept for the next time."""
        used = sorted(self._ring.take_used())
        for start in range(0, len(used), _BATCH):
            try:
                await self._store.touch(used[start : start + _BATCH], self._now())
            except MeshError as error:
                self._ring.give_back_used(used[start:])
                log.debug("last use is not written down", extra={"error": error.reason_name})
                return
