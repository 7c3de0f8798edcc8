"""Serves `infermesh.auth.v1.AuditService`."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import grpc
from sqlalchemy.ext.asyncio import AsyncEngine

from infermesh.auth.v1 import audit_service_pb2 as pb
from infermesh.auth.v1 import audit_service_pb2_grpc
from infermesh.errors.v1 import errors_pb2
from services.auth import errors
from services.auth.audit_store import AuditStore
from services.auth.audit_verify import verify
from services.kit import audit_chain, headers
from services.kit.errors import MeshError

_Context = grpc.aio.ServicerContext[Any, Any]

_DEFAULT_PAGE_SIZE = 100
_MAX_SEQUENCE = 2**63 - 1


class AuditServicer(audit_service_pb2_grpc.AuditServiceServicer):
    """Reads the audit log for callers, and adds what other parts of the mesh saw.

    Args:
        engine: The database.
        takes_bodies: Whether the log holds what nodes were asked.
        now_us: The time in microseconds since 1970.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        takes_bodies: bool = False,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._engine = engine
        self._store = AuditStore(engine)
        self._takes_bodies = takes_bodies
        self._now_us = now_us

    async def ListAuditEvents(
        self, request: pb.ListAuditEventsRequest, context: _Context
    ) -> pb.ListAuditEventsResponse:
        """Returns a page of the log."""
        size = request.page_size or _DEFAULT_PAGE_SIZE
        after = _read_token(request.page_token) if request.page_token else None
        _check_times(request)
        found = list(await self._store.page(request, size + 1, after))
        token = str(found[size - 1].sequence) if len(found) > size else ""
        return pb.ListAuditEventsResponse(events=found[:size], next_page_token=token)

    async def VerifyAuditLog(
        self, request: pb.VerifyAuditLogRequest, context: _Context
    ) -> pb.VerifyAuditLogResponse:
        """Checks a stretch of the chain."""
        if request.sequence and not request.hash:
            raise MeshError(
                errors_pb2.ERROR_REASON_INVALID_ARGUMENT,
                "hash: is needed with `sequence`",
                param="hash",
            )
        hash_ = bytes.fromhex(request.hash) if request.hash else audit_chain.START
        return await verify(self._engine, request.sequence, hash_)

    async def RecordAuditEvents(
        self, request: pb.RecordAuditEventsRequest, context: _Context
    ) -> pb.RecordAuditEventsResponse:
        """Adds what another service saw; answers once that is committed."""
        self._check(request.events, pb.AUDIT_KIND_OUTCOME, pb.AUDIT_KIND_INFERENCE)
        wanted = [
            event
            for event in request.events
            if self._takes_bodies or event.kind == pb.AUDIT_KIND_OUTCOME
        ]
        return pb.RecordAuditEventsResponse(added_count=await self._store.append(wanted))

    async def RecordInference(
        self, request: pb.RecordInferenceRequest, context: _Context
    ) -> pb.RecordInferenceResponse:
        """Adds what nodes were asked; answers once that is committed."""
        self._check(request.events, pb.AUDIT_KIND_INFERENCE)
        if not self._takes_bodies:
            return pb.RecordInferenceResponse()
        metadata = dict(context.invocation_metadata() or ())
        node_key = str(metadata.get(headers.KEY_ID, ""))
        for event in request.events:
            # Whoever has a node's key can tell of any caller; that it was this node stays known.
            event.source = node_key
        return pb.RecordInferenceResponse(added_count=await self._store.append(request.events))

    def _check(self, events: Iterable[pb.AuditEvent], *kinds: "pb.AuditKind.ValueType") -> None:
        now_us = self._now_us()
        for index, event in enumerate(events):
            if event.kind not in kinds:
                names = " or ".join(f"`{pb.AuditKind.Name(kind)}`" for kind in kinds)
                raise MeshError(
                    errors_pb2.ERROR_REASON_INVALID_ARGUMENT,
                    f"events[{index}].kind: must be {names}",
                    param=f"events[{index}].kind",
                )
            # One from the future would keep retention from removing what is older.
            if event.time.ToMicroseconds() > now_us:
                event.time.FromMicroseconds(now_us)


def _read_token(token: str) -> int:
    if token.isascii() and token.isdigit() and (sequence := int(token)) <= _MAX_SEQUENCE:
        return sequence
    raise errors.invalid_page_token()


def _check_times(request: pb.ListAuditEventsRequest) -> None:
    for name in ("start_time", "end_time"):
        try:
            getattr(request, name).ToDatetime()
        except ValueError:
            raise MeshError(
                errors_pb2.ERROR_REASON_INVALID_ARGUMENT,
                f"{name}: is not a time between the years 1 and 9999",
                param=name,
            ) from None
