"""Anthropic's HTTP surface: `HttpBody` in, `HttpBody` out, over the same way to the engine."""

from typing import Any, cast

import grpc
import orjson
from google.api import httpbody_pb2

from infermesh.inference.v1 import anthropic_service_pb2
from services.inference import errors
from services.inference.answer_headers import answer_headers
from services.inference.anthropic.answers import to_message
from services.inference.anthropic.events import CONTENT_TYPE, EventStream
from services.inference.anthropic.requests import Asked, add, parse
from services.inference.engines.dialect import Engine
from services.inference.forms import Context, Forms, add_forms
from services.inference.guardrails.requests import check_request
from services.inference.keepalive import PING, KeepAlive
from services.inference.prompt_counter import PromptCounter
from services.inference.relay import Relay
from services.kit.caller import Caller, caller_of
from services.kit.dialects import anthropic_error
from services.kit.errors import MeshError
from services.kit.guardrails.guard import PromptGuard

_JSON = "application/json"
_SERVICE = anthropic_service_pb2.DESCRIPTOR.services_by_name["AnthropicService"]
_REQUEST_ID = "request-id"


class AnthropicServicer:
    """Serves Anthropic's surface.

    Args:
        relay: The way to the engine.
        guard: Runs the guardrails of keys that have any.
        engine: Says how it is made to think, and to go on with what is begun.
        counter: Counts prompts.
        keepalive_s: After how long a silence a stream's caller is sent a ping; 0 is never.
    """

    def __init__(
        self,
        relay: Relay,
        guard: PromptGuard,
        engine: Engine,
        counter: PromptCounter,
        keepalive_s: float = 0.0,
    ) -> None:
        self._relay = relay
        self._guard = guard
        self._engine = engine
        self._counter = counter
        self._keepalive_s = keepalive_s

    async def answer(self, body: httpbody_pb2.HttpBody, context: Context) -> httpbody_pb2.HttpBody:
        """Answers with one message a call that Envoy read as one without a stream."""
        asked = parse(body.data)
        if asked.request.is_stream:
            # Envoy's parser and ours differ on a body that says it twice.
            raise errors.invalid("stream", "stands in the body twice")
        return await self._whole(asked, context)

    async def stream(self, body: httpbody_pb2.HttpBody, context: Context) -> None:
        """Answers any call; writes to the context, so that a hang-up reaches it."""
        asked = parse(body.data)
        if not asked.request.is_stream:
            await context.write(await self._whole(asked, context))
            return
        caller, redactions = await self._prepare(asked, context)
        asked.request.wants_progress = True
        events: EventStream | None = None
        has_sent = False

        async def send(data: bytes, _: str = CONTENT_TYPE) -> None:
            nonlocal has_sent
            if not has_sent:
                has_sent = True
                said = _headers(caller, redactions, asked.request.cache)
                await context.send_initial_metadata(said)
            await context.write(httpbody_pb2.HttpBody(content_type=CONTENT_TYPE, data=data))

        alive = KeepAlive(self._keepalive_s, send, PING) if self._keepalive_s else None
        write = send if alive is None else alive.write

        async def on_objects(objects: list[dict[str, Any]]) -> None:
            nonlocal events
            if events is None:
                events = EventStream(
                    _message_id(caller),
                    asked.request.model,
                    asked.stops,
                    shows_thinking=_shows_thinking(asked),
                )
            if data := events.feed(objects):
                await write(data)

        try:
            tokens, metadata = await self._relay.stream_parsed(
                caller, asked.request, on_objects, None if alive is None else alive.start
            )
            last = b"" if events is None else events.end(tokens, metadata)
        except MeshError as error:
            if has_sent:
                said = anthropic_error(error, caller.request_id)
                await write(b"event: error\ndata: %b\n\n" % said)
            raise
        finally:
            if alive is not None:
                alive.stop()
        if last:
            await write(last)

    async def count(self, body: httpbody_pb2.HttpBody, context: Context) -> httpbody_pb2.HttpBody:
        """Counts a prompt's tokens."""
        asked = parse(body.data, counts_only=True)
        caller, redactions = await self._prepare(asked, context)
        tokens = await self._counter.count(caller, asked.request)
        await context.send_initial_metadata(_headers(caller, redactions))
        return _json({"input_tokens": tokens})

    async def _whole(self, asked: Asked, context: Context) -> httpbody_pb2.HttpBody:
        caller, redactions = await self._prepare(asked, context)

        def read(data: dict[str, Any]) -> dict[str, Any]:
            return to_message(
                {**data, "model": asked.request.model},
                _message_id(caller),
                asked.stops,
                shows_thinking=_shows_thinking(asked),
            )

        message = await self._relay.answer_as(caller, asked.request, read)
        said = _headers(caller, redactions, asked.request.cache)
        await context.send_initial_metadata(said)
        return _json(message)

    async def _prepare(self, asked: Asked, context: Context) -> tuple[Caller, int]:
        """Makes the request what may go to the engine; returns who asks, and what was replaced."""
        caller = caller_of(cast(Any, context.invocation_metadata()))
        request = asked.request
        if asked.is_begun:
            if self._engine.continuation is None:
                raise errors.unsupported(
                    f"messages[{len(request.fields['messages']) - 1}]",
                    f"{self._engine.name} cannot go on with a message of the assistant's.",
                )
            add(request, dict(self._engine.continuation))
        if asked.thinking is not None:
            model = self._relay.admit(caller, request.model).name
            fields = self._engine.thinking(model, asked.thinking.budget)
            if fields is None:
                raise errors.unsupported(
                    "thinking", f"`{model}` cannot be told so on {self._engine.name}."
                )
            add(request, fields)
        if not caller.guardrails:
            return caller, 0
        return caller, await check_request(self._guard, caller.guardrails, request)


def add_to_server(servicer: AnthropicServicer, server: grpc.aio.Server) -> None:
    """Adds the surface to the server."""
    forms = {
        "CreateMessage": Forms(servicer.answer, servicer.stream),
        "CountMessageTokens": Forms(servicer.count),
    }
    add_forms(_SERVICE, forms, server)


def _message_id(caller: Caller) -> str:
    return f"msg_{caller.request_id.replace('-', '')}"


def _shows_thinking(asked: Asked) -> bool:
    return asked.thinking is None or asked.thinking.is_shown


def _headers(caller: Caller, redactions: int, cache: str = "") -> tuple[tuple[str, str], ...]:
    # Under the name by which Anthropic's clients show it.
    return (*answer_headers(caller, redactions, cache), (_REQUEST_ID, caller.request_id))


def _json(data: dict[str, Any]) -> httpbody_pb2.HttpBody:
    return httpbody_pb2.HttpBody(content_type=_JSON, data=orjson.dumps(data))
