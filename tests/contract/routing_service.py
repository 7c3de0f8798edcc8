"""A running routing service, or several, beside a scripted registry."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable

import grpc
from envoy.config.core.v3 import base_pb2
from envoy.service.auth.v3 import external_auth_pb2, external_auth_pb2_grpc
from envoy.service.ext_proc.v3 import external_processor_pb2_grpc
from google.protobuf import timestamp_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from infermesh.registry.v1 import node_service_pb2, node_service_pb2_grpc
from infermesh.registry.v1 import resources_pb2 as r
from infermesh.routing.v1 import (
    policy_service_pb2_grpc,
    routing_service_pb2,
    routing_service_pb2_grpc,
    split_service_pb2_grpc,
)
from services.kit.server import serving
from services.routing.app import make_app
from services.routing.settings import RoutingSettings

DESTINATION = "x-gateway-destination-endpoint"


def node(
    node_id: str, port: int, state: int = r.NODE_STATE_READY, running: int = 0, model: str = "m"
) -> r.Node:
    return r.Node(
        node_id=node_id,
        address=f"127.0.0.1:{port}",
        state=state,
        models=[r.ServedModel(name=model)],
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
        self.routing = routing_service_pb2_grpc.RoutingServiceStub(channel)
        self.policies = policy_service_pb2_grpc.PolicyServiceStub(channel)
        self.splits = split_service_pb2_grpc.SplitServiceStub(channel)
        self.authorization = external_auth_pb2_grpc.AuthorizationStub(channel)
        self.ext_proc = external_processor_pb2_grpc.ExternalProcessorStub(channel)

    def sync(self, *nodes: r.Node, models: tuple[str, ...] = ("m", "idle")) -> None:
        self.registry.said.put_nowait(
            node_service_pb2.WatchMeshResponse(
                synced=True, nodes=nodes, models=[r.Model(name=name) for name in models]
            )
        )

    async def explain(self, model: str = "m") -> routing_service_pb2.ExplainResponse:
        return await self.routing.Explain(routing_service_pb2.ExplainRequest(model=model))

    async def until_states(self, **refusals: str) -> None:
        async with asyncio.timeout(20):
            while True:
                try:
                    candidates = (await self.explain()).candidates
                except grpc.aio.AioRpcError:
                    candidates = []
                if {one.node_id: one.refusal for one in candidates} == refusals:
                    return
                await asyncio.sleep(0.02)

    async def check(self, **headers: str) -> external_auth_pb2.CheckResponse:
        """Asks as auth and our own Envoy do; headers have `_` for `-`."""
        request = external_auth_pb2.CheckRequest()
        for key, value in headers.items():
            request.attributes.request.http.headers[key.replace("_", "-")] = value
        return await self.authorization.Check(request)

    async def health(self) -> int:
        stub = health_pb2_grpc.HealthStub(self.channel)
        return (await stub.Check(health_pb2.HealthCheckRequest())).status


@contextlib.asynccontextmanager
async def running(**settings: object) -> AsyncIterator[Mesh]:
    server = grpc.aio.server()
    registry = ScriptedRegistry()
    node_service_pb2_grpc.add_NodeServiceServicer_to_server(registry, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    made = RoutingSettings(drain_s=1, registry_address=f"127.0.0.1:{port}", **settings)
    async with (
        serving(made, make_app(made)) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield Mesh(registry, channel)
    await server.stop(0)


def headers_set(answer: external_auth_pb2.CheckResponse) -> dict[str, str]:
    """Returns the headers that an answer has a call go on with."""
    assert answer.HasField("ok_response"), answer
    return mutated(answer.ok_response.headers)


def denied(answer: external_auth_pb2.CheckResponse) -> external_auth_pb2.DeniedHttpResponse:
    """Returns the refusal that an answer is."""
    assert answer.HasField("denied_response"), answer
    return answer.denied_response


def mutated(options: Iterable[base_pb2.HeaderValueOption]) -> dict[str, str]:
    found = {}
    for option in options:
        assert option.append_action == base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
        header = option.header
        found[header.key] = header.value or header.raw_value.decode()
    return found


def destination(answer: external_auth_pb2.CheckResponse) -> str:
    return headers_set(answer)[DESTINATION]
