"""Every RPC of the registry over a running server, with PostgreSQL behind it."""

import asyncio
import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from google.rpc import code_pb2

from infermesh.registry.v1 import model_service_pb2, node_service_pb2, resources_pb2
from registry_world import (
    LEASE_S,
    Registry,
    attach,
    fake_node,
    join,
    joining,
    no_fake_nodes_left,
    refused,
    registry,
    report,
    running,
)
from services.kit.database import make_engine
from services.kit.errors import StoreUnavailableError
from services.kit.server import serving
from services.registry.app import make_app
from services.registry.settings import RegistrySettings
from services.registry.store import ModelRow, NodeRow, ServedModelRow
from services.registry.store_postgres import PostgresStore

__all__ = ["no_fake_nodes_left", "registry"]


async def test_a_node_joins_reports_and_leaves(registry: Registry) -> None:
    call = await attach(registry, join("a", 1, "m", "n"))
    assert await registry.state("a") == resources_pb2.NODE_STATE_ENGINE_DOWN
    await call.write(report(running=3))
    await registry.wait_for("a", resources_pb2.NODE_STATE_READY)
    [node] = (await registry.nodes.ListNodes(node_service_pb2.ListNodesRequest())).nodes
    assert node.load.running == 3
    assert not node.load.HasField("queued")
    assert node.address == f"127.0.0.1:{(await fake_node(1)).port}"
    models = (await registry.models.ListModels(model_service_pb2.ListModelsRequest())).models
    assert [(m.name, m.context_length, m.ready_node_count) for m in models] == [
        ("m", 2048, 1),
        ("n", 2048, 1),
    ]
    await call.write(report(up=False))
    await registry.wait_for("a", resources_pb2.NODE_STATE_ENGINE_DOWN)
    await call.write(report(draining=True))
    await registry.wait_for("a", resources_pb2.NODE_STATE_DRAINING)
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() == grpc.StatusCode.OK
    assert await registry.state("a") == resources_pb2.NODE_STATE_OFFLINE


async def test_a_broken_stream_leaves_the_node_to_its_lease(registry: Registry) -> None:
    call = await attach(registry, join("a", 1), report())
    await registry.wait_for("a", resources_pb2.NODE_STATE_READY)
    call.cancel()
    await asyncio.sleep(LEASE_S / 3)
    assert await registry.state("a") == resources_pb2.NODE_STATE_READY
    await registry.wait_for("a", resources_pb2.NODE_STATE_OFFLINE)


async def test_a_connection_that_breaks_leaves_the_node_to_its_lease(
    postgres_url: str, registry: Registry
) -> None:
    settings = RegistrySettings(drain_s=1, database_url=postgres_url, lease_s=LEASE_S)
    async with serving(settings, make_app(settings)) as real:
        host, _, port = real.rpartition(":")

        writers: list[asyncio.StreamWriter] = []

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            up_reader, up_writer = await asyncio.open_connection(host, int(port))
            writers.extend((writer, up_writer))

            async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
                while data := await source.read(65536):
                    sink.write(data)

            await asyncio.gather(copy(reader, up_writer), copy(up_reader, writer))

        proxy = await asyncio.start_server(relay, "127.0.0.1", 0)
        proxy_port = proxy.sockets[0].getsockname()[1]
        async with (
            grpc.aio.insecure_channel(f"127.0.0.1:{proxy_port}") as broken,
            grpc.aio.insecure_channel(real) as channel,
        ):
            watcher = Registry(channel)
            await attach(Registry(broken), join("broken", 1), report())
            await watcher.wait_for("broken", resources_pb2.NODE_STATE_READY)
            for writer in writers:
                writer.transport.abort()
            await asyncio.sleep(LEASE_S / 3)
            assert await watcher.state("broken") == resources_pb2.NODE_STATE_READY
            await watcher.wait_for("broken", resources_pb2.NODE_STATE_OFFLINE)
        proxy.close()


async def test_a_second_stream_takes_over(registry: Registry) -> None:
    first = await attach(registry, join("a", 1), report())
    await registry.wait_for("a", resources_pb2.NODE_STATE_READY)
    second = await attach(registry, join("a", 2, "other"))
    assert await refused(first) == (code_pb2.ABORTED, "", None)
    assert await registry.state("a") == resources_pb2.NODE_STATE_READY
    await second.write(report())
    models = (await registry.models.ListModels(model_service_pb2.ListModelsRequest())).models
    assert [(m.name, m.ready_node_count) for m in models] == [("m", 0), ("other", 1)]


async def test_bad_streams_are_refused(registry: Registry) -> None:
    invalid = code_pb2.INVALID_ARGUMENT

    async def sent(*messages: object) -> tuple[int, str, str | None]:
        call = registry.nodes.AttachNode()
        for message in messages:
            await call.write(message)
        await call.done_writing()
        return await refused(call)

    assert await sent() == (invalid, "INVALID_ARGUMENT", "join")
    assert await sent(report()) == (invalid, "INVALID_ARGUMENT", "join")
    twice = await attach(registry, join("a", 1), join("a", 1))
    assert await refused(twice) == (invalid, "INVALID_ARGUMENT", "join")
    assert await sent(join("bad id", 1)) == (invalid, "INVALID_ARGUMENT", "join.node_id")
    named = join("a", 0, address="host.test:80")
    assert await sent(named) == (invalid, "INVALID_ARGUMENT", "join.address")


async def test_an_address_belongs_to_one_live_node(registry: Registry) -> None:
    first = await attach(registry, join("a", 1), report())
    call = await joining(registry, join("b", 1))
    assert (await refused(call))[1:] == ("INVALID_ARGUMENT", "join.address")
    first.cancel()
    deadline = time.monotonic() + LEASE_S * 2 / 3  # it is not its lease that takes it out
    while True:
        try:
            await attach(registry, join("b", 1), report())
            break
        except grpc.aio.AioRpcError:  # the registry has not heard yet that the first is gone
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
    await registry.wait_for("b", resources_pb2.NODE_STATE_READY)
    assert await registry.state("a") == resources_pb2.NODE_STATE_OFFLINE


async def test_drain_and_resume(registry: Registry, postgres_url: str) -> None:
    missing = node_service_pb2.DrainNodeRequest(node_id="nobody")
    refusal = await refused(registry.nodes.DrainNode(missing))
    assert refusal == (code_pb2.NOT_FOUND, "NOT_FOUND", "node_id")
    refusal = await refused(registry.nodes.ResumeNode(missing))
    assert refusal == (code_pb2.NOT_FOUND, "NOT_FOUND", "node_id")

    call = await attach(registry, join("a", 1), report())
    await registry.wait_for("a", resources_pb2.NODE_STATE_READY)
    drain = node_service_pb2.DrainNodeRequest(node_id="a")
    for _ in range(2):
        node = await registry.nodes.DrainNode(drain)
        assert node.state == resources_pb2.NODE_STATE_DRAINING
    assert (await call.read()).drain_changed.draining
    # The wish outlives the stream and the registry.
    async with running(postgres_url) as restarted:
        assert await restarted.state("a") == resources_pb2.NODE_STATE_DRAINING
    node = await registry.nodes.ResumeNode(node_service_pb2.ResumeNodeRequest(node_id="a"))
    assert node.state == resources_pb2.NODE_STATE_READY
    assert not (await call.read()).drain_changed.draining


async def test_a_drained_node_that_joins_again_is_told(registry: Registry) -> None:
    first = await attach(registry, join("a", 1), report())
    await registry.nodes.DrainNode(node_service_pb2.DrainNodeRequest(node_id="a"))
    first.cancel()
    second = await attach(registry, join("a", 1), report())
    assert (await second.read()).drain_changed.draining
    assert await registry.state("a") == resources_pb2.NODE_STATE_DRAINING


async def test_delete_node(registry: Registry, postgres_url: str) -> None:
    delete = node_service_pb2.DeleteNodeRequest(node_id="a")
    missing = (code_pb2.NOT_FOUND, "NOT_FOUND", "node_id")
    assert await refused(registry.nodes.DeleteNode(delete)) == missing
    nameless = registry.nodes.DeleteNode(node_service_pb2.DeleteNodeRequest())
    assert await refused(nameless) == (code_pb2.INVALID_ARGUMENT, "INVALID_ARGUMENT", "node_id")

    call = await attach(registry, join("a", 1), report())
    await registry.wait_for("a", resources_pb2.NODE_STATE_READY)
    in_use = (code_pb2.FAILED_PRECONDITION, "FAILED_PRECONDITION", None)
    assert await refused(registry.nodes.DeleteNode(delete)) == in_use
    # Silent for its lease: offline, with its stream still open.
    await registry.wait_for("a", resources_pb2.NODE_STATE_OFFLINE)
    watch = registry.nodes.WatchMesh(node_service_pb2.WatchMeshRequest())
    await watch.read()
    await registry.nodes.DeleteNode(delete)
    change = await watch.read()
    assert (list(change.nodes), list(change.deleted_node_ids)) == ([], ["a"])
    assert await refused(call) == in_use
    assert await refused(registry.nodes.DeleteNode(delete)) == missing
    async with running(postgres_url) as restarted:
        assert not (await restarted.nodes.ListNodes(node_service_pb2.ListNodesRequest())).nodes
    # The node itself may come back.
    await attach(registry, join("a", 1), report())
    assert [node.node_id for node in (await watch.read()).nodes] == ["a"]


async def test_watch_brings_everything_and_then_changes(registry: Registry) -> None:
    call = await attach(registry, join("a", 1), report())
    await registry.wait_for("a", resources_pb2.NODE_STATE_READY)
    watch = registry.nodes.WatchMesh(node_service_pb2.WatchMeshRequest())
    first = await watch.read()
    assert first.synced
    assert [n.node_id for n in first.nodes] == ["a"]
    assert [m.name for m in first.models] == ["m"]
    await call.write(report(running=7))
    change = await watch.read()
    assert [n.load.running for n in change.nodes] == [7]
    assert not change.models
    await call.done_writing()
    change = await watch.read()
    assert change.nodes[0].state == resources_pb2.NODE_STATE_OFFLINE
    assert change.models[0].ready_node_count == 0
    await registry.models.DeleteModel(model_service_pb2.DeleteModelRequest(name="m"))
    assert list((await watch.read()).deleted_models) == ["m"]


async def test_models(registry: Registry) -> None:
    call = await attach(registry, join("a", 1, "org/m:v1"), report())
    name = "org/m:v1"
    get = model_service_pb2.GetModelRequest(name=name)
    assert (await registry.models.GetModel(get)).name == name

    delete = model_service_pb2.DeleteModelRequest(name=name)
    refusal = await refused(registry.models.DeleteModel(delete))
    assert refusal == (code_pb2.FAILED_PRECONDITION, "FAILED_PRECONDITION", None)
    await call.done_writing()
    await call.read()
    # Known, though no node serves it.
    assert (await registry.models.GetModel(get)).name == name
    await registry.models.DeleteModel(delete)
    missing = (code_pb2.NOT_FOUND, "MODEL_NOT_FOUND", "model")
    assert await refused(registry.models.DeleteModel(delete)) == missing
    assert await refused(registry.models.GetModel(get)) == missing


async def test_a_restart_drops_nobody(postgres_url: str, registry: Registry) -> None:
    call = await attach(registry, join("a", 1), report())
    await registry.wait_for("a", resources_pb2.NODE_STATE_READY)
    await asyncio.sleep(0.4)
    async with running(postgres_url) as restarted:
        assert await restarted.state("a") == resources_pb2.NODE_STATE_READY
        models = await restarted.models.ListModels(model_service_pb2.ListModelsRequest())
        assert models.models[0].ready_node_count == 1
        await restarted.wait_for("a", resources_pb2.NODE_STATE_OFFLINE)
    call.cancel()


async def test_stopping_ends_streams_so_that_nodes_come_back(
    postgres_url: str, registry: Registry
) -> None:
    settings = RegistrySettings(drain_s=1, database_url=postgres_url, lease_s=LEASE_S)
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(serving(settings, make_app(settings)))
        channel = grpc.aio.insecure_channel(address)
        other = Registry(channel)
        watch = other.nodes.WatchMesh(node_service_pb2.WatchMeshRequest())
        await watch.read()
        call = await attach(other, join("x", 9))
        ended = asyncio.gather(refused(watch), refused(call))
        started = asyncio.get_running_loop().time()
    assert await ended == [(code_pb2.UNAVAILABLE, "", None)] * 2
    assert asyncio.get_running_loop().time() - started < settings.drain_s
    await channel.close()


async def test_the_store_keeps_what_it_is_given(postgres_url: str, registry: Registry) -> None:
    engine = make_engine(postgres_url)
    store = PostgresStore(engine)
    created = datetime(2026, 1, 2, tzinfo=UTC)
    model = ModelRow("m", (1, 2), 4096, created)
    served = (ServedModelRow("m", (1,), 9), ServedModelRow("l", (1, 3), 9, "m", 0.5, 0.0))
    node = NodeRow(
        "a",
        "127.0.0.1:1",
        "llamacpp",
        "",
        served,
        True,
        4,
        created,
        None,
        {"zone": "rack-1"},
        2,
    )
    await store.save([node], [model])
    later = ModelRow("m", (1,), 8192, created + timedelta(days=1))
    await store.save([node], [later])
    nodes, models = await store.load()
    assert list(nodes) == [node]
    assert list(models) == [ModelRow("m", (1,), 8192, created)]
    await store.delete_model("m")
    await store.delete_model("m")
    assert not (await store.load())[1]
    await store.save([], [], {"a", "never-there"})
    assert not (await store.load())[0]
    await engine.dispose()


async def test_a_store_that_is_away_says_so() -> None:
    engine = make_engine("postgresql+asyncpg://u:p@127.0.0.1:1/none")
    with pytest.raises(StoreUnavailableError):
        await PostgresStore(engine).load()
    await engine.dispose()
