"""llama.cpp's own server.

What is particular about it:

* A request that does not stream runs to its end when the caller hangs up, so every request goes as
  a stream. Progress lets prefill be cancelled too, at the end of each batch.
* A chat's stream has usage when it is asked for; then `timings` move from the last event of the
  answer to the usage event. A completion's stream always has usage, in its last event.
* With several answers each has a usage of its own, which counts the prompt again.
"""

from typing import Any

import orjson

from services.inference.engines.dialect import (
    Description,
    EngineModel,
    EngineNotReadyError,
    Load,
    Plan,
    Tokens,
    count_of,
    get,
    get_json,
    prometheus_values,
    tokens_of,
)
from services.inference.http_client import EngineClient
from services.inference.requests import OpenAIRequest, with_fields

_PATHS = {"chat": "/v1/chat/completions", "completion": "/v1/completions"}
_GAUGES = {
    b"llamacpp:requests_processing": "running",
    b"llamacpp:requests_deferred": "queued",
}
_TIMINGS = b',"timings":'


class LlamaCpp:
    """The dialect of llama.cpp's server."""

    name = "llamacpp"
    ends_with_done = True

    def __init__(self) -> None:
        self._slots: int | None = None

    def plan(self, request: OpenAIRequest) -> Plan:
        """Asks for a stream with progress, and with usage where it takes asking."""
        changes: dict[str, Any] = {}
        if not request.is_stream:
            changes["stream"] = True
        asks_usage = request.kind == "chat" and not request.wants_usage
        if asks_usage:
            options = request.fields.get("stream_options") or {}
            changes["stream_options"] = {**options, "include_usage": True}
        asks_progress = not request.fields.get("return_progress")
        if asks_progress:
            changes["return_progress"] = True
        return Plan(
            path=_PATHS[request.kind],
            body=with_fields(request, changes),
            is_folded=not request.is_stream,
            hides_usage=asks_usage,
            hides_progress=asks_progress,
        )

    def restore(self, last: bytes, usage: bytes) -> bytes:
        """Moves `timings` back to the last event of the answer."""
        start = usage.rfind(_TIMINGS)
        end = last.rfind(b"}")
        if start < 0 or end < 0:
            return last
        return last[:end] + usage[start : usage.rfind(b"}")] + last[end:]

    def total(self, usages: list[dict[str, Any]], request: OpenAIRequest) -> Tokens:
        """Sums over the answers; the `n` answers to one prompt share the prompt."""
        each = [tokens_of(usage) for usage in usages]

        def sum_of(values: list[int | None], share: int) -> int | None:
            known = [value for value in values if value is not None]
            return sum(known) // share if known and len(known) == len(values) else None

        return Tokens(
            prompt=sum_of([tokens.prompt for tokens in each], request.n),
            completion=sum_of([tokens.completion for tokens in each], 1),
            cached=sum_of([tokens.cached for tokens in each], request.n),
        )

    def is_too_long(self, status: int, error: dict[str, Any]) -> bool:
        """Knows the refusal by its type."""
        return error.get("type") == "exceed_context_size_error"

    async def count_tokens(self, client: EngineClient, text: str) -> int | None:
        """Asks `/tokenize`, special tokens included."""
        body = orjson.dumps({"content": text, "add_special": True})
        with await client.post("/tokenize", body) as exchange:
            answer = await exchange.read_all()
            if exchange.status != 200:
                return None
        tokens = orjson.loads(answer).get("tokens")
        return len(tokens) if isinstance(tokens, list) else None

    async def describe(self, client: EngineClient) -> Description:
        """Asks `/v1/models` and `/props`, and tries to embed."""
        listing = await get_json(client, "/v1/models")
        props = await get_json(client, "/props")
        self._slots = count_of(props.get("total_slots"))
        # No page says whether it serves vectors; it serves them or chats, never both.
        with await client.post("/v1/embeddings", b'{"input":"a"}') as trial:
            is_embedding = trial.status == 200
            await trial.read_all()
        models = []
        entries = listing.get("data")
        for entry in entries if isinstance(entries, list) else []:
            meta = entry.get("meta") or {}
            models.append(
                EngineModel(
                    name=str(entry.get("id", "")),
                    can_chat=not is_embedding,
                    can_embed=is_embedding,
                    context_length=count_of(meta.get("n_ctx")) or 0,
                )
            )
        if not models:
            raise EngineNotReadyError("the engine serves no model")
        return Description(version=str(props.get("build_info", ""))[:200], models=tuple(models))

    async def probe(self, client: EngineClient) -> Load | None:
        """Asks `/metrics`, which answers 503 while the model loads."""
        status, body = await get(client, "/metrics")
        if status == 501:
            # Started without its metrics: the health says no more than up or not.
            status, body = await get(client, "/health")
            return Load(slots=self._slots) if status == 200 else None
        if status != 200:
            return None
        values = prometheus_values(body, _GAUGES)
        return Load(
            running=count_of(values.get("running")),
            queued=count_of(values.get("queued")),
            slots=self._slots,
        )
