"""HTTP/2: what the frames of one connection mean."""

from collections.abc import Callable
from typing import Any

from services.kit.grpc_server import wire
from services.kit.grpc_server.call import Call
from services.kit.grpc_server.header_blocks import HeaderDecoder
from services.kit.grpc_server.limits import Shared
from services.kit.grpc_server.link import MAX_HEADER_BYTES, Link
from services.kit.grpc_server.request import MalformedError
from services.kit.grpc_server.wire import ProtocolError

_MAX_BLOCK_BYTES = 128 * 1024
# A connection's window is so large that it is opened again only now and then.
_WINDOW_STEP = wire.MAX_WINDOW // 2

Dispatch = Callable[["Connection", int, Any], Call]
"""Makes a call of a stream's headers, puts it into `calls`, and begins it."""


class Connection(Link):
    """Speaks HTTP/2 with one peer.

    Args:
        dispatch: Makes calls; raises `MalformedError` for headers that HTTP/2 does not allow.
        opened: Told when the connection stands.
        closed: Told when it is gone.
        shared: What it has together with the server's other connections.
    """

    def __init__(
        self,
        dispatch: Dispatch,
        opened: Callable[["Connection"], None],
        closed: Callable[["Connection"], None],
        shared: Shared,
    ) -> None:
        super().__init__(opened, closed, shared)
        self.window = wire.DEFAULT_WINDOW
        self.initial_window = wire.DEFAULT_WINDOW
        self._dispatch = dispatch
        self._decoder = HeaderDecoder(2 * MAX_HEADER_BYTES)
        self._received = 0
        self._block: bytearray | None = None
        self._block_stream_id = 0
        self._block_flags = 0

    def _frames(self, data: bytes) -> bytes:
        """Handles the whole frames in `data`, and returns the rest."""
        position = 0
        end = len(data)
        if not self._has_greeted:
            position = _greeting(data)
            if not position:
                return data
            self._has_greeted = True
        unpack = wire.FRAME_HEAD.unpack_from
        for _ in range(self.shared.limits.turn_frames):
            if end - position < wire.FRAME_HEAD_BYTES:
                break
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
            if self._is_closing:
                return b""
            if self._is_turn_over:
                break
        else:
            self.end_turn()
        return data[position:]

    def _on_data(self, stream_id: int, flags: int, payload: bytes) -> None:
        size = len(payload)
        self._received += size
        if self._received > _WINDOW_STEP:
            self.send(wire.window_frame(0, self._received))
            self._received = 0
        if not stream_id & 1 or stream_id > self._last_stream_id:
            raise ProtocolError(wire.PROTOCOL_ERROR, "DATA on a stream that is not open")
        if flags & wire.PADDED:
            payload = _unpadded(payload)
        call = self.calls.get(stream_id)
        if call is None:  # It is over on our side; the peer learns it about now.
            return
        if call.is_half_closed:
            raise ProtocolError(wire.STREAM_CLOSED, "DATA after the end of a stream")
        if flags & wire.PADDED:
            call.skip(size - len(payload))
        call.feed(payload, bool(flags & wire.END_STREAM))

    def _on_headers(self, stream_id: int, flags: int, payload: bytes) -> None:
        if not stream_id & 1:
            raise ProtocolError(wire.PROTOCOL_ERROR, "a stream has an even number")
        if flags & wire.PADDED:
            payload = _unpadded(payload)
        if flags & wire.PRIORITIZED:
            if len(payload) < 5:
                raise ProtocolError(wire.FRAME_SIZE_ERROR, "a priority is cut off")
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
        is_last = flags & wire.END_HEADERS
        if len(self._block) > _MAX_BLOCK_BYTES or not (payload or is_last):
            raise ProtocolError(wire.ENHANCE_YOUR_CALM, "a header block does not end")
        if is_last:
            block, self._block = bytes(self._block), None
            self._on_block(stream_id, self._block_flags, block)

    def _on_block(self, stream_id: int, flags: int, block: bytes) -> None:
        headers = self._decoder.decode(block)
        is_last = bool(flags & wire.END_STREAM)
        if stream_id <= self._last_stream_id:
            self._on_trailers(stream_id, is_last, headers)
            return
        self._last_stream_id = stream_id
        shared, limits = self.shared, self.shared.limits
        if (
            self.is_drained()
            or len(self.calls) + self._leaving >= limits.streams
            or (shared.calls > limits.crowd and not self._fits_crowd(headers))
        ):
            self.send(wire.reset_frame(stream_id, wire.REFUSED_STREAM))
            return
        try:
            call = self._dispatch(self, stream_id, headers)
        except MalformedError:
            self.send(wire.reset_frame(stream_id, wire.PROTOCOL_ERROR))
            return
        if is_last and not call.done():
            call.feed(b"", True)

    def _fits_crowd(self, headers: Any) -> bool:
        shared, limits = self.shared, self.shared.limits
        if shared.calls + len(shared.leaving) >= limits.calls:
            return False
        return sum(len(name) + len(value) for name, value, _ in headers) <= (
            limits.crowd_header_bytes
        )

    def _on_trailers(self, stream_id: int, is_last: bool, headers: Any) -> None:
        call = self.calls.get(stream_id)
        if call is None:
            # Trailers may come after the end; a request comes on a stream of its own.
            if any(name.startswith(b":") for name, _, _ in headers):
                raise ProtocolError(wire.STREAM_CLOSED, "a request on a stream that is closed")
            return
        if not is_last or call.is_half_closed:
            raise ProtocolError(wire.PROTOCOL_ERROR, "headers in the middle of a stream")
        call.feed(b"", True)

    def _on_other(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if kind == wire.WINDOW_UPDATE:
            self._on_window(stream_id, wire.read_number(payload) & wire.MAX_WINDOW)
        elif kind == wire.RST_STREAM:
            wire.read_number(payload)
            if not 0 < stream_id <= self._last_stream_id:
                raise ProtocolError(wire.PROTOCOL_ERROR, "RST_STREAM on a stream that is not open")
            call = self.calls.get(stream_id)
            if call is not None:
                call.reset()
        elif kind == wire.CONTINUATION:
            self._on_continuation(stream_id, flags, payload)
        elif kind == wire.PRIORITY:  # It says nothing that we use.
            if len(payload) != 5 or not stream_id:
                raise ProtocolError(wire.PROTOCOL_ERROR, "a PRIORITY is none")
        elif kind == wire.PUSH_PROMISE:
            raise ProtocolError(wire.PROTOCOL_ERROR, "clients push nothing")
        elif stream_id and kind in (wire.SETTINGS, wire.PING, wire.GOAWAY):
            raise ProtocolError(wire.PROTOCOL_ERROR, "a stream has what is the connection's")
        elif kind == wire.PING:
            self._on_ping(flags, payload)
        elif kind == wire.SETTINGS:
            self._on_settings(flags, payload)
        # GOAWAY says that no more streams come; others are unknown.

    def _on_ping(self, flags: int, payload: bytes) -> None:
        if len(payload) != 8:
            raise ProtocolError(wire.FRAME_SIZE_ERROR, "a PING has another size")
        if not flags & wire.ACK:
            self.send(wire.frame(wire.PING, wire.ACK, 0, payload))
        else:
            self.last_ping_answered(payload)

    def _on_settings(self, flags: int, payload: bytes) -> None:
        if flags & wire.ACK:
            if payload:
                raise ProtocolError(wire.FRAME_SIZE_ERROR, "an acknowledgement holds settings")
            return
        window = wire.read_settings(payload).get(
            wire.SETTINGS_INITIAL_WINDOW_SIZE, self.initial_window
        )
        if window != self.initial_window:
            difference = window - self.initial_window
            self.initial_window = window
            for call in self.calls.values():
                call.window += difference
                if call.window > wire.MAX_WINDOW:
                    raise ProtocolError(wire.FLOW_CONTROL_ERROR, "a window is too large")
            if self.calls:
                self.end_turn()  # Changing many windows takes time.
        self.send(wire.frame(wire.SETTINGS, wire.ACK, 0, b""))
        self.wake_all()

    def _on_window(self, stream_id: int, increment: int) -> None:
        if not increment:
            raise ProtocolError(wire.PROTOCOL_ERROR, "a window grows by nothing")
        if not stream_id:
            self.window += increment
            if self.window > wire.MAX_WINDOW:
                raise ProtocolError(wire.FLOW_CONTROL_ERROR, "the connection's window is too large")
            self.wake_all()
            return
        if not stream_id & 1 or stream_id > self._last_stream_id:
            raise ProtocolError(wire.PROTOCOL_ERROR, "WINDOW_UPDATE on a stream that is not open")
        call = self.calls.get(stream_id)
        if call is None:
            return
        call.window += increment
        if call.window > wire.MAX_WINDOW:
            self.send(wire.reset_frame(stream_id, wire.FLOW_CONTROL_ERROR))
            call.reset()
        elif self._waiting:
            self._wake(stream_id)


def _greeting(data: bytes) -> int:
    """Returns where the first frame stands; 0 where it has not come."""
    preface = wire.PREFACE
    if not preface.startswith(data[: len(preface)]):
        raise ProtocolError(wire.PROTOCOL_ERROR, "this is not HTTP/2")
    if len(data) < len(preface) + wire.FRAME_HEAD_BYTES:
        return 0
    _, _, kind, flags, _ = wire.FRAME_HEAD.unpack_from(data, len(preface))
    if kind != wire.SETTINGS or flags & wire.ACK:
        raise ProtocolError(wire.PROTOCOL_ERROR, "the first frame is not SETTINGS")
    return len(preface)


def _unpadded(payload: bytes) -> bytes:
    if not payload or payload[0] >= len(payload):
        raise ProtocolError(wire.PROTOCOL_ERROR, "the padding is longer than the frame")
    return payload[1 : len(payload) - payload[0]]
