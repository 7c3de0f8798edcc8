"""The commands' way to the mesh: typed gRPC through Envoy, and errors in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import grpc

from infermesh.auth.v1 import (
    audit_service_pb2_grpc,
    join_token_service_pb2_grpc,
    key_service_pb2_grpc,
    limit_service_pb2_grpc,
    tenant_service_pb2_grpc,
)
from infermesh.inference.v1 import inference_service_pb2_grpc
from infermesh.metrics.v1 import (
    metrics_service_pb2_grpc,
    price_service_pb2_grpc,
    usage_service_pb2_grpc,
)
from infermesh.registry.v1 import model_service_pb2_grpc, node_service_pb2_grpc
from infermesh.routing.v1 import (
    policy_service_pb2_grpc,
    routing_service_pb2_grpc,
    split_service_pb2_grpc,
)
from services.cli.options import fail, find_ca, find_key
from services.kit.channels import front_credentials, split_address
from services.kit.errors import from_rpc_error

TIMEOUT_S = 15.0


class Mesh:
    """Stubs for the mesh's services, and the metadata that each call carries."""

    def __init__(self, channel: grpc.Channel, key: str) -> None:
        self.metadata: tuple[tuple[str, str | bytes], ...] = (("authorization", f"Bearer {key}"),)
        self.keys = key_service_pb2_grpc.KeyServiceStub(channel)
        self.tenants = tenant_service_pb2_grpc.TenantServiceStub(channel)
        self.limits = limit_service_pb2_grpc.LimitServiceStub(channel)
        self.audit = audit_service_pb2_grpc.AuditServiceStub(channel)
        self.tokens = join_token_service_pb2_grpc.JoinTokenServiceStub(channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(channel)
        self.nodes = node_service_pb2_grpc.NodeServiceStub(channel)
        self.routing = routing_service_pb2_grpc.RoutingServiceStub(channel)
        self.policies = policy_service_pb2_grpc.PolicyServiceStub(channel)
        self.splits = split_service_pb2_grpc.SplitServiceStub(channel)
        self.health = metrics_service_pb2_grpc.MetricsServiceStub(channel)
        self.usage = usage_service_pb2_grpc.UsageServiceStub(channel)
        self.prices = price_service_pb2_grpc.PriceServiceStub(channel)
        self.inference = inference_service_pb2_grpc.InferenceServiceStub(channel)


@contextmanager
def connect(address: str, key: str | None) -> Iterator[Mesh]:
    """Yields the mesh; an RPC that fails inside ends the command with one clear line."""
    with _channel(address) as channel:
        try:
            yield Mesh(channel, find_key(key))
        except grpc.RpcError as error:
            fail(explain(cast(grpc.Call, error), address))


def _channel(address: str) -> grpc.Channel:
    target, is_tls = split_address(address)
    if not is_tls:
        return grpc.insecure_channel(target)
    ca = find_ca()
    try:
        return grpc.secure_channel(target, front_credentials(ca))
    except OSError as error:
        fail(f"The authority's certificate cannot be read: {error}")


def explain(error: grpc.Call, address: str) -> str:
    """Returns one line about a failed call."""
    mesh_error = from_rpc_error(cast(grpc.aio.AioRpcError, error))
    if mesh_error is not None:
        return mesh_error.message
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.UNAVAILABLE and split_address(address)[1]:
        return (
            f"{address} does not answer, or its certificate is not trusted ({details}). Whom to "
            "trust is said before the command: infermesh --ca FILE …"
        )
    if code is grpc.StatusCode.UNAVAILABLE and "connect" in details:
        return f"Nothing answers at {address}. Does the mesh run? Start it with: infermesh up"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"The mesh at {address} did not answer in time."
    return f"{code.name.lower().replace('_', ' ').capitalize()}: {details}"
