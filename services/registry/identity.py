"""Finds out whether the node that joins is the one that answers at its address.

The registry sends a nonce down the node's stream and asks for it at the address. Whoever joined
with the address of an internal service, of Envoy or of another node cannot have it told there.
"""

import asyncio
import hmac
from pathlib import Path
from typing import Protocol

import grpc

from infermesh.inference.v1 import identity_service_pb2 as pb
from infermesh.inference.v1 import identity_service_pb2_grpc
from services.kit import tls
from services.kit.channels import CHANNEL_OPTIONS, open_channel
from services.kit.errors import MeshError
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
    """Asks at the address itself, over gRPC; at most 64 at the same time.

    Args:
        tls_dir: The folder with the registry's TLS files: only a certificate for the node's own id
            will do then. None for no TLS.
    """

    def __init__(self, tls_dir: Path | None = None) -> None:
        self._tls_dir = tls_dir
        self._places = asyncio.Semaphore(_PARALLEL)

    async def check(self, node_id: str, address: str, nonce: bytes) -> None:
        """See `Identities`."""
        async with (
            self._places,
            open_channel(address, tls.node(node_id), self._tls_dir, _OPTIONS) as channel,
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
