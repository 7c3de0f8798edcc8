"""Finds out whether the node that joins is the one that answers at its address.

The registry sends a nonce down the node's stream and asks for it at the address. Whoever joined
with the address of an internal service, of Envoy or of another node cannot have it told there.
"""

import asyncio
import hmac
from typing import Protocol

import grpc

from infermesh.inference.v1 import identity_service_pb2 as pb
from infermesh.inference.v1 import identity_service_pb2_grpc
from services.kit.errors import MeshError
from services.kit.server import CHANNEL_OPTIONS
from services.registry import refusals

_TIMEOUT_S = 2.0
_PARALLEL = 64
# A channel for one call: it neither waits for, nor leaves behind, what other channels know.
_OPTIONS = (*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))


class Identities(Protocol):
    """Tells who answers at an address."""

    async def check(self, node_id: str, address: str, nonce: bytes) -> None:
        """Checks that the node with this nonce answers at an address.

        Raises:
            MeshError: `FAILED_PRECONDITION` when somebody else does; `SERVICE_UNAVAILABLE` when
                nobody does.
        """


class CalledBack:
    """Asks at the address itself, over gRPC; at most 64 at the same time."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(_PARALLEL)

    async def check(self, node_id: str, address: str, nonce: bytes) -> None:
        """See `Identities`."""
        async with (
            self._places,
            grpc.aio.insecure_channel(address, options=_OPTIONS) as channel,
        ):
            stub = identity_service_pb2_grpc.IdentityServiceStub(channel)
            try:
                # A node may join a moment before it listens.
                said = await stub.Identify(
                    pb.IdentifyRequest(), timeout=_TIMEOUT_S, wait_for_ready=True
                )
            except grpc.aio.AioRpcError as error:
                raise _refusal(error.code(), node_id, address) from None
        if said.node_id != node_id or not hmac.compare_digest(said.nonce, nonce):
            raise refusals.somebody_else(node_id, address)


def _refusal(code: grpc.StatusCode, node_id: str, address: str) -> MeshError:
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return refusals.nobody_there(node_id, address)
    return refusals.somebody_else(node_id, address)
