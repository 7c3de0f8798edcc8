"""Calls over HTTP/1.1 connections that stay, with a parser in C: the load must cost little.

What a chunk costs here is what it seems to be late when both run on one machine; a general HTTP
client takes several times that.
"""

import asyncio
import ssl
from collections.abc import Mapping
from typing import cast

import httptools

from services.cli.bench.answer import Call, Reading, now_s

_PATH = "/v1/chat/completions"


class Wire:
    """The way to one front door.

    Args:
        host: Its name or address.
        port: Its port.
        headers: What each call carries.
        trust: For TLS, whom to trust; None for plain connections.
        is_stream: Whether good answers come as streams.
    """

    def __init__(
        self,
        host: str,
        port: int,
        headers: Mapping[str, str],
        trust: ssl.SSLContext | None,
        *,
        is_stream: bool,
    ) -> None:
        self._host, self._port, self._trust = host, port, trust
        self._is_stream = is_stream
        shown = f"[{host}]" if ":" in host else host
        said = {"host": f"{shown}:{port}", "content-type": "application/json", **headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in said.items())
        self._head = f"POST {_PATH} HTTP/1.1\r\n{lines}content-length: ".encode()
        self._idle: list[_Connection] = []

    async def ask(self, body: bytes, call: Call) -> None:
        """Asks and reads the whole answer into the call; what goes wrong is its error.

        A connection that had waited and was closed meanwhile is no failure: another one is taken.
        """
        data = b"%s%d\r\n\r\n%s" % (self._head, len(body), body)
        loop = asyncio.get_running_loop()
        while True:
            connection = self._take()
            is_new = connection is None
            if connection is None:
                try:
                    _, connection = await loop.create_connection(
                        _Connection, self._host, self._port, ssl=self._trust
                    )
                except ssl.SSLError:
                    call.error = "tls"
                    return
                except OSError:
                    call.error = "no_connection"
                    return
            try:
                await connection.exchange(data, call, Reading(call, self._is_stream))
            finally:
                if connection.is_free:
                    self._idle.append(connection)
                else:
                    connection.close()
            if is_new or not connection.was_stale:
                return
            call.error = ""

    def close(self) -> None:
        """Closes the connections that wait."""
        while self._idle:
            self._idle.pop().close()

    def _take(self) -> "_Connection | None":
        while self._idle:
            connection = self._idle.pop()
            if connection.is_free:
                return connection
        return None


class _Connection(asyncio.Protocol):
    """A connection that one call at a time goes over."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._reading: Reading | None = None
        self._call: Call | None = None
        self._done: asyncio.Future[None] | None = None
        self._stays = True
        self._has_begun = False
        self._now = 0.0
        self.was_stale = False

    @property
    def is_free(self) -> bool:
        """Whether another call can go over it."""
        return self._stays and self._call is None and self._transport is not None

    async def exchange(self, data: bytes, call: Call, reading: Reading) -> None:
        """Sends a call and waits for the end of its answer."""
        if self._transport is None:
            call.error, self.was_stale = "connection_lost", True
            return
        self._call, self._reading = call, reading
        self._parser = httptools.HttpResponseParser(self)
        self._has_begun = self.was_stale = False
        self._done = self._loop.create_future()
        call.sent = now_s()
        self._transport.write(data)
        await self._done

    def close(self) -> None:
        """Closes it at once."""
        self._stays = False
        if self._transport is not None:
            self._transport.abort()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Reads a piece of an answer."""
        self._now = now_s()
        if self._call is None or self._parser is None:
            self.close()
            return
        self._has_begun = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            # What a callback raises comes as this too: no answer of a mesh.
            self._fail("not_http")

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the call that was on it."""
        self._transport = None
        self.was_stale = self._call is not None and not self._has_begun
        self._fail("connection_lost")

    # What the parser calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        """Hands a header on."""
        if self._reading is not None:
            self._reading.header(name, value)

    def on_headers_complete(self) -> None:
        """Hands the status on."""
        if self._reading is not None and self._parser is not None:
            self._reading.status(self._parser.get_status_code())

    def on_body(self, body: bytes) -> None:
        """Hands a piece of the body on."""
        if self._reading is not None:
            self._reading.body(body, self._now)

    def on_message_complete(self) -> None:
        """Ends the call."""
        if self._reading is not None and self._parser is not None:
            self._stays = self._parser.should_keep_alive()
            self._reading.end(self._now)
            self._finish()

    def _fail(self, error: str) -> None:
        self._stays = False
        if self._call is not None:
            self._call.error = self._call.error or error
            self._finish()

    def _finish(self) -> None:
        self._call = self._reading = None
        if self._done is not None and not self._done.done():
            self._done.set_result(None)
