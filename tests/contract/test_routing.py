"""Every protocol that routing speaks to our own Envoy, over a running server."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator

import grpc
import pytest
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.service.auth.v3 import external_auth_pb2
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2

from contract.routing_service import (
    Mesh,
    denied,
    destination,
    headers_set,
    mutated,
    node,
    running,
)
from infermesh.registry.v1 import node_service_pb2
from infermesh.registry.v1 import resources_pb2 as r
from services.kit.errors import from_rpc_error
from services.routing import prompt
from services.routing.eds import TYPE_URL


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    async with running() as mesh:
        yield mesh


async def test_a_call_goes_to_the_least_loaded_node(mesh: Mesh) -> None:
    mesh.sync(
        node("a", 1, running=3), node("b", 2, running=1), node("c", 3, r.NODE_STATE_ENGINE_DOWN)
    )
    await mesh.until_states(a="", b="", c="engine down")
    answer = await mesh.check(x_mesh_model="m", x_request_id="1")
    assert destination(answer) == "127.0.0.1:2,127.0.0.1:1"


async def test_a_call_without_a_model_goes_on(mesh: Mesh) -> None:
    mesh.sync(node("a", 1))
    await mesh.until_states(a="")
    answer = await mesh.check(x_request_id="1")
    assert not headers_set(answer)


async def test_before_the_first_sync_calls_go_on_and_health_says_no(mesh: Mesh) -> None:
    answer = await mesh.check(x_mesh_model="m")
    assert not headers_set(answer)
    assert await mesh.health() == health_pb2.HealthCheckResponse.NOT_SERVING
    mesh.sync(node("a", 1))
    await mesh.until_states(a="")
    assert await mesh.health() == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize(
    ("model", "status", "code", "reason"),
    [("ghost", 404, 5, "MODEL_NOT_FOUND"), ("idle", 503, 14, "NO_NODE_AVAILABLE")],
)
async def test_refusals(mesh: Mesh, model: str, status: int, code: int, reason: str) -> None:
    mesh.sync(node("a", 1))
    await mesh.until_states(a="")

    rest = await mesh.check(x_mesh_model=model, x_envoy_original_path="/v1/chat/completions")
    reply = denied(rest)
    assert reply.status.code == status
    assert json.loads(reply.body)["error"]["code"] == reason.lower()
    assert mutated(reply.headers) == {"content-type": "application/json"}

    native = denied(await mesh.check(x_mesh_model=model))
    assert model in native.body
    headers = mutated(native.headers)
    assert headers["grpc-status"] == str(code)
    raw = headers["grpc-status-details-bin"]
    decoded = status_pb2.Status.FromString(base64.b64decode(raw + "=" * (-len(raw) % 4)))
    info = error_details_pb2.ErrorInfo()
    decoded.details[0].Unpack(info)
    assert (decoded.code, info.reason, info.domain) == (code, reason, "infermesh")


async def test_explain(mesh: Mesh) -> None:
    mesh.sync(
        node("a", 1, running=4),
        node("b", 2),
        node("c", 3, r.NODE_STATE_DRAINING),
        node("d", 4, r.NODE_STATE_OFFLINE),
    )
    await mesh.until_states(a="", b="", c="draining", d="offline")
    await mesh.check(x_mesh_model="m")
    answer = await mesh.explain()
    assert list(answer.ordered_node_ids) == ["b", "a"]
    assert [one.node_id for one in answer.candidates] == ["b", "a", "c", "d"]
    best, second = answer.candidates[:2]
    assert (best.reported_load, best.sent_since_report) == (0, 1)
    assert (second.reported_load, second.score) == (4, 0.5)
    assert best.score == pytest.approx(0.8)
    assert (answer.policy, list(answer.models), dict(second.scores)) == (
        "balanced",
        ["m"],
        {"queue": 0.5},
    )
    assert not (await mesh.explain("idle")).candidates

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await mesh.explain("ghost")
    error = from_rpc_error(caught.value)
    assert error
    assert error.reason_name == "MODEL_NOT_FOUND"


async def test_the_view_outlives_the_registry(mesh: Mesh) -> None:
    mesh.sync(node("a", 1))
    await mesh.until_states(a="")
    mesh.registry.said.put_nowait(None)
    await asyncio.sleep(0.05)
    assert destination(await mesh.check(x_mesh_model="m")) == "127.0.0.1:1"
    mesh.sync(node("a", 1), node("b", 2))
    await mesh.until_states(a="", b="")


class Subscriber:
    """Speaks the discovery protocol as Envoy does."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        stub = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel)
        self.call = stub.StreamAggregatedResources()

    async def say(self, **fields: object) -> None:
        request = discovery_pb2.DiscoveryRequest(
            type_url=TYPE_URL, resource_names=["inference"], **fields
        )
        await self.call.write(request)

    async def hear(self) -> tuple[discovery_pb2.DiscoveryResponse, dict[str, int]]:
        """Returns the next response and the health of each address in it."""
        async with asyncio.timeout(20):
            response = await self.call.read()
        assignment = endpoint_pb2.ClusterLoadAssignment()
        assert response.resources[0].Unpack(assignment)
        assert assignment.cluster_name == "inference"
        health = {}
        for endpoint in assignment.endpoints[0].lb_endpoints:
            address = endpoint.endpoint.address.socket_address
            health[f"{address.address}:{address.port_value}"] = endpoint.health_status
            assert list(endpoint.metadata.filter_metadata["envoy.lb"]["model"]) == ["m"]
        return response, health


async def test_endpoints_follow_the_mesh(mesh: Mesh) -> None:
    envoy = Subscriber(mesh.channel)
    await envoy.say()
    # Nothing is said before the first sync: an empty list would take all endpoints away.
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(waiting := asyncio.ensure_future(envoy.hear())), 0.1)
    mesh.sync(node("a", 1), node("b", 2, r.NODE_STATE_OFFLINE))
    first, health = await waiting
    assert health == {"127.0.0.1:1": 0}
    await envoy.say(version_info=first.version_info, response_nonce=first.nonce)

    # A change of the load alone is not a new version; draining is.
    said = mesh.registry.said
    said.put_nowait(node_service_pb2.WatchMeshResponse(nodes=[node("a", 1, running=9)]))
    drained = node("a", 1, r.NODE_STATE_DRAINING)
    down = node("b", 2, r.NODE_STATE_ENGINE_DOWN)
    said.put_nowait(node_service_pb2.WatchMeshResponse(nodes=[drained, down]))
    second, health = await envoy.hear()
    assert health == {"127.0.0.1:1": 3, "127.0.0.1:2": 2}
    assert int(second.version_info) > int(first.version_info)

    # Another Envoy, or the same one after a broken stream, gets the current version.
    other = Subscriber(mesh.channel)
    await other.say(version_info=second.version_info)
    again, _ = await other.hear()
    assert again.version_info == second.version_info
    await other.call.done_writing()
    assert await other.call.read() is grpc.aio.EOF
    envoy.call.cancel()


def told(**namespaces: dict[str, object]) -> external_auth_pb2.CheckRequest:
    """Returns what is asked about a chat with the model `m`."""
    request = external_auth_pb2.CheckRequest()
    request.attributes.request.http.headers["x-mesh-model"] = "m"
    for name, fields in namespaces.items():
        request.attributes.metadata_context.filter_metadata[f"infermesh.{name}"].update(fields)
    return request


def cut_of(text: str) -> dict[str, object]:
    body = json.dumps({"messages": [{"role": "user", "content": text}]}).encode()
    taken = prompt.cut(body)
    assert taken is not None
    return {"text": base64.b64encode(taken[0]).decode(), "size": taken[1]}


async def send(
    mesh: Mesh, request: external_auth_pb2.CheckRequest
) -> external_auth_pb2.CheckResponse:
    return await mesh.authorization.Check(request)


async def test_a_prompt_goes_back_to_its_node_with_what_is_expected_there(mesh: Mesh) -> None:
    mesh.sync(*(node(f"n{i}", i) for i in range(1, 5)))
    await mesh.until_states(n1="", n2="", n3="", n4="")
    text = "A long story about a short king. " * 80
    first = await send(mesh, told(prompt=cut_of(text)))
    assert headers_set(first)["x-mesh-expected-cached"] == "0.00"
    again = await send(mesh, told(prompt=cut_of(text + "And a question.")))
    assert destination(again).split(",")[0] == destination(first).split(",")[0]
    assert float(headers_set(again)["x-mesh-expected-cached"]) > 0.7
    # Who forbids it is not looked up; nor does a bad cut matter.
    other = await send(mesh, told(prompt=cut_of(text), request={"enable_caching": False}))
    assert "x-mesh-expected-cached" not in headers_set(other)
    bad = await send(mesh, told(prompt={"text": "%%%", "size": "x"}))
    assert destination(bad)


async def test_fallbacks_name_the_models_and_more_addresses_more_retries(mesh: Mesh) -> None:
    nodes = [node(f"m{i}", i) for i in range(1, 4)] + [
        node(f"z{i}", 10 + i, model="z") for i in range(1, 4)
    ]
    mesh.sync(*nodes, models=("m", "z"))
    await mesh.until_states(m1="", m2="", m3="")
    encoded = base64.b64encode(b'["z", "ghost"]').decode()
    answer = headers_set(await send(mesh, told(fallbacks={"models": encoded})))
    assert answer["x-mesh-models"] == "m,z"
    ports = [address.rpartition(":")[2] for address in destination_list(answer)]
    assert [len(port) for port in ports] == [1, 1, 1, 2, 2, 2]
    assert answer["x-envoy-max-retries"] == "5"
    plain = headers_set(await send(mesh, told()))
    assert "x-mesh-models" not in plain
    assert "x-envoy-max-retries" not in plain


def destination_list(answer: dict[str, str]) -> list[str]:
    return answer["x-gateway-destination-endpoint"].split(",")


async def test_debug_mode_shows_the_decision(mesh: Mesh) -> None:
    mesh.sync(node("a", 1, running=2), node("b", 2))
    await mesh.until_states(a="", b="")
    request = told(request={"session_id": "s"})
    request.attributes.request.http.headers["x-debug-mode"] = "true"
    shown = json.loads(headers_set(await send(mesh, request))["x-mesh-decision"])
    assert set(shown) == {"policy", "node", "score", "models"}  # of others it says nothing
    request.attributes.request.http.headers["x-mesh-role"] = "admin"
    shown = json.loads(headers_set(await send(mesh, request))["x-mesh-decision"])
    assert (shown["policy"], shown["models"]) == ("balanced", ["m"])
    assert shown["candidates"][0]["node"] == shown["node"]
    assert {one["node"] for one in shown["candidates"]} == {"a", "b"}
    assert set(shown["candidates"][0]["scores"]) == {"queue", "session"}
    assert "x-mesh-decision" not in headers_set(await send(mesh, told()))


async def test_full_queues_are_a_429_with_retry_after(mesh: Mesh) -> None:
    full = node("a", 1, running=300)
    full.load.time_to_first_token = 3.0
    mesh.sync(full)
    await mesh.until_states(a="queue full")
    reply = denied(await mesh.check(x_mesh_model="m", x_envoy_original_path="/v1/x"))
    assert reply.status.code == 429
    assert json.loads(reply.body)["error"]["code"] == "overloaded"
    assert mutated(reply.headers)["retry-after"] == "3"
