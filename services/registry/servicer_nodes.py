"""NodeService over gRPC."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf import empty_pb2

from infermesh.registry.v1 import node_service_pb2 as pb
from infermesh.registry.v1 import node_service_pb2_grpc, resources_pb2
from services.kit import headers
from services.registry import refusals
from services.registry.attach import Context, NodeStreams, on_end
from services.registry.commands import Commands
from services.registry.key_watch import KeyWatch
from services.registry.mesh import Mesh
from services.registry.watchers import Changes

_WATCH = "/infermesh.registry.v1.NodeService/WatchMesh"


class NodeServicer(node_service_pb2_grpc.NodeServiceServicer):
    """Implements NodeService.

    Args:
        mesh: The nodes.
        streams: The nodes' streams.
        commands: What operators have nodes do.
        key_watch: Ends watches of keys that are revoked.
    """

    def __init__(
        self, mesh: Mesh, streams: NodeStreams, commands: Commands, key_watch: KeyWatch
    ) -> None:
        self._mesh = mesh
        self._streams = streams
        self._commands = commands
        self._key_watch = key_watch

    async def AttachNode(
        self, request_iterator: AsyncIterator[pb.AttachNodeRequest], context: Context
    ) -> AsyncIterator[pb.AttachNodeResponse]:
        """Joins a node for as long as its stream lives."""
        async for response in self._streams.attach(request_iterator, context):
            yield response

    async def ListNodes(self, request: pb.ListNodesRequest, context: Context) -> Any:
        """Lists the nodes by id."""
        return pb.ListNodesResponse(nodes=map(self._with_commands, self._mesh.nodes()))

    async def GetNode(self, request: pb.GetNodeRequest, context: Context) -> resources_pb2.Node:
        """Returns one node."""
        return self._with_commands(self._mesh.node(request.node_id))

    async def DrainNode(self, request: pb.DrainNodeRequest, context: Context) -> resources_pb2.Node:
        """Stops new traffic to a node."""
        return await self._mesh.set_drain(request.node_id, True)

    async def ResumeNode(
        self, request: pb.ResumeNodeRequest, context: Context
    ) -> resources_pb2.Node:
        """Lets traffic to a drained node again."""
        return await self._mesh.set_drain(request.node_id, False)

    async def DeleteNode(self, request: pb.DeleteNodeRequest, context: Context) -> empty_pb2.Empty:
        """Forgets a node that is offline."""
        await self._mesh.delete_node(request.node_id)
        return empty_pb2.Empty()

    async def LoadModel(
        self, request: pb.LoadModelRequest, context: Context
    ) -> AsyncIterator[pb.LoadModelResponse]:
        """Has a node's engine take a model into its memory."""
        command = pb.NodeCommand(load_model=request)
        what = f"load {request.model}"
        async for progress in self._run(request.node_id, command, "model", what, context):
            yield pb.LoadModelResponse(progress=progress.model)

    async def UnloadModel(
        self, request: pb.UnloadModelRequest, context: Context
    ) -> AsyncIterator[pb.UnloadModelResponse]:
        """Has a node's engine drop a model from its memory."""
        command = pb.NodeCommand(unload_model=request)
        what = f"unload {request.model}"
        async for progress in self._run(request.node_id, command, "model", what, context):
            yield pb.UnloadModelResponse(progress=progress.model)

    async def BenchmarkNode(
        self, request: pb.BenchmarkNodeRequest, context: Context
    ) -> AsyncIterator[pb.BenchmarkNodeResponse]:
        """Has a node put load on its own engine."""
        command = pb.NodeCommand(benchmark=request)
        what = f"benchmark {request.model}"
        async for progress in self._run(request.node_id, command, "benchmark", what, context):
            yield progress.benchmark

    async def _run(
        self, node_id: str, command: pb.NodeCommand, kind: str, what: str, context: Context
    ) -> AsyncIterator[pb.CommandProgress]:
        attachment = self._mesh.attachment(node_id)
        running = self._commands.run(attachment, command, kind, what)
        on_end(context, lambda: self._commands.abandon(command.command_id))
        async for progress in running:
            yield progress

    def _with_commands(self, node: resources_pb2.Node) -> resources_pb2.Node:
        commands = self._commands.running_on(node.node_id)
        if not commands:
            return node
        shown = resources_pb2.Node()
        shown.CopyFrom(node)
        shown.commands.extend(commands)
        return shown

    async def WatchMesh(
        self, request: pb.WatchMeshRequest, context: Context
    ) -> AsyncIterator[pb.WatchMeshResponse]:
        """Streams the mesh and every change."""
        watcher = self._mesh.watchers.add()
        metadata = dict(context.invocation_metadata() or ())
        key_id = str(metadata.get(headers.KEY_ID, ""))
        error = refusals.key_refused(key_id)
        unwatch = self._key_watch.add(_WATCH, key_id, lambda: watcher.close(error))

        def ended() -> None:
            unwatch()
            self._mesh.watchers.remove(watcher)

        on_end(context, ended)
        yield pb.WatchMeshResponse(
            synced=True, models=self._mesh.catalogue.all(), nodes=self._mesh.nodes()
        )
        while (changes := await watcher.take()) is not None:
            yield self._describe(changes)
        if watcher.error is not None:
            raise watcher.error
        await context.abort(grpc.StatusCode.UNAVAILABLE, "The registry is stopping.")

    def _describe(self, changes: Changes) -> pb.WatchMeshResponse:
        models = (self._mesh.catalogue.find(name) for name in sorted(changes.models))
        return pb.WatchMeshResponse(
            models=[model for model in models if model is not None],
            deleted_models=sorted(changes.deleted_models),
            nodes=[self._mesh.node(node_id) for node_id in sorted(changes.nodes)],
            deleted_node_ids=sorted(changes.deleted_nodes),
        )
