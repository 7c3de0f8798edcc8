"""What a call answers: headers, messages and a status, as the windows allow."""

import abc
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import grpc

from services.kit.grpc_server import wire
from services.kit.grpc_server.context import OK, START, Context, raise_cancelled
from services.kit.grpc_server.inbox import HEAD_BYTES

_START = wire.header_block(START)


class Method(NamedTuple):
    """A handler, as calls need it.

    Attributes:
        act: The handler itself.
        is_plain: Whether it is a plain function that returns the only answer, or a future of
            it. A future is waited for without a task, and its call has no deadline: it must end by
            itself.
        takes_stream: Whether it takes a stream of messages.
        gives_stream: Whether it answers with one.
        parse: Makes a request of bytes; None where handlers take bytes.
        serialize: Makes bytes of an answer; None where handlers give bytes.
    """

    act: Callable[[Any, Any], Any]
    is_plain: bool
    takes_stream: bool
    gives_stream: bool
    parse: Callable[[bytes], Any] | None
    serialize: Callable[[Any], bytes] | None


class Answer(Context):
    """The part of a call that goes out."""

    is_half_closed = False
    _method: Method | None = None
    _has_started = False

    async def write(self, message: Any) -> None:
        """Sends a message; waits while the caller reads slowly."""
        method = self._method
        if method is not None and method.serialize is not None:
            message = method.serialize(message)
        if not self._send_now(message):
            await self._send(message)

    def write_now(self, message: Any) -> bool:
        """Sends a message where nothing has to be waited for, and returns whether it did.

        It does not send the first message of a call that has sent no headers.
        """
        method = self._method
        if method is not None and method.serialize is not None:
            message = method.serialize(message)
        return self._send_now(message)

    def _send_now(self, message: bytes) -> bool:
        size = len(message) + HEAD_BYTES
        if self._is_done or not self._has_started or size > self.room():
            return False
        self.window -= size
        self.connection.window -= size
        self.connection.send(wire.data_frame(self.stream_id, message))
        return True

    async def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Sends headers before the first message.

        Raises:
            UsageError: They are sent already.
            ValueError: They cannot be sent.
        """
        if self._is_done:
            await raise_cancelled()
        if self._has_started:
            raise grpc.aio.UsageError("The initial metadata is sent already.")
        block = wire.header_block((*START, *initial_metadata))
        self._has_started = True
        self.connection.send(wire.headers_frame(self.stream_id, block))

    def room(self) -> int:
        """Returns how many bytes can be sent now, in one frame."""
        if self.connection.is_paused:
            return 0
        return min(self.connection.window, self.window, wire.MAX_FRAME_BYTES)

    def _finish(self, message: bytes) -> bool:
        """Sends the only message and the status, if they can go at once."""
        if self._is_done:
            return True
        size = len(message) + HEAD_BYTES
        if size > self.room() or self._code is not None or self._trailing:
            return False
        connection, stream_id = self.connection, self.stream_id
        connection.window -= size
        out = (
            b"" if self._has_started else wire.headers_frame(stream_id, _START),
            wire.data_frame(stream_id, message),
            wire.headers_frame(stream_id, OK, wire.END_STREAM),
            b"" if self.is_half_closed else wire.reset_frame(stream_id, wire.NO_ERROR),
        )
        connection.send(b"".join(out))
        self._close()
        return True

    async def _finish_slowly(self, message: bytes) -> None:
        await self._send(message)
        self._end()

    async def _send(self, message: bytes) -> None:
        if self._is_done:
            await raise_cancelled()
        connection = self.connection
        if not self._has_started:
            self._has_started = True
            connection.send(wire.headers_frame(self.stream_id, _START))
        rest = memoryview(wire.framed(message))
        while rest:
            while (room := self.room()) <= 0:
                await connection.changed(self.stream_id)
                if self._is_done:
                    await raise_cancelled()
            piece, rest = rest[:room], rest[room:]
            self.window -= len(piece)
            connection.window -= len(piece)
            connection.send(wire.frame(wire.DATA, 0, self.stream_id, bytes(piece)))

    def _end(self) -> None:
        out = b""
        start: Sequence[wire.Header] = ()
        if not self._has_started:
            if self._code is None:
                out = wire.headers_frame(self.stream_id, _START)
            else:  # an error's headers and trailers are one block
                start = START
        out += wire.headers_frame(self.stream_id, self._status_block(start), wire.END_STREAM)
        if not self.is_half_closed:
            out += wire.reset_frame(self.stream_id, wire.NO_ERROR)
        self.connection.send(out)
        self._close()

    @abc.abstractmethod
    def _close(self) -> None:
        """Marks the call as over, and lets go of all that it holds."""
