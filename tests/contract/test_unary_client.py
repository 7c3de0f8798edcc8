"""The client that asks one method: each question is answered once, whatever the server does."""

import asyncio
import contextlib
import errno
import functools
import itertools
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent import futures
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import uvloop

from grpc_server_harness import Running, running
from services.kit import tls, unary_client, unary_connection
from services.kit.grpc_server import GrpcServer, wire
from services.kit.tls import Allowed, ServerTls, TlsFolder
from services.kit.unary_client import UnaryClient, open_client
from support import free_port
from tls_world import World

MIB = 1024 * 1024
AUTH, ROUTING = tls.service("auth"), tls.service("routing")
OK = wire.header_block((("grpc-status", "0"),))
STARTED = wire.header_block(((":status", "200"), ("content-type", "application/grpc")))


def on_uvloop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs a test on the loop that services run on; its script is there for as long."""

    async def run(given: dict[str, Any]) -> None:
        async with contextlib.AsyncExitStack() as stack:
            for each in given.values():
                if isinstance(each, Script):
                    await stack.enter_async_context(each.served())
            await test(**given)

    @functools.wraps(test)
    def runs(**given: Any) -> None:
        # In a thread, for the tests of other modules share a loop of this one.
        with futures.ThreadPoolExecutor(1) as thread:
            thread.submit(uvloop.run, run(given)).result()

    return runs


@pytest.fixture
def server() -> Iterator[Running]:
    with running() as found:
        yield found
        assert not found.faults


class Asked:
    """A question, and what was answered."""

    def __init__(self) -> None:
        self.answers: list[bytes | None] = []
        self.came_at = 0.0
        self._come = asyncio.Event()

    def on_answer(self, answer: bytes | None) -> None:
        self.answers.append(answer)
        self.came_at = time.monotonic()
        self._come.set()

    def is_over(self) -> bool:
        return bool(self.answers)

    async def answer(self) -> bytes | None:
        async with asyncio.timeout(10):
            await self._come.wait()
        return self.answers[0]


class Asker:
    """Asks, and remembers all that it asked."""

    def __init__(self, client: UnaryClient) -> None:
        self.client = client
        self.asked: list[Asked] = []

    def ask(self, message: bytes = b"") -> Asked:
        asked = Asked()
        self.asked.append(asked)
        self.client.ask(message, asked.on_answer)
        return asked

    async def answer(self, message: bytes = b"") -> bytes | None:
        return await self.ask(message).answer()

    async def taken(self, message: bytes = b"") -> Asked:
        """Asks until there is somebody to ask."""
        async with asyncio.timeout(10):
            while (asked := self.ask(message)).is_over():
                await asyncio.sleep(0.005)
        return asked

    async def answered(self, message: bytes = b"") -> bytes:
        """Asks until there is an answer."""
        async with asyncio.timeout(10):
            while (answer := await self.answer(message)) is None:
                await asyncio.sleep(0.005)
        return answer


@contextlib.asynccontextmanager
async def asking(
    address: str,
    method: str = "Echo",
    *,
    timeout_s: float = 5.0,
    tls_dir: Path | None = None,
    peer: str = ROUTING,
) -> AsyncIterator[Asker]:
    """A client of a server; at the end each question has been answered once."""
    client = UnaryClient(address, f"/t.S/{method}", peer, tls_dir, timeout_s)
    asker = Asker(client)
    async with open_client(client):
        yield asker
    assert asker.ask().answers == [None]
    await until(lambda: all(asked.is_over() for asked in asker.asked))
    assert {len(asked.answers) for asked in asker.asked} == {1}


async def until(holds: Callable[[], bool], limit_s: float = 5.0) -> None:
    async with asyncio.timeout(limit_s):
        while not holds():
            await asyncio.sleep(0.005)


# --- a server of bare frames ---


class Line:
    """One connection of the client, at the server's end.

    Args:
        reader: What the client sends.
        writer: What it gets.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, *frames: bytes) -> None:
        self.writer.write(b"".join(frames))

    async def greet(self, *settings: tuple[int, int]) -> None:
        assert await self.reader.readexactly(len(wire.PREFACE)) == wire.PREFACE
        kind, flags, stream_id, _ = await self.frame()
        assert (kind, flags, stream_id) == (wire.SETTINGS, 0, 0)
        self.send(wire.settings_frame(settings))

    async def frame(self) -> tuple[int, int, int, bytes]:
        async with asyncio.timeout(5):
            head = await self.reader.readexactly(wire.FRAME_HEAD_BYTES)
            high, low, kind, flags, stream_id = wire.FRAME_HEAD.unpack(head)
            return kind, flags, stream_id, await self.reader.readexactly(high << 16 | low)

    async def wait(self, kind: int, flags: int = 0) -> tuple[int, bytes]:
        """Returns stream and payload of the next frame of a kind; passes over others."""
        while True:
            found, its, stream_id, payload = await self.frame()
            if found == kind and its & flags == flags:
                return stream_id, payload

    async def request(self) -> tuple[int, bytes]:
        """Returns stream and message of the next request."""
        stream_id, block = await self.wait(wire.HEADERS)
        assert b"/t.S/" in block
        body = b""
        while True:
            kind, flags, where, payload = await self.frame()
            if kind == wire.DATA:
                assert where == stream_id
                body += payload
                if flags & wire.END_STREAM:
                    assert body[:5] == len(body[5:]).to_bytes(5, "big")
                    return stream_id, body[5:]

    def answer(self, stream_id: int, message: bytes) -> None:
        text = wire.framed(message)
        most = wire.MAX_FRAME_BYTES
        self.send(
            wire.headers_frame(stream_id, STARTED),
            *(
                wire.frame(wire.DATA, 0, stream_id, text[at : at + most])
                for at in range(0, len(text), most)
            ),
            wire.headers_frame(stream_id, OK, wire.END_STREAM),
        )

    async def echo(self) -> None:
        """Answers all requests with themselves."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                self.answer(*await self.request())

    async def until_closed(self) -> None:
        """Waits until the client has closed it."""
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionError):
                while await self.reader.read(MIB):
                    pass

    def cut(self) -> None:
        self.writer.transport.abort()


class Script:
    """Takes connections, on which a test then says what it wants.

    Args:
        path: Of its socket; None for a port.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.count = 0
        self.address = f"unix:{path}"
        self._path = path
        self._lines: asyncio.Queue[Line] = asyncio.Queue()
        self.acts: Callable[[Line], Awaitable[None]] | None = None

    @contextlib.asynccontextmanager
    async def served(self) -> AsyncIterator[None]:
        if self._path is not None:
            server = await asyncio.start_unix_server(self.take, self._path, limit=MIB)
        else:
            server = await asyncio.start_server(self.take, "127.0.0.1", 0, limit=MIB)
            self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield
        server.close()

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.count += 1
        line = Line(reader, writer)
        if self.acts is not None:
            await self.acts(line)
        else:
            self._lines.put_nowait(line)

    async def line(self) -> Line:
        """Returns the next connection."""
        async with asyncio.timeout(5):
            return await self._lines.get()

    async def greeted(self, *settings: tuple[int, int]) -> Line:
        """Returns the next connection, once it is greeted."""
        line = await self.line()
        await line.greet(*settings)
        return line


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def unix_script(tmp_path: Path) -> Script:
    return Script(tmp_path / "socket")


# --- answers ---


@pytest.mark.parametrize("kind", ["tcp", "unix", "ipv6"])
@on_uvloop
async def test_an_answer(kind: str, tmp_path: Path) -> None:
    address = {"tcp": "127.0.0.1:0", "unix": f"unix:{tmp_path}/s", "ipv6": "[::1]:0"}[kind]
    if kind == "ipv6" and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    with running(address=address) as server:
        where = address.removesuffix(":0") + f":{server.port}" if server.port else address
        async with asking(where) as asker:
            assert await asker.answered(b"first") == b"first"
            assert await asker.answer(b"second") == b"second"
            assert await asker.answer(b"") == b""
            assert len(server.connections()) == 1
        server.until(lambda: not server.connections())


def has_ipv6() -> bool:
    with socket.socket(socket.AF_INET6) as probe:
        return probe.connect_ex(("::1", 9)) != errno.EADDRNOTAVAIL


@on_uvloop
async def test_many_at_once(server: Running) -> None:
    async with asking(server.address, "Waits") as asker:
        await asker.answered(b"0")
        messages = [b"0.%03d%05d" % (random.Random(n).randrange(300), n) for n in range(1000)]
        asked = []
        for message in messages:
            asked.append(asker.ask(message))
            if len(asked) % 100 == 0:
                await asyncio.sleep(0)
        assert [await each.answer() for each in asked] == messages
        came = [each.came_at for each in asked]
        assert came != sorted(came)
        assert len(server.connections()) == 1
        server.until(lambda: not server.shared().calls)


@on_uvloop
async def test_answers_in_any_order_and_in_pieces(script: Script) -> None:
    async with asking(script.address) as asker:
        line = await script.greeted()
        asked = [await asker.taken(b"0")]
        for n in range(1, 1000):
            asked.append(asker.ask(b"%d" % n))
            if n % 100 == 0:
                await asyncio.sleep(0)
        found = [await line.request() for _ in asked]
        assert [message for _, message in found] == [b"%d" % n for n in range(1000)]
        parts = []
        for stream_id, message in found:
            text = wire.framed(b"to " + message)
            frames = (
                wire.headers_frame(stream_id, STARTED),
                wire.frame(wire.DATA, 0, stream_id, text[:3]),
                wire.frame(wire.DATA, 0, stream_id, b""),
                wire.frame(wire.DATA, 0, stream_id, text[3:]),
                wire.headers_frame(stream_id, OK, wire.END_STREAM),
            )
            parts.append(list(frames))
        shuffle = random.Random(7)
        while parts:
            part = shuffle.choice(parts)
            line.send(part.pop(0))
            if not part:
                parts.remove(part)
            if shuffle.random() < 0.02:
                await asyncio.sleep(0)
        assert [await each.answer() for each in asked] == [b"to %d" % n for n in range(1000)]
        # Cut anywhere, one byte at a time.
        one = asker.ask(b"slow")
        stream_id, _ = await line.request()
        text = wire.headers_frame(stream_id, STARTED) + wire.data_frame(stream_id, b"so slow")
        for byte in text + wire.headers_frame(stream_id, OK, wire.END_STREAM):
            line.send(bytes((byte,)))
            await asyncio.sleep(0)
        assert await one.answer() == b"so slow"


@pytest.mark.parametrize("size", [16_379, 16_380, 32_763, 200_000, MIB - 5])
@on_uvloop
async def test_messages_of_several_frames(server: Running, size: int) -> None:
    message = random.Random(size).randbytes(size)
    async with asking(server.address) as asker:
        await asker.answered()
        assert await asker.answer(message) == message
        assert await asker.answer(b"small") == b"small"


@on_uvloop
async def test_an_answer_that_is_too_large(server: Running) -> None:
    async with asking(server.address, timeout_s=0.5) as asker:
        await asker.answered()
        assert await asker.answer(bytes(MIB)) is None
        assert await asker.answer(b"small") == b"small"
        assert len(server.connections()) == 1
        server.until(lambda: not server.shared().calls)


# --- no answers ---


@pytest.mark.parametrize("method", ["Aborts", "PlainFails", "Codes", "IsNotThere"])
@on_uvloop
async def test_an_error_is_no_answer(server: Running, method: str) -> None:
    async with asking(server.address, method) as asker:
        asked = await asker.taken(b"x")
        assert await asked.answer() is None
        assert await asker.answer(b"x") is None
        assert len(server.connections()) == 1


def frames(stream_id: int, body: bytes, block: bytes = OK, end: int = wire.END_STREAM) -> bytes:
    return b"".join(
        (
            wire.headers_frame(stream_id, STARTED),
            wire.frame(wire.DATA, 0, stream_id, body),
            wire.headers_frame(stream_id, block, end),
        )
    )


ODD = {
    "no message": lambda i: wire.headers_frame(i, OK, wire.END_STREAM),
    "no status": lambda i: frames(i, wire.framed(b"x"), STARTED),
    "an empty status": lambda i: frames(
        i, wire.framed(b"x"), wire.header_block((("grpc-status", ""),))
    ),
    "no trailers": lambda i: (
        wire.headers_frame(i, STARTED)
        + wire.frame(wire.DATA, wire.END_STREAM, i, wire.framed(b"x"))
    ),
    "a compressed message": lambda i: frames(i, b"\1" + wire.framed(b"x")[1:]),
    "half a message": lambda i: frames(i, wire.framed(b"xyz")[:-1]),
    "half a length": lambda i: frames(i, b"\0\0\0"),
    "two messages": lambda i: frames(i, wire.framed(b"x") * 2),
    "a reset": lambda i: wire.reset_frame(i, wire.REFUSED_STREAM),
    "a reset halfway": lambda i: (
        wire.headers_frame(i, STARTED)
        + wire.data_frame(i, b"x")
        + wire.reset_frame(i, wire.INTERNAL_ERROR)
    ),
}


@pytest.mark.parametrize("answer", ODD.values(), ids=ODD.keys())
@on_uvloop
async def test_what_is_no_answer(script: Script, answer: Callable[[int], bytes]) -> None:
    async with asking(script.address) as asker:
        line = await script.greeted()
        asked, other = await asker.taken(b"1"), asker.ask(b"2")
        first, second = (await line.request())[0], (await line.request())[0]
        line.send(answer(first))
        assert await asked.answer() is None
        # Answers to what is over mean nothing.
        line.answer(first, b"late")
        line.answer(second, b"good")
        assert await other.answer() == b"good"
        assert script.count == 1


@on_uvloop
async def test_no_answer_in_time(server: Running) -> None:
    async with asking(server.address, "Waits", timeout_s=0.3) as asker:
        await asker.answered(b"0")
        quick = asker.ask(b"0.1")
        begun = []
        asked = []
        for _ in range(3):
            begun.append(time.monotonic())
            asked.append(asker.ask(b"30"))
            await asyncio.sleep(0.1)
        assert [await each.answer() for each in asked] == [None, None, None]
        for each, then in zip(asked, begun, strict=True):
            assert 0.28 < each.came_at - then < 1
        # The connection goes on, and the server knows that nobody waits.
        assert await quick.answer() == b"0.1"
        assert await asker.answer(b"0.01") == b"0.01"
        assert len(server.connections()) == 1
        await until(lambda: server.service.events.count("cancelled") == 3)


@on_uvloop
async def test_who_asks_again_at_once_is_answered_too(script: Script) -> None:
    script.acts = greet_and_read
    async with asking(script.address, timeout_s=0.1) as asker:
        again: list[Asked] = []

        def on_answer(_: bytes | None) -> None:
            again.append(asker.ask(b"again"))

        await asker.taken(b"0")
        for _ in range(3):
            asker.client.ask(b"first", on_answer)
            await asyncio.sleep(0.03)
        await until(lambda: len(again) == 3 and all(each.is_over() for each in again))


@on_uvloop
async def test_who_fails_to_take_an_answer_harms_nobody_else(script: Script) -> None:
    async with asking(script.address, timeout_s=0.3) as asker:

        def fail(_: bytes | None) -> None:
            raise LookupError

        line = await script.greeted()
        first = await asker.taken(b"1")
        for end in ("answer", "time", "cut"):
            asker.client.ask(b"2", fail)
            last = asker.ask(b"3")
            await line.request()
            if end == "answer":
                stream_id, _ = await line.request()
                line.answer(stream_id, b"to 2")
                line.answer((await line.request())[0], b"to 3")
                assert await last.answer() == b"to 3"
            elif end == "cut":
                line.cut()
            assert (await last.answer() is None) is (end != "answer")
        assert first.is_over()
        assert script.count <= 2


async def greet_and_read(line: Line) -> None:
    await line.greet()
    await line.until_closed()


# --- servers that come and go ---


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@on_uvloop
async def test_a_server_that_is_away_and_comes(kind: str, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/s" if kind == "unix" else f"127.0.0.1:{free_port()}"
    async with asking(address) as asker:
        for _ in range(10):
            assert asker.ask(b"x").answers == [None]
            await asyncio.sleep(0.03)
        with running(address=address):
            begun = time.monotonic()
            await asker.answered(b"x")
            assert time.monotonic() - begun < 1
        # It is away again.
        await until(lambda: asker.ask(b"x").is_over())


@on_uvloop
async def test_a_server_that_restarts() -> None:
    address = f"127.0.0.1:{free_port()}"
    async with asking(address, "Waits") as asker:
        with running(address=address) as server:
            await asker.answered(b"0")
            asked = [asker.ask(b"30") for _ in range(20)]
            await asyncio.to_thread(server.event, "waits")
        assert [await each.answer() for each in asked] == [None] * 20
        with running(address=address):
            begun = time.monotonic()
            await asker.answered(b"0")
            assert time.monotonic() - begun < 1
            assert await asker.answer(b"0.01") == b"0.01"


@on_uvloop
async def test_a_server_that_is_killed(script: Script) -> None:
    async with asking(script.address) as asker:
        line = await script.greeted()
        asked = [await asker.taken(), *(asker.ask() for _ in range(20))]
        await line.request()
        line.cut()
        assert [await each.answer() for each in asked] == [None] * 21
        again = asyncio.create_task((await script.greeted()).echo())
        assert await asker.answered(b"x") == b"x"
        again.cancel()


@on_uvloop
async def test_a_server_that_stops_answers_what_it_has(server: Running) -> None:
    async with asking(server.address, "Waits") as asker:
        await asker.answered(b"0")
        asked = [asker.ask(b"0.3") for _ in range(20)]
        await asyncio.to_thread(server.event, "waits")
        await asyncio.to_thread(server.stop, 5)
        assert [await each.answer() for each in asked] == [b"0.3"] * 20
        assert asker.ask(b"0").answers == [None]


@on_uvloop
async def test_a_machine_that_is_gone_without_a_word_is_noticed(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(unary_connection, "keep_alive", kept.append)
    async with asking(server.address) as asker:
        await asker.answered()
    assert [each.family for each in kept] == [socket.AF_INET]


@on_uvloop
async def test_goaway(script: Script) -> None:
    async with asking(script.address) as asker:
        old = await script.greeted()
        asked = [await asker.taken(b"1"), asker.ask(b"2"), asker.ask(b"3")]
        streams = [(await old.request())[0] for _ in asked]
        old.send(wire.goaway_frame(streams[1], wire.NO_ERROR))
        # What it will not look at is over at once.
        assert await asked[2].answer() is None
        new = await script.greeted()
        later = await asker.taken(b"4")
        old.answer(streams[1], b"old 2")
        assert await asked[1].answer() == b"old 2"
        stream_id, message = await new.request()
        new.answer(stream_id, b"new " + message)
        assert await later.answer() == b"new 4"
        assert not asked[0].is_over()
        old.answer(streams[0], b"old 1")
        assert await asked[0].answer() == b"old 1"
        await old.until_closed()
        assert script.count == 2


@on_uvloop
async def test_a_server_that_never_stays_is_not_asked_all_the_time(script: Script) -> None:
    async def leave(line: Line) -> None:
        await line.greet()
        await line.wait(wire.SETTINGS, wire.ACK)
        line.send(wire.goaway_frame(0, wire.NO_ERROR))
        await line.until_closed()

    script.acts = leave
    async with asking(script.address):
        await asyncio.sleep(0.5)
        assert 1 < script.count < 6


@on_uvloop
async def test_whoever_waits_at_the_end_is_told(script: Script) -> None:
    async with asking(script.address, timeout_s=60) as asker:
        line = await script.greeted()
        asked = await asker.taken()
        await line.request()
    await until(asked.is_over)
    assert asked.answers == [None]
    await line.until_closed()


@on_uvloop
async def test_stream_numbers_that_come_to_an_end(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unary_connection, "_LAST_STREAM_ID", 5)
    async with asking(script.address) as asker:
        old = await script.greeted()
        slow = await asker.taken(b"slow")
        stream_id, _ = await old.request()
        for at in (3, 5):
            # The last one has nobody beside it.
            if at == 5:
                old.answer(stream_id, b"slowly")
                assert await slow.answer() == b"slowly"
            asked = asker.ask(b"%d" % at)
            assert await old.request() == (at, b"%d" % at)
            old.answer(at, b"good")
            assert await asked.answer() == b"good"
        await old.until_closed()
        new = await script.greeted()
        asked = await asker.taken(b"6")
        assert await new.request() == (1, b"6")
        new.answer(1, b"good")
        assert await asked.answer() == b"good"


# --- what the server allows ---


@on_uvloop
async def test_more_calls_than_the_server_takes(script: Script) -> None:
    async with asking(script.address) as asker:
        line = await script.greeted((wire.SETTINGS_MAX_CONCURRENT_STREAMS, 3))
        asked = [await asker.taken(b"0"), *(asker.ask(b"%d" % n) for n in range(1, 10))]
        assert [each.is_over() for each in asked] == [False] * 3 + [True] * 7
        streams = [(await line.request())[0] for _ in range(3)]
        line.answer(streams[1], b"good")
        assert await asked[1].answer() == b"good"
        more = asker.ask(b"more"), asker.ask(b"one too many")
        assert [each.is_over() for each in more] == [False, True]
        line.answer((await line.request())[0], b"more")
        assert await more[0].answer() == b"more"
        line.send(wire.settings_frame(((wire.SETTINGS_MAX_CONCURRENT_STREAMS, 100),)))
        await line.wait(wire.SETTINGS, wire.ACK)
        assert not asker.ask(b"3").is_over()
        assert not asker.ask(b"4").is_over()


@on_uvloop
async def test_a_stream_window_that_is_too_small(script: Script) -> None:
    async with asking(script.address) as asker:
        line = await script.greeted((wire.SETTINGS_INITIAL_WINDOW_SIZE, 10))
        echo = asyncio.create_task(line.echo())
        assert await asker.answered(b"12345") == b"12345"
        assert asker.ask(b"123456").answers == [None]
        line.send(wire.settings_frame(((wire.SETTINGS_INITIAL_WINDOW_SIZE, 11),)))
        assert await asker.answered(b"123456") == b"123456"
        echo.cancel()


@on_uvloop
async def test_a_connections_window_that_is_full(script: Script) -> None:
    async with asking(script.address) as asker:
        line = await script.greeted()
        asked = await asker.taken(bytes(40_000))
        line.answer((await line.request())[0], b"good")
        assert await asked.answer() == b"good"
        assert asker.ask(bytes(40_000)).answers == [None]
        left = wire.DEFAULT_WINDOW - 40_005
        asked = asker.ask(bytes(left - 5))
        assert not asked.is_over()
        assert asker.ask().answers == [None]
        line.send(wire.window_frame((await line.request())[0], 2**20))  # a stream's only
        line.send(wire.window_frame(0, 6))
        asked = await asker.taken(b"x")
        assert (await line.request())[1] == b"x"
        assert asker.ask().answers == [None]


@on_uvloop
async def test_a_server_that_does_not_read(unix_script: Script) -> None:
    script = unix_script
    async with asking(script.address, timeout_s=0.3) as asker:
        line = await script.greeted((wire.SETTINGS_INITIAL_WINDOW_SIZE, 2**30))
        line.send(wire.window_frame(0, 2**30))
        line.writer.transport.pause_reading()
        await asker.taken(bytes(100_000))
        # Neither does what waits to be sent grow without end, nor does anybody wait for nothing.
        for count in itertools.count():  # noqa: B007
            if asker.ask(bytes(100_000)).is_over():
                break
            await asyncio.sleep(0)
        assert 30 < count < 60
        line.writer.transport.resume_reading()
        echo = asyncio.create_task(line.echo())
        assert await asker.answered(b"x") == b"x"
        assert script.count == 1
        echo.cancel()


@on_uvloop
async def test_pings_and_settings_are_acknowledged(script: Script) -> None:
    async with asking(script.address):
        line = await script.greeted()
        assert await line.wait(wire.SETTINGS, wire.ACK) == (0, b"")
        line.send(wire.frame(wire.PING, wire.ACK, 0, b"not mine"))
        line.send(wire.frame(wire.PING, 0, 0, b"are you?"))
        assert await line.wait(wire.PING) == (0, b"are you?")


# --- servers that speak otherwise ---

BAD = {
    "HTTP/1.1": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "TLS": b"\x15\x03\x03\x00\x02\x02\x28" + bytes(30),
    "noise": random.Random(1).randbytes(1000),
    "a large frame": b"\x00\x40\x01" + bytes(6),
    "settings that are cut off": wire.frame(wire.SETTINGS, 0, 0, b"12345"),
    "a window that is none": wire.settings_frame(((wire.SETTINGS_INITIAL_WINDOW_SIZE, 2**31),)),
    "a header block that is none": wire.headers_frame(1, b"\xff\xff\xff"),
    "half a header block": wire.frame(wire.HEADERS, 0, 1, b"\x88"),
    "CONTINUATION": wire.frame(wire.CONTINUATION, wire.END_HEADERS, 1, b"\x88"),
    "a push": wire.frame(wire.PUSH_PROMISE, wire.END_HEADERS, 1, bytes(4)),
    "padded data": wire.frame(wire.DATA, wire.PADDED, 1, b"\0"),
    "half a window": wire.frame(wire.WINDOW_UPDATE, 0, 0, b"\0"),
    "half a farewell": wire.frame(wire.GOAWAY, 0, 0, b"\0"),
}


@pytest.mark.parametrize("sent", BAD.values(), ids=BAD.keys())
@on_uvloop
async def test_what_is_not_http2_ends_the_connection(
    script: Script, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unary_client, "_BACKOFF_S", 0.02)
    async with asking(script.address) as asker:
        bad = await script.line()
        bad.send(sent)
        await bad.until_closed()
        assert asker.ask().answers == [None]
        # In the middle of calls, too.
        line = await script.greeted()
        asked = await asker.taken(b"x")
        await line.request()
        line.send(sent)
        assert await asked.answer() is None
        await line.until_closed()
        echo = asyncio.create_task((await script.greeted()).echo())
        assert await asker.answered(b"x") == b"x"
        echo.cancel()


@pytest.mark.parametrize("said", [b"", wire.settings_frame(((3, 9),))[:12], bytes(900)])
@on_uvloop
async def test_a_greeting_that_does_not_come(
    script: Script, said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unary_client, "_CONNECT_S", 0.15)
    monkeypatch.setattr(unary_client, "_BACKOFF_S", 0.02)
    async with asking(script.address) as asker:
        silent = await script.line()
        silent.send(said)
        assert asker.ask().answers == [None]
        await silent.until_closed()
        echo = asyncio.create_task((await script.greeted()).echo())
        assert await asker.answered(b"x") == b"x"
        echo.cancel()


@on_uvloop
async def test_a_client_that_leaves_before_the_greeting(script: Script) -> None:
    async with asking(script.address):
        line = await script.line()
        await line.reader.readexactly(len(wire.PREFACE))
    await line.until_closed()


# --- over TLS ---


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@contextlib.asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[tuple[GrpcServer, str]]:
    """Serves echoes over TLS to services."""

    async def echo(request: bytes, _: Any) -> bytes:
        await asyncio.sleep(0.02)
        return request

    server = GrpcServer(max_message_bytes=MIB)
    echoes = {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.S", echoes),))
    whom = ServerTls(TlsFolder(folder), Allowed(["service/*"]))
    port = server.add_tls_port("127.0.0.1:0", whom)
    await server.start()
    try:
        yield server, f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@on_uvloop
async def test_an_answer_over_tls(world: World) -> None:
    large = random.Random(1).randbytes(300_000)
    async with (
        serving(world.issue(ROUTING)) as (server, address),
        asking(address, tls_dir=world.issue(AUTH)) as asker,
    ):
        assert await asker.answered(b"x") == b"x"
        asked = [asker.ask(b"%d" % n) for n in range(500)]
        assert [await each.answer() for each in asked] == [b"%d" % n for n in range(500)]
        assert await asker.answer(large) == large
        assert len(server._connections) == 1


@on_uvloop
async def test_nobody_else_is_believed(world: World, tmp_path: Path) -> None:
    other = World(tmp_path / "other")
    mine = world.issue(AUTH)
    expired = world.issue(ROUTING, now=datetime.now(UTC) - timedelta(days=3), folder="expired")
    liars = {
        "another service": (world.issue(tls.service("metrics")), mine),
        "a node of that name": (world.issue(tls.node("routing")), mine),
        "another authority's": (other.issue(ROUTING, trusts=world.ca.certificate), mine),
        "one that is over": (expired, mine),
        # And nobody but services is listened to.
        "a node that asks": (world.issue(ROUTING), world.issue(tls.node("a"))),
    }
    async with contextlib.AsyncExitStack() as stack:
        found = []
        for folder, ours in liars.values():
            server, address = await stack.enter_async_context(serving(folder))
            asker = await stack.enter_async_context(asking(address, tls_dir=ours))
            found.append((server, asker))
        # It speaks no TLS at all.
        plain = stack.enter_context(running())
        asker = await stack.enter_async_context(asking(plain.address, tls_dir=mine))
        found.append((plain, asker))
        _, good = await stack.enter_async_context(serving(world.issue(ROUTING)))
        well = await stack.enter_async_context(asking(good, tls_dir=mine))
        for _ in range(3):
            await well.answered(b"x")
            assert [asker.ask(b"secret").answers for _, asker in found] == [[None]] * len(found)
            await asyncio.sleep(0.15)


@on_uvloop
async def test_renewed_files_lose_no_call(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unary_client, "_LOOK_S", 0.05)
    folder, mine = world.issue(ROUTING), world.issue(AUTH)
    async with (
        serving(folder) as (server, address),
        asking(address, tls_dir=mine) as asker,
    ):
        await asker.answered()
        asked: list[Asked] = []

        async def ask_all_the_time() -> None:
            while True:
                asked.append(asker.ask(b"%d" % len(asked)))
                await asyncio.sleep(0.001)

        load = asyncio.create_task(ask_all_the_time())
        for _ in range(3):
            before = set(server._connections)
            assert len(before) == 1
            world.issue(AUTH)
            await until(lambda old=before: not old & server._connections)
        # A key that is not the certificate's, and none at all: the old connection stays.
        before = set(server._connections)
        (mine / "..data" / tls.KEY_FILE).write_bytes(world.authority.issue(AUTH).key)
        await asyncio.sleep(0.3)
        (mine / "..data" / tls.KEY_FILE).unlink()
        await asyncio.sleep(0.3)
        # One that the server sends away, which it does once the connection stands.
        world.issue(tls.node("a"), folder=AUTH)
        await asyncio.sleep(0.3)
        assert server._connections == before
        world.issue(AUTH)
        await until(lambda: not before & server._connections)
        await asyncio.sleep(0.1)
        load.cancel()
        assert len(asked) > 200
        assert [await each.answer() for each in asked] == [b"%d" % n for n in range(len(asked))]
        assert len(server._connections) == 1
