"""The typed surface: chats, completions, vectors, rankings and tokens as real messages."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import grpc

from infermesh.inference.v1 import inference_service_pb2 as pb
from infermesh.inference.v1 import inference_service_pb2_grpc
from services.inference import errors, extensions, typed_streams
from services.inference.accounting import Account
from services.inference.answer_headers import answer_headers
from services.inference.embedder import Embedder, Vector
from services.inference.engines.asks import RerankAsk, TokenizeAsk
from services.inference.engines.dialect import Tokens
from services.inference.guardrails.requests import check_inputs, check_request
from services.inference.prompt_counter import PromptCounter
from services.inference.relay import Relay
from services.inference.requests import Kind, OpenAIRequest, check, written
from services.inference.reranking import Reranker
from services.inference.tokenizing import Tokenizer
from services.inference.typed import answers, settings
from services.inference.typed.chats import chat_to_json
from services.inference.typed.completions import completion_to_json
from services.inference.typed.structs import options
from services.kit.caller import Caller, caller_of
from services.kit.guardrails.guard import PromptGuard

_Context = grpc.aio.ServicerContext[Any, Any]

T = TypeVar("T")

_OF_RERANK = frozenset({"model", "query", "documents", "top_n", "return_documents"})


class TypedServicer(inference_service_pb2_grpc.InferenceServiceServicer):
    """Serves typed messages over the same way to the engine.

    Args:
        relay: The way to the engine.
        embedder: Makes vectors.
        reranker: Ranks documents.
        counter: Counts the tokens of prompts.
        tokenizer: Cuts texts.
        guard: Runs the guardrails of keys that have any.
    """

    def __init__(
        self,
        relay: Relay,
        embedder: Embedder,
        reranker: Reranker,
        counter: PromptCounter,
        tokenizer: Tokenizer,
        guard: PromptGuard,
    ) -> None:
        self._relay = relay
        self._embedder = embedder
        self._reranker = reranker
        self._counter = counter
        self._tokenizer = tokenizer
        self._guard = guard

    async def Chat(self, request: pb.ChatRequest, context: _Context) -> pb.ChatResponse:
        """Answers with one message."""
        chat = _asked("chat", chat_to_json(request, stream=False))
        return await self._answer(chat, answers.chat_response_from_json, context)

    async def StreamChat(  # type: ignore[override]
        self, request: pb.StreamChatRequest, context: _Context
    ) -> None:
        """Answers piece by piece."""
        caller = _caller(context)
        chat = _asked("chat", chat_to_json(request.chat, stream=True))
        redactions = await self._checked(caller, chat)
        stream = typed_streams.ChatStream(chat, _Writer(caller, redactions, chat, context))
        await stream.finish(*await self._relay.stream_parsed(caller, chat, stream.take))

    async def Complete(self, request: pb.CompleteRequest, context: _Context) -> pb.CompleteResponse:
        """Completes texts with one message."""
        completion = _asked("completion", completion_to_json(request, stream=False))
        return await self._answer(completion, answers.completion_response_from_json, context)

    async def StreamComplete(  # type: ignore[override]
        self, request: pb.CompleteRequest, context: _Context
    ) -> None:
        """Completes texts piece by piece."""
        caller = _caller(context)
        completion = _asked("completion", completion_to_json(request, stream=True))
        redactions = await self._checked(caller, completion)
        writer = _Writer(caller, redactions, completion, context)
        stream = typed_streams.CompletionStream(completion, writer)
        await stream.finish(*await self._relay.stream_parsed(caller, completion, stream.take))

    async def Embed(self, request: pb.EmbedRequest, context: _Context) -> pb.EmbedResponse:
        """Turns texts into vectors."""
        caller = _caller(context)
        served = self._relay.admit(caller, request.model)
        if not served.can_embed:
            raise errors.invalid("model", "does not serve embeddings")
        texts, redactions = list(request.inputs), 0
        if caller.guardrails:
            if request.token_inputs:
                raise errors.unsupported(
                    "token_inputs", "must be text for an API key with guardrails"
                )
            texts, redactions = await check_inputs(self._guard, caller.guardrails, texts)
        inputs: list[str | list[int]] = [*texts, *(list(each.ids) for each in request.token_inputs)]
        dimensions = request.dimensions if request.HasField("dimensions") else None

        if caller.audits_body:
            asked = {"model": request.model, "inputs": inputs}
            self._relay.audit.note(caller, "embedding", served.name, asked)

        async def work(account: Account) -> list[Vector]:
            vectors = await self._embedder.embed(
                served.name, inputs, served.context_length, dimensions
            )
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

    async def Rerank(self, request: pb.RerankRequest, context: _Context) -> pb.RerankResponse:
        """Ranks documents."""
        caller = _caller(context)
        ask = RerankAsk(
            model=request.model,
            query=request.query,
            documents=list(request.documents),
            top_n=request.top_n if request.HasField("top_n") else None,
            options=options(request.engine_options, _OF_RERANK),
        )
        priority = extensions.check(settings.extensions_to_json(request))
        ranked = await self._reranker.rank(caller, ask, priority)
        await _show(caller, ranked.redactions, context)
        return pb.RerankResponse(
            model=ranked.model,
            results=[
                pb.RerankResult(
                    index=result.place,
                    relevance_score=result.score,
                    document=result.document if request.return_documents else None,
                )
                for result in ranked.results
            ],
            usage=None if ranked.tokens is None else pb.Usage(prompt_tokens=ranked.tokens),
            gateway_metadata=None
            if ranked.metadata is None
            else pb.GatewayMetadata(**ranked.metadata),
        )

    async def CountTokens(
        self, request: pb.CountTokensRequest, context: _Context
    ) -> pb.CountTokensResponse:
        """Counts the tokens of a chat's prompt."""
        caller = _caller(context)
        chat = _asked("chat", chat_to_json(request.chat, stream=False))
        redactions = await self._checked(caller, chat)
        tokens = await self._counter.count(caller, chat)
        await _show(caller, redactions, context)
        return pb.CountTokensResponse(model=chat.model, prompt_tokens=tokens)

    async def Tokenize(self, request: pb.TokenizeRequest, context: _Context) -> pb.TokenizeResponse:
        """Cuts a text into tokens."""
        caller = _caller(context)
        adds_special = None
        if request.HasField("add_special_tokens"):
            adds_special = request.add_special_tokens
        ask = TokenizeAsk(
            request.model, {"prompt": request.text}, adds_special, request.return_token_texts
        )
        cut = await self._tokenizer.tokenize(caller, ask)
        await _show(caller, cut.redactions, context)
        return pb.TokenizeResponse(
            model=cut.model.name,
            tokens=cut.tokenized.ids,
            token_texts=cut.tokenized.texts,
            context_length=cut.model.context_length or None,
        )

    async def Detokenize(
        self, request: pb.DetokenizeRequest, context: _Context
    ) -> pb.DetokenizeResponse:
        """Makes a text of tokens."""
        caller = _caller(context)
        model, text = await self._tokenizer.detokenize(caller, request.model, list(request.tokens))
        await _show(caller, 0, context)
        return pb.DetokenizeResponse(model=model, text=text)

    async def _answer(
        self,
        request: OpenAIRequest,
        from_json: Callable[[dict[str, Any], str], T],
        context: _Context,
    ) -> T:
        caller = _caller(context)
        redactions = await self._checked(caller, request)

        def read(data: dict[str, Any]) -> T:
            try:
                return from_json(data, request.model)
            except answers.UNREADABLE:
                raise errors.failed("The engine's answer cannot be read.") from None

        response = await self._relay.answer_as(caller, request, read)
        await _show(caller, redactions, context, request.cache)
        return response

    async def _checked(self, caller: Caller, request: OpenAIRequest) -> int:
        if not caller.guardrails:
            return 0
        return await check_request(self._guard, caller.guardrails, request)


class _Writer:
    """Writes the messages of a stream, after the headers that its caller is to see.

    Args:
        caller: Who asks.
        redactions: How many places of the prompt were replaced.
        request: What is asked.
        context: Where the messages go, so that a hang-up reaches whoever writes.
    """

    def __init__(
        self, caller: Caller, redactions: int, request: OpenAIRequest, context: _Context
    ) -> None:
        self._caller = caller
        self._request = request
        self._redactions = redactions
        self._context = context
        self._has_begun = False

    async def __call__(self, response: Any) -> None:
        if not self._has_begun:
            self._has_begun = True
            await _show(self._caller, self._redactions, self._context, self._request.cache)
        await self._context.write(response)


def _caller(context: _Context) -> Caller:
    return caller_of(cast(Any, context.invocation_metadata()))


async def _show(caller: Caller, redactions: int, context: _Context, cache: str = "") -> None:
    if caller.decision or redactions or cache:
        await context.send_initial_metadata(answer_headers(caller, redactions, cache))


def _asked(kind: Kind, fields: dict[str, Any]) -> OpenAIRequest:
    return check(kind, written(fields), fields)
