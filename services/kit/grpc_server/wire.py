"""HTTP/2 on the wire: RFC 9113's frames, and header blocks in RFC 7541's plainest form."""

import base64
import re
import struct
from collections.abc import Iterable

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA = 0x0
HEADERS = 0x1
PRIORITY = 0x2
RST_STREAM = 0x3
SETTINGS = 0x4
PUSH_PROMISE = 0x5
PING = 0x6
GOAWAY = 0x7
WINDOW_UPDATE = 0x8
CONTINUATION = 0x9

END_STREAM = 0x1
ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITIZED = 0x20

NO_ERROR = 0x0
PROTOCOL_ERROR = 0x1
INTERNAL_ERROR = 0x2
FLOW_CONTROL_ERROR = 0x3
STREAM_CLOSED = 0x5
FRAME_SIZE_ERROR = 0x6
REFUSED_STREAM = 0x7
CANCEL = 0x8
COMPRESSION_ERROR = 0x9
ENHANCE_YOUR_CALM = 0xB

SETTINGS_ENABLE_PUSH = 0x2
SETTINGS_MAX_CONCURRENT_STREAMS = 0x3
SETTINGS_INITIAL_WINDOW_SIZE = 0x4
SETTINGS_MAX_FRAME_SIZE = 0x5
SETTINGS_MAX_HEADER_LIST_SIZE = 0x6

DEFAULT_WINDOW = 65_535
MAX_WINDOW = 2**31 - 1
FRAME_HEAD_BYTES = 9
MAX_FRAME_BYTES = 16_384
"""The largest frame that either side sends: HTTP/2's default, which Envoy keeps."""

FRAME_HEAD = struct.Struct(">BHBBI")
_MESSAGE_HEAD = struct.Struct(">?I")
_SETTING = struct.Struct(">HI")
_NUMBER = struct.Struct(">I")

# Every block of ours sets the dynamic table to no entries: a peer that allows a smaller table than
# the default is owed that in the block that comes next (RFC 7541, 4.2), whichever it is.
_NO_TABLE = b"\x20"
_STATUS_200 = b"\x88"
_NAME = re.compile(rb":?[0-9a-z_.\-]+")
_VALUE = re.compile(rb"(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?")

Header = tuple[str, str | bytes]


class ProtocolError(Exception):
    """The peer broke HTTP/2; the connection ends.

    Args:
        code: RFC 9113's error code.
        message: What was wrong.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    """Returns a frame."""
    size = len(payload)
    return FRAME_HEAD.pack(size >> 16, size & 0xFFFF, kind, flags, stream_id) + payload


def data_frame(stream_id: int, message: bytes) -> bytes:
    """Returns the frame with one gRPC message that fits into it."""
    size = len(message) + 5
    return b"%b%b%b" % (
        FRAME_HEAD.pack(size >> 16, size & 0xFFFF, DATA, 0, stream_id),
        _MESSAGE_HEAD.pack(False, len(message)),
        message,
    )


def framed(message: bytes) -> bytes:
    """Returns a gRPC message with its length before it."""
    return _MESSAGE_HEAD.pack(False, len(message)) + message


def headers_frame(stream_id: int, block: bytes, flags: int = 0) -> bytes:
    """Returns the frame, or frames, with a whole header block."""
    if len(block) <= MAX_FRAME_BYTES:
        return frame(HEADERS, END_HEADERS | flags, stream_id, block)
    pieces = [block[i : i + MAX_FRAME_BYTES] for i in range(0, len(block), MAX_FRAME_BYTES)]
    return b"".join(
        (
            frame(HEADERS, flags, stream_id, pieces[0]),
            *(frame(CONTINUATION, 0, stream_id, piece) for piece in pieces[1:-1]),
            frame(CONTINUATION, END_HEADERS, stream_id, pieces[-1]),
        )
    )


def settings_frame(settings: Iterable[tuple[int, int]]) -> bytes:
    """Returns the frame with our settings."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*each) for each in settings))


def read_settings(payload: bytes) -> dict[int, int]:
    """Returns the settings in a frame, of each the last.

    Raises:
        ProtocolError: It is not a list of settings, or one has no meaning.
    """
    if len(payload) % _SETTING.size:
        raise ProtocolError(FRAME_SIZE_ERROR, "a SETTINGS frame is cut off")
    settings = dict(_SETTING.iter_unpack(payload))
    if settings.get(SETTINGS_INITIAL_WINDOW_SIZE, 0) > MAX_WINDOW:
        raise ProtocolError(FLOW_CONTROL_ERROR, "a window is too large")
    if not MAX_FRAME_BYTES <= settings.get(SETTINGS_MAX_FRAME_SIZE, MAX_FRAME_BYTES) < 2**24:
        raise ProtocolError(PROTOCOL_ERROR, "a frame size is none")
    if settings.get(SETTINGS_ENABLE_PUSH, 0) > 1:
        raise ProtocolError(PROTOCOL_ERROR, "a setting that is yes or no is neither")
    return settings


def reset_frame(stream_id: int, code: int) -> bytes:
    """Returns the frame that ends a stream."""
    return frame(RST_STREAM, 0, stream_id, _NUMBER.pack(code))


def window_frame(stream_id: int, increment: int) -> bytes:
    """Returns the frame that lets the peer send more."""
    return frame(WINDOW_UPDATE, 0, stream_id, _NUMBER.pack(increment))


def goaway_frame(last_stream_id: int, code: int) -> bytes:
    """Returns the frame after which the peer opens no stream here."""
    return frame(GOAWAY, 0, 0, _NUMBER.pack(last_stream_id) + _NUMBER.pack(code))


def read_number(payload: bytes) -> int:
    """Returns the number that a frame consists of.

    Raises:
        ProtocolError: It is not four bytes.
    """
    if len(payload) != 4:
        raise ProtocolError(FRAME_SIZE_ERROR, "a frame of one number has another size")
    return int(_NUMBER.unpack(payload)[0])


def header_block(headers: Iterable[Header]) -> bytes:
    """Returns headers as literals that touch no table, so that a block can be kept and sent again.

    Values of names that end in `-bin` are bytes, and go out in base64 as gRPC has it; others go
    out in UTF-8, without the white space around them.

    Raises:
        ValueError: A name or a value cannot be sent.
    """
    return _NO_TABLE + b"".join(_literal(name, value) for name, value in headers)


def _literal(name: str, value: str | bytes) -> bytes:
    if (name, value) == (":status", "200"):
        return _STATUS_200
    key = name.encode("ascii")
    if name.endswith("-bin"):
        if not isinstance(value, bytes):
            raise ValueError(f"the value of {name} is not bytes")
        text = base64.b64encode(value).rstrip(b"=")
    else:
        text = (value if isinstance(value, bytes) else value.encode()).strip(b" \t")
    if not _NAME.fullmatch(key) or not _VALUE.fullmatch(text):
        raise ValueError(f"the header {name!r} has characters that cannot be sent")
    return b"\0" + _length(len(key)) + key + _length(len(text)) + text


def _length(value: int) -> bytes:
    if value < 127:
        return bytes((value,))
    out = bytearray((127,))
    value -= 127
    while value >= 128:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def binary_value(value: bytes) -> bytes:
    """Returns what a header that ends in `-bin` stands for.

    Raises:
        ValueError: It is not base64.
    """
    value = value.strip().rstrip(b"=")
    return base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
