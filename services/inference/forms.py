"""Serves the dialects' bodies, `HttpBody` in and `HttpBody` out, in both of gRPC's forms.

On the wire a streaming RPC's answer and a unary one are alike, but gRPC sends a unary answer with
its headers and its status in one step instead of three. Calls that want no stream get that.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, cast

import grpc
from google.api import httpbody_pb2
from google.protobuf.descriptor import ServiceDescriptor

from services.kit import headers
from services.kit.guard import wrap

Context = grpc.aio.ServicerContext[Any, Any]

Whole = Callable[[httpbody_pb2.HttpBody, Context], Awaitable[httpbody_pb2.HttpBody]]
"""Answers with one message."""

Stream = Callable[[httpbody_pb2.HttpBody, Context], Awaitable[None]]
"""Answers with any number of messages, which it writes to the context, so that a hang-up reaches
it."""


class Forms(NamedTuple):
    """The two ways to answer one RPC.

    Args:
        whole: Answers calls that Envoy read as ones without a stream.
        stream: Answers any call; None for an RPC that never streams.
    """

    whole: Whole
    stream: Stream | None = None


class _FormByHeader(grpc.GenericRpcHandler):
    """Serves a streaming RPC in the unary form where the call is known to want no stream."""

    def __init__(self, handlers: Mapping[str, tuple[Any, Any]]) -> None:
        self._handlers = handlers

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Returns the handler for a call; None for another service's."""
        handlers = self._handlers.get(handler_call_details.method)
        if handlers is None:
            return None
        for key, value in handler_call_details.invocation_metadata:
            if key == headers.STREAM and value == "false":
                return handlers[0]
        return handlers[1]


def add_forms(
    service: ServiceDescriptor, forms: Mapping[str, Forms], server: grpc.aio.Server
) -> None:
    """Adds a service to the server.

    Args:
        service: The service.
        forms: How each of its RPCs is answered, by name.
        server: The server.
    """
    handlers = {
        f"/{service.full_name}/{service.methods_by_name[name].name}": _handlers(form)
        for name, form in forms.items()
    }
    server.add_generic_rpc_handlers((_FormByHeader(handlers),))


def _handlers(forms: Forms) -> tuple[Any, Any]:
    codec = {
        "request_deserializer": httpbody_pb2.HttpBody.FromString,
        "response_serializer": httpbody_pb2.HttpBody.SerializeToString,
    }
    whole = wrap(grpc.unary_unary_rpc_method_handler(cast(Any, forms.whole), **codec))
    if forms.stream is None:
        return whole, whole
    return whole, wrap(grpc.unary_stream_rpc_method_handler(cast(Any, forms.stream), **codec))
