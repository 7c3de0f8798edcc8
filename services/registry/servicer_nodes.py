"""NodeService over gRPC."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import grpc
from google.protobuf import duration_pb2, empty_pb2

from infermesh.errors.v1 import errors_pb2
from infermesh.registry.v1 import node_service_pb2 as pb
from infermesh.registry.v1 import node_service_pb2_grpc, resources_pb2
from services.kit.errors import MeshError
from services.registry.attachment import Attachment, End
from services.registry.mesh import Mesh
from services.registry.watchers import Changes

log = logging.getLogger(__name__)

_Context = grpc.aio.ServicerContext[Any, Any]

_LEAVE_GRACE_S = 0.05


class NodeServicer(node_service_pb2_grpc.NodeServiceServicer):
    """Implements NodeService.

    Args:
        mesh: The nodes.
        report_interval_s: How often nodes are to report.
        lease_s: The lease that nodes are told.
    """

    def __init__(self, mesh: Mesh, *, report_interval_s: float, lease_s: float) -> None:
        self._mesh = mesh
        self._joined = pb.AttachNodeResponse(
            joined=pb.NodeJoined(
                report_interval=_duration(report_interval_s), lease=_duration(lease_s)
            )
        )

    async def AttachNode(
        self, request_iterator: AsyncIterator[pb.AttachNodeRequest], context: _Context
    ) -> AsyncIterator[pb.AttachNodeResponse]:
        """Joins a node for as long as its stream lives."""
        first = await anext(request_iterator, None)
        if first is None or not first.HasField("join"):
            raise _out_of_order("The first message must be `join`.")
        attachment = await self._mesh.join(first.join)
        reader = asyncio.create_task(self._read(request_iterator, attachment))

        def ended() -> None:
            reader.cancel()
            self._mesh.detach(attachment)

        _on_end(context, ended)
        yield self._joined
        while (draining := await attachment.next_drain()) is not None:
            yield pb.AttachNodeResponse(drain_changed=pb.DrainChanged(draining=draining))
        if isinstance(attachment.end, MeshError):
            raise attachment.end
        if attachment.end is End.REPLACED:
            await context.abort(
                grpc.StatusCode.ABORTED, "Another stream with this node_id took over."
            )
        if attachment.end is End.STOPPING:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "The registry is stopping.")

    async def _read(
        self, requests: AsyncIterator[pb.AttachNodeRequest], attachment: Attachment
    ) -> None:
        try:
            async for request in requests:
                if request.HasField("join"):
                    raise _out_of_order("`join` comes first and once.")
                self._mesh.report(attachment, request.report)
        except MeshError as error:
            attachment.close(error)
            return
        except grpc.aio.AbortError:
            return
        except Exception:
            log.exception("reading a node's stream failed", extra={"node_id": attachment.node_id})
            attachment.close(
                MeshError(errors_pb2.ERROR_REASON_INTERNAL, "The registry failed to read a report.")
            )
            return
        # A broken stream ends the iterator too, and cancels the call, and so this, right after.
        await asyncio.sleep(_LEAVE_GRACE_S)
        self._mesh.leave(attachment)
        attachment.close(End.LEFT)

    async def ListNodes(self, request: pb.ListNodesRequest, context: _Context) -> Any:
        """Lists the nodes by id."""
        return pb.ListNodesResponse(nodes=self._mesh.nodes())

    async def GetNode(self, request: pb.GetNodeRequest, context: _Context) -> resources_pb2.Node:
        """Returns one node."""
        return self._mesh.node(request.node_id)

    async def DrainNode(
        self, request: pb.DrainNodeRequest, context: _Context
    ) -> resources_pb2.Node:
        """Stops new traffic to a node."""
        return await self._mesh.set_drain(request.node_id, True)

    async def ResumeNode(
        self, request: pb.ResumeNodeRequest, context: _Context
    ) -> resources_pb2.Node:
        """Lets traffic to a drained node again."""
        return await self._mesh.set_drain(request.node_id, False)

    async def DeleteNode(self, request: pb.DeleteNodeRequest, context: _Context) -> empty_pb2.Empty:
        """Forgets a node that is offline."""
        await self._mesh.delete_node(request.node_id)
        return empty_pb2.Empty()

    async def WatchMesh(
        self, request: pb.WatchMeshRequest, context: _Context
    ) -> AsyncIterator[pb.WatchMeshResponse]:
        """Streams the mesh and every change."""
        watcher = self._mesh.watchers.add()
        _on_end(context, lambda: self._mesh.watchers.remove(watcher))
        yield pb.WatchMeshResponse(
            synced=True, models=self._mesh.catalogue.all(), nodes=self._mesh.nodes()
        )
        while (changes := await watcher.take()) is not None:
            yield self._describe(changes)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "The registry is stopping.")

    def _describe(self, changes: Changes) -> pb.WatchMeshResponse:
        models = (self._mesh.catalogue.find(name) for name in sorted(changes.models))
        return pb.WatchMeshResponse(
            models=[model for model in models if model is not None],
            deleted_models=sorted(changes.deleted_models),
            nodes=[self._mesh.node(node_id) for node_id in sorted(changes.nodes)],
            deleted_node_ids=sorted(changes.deleted_nodes),
        )


def _on_end(context: _Context, act: Callable[[], None]) -> None:
    """Has `act` run however the call ends; a `finally` may wait for the garbage collector."""

    def ended(_: Any) -> None:
        act()

    # The stubs declare the callback's type as a class, not as a protocol.
    context.add_done_callback(cast(Any, ended))


def _duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromMicroseconds(round(seconds * 1_000_000))
    return duration


def _out_of_order(message: str) -> MeshError:
    return MeshError(errors_pb2.ERROR_REASON_INVALID_ARGUMENT, message, param="join")
