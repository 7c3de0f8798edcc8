"""OpenAI's HTTP surface: `HttpBody` in, `HttpBody` out."""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import grpc
import orjson
from google.api import httpbody_pb2

from infermesh.inference.v1 import openai_service_pb2
from services.inference import errors
from services.inference.relay import Relay
from services.inference.requests import Kind, parse
from services.kit import headers
from services.kit.caller import caller_of
from services.kit.guard import wrap

_JSON = "application/json; charset=utf-8"
_SERVICE = openai_service_pb2.DESCRIPTOR.services_by_name["OpenAIService"]

_Context = grpc.aio.ServicerContext[Any, Any]


class OpenAIServicer:
    """Serves OpenAI's surface.

    Args:
        relay: The way to the engine.
    """

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    async def answer(
        self, kind: Kind, body: httpbody_pb2.HttpBody, context: _Context
    ) -> httpbody_pb2.HttpBody:
        """Answers with one message a call that Envoy read as one without a stream."""
        request = parse(kind, body.data)
        if request.is_stream:
            # Envoy's parser and ours differ on a body that says it twice.
            raise errors.invalid("stream", "stands in the body twice")
        caller = caller_of(cast(Any, context.invocation_metadata()))
        raw, data = await self._relay.answer(caller, request)
        if caller.decision:
            await context.send_initial_metadata(((headers.DECISION, caller.decision),))
        return httpbody_pb2.HttpBody(
            content_type=_JSON, data=orjson.dumps(data) if raw is None else raw
        )

    async def stream(self, kind: Kind, body: httpbody_pb2.HttpBody, context: _Context) -> None:
        """Answers any call; writes to the context, so that a hang-up reaches it."""
        request = parse(kind, body.data)
        caller = caller_of(cast(Any, context.invocation_metadata()))
        content_type: str | None = None

        async def write(data: bytes, first_content_type: str) -> None:
            nonlocal content_type
            if content_type is None:
                content_type = first_content_type
                if caller.decision:
                    await context.send_initial_metadata(((headers.DECISION, caller.decision),))
            await context.write(httpbody_pb2.HttpBody(content_type=content_type, data=data))

        if request.is_stream:
            await self._relay.stream(caller, request, write)
            return
        raw, data = await self._relay.answer(caller, request)
        await write(orjson.dumps(data) if raw is None else raw, _JSON)


class _Forms(NamedTuple):
    whole: Any
    stream: Any


class _FormByHeader(grpc.GenericRpcHandler):
    """Serves a streaming RPC in the unary form where the call is known to want no stream.

    On the wire the two are alike, but gRPC sends a unary answer with its headers and its status in
    one step instead of three.
    """

    def __init__(self, forms: Mapping[str, _Forms]) -> None:
        self._forms = forms

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Returns the handler for a call; None for another service's."""
        forms = self._forms.get(handler_call_details.method)
        if forms is None:
            return None
        for key, value in handler_call_details.invocation_metadata:
            if key == headers.STREAM and value == "false":
                return forms.whole
        return forms.stream


def add_to_server(servicer: OpenAIServicer, server: grpc.aio.Server) -> None:
    """Adds the surface to the server."""
    kinds: Mapping[str, Kind] = {"CreateChatCompletion": "chat", "CreateCompletion": "completion"}
    forms = {
        f"/{_SERVICE.full_name}/{method.name}": _forms(servicer, kinds[method.name])
        for method in _SERVICE.methods
    }
    server.add_generic_rpc_handlers((_FormByHeader(forms),))


def _forms(servicer: OpenAIServicer, kind: Kind) -> _Forms:
    async def whole(body: httpbody_pb2.HttpBody, context: _Context) -> httpbody_pb2.HttpBody:
        return await servicer.answer(kind, body, context)

    async def stream(body: httpbody_pb2.HttpBody, context: _Context) -> None:
        await servicer.stream(kind, body, context)

    codec = {
        "request_deserializer": httpbody_pb2.HttpBody.FromString,
        "response_serializer": httpbody_pb2.HttpBody.SerializeToString,
    }
    return _Forms(
        wrap(grpc.unary_unary_rpc_method_handler(cast(Any, whole), **codec)),
        wrap(grpc.unary_stream_rpc_method_handler(cast(Any, stream), **codec)),
    )
