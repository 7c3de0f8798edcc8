"""What comes of a stream too fast to be passed on piece by piece gathers; nothing else waits."""

from typing import Any

import pytest

from services.inference.http_connection import Connection

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ntransfer-encoding: chunked\r\n\r\n"
PIECE = b"5\r\nhello\r\n"
END = b"0\r\n\r\n"


class Clock:
    """The part of a loop that a connection asks without waiting."""

    def __init__(self) -> None:
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Any) -> Any:
        class Timer:
            def cancel(self) -> None:
                pass

        return Timer()


class Transport:
    """Keeps what was sent, and whether anything is read."""

    def __init__(self) -> None:
        self.is_reading = True
        self.sent: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    def pause_reading(self) -> None:
        assert self.is_reading
        self.is_reading = False

    def resume_reading(self) -> None:
        assert not self.is_reading
        self.is_reading = True

    def abort(self) -> None:
        pass


class Pool:
    idle_timeout_s = total_timeout_s = 60.0

    def __init__(self) -> None:
        self.busy: set[Connection] = set()
        self.resting: list[Connection] = []
        self.kept: list[Connection] = []

    def keep(self, connection: Connection) -> None:
        self.kept.append(connection)

    def forget(self, connection: Connection) -> None:
        pass

    def rest(self, connection: Connection) -> None:
        self.resting.append(connection)


class World:
    """A connection whose request is sent, and what is around it."""

    def __init__(self) -> None:
        self.pool, self.transport, self.clock = Pool(), Transport(), Clock()
        self.connection = Connection(self.pool)
        self.connection._loop = self.clock  # type: ignore[assignment]
        self.connection.connection_made(self.transport)  # type: ignore[arg-type]

    async def begin(self, content_type: bytes = b"text/event-stream; charset=utf-8") -> None:
        sending = self.connection.send(b"POST", b"")
        self.connection._wait = self._arrive(content_type)  # type: ignore[method-assign]
        await sending

    def _arrive(self, content_type: bytes) -> Any:
        async def wait() -> None:
            self.come(HEAD % content_type)

        return wait

    def come(self, data: bytes, after_s: float = 0.0) -> None:
        self.clock.now += after_s
        assert self.transport.is_reading
        self.connection.data_received(data)

    def come_first(self) -> None:
        """Has an answer begin, fast."""
        self.come(PIECE)
        self.come(PIECE, after_s=0.0001)
        assert self.transport.is_reading


@pytest.fixture
async def world() -> World:
    made = World()
    await made.begin()
    return made


async def test_what_comes_as_people_read_passes_at_once(world: World) -> None:
    for _ in range(5):
        world.come(PIECE, after_s=0.002)
        assert world.transport.is_reading
        assert await world.connection.read(1) == b"hello"
    assert not world.pool.resting


async def test_a_rush_gathers_after_what_has_come(world: World) -> None:
    world.come_first()
    world.come(PIECE, after_s=0.0001)
    assert await world.connection.read(1) == 3 * b"hello"
    assert not world.transport.is_reading
    assert world.pool.resting == [world.connection]
    world.connection.go_on()
    assert world.transport.is_reading
    world.come(3 * PIECE, after_s=0.002)
    assert world.transport.is_reading
    assert await world.connection.read(1) == 3 * b"hello"


async def test_the_end_never_waits(world: World) -> None:
    world.come_first()
    world.come(PIECE + END)
    assert world.transport.is_reading
    assert world.connection.is_complete
    world.connection.release()
    assert world.pool.kept == [world.connection]


@pytest.mark.parametrize("content_type", [b"application/json", b"text/plain"])
async def test_an_answer_in_one_piece_never_waits(content_type: bytes) -> None:
    world = World()
    await world.begin(content_type)
    for _ in range(5):
        world.come(PIECE, after_s=0.0001)
        assert world.transport.is_reading


async def test_a_slow_reader_is_not_read_for_when_the_rest_is_over(world: World) -> None:
    world.come_first()
    big = b"%x\r\n%b\r\n" % (40_000, bytes(40_000))
    world.come(big)
    assert not world.transport.is_reading
    world.connection.go_on()
    world.come(big, after_s=0.002)  # more than is kept for a reader: a pause of another kind
    assert not world.transport.is_reading
    world.connection.go_on()
    assert not world.transport.is_reading
    while world.connection._pieces:
        await world.connection.read(1)
    assert world.transport.is_reading


async def test_who_reads_everything_in_a_rest_does_not_end_it(world: World) -> None:
    world.come_first()
    world.come(PIECE)
    await world.connection.read(1)
    assert not world.transport.is_reading


async def test_a_rest_that_outlives_its_exchange_does_nothing(world: World) -> None:
    world.come_first()
    world.come(PIECE)
    world.connection.release()
    world.connection.go_on()


async def test_who_hangs_up_on_a_long_answer_that_is_there_leaves_no_deaf_connection(
    world: World,
) -> None:
    world.come_first()
    world.come(b"%x\r\n%b\r\n" % (80_000, bytes(80_000)) + END, after_s=1.0)
    assert world.connection.is_complete
    world.connection.release()  # most of it was never read
    assert world.pool.kept == [world.connection]
    assert world.transport.is_reading
