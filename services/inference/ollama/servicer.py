"""Ollama's HTTP surface: `HttpBody` in, `HttpBody` out."""

import time
from collections.abc import Mapping
from typing import Any, cast

import grpc
from google.api import httpbody_pb2

from infermesh.inference.v1 import ollama_service_pb2
from services.inference import errors
from services.inference.accounting import Account
from services.inference.answer_headers import answer_headers
from services.inference.engines.dialect import Engine, EngineModel, Tokens
from services.inference.forms import Context, Forms, add_forms
from services.inference.guardrails.requests import check_request
from services.inference.ollama import answers, options, requests
from services.inference.ollama.pieces import JSON, LINES, Path
from services.inference.ollama.requests import Asked
from services.inference.relay import Relay
from services.inference.requests import OpenAIRequest
from services.inference.response_cache.relay import HIT
from services.kit.caller import Caller, caller_of
from services.kit.dialects import ollama_error
from services.kit.errors import MeshError
from services.kit.guardrails.guard import PromptGuard

_SERVICE = ollama_service_pb2.DESCRIPTOR.services_by_name["OllamaService"]


class OllamaServicer:
    """Serves Ollama's surface.

    Args:
        relay: The way to the engine.
        engine: The engine's dialect.
        guard: Runs the guardrails of keys that have any.
    """

    def __init__(self, relay: Relay, engine: Engine, guard: PromptGuard) -> None:
        self._relay = relay
        self._engine = engine
        self._guard = guard

    async def answer(
        self, path: Path, body: httpbody_pb2.HttpBody, context: Context
    ) -> httpbody_pb2.HttpBody:
        """Answers with one message a call that Envoy read as one without a stream."""
        began_ns = time.monotonic_ns()
        asked = requests.parse(path, body.data)
        if asked.is_stream:
            # Envoy's parser and ours differ on a body that says it twice.
            raise errors.invalid("stream", "stands in the body twice")
        caller = caller_of(cast(Any, context.invocation_metadata()))
        return await self._whole(path, asked, caller, context, began_ns)

    async def stream(self, path: Path, body: httpbody_pb2.HttpBody, context: Context) -> None:
        """Answers any call; writes to the context, so that a hang-up reaches it."""
        began_ns = time.monotonic_ns()
        asked = requests.parse(path, body.data)
        caller = caller_of(cast(Any, context.invocation_metadata()))
        if not asked.is_stream or asked.only_loads:
            await context.write(await self._whole(path, asked, caller, context, began_ns))
            return
        request, redactions = await self._request(asked, caller)
        lines: answers.Lines | None = None

        async def write(data: bytes) -> None:
            if data:
                await context.write(httpbody_pb2.HttpBody(content_type=LINES, data=data))

        async def on_objects(objects: list[dict[str, Any]]) -> None:
            nonlocal lines
            if lines is None:
                await _show(caller, redactions, request.cache, context)
                # The model that answers is known once the engine has been asked.
                lines = _lines(path, request, began_ns)
            await write(lines.feed(objects))

        try:
            tokens, metadata = await self._relay.stream_parsed(caller, request, on_objects)
        except MeshError as error:
            if lines is not None:
                await write(ollama_error(error) + b"\n")
            raise
        if lines is None:
            await _show(caller, redactions, request.cache, context)
            lines = _lines(path, request, began_ns)
        await write(lines.end(tokens, metadata))

    async def _whole(
        self, path: Path, asked: Asked, caller: Caller, context: Context, began_ns: int
    ) -> httpbody_pb2.HttpBody:
        if asked.only_loads:
            model = await self._load(caller, asked.model)
            data = answers.loaded(path, model)
            if asked.is_stream:
                return httpbody_pb2.HttpBody(content_type=LINES, data=data + b"\n")
            return httpbody_pb2.HttpBody(content_type=JSON, data=data)
        request, redactions = await self._request(asked, caller)

        def read(said: dict[str, Any]) -> bytes:
            took_ns = time.monotonic_ns() - began_ns
            is_again = _is_given_again(request)
            return answers.whole(path, request.model, said, took_ns, is_given_again=is_again)

        data = await self._relay.answer_as(caller, request, read)
        await _show(caller, redactions, request.cache, context)
        return httpbody_pb2.HttpBody(content_type=JSON, data=data)

    async def _request(self, asked: Asked, caller: Caller) -> tuple[OpenAIRequest, int]:
        """Returns what goes to the engine, and how many places of it were replaced."""
        served = self._served(caller, asked.model)
        more = options.to_openai(asked.options, self._engine.name, served.context_length)
        more |= self._thinking(asked.think, served.name)
        if asked.is_begun:
            more |= self._continuation(len(asked.fields["messages"]) - 1)
        request = requests.finish(asked, more)
        redactions = 0
        if caller.guardrails:
            redactions = await check_request(self._guard, caller.guardrails, request)
        return request, redactions

    def _served(self, caller: Caller, model: str) -> EngineModel:
        served = self._relay.admit(caller, model)
        if not served.can_chat:
            raise errors.invalid("model", f"`{served.name}` serves embeddings only")
        return served

    def _thinking(self, think: bool | str | None, model: str) -> dict[str, Any]:
        if think is None:
            return {}
        fields = self._engine.thinking(model, None if think else 0)
        if fields is None:
            does = "cannot think" if think else "cannot be kept from thinking"
            raise errors.unsupported("think", f"`{model}` {does} on {self._engine.name}.")
        return {"reasoning_effort": think} if isinstance(think, str) else fields

    def _continuation(self, place: int) -> Mapping[str, Any]:
        fields = self._engine.continuation
        if fields is None:
            raise errors.unsupported(
                f"messages[{place}]",
                f"{self._engine.name} cannot go on with a message of the assistant's.",
            )
        return fields

    async def _load(self, caller: Caller, model: str) -> str:
        """Returns the model that would answer; the call takes its turn and no tokens."""
        served = self._served(caller, model)

        async def work(account: Account) -> None:
            account.succeed(Tokens(prompt=0, completion=0))

        await self._relay.run(caller, "chat", served.name, False, work, prompt_bytes=0)
        return served.name


async def _show(caller: Caller, redactions: int, cache: str, context: Context) -> None:
    if caller.decision or redactions or cache:
        await context.send_initial_metadata(answer_headers(caller, redactions, cache))


def _lines(path: Path, request: OpenAIRequest, began_ns: int) -> answers.Lines:
    is_again = _is_given_again(request)
    return answers.Lines(path, request.model, began_ns=began_ns, is_given_again=is_again)


def _is_given_again(request: OpenAIRequest) -> bool:
    return request.cache.startswith(HIT)


def add_to_server(servicer: OllamaServicer, server: grpc.aio.Server) -> None:
    """Adds the surface to the server."""
    paths: Mapping[str, Path] = {"Chat": "chat", "Generate": "generate"}
    add_forms(_SERVICE, {name: _forms(servicer, path) for name, path in paths.items()}, server)


def _forms(servicer: OllamaServicer, path: Path) -> Forms:
    async def whole(body: httpbody_pb2.HttpBody, context: Context) -> httpbody_pb2.HttpBody:
        return await servicer.answer(path, body, context)

    async def stream(body: httpbody_pb2.HttpBody, context: Context) -> None:
        await servicer.stream(path, body, context)

    return Forms(whole, stream)
