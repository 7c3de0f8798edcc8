"""Where calls come in over TLS, and who gets so far as to make any."""

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any, cast

from services.kit.grpc_server.connection import Connection
from services.kit.tls import Allowed, TlsFolder, peer_name

log = logging.getLogger(__name__)

BACKLOG = 1024
"""Connections that the system holds until they are taken."""

_HANDSHAKE_S = 5.0
_SHUTDOWN_S = 1.0
_LOOK_S = 1.0


class TlsConnection(Connection):
    """Speaks HTTP/2 with one peer that the server admits.

    Args:
        args: Those of `Connection`.
        allowed: Whom the server admits.
    """

    def __init__(self, *args: Any, allowed: Allowed) -> None:
        super().__init__(*args)
        self._allowed = allowed
        self._good_until = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Says the first word, or none to whom the server does not admit."""
        certificate = transport.get_extra_info("peercert")
        name = peer_name(certificate)
        speaks_h2 = transport.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
        if name not in self._allowed or not speaks_h2:
            self._turn_away(transport, name, speaks_h2)
            return
        self._good_until = ssl.cert_time_to_seconds(certificate["notAfter"])
        super().connection_made(transport)

    def check(self) -> None:
        """Sees off a peer whose certificate has expired, besides what makes no progress.

        What it has running finishes. It comes again for more, with the certificate of that day.
        """
        if time.time() > self._good_until:
            self.stop()
        super().check()

    def _turn_away(self, transport: asyncio.BaseTransport, name: str, speaks_h2: bool) -> None:
        self._is_closing = True
        self._closed = _nobody  # the server was never told of it
        cast(asyncio.Transport, transport).abort()
        self.shared.turned_away += 1
        host = (transport.get_extra_info("peername") or ("",))[0]
        why = "" if speaks_h2 else ", which does not speak HTTP/2"
        self.shared.last_turned_away = f"{name or 'nobody'} at {host}{why}"


class TlsListener:
    """Takes connections on one socket, with what a folder holds at the time.

    Args:
        sock: Bound; closed with the listener.
        folder: The server's files.
        make: Makes a protocol for each connection.
    """

    def __init__(
        self, sock: socket.socket, folder: TlsFolder, make: Callable[[], asyncio.Protocol]
    ) -> None:
        self._sock = sock
        self._folder = folder
        self._make = make
        self._version: object = None
        self._server: asyncio.AbstractServer | None = None
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Takes connections from now on.

        Raises:
            OSError: The files cannot be read.
        """
        self._version = self._folder.version()
        await self._listen(self._folder.server_context())
        self._watching = asyncio.create_task(self._watch())

    def close(self) -> None:
        """Takes no more connections; those that stand stay."""
        if self._watching is not None:
            self._watching.cancel()
        if self._server is not None:
            self._server.close()
        self._sock.close()

    async def _listen(self, context: ssl.SSLContext) -> None:
        # Another context, not this one changed: what it trusted before can be taken out of none.
        # A connection that waits in between is not lost, the socket is the same. (One that the loop
        # of asyncio itself has half taken would be; uvloop takes them whole.)
        before = self._server
        self._server = await asyncio.get_running_loop().create_server(
            self._make,
            sock=self._sock.dup(),
            backlog=BACKLOG,
            ssl=context,
            ssl_handshake_timeout=_HANDSHAKE_S,
            ssl_shutdown_timeout=_SHUTDOWN_S,
        )
        if before is not None:
            before.close()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            version = self._folder.version()
            if version is None or version == self._version:
                continue
            try:
                await self._listen(self._folder.server_context())
            except OSError as error:
                # Half of them may be there yet; the old ones are good for a while.
                log.warning("renewed TLS files cannot be used", extra={"error": str(error)})
                continue
            self._version = version
            log.info("TLS files renewed")


def _nobody(_: Connection) -> None:
    pass
