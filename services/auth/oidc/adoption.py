"""Makes the tenants and projects that tokens bring with them visible among the others."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from services.kit.errors import MeshError

log = logging.getLogger(__name__)

_MAX_KNOWN = 10_000
_RETRY_S = 5.0


class Adoption:
    """Makes each pair of tenant and project once, behind the calls that bring them.

    Calls never wait for it: with PostgreSQL away they pass, and the pairs are made later.

    Args:
        make: Makes a tenant's project, and the tenant, where they do not exist. Raises `MeshError`.
    """

    def __init__(self, make: Callable[[str, str], Awaitable[None]]) -> None:
        self._make = make
        # In the order in which they came; those that are made stay, so that they are known.
        self._known: dict[tuple[str, str], None] = {}
        self._pending: list[tuple[str, str]] = []
        self._wanted = asyncio.Event()

    def note(self, tenant: str, project: str) -> None:
        """Takes note of a pair."""
        pair = (tenant, project)
        if pair in self._known:
            return
        if len(self._known) >= _MAX_KNOWN:
            # What waits is not lost: it is noted again with a token's next verification.
            self._known.clear()
            self._pending.clear()
        self._known[pair] = None
        self._pending.append(pair)
        self._wanted.set()

    async def run(self) -> None:
        """Makes what is noted until it is cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while self._pending:
                pair = self._pending[0]
                try:
                    await self._make(*pair)
                except MeshError as error:
                    log.debug("a tenant is not made yet", extra={"error": error.reason_name})
                    await asyncio.sleep(_RETRY_S)
                    continue
                log.info("a token's project", extra={"tenant": pair[0], "project": pair[1]})
                if self._pending and self._pending[0] == pair:
                    del self._pending[0]
