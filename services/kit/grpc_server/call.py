"""One call: what came, what goes back, and how it ends."""

import asyncio
import inspect
import logging
import time
import zlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote

import grpc

from services.kit.grpc_server import wire

if TYPE_CHECKING:
    from services.kit.grpc_server.connection import Connection

log = logging.getLogger(__name__)

_CONTENT_TYPE = (":status", "200"), ("content-type", "application/grpc")
_ACCEPT = ("grpc-accept-encoding", "identity,deflate,gzip")
_START = wire.header_block((*_CONTENT_TYPE, _ACCEPT))
_OK = wire.header_block((("grpc-status", "0"),))
# Refusals whose first block is also their last.
_REFUSED_START = wire.header_block(_CONTENT_TYPE)
_ABORT_WITHOUT_STATUS = grpc.StatusCode.UNKNOWN
_MESSAGE_HEAD_BYTES = 5
_WINDOW_BITS = {"gzip": 31, "deflate": 15}


class Call(grpc.aio.ServicerContext[Any, Any]):
    """A call, and the context that its handler gets.

    Args:
        connection: Where it came in.
        stream_id: Its stream there.
        metadata: What came with it, gRPC's own headers left out.
        encoding: How compressed messages are compressed.
        timeout_s: How long the caller waits for the end; None for ever.
    """

    def __init__(
        self,
        connection: "Connection",
        stream_id: int,
        metadata: tuple[tuple[str, str | bytes], ...],
        encoding: str,
        timeout_s: float | None,
    ) -> None:
        self.connection = connection
        self.stream_id = stream_id
        self.window = connection.initial_window
        self.is_half_closed = False
        self._metadata = metadata
        self._encoding = encoding
        self._timeout_s = timeout_s
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._timer: asyncio.TimerHandle | None = None
        self._handler: Any = None
        self._serialize: Callable[[Any], bytes] | None = None
        self._task: asyncio.Task[None] | None = None
        self._rest: bytes | bytearray = b""
        self._inbox: deque[bytes] | None = None
        self._arrived: asyncio.Event | None = None
        self._unacknowledged = 0
        self._initial: bytes | None = None
        self._has_started = False
        self._trailing: Sequence[wire.Header] = ()
        self._code: grpc.StatusCode | None = None
        self._details = ""
        self._is_done = False
        self._is_cancelled = False
        self._callbacks: list[Callable[[Any], None]] = []

    # --- what comes in, from the connection ---

    def begin(self, handler: Any) -> None:
        """Takes the handler; starts it at once where it reads a stream."""
        self._handler = handler
        self._serialize = handler.response_serializer
        if handler.request_streaming:
            self._inbox = deque()
            self._arrived = asyncio.Event()
            self._start(self._requests())

    def feed(self, data: bytes, is_last: bool) -> None:
        """Takes in a part of the request.

        Raises:
            ProtocolError: There is more of it than the peer may send.
        """
        if self._is_done:
            return
        if is_last:
            self.is_half_closed = True
        if data:
            if not self._rest and self._inbox is None:
                size = len(data) - _MESSAGE_HEAD_BYTES
                if size >= 0 and data[0] == 0 and int.from_bytes(data[1:5], "big") == size:
                    self._take(data[5:])
                    return
            self._split(data)
        if is_last and not self._is_done:
            if self._rest:
                self._refuse(grpc.StatusCode.INTERNAL, "The request ends within a message.")
            elif self._arrived is not None:
                self._arrived.set()
            elif self._handler is not None:
                self._refuse(grpc.StatusCode.INTERNAL, "The request holds no message.")

    def _split(self, data: bytes) -> None:
        rest = self._rest
        if not isinstance(rest, bytearray):
            self._rest = rest = bytearray(rest)
        rest += data
        position = 0
        while len(rest) - position >= _MESSAGE_HEAD_BYTES and not self._is_done:
            size = int.from_bytes(rest[position + 1 : position + 5], "big")
            if size > self.connection.max_message_bytes:
                self._refuse(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"A message of {size} bytes is larger than the service takes.",
                )
                return
            stop = position + _MESSAGE_HEAD_BYTES + size
            if stop > len(rest):
                break
            message = bytes(memoryview(rest)[position + _MESSAGE_HEAD_BYTES : stop])
            if rest[position]:
                message = self._inflated(message) or b""
                if self._is_done:
                    return
            position = stop
            self._take(message)
        if position == len(rest):
            self._rest = b""
        else:
            del rest[:position]

    def _inflated(self, message: bytes) -> bytes | None:
        bits = _WINDOW_BITS.get(self._encoding)
        if bits is None:
            self._refuse(
                grpc.StatusCode.UNIMPLEMENTED, "The message's compression is not supported."
            )
            return None
        limit = self.connection.max_message_bytes
        try:
            inflater = zlib.decompressobj(bits)
            whole = inflater.decompress(message, limit)
        except zlib.error:
            self._refuse(grpc.StatusCode.INTERNAL, "The message cannot be decompressed.")
            return None
        if inflater.unconsumed_tail:
            self._refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, "The message is too large.")
        return whole

    def _take(self, message: bytes) -> None:
        if self._inbox is not None:
            assert self._arrived is not None  # noqa: S101 - both are made by `begin`
            self._inbox.append(message)
            self._arrived.set()
        elif self._handler is not None:
            handler, self._handler = self._handler, None
            try:
                request = handler.request_deserializer(message)
            except Exception as error:
                log.debug("a request does not parse", extra={"error": str(error)})
                self._refuse(grpc.StatusCode.INTERNAL, "The request does not parse.")
                return
            self._start(request, handler)
        else:
            self._refuse(grpc.StatusCode.INTERNAL, "The request holds more than one message.")

    def _start(self, request: Any, handler: Any = None) -> None:
        handler = handler or self._handler
        act = (
            handler.unary_unary
            or handler.unary_stream
            or handler.stream_unary
            or handler.stream_stream
        )
        if not handler.response_streaming and not inspect.iscoroutinefunction(act):
            self._answer_now(act, request)
            return
        if self._timeout_s is not None:
            loop = self.connection.loop
            self._timer = loop.call_later(max(self._timeout_s, 0.0), self._expire)
        run = self._stream(act, request) if handler.response_streaming else self._one(act, request)
        self._task = self.connection.loop.create_task(self._run(run))

    def _expire(self) -> None:
        self._code = grpc.StatusCode.DEADLINE_EXCEEDED
        self._details = "The deadline is over."
        self._trailing = ()
        self._is_cancelled = True
        self._end()
        if self._task is not None:
            self._task.cancel()

    def reset(self) -> None:
        """Ends the call because the caller does not want it any more."""
        if self._is_done:
            return
        self._is_cancelled = True
        self._close()
        if self._task is not None:
            self._task.cancel()

    def stop(self) -> None:
        """Ends the call because the server stops; its caller may try another."""
        if self._is_done:
            return
        self._code, self._details = grpc.StatusCode.UNAVAILABLE, "The service is stopping."
        self._trailing = ()
        self._is_cancelled = True
        self._end()
        if self._task is not None:
            self._task.cancel()

    # --- running the handler ---

    def _answer_now(self, act: Callable[[Any, Any], Any], request: Any) -> None:
        """Runs a handler that is a plain function, with no task around it."""
        try:
            answer = act(request, self)
            message = self._serialize(answer) if self._serialize is not None else answer
        except Exception:
            log.exception("a handler failed")
            self._refuse(grpc.StatusCode.UNKNOWN, "The handler failed.")
            return
        if not self._finish(message):
            self._task = self.connection.loop.create_task(self._run(self._finish_slowly(message)))

    async def _run(self, work: Awaitable[None]) -> None:
        try:
            await work
        except asyncio.CancelledError:
            # The call is over already where its caller left or its time is up. Where the handler
            # itself gave up, as at a stop, the caller is told.
            if not self._is_done:
                self._code = self._code or grpc.StatusCode.CANCELLED
                self._end()
        except grpc.aio.AbortError:
            self._end()
        except Exception:
            if self._is_done:
                log.debug("a handler failed after its call was over", exc_info=True)
            else:
                log.exception("a handler failed")
                self._code, self._details = grpc.StatusCode.UNKNOWN, "The handler failed."
                self._end()

    async def _one(self, act: Callable[[Any, Any], Awaitable[Any]], request: Any) -> None:
        answer = await act(request, self)
        message = self._serialize(answer) if self._serialize is not None else answer
        if not self._finish(message):
            await self._finish_slowly(message)

    async def _stream(self, act: Callable[[Any, Any], Any], request: Any) -> None:
        answers = act(request, self)
        if hasattr(answers, "__aiter__"):
            async for answer in answers:
                await self.write(answer)
        else:
            await answers
        self._end()

    async def _requests(self) -> AsyncIterator[Any]:
        while (message := await self._next()) is not None:
            yield self._handler.request_deserializer(message)

    async def _next(self) -> bytes | None:
        assert self._inbox is not None and self._arrived is not None  # noqa: S101 - a streaming call
        while not self._inbox:
            if self.is_half_closed:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        message = self._inbox.popleft()
        self._unacknowledged += len(message) + _MESSAGE_HEAD_BYTES
        if self._unacknowledged > self.connection.stream_window // 2 and not self._is_done:
            self.connection.send(wire.window_frame(self.stream_id, self._unacknowledged))
            self._unacknowledged = 0
        return message

    # --- what goes out ---

    def _finish(self, message: bytes) -> bool:
        """Sends the only message and the status, if they can go at once."""
        if self._is_done:
            return True
        size = len(message) + _MESSAGE_HEAD_BYTES
        if size > self.room() or self._code is not None or self._trailing:
            return False
        self.window -= size
        connection, stream_id = self.connection, self.stream_id
        connection.window -= size
        out = (
            b"" if self._has_started else wire.headers_frame(stream_id, self._initial or _START),
            wire.data_frame(stream_id, message),
            wire.headers_frame(stream_id, _OK, wire.END_STREAM),
            b"" if self.is_half_closed else wire.reset_frame(stream_id, wire.NO_ERROR),
        )
        connection.send(b"".join(out))
        self._close()
        return True

    async def _finish_slowly(self, message: bytes) -> None:
        await self._send(message)
        self._end()

    def room(self) -> int:
        """Returns how many bytes can be sent now, in one frame."""
        if self.connection.is_paused:
            return 0
        return min(self.connection.window, self.window, wire.MAX_FRAME_BYTES)

    async def _send(self, message: bytes) -> None:
        if self._is_done:
            # Raises where the caller is gone: the task is cancelled then.
            await asyncio.sleep(0)
            return
        start = b""
        if not self._has_started:
            self._has_started = True
            start = wire.headers_frame(self.stream_id, self._initial or _START)
        size = len(message) + _MESSAGE_HEAD_BYTES
        if size <= self.room():
            self.window -= size
            self.connection.window -= size
            self.connection.send(start + wire.data_frame(self.stream_id, message))
            return
        if start:
            self.connection.send(start)
        rest = memoryview(wire.framed(message))
        while rest:
            while (room := self.room()) <= 0:
                await self.connection.changed()
                if self._is_done:
                    await asyncio.sleep(0)
                    return
            piece, rest = rest[:room], rest[room:]
            self.window -= len(piece)
            self.connection.window -= len(piece)
            self.connection.send(wire.frame(wire.DATA, 0, self.stream_id, bytes(piece)))

    def refuse(self, code: grpc.StatusCode, details: str) -> None:
        """Ends the call with a status, before a handler has it."""
        self._refuse(code, details)

    def _refuse(self, code: grpc.StatusCode, details: str) -> None:
        self._code, self._details = code, details
        self._end()
        if self._task is not None:
            self._task.cancel()

    def _end(self) -> None:
        if self._is_done:
            return
        code = self._code or grpc.StatusCode.OK
        status = [("grpc-status", str(code.value[0]))]
        if self._details:
            status.append(
                ("grpc-message", quote(self._details, safe=" !#$&'()*+,/:;=?@[]\"<>^`{|}"))
            )
        if not self._trailing and len(status) == 1 and code is grpc.StatusCode.OK:
            block = _OK
        else:
            block = wire.header_block((*status, *self._trailing))
        if not self._has_started:
            if code is grpc.StatusCode.OK or self._initial is not None:
                start = wire.headers_frame(self.stream_id, self._initial or _START)
            else:
                start, block = b"", _REFUSED_START + block
        else:
            start = b""
        out = start + wire.headers_frame(self.stream_id, block, wire.END_STREAM)
        if not self.is_half_closed:
            out += wire.reset_frame(self.stream_id, wire.NO_ERROR)
        self.connection.send(out)
        self._close()

    def _close(self) -> None:
        self._is_done = True
        self._rest = b""
        if self._inbox is not None:
            self._inbox.clear()
        if self._timer is not None:
            self._timer.cancel()
        self.connection.forget(self)
        for callback in self._callbacks:
            callback(self)

    # --- grpc.aio.ServicerContext ---

    async def read(self) -> Any:
        """Returns the next message, or `EOF`."""
        message = await self._next()
        return grpc.aio.EOF if message is None else self._handler.request_deserializer(message)

    async def write(self, message: Any) -> None:
        """Sends a message; waits while the caller reads slowly."""
        await self._send(self._serialize(message) if self._serialize is not None else message)

    async def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Sets the headers that go out with the first message."""
        self._initial = wire.header_block((*_CONTENT_TYPE, _ACCEPT, *initial_metadata))

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()
    ) -> NoReturn:
        """Ends the call with a status."""
        self._code = code if code is not grpc.StatusCode.OK else _ABORT_WITHOUT_STATUS
        self._details = details
        if trailing_metadata:
            self._trailing = tuple(trailing_metadata)
        raise grpc.aio.AbortError

    async def abort_with_status(self, status: Any) -> NoReturn:
        """Ends the call with a status."""
        await self.abort(status.code, status.details, status.trailing_metadata)

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        """Sets what goes out with the status."""
        self._trailing = tuple(trailing_metadata)

    def invocation_metadata(self) -> Any:
        """Returns what the caller sent along, as pairs."""
        return self._metadata

    def set_code(self, code: grpc.StatusCode) -> None:
        """Sets the status that goes out at the end."""
        self._code = None if code is grpc.StatusCode.OK else code

    def set_details(self, details: str) -> None:
        """Sets the message of the status."""
        self._details = details

    def set_compression(self, compression: grpc.Compression) -> None:
        """Does nothing: answers are not compressed; Envoy may do it."""

    def disable_next_message_compression(self) -> None:
        """Does nothing: answers are not compressed."""

    def peer(self) -> str:
        """Returns who is at the other end of the connection."""
        return self.connection.peer

    def peer_identities(self) -> Iterable[bytes] | None:
        """Returns None: the connection has no identity."""
        return None

    def peer_identity_key(self) -> str | None:
        """Returns None: the connection has no identity."""
        return None

    def auth_context(self) -> dict[str, Iterable[bytes]]:
        """Returns nothing: the connection has no identity."""
        return {}

    def time_remaining(self) -> float:
        """Returns how many seconds the caller still waits."""
        return float("inf") if self._deadline is None else self._deadline - time.monotonic()

    def trailing_metadata(self) -> Any:
        """Returns what goes out with the status."""
        return self._trailing

    def code(self) -> Any:
        """Returns the status so far."""
        return self._code

    def details(self) -> str:
        """Returns the message of the status so far."""
        return self._details

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Calls back when the call is over, at once where it is."""
        if self._is_done:
            callback(self)
        else:
            self._callbacks.append(callback)

    def cancelled(self) -> bool:
        """Says whether the caller left or the time was up."""
        return self._is_cancelled

    def done(self) -> bool:
        """Says whether the call is over."""
        return self._is_done
