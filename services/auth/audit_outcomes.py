"""Writes down how calls to auth's own services ended, and what they changed."""

import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, cast

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from services.auth.audit import Recorder
from services.auth.audit_snapshot import find_holder, resource_id, snapshot
from services.kit import guard
from services.kit.errors import MeshError

log = logging.getLogger(__name__)

_Context = grpc.aio.ServicerContext[Any, Any]
_Handle = Callable[[Any, _Context], Awaitable[Any]]

Lookup = Callable[[Any, _Context], Awaitable[Message]]
"""Returns the resource that a request is about to change; raises a `MeshError` where it cannot."""

_ON_ONE = re.compile(r"(?:Create|Get|Update|Delete|Revoke|Rotate|Set)([A-Z]\w+)")
_CHANGES = re.compile(r"(?:Update|Delete|Revoke|Rotate|Set)[A-Z]")
_READS = re.compile(r"(?:Get|List|Verify)[A-Z]")


def audited(
    server: grpc.aio.Server,
    recorder: Recorder,
    servicer: Any,
    lookups: Mapping[str, Lookup] | None = None,
) -> grpc.aio.Server:
    """Returns a stand-in for `server` that guards handlers as `guarded` does and records outcomes.

    Of an RPC such as `UpdateThing`, the resource before the change is what the servicer's
    `GetThing` answers for the same id. It is read just before, not in the same transaction: of
    two changes at once both may tell of the same state before.

    Args:
        server: The server.
        recorder: Where outcomes go.
        servicer: Whose handlers are added.
        lookups: By method, what to ask instead of `Get…`.
    """
    return cast(grpc.aio.Server, _AuditedServer(server, recorder, servicer, lookups or {}))


class _AuditedServer:
    def __init__(
        self,
        server: grpc.aio.Server,
        recorder: Recorder,
        servicer: Any,
        lookups: Mapping[str, Lookup],
    ) -> None:
        self._server = server
        self._recorder = recorder
        self._servicer = servicer
        self._lookups = lookups

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Does nothing: `add_registered_method_handlers` gets the same handlers."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Adds a service's handlers, each wrapped."""
        # The stubs have no types here, and disagree with themselves about it.
        find: Any = descriptor_pool.Default().FindServiceByName  # type: ignore[no-untyped-call,unused-ignore]
        descriptor: ServiceDescriptor = find(service)
        wrapped = {name: self._wrap(descriptor, name, each) for name, each in handlers.items()}
        generic = grpc.method_handlers_generic_handler(service, wrapped)
        self._server.add_generic_rpc_handlers((generic,))

    def _wrap(self, service: ServiceDescriptor, name: str, handler: Any) -> Any:
        guarded = guard.wrap(handler)
        if guarded.unary_unary is None:
            raise TypeError(f"{service.full_name}/{name}: only unary calls have an outcome")
        get = _find_get(service, name)
        lookup = self._lookups.get(name)
        if lookup is None and get is not None and _CHANGES.match(name):
            lookup = _make_lookup(self._servicer, get)
        names = [] if get is None else [field.name for field in get.input_type.fields]
        rpc = f"/{service.full_name}/{name}"
        outer: Any = self._handle(rpc, guarded.unary_unary, lookup, names)
        return grpc.unary_unary_rpc_method_handler(
            outer, guarded.request_deserializer, guarded.response_serializer
        )

    def _handle(
        self, rpc: str, inner: _Handle, lookup: Lookup | None, names: Sequence[str]
    ) -> _Handle:
        is_read = _READS.match(rpc.rpartition("/")[2]) is not None

        async def handle(request: Any, context: _Context) -> Any:
            metadata = {k: str(v) for k, v in context.invocation_metadata() or ()}
            resource = resource_id(request, names)
            before = await _before(lookup, request, context) if lookup else ""

            def record(outcome: str, after: str = "") -> None:
                self._recorder.outcome(
                    rpc, metadata, outcome, resource=resource, before=before, after=after
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
            resource = resource or resource_id(response, names)
            record("OK", "" if is_read else snapshot(response))
            return response

        return handle


def _find_get(service: ServiceDescriptor, name: str) -> MethodDescriptor | None:
    match = _ON_ONE.fullmatch(name)
    return service.methods_by_name.get(f"Get{match[1]}") if match else None


def _make_lookup(servicer: Any, get: MethodDescriptor) -> Lookup:
    request_class = message_factory.GetMessageClass(get.input_type)
    names = [field.name for field in get.input_type.fields]
    handle = getattr(servicer, get.name)

    async def lookup(request: Any, context: _Context) -> Message:
        holder = find_holder(request, names)  # `UpdateThing` may hold the thing, with its id
        ids = {} if holder is None else {name: getattr(holder, name) for name in names}
        found: Message = await handle(request_class(**ids), context)
        return found

    return lookup


async def _before(lookup: Lookup, request: Any, context: _Context) -> str:
    try:
        return snapshot(await lookup(request, context))
    except MeshError:
        return ""  # There is none, or the store is away: the call itself says so.
    except Exception:
        log.exception("the state before a change cannot be read")
        return ""
