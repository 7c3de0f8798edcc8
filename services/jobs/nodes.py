"""Calls the nodes through Envoy's internal listener, as the caller.

The node accounts for the call under the caller's key and Envoy's request id, so that it is in the
ledger once, and applies the guardrails of the key.
"""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from google.api import httpbody_pb2

from infermesh.errors.v1 import errors_pb2
from infermesh.inference.v1 import openai_service_pb2_grpc
from services.jobs.identity import Pairs
from services.kit import headers
from services.kit.errors import MeshError, from_rpc_error

log = logging.getLogger(__name__)

_R = errors_pb2.ErrorReason
_C = grpc.StatusCode


class Answer:
    """What a node answers, as it comes.

    Args:
        call: The call to the node.
        model: The model that was asked for.

    Attributes:
        content_type: Of what comes; empty until something has come.
    """

    def __init__(self, call: Any, model: str) -> None:
        self._call = call
        self._model = model
        self.content_type = ""

    async def read(self) -> bytes:
        """Returns the next piece; empty at the end.

        Raises:
            MeshError: The node's refusal or failure, or why none answered.
        """
        try:
            message = await self._call.read()
            if message is grpc.aio.EOF:
                return b""
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) or local_reply(error, self._model) from None
        if not self.content_type:
            self.content_type = message.content_type
        return bytes(message.data)

    async def read_all(self) -> bytes:
        """Returns everything. Raises like `read`."""
        pieces = []
        while piece := await self.read():
            pieces.append(piece)
        return b"".join(pieces)

    async def shown(self) -> Pairs:
        """Returns the headers of the answer that its caller may see."""
        metadata = await self._call.initial_metadata() or ()
        return tuple(
            (key, str(value)) for key, value in metadata if key in _SHOWN and str(value) != ""
        )


_SHOWN = frozenset(
    {
        *(headers.NODE, headers.DECISION, headers.REDACTIONS),
        *(headers.CACHE, headers.CACHE_SIMILARITY),
    }
)


class Nodes:
    """The nodes behind a channel.

    Args:
        channel: To Envoy's listener for calls inside the mesh.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        stub = openai_service_pb2_grpc.OpenAIServiceStub(channel)
        self._chat = stub.CreateChatCompletion

    @asynccontextmanager
    async def chat(self, body: bytes, model: str, metadata: Pairs) -> AsyncIterator[Answer]:
        """Asks for a chat; leaving the context before the end stops the engine.

        Args:
            body: OpenAI's JSON.
            model: The model in it.
            metadata: Who asks.
        """
        call = self._chat(httpbody_pb2.HttpBody(data=body), metadata=metadata)
        try:
            yield Answer(call, model)
        finally:
            call.cancel()


def local_reply(error: grpc.aio.AioRpcError, model: str) -> MeshError:
    """Returns the meaning of a status that no part of the mesh has explained: Envoy's own."""
    code = error.code()
    if code is _C.UNAVAILABLE:
        return MeshError(
            _R.ERROR_REASON_NO_NODE_AVAILABLE,
            f"No node serves the model `{model}` at the moment; try again later.",
            param="model",
        )
    if code is _C.DEADLINE_EXCEEDED:
        return MeshError(_R.ERROR_REASON_ENGINE_TIMEOUT, "The node took too long to answer.")
    # Envoy says UNIMPLEMENTED where HTTP would have 404.
    if code in (_C.NOT_FOUND, _C.UNIMPLEMENTED):
        return MeshError(
            _R.ERROR_REASON_MODEL_NOT_FOUND,
            f"The model `{model}` does not exist or you do not have access to it.",
            param="model",
        )
    log.error("a call to a node failed", extra={"code": code.name, "details": error.details()})
    return MeshError(_R.ERROR_REASON_INTERNAL, "The mesh failed to handle the call.")
