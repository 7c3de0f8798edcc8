"""Wraps a service's handlers so that the audit log tells how administrative calls ended.

Which calls those are, the protos say: an RPC that a user may call is none, one that an auditor may
call reads. Of an RPC that nodes may call too, their own calls are left out.
"""

import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, cast

import grpc
import orjson
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from infermesh.access.v1 import access_pb2
from services.kit import guard, headers
from services.kit.audit_events import OutcomeRecorder
from services.kit.audit_resources import Lookup, Resource
from services.kit.audit_snapshot import snapshot
from services.kit.errors import MeshError

log = logging.getLogger(__name__)

_Context = grpc.aio.ServicerContext[Any, Any]
_Handle = Callable[[Any, _Context], Awaitable[Any]]
_Stream = Callable[[Any, _Context], AsyncIterator[Any]]

_NODE = "node"


def audited(
    server: grpc.aio.Server,
    recorder: OutcomeRecorder | None,
    servicer: Any,
    lookups: Mapping[str, Lookup] | None = None,
    *,
    reads: bool = False,
) -> grpc.aio.Server:
    """Returns a stand-in for `server` that guards handlers as `guarded` does and records outcomes.

    Of an RPC such as `UpdateThing`, the resource before the change is what the servicer's
    `GetThing` answers for the same id. It is read just before, not in the same transaction: of
    two changes at once both may tell of the same state before. A call that is answered by a
    stream has an outcome when that ends, and as `after` what was asked and the last answer.

    Args:
        server: The server.
        recorder: Where outcomes go; None where nobody takes them.
        servicer: Whose handlers are added.
        lookups: By method, what to ask instead of `Get…`.
        reads: Whether calls that only read are recorded too.
    """
    if recorder is None:
        return guard.guarded(server)
    made = _AuditedServer(server, recorder, servicer, lookups or {}, reads)
    return cast(grpc.aio.Server, made)


class _AuditedServer:
    def __init__(
        self,
        server: grpc.aio.Server,
        recorder: OutcomeRecorder,
        servicer: Any,
        lookups: Mapping[str, Lookup],
        reads: bool,
    ) -> None:
        self._server = server
        self._recorder = recorder
        self._servicer = servicer
        self._lookups = lookups
        self._reads = reads

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Does nothing: `add_registered_method_handlers` gets the same handlers."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Adds a service's handlers, each wrapped."""
        # The stubs have no types here, and disagree with themselves about it.
        find: Any = descriptor_pool.Default().FindServiceByName  # type: ignore[no-untyped-call,unused-ignore]
        descriptor: ServiceDescriptor = find(service)
        wrapped = {
            name: self._wrap(descriptor.methods_by_name[name], each)
            for name, each in handlers.items()
        }
        generic = grpc.method_handlers_generic_handler(service, wrapped)
        self._server.add_generic_rpc_handlers((generic,))

    def _wrap(self, method: MethodDescriptor, handler: Any) -> Any:
        guarded = guard.wrap(handler)
        roles = set(method.GetOptions().Extensions[access_pb2.allowed_roles])
        is_read = access_pb2.ROLE_AUDITOR in roles
        if not roles or access_pb2.ROLE_USER in roles or (is_read and not self._reads):
            return guarded
        rpc = _Rpc(
            self._recorder,
            Resource(method, self._servicer, self._lookups.get(method.name)),
            is_read=is_read,
            is_for_nodes=access_pb2.ROLE_NODE in roles,
        )
        codec = (guarded.request_deserializer, guarded.response_serializer)
        if guarded.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(rpc.unary(guarded.unary_unary), *codec)
        inner = guarded.unary_stream or guarded.stream_stream
        if inner is None or not inspect.isasyncgenfunction(inner):
            raise TypeError(f"{method.full_name}: such a call has no outcome that can be told")
        outer: Any = rpc.stream(inner)
        if guarded.request_streaming:
            return grpc.stream_stream_rpc_method_handler(outer, *codec)
        return grpc.unary_stream_rpc_method_handler(outer, *codec)


class _Rpc:
    """One RPC whose calls are recorded."""

    def __init__(
        self,
        recorder: OutcomeRecorder,
        resource: Resource,
        *,
        is_read: bool,
        is_for_nodes: bool,
    ) -> None:
        self._recorder = recorder
        self._resource = resource
        self._is_read = is_read
        self._is_for_nodes = is_for_nodes
        self._path = f"/{resource.method.containing_service.full_name}/{resource.method.name}"

    def unary(self, inner: _Handle) -> Any:
        async def handle(request: Any, context: _Context) -> Any:
            metadata = _metadata(context)
            if self._is_left_out(metadata):
                return await inner(request, context)
            await self._check_room(context)
            resource = self._resource
            name = resource.name(request)
            before = "" if self._is_read else await resource.before(request, context)

            def record(outcome: str, after: str = "") -> None:
                self._recorder.outcome(
                    self._path, metadata, outcome, resource=name, before=before, after=after
                )

            try:
                response = await inner(request, context)
            except grpc.aio.AbortError:
                record(context.code().name)
                raise
            except BaseException:
                # The caller left; what the call was to change may be changed or not.
                record("CANCELLED")
                raise
            name = name or resource.name(response)
            record("OK", "" if self._is_read else snapshot(response))
            return response

        return handle

    def stream(self, inner: _Stream) -> _Stream:
        async def handle(request: Any, context: _Context) -> AsyncIterator[Any]:
            metadata = _metadata(context)
            if self._is_left_out(metadata):
                async for response in inner(request, context):
                    yield response
                return
            await self._check_room(context)
            asked, name = "", ""
            if isinstance(request, Message):
                asked, name = snapshot(request), self._resource.name(request)
            last: Message | None = None
            is_recorded = False

            def record(outcome: str) -> None:
                nonlocal is_recorded
                if not is_recorded:
                    is_recorded = True
                    after = "" if self._is_read else _exchange(asked, last)
                    self._recorder.outcome(
                        self._path, metadata, outcome, resource=name, after=after
                    )

            # Where the caller leaves, the generator may be left for the garbage collector.
            context.add_done_callback(cast(Any, lambda _: record("CANCELLED")))
            try:
                async for last in inner(request, context):
                    yield last
            except grpc.aio.AbortError:
                record(context.code().name)
                raise
            record("OK")

        return handle

    def _is_left_out(self, metadata: Mapping[str, str]) -> bool:
        # Without a role it is a service of the mesh, past Envoy, that does as nodes do.
        return self._is_for_nodes and metadata.get(headers.ROLE, _NODE) == _NODE

    async def _check_room(self, context: _Context) -> None:
        if not self._is_read:
            try:
                self._recorder.check_room()
            except MeshError as error:
                await guard.abort(context, error)


def _metadata(context: _Context) -> dict[str, str]:
    return {key: str(value) for key, value in context.invocation_metadata() or ()}


def _exchange(asked: str, last: Message | None) -> str:
    """Returns what a stream was about, as JSON: the request, and the last answer."""
    answer = "" if last is None else snapshot(last)
    parts = {
        name: orjson.Fragment(text) for name, text in (("asked", asked), ("last", answer)) if text
    }
    return orjson.dumps(parts).decode() if parts else ""
