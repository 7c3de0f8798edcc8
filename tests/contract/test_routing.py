"""Every protocol that routing speaks, over a running server, beside a scripted registry."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator

import grpc
import pytest
from envoy.config.core.v3 import base_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2, external_processor_pb2_grpc
from google.protobuf import timestamp_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from infermesh.registry.v1 import node_service_pb2, node_service_pb2_grpc
from infermesh.registry.v1 import resources_pb2 as r
from infermesh.routing.v1 import routing_service_pb2, routing_service_pb2_grpc
from services.kit.errors import from_rpc_error
from services.kit.server import serving
from services.routing.app import make_app
from services.routing.eds import TYPE_URL
from services.routing.settings import RoutingSettings

DESTINATION = "x-gateway-destination-endpoint"


def node(node_id: str, port: int, state: int = r.NODE_STATE_READY, running: int = 0) -> r.Node:
    return r.Node(
        node_id=node_id,
        address=f"127.0.0.1:{port}",
        state=state,
        models=[r.ServedModel(name="m")],
        load=r.NodeLoad(running=running, queued=0, slots=4),
        report_time=timestamp_pb2.Timestamp(seconds=1),
    )


class ScriptedRegistry(node_service_pb2_grpc.NodeServiceServicer):
    """Says over the watch what a test has it say; not a registry."""

    def __init__(self) -> None:
        self.said: asyncio.Queue[node_service_pb2.WatchMeshResponse | None] = asyncio.Queue()

    async def WatchMesh(self, request, context):  # noqa: N802
        while (message := await self.said.get()) is not None:
            yield message


class Mesh:
    """A running routing service and the registry that it follows."""

    def __init__(self, registry: ScriptedRegistry, channel: grpc.aio.Channel) -> None:
        self.registry = registry
        self.channel = channel
        self._routing = routing_service_pb2_grpc.RoutingServiceStub(channel)
        self._ext_proc = external_processor_pb2_grpc.ExternalProcessorStub(channel)

    def sync(self, *nodes: r.Node, models: tuple[str, ...] = ("m", "idle")) -> None:
        self.registry.said.put_nowait(
            node_service_pb2.WatchMeshResponse(
                synced=True, nodes=nodes, models=[r.Model(name=name) for name in models]
            )
        )

    async def explain(self, model: str = "m") -> routing_service_pb2.ExplainResponse:
        return await self._routing.Explain(routing_service_pb2.ExplainRequest(model=model))

    async def until_states(self, **refusals: str) -> None:
        async with asyncio.timeout(5):
            while True:
                try:
                    candidates = (await self.explain()).candidates
                except grpc.aio.AioRpcError:
                    candidates = []
                if {one.node_id: one.refusal for one in candidates} == refusals:
                    return
                await asyncio.sleep(0.02)

    async def process(self, **headers: str) -> external_processor_pb2.ProcessingResponse:
        request = external_processor_pb2.ProcessingRequest()
        for key, value in headers.items():
            request.request_headers.headers.headers.append(
                base_pb2.HeaderValue(key=key.replace("_", "-"), raw_value=value.encode())
            )
        call = self._ext_proc.Process()
        await call.write(request)
        answer = await call.read()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() == grpc.StatusCode.OK
        return answer

    async def health(self) -> int:
        stub = health_pb2_grpc.HealthStub(self.channel)
        return (await stub.Check(health_pb2.HealthCheckRequest())).status


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    server = grpc.aio.server()
    registry = ScriptedRegistry()
    node_service_pb2_grpc.add_NodeServiceServicer_to_server(registry, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    settings = RoutingSettings(drain_s=1, registry_address=f"127.0.0.1:{port}")
    async with (
        serving(settings, make_app(settings)) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield Mesh(registry, channel)
    await server.stop(0)


def destination(answer: external_processor_pb2.ProcessingResponse) -> str:
    [option] = answer.request_headers.response.header_mutation.set_headers
    assert option.header.key == DESTINATION
    assert option.append_action == base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
    value = option.header.raw_value.decode()
    assert answer.dynamic_metadata["envoy.lb"][DESTINATION] == value
    return value


async def test_a_call_goes_to_the_least_loaded_node(mesh: Mesh) -> None:
    mesh.sync(
        node("a", 1, running=3), node("b", 2, running=1), node("c", 3, r.NODE_STATE_ENGINE_DOWN)
    )
    await mesh.until_states(a="", b="", c="engine down")
    answer = await mesh.process(x_mesh_model="m", x_request_id="1")
    assert destination(answer) == "127.0.0.1:2,127.0.0.1:1"


async def test_a_call_without_a_model_goes_on(mesh: Mesh) -> None:
    mesh.sync(node("a", 1))
    await mesh.until_states(a="")
    answer = await mesh.process(x_request_id="1")
    assert answer.WhichOneof("response") == "request_headers"
    assert not answer.request_headers.response.header_mutation.set_headers


async def test_before_the_first_sync_calls_go_on_and_health_says_no(mesh: Mesh) -> None:
    answer = await mesh.process(x_mesh_model="m")
    assert answer.WhichOneof("response") == "request_headers"
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

    rest = await mesh.process(x_mesh_model=model, x_envoy_original_path="/v1/chat/completions")
    reply = rest.immediate_response
    assert reply.status.code == status
    assert reply.details == f"infermesh_{reason.lower()}"
    assert not reply.HasField("grpc_status")
    assert json.loads(reply.body)["error"]["code"] == reason.lower()
    [content_type] = reply.headers.set_headers
    assert (content_type.header.key, content_type.header.raw_value) == (
        "content-type",
        b"application/json",
    )

    native = (await mesh.process(x_mesh_model=model)).immediate_response
    assert native.grpc_status.status == code
    assert model in native.body.decode()
    [details] = native.headers.set_headers
    assert details.header.key == "grpc-status-details-bin"
    raw = details.header.raw_value
    decoded = status_pb2.Status.FromString(base64.b64decode(raw + b"=" * (-len(raw) % 4)))
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
    await mesh.process(x_mesh_model="m")
    answer = await mesh.explain()
    assert list(answer.ordered_node_ids) == ["b", "a"]
    assert [one.node_id for one in answer.candidates] == ["b", "a", "c", "d"]
    best, second = answer.candidates[:2]
    assert (best.reported_load, best.sent_since_report) == (0, 1)
    assert (second.reported_load, second.score) == (4, 0.5)
    assert best.score == pytest.approx(0.8)
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
    assert destination(await mesh.process(x_mesh_model="m")) == "127.0.0.1:1"
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
        async with asyncio.timeout(5):
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
