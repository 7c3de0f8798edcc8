"""The RPCs of the Files API."""

import secrets
from collections.abc import AsyncIterator
from typing import Any

import grpc
import orjson
from google.api import httpbody_pb2

from infermesh.errors.v1 import errors_pb2
from infermesh.jobs.v1 import file_service_pb2 as pb
from infermesh.jobs.v1 import file_service_pb2_grpc
from services.jobs import listing
from services.jobs.errors import invalid, unsupported
from services.jobs.files.multipart import Form
from services.jobs.files.store import File, FileStore
from services.jobs.identity import scope_of
from services.kit.errors import MeshError

_Context = grpc.aio.ServicerContext[Any, Any]
_JSON = "application/json; charset=utf-8"
_BYTES = "application/octet-stream"
_DEFAULT_LIMIT = 10_000
_LEAST_TTL_S = 3600
_MOST_DIGITS = 9
_FIELDS = frozenset({"purpose", "expires_after[anchor]", "expires_after[seconds]"})


def new_file_id() -> str:
    """Returns the id of a new file."""
    return f"file-{secrets.token_hex(16)}"


def shown(file: File) -> dict[str, Any]:
    """Returns OpenAI's object of a file."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": int(file.create_time.timestamp()),
        "expires_at": int(file.expire_time.timestamp()),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


class FilesServicer(file_service_pb2_grpc.FileServiceServicer):
    """Implements FileService.

    Args:
        store: Where files are kept.
        max_bytes: The largest file.
        tenant_max_bytes: The most that one tenant's files have together.
        ttl_s: How long a file is kept, in seconds.
    """

    def __init__(
        self, store: FileStore, *, max_bytes: int, tenant_max_bytes: int, ttl_s: int
    ) -> None:
        self._store = store
        self._max_bytes = max_bytes
        self._tenant_max_bytes = tenant_max_bytes
        self._ttl_s = ttl_s

    async def CreateFile(
        self, request_iterator: AsyncIterator[httpbody_pb2.HttpBody], context: _Context
    ) -> httpbody_pb2.HttpBody:
        """Takes a file in as it comes."""
        metadata: Any = context.invocation_metadata()
        scope = scope_of(metadata)
        if await self._store.size_of(scope.tenant) >= self._tenant_max_bytes:
            raise self._no_room()
        form: Form | None = None
        file_id, number = new_file_id(), 0
        await self._store.begin(scope, file_id)

        async def append(piece: bytes) -> None:
            if await self._store.append(scope, file_id, number, piece) > self._tenant_max_bytes:
                raise self._no_room()

        try:
            async for message in request_iterator:
                if form is None:
                    form = Form(message.content_type, self._max_bytes)
                for piece in form.feed(message.data):
                    await append(piece)
                    number += 1
            if form is None:
                raise invalid("file", "is missing")
            if rest := form.rest():
                await append(rest)
            ttl_s = self._checked(form)
            file = await self._store.finish(
                file_id, form.filename, form.fields["purpose"], form.size, ttl_s
            )
        except BaseException:
            await self._store.abandon(file_id)
            raise
        return _json(shown(file))

    def _checked(self, form: Form) -> int:
        """Returns how long the file is to be kept, in seconds."""
        if unknown := form.fields.keys() - _FIELDS:
            name = min(unknown)[:64]
            raise unsupported(name, "is no field of files")
        purpose = form.fields.get("purpose")
        if purpose is None:
            raise invalid("purpose", "is missing")
        if purpose != "batch":
            raise unsupported("purpose", "only `batch` is supported")
        if form.fields.get("expires_after[anchor]", "created_at") != "created_at":
            raise invalid("expires_after[anchor]", "must be created_at")
        wanted = form.fields.get("expires_after[seconds]")
        if wanted is None:
            return self._ttl_s
        if not (wanted.isascii() and wanted.isdecimal()) or len(wanted) > _MOST_DIGITS:
            raise invalid("expires_after[seconds]", "must be a number")
        if int(wanted) < _LEAST_TTL_S:
            raise invalid("expires_after[seconds]", f"must be {_LEAST_TTL_S} or more")
        return min(int(wanted), self._ttl_s)

    def _no_room(self) -> MeshError:
        return MeshError(
            errors_pb2.ERROR_REASON_INSUFFICIENT_QUOTA,
            f"A tenant's files may have {self._tenant_max_bytes} bytes; delete some.",
        )

    async def ListFiles(
        self, request: pb.ListFilesRequest, context: _Context
    ) -> httpbody_pb2.HttpBody:
        """Lists files."""
        metadata: Any = context.invocation_metadata()
        limit = request.limit or _DEFAULT_LIMIT
        found = await self._store.list_page(
            scope_of(metadata),
            limit + 1,
            is_ascending=request.order == "asc",
            after=request.after,
            purpose=request.purpose,
        )
        rows = [shown(file) for file in found[:limit]]
        return _json(listing.listed(rows, has_more=len(found) > limit))

    async def GetFile(self, request: pb.GetFileRequest, context: _Context) -> httpbody_pb2.HttpBody:
        """Returns a file's object."""
        metadata: Any = context.invocation_metadata()
        return _json(shown(await self._store.get(scope_of(metadata), request.file_id)))

    # A coroutine that writes is cancelled where it waits; a generator stands at its `yield`.
    async def GetFileContent(  # type: ignore[override]
        self, request: pb.GetFileContentRequest, context: _Context
    ) -> None:
        """Returns what a file holds."""
        metadata: Any = context.invocation_metadata()
        file = await self._store.get(scope_of(metadata), request.file_id)
        number = 0
        while (piece := await self._store.piece(file.id, number)) is not None:
            await context.write(httpbody_pb2.HttpBody(content_type=_BYTES, data=piece))
            number += 1

    async def DeleteFile(
        self, request: pb.DeleteFileRequest, context: _Context
    ) -> httpbody_pb2.HttpBody:
        """Deletes a file."""
        metadata: Any = context.invocation_metadata()
        await self._store.delete(scope_of(metadata), request.file_id)
        return _json({"id": request.file_id, "object": "file", "deleted": True})


def _json(body: dict[str, Any]) -> httpbody_pb2.HttpBody:
    return httpbody_pb2.HttpBody(content_type=_JSON, data=orjson.dumps(body))
