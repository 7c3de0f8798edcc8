"""HTTP/2 frame by frame, for what no client library would send."""

import socket
import struct
from collections.abc import Iterable

from jh2 import _hazmat

GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS = 1, 1, 4


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


class Connection:
    """A connection on which the greeting has been said.

    Args:
        port: The front door's, on loopback.

    Attributes:
        is_over: Whether the other side was seen to end it.
        was_reset: Whether the other side was seen to reset a stream.
    """

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self._encoder = _hazmat.Encoder()
        self._decoder = _hazmat.Decoder()
        self._buffer = b""
        self.is_over = self.was_reset = False
        self.send(GREETING + frame(SETTINGS))

    def send(self, data: bytes) -> bool:
        """Sends, and returns whether the other side still listens."""
        try:
            self.socket.sendall(data)
        except (ConnectionError, TimeoutError):
            return False
        return True

    def block(self, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        return bytes(self._encoder.encode([(name, value, True) for name, value in headers]))

    def frames(
        self, wait_s: float = 1.0, *, until_end: bool = False
    ) -> list[tuple[int, int, int, bytes]]:
        """Returns the frames that come until the end, or silence.

        Args:
            wait_s: Silence before the first frame.
            until_end: Whether that is also silence after it, which is a quarter of a second else.
        """
        self.socket.settimeout(wait_s)
        try:
            while chunk := self.socket.recv(65536):
                self._buffer += chunk
                pause_s = wait_s if until_end else min(wait_s, 0.25)
                self.socket.settimeout(0.05 if self._has_ended() else pause_s)
            self.is_over = True
        except TimeoutError:
            pass  # It stays open and says nothing.
        except ConnectionError:
            self.is_over = True
        found, used = self._whole()
        self._buffer = self._buffer[used:]
        self.was_reset |= any(kind == RST for kind, *_ in found)
        return found

    def _whole(self) -> tuple[list[tuple[int, int, int, bytes]], int]:
        found, at = [], 0
        while len(self._buffer) >= at + 9:
            size = int.from_bytes(self._buffer[at : at + 3], "big")
            if len(self._buffer) < at + 9 + size:
                break
            kind, flags, stream = struct.unpack(">BBI", self._buffer[at + 3 : at + 9])
            found.append((kind, flags, stream, self._buffer[at + 9 : at + 9 + size]))
            at += 9 + size
        return found, at

    def _has_ended(self) -> bool:
        """Says whether the end of a stream or of the connection has come."""
        return any(
            kind in (RST, GOAWAY) or (kind in (HEADERS, DATA) and flags & END_STREAM)
            for kind, flags, *_ in self._whole()[0]
        )

    def answers(self, wait_s: float = 2.0, *, until_end: bool = False) -> list[dict[bytes, bytes]]:
        """Returns the header blocks that come; trailers are blocks too."""
        return [
            {bytes(name): bytes(value) for name, value, *_ in self._decoder.decode(payload)}
            for kind, _, _, payload in self.frames(wait_s, until_end=until_end)
            if kind == HEADERS
        ]

    def close(self) -> None:
        self.socket.close()
