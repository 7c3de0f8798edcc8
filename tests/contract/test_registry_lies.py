"""Nodes that lie: about where they are, about their numbers, and again and again."""

import asyncio

import grpc
import pytest
from google.rpc import code_pb2

from infermesh.registry.v1 import node_service_pb2, resources_pb2
from registry_world import (
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
from services.kit import headers
from services.registry import identity

__all__ = ["no_fake_nodes_left", "registry"]

NOT_ITS_OWN = (code_pb2.FAILED_PRECONDITION, "FAILED_PRECONDITION", None)


def load_report(**load: object) -> node_service_pb2.AttachNodeRequest:
    return node_service_pb2.AttachNodeRequest(
        report=node_service_pb2.NodeReport(engine_up=True, load=resources_pb2.NodeLoad(**load))
    )


async def node_ids(registry: Registry) -> list[str]:
    reply = await registry.nodes.ListNodes(node_service_pb2.ListNodesRequest())
    return [node.node_id for node in reply.nodes]


async def test_a_node_with_the_address_of_another_node_is_refused(registry: Registry) -> None:
    other = await fake_node(1)
    other.node_id, other.nonce = "other", b"what the other was sent"
    other.knows.set()
    call = registry.nodes.AttachNode()
    await call.write(join("liar", 0, address=f"127.0.0.1:{other.port}"))
    assert await refused(call) == NOT_ITS_OWN
    # It asked, and a node of the same name elsewhere does not pass either: the nonce decides.
    assert other.asked == 1
    other.node_id = "liar"
    call = registry.nodes.AttachNode()
    await call.write(join("liar", 0, address=f"127.0.0.1:{other.port}"))
    assert await refused(call) == NOT_ITS_OWN
    assert await node_ids(registry) == []


async def test_the_right_nonce_under_another_name_is_refused(registry: Registry) -> None:
    call = await joining(registry, join("a", 1), shows_id="b")
    assert await refused(call) == NOT_ITS_OWN
    assert await node_ids(registry) == []


async def test_the_address_of_an_internal_service_is_refused(
    postgres_url: str, registry: Registry
) -> None:
    async with running(postgres_url) as service:
        call = registry.nodes.AttachNode()
        await call.write(join("a", 0, address=service.address))
        assert await refused(call) == NOT_ITS_OWN
    assert await node_ids(registry) == []


async def test_an_address_where_nobody_answers_is_refused(
    registry: Registry, free_port, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "_TIMEOUT_S", 0.2)
    call = registry.nodes.AttachNode()
    await call.write(join("a", 0, address=f"127.0.0.1:{free_port()}"))
    unreachable = (code_pb2.UNAVAILABLE, "SERVICE_UNAVAILABLE", None)
    assert await refused(call) == unreachable
    assert await node_ids(registry) == []


@pytest.mark.parametrize("source", ["10.0.0.7", "fd00::7", "::ffff:10.0.0.7", "not an address"])
async def test_loopback_is_refused_from_elsewhere(registry: Registry, source: str) -> None:
    call = await joining(registry, join("a", 1), metadata=((headers.SOURCE, source),))
    expected = (code_pb2.INVALID_ARGUMENT, "INVALID_ARGUMENT", "join.address")
    assert await refused(call) == expected
    assert (await fake_node(1)).asked == 0


@pytest.mark.parametrize("source", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
async def test_loopback_is_good_on_the_meshs_own_machine(registry: Registry, source: str) -> None:
    call = await joining(registry, join("a", 1), metadata=((headers.SOURCE, source),))
    assert (await call.read()).HasField("joined")


async def test_a_takeover_from_another_address_leaves_the_node_alone(registry: Registry) -> None:
    real = await attach(registry, join("a", 1), report())
    await registry.wait_for("a", resources_pb2.NODE_STATE_READY)
    thief = await joining(registry, join("a", 2), shows_nonce=b"guessed")
    assert await refused(thief) == NOT_ITS_OWN
    assert await registry.state("a") == resources_pb2.NODE_STATE_READY
    await real.write(report(running=5))


@pytest.mark.parametrize(
    ("load", "field"),
    [
        ({"kv_use": float("nan")}, "report.load.kv_use"),
        ({"kv_use": 1.5}, "report.load.kv_use"),
        ({"running": -1}, "report.load.running"),
        ({"queued": 2_000_000}, "report.load.queued"),
        ({"tokens_per_second": float("inf")}, "report.load.tokens_per_second"),
        ({"time_to_first_token": -0.1}, "report.load.time_to_first_token"),
        ({"cached_tokens": 5, "prompt_tokens": 4}, "report.load.cached_tokens"),
        (
            {"expected_cached_tokens": 5, "prompt_tokens": 4},
            "report.load.expected_cached_tokens",
        ),
        ({"prompt_tokens": 9}, "report.load.prompt_tokens"),
    ],
)
async def test_a_report_that_cannot_be_true_takes_the_node_out(
    registry: Registry, load: dict[str, object], field: str
) -> None:
    call = await attach(registry, join("a", 1), load_report(prompt_tokens=10))
    await registry.wait_for("a", resources_pb2.NODE_STATE_READY)
    await call.write(load_report(**load))
    assert await refused(call) == (code_pb2.INVALID_ARGUMENT, "INVALID_ARGUMENT", field)
    assert await registry.state("a") == resources_pb2.NODE_STATE_OFFLINE


async def test_a_new_stream_counts_from_zero_again(registry: Registry) -> None:
    await attach(registry, join("a", 1), load_report(prompt_tokens=10))
    await registry.wait_for("a", resources_pb2.NODE_STATE_READY)
    again = await attach(registry, join("a", 1), load_report(prompt_tokens=3))
    await again.write(load_report(prompt_tokens=4))
    node = node_service_pb2.GetNodeRequest(node_id="a")
    async with asyncio.timeout(20):
        while (await registry.nodes.GetNode(node)).load.prompt_tokens != 4:
            await asyncio.sleep(0.01)


async def test_who_lies_again_and_again_is_refused_without_a_look(registry: Registry) -> None:
    other = await fake_node(1)
    other.knows.set()
    for _ in range(3):
        call = registry.nodes.AttachNode()
        await call.write(join("liar", 0, address=f"127.0.0.1:{other.port}"))
        assert await refused(call) == NOT_ITS_OWN
    asked = other.asked
    call = await joining(registry, join("liar", 2))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert "refused 3 times within a minute" in caught.value.details()
    assert other.asked == asked
    # Others are not held liable.
    await attach(registry, join("honest", 3), report())
    await registry.wait_for("honest", resources_pb2.NODE_STATE_READY)
