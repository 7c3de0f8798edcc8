"""The queue in front of the engine, over a running server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import orjson
import pytest
from google.rpc import error_details_pb2, status_pb2

from inference_node import (
    ANSWER,
    MODEL,
    FakeEngine,
    FakeMesh,
    Node,
    Reply,
    caller,
    refusal,
    running,
    typed_chat,
    until,
)
from infermesh.inference.v1 import inference_service_pb2 as pb


class Gate:
    """Holds the engine's answers back until they are let go one by one."""

    def __init__(self, engine: FakeEngine) -> None:
        self._gate = asyncio.Semaphore(0)
        self._engine = engine
        engine.script = self._answer

    async def _answer(self, reply: Reply) -> None:
        await self._gate.acquire()
        await reply.stream(ANSWER)

    def open(self, count: int = 1) -> None:
        for _ in range(count):
            self._gate.release()

    def order(self) -> list[str]:
        return [orjson.loads(r.body)["messages"][0]["content"] for r in self._engine.requests]


@pytest.fixture
def gate(engine: FakeEngine) -> Gate:
    return Gate(engine)


@asynccontextmanager
async def narrow(
    engine: FakeEngine, mesh: FakeMesh, folder: Path, **settings: object
) -> AsyncIterator[Node]:
    """A node whose engine is given two requests at a time: the one that it runs, and the next."""
    async with running(engine.port, mesh.address, folder, engine_slots=1, **settings) as node:
        await until(node.is_serving)
        yield node


def ask(node: Node, text: str, tenant: str = "t", **fields: object):
    metadata = [(k, tenant if k == "x-mesh-tenant" else v) for k, v in caller(text)]
    messages = [{"role": "user", "content": text}]
    call = node.chat(metadata=metadata, messages=messages, **fields)

    async def answered() -> list[bytes]:
        return [message.data async for message in call]

    return call, asyncio.create_task(answered())


async def fill(node: Node, engine: FakeEngine) -> list[asyncio.Task[list[bytes]]]:
    tasks = [ask(node, f"first {n}")[1] for n in range(2)]
    await until(lambda: len(engine.requests) == 2)
    return tasks


async def test_what_the_engine_has_no_room_for_waits_and_is_reported(
    engine: FakeEngine, mesh: FakeMesh, tmp_path: Path, gate: Gate
) -> None:
    async with narrow(engine, mesh, tmp_path) as node:
        tasks = await fill(node, engine)
        tasks += [ask(node, str(n))[1] for n in range(3)]
        # The engine says that two wait in it.
        await until(lambda: mesh.reports and mesh.reports[-1].load.queued == 2 + 3)
        assert len(engine.requests) == 2
        gate.open(5)
        assert all(await asyncio.gather(*tasks))
        await until(lambda: mesh.reports[-1].load.queued == 2)
        assert len(engine.requests) == 5


async def test_the_urgent_go_first_and_tenants_take_turns(
    engine: FakeEngine, mesh: FakeMesh, tmp_path: Path, gate: Gate
) -> None:
    async with narrow(engine, mesh, tmp_path) as node:
        tasks = await fill(node, engine)
        for text, tenant, priority in (
            ("low", "a", "low"),
            ("a1", "a", "normal"),
            ("a2", "a", "normal"),
            ("a3", "a", "normal"),
            ("b1", "b", "normal"),
            ("high", "a", "high"),
        ):
            queued = mesh.reports[-1].load.queued if mesh.reports else 0
            tasks.append(ask(node, text, tenant, priority=priority)[1])
            await until(lambda queued=queued: mesh.reports[-1].load.queued > queued)
        for count in range(3, 9):
            gate.open()
            await until(lambda count=count: len(engine.requests) == count)
        gate.open(2)
        await asyncio.gather(*tasks)
    order = gate.order()[2:]
    assert (order[0], order[-1]) == ("high", "low")
    assert order.index("b1") < order.index("a2")
    assert [name for name in order if name.startswith("a")] == ["a1", "a2", "a3"]


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(
    engine: FakeEngine, mesh: FakeMesh, tmp_path: Path, gate: Gate
) -> None:
    async with narrow(engine, mesh, tmp_path, max_queued=1) as node:
        tasks = await fill(node, engine)
        tasks.append(ask(node, "waits")[1])
        await until(lambda: mesh.reports and mesh.reports[-1].load.queued == 3)
        for call in (node.chat(), node.chat(stream=True), node.typed.Chat(typed_chat())):
            async with asyncio.timeout(10):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await (call if not hasattr(call, "read") else call.read())
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            trailers = dict(caught.value.trailing_metadata())
            assert 1 <= int(trailers["retry-after"]) <= 60
            status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
            retry = error_details_pb2.RetryInfo()
            assert any(d.Is(retry.DESCRIPTOR) and d.Unpack(retry) for d in status.details)
            assert retry.retry_delay.seconds == int(trailers["retry-after"])
            assert orjson.loads(trailers["x-mesh-error"])["error"]["code"] == "overloaded"
        gate.open(3)
        assert all(await asyncio.gather(*tasks))
        assert len(engine.requests) == 3
        # Who was refused took nothing.
        await until(lambda: len(mesh.events) == 3)


async def test_nobody_waits_for_ever(
    engine: FakeEngine, mesh: FakeMesh, tmp_path: Path, gate: Gate
) -> None:
    async with narrow(engine, mesh, tmp_path, max_queue_wait_s=0.3) as node:
        tasks = await fill(node, engine)
        async with asyncio.timeout(20):
            assert (await refusal(node.chat()))[0] == "OVERLOADED"
        gate.open(2)
        await asyncio.gather(*tasks)


async def test_hanging_up_leaves_the_queue(
    engine: FakeEngine, mesh: FakeMesh, tmp_path: Path, gate: Gate
) -> None:
    async with narrow(engine, mesh, tmp_path) as node:
        tasks = await fill(node, engine)
        call, gone = ask(node, "gone")
        await until(lambda: mesh.reports and mesh.reports[-1].load.queued == 3)
        stays = ask(node, "stays")[1]
        call.cancel()
        await asyncio.wait({gone})
        await until(lambda: mesh.reports[-1].load.queued == 3)
        gate.open(3)
        await asyncio.gather(*tasks, stays)
    assert gate.order()[2:] == ["stays"]


async def test_an_engine_that_dies_sends_its_queue_elsewhere(
    engine: FakeEngine, mesh: FakeMesh, tmp_path: Path, gate: Gate
) -> None:
    async with narrow(engine, mesh, tmp_path) as node:
        running_ones = await fill(node, engine)
        waiting = [ask(node, str(n))[1] for n in range(3)]
        await until(lambda: mesh.reports and mesh.reports[-1].load.queued == 5)
        await engine.stop()
        async with asyncio.timeout(20):
            results = await asyncio.gather(*running_ones, *waiting, return_exceptions=True)
        assert {r.code() for r in results} == {grpc.StatusCode.UNAVAILABLE}
        await engine.start()
        await until(node.is_serving)
        gate.open()
        _, again = ask(node, "again")
        assert await again


async def test_vectors_wait_too(engine: FakeEngine, mesh: FakeMesh, tmp_path: Path) -> None:
    engine.serves_vectors = True
    async with running(
        engine.port, mesh.address, tmp_path, engine_slots=1, max_in_flight=1, max_queued=0
    ) as node:
        await until(node.is_serving)
        request = pb.EmbedRequest(model=MODEL, inputs=["a b"] * 200)
        results = await asyncio.gather(
            *(node.typed.Embed(request) for _ in range(4)), return_exceptions=True
        )
    codes = [r.code() for r in results if isinstance(r, grpc.aio.AioRpcError)]
    assert set(codes) == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert len(codes) < 4
