"""HTTP/2 that no client sends: each call is refused, or its connection is."""

import struct
import time
from collections.abc import Iterator, Mapping

import pytest

from security import h2
from security.target import ROUNDS, Target, dice

MANY = 1200
"""Frames of a flood: over all of Envoy's bounds."""


@pytest.fixture
def peer(target: Target) -> Iterator[h2.Connection]:
    connection = h2.Connection(target.mesh.port)
    yield connection
    connection.close()


def call(key: str | None, **changes: bytes) -> list[tuple[bytes, bytes]]:
    """Returns the headers of a call that lists keys."""
    headers = {
        b":method": b"GET",
        b":scheme": b"http",
        b":authority": b"x",
        b":path": b"/mesh/v1/keys",
    } | {b":" + name.encode(): value for name, value in changes.items()}
    extra = [] if key is None else [(b"authorization", b"Bearer " + key.encode())]
    return [*headers.items(), *extra]


def ends(peer: h2.Connection, data: bytes, times: int) -> bool:
    """Says whether the connection ends while this is sent again and again."""
    for _ in range(times):
        if not peer.send(data):
            return True
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if h2.GOAWAY in [kind for kind, *_ in peer.frames(0.5)] or peer.is_over:
            return True
    return False


def test_the_admin_key_does_list_keys(target: Target, peer: h2.Connection) -> None:
    block = peer.block(call(target.mesh.admin_key))
    peer.send(h2.frame(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, 1, block))
    assert peer.answers(20, until_end=True)[0][b":status"] == b"200"


MALFORMED = {
    "path twice": [(b":path", b"/v1/models"), (b":path", b"/mesh/v1/keys")],
    "method twice": [(b":method", b"DELETE")],
    "authority twice": [(b":authority", b"y")],
    "pseudo after a header": [(b"x-a", b"b"), (b":path", b"/v1/models")],
    "unknown pseudo": [(b":admin", b"true")],
    "status": [(b":status", b"200")],
    "protocol": [(b":protocol", b"websocket")],
    "upper case": [(b"X-Mesh-Role", b"admin")],
    "line break in a value": [(b"x-a", b"b\r\nx-mesh-role: admin")],
    "LF in a value": [(b"x-a", b"b\nx-mesh-role: admin")],
    "NUL in a value": [(b"x-a", b"\0")],
    "line break in a name": [(b"x-a\r\nx-mesh-role", b"admin")],
    "colon in a name": [(b"x-mesh-role: admin\r\nx", b"a")],
    "space in a name": [(b"x mesh", b"a")],
    "empty name": [(b"", b"a")],
    "connection": [(b"connection", b"authorization")],
    "transfer-encoding": [(b"transfer-encoding", b"chunked")],
    "upgrade": [(b"upgrade", b"h2c")],
    "te": [(b"te", b"gzip")],
    "host besides authority": [(b"host", b"admin")],
    "content-length of no body": [(b"content-length", b"10")],
    "content-length twice": [(b"content-length", b"0"), (b"content-length", b"5")],
    "content-length plus": [(b"content-length", b"+0")],
    "role": [(b"x-mesh-role", b"admin"), (b"x-mesh-key-id", b"key_bootstrapadmin")],
}


def assert_refused(target: Target, calls: Mapping[str, list[tuple[bytes, bytes]]]) -> None:
    """Sends each on a connection of its own, all at once, for Envoy takes a second to end one."""
    peers = {}
    for what, headers in calls.items():
        peers[what] = peer = h2.Connection(target.mesh.port)
        block = peer.block(headers)
        peer.send(h2.frame(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, 1, block))
    for what, peer in peers.items():
        answers = peer.answers(10, until_end=True)
        peer.close()
        assert all(b"400" <= answer[b":status"] < b"500" for answer in answers), (what, answers)
        assert answers or peer.is_over or peer.was_reset, what


def test_malformed_headers(target: Target) -> None:
    good = call(target.user_key)
    assert_refused(target, {what: [*good, *added] for what, added in MALFORMED.items()})


PSEUDO = [
    {"path": b""},
    {"path": b"mesh/v1/keys"},
    {"path": b"*"},
    {"path": b"/mesh/v1/keys HTTP/1.1\r\nx-mesh-role: admin\r\n"},
    {"path": b"/v1/../mesh/v1/keys"},
    {"path": b"http://x/mesh/v1/keys"},
    {"path": b"/mesh/v1/keys#/v1/models"},
    {"path": b"/" + b"a" * 60_000},
    {"method": b"GET /mesh/v1/keys HTTP/1.1\r\n"},
    {"method": b"CONNECT"},
    {"method": b""},
    {"method": b"PRI"},
    {"scheme": b"file"},
    {"scheme": b""},
    {"scheme": b"http://admin"},
    {"authority": b""},
    {"authority": b"admin@127.0.0.1:9901"},
    {"authority": b"a\r\nx-mesh-role: admin"},
    {"authority": b"x/mesh"},
]


def test_pseudo_headers(target: Target) -> None:
    assert_refused(target, {repr(each): call(target.user_key, **each) for each in PSEUDO})


@pytest.mark.parametrize(
    "kind",
    [
        b"application/grpc",
        b"application/grpc+json",
        b"application/grpc+proto",
        b"application/grpc-web",
        b"application/grpc-web-text",
        b"application/grpcx",
        b"application/json, application/grpc",
        b"APPLICATION/GRPC",
        b"application/grpc;x=y",
        b"",
    ],
)
@pytest.mark.parametrize(
    "path",
    [
        b"/mesh/v1/keys",
        b"/infermesh.auth.v1.KeyService/CreateKey",
        b"/infermesh.auth.v1.KeyService/ListKeys",
        b"/envoy.service.auth.v3.Authorization/Check",
        b"/infermesh.inference.v1.IdentityService/ProveIdentity",
        b"/grpc.health.v1.Health/Check",
    ],
)
def test_kinds_of_content(target: Target, peer: h2.Connection, kind: bytes, path: bytes) -> None:
    block = peer.block([*call(target.user_key, method=b"POST", path=path), (b"content-type", kind)])
    head = h2.frame(h2.HEADERS, h2.END_HEADERS, 1, block)
    peer.send(head + h2.frame(h2.DATA, h2.END_STREAM, 1, b"\0\0\0\0\x08\x0a\x06canary"))
    seen = {}
    for answer in peer.answers():
        seen |= answer
    assert seen.get(b"grpc-status") != b"0", seen
    assert b":status" not in seen or seen[b":status"] < b"500", seen
    if seen.get(b":status") == b"200":
        assert seen.get(b"grpc-status") not in (None, b"0"), seen


def test_resets_as_fast_as_they_go(target: Target, peer: h2.Connection) -> None:
    started = time.monotonic()
    headers = call(target.user_key, path=b"/v1/models")
    first, block = peer.block(headers), peer.block(headers)  # the second is all from the table
    ended = False
    for number in range(1, 2 * MANY, 2):
        reset = h2.frame(h2.RST, 0, number, struct.pack(">I", 8))
        said = first if number == 1 else block
        head = h2.frame(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, number, said)
        if not peer.send(head + reset):
            ended = True
            break
    assert ended or ends(peer, b"", 0), "the connection goes on"
    assert time.monotonic() - started < 60


def test_more_streams_than_allowed(target: Target, peer: h2.Connection) -> None:
    headers = call(target.user_key, method=b"POST", path=b"/v1/chat/completions")
    for number in range(1, 400, 2):
        if not peer.send(h2.frame(h2.HEADERS, h2.END_HEADERS, number, peer.block(headers))):
            break
    assert not [a for a in peer.answers() if a.get(b":status", b"") >= b"500"]


def test_continuations_without_end_are_not_kept(target: Target, peer: h2.Connection) -> None:
    block = peer.block(call(target.user_key))
    peer.send(h2.frame(h2.HEADERS, h2.END_STREAM, 1, block))
    # Literal headers without indexing, each of 4 KB; and then frames of nothing at all.
    literal = b"\0\x03x-a\x7f" + bytes([0x81, 0x1F]) + b"a" * 4096
    envoy = target.mesh.part("envoy")
    before = envoy.memory_info().rss
    for _ in range(4 * MANY):
        if not peer.send(h2.frame(h2.CONTINUATION, 0, 1, literal)):
            break
    # The connection may go on, since its table of headers needs all of them; nothing is kept.
    for answer in peer.answers():
        assert b"400" <= answer[b":status"] < b"500", answer
    assert envoy.memory_info().rss < before + 64 * 1024 * 1024


def test_continuations_of_nothing(target: Target, peer: h2.Connection) -> None:
    peer.send(h2.frame(h2.HEADERS, h2.END_STREAM, 1, peer.block(call(target.user_key))))
    assert ends(peer, h2.frame(h2.CONTINUATION, 0, 1) * 50, MANY)


def test_a_header_bomb(target: Target, peer: h2.Connection) -> None:
    """One entry of the table, 4 KB long, said again in a byte each time."""
    encoded = peer.block([*call(target.user_key), (b"x-bomb", b"a" * 3900)])
    bomb = encoded + b"\xbe" * 15_000
    peer.send(h2.frame(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, 1, bomb))
    for answer in peer.answers():
        assert b"400" <= answer[b":status"] < b"500", answer


@pytest.mark.parametrize(
    "flood",
    [
        h2.frame(h2.SETTINGS, payload=struct.pack(">HI", 1, 4096)) * 20,
        h2.frame(h2.PING, payload=b"12345678") * 20,
    ],
    ids=["settings", "pings"],
)
def test_floods_whose_answers_nobody_reads(
    target: Target, peer: h2.Connection, flood: bytes
) -> None:
    peer.socket.setsockopt(1, 8, 4096)  # SO_RCVBUF
    peer.send(h2.frame(h2.SETTINGS, payload=struct.pack(">HI", 4, 0)))
    peer.socket.settimeout(3)
    for _ in range(40 * MANY):
        if not peer.send(flood):
            return
    # What the kernel holds of it bounds it too, where Envoy stops to read.


@pytest.mark.parametrize(
    ("what", "flood"),
    [
        ("empty data", h2.frame(h2.DATA, 0, 1)),
        ("priorities", h2.frame(h2.PRIORITY, 0, 1, struct.pack(">IB", 0, 16))),
        ("windows", h2.frame(h2.WINDOW, 0, 1, struct.pack(">I", 1))),
        ("windows of nothing", h2.frame(h2.WINDOW, 0, 0, struct.pack(">I", 0))),
        ("windows too wide", h2.frame(h2.WINDOW, 0, 0, struct.pack(">I", 2**31 - 1))),
        ("data of no stream", h2.frame(h2.DATA, 0, 99, b"x")),
        ("pushes", h2.frame(h2.PUSH, h2.END_HEADERS, 1, b"\0\0\0\2\x88")),
        ("frames too long", h2.frame(h2.DATA, 0, 1, b"a" * 20_000)),
        ("an odd setting", h2.frame(h2.SETTINGS, 0, 0, b"abc")),
        ("a window that cannot be", h2.frame(h2.SETTINGS, 0, 0, struct.pack(">HI", 4, 2**32 - 1))),
    ],
)
def test_floods(target: Target, peer: h2.Connection, what: str, flood: bytes) -> None:
    block = peer.block(call(target.user_key, method=b"POST", path=b"/v1/chat/completions"))
    peer.send(h2.frame(h2.HEADERS, h2.END_HEADERS, 1, block))
    assert ends(peer, flood * 20, MANY), what


def test_frames_at_random(target: Target) -> None:
    rng = dice("frames")
    for _ in range(ROUNDS // 4):
        peer = h2.Connection(target.mesh.port)
        for _ in range(30):
            kind, flags = rng.choice((*range(10), rng.randrange(256))), rng.randrange(256)
            stream = rng.choice((0, 1, 1, 3, 5, 2, 2**31 - 1))
            block = peer.block(call(target.user_key))
            payload = rng.choice(
                (b"", block, block[:9], rng.randbytes(rng.randrange(64)), b"\0" * 8)
            )
            if not peer.send(h2.frame(kind, flags, stream, payload)):
                break
        # The table of headers may be out of step by now: only that it ends or goes on matters.
        peer.frames(0.1)
        peer.close()
