"""What stands beside OpenAI's chats and completions on the same surface: rankings and tokens."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

from google.api import httpbody_pb2

from services.inference import rerank_json, tokenize_json
from services.inference.answer_headers import answer_headers
from services.inference.forms import Context, Forms
from services.inference.reranking import Reranker
from services.inference.tokenizing import Tokenizer
from services.kit.caller import Caller, caller_of

_JSON = "application/json; charset=utf-8"

Answer = Callable[[Caller, bytes], Awaitable[tuple[bytes, int]]]
"""Answers a body; returns the answer's, and how many places of it guardrails replaced."""


class MoreServicer:
    """Serves `/v1/rerank`, `/tokenize` and `/detokenize`.

    Args:
        reranker: Ranks documents.
        tokenizer: Cuts texts.
    """

    def __init__(self, reranker: Reranker, tokenizer: Tokenizer) -> None:
        self._reranker = reranker
        self._tokenizer = tokenizer

    def forms(self) -> Mapping[str, Forms]:
        """Returns how the RPCs are answered, by name."""
        return {
            "CreateRerank": Forms(_whole(self._rerank)),
            "Tokenize": Forms(_whole(self._tokenize)),
            "Detokenize": Forms(_whole(self._detokenize)),
        }

    async def _rerank(self, caller: Caller, body: bytes) -> tuple[bytes, int]:
        request = rerank_json.parse(body)
        ranked = await self._reranker.rank(caller, request.ask, request.priority)
        answer = rerank_json.answer(ranked, returns_documents=request.returns_documents)
        return answer, ranked.redactions

    async def _tokenize(self, caller: Caller, body: bytes) -> tuple[bytes, int]:
        cut = await self._tokenizer.tokenize(caller, tokenize_json.parse(body))
        return tokenize_json.answer(cut), cut.redactions

    async def _detokenize(self, caller: Caller, body: bytes) -> tuple[bytes, int]:
        model, tokens = tokenize_json.parse_tokens(body)
        model, text = await self._tokenizer.detokenize(caller, model, tokens)
        return tokenize_json.answer_text(model, text), 0


def _whole(
    answer: Answer,
) -> Callable[[httpbody_pb2.HttpBody, Context], Awaitable[httpbody_pb2.HttpBody]]:
    async def whole(body: httpbody_pb2.HttpBody, context: Context) -> httpbody_pb2.HttpBody:
        caller = caller_of(cast(Any, context.invocation_metadata()))
        data, redactions = await answer(caller, body.data)
        if caller.decision or redactions:
            await context.send_initial_metadata(answer_headers(caller, redactions))
        return httpbody_pb2.HttpBody(content_type=_JSON, data=data)

    return whole
