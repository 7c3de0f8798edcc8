"""vLLM.

What is particular about it:

* A hang-up stops a request within a few tens of milliseconds, whether it streams or not.
* Asking for usage moves `system_fingerprint` from the last event of an answer to the usage event.
* Metrics were renamed over time; both names are read, and what is not there is unknown.
* LoRA adapters stand in the list of models with the base model as `parent`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from services.inference.engines.asks import TokenizeAsk, Tokenized
from services.inference.engines.dialect import (
    Description,
    EngineModel,
    EngineNotReadyError,
    Load,
    count_of,
    share_of,
)
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
from services.inference.engines.token_pages import text_of, tokenize_vllm
from services.inference.http_client import EngineClient
from services.inference.requests import OpenAIRequest

_PATTERN = metrics_pattern(
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:num_requests_waiting_by_reason",
    "vllm:kv_cache_usage_perc",
    "vllm:gpu_cache_usage_perc",
    "vllm:cache_config_info",
    "vllm:lora_requests_info",
    "vllm:engine_sleep_state",
    "vllm:prompt_tokens_total",
    "process_start_time_seconds",
)
_FINGERPRINT = b',"system_fingerprint":'
# What of a chat makes its prompt.
_PROMPT_FIELDS = (
    *("messages", "tools", "chat_template", "chat_template_kwargs"),
    *("add_generation_prompt", "continue_final_message"),
)


class Vllm(Standard):
    """The dialect of vLLM's server."""

    name = "vllm"
    continuation: Mapping[str, Any] | None = MappingProxyType(
        {"continue_final_message": True, "add_generation_prompt": False}
    )

    def restore(self, last: bytes, usage: bytes) -> bytes:
        """Moves `system_fingerprint` back to the last event of the answer."""
        start = usage.rfind(_FINGERPRINT)
        end = last.rfind(b"}")
        if start < 0 or end < 0 or _FINGERPRINT in last:
            return last
        return last[:end] + usage[start : usage.rfind(b"}")] + last[end:]

    async def count_tokens(self, client: EngineClient, model: str, text: str) -> int | None:
        """Asks `/tokenize`."""
        return await tokenized(client, {"model": model, "prompt": text})

    async def count_prompt(self, client: EngineClient, request: OpenAIRequest) -> int | None:
        """Asks `/tokenize`, which takes chats too."""
        fields = {name: request.fields[name] for name in _PROMPT_FIELDS if name in request.fields}
        said = await asked(client, "/tokenize", {**fields, "model": request.model})
        return None if said is None else count_of(said.get("count"))

    async def tokenize(self, client: EngineClient, ask: TokenizeAsk) -> Tokenized | None:
        """Asks `/tokenize`."""
        return await tokenize_vllm(client, ask)

    async def detokenize(self, client: EngineClient, model: str, tokens: list[int]) -> str | None:
        """Asks `/detokenize`."""
        return await text_of(client, "/detokenize", {"model": model, "tokens": tokens}, "prompt")

    def thinking(self, model: str, budget: int | None) -> dict[str, Any] | None:
        """Turns it on and off in the template; a budget that the server is not set up for it
        refuses."""
        fields: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": budget != 0}}
        if budget:
            fields["thinking_token_budget"] = budget
        return fields

    async def describe(self, client: EngineClient) -> Description:
        """Asks `/v1/models` and `/version`, and tries to embed; models of vectors to rank."""
        entries = listed(await get_json(client, "/v1/models"))
        if not entries:
            raise EngineNotReadyError("the engine serves no model")
        # A server runs one base model, so that what one can do all can.
        is_embedding = await makes_vectors(client, entries[0]["id"])
        # By how near the vectors are.
        can_rank = is_embedding and await ranks(client, entries[0]["id"])
        version = (await get_json(client, "/version")).get("version")
        models = [_model(entry, is_embedding, can_rank) for entry in entries]
        return Description(
            version=version[:200] if isinstance(version, str) else "",
            models=self._remember(models),
        )

    async def probe(self, client: EngineClient) -> Load | None:
        """Asks `/metrics`, or `/health` where it is started without them."""
        status, body = await get(client, "/metrics")
        if status == 404:
            status, _ = await get(client, "/health")
            return Load() if status == 200 else None
        return load_of(MetricsPage(_PATTERN, body)) if status == 200 else None


def _model(entry: dict[str, Any], is_embedding: bool, can_rank: bool) -> EngineModel:
    parent = entry.get("parent")
    return EngineModel(
        name=entry["id"],
        can_chat=not is_embedding,
        can_embed=is_embedding,
        context_length=count_of(entry.get("max_model_len")) or 0,
        base_model=parent if isinstance(parent, str) else "",
        can_rank=can_rank,
    )


def load_of(page: MetricsPage) -> Load | None:
    """Returns the load under vLLM's names, or None where the engine sleeps."""
    for sample in page.samples("vllm:engine_sleep_state"):
        if sample.value == 0 and sample.label("sleep_state") == "awake":
            return None
    return Load(
        running=count_of(page.total("vllm:num_requests_running")),
        queued=count_of(
            page.total("vllm:num_requests_waiting", "vllm:num_requests_waiting_by_reason")
        ),
        kv_use=share_of(page.mean("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")),
        kv_capacity_tokens=_capacity(page),
        loaded_adapters=_adapters(page),
        instance=page.total("process_start_time_seconds"),
        work=page.total("vllm:prompt_tokens_total"),
    )


def _capacity(page: MetricsPage) -> int | None:
    """Returns the tokens in the caches of all engine cores."""
    total = 0
    samples = page.samples("vllm:cache_config_info")
    for sample in samples:
        tokens = _whole(sample.label("kv_cache_size_tokens"))
        blocks = _whole(sample.label("num_gpu_blocks"))
        size = _whole(sample.label("block_size"))
        if tokens is None and blocks is not None and size is not None:
            tokens = blocks * size
        if tokens is None:
            return None
        total += tokens
    return total if samples else None


def _adapters(page: MetricsPage) -> tuple[str, ...]:
    """Returns the adapters that run or are about to.

    The value of the gauge is the time at which its labels were true: the latest counts.
    """
    samples = [s for s in page.samples("vllm:lora_requests_info") if s.value >= 0]
    if not samples:
        return ()
    latest = max(samples, key=lambda sample: sample.value)
    names = f"{latest.label('running_lora_adapters')},{latest.label('waiting_lora_adapters')}"
    return tuple(dict.fromkeys(name for name in names.split(",") if name and name != "None"))


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None
