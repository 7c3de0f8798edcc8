"""Streams at the registry end within a second after their key is revoked, over a real auth."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import sqlalchemy as sa

from contract.test_auth import Replica, refusal, running, settings
from infermesh.access.v1 import access_pb2
from infermesh.auth.v1 import key_check_service_pb2, key_check_service_pb2_grpc, key_service_pb2
from infermesh.registry.v1 import node_service_pb2, resources_pb2
from registry_world import Registry, join, joining, no_fake_nodes_left, report  # noqa: F401
from registry_world import running as registry
from services.kit.database import create_tables, make_engine
from services.registry.attach import RPC
from services.registry.store_postgres import metadata as registry_tables
from support import becomes_within


@pytest.fixture
async def replica(postgres_url: str) -> AsyncIterator[Replica]:
    async with running(settings(postgres_url)) as one:
        yield one


@pytest.fixture
async def nodes(replica: Replica, postgres_url: str, tmp_path: Path) -> AsyncIterator[Registry]:
    engine = make_engine(postgres_url)
    await create_tables(engine, registry_tables)
    async with engine.begin() as connection:
        await connection.execute(sa.text("TRUNCATE registry.node, registry.model"))
    await engine.dispose()
    # A long lease: it is not silence that takes the node offline here.
    async with registry(
        postgres_url, lease_s=30, auth_address=replica.address, state_dir=tmp_path
    ) as made:
        yield made


def caller(key_id: str, role: str) -> tuple[tuple[str, str], ...]:
    return (("x-mesh-key-id", key_id), ("x-mesh-role", role))


async def end_of(call: grpc.aio.Call) -> tuple[grpc.StatusCode, float]:
    """Returns the code with which a stream ends, and when."""
    async with asyncio.timeout(20):
        try:
            while await call.read() is not grpc.aio.EOF:
                pass
        except grpc.aio.AioRpcError:
            pass
        return await call.code(), time.monotonic()


async def test_a_nodes_stream_ends_with_its_key_and_others_go_on(
    replica: Replica, nodes: Registry
) -> None:
    numbers = itertools.count(1)

    async def joined(name: str) -> tuple[str, grpc.aio.StreamStreamCall]:
        made = await replica.create(role=access_pb2.ROLE_NODE)
        key_id = made.key.key_id
        call = await joining(
            nodes, join(name, next(numbers), "m"), report(), metadata=caller(key_id, "node")
        )
        assert (await call.read()).HasField("joined")
        await nodes.wait_for(name, resources_pb2.NODE_STATE_READY)
        return key_id, call

    _, other = await joined("b")

    async def ends() -> float:
        key_id, call = await joined("a")
        await asyncio.sleep(1)
        assert not call.done()
        await replica.keys.RevokeKey(key_service_pb2.RevokeKeyRequest(key_id=key_id))
        revoked_at = time.monotonic()
        code, ended_at = await end_of(call)
        assert code is grpc.StatusCode.UNAUTHENTICATED
        # Who holds such a key gets no request of a caller's.
        assert await nodes.state("a") == resources_pb2.NODE_STATE_OFFLINE
        return ended_at - revoked_at

    await becomes_within(1.0, ends)
    assert not other.done()
    assert await nodes.state("b") == resources_pb2.NODE_STATE_READY
    other.cancel()


async def test_a_watch_ends_with_its_key(replica: Replica, nodes: Registry) -> None:
    async def ends() -> float:
        made = await replica.create(role=access_pb2.ROLE_AUDITOR)
        key_id = made.key.key_id
        request = node_service_pb2.WatchMeshRequest()
        watch = nodes.nodes.WatchMesh(request, metadata=caller(key_id, "auditor"))
        service = nodes.nodes.WatchMesh(request)
        assert (await watch.read()).synced
        assert (await service.read()).synced
        await replica.keys.RevokeKey(key_service_pb2.RevokeKeyRequest(key_id=key_id))
        revoked_at = time.monotonic()
        code, ended_at = await end_of(watch)
        assert code is grpc.StatusCode.UNAUTHENTICATED
        assert not service.done()  # routing's, past Envoy
        service.cancel()
        return ended_at - revoked_at

    await becomes_within(1.0, ends)


async def test_what_auth_refuses(replica: Replica) -> None:
    stub = key_check_service_pb2_grpc.KeyCheckServiceStub(replica.channel)
    keys = {
        role: (await replica.create(role=role)).key.key_id
        for role in (access_pb2.ROLE_NODE, access_pb2.ROLE_USER, access_pb2.ROLE_ADMIN)
    }
    soon = key_service_pb2.CreateKeyRequest(display_name="soon", role=access_pb2.ROLE_NODE)
    soon.ttl.FromSeconds(4)
    brief = (await replica.keys.CreateKey(soon)).key.key_id
    asked = [*keys.values(), brief, "key_unknown", "oidc:corp:someone"]

    async def refused(rpc: str) -> set[str]:
        request = key_check_service_pb2.FindRefusedKeysRequest(rpc=rpc, key_ids=asked)
        return set((await stub.FindRefusedKeys(request)).key_ids)

    user = keys[access_pb2.ROLE_USER]
    assert await refused(RPC) == {user, "key_unknown"}
    # What no role may call is refused to all whom auth knows.
    assert await refused("/nowhere") == {*keys.values(), brief, "key_unknown"}
    await asyncio.sleep(4.1)
    assert await refused(RPC) == {user, "key_unknown", brief}
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await refused("")
    assert refusal(caught).reason_name == "INVALID_ARGUMENT"
