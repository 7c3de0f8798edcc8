"""A running registry, and nodes that join it and answer its challenges."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import grpc
import pytest
import sqlalchemy as sa

from infermesh.inference.v1 import identity_service_pb2, identity_service_pb2_grpc
from infermesh.registry.v1 import (
    model_service_pb2_grpc,
    node_service_pb2,
    node_service_pb2_grpc,
    resources_pb2,
)
from services.kit.database import create_tables, make_engine
from services.kit.errors import from_rpc_error
from services.kit.server import serving
from services.registry.app import make_app
from services.registry.settings import RegistrySettings
from services.registry.store_postgres import metadata

LEASE_S = 1.8
"""Longer than a busy machine keeps a process of its own waiting."""


class Registry:
    """Stubs of a running registry."""

    def __init__(self, channel: grpc.aio.Channel, address: str = "") -> None:
        self.address = address
        self.nodes = node_service_pb2_grpc.NodeServiceStub(channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(channel)

    async def state(self, node_id: str) -> int:
        request = node_service_pb2.GetNodeRequest(node_id=node_id)
        return (await self.nodes.GetNode(request)).state

    async def wait_for(self, node_id: str, state: int) -> None:
        async with asyncio.timeout(20):
            while await self.state(node_id) != state:
                await asyncio.sleep(0.02)


@asynccontextmanager
async def running(
    postgres_url: str, lease_s: float = LEASE_S, **more: object
) -> AsyncIterator[Registry]:
    settings = RegistrySettings(
        listen="127.0.0.1:0", drain_s=1, database_url=postgres_url, lease_s=lease_s, **more
    )
    async with (
        serving(settings, make_app(settings)) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield Registry(channel, address)


@pytest.fixture
async def registry(postgres_url: str) -> AsyncIterator[Registry]:
    engine = make_engine(postgres_url)
    await create_tables(engine, metadata)
    async with engine.begin() as connection:
        await connection.execute(sa.text("TRUNCATE registry.node, registry.model"))
    await engine.dispose()
    async with running(postgres_url) as registry:
        yield registry


class FakeNode(identity_service_pb2_grpc.IdentityServiceServicer):
    """Listens where a node does and shows the nonces that it was given."""

    def __init__(self, port: int, node_id: str = "") -> None:
        self.port = port
        self.node_id = node_id
        self.nonce = b""
        self.asked = 0
        self.knows = asyncio.Event()

    async def Identify(self, request, context):  # noqa: N802
        self.asked += 1
        # The question may overtake the nonce.
        await self.knows.wait()
        return identity_service_pb2.IdentifyResponse(node_id=self.node_id, nonce=self.nonce)


_listening: dict[int, tuple[grpc.aio.Server, FakeNode]] = {}


async def fake_node(number: int) -> FakeNode:
    """Returns the node that listens for this number; made on the first call."""
    if number not in _listening:
        server = grpc.aio.server()
        port = server.add_insecure_port("127.0.0.1:0")
        node = FakeNode(port)
        identity_service_pb2_grpc.add_IdentityServiceServicer_to_server(node, server)
        await server.start()
        _listening[number] = (server, node)
    return _listening[number][1]


@pytest.fixture(autouse=True)
async def no_fake_nodes_left() -> AsyncIterator[None]:
    yield
    for server, _ in _listening.values():
        await server.stop(None)
    _listening.clear()


def join(
    node_id: str, number: int, *models: str, address: str = "", **fields: object
) -> node_service_pb2.AttachNodeRequest:
    """Returns a join; `joining` puts in the port of the fake node with this number for it."""
    return node_service_pb2.AttachNodeRequest(
        join=node_service_pb2.JoinNode(
            node_id=node_id,
            address=address or f"127.0.0.1:{number}",
            engine="llamacpp",
            models=[
                resources_pb2.ServedModel(
                    name=name,
                    capabilities=[resources_pb2.CAPABILITY_CHAT],
                    context_length=2048,
                )
                for name in models or ("m",)
            ],
            **fields,
        )
    )


def report(up: bool = True, draining: bool = False, running: int = 0) -> object:
    return node_service_pb2.AttachNodeRequest(
        report=node_service_pb2.NodeReport(
            engine_up=up,
            draining=draining,
            load=resources_pb2.NodeLoad(running=running, slots=4),
        )
    )


async def joining(
    registry: Registry,
    message: node_service_pb2.AttachNodeRequest,
    *more: object,
    metadata=None,
    shows_id: str = "",
    shows_nonce: bytes = b"",
) -> grpc.aio.StreamStreamCall:
    """Joins and answers the challenge; what comes after that is not read yet.

    The node shows its own name and the right nonce, unless it is told to show others.
    """
    sent = node_service_pb2.AttachNodeRequest()
    sent.CopyFrom(message)
    node = None
    if (number := int(sent.join.address.rpartition(":")[2])) < 100:
        node = await fake_node(number)
        node.node_id = shows_id or sent.join.node_id
        node.knows.clear()
        sent.join.address = f"127.0.0.1:{node.port}"
    call = registry.nodes.AttachNode(metadata=metadata)
    await call.write(sent)
    try:
        response = await call.read()
    except grpc.aio.AioRpcError:
        return call  # refused before the challenge; who called reads why
    if isinstance(response, node_service_pb2.AttachNodeResponse) and node:
        node.nonce = shows_nonce or response.challenge.nonce
        node.knows.set()
    for message in more:
        await call.write(message)
    return call


async def attach(registry: Registry, *messages: object) -> grpc.aio.StreamStreamCall:
    call = await joining(registry, *messages)
    assert (await call.read()).joined.lease.ToTimedelta() == timedelta(seconds=LEASE_S)
    return call


async def refused(call: grpc.aio.Call) -> tuple[int, str, str | None]:
    """Returns the status code, reason and param with which a call ends."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if hasattr(call, "read"):
            while await call.read() is not grpc.aio.EOF:
                pass
            status = await call.code()
            raise grpc.aio.AioRpcError(
                status,
                await call.initial_metadata(),
                await call.trailing_metadata(),
                await call.details(),
            )
        await call
    error = from_rpc_error(caught.value)
    code = caught.value.code().value[0]
    return (code, error.reason_name, error.param) if error else (code, "", None)
