"""One HTTP/1.1 connection to the engine, as an asyncio protocol over `httptools`."""

import asyncio
from collections.abc import Callable
from typing import Protocol, cast

import httptools

from services.inference.transport_errors import (
    EngineConnectionError,
    EngineOvertimeError,
    EngineTimeoutError,
)

# What waits for a slow reader: this, and the last that the socket gave.
_MAX_BUFFERED_BYTES = 64 * 1024
# Longer requests are not copied to stand in one piece with their head.
_LONG_BODY_BYTES = 256 * 1024
_MAX_HEADER_COUNT = 100
# Pieces of a stream that follow each other faster than this are left to gather at the socket for a
# moment (`Pool.rest`). What comes as people read, or less often, passes at once.
_RUSH_S = 0.0015
# Of these none waits: an answer's first words come after what only says whose they are.
_FIRST_READS = 2
_STREAMS = ("text/event-stream", "application/x-ndjson")

Take = Callable[[bytes], bool]
"""Is offered a piece of a body; returns whether it took it."""


class Pool(Protocol):
    """Where connections wait between exchanges."""

    idle_timeout_s: float
    total_timeout_s: float
    busy: "set[Connection]"

    def keep(self, connection: "Connection") -> None:
        """Takes a connection back for the next exchange."""
        ...

    def forget(self, connection: "Connection") -> None:
        """Drops a connection that the engine closed between exchanges."""
        ...

    def rest(self, connection: "Connection") -> None:
        """Calls the connection's `go_on` in a moment."""
        ...


class Connection(asyncio.Protocol):
    """One connection; it carries one exchange at a time."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._pieces: list[bytes] = []
        # What the parser calls for each piece of a body: no code of ours runs for it.
        self.on_body = self._pieces.append
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._began_at = self._heard_at = 0.0
        self._error: Exception | None = None
        self._is_busy = False
        self._parser = httptools.HttpResponseParser(self)
        self._reset()

    def _reset(self) -> None:
        self.status = 0
        self.content_type = ""
        self.has_answered = False
        self._pieces.clear()
        self._size = 0
        self._wanted = 0
        self._header_count = 0
        self._has_head = False
        self._has_length = False
        self._read_count = 0
        self._is_stream = False
        self._is_reusable = False
        self.is_complete = False
        self._is_paused = False
        self._is_resting = False
        # Is offered what comes while a reader waits, who is woken for what it does not take.
        self.take: Take | None = None
        self._hurried_s: float | None = None

    async def send(self, head: bytes, body: bytes) -> None:
        """Sends a request and waits for the head of its answer.

        Raises:
            EngineConnectionError: The connection broke before the head was complete.
            EngineTimeoutError: Nothing came for the idle timeout.
        """
        self._reset()
        if self._transport is None:
            raise EngineConnectionError("the engine closed the connection")
        self._is_busy = True
        self._pool.busy.add(self)
        # A parser of its own for each answer: one that stopped in an error stays in it.
        self._parser = httptools.HttpResponseParser(self)
        self._began_at = self._heard_at = self._loop.time()
        if self._timer is None:
            first_s = min(self._pool.idle_timeout_s, self._pool.total_timeout_s)
            self._timer = self._loop.call_later(first_s, self._check_silence)
        self._transport.write(head + body if len(body) < _LONG_BODY_BYTES else head)
        if len(body) >= _LONG_BODY_BYTES:
            self._transport.write(body)
        try:
            while not self._has_head:
                await self._wait()
        except BaseException:
            self.drop()
            raise

    async def read(self, at_least: int) -> bytes:
        """Returns what is there, or waits until so many bytes are."""
        while self._size < at_least and not self.is_complete:
            if self._error is not None and self._pieces:
                break
            self._wanted = at_least
            await self._wait()
        if not self._pieces:
            return b""
        if self._size > _MAX_BUFFERED_BYTES:
            taken = self._take_some()
        else:
            taken = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
            self._pieces.clear()
            self._size = 0
        if self._is_paused and self._size <= _MAX_BUFFERED_BYTES and self._transport is not None:
            self._is_paused = False
            # Silence counts from here: until now it was the reader who was slow.
            self._heard_at = self._loop.time()
            if not self._is_resting:
                self._transport.resume_reading()
        return taken

    def _take_some(self) -> bytes:
        # All that a reader takes is copied on its way: a slow one is not given everything.
        size = count = 0
        while size < _MAX_BUFFERED_BYTES:
            size += len(self._pieces[count])
            count += 1
        taken = b"".join(self._pieces[:count])
        del self._pieces[:count]
        self._size -= size
        return taken

    def go_on(self) -> None:
        """Ends a rest: reads what has gathered."""
        if self._is_resting:
            self._is_resting = False
            if self._transport is not None and not self._is_paused:
                self._transport.resume_reading()

    def release(self) -> None:
        """Ends the exchange."""
        if not self._is_busy:
            return
        self._is_busy = False
        self._pool.busy.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.is_complete and self._transport is not None and self._is_reusable:
            self._pool.keep(self)
        else:
            self.drop()

    def drop(self) -> None:
        """Closes the connection at once."""
        self._is_busy = False
        self._pool.busy.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: Exception) -> None:
        self._error = error
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)

    def hurry(self, limit_s: float | None) -> None:
        """Sets how long the engine may be silent in this exchange; None is the idle timeout."""
        if limit_s is not None:
            limit_s = min(limit_s, self._pool.idle_timeout_s)
        if limit_s == self._hurried_s:
            return
        self._hurried_s = limit_s
        if self._timer is not None:
            self._timer.cancel()
            self._check_silence()

    def _check_silence(self) -> None:
        # One timer for an exchange, moved on when it fires, is cheaper than one for every read.
        limit_s = self._pool.idle_timeout_s if self._hurried_s is None else self._hurried_s
        now = self._loop.time()
        silent_s = 0.0 if self._is_paused else now - self._heard_at
        left_s = self._pool.total_timeout_s - (now - self._began_at)
        if silent_s < limit_s and left_s > 0:
            self._timer = self._loop.call_later(
                min(limit_s - silent_s, left_s), self._check_silence
            )
            return
        self._timer = None
        if left_s <= 0:
            total_s = self._pool.total_timeout_s
            self._fail(EngineOvertimeError(f"the engine was not done after {total_s:g} s"))
        elif self._hurried_s is None:
            self._fail(EngineTimeoutError(f"the engine sent nothing for {limit_s:g} s"))
        else:
            self._fail(EngineConnectionError(f"the engine is down, and silent for {limit_s:g} s"))
        self.drop()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Parses what came."""
        if not self._is_busy or self.is_complete:
            # Nothing more was asked: what this connection carries is no longer known.
            self._pool.forget(self)
            self.drop()
            return
        self.has_answered = True
        now = self._loop.time()
        is_rushing = self._read_count >= _FIRST_READS and now - self._heard_at < _RUSH_S
        self._heard_at = now
        count = len(self._pieces)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(EngineConnectionError(f"the engine does not speak HTTP: {error}"))
            self.drop()
            return
        if len(self._pieces) > count:
            self._read_count += self._is_stream
            if count or not self._is_taken():
                self._size += sum(map(len, self._pieces[count:] if count else self._pieces))
        if self.is_complete or self._transport is None:
            # Nothing more comes; a connection that is kept must hear when the engine closes it.
            pass
        elif self._size > _MAX_BUFFERED_BYTES and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()
        elif is_rushing:
            self._is_resting = True
            self._transport.pause_reading()
            self._pool.rest(self)
        if self._has_head and (self._size >= self._wanted or self.is_complete):
            self._wake()

    def _is_taken(self) -> bool:
        take = self.take
        if take is None or self._waiter is None or self.is_complete:
            return False
        if not take(self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)):
            return False
        self._pieces.clear()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the exchange that runs, if one does."""
        self._transport = None
        if self._is_busy and self._has_head and not self._has_length and exc is None:
            # A body without a length ends with its connection.
            self.is_complete = True
            self._wake()
        elif self._is_busy and not self.is_complete:
            self._fail(EngineConnectionError(str(exc or "the engine closed the connection")))
        elif not self._is_busy:
            self._pool.forget(self)

    # What the parser calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keeps the headers that are of use."""
        self._header_count += 1
        if self._header_count > _MAX_HEADER_COUNT:
            raise ValueError("too many headers")
        name = name.lower()
        if name == b"content-type":
            self.content_type = value.decode("latin-1")
            self._is_stream = self.content_type.startswith(_STREAMS)
        elif name in (b"content-length", b"transfer-encoding"):
            self._has_length = True

    def on_headers_complete(self) -> None:
        """Keeps the status."""
        status = self._parser.get_status_code()
        # 100 Continue and its kin come before the answer.
        if status >= 200:
            self.status = status
            self._has_head = True

    def on_message_complete(self) -> None:
        """Notes the end of the answer."""
        if self._has_head:
            self.is_complete = True
            # Asked here, because the parser forgets it after this call.
            self._is_reusable = self._has_length and self._parser.should_keep_alive()
