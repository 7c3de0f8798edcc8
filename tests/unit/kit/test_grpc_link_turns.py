"""What a connection sends within one turn of the loop leaves in one piece."""

import asyncio
from typing import Any

import pytest

from services.kit.grpc_server.limits import Limits, Shared
from services.kit.grpc_server.link import Link


class Transport:
    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.events: list[str] = []

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def get_write_buffer_size(self) -> int:
        return sum(map(len, self.writes))

    def get_extra_info(self, name: str) -> Any:
        return None

    def close(self) -> None:
        self.events.append(f"close after {len(self.writes)}")

    def abort(self) -> None:
        self.events.append("abort")


class Echo(Link):
    """Sends back what comes, byte for byte in frames of its own."""

    def _frames(self, data: bytes) -> bytes:
        for byte in data:
            self.send(bytes([byte]))
        return b""


def _link(**limits: Any) -> tuple[Echo, Transport]:
    shared = Shared(Limits(connections=16, **limits), 1 << 20)
    link = Echo(lambda _: None, lambda _: None, shared)
    transport = Transport()
    link.connection_made(transport)  # type: ignore[arg-type]
    transport.writes.clear()
    return link, transport


async def _turn() -> None:
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_what_is_sent_in_one_turn_leaves_together() -> None:
    link, transport = _link()
    link.send(b"a")
    link.send(b"b")
    assert transport.writes == []
    await _turn()
    assert transport.writes == [b"ab"]
    link.send(b"c")
    await _turn()
    assert transport.writes == [b"ab", b"c"]


async def test_answers_that_are_there_at_once_leave_when_what_came_is_read() -> None:
    link, transport = _link()
    link.data_received(b"xyz")
    assert transport.writes == [b"xyz"]


async def test_the_order_stays_when_both_meet() -> None:
    link, transport = _link()
    link.send(b"a")
    link.data_received(b"b")
    await _turn()
    assert b"".join(transport.writes) == b"ab"


async def test_much_does_not_wait() -> None:
    link, transport = _link()
    link.send(bytes(60_000))
    assert not transport.writes
    link.send(bytes(10_000))
    assert [len(each) for each in transport.writes] == [70_000]


async def test_closing_sends_what_waits_and_aborting_does_not() -> None:
    link, transport = _link()
    link.send(b"goodbye")
    link.close()
    assert transport.writes == [b"goodbye"]
    assert transport.events == ["close after 1"]
    link, transport = _link()
    link.send(b"never")
    link.abort()
    await _turn()
    assert transport.writes == []
    assert transport.events == ["abort"]


async def test_what_waits_for_a_peer_that_is_gone_is_forgotten() -> None:
    link, transport = _link()
    link.send(b"never")
    link.connection_lost(None)
    await _turn()
    assert transport.writes == []
    link.send(b"neither")


@pytest.mark.parametrize(("unread", "aborts"), [(10, True), (100, False)])
async def test_who_does_not_read_what_no_window_bounds_is_cut_off(
    unread: int, aborts: bool
) -> None:
    link, transport = _link(unread_bytes=unread)
    link.pause_writing()
    link.send(bytes(50))
    await _turn()
    assert ("abort" in transport.events) is aborts
