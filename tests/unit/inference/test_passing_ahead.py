"""Most of an answer goes past the task that reads it, in order and in full all the same."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from services.inference.engines.dialect import Plan
from services.inference.engines.openai import OpenAICompatible
from services.inference.engines.translated import translated
from services.inference.http_client import Exchange
from services.inference.http_connection import Connection
from services.inference.keepalive import KeepAlive
from services.inference.streams import pass_on

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = (
    b'data: {"model":"%b","choices":[{"index":0,"finish_reason":%b,"delta":{"content":"%b"}}]}\n\n'
)
DONE = b"data: [DONE]\n\n"
END = b"0\r\n\r\n"


def said(text: bytes, reason: bytes = b"null", model: bytes = b"m") -> bytes:
    return EVENT % (model, reason, text)


class Transport:
    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    def pause_reading(self) -> None:
        raise AssertionError("nothing here is fast or much")

    def abort(self) -> None:
        pass


class Pool:
    idle_timeout_s = total_timeout_s = 60.0

    def __init__(self) -> None:
        self.busy: set[Connection] = set()

    def keep(self, connection: Connection) -> None:
        pass

    def forget(self, connection: Connection) -> None:
        pass


class World:
    """An engine's answer, a caller, and what the caller got, by which way."""

    def __init__(self) -> None:
        self.got: list[tuple[str, bytes]] = []
        self.takes = True
        self.may_write = asyncio.Event()
        self.may_write.set()

    async def begin(self, model: str = "m") -> None:
        self.connection = Connection(Pool())  # type: ignore[arg-type]
        self.connection.connection_made(Transport())  # type: ignore[arg-type]
        sending = asyncio.create_task(self.connection.send(b"POST", b""))
        await asyncio.sleep(0)
        self.connection.data_received(HEAD)
        await sending
        engine = OpenAICompatible()
        plan = Plan("/", b"")
        exchange = translated(Exchange(self.connection), plan)
        account: Any = SimpleNamespace(
            note_content=lambda: None, succeed=lambda _: None, fail=lambda _: None
        )
        request: Any = SimpleNamespace(model=model, kind="chat", fields={}, body=b"")
        self.passing = asyncio.create_task(
            pass_on(exchange, account, request, plan, engine, self.write, write_now=self.write_now)
        )
        await self.turn()

    async def write(self, data: bytes, content_type: str) -> None:
        await self.may_write.wait()
        self.got.append(("task", data))

    def write_now(self, data: bytes) -> bool:
        if self.takes:
            self.got.append(("now", data))
        return self.takes

    def come(self, events: bytes) -> None:
        # As people read: what comes faster is left to gather.
        self.connection._heard_at -= 1.0
        self.connection.data_received(b"%x\r\n%b\r\n" % (len(events), events))

    async def turn(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    async def end(self) -> None:
        self.come(said(b"", b'"stop"'))
        await self.turn()
        self.come(DONE)
        self.connection.data_received(END)
        await asyncio.wait_for(self.passing, 1)


@pytest.fixture
async def world() -> World:
    made = World()
    await made.begin()
    return made


async def test_only_what_begins_and_ends_an_answer_takes_the_task(world: World) -> None:
    world.come(said(b"first"))
    await world.turn()
    for text in (b"a", b"b"):
        world.come(said(text))  # with no turn of the loop between
    assert world.got[1:] == [("now", said(b"a")), ("now", said(b"b"))]
    await world.end()
    ways = [("task", said(b"first")), ("task", said(b"", b'"stop"')), ("task", DONE)]
    assert [each for each in world.got if each[0] == "task"] == ways


async def test_what_cannot_go_now_goes_in_its_place(world: World) -> None:
    world.come(said(b"first"))
    await world.turn()
    world.takes = False
    world.may_write.clear()
    world.come(said(b"a"))
    world.takes = True
    world.come(said(b"b"))  # its reader is woken, and has not run
    await world.turn()
    world.come(said(b"c"))  # its reader waits for the caller
    world.may_write.set()
    await world.turn()
    world.come(said(b"d"))
    await world.end()
    texts = b"".join(data for _, data in world.got)
    assert (
        texts
        == b"".join(map(said, (b"first", b"a", b"b", b"c", b"d"))) + said(b"", b'"stop"') + DONE
    )
    assert ("now", said(b"d")) in world.got


async def test_an_event_in_two_parts(world: World) -> None:
    world.come(said(b"first"))
    await world.turn()
    event = said(b"halves")
    world.come(event[:20])
    world.come(event[20:])
    await world.turn()
    assert world.got[1:] == [("task", event)]
    world.come(said(b"next"))
    assert world.got[2:] == [("now", said(b"next"))]


async def test_the_model_has_its_name_in_all_of_it() -> None:
    world = World()
    await world.begin(model="ours")
    world.come(said(b"first"))
    await world.turn()
    world.come(said(b"a"))
    assert world.got == [
        ("task", said(b"first", model=b"ours")),
        ("now", said(b"a", model=b"ours")),
    ]


async def test_nothing_goes_out_after_the_end(world: World) -> None:
    world.come(said(b"first"))
    await world.turn()
    world.come(said(b"", b'"stop"') + DONE)
    await world.turn()
    before = list(world.got)
    assert not world.passing.done()  # it waits for the end of the body
    world.come(said(b"late"))
    world.connection.data_received(END)
    await asyncio.wait_for(world.passing, 1)
    assert world.got == before


async def test_the_next_answer_on_a_connection_is_offered_to_nobody(world: World) -> None:
    world.come(said(b"first"))
    await world.turn()
    await world.end()
    before = list(world.got)
    sending = asyncio.create_task(world.connection.send(b"POST", b""))
    await world.turn()
    world.connection.data_received(HEAD)
    await sending
    reading = asyncio.create_task(world.connection.read(1))
    await world.turn()
    world.come(said(b"other"))
    assert await reading == said(b"other")
    assert world.got == before


@pytest.mark.parametrize("make", [lambda: None, lambda: lambda _: False])
async def test_a_silence_ends_with_what_goes_now(make: Callable[[], Any]) -> None:
    texts = []

    async def write(data: bytes, _: str) -> None:
        texts.append(data)

    def write_now(data: bytes) -> bool:
        texts.append(data)
        return True

    alive = KeepAlive(0.05, write, b"ping", write_now)
    await alive.write(b"first")
    alive.start()
    for _ in range(8):
        await asyncio.sleep(0.01)
        assert alive.write_now(b"more")
    assert b"ping" not in texts
    alive.stop()
    assert not KeepAlive(0.05, write, b"ping", make()).write_now(b"more")


async def test_what_goes_now_waits_for_what_is_being_written() -> None:
    may_write = asyncio.Event()

    async def write(data: bytes, _: str) -> None:
        await may_write.wait()

    alive = KeepAlive(1.0, write, b"ping", lambda _: True)
    writing = asyncio.create_task(alive.write(b"first"))
    await asyncio.sleep(0)
    assert not alive.write_now(b"second")
    may_write.set()
    await writing
    assert alive.write_now(b"second")
