"""Ranks documents by how well they answer a query."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from infermesh.errors.v1 import errors_pb2
from services.inference import errors
from services.inference.accounting import Account
from services.inference.engines.asks import Ranking, RerankAsk
from services.inference.engines.dialect import Engine, Tokens
from services.inference.fair_queue import Priority
from services.inference.guardrails.body import BodyTexts
from services.inference.http_client import EngineClient
from services.inference.relay import Relay
from services.kit.caller import Caller
from services.kit.errors import MeshError
from services.kit.guardrails.guard import PromptGuard

# What an engine says that has no such page, or was not started for it.
_NO_SUCH_PAGE = frozenset({404, 405, 501})
_UNREADABLE = (AttributeError, LookupError, TypeError, ValueError)


class Result(NamedTuple):
    """One document: its place in the request, its score, and its text."""

    place: int
    score: float
    document: str


@dataclass(frozen=True, slots=True)
class Ranked:
    """An answer.

    Attributes:
        id: A name for it that no other has.
        model: The model that answered.
        results: The documents, best first.
        tokens: The prompt's tokens; None is unknown.
        metadata: How it came about, for callers that want to see it.
        redactions: How many places the key's guardrails replaced.
    """

    id: str
    model: str
    results: list[Result]
    tokens: int | None
    metadata: dict[str, Any] | None
    redactions: int


class Reranker:
    """Ranks with one engine.

    Args:
        relay: The way to the engine.
        engine: The engine's dialect.
        client: Connections to it.
        guard: Runs the guardrails of keys that have any.
    """

    def __init__(
        self, relay: Relay, engine: Engine, client: EngineClient, guard: PromptGuard
    ) -> None:
        self._relay = relay
        self._engine = engine
        self._client = client
        self._guard = guard

    async def rank(
        self, caller: Caller, ask: RerankAsk, priority: Priority = Priority.NORMAL
    ) -> Ranked:
        """Returns the documents by how well they answer.

        Raises:
            MeshError: The request is refused or was not answered; `UNSUPPORTED` where the engine
                ranks nothing.
        """
        served = self._relay.admit(caller, ask.model)
        ask = replace(ask, model=served.name)
        redactions = 0
        if caller.guardrails:
            ask, redactions = await self._checked(caller, ask)
        if caller.audits_body:
            self._relay.audit.note(caller, "rerank", served.name, _fields(ask))
        path, body = self._engine.reranking(ask)

        async def work(account: Account) -> tuple[Ranking, dict[str, Any] | None]:
            ranking = await self._ask(ask, path, body, served.context_length)
            account.succeed(Tokens(prompt=ranking.tokens, completion=0))
            if not caller.decision:
                return ranking, None
            return ranking, self._relay.describe(caller, account, served.name)

        ranking, metadata = await self._relay.run(
            caller, "rerank", served.name, False, work, priority=priority, prompt_bytes=len(body)
        )
        return Ranked(
            id=f"rerank-{uuid.uuid4().hex}",
            model=served.name,
            results=[Result(at, score, ask.documents[at]) for at, score in ranking.scores],
            tokens=ranking.tokens,
            metadata=metadata,
            redactions=redactions,
        )

    async def _ask(self, ask: RerankAsk, path: str, body: bytes, context_length: int) -> Ranking:
        with await self._client.post(path, body) as exchange:
            answer = await exchange.read_all()
        if exchange.status != 200:
            raise await self._refusal(ask, context_length, exchange.status, answer)
        try:
            ranking = self._engine.ranking(answer)
        except _UNREADABLE:
            raise errors.failed("The engine's ranking cannot be read.") from None
        count = len(ask.documents)
        wanted = count if ask.top_n is None else min(ask.top_n, count)
        places = {place for place, _ in ranking.scores}
        if len(places) < max(wanted, len(ranking.scores)) or max(places) >= count:
            raise errors.failed("The engine's ranking is not of the documents that it got.")
        return Ranking(ranking.scores[:wanted], ranking.tokens)

    async def _refusal(
        self, ask: RerankAsk, context_length: int, status: int, answer: bytes
    ) -> MeshError:
        refusal = errors.from_response(status, answer)
        if status in _NO_SUCH_PAGE and not errors.is_of_model(answer):
            return errors.unsupported(
                "model", f"`{ask.model}` ranks no documents on {self._engine.name}."
            )
        if not context_length or refusal.reason == errors_pb2.ERROR_REASON_OVERLOADED:
            return refusal
        # Engines have several ways of failing on a long text; its length decides.
        index = max(range(len(ask.documents)), key=lambda at: len(ask.documents[at]))
        text = f"{ask.query} {ask.documents[index]}"
        tokens = await self._engine.count_tokens(self._client, ask.model, text)
        if tokens is None or tokens <= context_length:
            return refusal
        return MeshError(
            errors_pb2.ERROR_REASON_INPUT_TOO_LONG,
            f"documents[{index}] and the query are longer than the model's context of "
            f"{context_length} tokens.",
            param=f"documents[{index}]",
            metadata={"index": str(index), "max_tokens": str(context_length)},
        )

    async def _checked(self, caller: Caller, ask: RerankAsk) -> tuple[RerankAsk, int]:
        fields = _fields(ask)
        texts = BodyTexts(fields)
        await self._guard.check(caller.guardrails, texts.prompt)
        texts.written()
        query, documents = fields.pop("query"), fields.pop("documents")
        del fields["model"]
        checked = replace(ask, query=query, documents=documents, options=fields)
        return checked, texts.prompt.redactions


def _fields(ask: RerankAsk) -> dict[str, Any]:
    own: Mapping[str, Any] = {
        "model": ask.model,
        "query": ask.query,
        "documents": list(ask.documents),
    }
    return {**ask.options, **own}
