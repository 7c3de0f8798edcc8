"""Text Embeddings Inference: https://huggingface.github.io/text-embeddings-inference/

What is particular about it:

* It makes vectors or ranks documents, as its model does, and never chats.
* Rankings have a path and a form of their own; scores are 0 to 1 unless it is told otherwise.
* What its tokenizer says comes as lists inside a list, one for each text.
"""

from typing import Any

import orjson

from services.inference import errors
from services.inference.engines.asks import RerankAsk, TokenizeAsk, Tokenized
from services.inference.engines.dialect import (
    Description,
    EngineModel,
    EngineNotReadyError,
    Load,
    count_of,
)
from services.inference.engines.metrics_page import MetricsPage, metrics_pattern
from services.inference.engines.pages import get, get_json
from services.inference.engines.standard import Standard
from services.inference.engines.token_pages import ids_of, unreadable
from services.inference.http_client import EngineClient
from services.inference.requests import written

_PATTERN = metrics_pattern("te_queue_size", "te_request_count")
_MISSING = (404, 405, 501)


class Tei(Standard):
    """The dialect of Text Embeddings Inference."""

    name = "tei"
    _slots: int | None = None

    def reranking(self, ask: RerankAsk) -> tuple[str, bytes]:
        """Asks `/rerank`, which returns all."""
        fields = {
            **ask.options,
            "query": ask.query,
            "texts": ask.documents,
            "return_text": False,
        }
        return "/rerank", written(fields)

    async def count_tokens(self, client: EngineClient, model: str, text: str) -> int | None:
        """Asks `/tokenize`, special tokens included."""
        cut = await self.tokenize(client, TokenizeAsk(model, {"prompt": text}))
        return None if cut is None else len(cut.ids)

    async def tokenize(self, client: EngineClient, ask: TokenizeAsk) -> Tokenized | None:
        """Asks `/tokenize`."""
        if "prompt" not in ask.fields:
            raise errors.unsupported("messages", "Text Embeddings Inference knows no chats.")
        fields = {
            "inputs": ask.fields["prompt"],
            "add_special_tokens": ask.adds_special is not False,
        }
        said = await _asked(client, "/tokenize", fields)
        if said is None:
            return None
        if not isinstance(said, list) or len(said) != 1 or not isinstance(said[0], list):
            raise unreadable("/tokenize")
        tokens = [each if isinstance(each, dict) else {} for each in said[0]]
        ids = ids_of([token.get("id") for token in tokens])
        return Tokenized(ids, [str(t.get("text", "")) for t in tokens] if ask.wants_texts else None)

    async def detokenize(self, client: EngineClient, model: str, tokens: list[int]) -> str | None:
        """Asks `/decode`, special tokens included."""
        said = await _asked(client, "/decode", {"ids": tokens, "skip_special_tokens": False})
        if said is None:
            return None
        if not isinstance(said, list) or len(said) != 1 or not isinstance(said[0], str):
            raise unreadable("/decode")
        return said[0]

    async def describe(self, client: EngineClient) -> Description:
        """Asks `/info`."""
        info = await get_json(client, "/info")
        name = info.get("model_id")
        if not isinstance(name, str) or not name:
            raise EngineNotReadyError("the engine serves no model")
        self._slots = count_of(info.get("max_concurrent_requests"))
        version, kind = info.get("version"), info.get("model_type")
        model = EngineModel(
            name=name,
            can_chat=False,
            can_embed=isinstance(kind, dict) and "embedding" in kind,
            context_length=count_of(info.get("max_input_length")) or 0,
            can_rank=isinstance(kind, dict) and "reranker" in kind,
        )
        return Description(
            version=version[:200] if isinstance(version, str) else "",
            models=self._remember([model]),
        )

    async def probe(self, client: EngineClient) -> Load | None:
        """Asks `/health` and `/metrics`: the metrics answer although the model is gone."""
        status, _ = await get(client, "/health")
        if status != 200:
            return None
        status, body = await get(client, "/metrics")
        if status != 200:
            return Load(slots=self._slots)
        page = MetricsPage(_PATTERN, body)
        return Load(
            queued=count_of(page.total("te_queue_size")),
            slots=self._slots,
            work=page.total("te_request_count"),
        )


async def _asked(client: EngineClient, path: str, fields: dict[str, Any]) -> Any:
    """Returns what a page says; None where there is no such page.

    Raises:
        MeshError: The engine refuses, or does not answer with JSON.
        EngineConnectionError: It does not answer.
        EngineTimeoutError: It does not answer in time.
    """
    with await client.post(path, orjson.dumps(fields)) as exchange:
        answer = await exchange.read_all()
    if exchange.status in _MISSING:
        return None
    if exchange.status != 200:
        raise errors.from_response(exchange.status, answer)
    try:
        return orjson.loads(answer)
    except orjson.JSONDecodeError:
        raise unreadable(path) from None
