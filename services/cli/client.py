"""The commands' way to the mesh: typed gRPC through Envoy, and errors in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import grpc

from infermesh.auth.v1 import (
    audit_service_pb2_grpc,
    join_token_service_pb2_grpc,
    key_service_pb2_grpc,
    tenant_service_pb2_grpc,
)
from infermesh.inference.v1 import inference_service_pb2_grpc
from infermesh.metrics.v1 import metrics_service_pb2_grpc
from infermesh.registry.v1 import model_service_pb2_grpc, node_service_pb2_grpc
from infermesh.routing.v1 import (
    policy_service_pb2_grpc,
    routing_service_pb2_grpc,
    split_service_pb2_grpc,
)
from services.cli.options import fail, find_key
from services.kit.errors import from_rpc_error

TIMEOUT_S = 15.0


class Mesh:
    """Stubs for the mesh's services, and the metadata that each call carries."""

    def __init__(self, channel: grpc.Channel, key: str) -> None:
        self.metadata: tuple[tuple[str, str | bytes], ...] = (("authorization", f"Bearer {key}"),)
        self.keys = key_service_pb2_grpc.KeyServiceStub(channel)
        self.tenants = tenant_service_pb2_grpc.TenantServiceStub(channel)
        self.audit = audit_service_pb2_grpc.AuditServiceStub(channel)
        self.tokens = join_token_service_pb2_grpc.JoinTokenServiceStub(channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(channel)
        self.nodes = node_service_pb2_grpc.NodeServiceStub(channel)
        self.routing = routing_service_pb2_grpc.RoutingServiceStub(channel)
        self.policies = policy_service_pb2_grpc.PolicyServiceStub(channel)
        self.splits = split_service_pb2_grpc.SplitServiceStub(channel)
        self.health = metrics_service_pb2_grpc.MetricsServiceStub(channel)
        self.inference = inference_service_pb2_grpc.InferenceServiceStub(channel)


@contextmanager
def connect(address: str, key: str | None) -> Iterator[Mesh]:
    """Yields the mesh; an RPC that fails inside ends the command with one clear line."""
    with grpc.insecure_channel(address) as channel:
        try:
            yield Mesh(channel, find_key(key))
        except grpc.RpcError as error:
            fail(explain(cast(grpc.Call, error), address))


def explain(error: grpc.Call, address: str) -> str:
    """Returns one line about a failed call."""
    mesh_error = from_rpc_error(cast(grpc.aio.AioRpcError, error))
    if mesh_error is not None:
        return mesh_error.message
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.UNAVAILABLE and "connect" in details:
        return f"Nothing answers at {address}. Does the mesh run? Start it with: infermesh up"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"The mesh at {address} did not answer in time."
    return f"{code.name.lower().replace('_', ' ').capitalize()}: {details}"
