"""The audit log tells how calls to the registry and to routing ended, and what they changed."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import orjson
import pytest
import sqlalchemy as sa

from contract.routing_service import Mesh
from contract.routing_service import running as routing
from contract.test_audit_service import CALLER, World, wipe
from contract.test_auth import Line, running, settings
from infermesh.auth.v1 import audit_service_pb2 as pb
from infermesh.registry.v1 import node_service_pb2 as nodes
from infermesh.routing.v1 import policy_service_pb2 as policies
from infermesh.routing.v1 import split_service_pb2 as splits
from registry_world import Registry, attach, join, no_fake_nodes_left, report  # noqa: F401
from registry_world import running as registry
from services.kit.database import create_tables, make_engine
from services.registry.store_postgres import metadata as registry_tables

OPERATOR = (*CALLER[:2], ("x-mesh-role", "operator"), CALLER[3])
POLICIES = "/infermesh.routing.v1.PolicyService/"
NODES = "/infermesh.registry.v1.NodeService/"


@pytest.fixture
async def world(postgres_url: str) -> AsyncIterator[World]:
    async with running(settings(postgres_url)) as replica:
        await wipe(postgres_url)
        yield World(replica, postgres_url)
    await wipe(postgres_url)


@pytest.fixture
async def mesh(world: World, tmp_path: Path) -> AsyncIterator[Mesh]:
    address = world.replica.address
    async with routing(auth_address=address, state_dir=tmp_path / "routing") as made:
        made.sync()
        yield made


@pytest.fixture
async def mesh_nodes(world: World, tmp_path: Path) -> AsyncIterator[Registry]:
    engine = make_engine(world.url)
    await create_tables(engine, registry_tables)
    async with engine.begin() as connection:
        await connection.execute(sa.text("TRUNCATE registry.node, registry.model"))
    await engine.dispose()
    address = world.replica.address
    async with registry(
        world.url, auth_address=address, state_dir=tmp_path / "registry"
    ) as running:
        yield running


def policy(name: str, **fields: object) -> policies.Policy:
    return policies.Policy(name=name, picker="random", **fields)


async def test_a_change_of_routing_is_told_with_before_and_after(world: World, mesh: Mesh) -> None:
    made = policies.CreatePolicyRequest(policy=policy("audited", load_factor=1.5))
    await mesh.policies.CreatePolicy(made, metadata=OPERATOR)
    changed = policies.UpdatePolicyRequest(policy=policy("audited", load_factor=2.0))
    await mesh.policies.UpdatePolicy(changed, metadata=OPERATOR)
    # Reads are told of by auth alone, which lets them pass.
    await mesh.policies.GetPolicy(policies.GetPolicyRequest(name="audited"), metadata=OPERATOR)
    gone = policies.DeletePolicyRequest(name="audited")
    await mesh.policies.DeletePolicy(gone, metadata=OPERATOR)
    with pytest.raises(grpc.aio.AioRpcError):
        await mesh.policies.DeletePolicy(gone, metadata=OPERATOR)

    found = await world.events(4, key_id="key_boss")
    assert [(e.rpc.removeprefix(POLICIES), e.outcome) for e in found] == [
        ("CreatePolicy", "OK"),
        ("UpdatePolicy", "OK"),
        ("DeletePolicy", "OK"),
        ("DeletePolicy", "NOT_FOUND"),
    ]
    for event in found:
        assert (event.kind, event.resource) == (pb.AUDIT_KIND_OUTCOME, "audited")
        assert (event.tenant, event.role, event.request_id) == ("acme", "operator", "request-1")
    create, update, delete, missed = found
    assert (create.before, orjson.loads(create.after)["load_factor"]) == ("", 1.5)
    assert orjson.loads(update.before)["load_factor"] == 1.5
    assert orjson.loads(update.after)["load_factor"] == 2.0
    assert (orjson.loads(delete.before)["load_factor"], delete.after) == (2.0, "")
    assert (missed.before, missed.after) == ("", "")
    assert (await world.run("audit", "verify"))[0] == 0


async def test_a_models_route_is_told_though_no_rpc_reads_one(world: World, mesh: Mesh) -> None:
    for fallback in ("b", "c"):
        route = policies.ModelRoute(model="org/m", fallback_models=[fallback])
        request = policies.SetModelRouteRequest(route=route)
        await mesh.policies.SetModelRoute(request, metadata=OPERATOR)
    gone = policies.DeleteModelRouteRequest(model="org/m")
    await mesh.policies.DeleteModelRoute(gone, metadata=OPERATOR)
    first, second, last = await world.events(3, key_id="key_boss")
    assert {e.resource for e in (first, second, last)} == {"org/m"}
    assert first.before == ""
    assert orjson.loads(second.before)["fallback_models"] == ["b"]
    assert orjson.loads(second.after)["fallback_models"] == ["c"]
    assert orjson.loads(last.before)["fallback_models"] == ["c"]


async def test_splits_too(world: World, mesh: Mesh) -> None:
    split = splits.Split(alias="fast", targets=[splits.SplitTarget(model="m", weight=1)])
    await mesh.splits.CreateSplit(splits.CreateSplitRequest(split=split), metadata=OPERATOR)
    await mesh.splits.DeleteSplit(splits.DeleteSplitRequest(alias="fast"), metadata=OPERATOR)
    create, delete = await world.events(2, key_id="key_boss")
    assert orjson.loads(create.after)["targets"][0]["model"] == "m"
    assert orjson.loads(delete.before)["alias"] == "fast"


async def test_what_is_done_to_a_node_is_told(world: World, mesh_nodes: Registry) -> None:
    call = await attach(mesh_nodes, join("a", 1, "m"), report())
    await mesh_nodes.wait_for("a", 1)
    stub = mesh_nodes.nodes
    await stub.DrainNode(nodes.DrainNodeRequest(node_id="a"), metadata=OPERATOR)
    loading = stub.LoadModel(nodes.LoadModelRequest(node_id="a", model="m2"), metadata=OPERATOR)
    while not (message := await call.read()).HasField("command"):
        pass
    progress = nodes.CommandProgress(command_id=message.command.command_id)
    progress.model.done = True
    await call.write(nodes.AttachNodeRequest(progress=progress))
    assert [each.progress.done async for each in loading] == [True]
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.LoadModel(
            nodes.LoadModelRequest(node_id="none", model="m2"), metadata=OPERATOR
        ).read()
    left = stub.LoadModel(nodes.LoadModelRequest(node_id="a", model="m3"), metadata=OPERATOR)
    while not (await call.read()).HasField("command"):
        pass
    left.cancel()

    drain, load, failed, cancelled = await world.events(4, key_id="key_boss")
    assert (drain.rpc, drain.resource) == (f"{NODES}DrainNode", "a")
    assert "drain" not in orjson.loads(drain.before)["state"].lower()
    assert orjson.loads(drain.after)["state"] == "NODE_STATE_DRAINING"
    assert (load.rpc, load.resource, load.outcome) == (f"{NODES}LoadModel", "a", "OK")
    assert orjson.loads(load.after) == {
        "asked": {"node_id": "a", "model": "m2"},
        "last": {"progress": {"done": True}},
    }
    assert (failed.resource, failed.outcome) == ("none", "NOT_FOUND")
    assert (cancelled.resource, cancelled.outcome) == ("a", "CANCELLED")
    assert orjson.loads(cancelled.after) == {"asked": {"node_id": "a", "model": "m3"}}
    call.cancel()


async def test_a_node_that_attaches_is_no_outcome(world: World, mesh_nodes: Registry) -> None:
    call = await attach(mesh_nodes, join("a", 1, "m"), report())
    call.cancel()
    stub = mesh_nodes.nodes
    await stub.DrainNode(nodes.DrainNodeRequest(node_id="a"), metadata=OPERATOR)
    [event] = await world.events(1, kind=pb.AUDIT_KIND_OUTCOME, rpc=NODES)
    assert event.rpc == f"{NODES}DrainNode"


async def test_while_auth_is_away_calls_go_on_and_their_outcomes_wait(
    postgres_url: str, tmp_path: Path
) -> None:
    line = Line(postgres_url)
    async with line.laid() as url, running(settings(url)) as replica:
        await wipe(postgres_url)
        folder = tmp_path / "routing"
        async with routing(auth_address=replica.address, state_dir=folder) as mesh:
            mesh.sync()
            line.cut()
            for name in ("one", "two"):
                request = policies.CreatePolicyRequest(policy=policy(name))
                await mesh.policies.CreatePolicy(request, metadata=OPERATOR)
        # Routing is gone, and so are the events from its memory.
        line.mend()
        again = routing(auth_address=replica.address, state_dir=folder)
        async with again, running(settings(postgres_url)) as other:
            found = await World(other, postgres_url).events(2, key_id="key_boss")
    assert [event.resource for event in found] == ["one", "two"]
    await wipe(postgres_url)


async def test_without_room_a_change_is_refused_before_it_is_made(
    world: World, mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.kit.audit_spool.MAX_PAYLOAD_BYTES", 2**40)
    request = policies.CreatePolicyRequest(policy=policy("late"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await mesh.policies.CreatePolicy(request, metadata=OPERATOR)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    listed = await mesh.policies.ListPolicies(policies.ListPoliciesRequest(), metadata=OPERATOR)
    assert "late" not in {each.name for each in listed.policies}


def outcome(number: int, **fields: object) -> pb.AuditEvent:
    event = pb.AuditEvent(event_id=f"{number:032x}", kind=pb.AUDIT_KIND_OUTCOME, count=1, **fields)
    event.time.GetCurrentTime()
    return event


async def test_an_event_that_comes_twice_is_kept_once(world: World) -> None:
    request = pb.RecordAuditEventsRequest(events=[outcome(1, rpc="/x"), outcome(2, rpc="/x")])
    assert (await world.audit.RecordAuditEvents(request)).added_count == 2
    request.events.append(outcome(3, rpc="/x"))
    assert (await world.audit.RecordAuditEvents(request)).added_count == 1
    found = await world.events(3, rpc="/x")
    assert [int(event.event_id, 16) for event in found] == [1, 2, 3]


@pytest.mark.parametrize(
    "wrong",
    [
        outcome(1, rpc="\0"),
        outcome(1, rpc="/" + "x" * 200),
        outcome(1, after="x" * 25_000),
        pb.AuditEvent(event_id="x", kind=pb.AUDIT_KIND_OUTCOME),
        pb.AuditEvent(event_id="0" * 32, kind=pb.AUDIT_KIND_DENIAL),
    ],
)
async def test_what_cannot_be_is_refused(world: World, wrong: pb.AuditEvent) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.audit.RecordAuditEvents(pb.RecordAuditEventsRequest(events=[wrong]))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_event_from_the_future_is_of_now(world: World) -> None:
    event = outcome(1, rpc="/x")
    event.time.FromSeconds(32503680000)
    await world.audit.RecordAuditEvents(pb.RecordAuditEventsRequest(events=[event]))
    [found] = await world.events(1, rpc="/x")
    assert found.time.ToSeconds() < 32503680000 - 1
