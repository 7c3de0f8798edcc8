"""Calls one gRPC method of another part of the mesh, for as little as a call can take.

grpc.aio takes some 200 µs of CPU for a call, more than what is asked about on every request may
cost. This knows one method whose messages fit into a window, on one connection that it keeps open;
where there is no answer it says None, and whoever asks goes on without.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator
from pathlib import Path

from services.kit import tls
from services.kit.grpc_server import wire
from services.kit.unary_connection import OnAnswer, UnaryConnection

log = logging.getLogger(__name__)

UNIX = "unix:"
"""What an address begins with that is a socket's path."""

_CONNECT_S = 1.0
_BACKOFF_S = 0.2
# How long a server may be away before it is worth a word.
_PATIENCE_S = 5.0
# How often renewed certificates are looked for.
_LOOK_S = 1.0


class UnaryClient:
    """Calls one method.

    Args:
        address: `host:port`, or `unix:` and a path.
        method: `/package.Service/Method`.
        peer: The part's name as in its certificate. Example: `service/routing`.
        tls_dir: The folder with this part's own files; None for no TLS.
        timeout_s: How long an answer is waited for.
    """

    def __init__(
        self, address: str, method: str, peer: str, tls_dir: Path | None, timeout_s: float
    ) -> None:
        self._address = address
        self._peer = peer
        self._folder = None if tls_dir is None else tls.TlsFolder(tls_dir)
        self._timeout_s = timeout_s
        self._connection: UnaryConnection | None = None
        self._block = wire.header_block(
            (
                (":method", "POST"),
                (":scheme", "http" if tls_dir is None else "https"),
                (":path", method),
                (":authority", tls.dns_of(peer)),
                ("content-type", "application/grpc"),
                ("te", "trailers"),
            )
        )

    def ask(self, message: bytes, on_answer: OnAnswer) -> None:
        """Asks; `on_answer` is called once, at once where nobody can be asked."""
        connection = self._connection
        if connection is None or not connection.ask(message, on_answer):
            on_answer(None)

    async def run(self) -> None:
        """Keeps a connection open, forever."""
        try:
            await self._stay_connected()
        finally:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.abort()

    async def _stay_connected(self) -> None:
        loop = asyncio.get_running_loop()
        tell_at = loop.time() + _PATIENCE_S
        while True:
            began = loop.time()
            try:
                connection, version = await self._connect()
            except OSError as error:
                if began > tell_at:  # Parts start side by side, and one that restarts is soon back.
                    tell_at = math.inf
                    log.warning("a server is away", extra={"peer": self._peer, "error": str(error)})
                await asyncio.sleep(_BACKOFF_S)
                continue
            if tell_at == math.inf:
                log.warning("a server is back", extra={"peer": self._peer})
            before, self._connection = self._connection, connection
            if before is not None:
                before.finish()
            await self._until_over(connection, version)
            tell_at = loop.time() + _PATIENCE_S
            # A server that hangs up each time is not called all the time.
            await asyncio.sleep(max(0.0, began + _BACKOFF_S - loop.time()))

    async def _connect(self) -> tuple[UnaryConnection, object]:
        loop = asyncio.get_running_loop()
        version = context = name = None
        if self._folder is not None:
            version, context = self._folder.version(), self._folder.client_context()
            name = tls.dns_of(self._peer)

        connection = UnaryConnection(self._block, self._timeout_s)

        def make() -> UnaryConnection:
            return connection

        try:
            async with asyncio.timeout(_CONNECT_S):
                if self._address.startswith(UNIX):
                    path = self._address.removeprefix(UNIX)
                    await loop.create_unix_connection(make, path)
                else:
                    host, _, port = self._address.rpartition(":")
                    await loop.create_connection(
                        make, host.strip("[]"), int(port), ssl=context, server_hostname=name
                    )
                await connection.greeted
        except BaseException as error:
            connection.abort()
            if isinstance(error, TimeoutError):
                raise OSError("it does not answer") from None
            raise
        if connection.ended.done():
            raise OSError("it hung up")
        return connection, version

    async def _until_over(self, connection: UnaryConnection, version: object) -> None:
        """Waits until another connection is needed: this one ends, or there are other files."""
        while not connection.ended.done():
            await asyncio.wait([connection.ended], timeout=_LOOK_S if self._folder else None)
            if self._folder is not None and self._folder.version() != version:
                return


@contextlib.asynccontextmanager
async def open_client(client: UnaryClient) -> AsyncIterator[None]:
    """Keeps a client connected for as long as the context lasts."""
    async with asyncio.TaskGroup() as tasks:
        # A task that fails takes the process down with it, and is not lost.
        task = tasks.create_task(client.run())
        yield
        task.cancel()
