"""The bytes of one request, and the messages in them."""

import zlib
from typing import TYPE_CHECKING

import grpc

from services.kit.grpc_server.limits import RefusedError

if TYPE_CHECKING:
    from services.kit.grpc_server.connection import Connection

HEAD_BYTES = 5
"""What stands before each message: whether it is compressed, and its length."""

_WINDOW_BITS = {"gzip": 31, "deflate": 15}


class Inbox:
    """Holds what has come of a request and is not read, and cuts it into messages.

    Messages stay as they came until they are asked for, so that what is held is what was sent,
    however many messages it is and however well they are compressed.

    Args:
        connection: Where the request comes in; it counts what is held.
        encoding: How compressed messages are compressed.
        is_stream: Whether what is read is held no more; otherwise it is until `close`.
    """

    def __init__(self, connection: "Connection", encoding: str, is_stream: bool) -> None:
        self._connection = connection
        self._encoding = encoding
        self._is_stream = is_stream
        self._bytes = bytearray()
        self._held = 0

    def __len__(self) -> int:
        return len(self._bytes)

    def add(self, data: bytes) -> None:
        """Takes in more of the request.

        Raises:
            RefusedError: `UNAVAILABLE`: too much is held already.
        """
        self._hold(len(data))
        self._bytes += data

    def next(self) -> bytes | None:
        """Returns the next message, or None where it is not whole.

        Raises:
            RefusedError: The message is too large, or cannot be decompressed.
        """
        raw = self._bytes
        if len(raw) < HEAD_BYTES:
            return None
        size = int.from_bytes(raw[1:HEAD_BYTES], "big")
        limit = self._connection.shared.max_message_bytes
        if size > limit:
            raise RefusedError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"A message of {size} bytes is larger than the {limit} that the service takes.",
            )
        stop = HEAD_BYTES + size
        if len(raw) < stop:
            return None
        message = bytes(memoryview(raw)[HEAD_BYTES:stop])
        flag = raw[0]
        del raw[:stop]
        if self._is_stream:
            self._hold(-stop)
        if flag:
            message = self._inflated(message, flag)
        return message

    def close(self) -> None:
        """Holds nothing any more."""
        self._bytes = bytearray()
        self._connection.hold(-self._held)
        self._held = 0

    def _hold(self, count: int) -> None:
        self._connection.hold(count)
        self._held += count

    def _inflated(self, message: bytes, flag: int) -> bytes:
        # PROTOCOL-HTTP2 and gRPC's compression.md say which status each of these has.
        if flag != 1 or self._encoding in ("", "identity"):
            raise RefusedError(
                grpc.StatusCode.INTERNAL, "A message is compressed, and nothing says how."
            )
        bits = _WINDOW_BITS.get(self._encoding)
        if bits is None:
            raise RefusedError(
                grpc.StatusCode.UNIMPLEMENTED, "The message's compression is not supported."
            )
        self._connection.end_turn()  # This may have taken long; it is others' turn.
        limit = self._connection.shared.max_message_bytes
        inflater = zlib.decompressobj(bits)
        try:
            whole = inflater.decompress(message, limit + 1)
        except zlib.error:
            raise RefusedError(
                grpc.StatusCode.INTERNAL, "The message cannot be decompressed."
            ) from None
        if len(whole) > limit:
            raise RefusedError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"The message holds more than the {limit} bytes that the service takes.",
            )
        if not inflater.eof or inflater.unused_data:
            raise RefusedError(
                grpc.StatusCode.INTERNAL, "The message's compressed form is cut off or too long."
            )
        if not self._is_stream:
            self._hold(len(whole))
        return whole
