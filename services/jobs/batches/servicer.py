"""The RPCs of the Batch API."""

import secrets
from collections.abc import Callable
from typing import Any

import grpc
import orjson
from google.api import httpbody_pb2

from infermesh.errors.v1 import errors_pb2
from infermesh.jobs.v1 import batch_service_pb2 as pb
from infermesh.jobs.v1 import batch_service_pb2_grpc
from services.jobs import listing
from services.jobs.batches.callers import Callers, NotNowError
from services.jobs.batches.requests import parse
from services.jobs.batches.store import BatchStore
from services.jobs.errors import invalid
from services.jobs.files.store import FileStore
from services.jobs.identity import scope_of
from services.kit.caller import caller_of
from services.kit.errors import MeshError

_Context = grpc.aio.ServicerContext[Any, Any]
_JSON = "application/json; charset=utf-8"
_R = errors_pb2.ErrorReason


class BatchesServicer(batch_service_pb2_grpc.BatchServiceServicer):
    """Implements BatchService.

    Args:
        store: Where batches are kept.
        files: Where inputs are.
        callers: Says what keys may do.
        poke: Called when there is a new batch, or one less to do.
        max_active: The most batches of one tenant that are not over.
    """

    def __init__(
        self,
        store: BatchStore,
        files: FileStore,
        callers: Callers,
        poke: Callable[[], None],
        max_active: int,
    ) -> None:
        self._store = store
        self._files = files
        self._callers = callers
        self._poke = poke
        self._max_active = max_active

    async def CreateBatch(
        self, request: httpbody_pb2.HttpBody, context: _Context
    ) -> httpbody_pb2.HttpBody:
        """Makes a batch."""
        metadata: Any = context.invocation_metadata() or ()
        scope, caller = scope_of(metadata), caller_of(metadata)
        asked = parse(request.data)
        await self._check_key(caller.key_id)
        file = await self._files.get(scope, asked.input_file_id, "input_file_id")
        if file.purpose != "batch":
            raise invalid("input_file_id", "the file's purpose must be `batch`")
        batch_id = f"batch_{secrets.token_hex(16)}"
        made = await self._store.create(scope, caller.key_id, batch_id, asked, self._max_active)
        if made is None:
            raise MeshError(
                _R.ERROR_REASON_RATE_LIMIT_EXCEEDED,
                f"The tenant has {self._max_active} batches that are not over.",
            )
        self._poke()
        return _json(made.shown())

    async def _check_key(self, key_id: str) -> None:
        """Refuses callers without a key of the mesh's: nobody could say later what they may."""
        try:
            is_known = await self._callers.knows(key_id)
        except NotNowError:
            raise MeshError(
                _R.ERROR_REASON_SERVICE_UNAVAILABLE,
                "A part of the mesh that the call needs does not answer.",
            ) from None
        if not is_known:
            raise MeshError(
                _R.ERROR_REASON_UNSUPPORTED,
                "A batch needs a key of the mesh's; a token of an issuer does not last as long.",
            )

    async def GetBatch(
        self, request: pb.GetBatchRequest, context: _Context
    ) -> httpbody_pb2.HttpBody:
        """Returns a batch."""
        metadata: Any = context.invocation_metadata()
        return _json((await self._store.get(scope_of(metadata), request.batch_id)).shown())

    async def ListBatches(
        self, request: pb.ListBatchesRequest, context: _Context
    ) -> httpbody_pb2.HttpBody:
        """Lists batches."""
        metadata: Any = context.invocation_metadata()
        limit = request.limit or listing.DEFAULT_LIMIT
        found = await self._store.list_page(scope_of(metadata), limit + 1, request.after)
        rows = [batch.shown() for batch in found[:limit]]
        return _json(listing.listed(rows, has_more=len(found) > limit))

    async def CancelBatch(
        self, request: pb.CancelBatchRequest, context: _Context
    ) -> httpbody_pb2.HttpBody:
        """Stops a batch."""
        metadata: Any = context.invocation_metadata()
        batch = await self._store.cancel(scope_of(metadata), request.batch_id)
        self._poke()
        return _json(batch.shown())


def _json(body: dict[str, Any]) -> httpbody_pb2.HttpBody:
    return httpbody_pb2.HttpBody(content_type=_JSON, data=orjson.dumps(body))
