"""Calls the embedding nodes through Envoy, which picks one that serves the model."""

import logging
import struct
from collections.abc import Sequence

import grpc

from infermesh.errors.v1 import errors_pb2
from infermesh.inference.v1 import inference_service_pb2, inference_service_pb2_grpc
from services.embeddings.vectors import Input, Vector
from services.kit import headers
from services.kit.errors import MeshError, from_rpc_error

log = logging.getLogger(__name__)

_R = errors_pb2.ErrorReason
_C = grpc.StatusCode


class EmbeddingNodes:
    """The nodes behind a channel.

    Args:
        channel: To Envoy's listener for calls inside the mesh.
        timeout_s: How long one call may take.
    """

    def __init__(self, channel: grpc.aio.Channel, timeout_s: float) -> None:
        self._stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        self._timeout_s = timeout_s

    async def embed(
        self, model: str, texts: Sequence[Input], request_id: str, dimensions: int | None = None
    ) -> list[Vector]:
        """Returns a vector for each text, with the tokens that the node counted for it.

        Args:
            model: The model's name.
            texts: All texts, or the tokens of all.
            request_id: The id that the call carries.
            dimensions: How many components the vectors are to have; None is all.

        Raises:
            MeshError: The node's refusal, or why none answered; `UNSUPPORTED` where the engine
                pays no heed to `dimensions`.
        """
        if not (model.isascii() and model.isprintable()):
            # No model of the catalogue has such a name, and no header can carry it.
            raise _model_not_found(model)
        request = inference_service_pb2.EmbedRequest(model=model, dimensions=dimensions)
        for text in texts:
            if isinstance(text, str):
                request.inputs.append(text)
            else:
                request.token_inputs.add(ids=text)
        try:
            response = await self._stub.Embed(
                request,
                metadata=((headers.MODEL, model), (headers.REQUEST_ID, request_id)),
                timeout=self._timeout_s,
            )
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) or _local_reply(error, model) from None
        if len(response.embeddings) != len(texts):
            raise _broken("The node answered with another number of vectors than it was asked for.")
        vectors = [_vector(embedding) for embedding in response.embeddings]
        if dimensions is not None and any(vector.size != dimensions for vector in vectors):
            raise MeshError(
                _R.ERROR_REASON_UNSUPPORTED,
                f"The engine of the model `{model}` does not cut vectors to `dimensions`.",
                param="dimensions",
            )
        return vectors


def _vector(embedding: inference_service_pb2.Embedding) -> Vector:
    # Usage is exact or fails: a share of the call's total would be a guess.
    if not embedding.HasField("tokens"):
        raise _broken("The node did not count the tokens of each text.")
    data = struct.pack(f"<{len(embedding.values)}f", *embedding.values)
    return Vector(data, embedding.tokens)


def _local_reply(error: grpc.aio.AioRpcError, model: str) -> MeshError:
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
        return _model_not_found(model)
    log.error("a call to a node failed", extra={"code": code.name, "details": error.details()})
    return MeshError(_R.ERROR_REASON_INTERNAL, "The mesh failed to handle the call.")


def _model_not_found(model: str) -> MeshError:
    return MeshError(
        _R.ERROR_REASON_MODEL_NOT_FOUND,
        f"The model `{model}` does not exist or you do not have access to it.",
        param="model",
    )


def _broken(message: str) -> MeshError:
    return MeshError(_R.ERROR_REASON_ENGINE_FAILED, message)
