"""One HTTP/2 connection: frames in and out, and the windows that bound both."""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any, cast

from services.kit.grpc_server import wire
from services.kit.grpc_server.call import Call
from services.kit.grpc_server.wire import ProtocolError

log = logging.getLogger(__name__)

_MAX_STREAMS = 1024
_MAX_BLOCK_BYTES = 128 * 1024
# Told to the peer; one that sends more all the same is cut off at twice that.
_MAX_HEADER_BYTES = 64 * 1024
# A peer that makes us answer and does not read the answers is cut off at this.
_MAX_UNREAD_BYTES = 1024 * 1024

Dispatch = Callable[["Connection", int, Any], Call]
"""Makes a call of a stream's headers, puts it into `calls`, and begins it."""


class Connection(asyncio.Protocol):
    """Speaks HTTP/2 with one peer.

    Args:
        dispatch: Makes calls.
        opened: Told when the connection stands.
        closed: Told when it is gone.
        max_message_bytes: The largest message that a call takes.
    """

    def __init__(
        self,
        dispatch: Dispatch,
        opened: Callable[["Connection"], None],
        closed: Callable[["Connection"], None],
        *,
        max_message_bytes: int,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.max_message_bytes = max_message_bytes
        # A message that is the whole request needs no more than one window.
        self.stream_window = max_message_bytes + wire.DEFAULT_WINDOW
        self.window = wire.DEFAULT_WINDOW
        self.initial_window = wire.DEFAULT_WINDOW
        self.is_paused = False
        self.peer = ""
        self.calls: dict[int, Call] = {}
        self._dispatch = dispatch
        self._opened = opened
        self._closed = closed
        self._transport: asyncio.Transport | None = None
        self._decoder = wire.HeaderDecoder(2 * _MAX_HEADER_BYTES)
        self._rest = b""
        self._has_preface = False
        self._received = 0
        self._last_stream_id = 0
        self._is_stopping = False
        self._block: bytearray | None = None
        self._block_stream_id = 0
        self._block_flags = 0
        self._waiting: list[asyncio.Future[None]] = []

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Says first what this side takes."""
        self._transport = cast(asyncio.Transport, transport)
        self.peer = _peer_name(transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._transport.write(
            wire.settings_frame(
                (
                    (wire.SETTINGS_MAX_CONCURRENT_STREAMS, _MAX_STREAMS),
                    (wire.SETTINGS_INITIAL_WINDOW_SIZE, self.stream_window),
                    (wire.SETTINGS_MAX_HEADER_LIST_SIZE, _MAX_HEADER_BYTES),
                )
            )
            + wire.window_frame(0, wire.MAX_WINDOW - wire.DEFAULT_WINDOW)
        )
        self._opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends all calls: nobody waits for them any more."""
        self._transport = None
        for call in list(self.calls.values()):
            call.reset()
        self._wake()
        self._closed(self)

    def pause_writing(self) -> None:
        """Lets writers wait until the peer has read."""
        self.is_paused = True

    def resume_writing(self) -> None:
        """Lets writers go on."""
        self.is_paused = False
        self._wake()

    def data_received(self, data: bytes) -> None:
        """Takes in frames, or parts of them."""
        if self._rest:
            data = self._rest + data
        try:
            self._rest = self._frames(data)
        except ProtocolError as error:
            log.info("a peer broke the protocol", extra={"peer": self.peer, "error": str(error)})
            self._rest = b""
            self.send(wire.goaway_frame(self._last_stream_id, error.code))
            self.close()

    # --- for calls ---

    def send(self, data: bytes) -> None:
        """Sends bytes as they are; forgets them where the peer is gone."""
        if self._transport is not None:
            self._transport.write(data)

    async def changed(self) -> None:
        """Waits until there may be room to send more, or the connection is gone."""
        future = self.loop.create_future()
        self._waiting.append(future)
        await future

    def forget(self, call: Call) -> None:
        """Takes note that a call is over."""
        self.calls.pop(call.stream_id, None)
        if self._is_stopping and not self.calls:
            self.close()

    # --- for the server ---

    def stop(self) -> None:
        """Takes no new calls; closes once those that are there are over."""
        self._is_stopping = True
        self.send(wire.goaway_frame(self._last_stream_id, wire.NO_ERROR))
        if not self.calls:
            self.close()

    def close(self) -> None:
        """Closes once everything is sent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Closes at once."""
        if self._transport is not None:
            self._transport.abort()

    # --- frames ---

    def _frames(self, data: bytes) -> bytes:
        """Handles the whole frames in `data`, and returns the rest."""
        position = 0
        end = len(data)
        if not self._has_preface:
            head = data[: len(wire.PREFACE)]
            if not wire.PREFACE.startswith(head):
                raise ProtocolError(wire.PROTOCOL_ERROR, "this is not HTTP/2")
            if end < len(wire.PREFACE):
                return data
            self._has_preface = True
            position = len(wire.PREFACE)
        unpack = wire.FRAME_HEAD.unpack_from
        while end - position >= wire.FRAME_HEAD_BYTES:
            high, low, kind, flags, stream_id = unpack(data, position)
            size = high << 16 | low
            if size > wire.MAX_FRAME_BYTES:
                raise ProtocolError(wire.FRAME_SIZE_ERROR, "a frame is larger than we take")
            start = position + wire.FRAME_HEAD_BYTES
            if start + size > end:
                break
            position = start + size
            payload = data[start:position]
            stream_id &= wire.MAX_WINDOW
            if self._block is not None and kind != wire.CONTINUATION:
                raise ProtocolError(wire.PROTOCOL_ERROR, "a header block is interrupted")
            if kind == wire.DATA:
                self._on_data(stream_id, flags, payload)
            elif kind == wire.HEADERS:
                self._on_headers(stream_id, flags, payload)
            else:
                self._on_other(kind, flags, stream_id, payload)
            if self._transport is None:
                return b""
        return data[position:]

    def _on_data(self, stream_id: int, flags: int, payload: bytes) -> None:
        size = len(payload)
        self._received += size
        if self._received > wire.MAX_WINDOW // 2:
            self.send(wire.window_frame(0, self._received))
            self._received = 0
        if not 0 < stream_id <= self._last_stream_id:
            raise ProtocolError(wire.PROTOCOL_ERROR, "DATA on a stream that is not open")
        if flags & wire.PADDED:
            payload = _unpadded(payload)
        call = self.calls.get(stream_id)
        if call is None:  # It is over on our side; the peer learns it about now.
            return
        if call.is_half_closed:
            raise ProtocolError(wire.PROTOCOL_ERROR, "DATA after the end of a stream")
        call.feed(payload, bool(flags & wire.END_STREAM))

    def _on_headers(self, stream_id: int, flags: int, payload: bytes) -> None:
        if flags & wire.PADDED:
            payload = _unpadded(payload)
        if flags & wire.PRIORITIZED:
            payload = payload[5:]
        if flags & wire.END_HEADERS:
            self._on_block(stream_id, flags, payload)
        else:
            self._block = bytearray(payload)
            self._block_stream_id = stream_id
            self._block_flags = flags

    def _on_continuation(self, stream_id: int, flags: int, payload: bytes) -> None:
        if self._block is None or stream_id != self._block_stream_id:
            raise ProtocolError(wire.PROTOCOL_ERROR, "CONTINUATION of nothing")
        self._block += payload
        if len(self._block) > _MAX_BLOCK_BYTES:
            raise ProtocolError(wire.ENHANCE_YOUR_CALM, "a header block is too large")
        if flags & wire.END_HEADERS:
            block, self._block = bytes(self._block), None
            self._on_block(stream_id, self._block_flags, block)

    def _on_block(self, stream_id: int, flags: int, block: bytes) -> None:
        headers = self._decoder.decode(block)
        is_last = bool(flags & wire.END_STREAM)
        if stream_id <= self._last_stream_id:
            self._on_trailers(stream_id, is_last)
            return
        if not stream_id & 1:
            raise ProtocolError(wire.PROTOCOL_ERROR, "a stream has an even number")
        if self._is_stopping or len(self.calls) >= _MAX_STREAMS:
            self._last_stream_id = stream_id
            self._answer(wire.reset_frame(stream_id, wire.REFUSED_STREAM))
            return
        self._last_stream_id = stream_id
        call = self._dispatch(self, stream_id, headers)
        if is_last and not call.done():
            call.feed(b"", True)

    def _on_trailers(self, stream_id: int, is_last: bool) -> None:
        call = self.calls.get(stream_id)
        if call is None:
            return
        if not is_last or call.is_half_closed:
            raise ProtocolError(wire.PROTOCOL_ERROR, "headers in the middle of a stream")
        call.feed(b"", True)

    def _on_other(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if kind == wire.WINDOW_UPDATE:
            self._on_window(stream_id, wire.number(payload) & wire.MAX_WINDOW)
        elif kind == wire.RST_STREAM:
            wire.number(payload)
            if not 0 < stream_id <= self._last_stream_id:
                raise ProtocolError(wire.PROTOCOL_ERROR, "RST_STREAM on a stream that is not open")
            call = self.calls.get(stream_id)
            if call is not None:
                call.reset()
        elif kind == wire.PING:
            if len(payload) != 8:
                raise ProtocolError(wire.FRAME_SIZE_ERROR, "a PING has another size")
            if not flags & wire.ACK:
                self._answer(wire.frame(wire.PING, wire.ACK, 0, payload))
        elif kind == wire.SETTINGS:
            if stream_id:
                raise ProtocolError(wire.PROTOCOL_ERROR, "SETTINGS on a stream")
            if not flags & wire.ACK:
                self._on_settings(payload)
        elif kind == wire.CONTINUATION:
            self._on_continuation(stream_id, flags, payload)
        elif kind == wire.PUSH_PROMISE:
            raise ProtocolError(wire.PROTOCOL_ERROR, "clients push nothing")
        # PRIORITY says nothing that we use, GOAWAY that no more streams come; others are unknown.

    def _on_settings(self, payload: bytes) -> None:
        for name, value in wire.read_settings(payload):
            if name == wire.SETTINGS_INITIAL_WINDOW_SIZE:
                if value > wire.MAX_WINDOW:
                    raise ProtocolError(wire.FLOW_CONTROL_ERROR, "a window is too large")
                for call in self.calls.values():
                    call.window += value - self.initial_window
                self.initial_window = value
        self._answer(wire.frame(wire.SETTINGS, wire.ACK, 0, b""))
        self._wake()

    def _on_window(self, stream_id: int, increment: int) -> None:
        if not increment:
            raise ProtocolError(wire.PROTOCOL_ERROR, "a window grows by nothing")
        if not stream_id:
            self.window += increment
            if self.window > wire.MAX_WINDOW:
                raise ProtocolError(wire.FLOW_CONTROL_ERROR, "the connection's window is too large")
        else:
            call = self.calls.get(stream_id)
            if call is None:
                return
            call.window += increment
            if call.window > wire.MAX_WINDOW:
                self.send(wire.reset_frame(stream_id, wire.FLOW_CONTROL_ERROR))
                call.reset()
        self._wake()

    def _answer(self, data: bytes) -> None:
        """Sends what a frame of the peer's asks for, which no window bounds."""
        transport = self._transport
        if self.is_paused and transport and transport.get_write_buffer_size() > _MAX_UNREAD_BYTES:
            transport.abort()
            return
        self.send(data)

    def _wake(self) -> None:
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            for future in waiting:
                if not future.done():
                    future.set_result(None)


def _unpadded(payload: bytes) -> bytes:
    if not payload or payload[0] >= len(payload):
        raise ProtocolError(wire.PROTOCOL_ERROR, "the padding is longer than the frame")
    return payload[1 : len(payload) - payload[0]]


def _peer_name(transport: asyncio.BaseTransport) -> str:
    name = transport.get_extra_info("peername")
    if isinstance(name, tuple):
        kind = "ipv6" if ":" in str(name[0]) else "ipv4"
        return f"{kind}:{name[0]}:{name[1]}"
    return f"unix:{name or ''}"
