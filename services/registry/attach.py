"""One node's stream, from its join to its end."""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import grpc
from google.protobuf import duration_pb2

from infermesh.errors.v1 import errors_pb2
from infermesh.registry.v1 import node_service_pb2 as pb
from services.kit import headers
from services.kit.errors import MeshError
from services.registry import refusals
from services.registry.address import check_faces_mesh
from services.registry.attachment import Attachment, End
from services.registry.commands import Commands
from services.registry.identity import Identities
from services.registry.key_watch import KeyWatch
from services.registry.mesh import Mesh
from services.registry.refusals import UntrueError
from services.registry.suspects import Suspects

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]

RPC = "/infermesh.registry.v1.NodeService/AttachNode"

_LEAVE_GRACE_S = 0.05
_NONCE_BYTES = 16


class NodeStreams:
    """Lets nodes in, hears their reports, and tells them what they are to know.

    Args:
        mesh: The nodes.
        commands: What operators have nodes do.
        identities: Tells who answers at an address.
        key_watch: Ends streams of keys that are revoked.
        suspects: Who lied of late.
        report_interval_s: How often nodes are to report.
        lease_s: The lease that nodes are told.
    """

    def __init__(
        self,
        mesh: Mesh,
        commands: Commands,
        identities: Identities,
        key_watch: KeyWatch,
        suspects: Suspects,
        *,
        report_interval_s: float,
        lease_s: float,
    ) -> None:
        self._mesh = mesh
        self._commands = commands
        self._identities = identities
        self._key_watch = key_watch
        self._suspects = suspects
        self._joined = pb.AttachNodeResponse(
            joined=pb.NodeJoined(
                report_interval=_duration(report_interval_s), lease=_duration(lease_s)
            )
        )

    async def attach(
        self, requests: AsyncIterator[pb.AttachNodeRequest], context: Context
    ) -> AsyncIterator[pb.AttachNodeResponse]:
        """Joins a node for as long as its stream lives."""
        first = await anext(requests, None)
        if first is None or not first.HasField("join"):
            raise _out_of_order("The first message must be `join`.")
        join = first.join
        metadata = {k: v for k, v in context.invocation_metadata() or () if isinstance(v, str)}
        source = metadata.get(headers.SOURCE, "")
        key_id = metadata.get(headers.KEY_ID, "")
        name = f"{source} {key_id} {join.node_id}"
        self._suspects.check(name, join.node_id)
        try:
            self._mesh.check_join(join, key_id)
            check_faces_mesh(join.address, source)
            nonce = secrets.token_bytes(_NONCE_BYTES)
            yield pb.AttachNodeResponse(challenge=pb.JoinChallenge(nonce=nonce))
            await self._identities.check(join.node_id, join.address, nonce)
            attachment = await self._mesh.join(join, key_id)
        except MeshError as error:
            self._note(name, join, source, error, isinstance(error, UntrueError))
            raise
        reader = asyncio.create_task(self._read(requests, attachment))

        def key_refused() -> None:
            # Whoever holds such a key is to get no request of a caller's any more.
            self._mesh.eject(attachment, "its key was revoked")
            attachment.close(refusals.key_refused(key_id))

        unwatch = self._key_watch.add(RPC, key_id, key_refused)

        def ended() -> None:
            unwatch()
            reader.cancel()
            self._mesh.detach(attachment)
            self._commands.cut_off(attachment)

        on_end(context, ended)
        yield self._joined
        while (message := await attachment.next_message()) is not None:
            yield message
        if isinstance(attachment.end, MeshError):
            if attachment.end.reason == errors_pb2.ERROR_REASON_INVALID_ARGUMENT:
                self._note(name, join, source, attachment.end, is_lie=True)
            raise attachment.end
        if attachment.end is End.REPLACED:
            await context.abort(
                grpc.StatusCode.ABORTED, "Another stream with this node_id took over."
            )
        if attachment.end is End.STOPPING:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "The registry is stopping.")

    def _note(
        self, name: str, join: pb.JoinNode, source: str, error: MeshError, is_lie: bool
    ) -> None:
        log.warning(
            "a node was refused",
            extra={
                "audit": True,
                "node_id": join.node_id,
                "address": join.address,
                "source": source,
                "reason": error.reason_name,
                "error": error.message,
            },
        )
        if is_lie:
            self._suspects.note(name, error)

    async def _read(
        self, requests: AsyncIterator[pb.AttachNodeRequest], attachment: Attachment
    ) -> None:
        try:
            async for request in requests:
                match request.WhichOneof("message"):
                    case "report":
                        self._mesh.report(attachment, request.report)
                    case "update":
                        self._mesh.update(attachment, request.update)
                    case "progress":
                        self._commands.progress(attachment, request.progress)
                    case _:
                        raise _out_of_order("`join` comes first and once.")
        except MeshError as error:
            # What a node says is believed as a whole or not at all.
            self._mesh.eject(attachment, "what it said cannot be true")
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


def on_end(context: Context, act: Callable[[], None]) -> None:
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
