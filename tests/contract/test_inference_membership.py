"""The inference proxy as a node of the mesh, over a running server."""

import asyncio
import logging
from pathlib import Path

import grpc
import pytest
from google.api import httpbody_pb2

from inference_node import (
    DIRECT,
    DONE,
    HELLO,
    LAST,
    MODEL,
    ROLE,
    USAGE,
    FakeEngine,
    FakeMesh,
    Node,
    Reply,
    caller,
    refusal,
    running,
    text_of,
    until,
)
from infermesh.metrics.v1 import usage_service_pb2 as usage_pb2
from infermesh.registry.v1 import node_service_pb2


async def test_it_joins_and_reports(node: Node, engine: FakeEngine, mesh: FakeMesh) -> None:
    await until(lambda: len(mesh.reports) >= 3)
    join = mesh.joins[0]
    assert (join.node_id, join.address, join.engine) == ("node-1", node.address, "llamacpp")
    assert (join.engine_version, join.models[0].name) == ("b1", MODEL)
    assert join.models[0].context_length == 16
    report = mesh.reports[-1]
    assert report.engine_up
    assert not report.draining
    assert (report.load.running, report.load.queued, report.load.slots) == (1, 2, 4)
    assert mesh.keys == {"Bearer im-node"}


async def test_it_joins_again_when_the_stream_ends(node: Node, mesh: FakeMesh) -> None:
    await until(lambda: mesh.reports)
    mesh.to_node.put_nowait(None)
    await until(lambda: len(mesh.joins) == 2)


async def test_an_operators_drain_is_noted_and_not_told_back(
    node: Node, mesh: FakeMesh, caplog: pytest.LogCaptureFixture
) -> None:
    # Told back, it would keep the node draining for a report's time after it is over.
    caplog.set_level(logging.INFO, "services.inference.agent")
    for draining in (True, False):
        changed = node_service_pb2.DrainChanged(draining=draining)
        mesh.to_node.put_nowait(node_service_pb2.AttachNodeResponse(drain_changed=changed))
        await until(
            lambda draining=draining: any(
                vars(record).get("draining") is draining for record in caplog.records
            )
        )
        seen = len(mesh.reports)
        await until(lambda seen=seen: len(mesh.reports) > seen)
        assert not mesh.reports[-1].draining
    assert await node.is_serving()


async def test_an_engine_that_goes_and_comes_back(
    node: Node, engine: FakeEngine, mesh: FakeMesh
) -> None:
    await until(lambda: mesh.reports and mesh.reports[-1].engine_up)
    await engine.stop()
    assert (await refusal(node.chat()))[0] == "ENGINE_UNAVAILABLE"
    await until(lambda: not mesh.reports[-1].engine_up)
    assert not await node.is_serving()
    engine.is_loading = True
    await engine.start()
    assert (await refusal(node.chat()))[0] == "ENGINE_UNAVAILABLE"
    engine.is_loading = False
    await until(lambda: mesh.reports[-1].engine_up)
    await until(node.is_serving)
    assert text_of([m async for m in node.chat(stream=True)]) == DIRECT
    assert len(mesh.joins) == 1


async def test_it_says_goodbye_after_its_streams(
    engine: FakeEngine, mesh: FakeMesh, tmp_path: Path
) -> None:
    async def slow(reply: Reply) -> None:
        await reply.start()
        await reply.send(ROLE + HELLO)
        await asyncio.sleep(1.5)
        await reply.send(LAST + USAGE + DONE)
        await reply.end()

    engine.script = slow
    stop = asyncio.Event()
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def serve() -> None:
        async with running(engine.port, mesh.address, tmp_path, drain_s=10) as node:
            address.set_result(node.address)
            await stop.wait()

    served = asyncio.create_task(serve())
    # The caller's channel is its own: the node's stop does not hang up for it.
    async with grpc.aio.insecure_channel(await address) as channel:
        await until(lambda: mesh.reports and mesh.reports[-1].engine_up)
        call = Node(await address, channel).chat(metadata=caller("last"), stream=True)
        received = (await call.read()).data
        stop.set()
        await until(lambda: mesh.reports[-1].draining)
        assert mesh.goodbyes == 0
        while isinstance(message := await call.read(), httpbody_pb2.HttpBody):
            received += message.data
        await served
    assert received == DIRECT
    assert mesh.goodbyes == 1
    assert [e.outcome for e in mesh.events] == [usage_pb2.OUTCOME_OK]
