"""ModelService over gRPC."""

from typing import Any

import grpc
from google.protobuf import empty_pb2

from infermesh.registry.v1 import model_service_pb2 as pb
from infermesh.registry.v1 import model_service_pb2_grpc, resources_pb2
from services.registry.mesh import Mesh

_Context = grpc.aio.ServicerContext[Any, Any]


class ModelServicer(model_service_pb2_grpc.ModelServiceServicer):
    """Implements ModelService.

    Args:
        mesh: The nodes and their catalogue.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    async def ListModels(
        self, request: pb.ListModelsRequest, context: _Context
    ) -> pb.ListModelsResponse:
        """Lists the models by name."""
        return pb.ListModelsResponse(models=self._mesh.catalogue.all())

    async def GetModel(self, request: pb.GetModelRequest, context: _Context) -> resources_pb2.Model:
        """Returns one model."""
        return self._mesh.catalogue.get(request.name)

    async def DeleteModel(
        self, request: pb.DeleteModelRequest, context: _Context
    ) -> empty_pb2.Empty:
        """Deletes a model that no node serves."""
        await self._mesh.delete_model(request.name)
        return empty_pb2.Empty()
