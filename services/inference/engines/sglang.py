"""SGLang.

What is particular about it:

* Metrics are off unless the server is started with them; `/v1/loads` says the same of the load.
* Their names begin with `sglang:` or, in some versions, with `sglang_`; both are read.
* It notices a hang-up on a whole answer within 4 s, on a stream after 2 s.
* An error that is not in a stream stands at the top of the body, not under `error`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import orjson

from services.inference import errors
from services.inference.engines.asks import TokenizeAsk, Tokenized
from services.inference.engines.dialect import (
    Description,
    EngineModel,
    EngineNotReadyError,
    Load,
    count_of,
    objects_of,
    share_of,
)
from services.inference.engines.metrics_page import MetricsPage, Sample, metrics_pattern
from services.inference.engines.pages import get, get_first, get_json
from services.inference.engines.standard import Standard, asked, listed, tokenized
from services.inference.engines.token_pages import ids_of, text_of
from services.inference.http_client import EngineClient


def _both(name: str) -> tuple[str, str]:
    return f"sglang:{name}", f"sglang_{name}"


_RUNNING = _both("num_running_reqs")
_QUEUED = _both("num_queue_reqs")
_KV_USE = _both("token_usage")
_CAPACITY = _both("max_total_num_tokens")
_WORK = _both("prompt_tokens_total")
_START = "process_start_time_seconds"
_PATTERN = metrics_pattern(*_RUNNING, *_QUEUED, *_KV_USE, *_CAPACITY, *_WORK, _START)


class SgLang(Standard):
    """The dialect of SGLang's server."""

    name = "sglang"
    continuation: Mapping[str, Any] | None = MappingProxyType({"continue_final_message": True})
    _slots: int | None = None
    _capacity: int | None = None

    def thinking(self, model: str, budget: int | None) -> dict[str, Any] | None:
        """Turns it on and off in the template; a budget would be no more than a hint."""
        return None if budget else {"chat_template_kwargs": {"enable_thinking": budget is None}}

    async def count_tokens(self, client: EngineClient, model: str, text: str) -> int | None:
        """Asks `/tokenize`, which older versions lack."""
        return await tokenized(client, {"model": model, "prompt": text})

    async def tokenize(self, client: EngineClient, ask: TokenizeAsk) -> Tokenized | None:
        """Asks `/tokenize`, which takes no chats and gives no texts."""
        if "prompt" not in ask.fields:
            raise errors.unsupported("messages", "SGLang cuts texts only, no chats.")
        if ask.wants_texts:
            raise errors.unsupported("return_token_strs", "SGLang tells tokens by their ids only.")
        fields: dict[str, Any] = {"model": ask.model, "prompt": ask.fields["prompt"]}
        if ask.adds_special is not None:
            fields["add_special_tokens"] = ask.adds_special
        said = await asked(client, "/tokenize", fields)
        return None if said is None else Tokenized(ids_of(said.get("tokens")))

    async def detokenize(self, client: EngineClient, model: str, tokens: list[int]) -> str | None:
        """Asks `/detokenize`, special tokens included."""
        fields = {"model": model, "tokens": tokens, "skip_special_tokens": False}
        return await text_of(client, "/detokenize", fields, "text")

    async def describe(self, client: EngineClient) -> Description:
        """Asks `/v1/models`, `/model_info` and `/server_info`, under their old names too."""
        entries = listed(await get_json(client, "/v1/models"))
        if not entries:
            raise EngineNotReadyError("the engine serves no model")
        model = await get_first(client, "/model_info", "/get_model_info")
        server = await get_first(client, "/server_info", "/get_server_info")
        self._slots = count_of(server.get("max_running_requests"))
        self._capacity = count_of(server.get("max_total_num_tokens"))
        version = server.get("version")
        return Description(
            version=version[:200] if isinstance(version, str) else "",
            models=self._remember([_model(entry, model) for entry in entries]),
        )

    async def probe(self, client: EngineClient) -> Load | None:
        """Asks `/metrics`; where they are off `/v1/loads`, and where it is not there `/health`."""
        status, body = await get(client, "/metrics")
        if status == 200 and body:
            return self._from_metrics(MetricsPage(_PATTERN, body, _is_first_rank))
        if status not in (200, 404):
            return None
        status, body = await get(client, "/v1/loads")
        if status == 200:
            return self._from_loads(body)
        status, _ = await get(client, "/health")
        if status != 200:
            return None
        return Load(slots=self._slots, kv_capacity_tokens=self._capacity)

    def _from_metrics(self, page: MetricsPage) -> Load:
        capacity = count_of(page.total(*_CAPACITY))
        return Load(
            running=count_of(page.total(*_RUNNING)),
            queued=count_of(page.total(*_QUEUED)),
            kv_use=share_of(page.mean(*_KV_USE)),
            slots=self._slots,
            # A gauge that is not set yet reads 0.
            kv_capacity_tokens=capacity or self._capacity,
            instance=page.total(_START),
            work=page.total(*_WORK),
        )

    def _from_loads(self, body: bytes) -> Load:
        try:
            data = orjson.loads(body)
        except orjson.JSONDecodeError:
            data = None
        ranks = objects_of(data.get("loads")) if isinstance(data, dict) else []
        uses = [share_of(rank.get("token_usage")) for rank in ranks]
        known = [use for use in uses if use is not None]
        return Load(
            running=_sum(ranks, "num_running_reqs"),
            queued=_sum(ranks, "num_waiting_reqs"),
            kv_use=sum(known) / len(known) if known and len(known) == len(ranks) else None,
            slots=self._slots,
            kv_capacity_tokens=_sum(ranks, "max_total_num_tokens") or self._capacity,
        )


def _sum(ranks: list[dict[str, Any]], name: str) -> int | None:
    counts = [count_of(rank.get(name)) for rank in ranks]
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(ranks) else None


def _is_first_rank(sample: Sample) -> bool:
    """Says whether a sample counts: the ranks of one replica all report the same requests."""
    return all(sample.label(rank) in (None, "0") for rank in ("tp_rank", "pp_rank"))


def _model(entry: dict[str, Any], info: dict[str, Any]) -> EngineModel:
    makes_text = info.get("is_generation") is not False
    parent = entry.get("parent")
    return EngineModel(
        name=entry["id"],
        can_chat=makes_text,
        can_embed=not makes_text,
        context_length=count_of(entry.get("max_model_len")) or 0,
        base_model=parent if isinstance(parent, str) else "",
        can_see=info.get("has_image_understanding") is not False,
    )
