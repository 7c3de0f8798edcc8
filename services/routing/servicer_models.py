"""OpenAIModelService over gRPC."""

from typing import Any

import grpc

from infermesh.routing.v1 import openai_model_service_pb2 as pb
from infermesh.routing.v1 import openai_model_service_pb2_grpc
from services.kit import globs, headers
from services.routing.model_list import ModelList

_Context = grpc.aio.ServicerContext[Any, Any]


class OpenAIModelServicer(openai_model_service_pb2_grpc.OpenAIModelServiceServicer):
    """Implements OpenAIModelService.

    Args:
        models: What there is.
    """

    def __init__(self, models: ModelList) -> None:
        self._models = models

    async def ListOpenAIModels(
        self, request: pb.ListOpenAIModelsRequest, context: _Context
    ) -> pb.ListOpenAIModelsResponse:
        """Lists what the caller's key may use and a node serves now."""
        return pb.ListOpenAIModelsResponse(object="list", data=self._models.all(_globs(context)))

    async def GetOpenAIModel(
        self, request: pb.GetOpenAIModelRequest, context: _Context
    ) -> pb.OpenAIModel:
        """Returns one model."""
        return self._models.get(request.model, _globs(context))


def _globs(context: _Context) -> globs.ModelGlobs:
    """Returns what the caller's key may use; auth says so of keys that are bound to some models."""
    for key, value in context.invocation_metadata() or ():
        if key == headers.ALLOWED_MODELS and isinstance(value, str):
            return globs.read(value)
    return globs.read("")
