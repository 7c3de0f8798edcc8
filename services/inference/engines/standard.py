"""What the dialects that speak OpenAI's HTTP have in common."""

from collections.abc import Mapping
from typing import Any

import orjson

from services.inference import errors
from services.inference.engines import features
from services.inference.engines.asks import Ranking, RerankAsk, TokenizeAsk, Tokenized
from services.inference.engines.dialect import (
    EngineModel,
    EngineNotReadyError,
    EngineOptions,
    Plan,
    Tokens,
    Vector,
    count_of,
    objects_of,
    tokens_of,
)
from services.inference.engines.rerank_form import ranking_of, rerank_request
from services.inference.http_client import EngineClient
from services.inference.requests import OpenAIRequest, with_fields, written

_PATHS = {"chat": "/v1/chat/completions", "completion": "/v1/completions"}
_EMBEDDINGS = "/v1/embeddings"


class Standard:
    """An engine that speaks OpenAI's HTTP; dialects say where theirs differs.

    Args:
        options: What the operator says of it.
    """

    name = ""
    ends_with_done = True
    probe_interval_s = 0.0
    # Whether whole answers are asked for as streams too, which hanging up always stops.
    folds = False
    continuation: Mapping[str, Any] | None = None

    def __init__(self, options: EngineOptions | None = None) -> None:
        self._options = options or EngineOptions()
        self._models: dict[str, EngineModel] = {}
        key = self._options.api_key
        self.headers: Mapping[str, str] = {"authorization": f"Bearer {key}"} if key else {}

    def plan(self, request: OpenAIRequest) -> Plan:
        """Passes the request on; a stream is asked for its usage."""
        features.check(self.name, request, self._models.get(request.model))
        changes = self._changes(request)
        is_folded = self.folds and not request.is_stream
        if is_folded:
            changes["stream"] = True
        asks_usage = (request.is_stream or is_folded) and not request.wants_usage
        if asks_usage:
            options = request.fields.get("stream_options") or {}
            changes["stream_options"] = {**options, "include_usage": True}
        return Plan(
            path=self._path(request),
            body=with_fields(request, changes),
            is_folded=is_folded,
            hides_usage=asks_usage,
        )

    def _changes(self, request: OpenAIRequest) -> dict[str, Any]:
        """Returns fields that the engine gets in another form."""
        return {}

    def _path(self, request: OpenAIRequest) -> str:
        return _PATHS[request.kind]

    def restore(self, last: bytes, usage: bytes) -> bytes:
        """Changes nothing: asking for usage adds an event and touches no other."""
        return last

    def total(self, usages: list[dict[str, Any]], request: OpenAIRequest) -> Tokens:
        """Takes the last, which is over all answers."""
        return tokens_of(usages[-1]) if usages else Tokens()

    def embedding(
        self, model: str, text: str | list[int], dimensions: int | None = None
    ) -> tuple[str, bytes]:
        """Asks for the vector as numbers, not as base64."""
        fields: dict[str, Any] = {"model": model, "input": text, "encoding_format": "float"}
        if dimensions is not None:
            fields["dimensions"] = dimensions
        return _EMBEDDINGS, orjson.dumps(fields)

    def vector(self, answer: bytes) -> Vector:
        """Reads OpenAI's answer."""
        data = orjson.loads(answer)
        return vector_of(data["data"][0]["embedding"], data["usage"].get("prompt_tokens"))

    def is_too_long(self, status: int, error: dict[str, Any]) -> bool:
        """Knows the refusal by OpenAI's code."""
        return error.get("code") == "context_length_exceeded"

    async def count_tokens(self, client: EngineClient, model: str, text: str) -> int | None:
        """Says nothing: OpenAI's HTTP has no tokenizer."""
        return None

    async def count_prompt(self, client: EngineClient, request: OpenAIRequest) -> int | None:
        """Says nothing: OpenAI's HTTP has no tokenizer."""
        return None

    def reranking(self, ask: RerankAsk) -> tuple[str, bytes]:
        """Asks `/v1/rerank`, which is not OpenAI's but that of most who speak OpenAI's HTTP."""
        return rerank_request(ask)

    def ranking(self, answer: bytes) -> Ranking:
        """Reads Jina's form and its kin."""
        return ranking_of(answer)

    async def tokenize(self, client: EngineClient, ask: TokenizeAsk) -> Tokenized | None:
        """Says nothing: OpenAI's HTTP has no tokenizer."""
        return None

    async def detokenize(self, client: EngineClient, model: str, tokens: list[int]) -> str | None:
        """Says nothing: OpenAI's HTTP has no tokenizer."""
        return None

    def thinking(self, model: str, budget: int | None) -> dict[str, Any] | None:
        """Leaves it to the model: OpenAI's HTTP bounds no thinking."""
        return None if budget else {}

    def _remember(self, models: list[EngineModel]) -> tuple[EngineModel, ...]:
        """Keeps what is known of the models, and returns those that are to be served.

        Raises:
            EngineNotReadyError: There is none.
        """
        if self._options.models:
            known = {model.name: model for model in models}
            models = [known.get(model.name, model) for model in self._options.models]
        if not models:
            raise EngineNotReadyError("the engine serves no model")
        self._models = {model.name: model for model in models}
        return tuple(models)


def vector_of(values: object, tokens: object) -> Vector:
    """Returns a vector. Raises `TypeError` where it is none."""
    count = count_of(tokens)
    if not isinstance(values, list) or count is None:
        raise TypeError("not a vector with its tokens")
    return Vector(values, count)


def listed(listing: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the entries of OpenAI's list of models that have a name."""
    return [e for e in objects_of(listing.get("data")) if isinstance(e.get("id"), str) and e["id"]]


async def makes_vectors(client: EngineClient, model: str) -> bool:
    """Tries to embed with a model: no page of the engine's says whether it can.

    Raises:
        EngineNotReadyError: The engine is busy starting.
        EngineConnectionError: The engine does not answer.
        EngineTimeoutError: The engine does not answer in time.
    """
    body = orjson.dumps({"model": model, "input": "a", "encoding_format": "float"})
    with await client.post(_EMBEDDINGS, body) as trial:
        await trial.read_all()
    if trial.status in (429, 502, 503, 504):
        raise EngineNotReadyError(f"{_EMBEDDINGS} answers {trial.status}")
    return trial.status == 200


async def ranks(client: EngineClient, model: str) -> bool:
    """Tries to rank a document with a model: no page of the engine's says whether it can.

    Raises:
        EngineNotReadyError: The engine is busy starting.
        EngineConnectionError: The engine does not answer.
        EngineTimeoutError: The engine does not answer in time.
    """
    path, body = rerank_request(RerankAsk(model=model, query="a", documents=["a"]))
    with await client.post(path, body) as trial:
        await trial.read_all()
    if trial.status in (429, 502, 503, 504):
        raise EngineNotReadyError(f"{path} answers {trial.status}")
    return trial.status == 200


async def tokenized(
    client: EngineClient, fields: dict[str, Any], path: str = "/tokenize"
) -> int | None:
    """Returns how many tokens an engine's tokenizer makes of a text; None where it does not say.

    Raises:
        EngineConnectionError: The engine does not answer.
        EngineTimeoutError: The engine does not answer in time.
    """
    with await client.post(path, orjson.dumps(fields)) as exchange:
        answer = await exchange.read_all()
    if exchange.status != 200:
        return None
    try:
        tokens = orjson.loads(answer)["tokens"]
    except (orjson.JSONDecodeError, LookupError, TypeError):
        return None
    return len(tokens) if isinstance(tokens, list) else None


async def asked(
    client: EngineClient, path: str, fields: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Returns what an engine's page says of a request; None where the engine has no such page.

    Raises:
        MeshError: The engine refuses the request, or answers with something else.
        EngineConnectionError: The engine does not answer.
        EngineTimeoutError: The engine does not answer in time.
    """
    with await client.post(path, written(fields)) as exchange:
        answer = await exchange.read_all()
    if exchange.status in (404, 405, 501):
        return None
    if exchange.status != 200:
        raise errors.from_response(exchange.status, answer)
    try:
        said = orjson.loads(answer)
    except orjson.JSONDecodeError:
        said = None
    if not isinstance(said, dict):
        raise errors.failed(f"The engine's {path} cannot be read.")
    return said
