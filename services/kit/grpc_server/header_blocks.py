"""Reads header blocks (HPACK, RFC 7541)."""

from collections.abc import Sequence
from typing import Any

from jh2 import _hazmat

from services.kit.grpc_server.wire import COMPRESSION_ERROR, ProtocolError

_MAX_KNOWN = 64
# Of a block, and of what it means: the table makes much of few bytes.
_MAX_KNOWN_BYTES = 256
_MAX_MEANT_BYTES = 4096
# How many more blocks a peer may send that were not known than such that were.
_CREDIT = 64


class KnownHeaders(list[tuple[bytes, bytes, bool]]):
    """Names and values of a block that came before, and what its reader found in them.

    Attributes:
        request: For the reader, which is given the same object each time.
    """

    request: Any = None


class HeaderDecoder:
    """Reads the header blocks of one connection, in the order in which they come.

    A peer that asks for the same again and again sends the same block. One that changes nothing in
    the table means the same for as long as no other does, and is decoded once.

    Args:
        max_bytes: The most that one block may hold once it is decoded.
    """

    def __init__(self, max_bytes: int) -> None:
        self._decode = _hazmat.Decoder(max_bytes).decode
        self._known: dict[bytes, KnownHeaders] = {}
        # Of peers whose blocks all differ nothing is remembered.
        self._credit = _CREDIT

    def decode(self, block: bytes) -> Sequence[tuple[bytes, bytes, bool]]:
        """Returns names and values.

        Raises:
            ProtocolError: The block cannot be decoded.
        """
        if self._credit <= 0:
            return self._decoded(block)
        known = self._known.get(block)
        if known is not None:
            self._credit = min(self._credit + 1, _CREDIT)
            return known
        self._credit -= 1
        headers = self._decoded(block)
        if _changes_table(block):
            self._known.clear()
        elif len(block) <= _MAX_KNOWN_BYTES and _size(headers) <= _MAX_MEANT_BYTES:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            known = self._known[block] = KnownHeaders(headers)
            return known
        return headers

    def _decoded(self, block: bytes) -> Sequence[tuple[bytes, bytes, bool]]:
        try:
            # Only bytes come where the third parameter says so; str would fail on bytes over 127.
            decoded: Any = self._decode(block, True)
        except (_hazmat.HPACKError, _hazmat.OversizedHeaderListError) as error:
            raise ProtocolError(COMPRESSION_ERROR, str(error)) from None
        except BaseException as error:
            # Some blocks that are cut off make the decoder panic, which is no `Exception`.
            if type(error).__name__ != "PanicException":
                raise
            raise ProtocolError(COMPRESSION_ERROR, "the headers cannot be decoded") from None
        return decoded  # type: ignore[no-any-return]


def _size(headers: Sequence[tuple[bytes, bytes, bool]]) -> int:
    return sum(len(name) + len(value) for name, value, _ in headers)


def _changes_table(block: bytes) -> bool:
    """Whether a block that can be decoded changes the table (RFC 7541, section 6)."""
    at, end = 0, len(block)
    try:
        while at < end:
            first = block[at]
            if first >= 0x80:  # a field of the table
                at = _after_number(block, at, 0x7F)
            elif first >= 0x20:  # a field that goes into it, or its size
                return True
            else:
                at = _after_number(block, at, 0x0F)
                if not first & 0x0F:  # the name, which no table has
                    at = _after_text(block, at)
                at = _after_text(block, at)
    except IndexError:  # it has no end
        return True
    return False


def _after_number(block: bytes, at: int, prefix: int) -> int:
    at += 1
    if block[at - 1] & prefix == prefix:
        while block[at] & 0x80:
            at += 1
        at += 1
    return at


def _after_text(block: bytes, at: int) -> int:
    end = _after_number(block, at, 0x7F)
    length = block[at] & 0x7F
    if length == 0x7F:
        for shift, byte in enumerate(block[at + 1 : end]):
            length += (byte & 0x7F) << 7 * shift
    return end + length
