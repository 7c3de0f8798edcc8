"""Fixtures of the contract tests: an inference proxy with scripted surroundings."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from inference_node import (
    FakeEngine,
    FakeMesh,
    Node,
    running,
    until,
)
from infermesh.metrics.v1 import usage_service_pb2_grpc
from infermesh.registry.v1 import node_service_pb2_grpc


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    fake = FakeEngine()
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
async def mesh() -> AsyncIterator[FakeMesh]:
    fake = FakeMesh()
    server = grpc.aio.server()
    node_service_pb2_grpc.add_NodeServiceServicer_to_server(fake, server)
    usage_service_pb2_grpc.add_UsageServiceServicer_to_server(fake, server)
    fake.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield fake
    await server.stop(0)


@pytest.fixture
async def node(engine: FakeEngine, mesh: FakeMesh, tmp_path: Path) -> AsyncIterator[Node]:
    async with running(engine.port, mesh.address, tmp_path, engine_idle_timeout_s=3) as node:
        await until(node.is_serving)
        yield node


@pytest.fixture
async def embedder(engine: FakeEngine, mesh: FakeMesh, tmp_path: Path) -> AsyncIterator[Node]:
    engine.serves_vectors = True
    async with running(engine.port, mesh.address, tmp_path) as node:
        await until(node.is_serving)
        yield node
