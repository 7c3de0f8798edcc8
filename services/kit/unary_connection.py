"""An HTTP/2 connection that carries calls of one gRPC method; see unary_client."""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import cast

from services.kit.grpc_server import wire
from services.kit.grpc_server.header_blocks import HeaderDecoder
from services.kit.grpc_server.peer_socket import keep_alive
from services.kit.grpc_server.wire import ProtocolError

log = logging.getLogger(__name__)

_MAX_HEADER_BYTES = 64 * 1024
_MAX_ANSWER_BYTES = 1024 * 1024
_WINDOW_STEP = wire.MAX_WINDOW // 2
# Streams are numbered with 31 bits; a connection that nears the end makes room for another.
_LAST_STREAM_ID = wire.MAX_WINDOW - 2**20
# A server that stands still is asked no more once this much waits to be sent.
_MAX_UNSENT_BYTES = 4 * 1024 * 1024
_GRPC_OK = b"0"

OnAnswer = Callable[[bytes | None], None]
"""Called once with the answer's message; with None where there is none."""


class _Call:
    __slots__ = ("body", "on_answer", "until")

    def __init__(self, on_answer: OnAnswer, until: float) -> None:
        self.on_answer = on_answer
        self.until = until
        self.body = b""


class UnaryConnection(asyncio.Protocol):
    """An open connection. It is not opened again; make another.

    Args:
        block: The header block of every request.
        timeout_s: How long an answer is waited for.
    """

    def __init__(self, block: bytes, timeout_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._block = block
        self._timeout_s = timeout_s
        self._transport: asyncio.Transport | None = None
        self._decoder = HeaderDecoder(2 * _MAX_HEADER_BYTES)
        self._calls: dict[int, _Call] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._rest = b""
        self._stream_id = -1
        self._received = 0
        self._window = self._initial_window = wire.DEFAULT_WINDOW
        self._most_calls = wire.MAX_WINDOW
        self._takes_calls = False
        self._is_paused = False
        self.greeted: asyncio.Future[None] = self._loop.create_future()
        self.ended: asyncio.Future[None] = self._loop.create_future()

    def ask(self, message: bytes, on_answer: OnAnswer) -> bool:
        """Sends a request; returns False, and does nothing, where there is no room for it."""
        size = len(message) + 5
        if (
            not self._takes_calls
            or self._is_paused
            or size > min(self._window, self._initial_window)
            or len(self._calls) >= self._most_calls
        ):
            return False
        self._window -= size
        self._stream_id = stream_id = self._stream_id + 2
        until = self._loop.time() + self._timeout_s
        self._calls[stream_id] = _Call(on_answer, until)
        if stream_id >= _LAST_STREAM_ID:
            self.finish()
        if self._timer is None:
            # One for all that wait: to make one for each call takes longer than to send it.
            self._timer = self._loop.call_at(until, self._check)
        self._send(wire.headers_frame(stream_id, self._block) + _data(stream_id, message))
        return True

    def finish(self) -> None:
        """Takes no more calls; closes once those that wait are answered."""
        self._takes_calls = False
        if not self.ended.done():
            self.ended.set_result(None)
        if not self._calls and self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Takes no more calls, and closes at once; those that wait get no answer."""
        self._takes_calls = False
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greets the server."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(_MAX_UNSENT_BYTES)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            keep_alive(sock)
        settings = (
            (wire.SETTINGS_ENABLE_PUSH, 0),
            (wire.SETTINGS_INITIAL_WINDOW_SIZE, _MAX_ANSWER_BYTES),
            (wire.SETTINGS_MAX_HEADER_LIST_SIZE, _MAX_HEADER_BYTES),
        )
        window = wire.window_frame(0, wire.MAX_WINDOW - wire.DEFAULT_WINDOW)
        self._transport.write(wire.PREFACE + wire.settings_frame(settings) + window)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tells all who wait."""
        self._transport = None
        self._takes_calls = False
        if self._timer is not None:
            self._timer.cancel()
        for waited in (self.greeted, self.ended):
            if not waited.done():
                waited.set_result(None)
        calls, self._calls = self._calls, {}
        for call in calls.values():
            _tell(call, None)

    def pause_writing(self) -> None:
        """Takes no calls until the server has read."""
        self._is_paused = True

    def resume_writing(self) -> None:
        """Takes calls again."""
        self._is_paused = False

    def data_received(self, data: bytes) -> None:
        """Takes in frames, or parts of them."""
        if self._rest:
            data = self._rest + data
        try:
            self._rest = self._frames(data)
        except ProtocolError as error:
            log.warning("a server does not speak HTTP/2", extra={"error": str(error)})
            self.abort()

    # --- frames ---

    def _frames(self, data: bytes) -> bytes:
        position, end = 0, len(data)
        unpack = wire.FRAME_HEAD.unpack_from
        while end - position >= wire.FRAME_HEAD_BYTES:
            high, low, kind, flags, stream_id = unpack(data, position)
            size = high << 16 | low
            if size > wire.MAX_FRAME_BYTES:
                raise ProtocolError(wire.FRAME_SIZE_ERROR, "a frame is larger than allowed")
            start = position + wire.FRAME_HEAD_BYTES
            if start + size > end:
                break
            position = start + size
            self._on_frame(kind, flags, stream_id & wire.MAX_WINDOW, data[start:position])
        return data[position:]

    def _on_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if kind == wire.DATA:
            self._on_data(stream_id, flags, payload)
        elif kind == wire.HEADERS:
            self._on_headers(stream_id, flags, payload)
        elif kind == wire.RST_STREAM:
            self._end(stream_id, None)
        elif kind == wire.WINDOW_UPDATE:
            if not stream_id:  # Those of streams come too late: their request is sent.
                self._window += wire.read_number(payload)
        elif kind == wire.SETTINGS:
            if not flags & wire.ACK:
                self._on_settings(payload)
        elif kind == wire.PING:
            if not flags & wire.ACK:
                self._send(wire.frame(wire.PING, wire.ACK, 0, payload))
        elif kind == wire.GOAWAY:
            self._on_goaway(payload)
        elif kind in (wire.CONTINUATION, wire.PUSH_PROMISE):
            # They would have to be read for the sake of the header table.
            raise ProtocolError(wire.PROTOCOL_ERROR, "a frame that is not expected")

    def _on_settings(self, payload: bytes) -> None:
        settings = wire.read_settings(payload)
        self._initial_window = settings.get(wire.SETTINGS_INITIAL_WINDOW_SIZE, self._initial_window)
        self._most_calls = settings.get(wire.SETTINGS_MAX_CONCURRENT_STREAMS, self._most_calls)
        self._send(wire.frame(wire.SETTINGS, wire.ACK, 0, b""))
        if not self.greeted.done():
            self._takes_calls = True
            self.greeted.set_result(None)

    def _on_goaway(self, payload: bytes) -> None:
        last_stream_id = wire.read_number(payload[:4]) & wire.MAX_WINDOW
        self.finish()
        for stream_id in [each for each in self._calls if each > last_stream_id]:
            self._end(stream_id, None)  # The server does not look at them.

    def _on_data(self, stream_id: int, flags: int, payload: bytes) -> None:
        self._received += len(payload)
        if self._received > _WINDOW_STEP:
            self._send(wire.window_frame(0, self._received))
            self._received = 0
        if flags & wire.PADDED:
            raise ProtocolError(wire.PROTOCOL_ERROR, "gRPC pads nothing")
        call = self._calls.get(stream_id)
        if call is None:
            return
        call.body = call.body + payload if call.body else payload
        if flags & wire.END_STREAM or len(call.body) > _MAX_ANSWER_BYTES:
            self._end(stream_id, None)  # Without a status nobody knows what it is.

    def _on_headers(self, stream_id: int, flags: int, payload: bytes) -> None:
        if flags & (wire.PADDED | wire.PRIORITIZED) or not flags & wire.END_HEADERS:
            raise ProtocolError(wire.PROTOCOL_ERROR, "a header block that is not expected")
        headers = self._decoder.decode(payload)
        call = self._calls.get(stream_id)
        if call is None or not flags & wire.END_STREAM:
            return
        body = call.body
        is_good = any(name == b"grpc-status" and value == _GRPC_OK for name, value, _ in headers)
        # Before a message stand a flag, which is 0 unless it is compressed, and its length.
        is_whole = int.from_bytes(body[:5], "big") == len(body) - 5
        self._end(stream_id, body[5:] if is_good and is_whole else None)

    # --- calls ---

    def _end(self, stream_id: int, answer: bytes | None) -> None:
        call = self._calls.pop(stream_id, None)
        if call is None:
            return
        if not self._takes_calls and not self._calls and self._transport is not None:
            self._transport.close()
        _tell(call, answer)

    def _check(self) -> None:
        self._timer = None
        now = self._loop.time()
        due = []
        for stream_id, call in self._calls.items():  # In the order in which they are due.
            if call.until > now:
                self._timer = self._loop.call_at(call.until, self._check)
                break
            due.append(stream_id)
        for stream_id in due:
            self._send(wire.reset_frame(stream_id, wire.CANCEL))
            self._end(stream_id, None)

    def _send(self, data: bytes) -> None:
        # What is sent in one turn of the loop leaves in one write at its end: uvloop sees to that.
        if self._transport is not None:
            self._transport.write(data)


def _tell(call: _Call, answer: bytes | None) -> None:
    try:
        call.on_answer(answer)
    except Exception:
        # It must not keep others from their answers.
        log.exception("an answer was not taken")


def _data(stream_id: int, message: bytes) -> bytes:
    """Returns the frames with one message, which is all of a request."""
    text = wire.framed(message)
    most = wire.MAX_FRAME_BYTES
    if len(text) <= most:
        return wire.frame(wire.DATA, wire.END_STREAM, stream_id, text)
    pieces = [text[at : at + most] for at in range(0, len(text), most)]
    last = len(pieces) - 1
    return b"".join(
        wire.frame(wire.DATA, wire.END_STREAM if at == last else 0, stream_id, piece)
        for at, piece in enumerate(pieces)
    )
