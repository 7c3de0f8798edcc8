"""Shows at the node's address that it is the one that joins."""

import asyncio
from typing import Any

import grpc

from infermesh.errors.v1 import errors_pb2
from infermesh.inference.v1 import identity_service_pb2 as pb
from infermesh.inference.v1 import identity_service_pb2_grpc
from services.kit.errors import MeshError

_WAIT_S = 1.0


class Identity:
    """The node's name, and the nonce that the registry sent on its latest stream.

    Args:
        node_id: The node's name.
    """

    def __init__(self, node_id: str) -> None:
        self.node_id = node_id
        self._nonce: asyncio.Future[bytes] | None = None

    def expect(self) -> None:
        """Forgets the nonce: a new stream begins, which brings another."""
        self._nonce = asyncio.get_running_loop().create_future()

    def take(self, nonce: bytes) -> None:
        """Takes in the nonce of the latest stream."""
        if self._nonce is None or self._nonce.done():
            self.expect()
        assert self._nonce is not None  # noqa: S101 - `expect` has set it
        self._nonce.set_result(nonce)

    async def nonce(self) -> bytes:
        """Returns the nonce, waiting at most 1 s for one that is on its way.

        Raises:
            TimeoutError: None came.
        """
        if self._nonce is None:
            raise TimeoutError
        # The question may overtake the nonce, which comes through Envoy.
        async with asyncio.timeout(_WAIT_S):
            return await asyncio.shield(self._nonce)


class IdentityServicer(identity_service_pb2_grpc.IdentityServiceServicer):
    """Implements IdentityService."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity

    async def Identify(  # noqa: N802 - as the proto names it
        self, request: pb.IdentifyRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.IdentifyResponse:
        """Says which node listens here."""
        try:
            nonce = await self._identity.nonce()
        except TimeoutError:
            raise MeshError(
                errors_pb2.ERROR_REASON_FAILED_PRECONDITION,
                f"The node `{self._identity.node_id}` is not joining a mesh now.",
            ) from None
        return pb.IdentifyResponse(node_id=self._identity.node_id, nonce=nonce)
