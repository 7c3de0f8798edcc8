"""A lean HTTP/1.1 client for the one engine that the proxy stands beside.

It keeps connections alive, parses with `httptools`, holds back an engine whose answer is read
slowly, and stops an engine by closing its connection: HTTP/1.1 has no other way to cancel. Where
the engine is on the network it speaks TLS and checks the certificate against the system's
authorities, or those in `SSL_CERT_FILE`.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from services.inference.http_connection import Connection, Take
from services.inference.transport_errors import (
    EngineConnectError,
    EngineConnectionError,
    EngineOvertimeError,
    EngineTimeoutError,
)

__all__ = [
    "EngineClient",
    "EngineConnectError",
    "EngineConnectionError",
    "EngineOvertimeError",
    "EngineTimeoutError",
    "Exchange",
    "Take",
]

_CONNECT_TIMEOUT_S = 2.0
# A cloud is farther away, and its handshake takes turns.
_TLS_CONNECT_TIMEOUT_S = 10.0
_WHOLE_STEP_BYTES = 64 * 1024
# How long a stream that comes fast is left to gather. Whoever sends 64 pieces in 10 ms has them
# taken and passed on as 5 in place of 64, each of which costs as much.
_REST_S = 0.002

MAX_BODY_BYTES = 24 * 1024 * 1024
"""The longest body that is read as a whole; as long as the longest gRPC message."""


class Exchange:
    """One answer that is being read: its head first, then its body piece by piece.

    Use it as a context manager: leaving it before the body is complete closes the connection,
    which tells the engine to stop.

    Attributes:
        status: The HTTP status.
        content_type: The content type as the engine wrote it.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.status = connection.status
        self.content_type = connection.content_type

    async def read(self, at_least: int = 1) -> bytes:
        """Returns what has arrived since the last call, in one piece; b"" at the end.

        Args:
            at_least: How many bytes to wait for, unless the body ends before; at most 64 KiB.

        Raises:
            EngineConnectionError: The connection broke before the end.
            EngineTimeoutError: Nothing came for the idle timeout.
        """
        return await self._connection.read(at_least)

    def offer(self, take: Take | None) -> None:
        """Has what comes while `read` waits offered to `take` first, from now on.

        Args:
            take: Returns whether it took the piece, which `read` then never gives; it must not
                wait, nor raise.
        """
        self._connection.take = take

    async def read_all(self, max_bytes: int = MAX_BODY_BYTES) -> bytes:
        """Returns the whole body.

        Raises:
            EngineConnectionError: The connection broke, or the body is longer than `max_bytes`.
            EngineTimeoutError: Nothing came for the idle timeout.
        """
        pieces = []
        size = 0
        while piece := await self.read(_WHOLE_STEP_BYTES):
            pieces.append(piece)
            size += len(piece)
            if size > max_bytes:
                raise EngineConnectionError(f"the engine's answer is over {max_bytes} bytes")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    @property
    def is_complete(self) -> bool:
        """Whether the whole body has arrived; what is not read yet can be read without waiting."""
        return self._connection.is_complete

    def hasten(self) -> None:
        """Ends a rest: what comes next is taken at once."""
        self._connection.go_on()

    def close(self) -> None:
        """Gives the connection back when the body is complete, else closes it."""
        self._connection.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class EngineClient:
    """Connections to one engine.

    Args:
        url: Where the engine listens, `http://host:port` or `https://host`.
        idle_timeout_s: The longest silence in the middle of an exchange.
        headers: What every request carries besides; their values hold no line breaks.
        total_timeout_s: The longest that an exchange may take, from the request on.
        max_idle: The most connections that are kept open between exchanges.

    Attributes:
        idle_timeout_s: The longest silence in the middle of an exchange.
        total_timeout_s: The longest that an exchange may take.
        busy: The connections that carry an exchange now.
    """

    def __init__(
        self,
        url: str,
        *,
        idle_timeout_s: float,
        headers: Mapping[str, str] | None = None,
        total_timeout_s: float = 3600.0,
        max_idle: int = 64,
    ) -> None:
        parts = urlsplit(url)
        is_secure = parts.scheme == "https"
        self._tls = ssl.create_default_context() if is_secure else None
        self._connect_timeout_s = _TLS_CONNECT_TIMEOUT_S if is_secure else _CONNECT_TIMEOUT_S
        self._host = parts.hostname or "127.0.0.1"
        self._port = parts.port or (443 if is_secure else 80)
        self._prefix = parts.path.rstrip("/")
        more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        self._head = f"HTTP/1.1\r\nhost: {parts.netloc}\r\n{more}"
        self.idle_timeout_s = idle_timeout_s
        self.total_timeout_s = total_timeout_s
        self._idle: deque[Connection] = deque(maxlen=max_idle)
        self.busy: set[Connection] = set()
        self._is_hurried = False
        self._resting: list[Connection] = []

    async def post(self, path: str, body: bytes) -> Exchange:
        """Sends JSON and returns when the head of the answer is there.

        Raises:
            EngineConnectError: The engine does not take connections.
            EngineConnectionError: The connection broke before the head was complete.
            EngineTimeoutError: Nothing came for the idle timeout.
        """
        head = (
            f"POST {self._prefix}{path} {self._head}content-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        return await self._send(head.encode(), body)

    async def get(self, path: str) -> Exchange:
        """Asks for a resource and returns when the head is there. Raises like `post`."""
        return await self._send(f"GET {self._prefix}{path} {self._head}\r\n".encode(), b"")

    async def _send(self, head: bytes, body: bytes) -> Exchange:
        while self._idle:
            connection = self._idle.pop()
            try:
                await connection.send(head, body)
                return Exchange(connection)
            except EngineConnectionError:
                # The engine closed it between exchanges, as it may at any time. Nothing came back,
                # so nothing was answered: once more, on a fresh connection. Not where we gave up on
                # it ourselves.
                if connection.has_answered or self._is_hurried:
                    raise
                break
        connection = await self._connect()
        await connection.send(head, body)
        return Exchange(connection)

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await loop.create_connection(
                    lambda: Connection(self), self._host, self._port, ssl=self._tls
                )
        except (OSError, TimeoutError) as error:
            raise EngineConnectError(str(error) or "connect timed out") from None
        return connection

    def keep(self, connection: Connection) -> None:
        """Takes a connection back for the next exchange."""
        if len(self._idle) == self._idle.maxlen:
            self._idle.popleft().drop()
        self._idle.append(connection)

    def forget(self, connection: Connection) -> None:
        """Drops a connection that the engine closed between exchanges."""
        if connection in self._idle:
            self._idle.remove(connection)

    def rest(self, connection: Connection) -> None:
        """Has a connection go on in a moment, together with others: what they brought by then
        goes out together too."""
        if not self._resting:
            asyncio.get_running_loop().call_later(_REST_S, self._wake_resting)
        self._resting.append(connection)

    def _wake_resting(self) -> None:
        resting, self._resting = self._resting, []
        for connection in resting:
            connection.go_on()

    def hurry(self, silence_s: float | None) -> None:
        """Shortens the silence that exchanges under way may have.

        Their readers then get `EngineConnectionError` in place of `EngineTimeoutError`.

        Args:
            silence_s: The longest silence; None for the idle timeout again.
        """
        if silence_s is None and not self._is_hurried:
            return
        self._is_hurried = silence_s is not None
        for connection in list(self.busy):
            connection.hurry(silence_s)

    def close(self) -> None:
        """Closes the connections that no exchange uses."""
        while self._idle:
            self._idle.pop().drop()
