"""OpenAI's HTTP surface: `HttpBody` in, `HttpBody` out."""

from collections.abc import Mapping
from typing import Any, cast

import grpc
import orjson
from google.api import httpbody_pb2

from infermesh.inference.v1 import openai_service_pb2
from services.inference import errors
from services.inference.answer_headers import answer_headers
from services.inference.forms import Context, Forms, add_forms
from services.inference.guardrails.requests import check_request
from services.inference.keepalive import COMMENT, KeepAlive
from services.inference.relay import Relay
from services.inference.requests import Kind, OpenAIRequest, parse
from services.inference.streams import Write, WriteNow
from services.kit.caller import Caller, caller_of
from services.kit.errors import MeshError
from services.kit.guardrails.guard import PromptGuard

_JSON = "application/json; charset=utf-8"
_SERVICE = openai_service_pb2.DESCRIPTOR.services_by_name["OpenAIService"]


class OpenAIServicer:
    """Serves OpenAI's surface.

    Args:
        relay: The way to the engine.
        guard: Runs the guardrails of keys that have any.
        keepalive_s: After how long a silence a stream's caller is sent a comment; 0 is never.
    """

    def __init__(self, relay: Relay, guard: PromptGuard, keepalive_s: float) -> None:
        self._relay = relay
        self._guard = guard
        self._keepalive_s = keepalive_s

    async def answer(
        self, kind: Kind, body: httpbody_pb2.HttpBody, context: Context
    ) -> httpbody_pb2.HttpBody:
        """Answers with one message a call that Envoy read as one without a stream."""
        request = parse(kind, body.data)
        if request.is_stream:
            # Envoy's parser and ours differ on a body that says it twice.
            raise errors.invalid("stream", "stands in the body twice")
        caller = caller_of(cast(Any, context.invocation_metadata()))
        redactions = 0
        if caller.guardrails:
            redactions = await check_request(self._guard, caller.guardrails, request)
        raw, data = await self._relay.answer(caller, request)
        if caller.decision or redactions or request.cache:
            await context.send_initial_metadata(answer_headers(caller, redactions, request.cache))
        return httpbody_pb2.HttpBody(
            content_type=_JSON, data=orjson.dumps(data) if raw is None else raw
        )

    async def stream(self, kind: Kind, body: httpbody_pb2.HttpBody, context: Context) -> None:
        """Answers any call; writes to the context, so that a hang-up reaches it."""
        request = parse(kind, body.data)
        caller = caller_of(cast(Any, context.invocation_metadata()))
        content_type: str | None = None
        redactions = 0
        if caller.guardrails:
            redactions = await check_request(self._guard, caller.guardrails, request)

        async def write(data: bytes, first_content_type: str) -> None:
            nonlocal content_type
            if content_type is None:
                content_type = first_content_type
                if caller.decision or redactions or request.cache:
                    said = answer_headers(caller, redactions, request.cache)
                    await context.send_initial_metadata(said)
            await context.write(httpbody_pb2.HttpBody(content_type=content_type, data=data))

        # gRPC's own context has none.
        send_now = getattr(context, "write_now", None)

        def write_now(data: bytes) -> bool:
            body = httpbody_pb2.HttpBody(content_type=content_type, data=data)
            return send_now is not None and bool(send_now(body))

        if not request.is_stream:
            raw, data = await self._relay.answer(caller, request)
            await write(orjson.dumps(data) if raw is None else raw, _JSON)
        elif self._keepalive_s:
            await self._stream_alive(caller, request, write, write_now)
        else:
            await self._relay.stream(caller, request, write, write_now=write_now)

    async def _stream_alive(
        self, caller: Caller, request: OpenAIRequest, write: Write, write_now: WriteNow
    ) -> None:
        alive = KeepAlive(self._keepalive_s, write, COMMENT, write_now)
        try:
            await self._relay.stream(caller, request, alive.write, alive.start, alive.write_now)
        except MeshError as error:
            if alive.is_alone:
                # The status went out with the comment.
                await alive.write(b"data: %b\n\n" % error.openai_body().encode())
            raise
        finally:
            alive.stop()


def add_to_server(
    servicer: OpenAIServicer, more: Mapping[str, Forms], server: grpc.aio.Server
) -> None:
    """Adds the surface to the server.

    Args:
        servicer: Answers chats and completions.
        more: How the other RPCs are answered, by name.
        server: The server.
    """
    kinds: Mapping[str, Kind] = {"CreateChatCompletion": "chat", "CreateCompletion": "completion"}
    forms = {name: _forms(servicer, kind) for name, kind in kinds.items()}
    add_forms(_SERVICE, {**forms, **more}, server)


def _forms(servicer: OpenAIServicer, kind: Kind) -> Forms:
    async def whole(body: httpbody_pb2.HttpBody, context: Context) -> httpbody_pb2.HttpBody:
        return await servicer.answer(kind, body, context)

    async def stream(body: httpbody_pb2.HttpBody, context: Context) -> None:
        await servicer.stream(kind, body, context)

    return Forms(whole, stream)
