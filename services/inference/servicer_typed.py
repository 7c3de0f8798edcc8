"""The typed surface: `Chat`, `StreamChat` and `Embed`."""

from typing import Any, cast

import grpc
import orjson

from infermesh.inference.v1 import inference_service_pb2 as pb
from infermesh.inference.v1 import inference_service_pb2_grpc
from services.inference import errors, typed
from services.inference.accounting import Account
from services.inference.answer_headers import answer_headers
from services.inference.embedder import Embedder, Vector
from services.inference.engines.dialect import Tokens
from services.inference.guardrails.requests import check_inputs, check_request
from services.inference.relay import Relay
from services.inference.requests import OpenAIRequest, check
from services.kit.caller import Caller, caller_of
from services.kit.guardrails.guard import PromptGuard

_Context = grpc.aio.ServicerContext[Any, Any]

_UNREADABLE = (AttributeError, LookupError, TypeError, ValueError)


class TypedServicer(inference_service_pb2_grpc.InferenceServiceServicer):
    """Serves typed messages over the same way to the engine.

    Args:
        relay: The way to the engine.
        embedder: Makes vectors.
        guard: Runs the guardrails of keys that have any.
    """

    def __init__(self, relay: Relay, embedder: Embedder, guard: PromptGuard) -> None:
        self._relay = relay
        self._embedder = embedder
        self._guard = guard

    async def Chat(self, request: pb.ChatRequest, context: _Context) -> pb.ChatResponse:
        """Answers with one message."""
        caller = caller_of(cast(Any, context.invocation_metadata()))
        chat = _chat(request, stream=False)
        redactions = await self._checked(caller, chat)
        _, data = await self._relay.answer(caller, chat)
        try:
            response = typed.to_response(data, chat.model)
        except _UNREADABLE:
            raise errors.failed("The engine's answer cannot be read.") from None
        await _show(caller, redactions, context)
        return response

    async def StreamChat(  # type: ignore[override]
        self, request: pb.StreamChatRequest, context: _Context
    ) -> None:
        """Answers piece by piece."""
        caller = caller_of(cast(Any, context.invocation_metadata()))
        chat = _chat(request.chat, stream=True)
        redactions = await self._checked(caller, chat)
        answer_id = ""
        has_begun = False

        async def write(response: pb.StreamChatResponse) -> None:
            nonlocal has_begun
            if not has_begun:
                has_begun = True
                await _show(caller, redactions, context)
            await context.write(response)

        async def on_objects(objects: list[dict[str, Any]]) -> None:
            nonlocal answer_id
            deltas = []
            try:
                for data in objects:
                    answer_id = answer_id or data.get("id") or ""
                    deltas += typed.to_deltas(data)
            except _UNREADABLE:
                raise errors.failed("The engine's answer cannot be read.") from None
            if deltas:
                await write(pb.StreamChatResponse(id=answer_id, model=chat.model, deltas=deltas))

        tokens, metadata = await self._relay.stream_parsed(caller, chat, on_objects)
        await write(
            pb.StreamChatResponse(
                id=answer_id,
                model=chat.model,
                usage=None if tokens is None else typed.to_usage(tokens),
                gateway_metadata=None if metadata is None else pb.GatewayMetadata(**metadata),
            )
        )

    async def Embed(self, request: pb.EmbedRequest, context: _Context) -> pb.EmbedResponse:
        """Turns texts into vectors."""
        caller = caller_of(cast(Any, context.invocation_metadata()))
        served = self._relay.admit(caller, request.model)
        if not served.can_embed:
            raise errors.invalid("model", "does not serve embeddings")
        inputs, redactions = list(request.inputs), 0
        if caller.guardrails:
            inputs, redactions = await check_inputs(self._guard, caller.guardrails, inputs)

        if caller.audits_body:
            asked = {"model": request.model, "inputs": inputs}
            self._relay.audit.note(caller, "embedding", served.name, asked)

        async def work(account: Account) -> list[Vector]:
            vectors = await self._embedder.embed(served.name, inputs, served.context_length)
            account.succeed(Tokens(prompt=sum(vector.tokens for vector in vectors), completion=0))
            return vectors

        vectors = await self._relay.run(
            caller, "embedding", served.name, False, work, prompt_bytes=request.ByteSize()
        )
        if redactions:
            await _show(caller, redactions, context)
        return pb.EmbedResponse(
            model=served.name,
            embeddings=[pb.Embedding(values=v.values, tokens=v.tokens) for v in vectors],
            usage=pb.Usage(prompt_tokens=sum(vector.tokens for vector in vectors)),
        )

    async def _checked(self, caller: Caller, chat: OpenAIRequest) -> int:
        if not caller.guardrails:
            return 0
        return await check_request(self._guard, caller.guardrails, chat)


async def _show(caller: Caller, redactions: int, context: _Context) -> None:
    if caller.decision or redactions:
        await context.send_initial_metadata(answer_headers(caller, redactions))


def _chat(request: pb.ChatRequest, *, stream: bool) -> OpenAIRequest:
    fields = typed.to_openai(request, stream=stream)
    return check("chat", orjson.dumps(fields), fields)
