"""Sends audit events of a service to auth, which alone writes the log.

    handlers ─ outcome ─► spool (a file) ─► RecordAuditEvents ─► chain in PostgreSQL

An event is in the file before its call is answered, and is sent until auth has committed it. Auth
passes over an event that it has: so each is in the chain once, whoever is killed when.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import grpc

from infermesh.auth.v1 import audit_service_pb2 as pb
from infermesh.auth.v1 import audit_service_pb2_grpc
from services.kit import tls
from services.kit.audit_events import OutcomeRecorder
from services.kit.audit_settings import AuditedSettings
from services.kit.audit_spool import Send, open_spool
from services.kit.channels import open_channel
from services.kit.rejected import set_aside

log = logging.getLogger(__name__)

Call = Callable[[Sequence[pb.AuditEvent]], Awaitable[object]]
"""Sends events; raises an `AioRpcError` where that fails."""

_SEND_TIMEOUT_S = 10.0


@contextlib.asynccontextmanager
async def auth_channel(settings: AuditedSettings) -> AsyncIterator[grpc.aio.Channel | None]:
    """Yields a channel to auth; None where the settings do not say where that is.

    Raises:
        OSError: The files for TLS cannot be read.
    """
    if settings.auth_address is None:
        yield None
        return
    async with open_channel(
        settings.auth_address, tls.service("auth"), settings.tls_dir
    ) as channel:
        yield channel


@contextlib.asynccontextmanager
async def reporting(
    channel: grpc.aio.Channel | None, state_dir: Path
) -> AsyncIterator[OutcomeRecorder | None]:
    """Opens the spool of a service and yields its recorder; on exit what waits is sent or kept.

    Args:
        channel: To auth. Without it nothing is recorded: nobody would ever take it.
        state_dir: The service's folder; events wait in `audit/` there.

    Raises:
        OSError: The folder cannot be used.
    """
    if channel is None:
        log.warning("without INFERMESH_AUTH_ADDRESS the audit log does not tell of this service")
        yield None
        return
    stub = audit_service_pb2_grpc.AuditServiceStub(channel)

    async def call(events: Sequence[pb.AuditEvent]) -> object:
        request = pb.RecordAuditEventsRequest(events=events)
        return await stub.RecordAuditEvents(request, timeout=_SEND_TIMEOUT_S)

    async with spooled(call, state_dir / "audit") as recorder:
        yield recorder


@contextlib.asynccontextmanager
async def reporting_as_node(
    channel: grpc.aio.Channel, credentials: Sequence[tuple[str, str]], state_dir: Path
) -> AsyncIterator[OutcomeRecorder]:
    """Opens the spool of a node and yields its recorder, of inference only.

    Args:
        channel: To the mesh's front door.
        credentials: Metadata with the node's key.
        state_dir: The node's folder; events wait in `audit/` there.

    Raises:
        OSError: The folder cannot be used.
    """
    stub = audit_service_pb2_grpc.AuditServiceStub(channel)

    async def call(events: Sequence[pb.AuditEvent]) -> object:
        request = pb.RecordInferenceRequest(events=events)
        return await stub.RecordInference(request, metadata=credentials, timeout=_SEND_TIMEOUT_S)

    async with spooled(call, state_dir / "audit") as recorder:
        yield recorder


@contextlib.asynccontextmanager
async def spooled(call: Call, directory: Path) -> AsyncIterator[OutcomeRecorder]:
    """Opens a spool and yields its recorder; on exit what waits is sent or kept.

    Args:
        call: Sends events.
        directory: Where they wait.

    Raises:
        OSError: The folder cannot be used.
    """
    async with open_spool(directory, delivering(call, directory)) as spool:
        yield OutcomeRecorder(spool.append, has_room=spool.has_room)


def delivering(call: Call, directory: Path) -> Send:
    """Returns a `Send` that sets aside what is refused as invalid, so that the rest gets through.

    Args:
        call: Sends events.
        directory: Where the file `rejected` lies.
    """

    async def send(events: Sequence[pb.AuditEvent]) -> None:
        try:
            await call(events)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
                raise
            if len(events) > 1:
                half = len(events) // 2
                await send(events[:half])
                await send(events[half:])
                return
            log.error(
                "auth refuses an audit event; it is set aside",
                extra={"event_id": events[0].event_id, "error": error.details()},
            )
            await asyncio.to_thread(set_aside, directory, str(events[0]))

    return send
