"""Serves `infermesh.auth.v1.AuditService`."""

from typing import Any

import grpc
from sqlalchemy.ext.asyncio import AsyncEngine

from infermesh.auth.v1 import audit_service_pb2 as pb
from infermesh.auth.v1 import audit_service_pb2_grpc
from infermesh.errors.v1 import errors_pb2
from services.auth import errors
from services.auth.audit_store import AuditStore
from services.auth.audit_verify import verify
from services.kit import audit_chain
from services.kit.errors import MeshError

_Context = grpc.aio.ServicerContext[Any, Any]

_DEFAULT_PAGE_SIZE = 100
_MAX_SEQUENCE = 2**63 - 1


class AuditServicer(audit_service_pb2_grpc.AuditServiceServicer):
    """Reads the audit log for callers."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._store = AuditStore(engine)

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
