"""One connection on a transport that only notes what happens: turns, checks, memory."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from services.kit.grpc_server import Limits, wire
from services.kit.grpc_server.call import Call
from services.kit.grpc_server.connection import Connection
from services.kit.grpc_server.limits import Shared
from services.kit.grpc_server.request import MalformedError


class Transport:
    """What a connection does to its transport."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.unsent = 0
        self.is_reading = True
        self.ended = ""

    def write(self, data: bytes) -> None:
        self.sent += data

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def get_extra_info(self, name: str) -> Any:
        return ("192.0.2.1", 7) if name == "peername" else None

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True

    def close(self) -> None:
        self.ended = self.ended or "closed"

    def abort(self) -> None:
        self.ended = "aborted"


def _dispatch(connection: Connection, stream_id: int, headers: Any) -> Any:
    raise MalformedError


def _connected(**limits: Any) -> tuple[Connection, Any]:
    shared = Shared(Limits(**limits), 2**20)
    connection = Connection(_dispatch, lambda _: None, lambda _: None, shared)
    transport: Any = Transport()
    connection.connection_made(transport)
    return connection, transport


def _greet(connection: Connection) -> None:
    connection.data_received(wire.PREFACE + wire.settings_frame(()))


PING = wire.frame(wire.PING, 0, 0, bytes(8))
PONG = wire.frame(wire.PING, wire.ACK, 0, bytes(8))


async def test_others_get_their_turn() -> None:
    connection, transport = _connected(turn_frames=10)
    _greet(connection)
    connection.data_received(PING * 25 + PING[:5])
    assert transport.sent.count(PONG) == 10
    assert not transport.is_reading
    # What the loop had read before it heard of the pause is not lost, nor handled out of turn.
    connection.data_received(PING[5:] + PING)
    assert transport.sent.count(PONG) == 10
    for count in (20, 27):
        await asyncio.sleep(0)
        assert transport.sent.count(PONG) == count
    assert transport.is_reading


async def test_nothing_is_handled_after_the_end() -> None:
    connection, transport = _connected(turn_frames=3)
    _greet(connection)
    connection.data_received(PING * 2 + wire.frame(wire.PING, 0, 1, bytes(8)) + PING * 5)
    assert transport.ended == "closed"
    connection.data_received(PING)
    await asyncio.sleep(0)
    assert transport.sent.count(PONG) == 2


async def test_a_connection_that_ends_while_others_have_their_turn() -> None:
    connection, transport = _connected(turn_frames=3)
    _greet(connection)
    connection.data_received(PING * 9)
    connection.connection_lost(None)
    await asyncio.sleep(0)
    assert transport.sent.count(PONG) == 3


async def test_a_peer_that_does_not_read() -> None:
    connection, transport = _connected(unread_bytes=1000)
    _greet(connection)
    transport.unsent = 5000
    connection.data_received(PING)
    assert not transport.ended, "the transport has not said that it is too much"
    connection.pause_writing()
    transport.unsent = 1000
    connection.data_received(PING)
    assert not transport.ended
    transport.unsent = 1001
    connection.data_received(PING)
    assert transport.ended == "aborted"


@pytest.mark.parametrize("closes", [False, True])
async def test_who_does_not_greet_or_go(closes: bool) -> None:
    connection, transport = _connected(greeting_checks=2)
    if closes:
        _greet(connection)
        connection.close()
    for _ in range(2):
        connection.check()
        assert transport.ended != "aborted"
    connection.check()
    assert transport.ended == "aborted"


async def test_who_is_stuck() -> None:
    connection, transport = _connected(stuck_checks=2)
    _greet(connection)
    for _ in range(9):
        connection.check()
    connection.pause_writing()
    for transport.unsent in (9, 9, 9, 8, 8, 8):  # it reads a little now and then
        connection.check()
        assert not transport.ended
    connection.check()
    assert transport.ended == "aborted"


async def test_calls_end_with_the_connection_even_if_the_peer_does_not_read() -> None:
    connection, transport = _connected()
    _greet(connection)
    ended = []

    class OneCall:
        def reset(self) -> None:
            ended.append(self)

    calls: Any = connection.calls
    calls[1] = OneCall()
    connection.data_received(wire.frame(wire.PING, 0, 1, bytes(8)))
    assert transport.ended == "closed"  # not lost: the GOAWAY is not read yet
    assert ended == [calls[1]]


async def test_what_is_held_is_shared_fairly() -> None:
    connection, transport = _connected(held_bytes=100)
    other = Connection(_dispatch, lambda _: None, lambda _: None, connection.shared)
    connection.hold(50)
    with pytest.raises(Exception, match="too many"):
        connection.hold(1)
    other.hold(30)
    other.hold(20)
    with pytest.raises(Exception, match="too many"):
        other.hold(1)
    connection.hold(-50)
    assert connection.shared.held == 50
    assert transport.ended == ""


async def test_writers_wake_for_their_stream_or_for_all() -> None:
    connection, _ = _connected()
    woken: list[int] = []

    async def wait(stream_id: int) -> None:
        await connection.changed(stream_id)
        woken.append(stream_id)

    tasks = [asyncio.create_task(wait(stream_id)) for stream_id in (1, 3, 3, 5)]
    await asyncio.sleep(0)
    connection._wake(3)
    await asyncio.sleep(0)
    assert woken == [3, 3]
    connection.resume_writing()
    await asyncio.gather(*tasks)
    assert woken == [3, 3, 1, 5]


async def test_who_waits_for_a_call_that_is_over_waits_no_more() -> None:
    connection, _ = _connected()
    waiting = asyncio.create_task(connection.changed(7))
    await asyncio.sleep(0)
    over: Any = SimpleNamespace(stream_id=7)
    connection.forget(over)
    await asyncio.wait_for(waiting, 10)
    assert not connection._waiting


async def test_a_message_goes_now_or_not_at_all() -> None:
    connection, transport = _connected()
    call = Call(connection, 1, SimpleNamespace(timeout_s=None))  # type: ignore[arg-type]

    def sent() -> bytes:
        connection._flush()
        out, transport.sent = bytes(transport.sent), bytearray()
        return out

    sent()
    assert not call.write_now(b"before the headers")
    await call.write(b"first")
    assert sent().endswith(wire.data_frame(1, b"first"))
    assert call.write_now(b"next")
    connection.pause_writing()
    assert not call.write_now(b"while the caller does not read")
    connection.resume_writing()
    call.window = 5 + 3
    assert not call.write_now(b"four")
    assert call.write_now(b"thr")
    assert call.window == 0
    assert sent() == wire.data_frame(1, b"next") + wire.data_frame(1, b"thr")
    call.window = 100
    call.reset()
    assert not call.write_now(b"too late")
    assert not sent()
