"""OllamaCatalogService over gRPC."""

from typing import Any

import grpc
from google.api import httpbody_pb2
from google.protobuf import empty_pb2

from infermesh.routing.v1 import ollama_catalog_service_pb2_grpc
from services.kit import globs, headers
from services.routing import ollama_catalog
from services.routing.model_list import ModelList

_Context = grpc.aio.ServicerContext[Any, Any]


class OllamaCatalogServicer(ollama_catalog_service_pb2_grpc.OllamaCatalogServiceServicer):
    """Implements OllamaCatalogService.

    Args:
        models: What there is.
    """

    def __init__(self, models: ModelList) -> None:
        self._models = models

    async def ListTags(self, request: empty_pb2.Empty, context: _Context) -> httpbody_pb2.HttpBody:
        """Lists what the caller's key may use and a node serves now."""
        return _body(ollama_catalog.tags(self._models.all(_globs(context))))

    async def ListRunning(
        self, request: empty_pb2.Empty, context: _Context
    ) -> httpbody_pb2.HttpBody:
        """Lists what the caller's key may use and a ready node serves."""
        return _body(ollama_catalog.running(self._models.all(_globs(context))))

    async def ShowModel(
        self, request: httpbody_pb2.HttpBody, context: _Context
    ) -> httpbody_pb2.HttpBody:
        """Describes one model."""
        name = ollama_catalog.named(request.data)
        return _body(ollama_catalog.shown(self._models.get(name, _globs(context))))

    async def GetVersion(
        self, request: empty_pb2.Empty, context: _Context
    ) -> httpbody_pb2.HttpBody:
        """Says which version of the API is spoken."""
        return _body(ollama_catalog.version())

    async def CreateModel(
        self, request: httpbody_pb2.HttpBody, context: _Context
    ) -> httpbody_pb2.HttpBody:
        """Refuses."""
        raise ollama_catalog.refusal("/api/create")

    async def CopyModel(
        self, request: httpbody_pb2.HttpBody, context: _Context
    ) -> httpbody_pb2.HttpBody:
        """Refuses."""
        raise ollama_catalog.refusal("/api/copy")

    async def PushModel(
        self, request: httpbody_pb2.HttpBody, context: _Context
    ) -> httpbody_pb2.HttpBody:
        """Refuses."""
        raise ollama_catalog.refusal("/api/push")

    async def RemoveModel(
        self, request: httpbody_pb2.HttpBody, context: _Context
    ) -> httpbody_pb2.HttpBody:
        """Refuses."""
        raise ollama_catalog.refusal("/api/delete")


def _globs(context: _Context) -> globs.ModelGlobs:
    """Returns what the caller's key may use; auth says so of keys that are bound to some models."""
    for key, value in context.invocation_metadata() or ():
        if key == headers.ALLOWED_MODELS and isinstance(value, str):
            return globs.read(value)
    return globs.read("")


def _body(data: bytes) -> httpbody_pb2.HttpBody:
    return httpbody_pb2.HttpBody(content_type="application/json; charset=utf-8", data=data)
