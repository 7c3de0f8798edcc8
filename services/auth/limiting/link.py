"""A connection to Redis that costs little: calls go out as bytes, answers come back in order.

redis-py takes about 100 µs of CPU for a call on asyncio, several times what a decision may cost.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import hiredis
from redis.asyncio.connection import SSLConnection, parse_url

TIMEOUT_S = 0.25
"""After this long without an answer Redis is taken to be away."""

_MAX_REPLY_BYTES = 64 * 1024 * 1024

OnReply = Callable[[Any], None]
"""Called with the reply; with a `hiredis.ReplyError`, or a `LinkLostError`, where there is none."""


class LinkLostError(ConnectionError):
    """The connection is gone; whether Redis did what it was told is not known."""


class Link(asyncio.Protocol):
    """An open connection. It is not opened again; make another.

    Args:
        on_lost: Called once when it is gone, after every call that waits was told.
    """

    def __init__(self, on_lost: Callable[[], None] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader()
        self._waiting: deque[tuple[OnReply, float]] = deque()  # and until when
        # One for all that wait: to make one for each call takes longer than to send it.
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._is_open = False
        self.on_lost = on_lost

    @property
    def is_open(self) -> bool:
        """Whether calls can be made."""
        return self._is_open

    def send(self, packed: bytes, on_reply: OnReply) -> None:
        """Sends a packed command; `on_reply` is called once, in the order of the calls."""
        if not self._is_open:
            on_reply(LinkLostError("the connection is closed"))
            return
        self._waiting.append((on_reply, self._loop.time() + TIMEOUT_S))
        if self._timer is None:
            self._timer = self._loop.call_later(TIMEOUT_S, self._check)
        cast(asyncio.Transport, self._transport).write(packed)

    async def call(self, *parts: str | int | bytes) -> Any:
        """Sends a command and returns its reply.

        Raises:
            hiredis.ReplyError: Redis refuses it.
            LinkLostError: The connection is gone.
        """
        future: asyncio.Future[Any] = self._loop.create_future()

        def on_reply(reply: Any) -> None:
            if future.done():
                return
            if isinstance(reply, Exception):
                future.set_exception(reply)
            else:
                future.set_result(reply)

        self.send(cast(Any, hiredis).pack_command(parts), on_reply)
        return await future

    def close(self) -> None:
        """Lets go of the connection at once."""
        if self._transport is not None:
            self._transport.abort()
        self.connection_lost(None)

    def _check(self) -> None:
        self._timer = None
        if not self._waiting:
            return
        _, until = self._waiting[0]
        if self._loop.time() >= until:
            self.close()
        else:
            self._timer = self._loop.call_at(until, self._check)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes over the transport."""
        self._transport = cast(asyncio.Transport, transport)
        self._is_open = True

    def data_received(self, data: bytes) -> None:
        """Hands replies to those who wait for them."""
        self._reader.feed(data)
        while True:
            try:
                reply = self._reader.gets()
            except hiredis.ProtocolError:
                break
            if reply is False:
                if self._reader.len() > _MAX_REPLY_BYTES:
                    break
                return
            if not self._waiting:
                break
            on_reply, _ = self._waiting.popleft()
            on_reply(reply)
        # Not Redis, or no longer in step with it.
        self.close()

    def connection_lost(self, _: Exception | None) -> None:
        """Tells all who wait."""
        if not self._is_open:
            return
        self._is_open = False
        if self._timer is not None:
            self._timer.cancel()
        waiting, self._waiting = self._waiting, deque()
        for on_reply, _until in waiting:
            on_reply(LinkLostError("the connection to Redis is lost"))
        if self.on_lost is not None:
            self.on_lost()


async def connect(url: str) -> tuple[Link, str]:
    """Opens a connection, signs in and asks for the server's `run_id`.

    Args:
        url: `redis://user:password@host:port/db`, or `rediss://…?ssl_ca_certs=…`.

    Returns:
        The connection and the run_id.

    Raises:
        OSError: It cannot be reached, does not answer in time, or is not fit for writes.
        hiredis.ReplyError: It refuses, for instance the password, or while it still loads.
    """
    to: dict[str, Any] = dict(parse_url(url))
    async with asyncio.timeout(4 * TIMEOUT_S):
        loop = asyncio.get_running_loop()
        if "path" in to:
            _, link = await loop.create_unix_connection(Link, to["path"])
        else:
            host, port = to.get("host", "localhost"), to.get("port", 6379)
            _, link = await loop.create_connection(Link, host, port, ssl=_tls(to))
        try:
            if to.get("password"):
                user = (to["username"],) if to.get("username") else ()
                await link.call("AUTH", *user, to["password"])
            if to.get("db"):
                await link.call("SELECT", to["db"])
            info = {}
            for section in ("server", "replication"):
                for line in (await link.call("INFO", section)).decode().splitlines():
                    name, _, value = line.partition(":")
                    info[name] = value
            if info.get("role") != "master":
                raise OSError(f"Redis is a {info.get('role')}, not a master")
            return link, info["run_id"]
        except BaseException:
            link.close()
            raise


def _tls(to: dict[str, Any]) -> ssl.SSLContext | None:
    if to.get("connection_class") is not SSLConnection:
        return None
    context = ssl.create_default_context(cafile=to.get("ssl_ca_certs"))
    if to.get("ssl_certfile"):
        context.load_cert_chain(to["ssl_certfile"], to.get("ssl_keyfile"))
    return context
