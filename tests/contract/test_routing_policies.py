"""Policies, routes and splits over RPC, in every store, and over several replicas."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
import pytest
import sqlalchemy as sa
from google.protobuf import field_mask_pb2

from contract.routing_service import Mesh, denied, headers_set, node, running
from infermesh.routing.v1 import policy_service_pb2 as pb
from infermesh.routing.v1 import split_service_pb2 as sp
from services.kit.database import create_tables, make_engine
from services.kit.errors import from_rpc_error
from services.routing.memory_store import MemoryDocumentStore
from services.routing.postgres_store import PostgresDocumentStore, metadata
from services.routing.store import POLICY, SPLIT, Document, DocumentStore


async def own_database(postgres_url: str) -> str:
    """Makes a database and returns its URL."""
    name = f"routing_{uuid.uuid4().hex[:8]}"
    engine = make_engine(postgres_url)
    async with engine.connect() as connection:
        raw = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await raw.execute(sa.text(f"CREATE DATABASE {name}"))
    await engine.dispose()
    return sa.make_url(postgres_url).set(database=name).render_as_string(False)


@pytest.fixture(params=["memory", "postgres"])
async def documents(
    request: pytest.FixtureRequest, postgres_url: str
) -> AsyncIterator[DocumentStore]:
    if request.param == "memory":
        yield MemoryDocumentStore()
        return
    engine = make_engine(await own_database(postgres_url))
    await create_tables(engine, metadata)
    yield PostgresDocumentStore(engine)
    await engine.dispose()


async def test_a_store_keeps_documents(documents: DocumentStore) -> None:
    one, other = Document(POLICY, "p", b"1"), Document(SPLIT, "p", b"2")
    assert await documents.add(one)
    assert await documents.add(other)
    assert not await documents.add(one._replace(body=b"3"))
    assert sorted(await documents.all()) == [one, other]
    assert await documents.replace(one._replace(body=b"4"))
    assert not await documents.replace(one._replace(name="q"))
    await documents.put(one._replace(name="r"))
    await documents.put(one._replace(name="r", body=b"5"))
    assert {(d.name, d.body) for d in await documents.all() if d.kind == POLICY} == {
        ("p", b"4"),
        ("r", b"5"),
    }
    assert await documents.delete(POLICY, "p")
    assert not await documents.delete(POLICY, "p")


async def test_a_store_counts_for_splits_that_exist(documents: DocumentStore) -> None:
    await documents.add(Document(SPLIT, "x", b""))
    await asyncio.gather(*(documents.add_counts({("x", "a"): 2, ("x", "b"): 1}) for _ in range(5)))
    await documents.add_counts({("gone", "a"): 1})
    await documents.add_counts({})
    assert await documents.counts() == {("x", "a"): 10, ("x", "b"): 5}
    await documents.delete(SPLIT, "x")
    assert await documents.counts() == {}


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    async with running() as mesh:
        mesh.sync(
            node("a", 1),
            node("b", 2, running=1),
            node("v1", 3, model="v1"),
            node("v2", 4, model="v2"),
            models=("m", "v1", "v2"),
        )
        await mesh.until_states(a="", b="")
        yield mesh


async def refused(call: Awaitable[object]) -> tuple[str, str | None]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = from_rpc_error(caught.value)
    assert error
    return error.reason_name, error.param


def create(**fields: object) -> pb.CreatePolicyRequest:
    return pb.CreatePolicyRequest(policy=pb.Policy(**fields))


async def test_policies_over_rpc(mesh: Mesh) -> None:
    policies = mesh.policies
    made = await policies.CreatePolicy(create(name="mine", scorers={"queue": 1.0}, built_in=True))
    assert not made.built_in
    assert made.create_time == made.update_time
    assert await policies.GetPolicy(pb.GetPolicyRequest(name="mine")) == made
    listed = (await policies.ListPolicies(pb.ListPoliciesRequest())).policies
    assert [one.name for one in listed] == sorted(one.name for one in listed)
    assert {"mine", "balanced"} <= {one.name for one in listed}

    taken = create(name="mine", scorers={"queue": 1.0})
    assert await refused(policies.CreatePolicy(taken)) == ("INVALID_ARGUMENT", "policy.name")
    builtin = create(name="balanced", scorers={"queue": 1.0})
    assert await refused(policies.CreatePolicy(builtin)) == ("INVALID_ARGUMENT", "policy.name")

    unknown = pb.UpdatePolicyRequest(policy=pb.Policy(name="mine", scorers={"magic": 1.0}))
    found = await refused(policies.UpdatePolicy(unknown))
    assert found == ("INVALID_ARGUMENT", "policy.scorers.magic")
    negative = pb.UpdatePolicyRequest(policy=pb.Policy(name="mine", scorers={"queue": -1.0}))
    reason, param = await refused(policies.UpdatePolicy(negative))
    assert reason == "INVALID_ARGUMENT"
    assert param
    assert "scorers" in param
    # What was refused changed nothing.
    assert await policies.GetPolicy(pb.GetPolicyRequest(name="mine")) == made

    change = pb.Policy(name="mine", max_pressure=7, picker="random", scorers={"kv_use": 1.0})
    mask = field_mask_pb2.FieldMask(paths=["max_pressure"])
    changed = await policies.UpdatePolicy(pb.UpdatePolicyRequest(policy=change, update_mask=mask))
    assert (changed.max_pressure, changed.picker, dict(changed.scorers)) == (7, "", {"queue": 1.0})
    assert changed.create_time == made.create_time
    odd = pb.UpdatePolicyRequest(
        policy=change, update_mask=field_mask_pb2.FieldMask(paths=["built_in"])
    )
    assert await refused(policies.UpdatePolicy(odd)) == ("INVALID_ARGUMENT", "update_mask")
    whole = await policies.UpdatePolicy(pb.UpdatePolicyRequest(policy=change))
    assert (whole.picker, dict(whole.scorers)) == ("random", {"kv_use": 1.0})

    for call in (
        policies.UpdatePolicy(pb.UpdatePolicyRequest(policy=pb.Policy(name="balanced"))),
        policies.DeletePolicy(pb.DeletePolicyRequest(name="balanced")),
    ):
        assert (await refused(call))[0] == "FAILED_PRECONDITION"
    for call in (
        policies.GetPolicy(pb.GetPolicyRequest(name="ghost")),
        policies.UpdatePolicy(pb.UpdatePolicyRequest(policy=pb.Policy(name="ghost"))),
        policies.DeletePolicy(pb.DeletePolicyRequest(name="ghost")),
    ):
        assert (await refused(call))[0] == "NOT_FOUND"


async def test_a_models_route(mesh: Mesh) -> None:
    policies = mesh.policies
    await policies.CreatePolicy(create(name="mine", scorers={"queue": 1.0}))
    route = pb.ModelRoute(model="m", policy="mine", fallback_models=["v1", "v2"])
    await policies.SetModelRoute(pb.SetModelRouteRequest(route=route))
    [listed] = (await policies.ListModelRoutes(pb.ListModelRoutesRequest())).routes
    assert (listed.policy, list(listed.fallback_models)) == ("mine", ["v1", "v2"])
    answer = await mesh.check(x_mesh_model="m")
    assert headers_set(answer)["x-mesh-models"] == "m,v1,v2"
    assert (await mesh.explain()).policy == "mine"
    in_use = policies.DeletePolicy(pb.DeletePolicyRequest(name="mine"))
    assert (await refused(in_use))[0] == "FAILED_PRECONDITION"

    unknown = pb.SetModelRouteRequest(route=pb.ModelRoute(model="m", policy="ghost"))
    found = await refused(policies.SetModelRoute(unknown))
    assert found == ("INVALID_ARGUMENT", "route.policy")
    itself = pb.SetModelRouteRequest(route=pb.ModelRoute(model="m", fallback_models=["m"]))
    assert (await refused(policies.SetModelRoute(itself)))[0] == "INVALID_ARGUMENT"

    await policies.DeleteModelRoute(pb.DeleteModelRouteRequest(model="m"))
    again = policies.DeleteModelRoute(pb.DeleteModelRouteRequest(model="m"))
    assert (await refused(again))[0] == "NOT_FOUND"
    await policies.DeletePolicy(pb.DeletePolicyRequest(name="mine"))


def split(**weights: int) -> sp.Split:
    targets = [sp.SplitTarget(model=model, weight=weight) for model, weight in weights.items()]
    return sp.Split(alias="prod", targets=targets)


async def test_splits_over_rpc(mesh: Mesh) -> None:
    splits = mesh.splits
    await splits.CreateSplit(sp.CreateSplitRequest(split=split(v1=9, v2=1)))
    chosen = []
    for _ in range(20):
        answer = await mesh.check(x_mesh_model="prod")
        found = headers_set(answer)
        # The model goes on in its own name, for the node, the ledger and Envoy's own balancing.
        assert found["x-mesh-model"] == found["x-mesh-models"]
        # Limits go by the caller's name for it.
        assert found["x-mesh-requested-model"] == "prod"
        chosen.append(found["x-mesh-model"])
    assert chosen.count("v2") == 2
    kept = await splits.GetSplit(sp.GetSplitRequest(alias="prod"))
    assert [target.calls for target in kept.targets] == [18, 2]

    change = sp.UpdateSplitRequest(split=split(v1=1, v2=1))
    updated = await splits.UpdateSplit(change)
    assert [(t.model, t.weight, t.calls) for t in updated.targets] == [("v1", 1, 18), ("v2", 1, 2)]
    [listed] = (await splits.ListSplits(sp.ListSplitsRequest())).splits
    assert listed == updated

    for bad, field in (
        (sp.Split(alias="m", targets=[sp.SplitTarget(model="v1", weight=1)]), "split.alias"),
        (split(v1=1), "split.alias"),
        (sp.Split(alias="x", targets=[sp.SplitTarget(model="v1")]), "split.targets"),
        (
            sp.Split(alias="x", targets=[sp.SplitTarget(model="prod", weight=1)]),
            "split.targets[0].model",
        ),
    ):
        found = await refused(splits.CreateSplit(sp.CreateSplitRequest(split=bad)))
        assert found == ("INVALID_ARGUMENT", field)

    await splits.DeleteSplit(sp.DeleteSplitRequest(alias="prod"))
    for call in (
        splits.GetSplit(sp.GetSplitRequest(alias="prod")),
        splits.UpdateSplit(change),
        splits.DeleteSplit(sp.DeleteSplitRequest(alias="prod")),
    ):
        assert (await refused(call))[0] == "NOT_FOUND"
    reply = denied(await mesh.check(x_mesh_model="prod"))
    assert reply.status.code == 404


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await condition():
            await asyncio.sleep(0.01)


async def test_replicas_share_policies_splits_counts_and_what_they_sent(
    postgres_url: str, redis_url: str
) -> None:
    database_url = await own_database(postgres_url)
    settings = {"database_url": database_url, "redis_url": redis_url}
    async with running(**settings) as one, running(**settings) as other:
        for mesh in (one, other):
            mesh.sync(node("a", 1), node("b", 2), models=("m",))
            await mesh.until_states(a="", b="")
        policy = create(name="mine", picker="round_robin")
        await one.policies.CreatePolicy(policy)
        route = pb.ModelRoute(model="m", policy="mine")
        await one.policies.SetModelRoute(pb.SetModelRouteRequest(route=route))

        async def has_policy() -> bool:
            return (await other.explain()).policy == "mine"

        await until(has_policy)
        targets = [sp.SplitTarget(model="m", weight=1)]
        await one.splits.CreateSplit(
            sp.CreateSplitRequest(split=sp.Split(alias="prod", targets=targets))
        )

        async def has_split() -> bool:
            answer = await other.check(x_mesh_model="prod")
            return not answer.HasField("denied_response")

        await until(has_split)
        await one.check(x_mesh_model="prod")

        async def counted() -> bool:
            split = await one.splits.GetSplit(sp.GetSplitRequest(alias="prod"))
            return split.targets[0].calls >= 2

        await until(counted)

        for _ in range(6):
            await one.check(x_mesh_model="m")
        own = {c.node_id: c.sent_since_report for c in (await one.explain()).candidates}

        async def has_calls() -> bool:
            sent = {c.node_id: c.sent_since_report for c in (await other.explain()).candidates}
            return all(sent[node_id] >= calls for node_id, calls in own.items())

        assert sum(own.values()) >= 6
        await until(has_calls)


async def test_routing_starts_without_its_database(free_port: Callable[[], int]) -> None:
    url = f"postgresql+asyncpg://nobody:x@127.0.0.1:{free_port()}/none"
    async with running(database_url=url, redis_url=f"redis://127.0.0.1:{free_port()}") as mesh:
        mesh.sync(node("a", 1))
        await mesh.until_states(a="")
        assert "127.0.0.1:1" in headers_set(await mesh.check(x_mesh_model="m")).values()
        call = mesh.policies.CreatePolicy(create(name="mine", scorers={"queue": 1.0}))
        assert (await refused(call))[0] == "STORE_UNAVAILABLE"
