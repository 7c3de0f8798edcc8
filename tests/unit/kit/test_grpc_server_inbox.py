"""The messages in a request's bytes."""

import struct
import tracemalloc
import zlib
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.kit.grpc_server import Limits, wire
from services.kit.grpc_server.inbox import Inbox
from services.kit.grpc_server.limits import RefusedError, Shared

LIMIT = 2**20


class Connection:
    """What an inbox does to its connection."""

    def __init__(self) -> None:
        self.shared = Shared(Limits(), LIMIT)
        self.held = 0
        self.turns = 0

    def hold(self, count: int) -> None:
        self.held += count

    def end_turn(self) -> None:
        self.turns += 1


def _inbox(encoding: str = "", *, is_stream: bool = True) -> tuple[Inbox, Connection]:
    connection: Any = Connection()
    return Inbox(connection, encoding, is_stream), connection


def _bomb(size: int) -> bytes:
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(2**20)) for _ in range(size // 2**20))
    packed += packer.flush()
    return struct.pack(">BI", 1, len(packed)) + packed


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=50), max_size=8), st.lists(st.integers(1, 20), min_size=1))
def test_messages_come_out_however_they_are_cut(messages: list[bytes], sizes: list[int]) -> None:
    inbox, connection = _inbox()
    rest = b"".join(map(wire.framed, messages))
    got, turn = [], 0
    while rest:
        size = sizes[turn % len(sizes)]
        inbox.add(rest[:size])
        assert connection.held == len(inbox)
        rest, turn = rest[size:], turn + 1
        while (message := inbox.next()) is not None:
            got.append(message)
    assert got == messages
    assert connection.held == len(inbox) == 0


def test_one_request_is_held_until_it_is_closed() -> None:
    inbox, connection = _inbox(is_stream=False)
    inbox.add(wire.framed(b"whole"))
    assert inbox.next() == b"whole"
    assert connection.held == 10
    inbox.close()
    assert connection.held == 0


def test_what_a_message_holds_is_counted_too() -> None:
    inbox, connection = _inbox("deflate", is_stream=False)
    inbox.add(_bomb(2**20))
    assert inbox.next() == bytes(2**20)
    assert connection.held > 2**20
    assert connection.turns == 1
    inbox.close()
    assert connection.held == 0


def test_a_bomb_is_never_unpacked_whole() -> None:
    inbox, _ = _inbox("deflate")
    inbox.add(_bomb(100 * 2**20))
    tracemalloc.start()
    try:
        with pytest.raises(RefusedError) as caught:
            inbox.next()
        assert tracemalloc.get_traced_memory()[1] < 8 * LIMIT
    finally:
        tracemalloc.stop()
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_message_that_is_too_large_is_refused_at_its_head() -> None:
    inbox, _ = _inbox()
    inbox.add(struct.pack(">BI", 0, LIMIT) + b"x")
    assert inbox.next() is None
    inbox, _ = _inbox()
    inbox.add(struct.pack(">BI", 0, LIMIT + 1))
    with pytest.raises(RefusedError):
        inbox.next()
