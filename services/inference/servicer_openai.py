"""OpenAI's HTTP surface: `HttpBody` in, `HttpBody` out."""

from typing import Any, cast

import grpc
import orjson
from google.api import httpbody_pb2

from infermesh.inference.v1 import openai_service_pb2_grpc
from services.inference.accounting import caller_of
from services.inference.relay import Relay
from services.inference.requests import Kind, parse
from services.kit import headers

_JSON = "application/json; charset=utf-8"

_Context = grpc.aio.ServicerContext[Any, Any]


class OpenAIServicer(openai_service_pb2_grpc.OpenAIServiceServicer):
    """Serves OpenAI's surface. Handlers write to their context, so that a hang-up reaches them.

    Args:
        relay: The way to the engine.
        node_id: The node's name, which goes back in a header.
    """

    def __init__(self, relay: Relay, node_id: str) -> None:
        self._relay = relay
        self._metadata = ((headers.NODE, node_id),)

    async def CreateChatCompletion(  # type: ignore[override]
        self, request: httpbody_pb2.HttpBody, context: _Context
    ) -> None:
        """Answers a chat."""
        await self._create("chat", request, context)

    async def CreateCompletion(  # type: ignore[override]
        self, request: httpbody_pb2.HttpBody, context: _Context
    ) -> None:
        """Completes a text."""
        await self._create("completion", request, context)

    async def _create(self, kind: Kind, body: httpbody_pb2.HttpBody, context: _Context) -> None:
        request = parse(kind, body.data)
        caller = caller_of(cast(Any, context.invocation_metadata()))
        content_type: str | None = None

        async def write(data: bytes, first_content_type: str) -> None:
            nonlocal content_type
            if content_type is None:
                # Not before the engine has answered: until then Envoy may try another node.
                await context.send_initial_metadata(self._metadata)
                content_type = first_content_type
            await context.write(httpbody_pb2.HttpBody(content_type=content_type, data=data))

        if request.is_stream:
            await self._relay.stream(caller, request, write)
            return
        raw, data = await self._relay.answer(caller, request)
        await write(orjson.dumps(data) if raw is None else raw, _JSON)
