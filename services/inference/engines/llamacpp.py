"""llama.cpp's own server.

What is particular about it:

* A request that does not stream runs to its end when the caller hangs up, so every request goes as
  a stream. Progress lets prefill be cancelled too, at the end of each batch.
* A chat's stream has usage when it is asked for; then `timings` move from the last event of the
  answer to the usage event. A completion's stream always has usage, in its last event.
* With several answers each has a usage of its own, which counts the prompt again.
* A chat template without tools drops them in silence; `/props` says what the template can do.
* It knows the choices of tools that are words, and takes all others for `auto`.
* It passes over fields that it does not know, and fails (500) on sounds that it cannot hear.
"""

import asyncio
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import orjson

from services.inference import errors
from services.inference.engines import features
from services.inference.engines.asks import TokenizeAsk, Tokenized
from services.inference.engines.dialect import (
    Description,
    EngineModel,
    Load,
    Plan,
    Tokens,
    count_of,
    objects_of,
    share_of,
    tokens_of,
)
from services.inference.engines.llamacpp_tools import tools_of
from services.inference.engines.metrics_page import MetricsPage, metrics_pattern
from services.inference.engines.pages import get, get_json
from services.inference.engines.standard import (
    Standard,
    asked,
    listed,
    makes_vectors,
    ranks,
    tokenized,
)
from services.inference.engines.token_pages import text_of, tokenize_llamacpp
from services.inference.http_client import EngineClient
from services.inference.requests import OpenAIRequest, with_fields

_PATTERN = metrics_pattern(
    "llamacpp:requests_processing",
    "llamacpp:requests_deferred",
    "llamacpp:kv_cache_usage_ratio",
    "llamacpp:n_decode_total",
)
_METRICS_TIMEOUT_S = 1.0
_TIMINGS = b',"timings":'
_UNKNOWN = frozenset({"suffix", "echo", "functions", "function_call", "audio"})


class LlamaCpp(Standard):
    """The dialect of llama.cpp's server."""

    name = "llamacpp"
    _slots: int | None = None
    _capacity: int | None = None
    _vocabulary: int | None = None
    # Off in some builds: then what the slots hold is not asked again.
    _has_slots_page = True
    # Whether the template can make the model think; None is unknown.
    _can_think: bool | None = None
    continuation: Mapping[str, Any] | None = MappingProxyType({})

    def plan(self, request: OpenAIRequest) -> Plan:
        """Asks for a stream with progress, and with usage where it takes asking."""
        features.check("llama.cpp", request, self._models.get(request.model))
        features.refuse("llama.cpp", request.fields, _UNKNOWN)
        features.refuse_best_of("llama.cpp", request)
        changes = tools_of(request.fields) if request.kind == "chat" else {}
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
            path=self._path(request),
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

    async def count_tokens(self, client: EngineClient, model: str, text: str) -> int | None:
        """Asks `/tokenize`, special tokens included."""
        return await tokenized(client, {"content": text, "add_special": True})

    async def count_prompt(self, client: EngineClient, request: OpenAIRequest) -> int | None:
        """Has `/apply-template` write the prompt, and `/tokenize` cut it."""
        prompt = await asked(client, "/apply-template", request.fields)
        if prompt is None or not isinstance(text := prompt.get("prompt"), str):
            return None
        return await tokenized(
            client, {"content": text, "add_special": True, "parse_special": True}
        )

    def embedding(
        self, model: str, text: str | list[int], dimensions: int | None = None
    ) -> tuple[str, bytes]:
        """Cuts no vectors: it would return them whole."""
        if dimensions is not None:
            raise errors.unsupported("dimensions", "llama.cpp returns vectors whole.")
        return super().embedding(model, text)

    async def tokenize(self, client: EngineClient, ask: TokenizeAsk) -> Tokenized | None:
        """Has `/apply-template` write chats, and `/tokenize` cut."""
        return await tokenize_llamacpp(client, ask)

    async def detokenize(self, client: EngineClient, model: str, tokens: list[int]) -> str | None:
        """Asks `/detokenize`, which fails at ids that there are not."""
        if self._vocabulary is not None:
            for index, token in enumerate(tokens):
                if token >= self._vocabulary:
                    raise errors.invalid(
                        f"tokens[{index}]", f"the model has {self._vocabulary} tokens."
                    )
        return await text_of(client, "/detokenize", {"tokens": tokens}, "content")

    def thinking(self, model: str, budget: int | None) -> dict[str, Any] | None:
        """Turns it on and off in the template; the sampler ends it at the budget."""
        if self._can_think is False:
            return {} if budget == 0 else None
        fields: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": budget != 0}}
        if budget:
            fields["thinking_budget_tokens"] = budget
        return fields

    async def describe(self, client: EngineClient) -> Description:
        """Asks `/v1/models` and `/props`, and tries to embed and to rank."""
        entries = listed(await get_json(client, "/v1/models"))
        props = await get_json(client, "/props")
        self._slots = count_of(props.get("total_slots"))
        settings = props.get("default_generation_settings")
        context = count_of(settings.get("n_ctx")) if isinstance(settings, dict) else None
        self._capacity = context * self._slots if context and self._slots else None
        self._has_slots_page = True
        self._vocabulary = _vocabulary(entries)
        self._can_think = _thinks(props.get("chat_template"))
        # It serves chats, vectors or rankings, one of them only. Started for rankings it answers
        # requests for vectors too, but with a score and what stood in memory behind it.
        can_chat = not entries or not await makes_vectors(client, entries[0]["id"])
        can_rank = not can_chat and await ranks(client, entries[0]["id"])
        models = [
            _model(entry, props, can_chat=can_chat, can_rank=can_rank, context=context)
            for entry in entries
        ]
        build = props.get("build_info")
        return Description(
            version=build[:200] if isinstance(build, str) else "", models=self._remember(models)
        )

    async def probe(self, client: EngineClient) -> Load | None:
        """Asks `/metrics`, which answers 503 while the model loads, and `/slots`.

        Metrics come from the thread that computes, which may be long at one batch of a prompt; the
        health does not. An engine that answers only that is up, with a load that is unknown.
        """
        try:
            async with asyncio.timeout(_METRICS_TIMEOUT_S):
                status, body = await get(client, "/metrics")
        except TimeoutError:
            status, _ = await get(client, "/health")
            return Load(slots=self._slots) if status == 200 else None
        if status in (404, 501):
            # Started without its metrics: the health says no more than up or not.
            status, _ = await get(client, "/health")
            if status != 200:
                return None
            body = b""
        if status != 200:
            return None
        page = MetricsPage(_PATTERN, body)
        kv_use = share_of(page.mean("llamacpp:kv_cache_usage_ratio"))
        return Load(
            running=count_of(page.total("llamacpp:requests_processing")),
            queued=count_of(page.total("llamacpp:requests_deferred")),
            kv_use=await self._kv_use(client) if kv_use is None else kv_use,
            slots=self._slots,
            kv_capacity_tokens=self._capacity,
            work=page.total("llamacpp:n_decode_total"),
        )

    async def _kv_use(self, client: EngineClient) -> float | None:
        """Returns the share of the context that requests in the slots hold now."""
        if not self._has_slots_page or not self._capacity:
            return None
        status, body = await get(client, "/slots")
        if status != 200:
            self._has_slots_page = status not in (404, 501)
            return None
        try:
            slots = objects_of(orjson.loads(body))
        except orjson.JSONDecodeError:
            return None
        held = [count_of(s.get("n_prompt_tokens")) for s in slots if s.get("is_processing")]
        known = [tokens for tokens in held if tokens is not None]
        if not slots or len(known) < len(held):
            return None
        return share_of(min(sum(known) / self._capacity, 1.0))


def _vocabulary(entries: list[dict[str, Any]]) -> int | None:
    """Returns how many tokens the model knows; None where that is not said."""
    meta = entries[0].get("meta") if entries else None
    return count_of(meta.get("n_vocab")) if isinstance(meta, dict) else None


def _thinks(template: object) -> bool | None:
    """Returns whether a chat template knows of thinking: its switch, or the words around it."""
    if not isinstance(template, str):
        return None
    return any(word in template for word in ("enable_thinking", "thinking", "reasoning"))


def _model(
    entry: dict[str, Any],
    props: dict[str, Any],
    *,
    can_chat: bool,
    can_rank: bool,
    context: int | None,
) -> EngineModel:
    meta = entry.get("meta")
    template = props.get("chat_template_caps")
    senses = props.get("modalities")
    return EngineModel(
        name=entry["id"],
        can_chat=can_chat,
        can_embed=not can_chat and not can_rank,
        context_length=(count_of(meta.get("n_ctx")) if isinstance(meta, dict) else context) or 0,
        can_call_tools=not isinstance(template, dict)
        or template.get("supports_tools") is not False,
        can_see=not isinstance(senses, dict) or senses.get("vision") is not False,
        can_hear=not isinstance(senses, dict) or senses.get("audio") is not False,
        can_rank=can_rank,
    )
