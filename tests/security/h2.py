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
    """

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=5)
        self._encoder = _hazmat.Encoder()
        self._decoder = _hazmat.Decoder()
        self._buffer = b""
        self.is_over = False
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

    def frames(self, wait_s: float = 1.0) -> list[tuple[int, int, int, bytes]]:
        """Returns the frames that come until the end, or `wait_s` of silence."""
        self.socket.settimeout(wait_s)
        try:
            while chunk := self.socket.recv(65536):
                self._buffer += chunk
                self.socket.settimeout(min(wait_s, 0.25))
            self.is_over = True
        except TimeoutError:
            pass  # It stays open and says nothing.
        except ConnectionError:
            self.is_over = True
        found = []
        while len(self._buffer) >= 9:
            size = int.from_bytes(self._buffer[:3], "big")
            kind, flags, stream = struct.unpack(">BBI", self._buffer[3:9])
            if len(self._buffer) < 9 + size:
                break
            found.append((kind, flags, stream, self._buffer[9 : 9 + size]))
            self._buffer = self._buffer[9 + size :]
        return found

    def answers(self, wait_s: float = 2.0) -> list[dict[bytes, bytes]]:
        """Returns the header blocks that come; trailers are blocks too."""
        return [
            {bytes(name): bytes(value) for name, value, *_ in self._decoder.decode(payload)}
            for kind, _, _, payload in self.frames(wait_s)
            if kind == HEADERS
        ]

    def close(self) -> None:
        self.socket.close()
