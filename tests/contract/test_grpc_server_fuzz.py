"""Whatever a peer sends, others are served, and nothing of it stays."""

import contextlib
import random
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grpc_server_harness import Peer, Running, running
from services.kit.grpc_server import Limits, wire

METHODS = ("Echo", "Plain", "Fails", "Aborts", "Counts", "Joins", "Chats", "Reads", "Hoards", "No")
STREAMS = st.sampled_from([0, 1, 1, 3, 3, 5, 7, 2, 2**31 - 1])


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    limits = Limits(check_s=0.05, greeting_checks=3, stuck_checks=5)
    with running(limits=limits, max_message_bytes=2**20) as found:
        yield found


def _block(method: str) -> bytes:
    named = (":method", "POST"), (":path", f"/t.S/{method}"), ("content-type", "application/grpc")
    return b"".join(
        b"\0" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()
        for name, value in named
    )


def _messages() -> st.SearchStrategy[bytes]:
    bodies = st.one_of(st.binary(max_size=40), st.sampled_from([b"3 10", b"100 1000", b""]))
    whole = bodies.map(wire.framed)
    return st.one_of(whole, st.binary(max_size=12), st.tuples(whole, whole).map(b"".join))


def _frames() -> st.SearchStrategy[bytes]:
    flags = st.sampled_from([0, 1, 4, 5, 8, 9, 12, 13, 0x20, 0x24, 0x25, 0xFF])
    blocks = st.one_of(
        st.sampled_from(METHODS).map(_block), st.binary(max_size=30), st.just(b"\x82@")
    )
    payloads = st.binary(max_size=24)
    numbers = st.integers(0, 2**32 - 1).map(lambda n: n.to_bytes(4, "big"))
    values = st.tuples(st.integers(0, 8), st.integers(0, 2**32 - 1))
    return st.one_of(
        st.builds(wire.frame, st.just(wire.HEADERS), flags, STREAMS, blocks),
        st.builds(wire.headers_frame, STREAMS, blocks, st.sampled_from([0, 1])),
        st.builds(wire.frame, st.just(wire.DATA), st.sampled_from([0, 1, 8, 9]), STREAMS, payloads),
        st.builds(wire.frame, st.just(wire.DATA), st.sampled_from([0, 1]), STREAMS, _messages()),
        st.builds(wire.frame, st.just(wire.CONTINUATION), flags, STREAMS, blocks),
        st.builds(wire.frame, st.sampled_from([3, 8]), st.just(0), STREAMS, numbers),
        st.builds(wire.settings_frame, st.lists(values, max_size=3)),
        st.builds(wire.frame, st.integers(0, 12), flags, STREAMS, payloads),
    )


@settings(
    max_examples=250,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(_frames(), min_size=1, max_size=20), st.booleans(), st.integers(0, 2**16))
def test_frames_of_all_kinds(server: Running, frames: list[bytes], is_cut: bool, seed: int) -> None:
    data = b"".join(frames)
    with Peer(server.port) as peer, contextlib.suppress(ConnectionError):
        rest = data[: len(data) - seed % 9] if is_cut else data
        while rest:
            size = 1 + random.Random(seed + len(rest)).randrange(len(rest))
            peer.send(rest[:size])
            rest = rest[size:]
    assert server.is_well()
    assert not server.faults


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400), st.booleans())
def test_bytes_of_all_kinds(server: Running, data: bytes, greets: bool) -> None:
    with Peer(server.port, greet=greets) as peer, contextlib.suppress(ConnectionError):
        peer.send(data)
    assert server.is_well()
    assert not server.faults


def test_nothing_stays(server: Running) -> None:
    """Runs last: what the peers before have left is gone."""
    server.until(lambda: not server.connections(), 10)
    shared = server.shared()
    server.until(lambda: (shared.calls, shared.held, len(shared.leaving)) == (0, 0, 0))
