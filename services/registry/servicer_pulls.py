"""OllamaPullService over gRPC."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.api import httpbody_pb2

from infermesh.errors.v1 import errors_pb2
from infermesh.registry.v1 import node_service_pb2, ollama_pull_service_pb2_grpc
from infermesh.registry.v1 import ollama_pull_service_pb2 as pb
from services.kit.errors import MeshError
from services.registry import pulls
from services.registry.attach import on_end
from services.registry.commands import Commands
from services.registry.mesh import Mesh

_Context = grpc.aio.ServicerContext[Any, Any]
_LINES = "application/x-ndjson"
_JSON = "application/json; charset=utf-8"


class OllamaPullServicer(ollama_pull_service_pb2_grpc.OllamaPullServiceServicer):
    """Implements OllamaPullService.

    Args:
        mesh: The nodes.
        commands: What operators have nodes do.
    """

    def __init__(self, mesh: Mesh, commands: Commands) -> None:
        self._mesh = mesh
        self._commands = commands

    async def PullModel(
        self, request: pb.PullModelRequest, context: _Context
    ) -> AsyncIterator[httpbody_pb2.HttpBody]:
        """Has a node take in a model."""
        is_stream = not request.HasField("stream") or request.stream
        has_sent = False
        try:
            async for line in self._lines(request, context):
                if is_stream:
                    yield httpbody_pb2.HttpBody(content_type=_LINES, data=line)
                    has_sent = True
        except MeshError as error:
            if has_sent:
                yield httpbody_pb2.HttpBody(content_type=_LINES, data=pulls.failure(error))
            raise
        if not is_stream:
            yield httpbody_pb2.HttpBody(content_type=_JSON, data=pulls.SUCCESS)

    async def _lines(self, request: pb.PullModelRequest, context: _Context) -> AsyncIterator[bytes]:
        model = request.model or request.name
        if not model:
            raise _invalid("model", "must be the name of a model")
        if request.insecure:
            raise _invalid("insecure", "models are pulled over TLS only")
        node_id = request.node_id or pulls.node_for(self._mesh.nodes(), model)
        if node_id is None:
            yield pulls.SUCCESS
            return
        command = node_service_pb2.NodeCommand(
            load_model=node_service_pb2.LoadModelRequest(node_id=node_id, model=model)
        )
        attachment = self._mesh.attachment(node_id)
        running = self._commands.run(attachment, command, "model", f"load {model}")
        on_end(context, lambda: self._commands.abandon(command.command_id))
        async for progress in running:
            yield pulls.line(progress.model)


def _invalid(param: str, message: str) -> MeshError:
    return MeshError(errors_pb2.ERROR_REASON_INVALID_ARGUMENT, f"{param}: {message}", param=param)
