"""What peers send that HTTP/2 and gRPC do not allow, or allow and do not mean.

Each test says what that peer gets; and then somebody else is served.
"""

import asyncio
import contextlib
import gzip
import os
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import jh2.connection
import jh2.events
import pytest
from jh2.config import H2Configuration

from grpc_server_harness import Peer, Running, running
from services.kit.grpc_server import Limits, wire

MIB = 1024 * 1024
LIMITS = Limits(
    held_bytes=8 * MIB,
    unread_bytes=MIB // 4,
    check_s=0.1,
    greeting_checks=3,
    stuck_checks=8,
    connections=24,
    crowd=20,
    crowd_header_bytes=4096,
)
MAX_MESSAGE_BYTES = 3 * MIB
OPEN = wire.END_HEADERS
ROOM = wire.settings_frame(((wire.SETTINGS_INITIAL_WINDOW_SIZE, 2**30),)) + wire.window_frame(
    0, 2**30
)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(limits=LIMITS, max_message_bytes=MAX_MESSAGE_BYTES) as found:
        yield found


@pytest.fixture(autouse=True)
def others_are_served(server: Running) -> Iterator[None]:
    yield
    assert server.is_well()
    server.until(lambda: not server.connections())
    shared = server.shared()
    server.until(lambda: (shared.calls, shared.held, len(shared.leaving)) == (0, 0, 0))
    assert not server.faults


@pytest.fixture
def peer(server: Running) -> Iterator[Peer]:
    with Peer(server.port) as found:
        yield found


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    return wire.frame(kind, flags, stream_id, payload)


# --- the greeting ---


@pytest.mark.parametrize(
    "greeting",
    [
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX",
        bytes(100),
        b"\x16\x03\x01\x02\x00\x01\x00",  # TLS
        wire.PREFACE + frame(wire.PING, 0, 0, bytes(8)),
        wire.PREFACE + frame(wire.SETTINGS, wire.ACK, 0),
        wire.PREFACE + frame(wire.HEADERS, OPEN, 1, b"\x82"),
    ],
)
def test_a_greeting_that_is_none(server: Running, greeting: bytes) -> None:
    with Peer(server.port, greet=False) as peer:
        peer.send(greeting)
        assert peer.goaway() == wire.PROTOCOL_ERROR


def test_a_greeting_that_does_not_come(server: Running) -> None:
    with Peer(server.port, greet=False) as silent, Peer(server.port, greet=False) as slow:
        slow.send(wire.PREFACE[:10])
        begun = time.monotonic()
        for peer in (silent, slow):
            while peer.frame() is not None:
                pass
        assert time.monotonic() - begun < 15


def test_a_greeting_byte_by_byte(server: Running) -> None:
    with Peer(server.port, greet=False) as peer:
        peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        call = wire.headers_frame(1, peer.headers("Echo")) + frame(
            wire.DATA, wire.END_STREAM, 1, wire.framed(b"slow")
        )
        for byte in wire.PREFACE + wire.settings_frame(()) + call:
            peer.send(bytes((byte,)))
        assert peer.answer(1)[1] == b"slow"


# --- frames that break the protocol; each ends the connection with this code ---

PROTOCOL, SIZE, FLOW = wire.PROTOCOL_ERROR, wire.FRAME_SIZE_ERROR, wire.FLOW_CONTROL_ERROR
COMPRESSION, CALM = wire.COMPRESSION_ERROR, wire.ENHANCE_YOUR_CALM
BROKEN = {
    "a frame that is too large": (b"\x00\x40\x01\x00\x00\x00\x00\x00\x01", SIZE),
    "the largest size": (b"\xff\xff\xff\x00\x00\x00\x00\x00\x01", SIZE),
    "DATA on stream 0": (frame(wire.DATA, 0, 0, b"x"), PROTOCOL),
    "DATA on an idle stream": (frame(wire.DATA, 0, 3, b"x"), PROTOCOL),
    "DATA on the server's stream": (frame(wire.DATA, 0, 2, b"x"), PROTOCOL),
    "HEADERS on stream 0": (frame(wire.HEADERS, OPEN, 0, b"\x82"), PROTOCOL),
    "HEADERS on an even stream": (frame(wire.HEADERS, OPEN, 2, b"\x82"), PROTOCOL),
    "CONTINUATION of nothing": (frame(wire.CONTINUATION, OPEN, 1, b"\x82"), PROTOCOL),
    "a block that is interrupted": (
        frame(wire.HEADERS, 0, 1, b"\x82") + frame(wire.DATA, 0, 1),
        PROTOCOL,
    ),
    "CONTINUATION elsewhere": (
        frame(wire.HEADERS, 0, 1, b"\x82") + frame(wire.CONTINUATION, OPEN, 3, b"\x82"),
        PROTOCOL,
    ),
    "padding as long as the frame": (frame(wire.HEADERS, OPEN | wire.PADDED, 1, b"\1"), PROTOCOL),
    "padding longer than the frame": (
        frame(wire.HEADERS, OPEN | wire.PADDED, 1, b"\xff\x82\x82"),
        PROTOCOL,
    ),
    "padding of nothing": (frame(wire.HEADERS, OPEN | wire.PADDED, 1), PROTOCOL),
    "a priority that is cut off": (
        frame(wire.HEADERS, OPEN | wire.PRIORITIZED, 1, b"\0\0\0\0"),
        SIZE,
    ),
    "a priority behind padding": (
        frame(wire.HEADERS, OPEN | wire.PRIORITIZED | wire.PADDED, 1, b"\3\0\0\0\0\0\0"),
        SIZE,
    ),
    "PRIORITY of another size": (frame(wire.PRIORITY, 0, 1, bytes(4)), PROTOCOL),
    "PRIORITY on stream 0": (frame(wire.PRIORITY, 0, 0, bytes(5)), PROTOCOL),
    "RST_STREAM on stream 0": (wire.reset_frame(0, 8), PROTOCOL),
    "RST_STREAM on an idle stream": (wire.reset_frame(5, 8), PROTOCOL),
    "RST_STREAM of another size": (frame(wire.RST_STREAM, 0, 1, bytes(5)), SIZE),
    "SETTINGS on a stream": (frame(wire.SETTINGS, 0, 1), PROTOCOL),
    "SETTINGS cut off": (frame(wire.SETTINGS, 0, 0, bytes(7)), SIZE),
    "an acknowledgement with settings": (frame(wire.SETTINGS, wire.ACK, 0, bytes(6)), SIZE),
    "a window that is too large": (wire.settings_frame(((4, 2**31),)), FLOW),
    "a frame size that is too small": (wire.settings_frame(((5, 16_383),)), PROTOCOL),
    "a frame size that is too large": (wire.settings_frame(((5, 2**24),)), PROTOCOL),
    "push that is neither yes nor no": (wire.settings_frame(((2, 2),)), PROTOCOL),
    "PUSH_PROMISE": (frame(wire.PUSH_PROMISE, OPEN, 1, b"\0\0\0\2\x82"), PROTOCOL),
    "PING of another size": (frame(wire.PING, 0, 0, bytes(7)), SIZE),
    "PING on a stream": (frame(wire.PING, 0, 1, bytes(8)), PROTOCOL),
    "GOAWAY on a stream": (frame(wire.GOAWAY, 0, 1, bytes(8)), PROTOCOL),
    "WINDOW_UPDATE of nothing": (wire.window_frame(0, 0), PROTOCOL),
    "WINDOW_UPDATE too large": (wire.window_frame(0, wire.MAX_WINDOW), FLOW),
    "WINDOW_UPDATE of another size": (frame(wire.WINDOW_UPDATE, 0, 0, bytes(3)), SIZE),
    "WINDOW_UPDATE on an idle stream": (wire.window_frame(7, 1), PROTOCOL),
    "an index that is not there": (frame(wire.HEADERS, OPEN, 1, b"\xfe"), COMPRESSION),
    "index 0": (frame(wire.HEADERS, OPEN, 1, b"\x80"), COMPRESSION),
    "a number without end": (frame(wire.HEADERS, OPEN, 1, b"\xff" * 20), COMPRESSION),
    "a literal that is cut off": (frame(wire.HEADERS, OPEN, 1, b"\x40\x0aab"), COMPRESSION),
    "a block that makes the decoder panic": (frame(wire.HEADERS, OPEN, 1, b"\x82@"), COMPRESSION),
    "another such block": (frame(wire.HEADERS, OPEN, 1, b"\xff\xff"), COMPRESSION),
    "a table that is too large": (frame(wire.HEADERS, OPEN, 1, b"\x3f\xe2\x1f\x82"), COMPRESSION),
    "a flood of CONTINUATION": (
        frame(wire.HEADERS, 0, 1, b"\x82") + frame(wire.CONTINUATION, 0, 1, bytes(16_000)) * 9,
        CALM,
    ),
    "a flood of empty CONTINUATION": (
        frame(wire.HEADERS, 0, 1, b"\x82") + frame(wire.CONTINUATION, 0, 1) * 500,
        CALM,
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_frame_that_breaks_the_protocol(peer: Peer, what: str) -> None:
    frames, code = BROKEN[what]
    peer.send(frames)
    assert peer.goaway() == code


def test_running_calls_end_with_the_connection(server: Running, peer: Peer) -> None:
    server.service.events.clear()
    peer.call("Waits", b"")
    server.event("waits")
    peer.send(frame(wire.PUSH_PROMISE, OPEN, 1))
    assert peer.goaway() == PROTOCOL
    server.event("cancelled")


def test_unknown_frames_and_settings_mean_nothing(peer: Peer) -> None:
    peer.send(frame(0xFA, 0xFF, 0, b"?") + frame(0x10, 0, 99, bytes(16_384)))
    peer.send(wire.settings_frame(((0xF0F0, 1), (0xF0F0, 2))))
    peer.send(frame(wire.PRIORITY, 0, 77, bytes(5)) + frame(wire.GOAWAY, 0, 0, bytes(8)))
    peer.send(frame(wire.PING, wire.ACK, 0, bytes(8)))
    assert peer.answer(peer.call("Echo", b"x"))[1] == b"x"


# --- streams ---


def test_priorities_and_padding_mean_nothing(peer: Peer) -> None:
    block = peer.headers("Echo")
    flags = OPEN | wire.PADDED | wire.PRIORITIZED
    peer.send(frame(wire.HEADERS, flags, 1, b"\7" + bytes(5) + block + bytes(7)))
    body = wire.framed(b"padded")
    for byte in body[:-1]:
        peer.send(frame(wire.DATA, wire.PADDED, 1, b"\3" + bytes((byte,)) + bytes(3)))
    peer.send(frame(wire.DATA, wire.PADDED | wire.END_STREAM, 1, b"\0" + body[-1:]))
    assert peer.answer(1)[1] == b"padded"


def test_padding_does_not_use_up_the_window(peer: Peer) -> None:
    stream_id = peer.open("Joins")
    padded = frame(wire.DATA, wire.PADDED, stream_id, b"\xff" + bytes(255))
    opened = 0
    for _ in range(2 * MAX_MESSAGE_BYTES // 256 // 100):
        peer.send(padded * 100)
    while opened < MAX_MESSAGE_BYTES:
        opened += int.from_bytes(peer.wait(wire.WINDOW_UPDATE, stream_id), "big")
    peer.data(stream_id, b"", wire.END_STREAM)
    assert peer.answer(stream_id)[1] == b"0 0"


def test_a_stream_number_that_goes_back(peer: Peer) -> None:
    peer.send(wire.headers_frame(9, peer.headers("Echo")))
    peer.send(wire.headers_frame(7, peer.headers("Echo")))
    assert peer.goaway() == wire.STREAM_CLOSED


def test_a_request_on_a_stream_that_is_over(peer: Peer) -> None:
    stream_id = peer.call("Echo", b"")
    peer.answer(stream_id)
    peer.send(wire.headers_frame(stream_id, peer.headers("Echo")))
    assert peer.goaway() == wire.STREAM_CLOSED


def test_data_on_a_stream_that_is_over_is_passed_over(peer: Peer) -> None:
    stream_id = peer.open("Nothing")
    assert peer.answer(stream_id)[0]["grpc-status"] == "12"
    for _ in range(500):
        peer.send(frame(wire.DATA, 0, stream_id, bytes(16_000)))
    peer.send(wire.headers_frame(stream_id, b"", wire.END_STREAM))
    peer.send(wire.window_frame(stream_id, 5) + wire.reset_frame(stream_id, 0))
    assert peer.answer(peer.call("Echo", b"x"))[1] == b"x"


def test_an_answer_before_the_end_of_the_request(peer: Peer) -> None:
    # RFC 9113, 8.1: the whole answer first, and then word that the rest is not wanted.
    stream_id = peer.open("Refuses")
    peer.data(stream_id, wire.framed(b"first"))
    peer.data(stream_id, wire.framed(b"second"))
    assert peer.answer(stream_id)[0]["grpc-status"] == "7"
    assert peer.reset(stream_id) == wire.NO_ERROR
    stream_id = peer.call("Plain", b"x")
    assert peer.answer(stream_id)[1] == b"x"
    peer.send(frame(wire.PING, 0, 0, b"all read"))
    while (found := peer.frame()) is not None and found[3] != b"all read":
        assert found[0] != wire.RST_STREAM, "the request had ended"


def test_data_after_the_end_of_a_request(peer: Peer) -> None:
    stream_id = peer.call("Waits", b"")
    peer.data(stream_id, b"more")
    assert peer.goaway() == wire.STREAM_CLOSED


@pytest.mark.parametrize("flags", [0, wire.END_STREAM])
def test_trailers(peer: Peer, flags: int) -> None:
    stream_id = peer.open("Chats")
    peer.data(stream_id, wire.framed(b"x"))
    peer.send(wire.headers_frame(stream_id, wire.header_block((("x-end", "1"),)), flags))
    if flags:
        assert peer.answer(stream_id)[0]["grpc-status"] == "0"
    else:
        assert peer.goaway() == PROTOCOL


def test_a_streams_window_that_is_too_large(peer: Peer) -> None:
    stream_id = peer.call("Waits", b"")
    peer.send(wire.window_frame(stream_id, wire.MAX_WINDOW))
    assert peer.reset(stream_id) == FLOW
    assert peer.answer(peer.call("Echo", b"x"))[1] == b"x"


def test_settings_that_make_a_window_too_large(peer: Peer) -> None:
    stream_id = peer.call("Waits", b"")
    peer.send(wire.window_frame(stream_id, wire.MAX_WINDOW - wire.DEFAULT_WINDOW))
    peer.send(wire.settings_frame(((4, wire.DEFAULT_WINDOW + 1),)))
    assert peer.goaway() == FLOW


def test_a_peer_that_ignores_the_window(server: Running, peer: Peer) -> None:
    stream_id = peer.open("Hoards")
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for _ in range(2 * MAX_MESSAGE_BYTES // 16_000):
            peer.data(stream_id, bytes(16_000))
    server.until(lambda: server.shared().last_break == "more DATA than the window allows")


# --- headers ---


def _block(*pairs: tuple[bytes, bytes]) -> bytes:
    """Returns pairs as they are, in a header block that no table has part in."""
    strings = [bytes((len(each),)) + each for pair in pairs for each in pair]
    return b"".join(
        b"\0" + name + value for name, value in zip(strings[::2], strings[1::2], strict=True)
    )


METHOD, PATH = (b":method", b"POST"), (b":path", b"/t.S/Echo")
TYPE = (b"content-type", b"application/grpc")
MALFORMED = {
    "no path": _block(METHOD, TYPE),
    "an empty path": _block(METHOD, (b":path", b""), TYPE),
    "two paths": _block(METHOD, PATH, (b":path", b"/t.S/Plain"), TYPE),
    "a path after the rest": _block(METHOD, (b"x-a", b"1"), PATH, TYPE),
    "an unknown one of HTTP's": _block(METHOD, PATH, TYPE, (b":protocol", b"x")),
    "capitals": _block(METHOD, PATH, TYPE, (b"X-Mesh-Role", b"admin")),
    "a space": _block(METHOD, PATH, TYPE, (b"x-mesh role", b"admin")),
    "no name": _block(METHOD, PATH, TYPE, (b"", b"x")),
    "a line end": _block(METHOD, PATH, TYPE, (b"x-mesh-role", b"user\r\nx-mesh-role: admin")),
    "a zero": _block(METHOD, PATH, TYPE, (b"x-mesh-role", b"user\0")),
    "another protocol": _block(METHOD, PATH, TYPE, (b"transfer-encoding", b"chunked")),
    "nothing": b"",
}


@pytest.mark.parametrize("what", MALFORMED)
def test_headers_that_are_malformed(peer: Peer, what: str) -> None:
    peer.send(wire.headers_frame(1, MALFORMED[what]))
    assert peer.reset(1) == PROTOCOL
    peer.send(wire.headers_frame(3, _block(METHOD, PATH, TYPE)))
    peer.data(3, wire.framed(b"x"), wire.END_STREAM)
    assert peer.answer(3)[1] == b"x"


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"method": b"GET"}, "3"),
        ({"content": b"application/json"}, "3"),
        ({"content": b"application/grpc-web"}, "3"),
        ({"content": b"application/grpcx"}, "3"),
        ({"content": b""}, "3"),
        ({"content": b"application/grpc+proto"}, "0"),
        ({"content": b"application/grpc;charset=x"}, "0"),
        ({"timeout": b"soon"}, "13"),
        ({"timeout": b"123456789S"}, "13"),
        ({"timeout": b"-1S"}, "13"),
        ({"timeout": b""}, "13"),
        ({"raw": b"not base64!"}, "13"),
        ({"raw": b"\xff\xfe"}, "13"),
        ({"path": b"/t.S/\xff\xfe"}, "12"),
        ({"path": b"*"}, "12"),
    ],
)
def test_headers_that_are_no_call(peer: Peer, changed: dict[str, bytes], status: str) -> None:
    pairs = [
        (b":method", changed.get("method", b"POST")),
        (b":path", changed.get("path", b"/t.S/Echo")),
        (b"content-type", changed.get("content", b"application/grpc")),
        (b"grpc-timeout", changed.get("timeout", b"10S")),
        (b"x-raw-bin", changed.get("raw", b"AAE")),
    ]
    peer.send(wire.headers_frame(1, peer._encoder.encode([(*pair, False) for pair in pairs])))
    peer.data(1, wire.framed(b""), wire.END_STREAM)
    assert peer.answer(1)[0]["grpc-status"] == status


def test_metadata_that_is_not_ascii(peer: Peer) -> None:
    extra = ((b"x-utf", "zwölf".encode()), (b"x-other", b"\xe9\xff"), (b"x-both-bin", b"AAE=,/w"))
    stream_id = peer.call("Describes", b"", *extra)
    body = b""
    while not body:
        body = peer.wait(wire.DATA, stream_id)
    described = body[5:].decode()
    assert "('x-utf', 'zwölf')" in described
    assert "('x-other', 'éÿ')" in described
    assert r"('x-both-bin', b'\x00\x01'), ('x-both-bin', b'\xff')" in described


def test_a_header_list_over_the_limit(peer: Peer) -> None:
    stream_id = peer.call("Echo", b"x", *[(b"x-%d" % n, bytes(b"v" * 1000)) for n in range(60)])
    assert peer.answer(stream_id)[1] == b"x"
    peer.open("Echo", *[(b"x-%d" % n, bytes(b"v" * 1000)) for n in range(140)])
    assert peer.goaway() in (COMPRESSION, CALM)


def test_a_header_bomb(peer: Peer) -> None:
    # One entry of 4,000 bytes in the table, and then an index of one byte a thousand times.
    block = b"\x40\x01x\x7f\xa1\x1e" + b"v" * 4000
    peer.send(wire.headers_frame(1, peer.headers("Echo") + block + b"\xbe" * 1000))
    assert peer.goaway() == COMPRESSION


def test_a_crowd_has_small_headers(server: Running, peer: Peer) -> None:
    large = [(b"x-%d" % n, b"v" * 1000) for n in range(10)]
    waiting = [peer.open("Echo", *large) for _ in range(LIMITS.crowd + 1)]
    assert peer.reset(peer.open("Echo", *large)) == wire.REFUSED_STREAM
    assert peer.answer(peer.call("Echo", b"small"))[1] == b"small"
    for stream_id in waiting:
        peer.send(wire.reset_frame(stream_id, wire.CANCEL))


def test_a_smaller_table_is_acknowledged_in_the_next_block(server: Running) -> None:
    # RFC 7541, 4.2; a decoder that minds takes no other answer.
    client = jh2.connection.H2Connection(H2Configuration(client_side=True))
    client.local_settings.header_table_size = 0
    client.initiate_connection()
    with socket.create_connection(("127.0.0.1", server.port), 5) as sock:
        pairs = [(":method", "POST"), (":scheme", "http"), (":path", "/t.S/Echo")]
        pairs += [(":authority", "x"), ("te", "trailers"), ("content-type", "application/grpc")]
        client.send_headers(1, pairs)
        client.send_data(1, wire.framed(b"x"), end_stream=True)
        sock.sendall(client.data_to_send())
        seen: list[object] = []
        while not any(isinstance(event, jh2.events.StreamEnded) for event in seen):
            data = sock.recv(65_536)
            assert data
            seen += client.receive_data(data)
            sock.sendall(client.data_to_send())
    kinds = {type(event) for event in seen}
    assert {jh2.events.ResponseReceived, jh2.events.DataReceived} <= kinds
    assert jh2.events.TrailersReceived in kinds


# --- messages ---


def _packed(data: bytes, bits: int = 31) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, bits)
    return packer.compress(data) + packer.flush()


def _compressed(data: bytes, flag: int = 1) -> bytes:
    return struct.pack(">BI", flag, len(data)) + data


MESSAGES = {
    "no message": (b"", b"", "13"),
    "half a head": (b"\0\0", b"", "13"),
    "half a message": (wire.framed(b"whole")[:-1], b"", "13"),
    "two messages": (wire.framed(b"30") + wire.framed(b"30"), b"", "13"),
    "a message and a half": (wire.framed(b"30") + b"\0", b"", "13"),
    "a message that is too large": (b"\0\xff\xff\xff\xff", b"", "8"),
    "compressed, and nothing says how": (_compressed(_packed(b"x")), b"", "13"),
    "compressed with nothing": (_compressed(_packed(b"x")), b"identity", "13"),
    "compressed in an unknown way": (_compressed(_packed(b"x")), b"snappy", "12"),
    "another flag": (_compressed(_packed(b"x"), 2), b"gzip", "13"),
    "no gzip": (_compressed(b"plain"), b"gzip", "13"),
    "gzip that is cut off": (_compressed(_packed(b"abc" * 100)[:-9]), b"gzip", "13"),
    "gzip without its sum": (_compressed(_packed(b"abc" * 100)[:-4]), b"gzip", "13"),
    "gzip with more behind it": (_compressed(_packed(b"x") + b"more"), b"gzip", "13"),
    "gzip where deflate is said": (_compressed(gzip.compress(b"x")), b"deflate", "13"),
    "nothing, compressed": (_compressed(b""), b"gzip", "13"),
    "a bomb": (_compressed(_packed(bytes(MAX_MESSAGE_BYTES + 1))), b"gzip", "8"),
    "a bomb in deflate": (_compressed(_packed(bytes(50 * MIB), 15)), b"deflate", "8"),
    "the largest message": (_compressed(_packed(bytes(MAX_MESSAGE_BYTES))), b"gzip", "0"),
}


@pytest.mark.parametrize("in_pieces", [False, True], ids=["at once", "in pieces"])
@pytest.mark.parametrize("method", ["Waits", "Joins"])
@pytest.mark.parametrize("what", MESSAGES)
def test_messages(peer: Peer, what: str, method: str, in_pieces: bool) -> None:
    data, encoding, status = MESSAGES[what]
    if status == "0" and method == "Waits":
        method = "Plain"
        peer.send(ROOM)
    if method == "Joins" and what in ("no message", "two messages"):
        status = "0"
    extra = ((b"grpc-encoding", encoding),) if encoding else ()
    stream_id = peer.open(method, *extra)
    if in_pieces:
        half = len(data) // 2
        peer.data(stream_id, data[:half])
        peer.data(stream_id, data[half:])
        peer.data(stream_id, b"", wire.END_STREAM)
    else:
        peer.data(stream_id, data, wire.END_STREAM)
    assert peer.answer(stream_id)[0]["grpc-status"] == status


def test_many_small_bombs_are_not_kept(server: Running, peer: Peer) -> None:
    # Each is a few kilobytes on the wire, and the handler does not read them.
    before = _memory()
    stream_id = peer.open("Hoards", (b"grpc-encoding", b"gzip"))
    bomb = _compressed(_packed(bytes(MAX_MESSAGE_BYTES)))
    for _ in range(2 * MIB // len(bomb)):
        peer.data(stream_id, bomb)
    peer.send(frame(wire.PING, 0, 0, b"all read"))
    assert peer.wait(wire.PING) == b"all read"
    assert server.shared().held > MIB
    assert _memory() - before < 30 * MIB


def test_requests_that_are_held_are_bounded(server: Running) -> None:
    peers = [Peer(server.port) for _ in range(3)]
    refused = 0
    for peer in peers:
        opened = [peer.open("Echo") for _ in range(3)]
        for stream_id in opened:  # the last byte is missing
            peer.data(stream_id, wire.framed(bytes(2 * MIB))[:-1])
        peer.send(frame(wire.PING, 0, 0, b"all read"))
        while (found := peer.frame()) is not None and found[3] != b"all read":
            refused += found[0] == wire.HEADERS
        assert server.shared().held <= LIMITS.held_bytes
        assert server.is_well()
    assert refused >= 4
    for peer in peers:
        peer.sock.close()


def test_large_requests_are_counted_until_their_calls_end(server: Running, peer: Peer) -> None:
    server.service.events.clear()
    padding = b" " * MIB
    peer.send(ROOM)
    stream_id = peer.open("Waits")
    peer.data(stream_id, wire.framed(padding + b"0.2"), wire.END_STREAM)
    server.event("waits")
    assert server.shared().held > MIB
    assert peer.answer(stream_id)[0]["grpc-status"] == "0"
    server.until(lambda: not server.shared().held)


def test_the_rest_of_a_request_that_does_not_come(peer: Peer) -> None:
    stuck = peer.open("Echo")
    peer.data(stuck, wire.framed(b"whole")[:-1])
    begun = time.monotonic()
    while time.monotonic() - begun < 0.5:
        assert peer.answer(peer.call("Echo", b"x"))[1] == b"x"
    assert peer.answer(stuck)[0]["grpc-status"] == "4"
    assert time.monotonic() - begun < 20


# --- floods ---


FLOODS: dict[str, Callable[[Peer], bytes]] = {
    "PING": lambda _: frame(wire.PING, 0, 0, bytes(8)) * 4000,
    "SETTINGS": lambda _: wire.settings_frame(()) * 4000,
    "SETTINGS with values": lambda _: wire.settings_frame(((4, 1), (4, 2))) * 4000,
    "requests that are not served": lambda peer: b"".join(
        wire.headers_frame(peer._next_id + 2 * n, peer.headers("Nothing"), wire.END_STREAM)
        for n in range(2000)
    ),
}


@pytest.mark.parametrize("what", FLOODS)
def test_a_flood_whose_answers_nobody_reads(server: Running, what: str) -> None:
    before = _memory()
    with Peer(server.port) as peer:
        peer.sock.settimeout(10)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            for _ in range(2000):
                peer.send(FLOODS[what](peer))
                peer._next_id += 4000
    assert _memory() - before < 50 * MIB


QUIET = {
    "empty DATA": frame(wire.DATA, 0, 1) * 20_000,
    "PRIORITY": frame(wire.PRIORITY, 0, 1, bytes(5)) * 20_000,
    "WINDOW_UPDATE": wire.window_frame(1, 1) * 20_000,
    "RST_STREAM": wire.reset_frame(3, 8) * 20_000,
    "PING acknowledged": frame(wire.PING, wire.ACK, 0, bytes(8)) * 20_000,
    "SETTINGS acknowledged": frame(wire.SETTINGS, wire.ACK, 0) * 20_000,
    "unknown": frame(0x77, 0, 0) * 20_000,
}


@pytest.mark.parametrize("what", QUIET)
def test_a_flood_that_asks_for_nothing_holds_up_nobody(server: Running, what: str) -> None:
    with Peer(server.port) as flooder, Peer(server.port) as other:
        assert flooder.open("Echo") == 1
        assert flooder.answer(flooder.call("Echo", b""))
        took_s = []
        for _ in range(5):
            flooder.send(QUIET[what])
            begun = time.monotonic()
            assert other.answer(other.call("Echo", b"x"))[1] == b"x"
            took_s.append(time.monotonic() - begun)
        # The best: what the flood holds up it holds up each time.
        assert min(took_s) < 0.5, took_s


def test_rapid_resets_do_not_outrun_the_handlers(server: Running, peer: Peer) -> None:
    limits = Limits(streams=10)
    with running(limits=limits) as small:

        async def lingers(_: bytes, __: object) -> bytes:
            small.service.running += 1
            small.service.most_running = max(small.service.most_running, small.service.running)
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                await asyncio.sleep(0.2)  # cleans up
            finally:
                small.service.running -= 1
            return b""

        handler = grpc.unary_unary_rpc_method_handler(lingers)
        small.server.add_registered_method_handlers("t.S", {"Lingers": handler})
        with Peer(small.port) as fast:
            first = [fast.call("Lingers", b"") for _ in range(limits.streams)]
            small.until(lambda: small.service.running == limits.streams)
            for stream_id in first:
                fast.send(wire.reset_frame(stream_id, wire.CANCEL))
            for _ in range(300):
                stream_id = fast.call("Lingers", b"")
                fast.send(wire.reset_frame(stream_id, wire.CANCEL))
                time.sleep(0.0005)
            fast.send(frame(wire.PING, 0, 0, b"all read"))
            assert fast.wait(wire.PING) == b"all read"
            assert small.service.most_running == limits.streams
            small.until(lambda: not small.shared().leaving)
            assert fast.answer(fast.call("Echo", b"x"))[1] == b"x"


# --- connections ---


def test_connections_are_bounded(server: Running) -> None:
    peers = [Peer(server.port) for _ in range(LIMITS.connections // 2)]
    for peer in peers:
        assert peer.answer(peer.call("Echo", b"x"))[1] == b"x"
    with Peer(server.port) as one_more, pytest.raises((AssertionError, OSError)):
        one_more.answer(one_more.call("Echo", b"x"))
    assert peers[0].answer(peers[0].call("Echo", b"x"))[1] == b"x"
    for peer in peers:
        peer.sock.close()
    server.until(lambda: not server.connections())


def test_a_peer_that_stops_reading_is_dropped(server: Running) -> None:
    server.service.events.clear()
    with Peer(server.port, settings=((4, 2**30),)) as peer:
        peer.send(wire.window_frame(0, 2**30))
        peer.call("WaitsInStream", b"flood")
        server.event("stream closed")


def test_a_connection_that_is_closed_in_the_middle_of_a_frame(server: Running) -> None:
    for size in (1, 9, 12, 40):
        with Peer(server.port) as peer:
            peer.send(wire.headers_frame(1, peer.headers("Echo"))[:size])
        with Peer(server.port) as peer:
            peer.open("Chats")
            peer.send(frame(wire.DATA, 0, 1, bytes(100))[:size])
            linger = struct.pack("ii", 1, 0)
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)  # RST, not FIN


def test_a_half_open_connection_is_kept_alive_by_the_kernel(server: Running, peer: Peer) -> None:
    assert peer.answer(peer.call("Echo", b"x"))
    (connection,) = server.connections()
    sock = connection._transport.get_extra_info("socket")
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 60
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) <= 60_000


def _memory() -> int:
    statm = Path("/proc/self/statm").read_text()
    return int(statm.split()[1]) * os.sysconf("SC_PAGE_SIZE")
