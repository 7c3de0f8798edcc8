"""Says what a call is about, and how that was before the call, for the audit log."""

import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
from google.api import annotations_pb2
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from services.kit.audit_snapshot import MAX_ID_CHARS, find_holder, resource_id, snapshot
from services.kit.errors import MeshError

log = logging.getLogger(__name__)

_Context = grpc.aio.ServicerContext[Any, Any]

Lookup = Callable[[Any, _Context], Awaitable[Message]]
"""Returns the resource that a request is about to change; raises a `MeshError` where it cannot."""

_VERB = re.compile(r"[A-Z][a-z]+")
_VARIABLE = re.compile(r"\{([a-z0-9_.]+)")


class Resource:
    """What the calls to one RPC are about.

    Args:
        method: The RPC, such as `UpdateThing`.
        servicer: Serves it, and `GetThing` where the service has that.
        lookup: What to ask instead of `GetThing`.
    """

    def __init__(
        self, method: MethodDescriptor, servicer: Any, lookup: Lookup | None = None
    ) -> None:
        self.method = method
        verb = _VERB.match(method.name)
        noun = method.name[verb.end() :] if verb else ""
        get = method.containing_service.methods_by_name.get(f"Get{noun}") if noun else None
        self._names = [] if get is None else [field.name for field in get.input_type.fields]
        self._variables = _path_variables(method)
        self._lookup = lookup
        # What is created was not there before.
        if lookup is None and get is not None and verb and verb[0] != "Create":
            self._lookup = _make_lookup(servicer, get)

    def name(self, message: Message) -> str:
        """Returns the id of what a request or a response is about; empty where it does not say."""
        found = "" if self._names else "/".join(filter(None, self._values(message)))
        return found[:MAX_ID_CHARS] or resource_id(message, self._names)

    async def before(self, request: Any, context: _Context) -> str:
        """Returns the resource as it is, as JSON; empty where there is none to be read."""
        if self._lookup is None:
            return ""
        try:
            return snapshot(await self._lookup(request, context))
        except MeshError as error:
            # There is none, or the store is away: the call itself says so.
            log.debug("nothing to tell of before a change", extra={"reason": error.reason_name})
        except Exception:
            log.exception("the state before a change cannot be read")
        return ""

    def _values(self, message: Message) -> Sequence[str]:
        found = []
        for path in self._variables:
            value: Any = message
            for name in path.split("."):
                value = getattr(value, name, "")
            found.append(str(value))
        return found


def _path_variables(method: MethodDescriptor) -> Sequence[str]:
    """Returns the fields of a request that stand in its REST path."""
    rule: Any = method.GetOptions().Extensions[annotations_pb2.http]
    pattern = rule.WhichOneof("pattern")
    return () if pattern in (None, "custom") else _VARIABLE.findall(getattr(rule, pattern))


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
