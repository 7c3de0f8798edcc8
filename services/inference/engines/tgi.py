"""Text Generation Inference.

What is particular about it:

* The field `model` names a LoRA adapter; `tgi` is the model itself.
* `stop` must be a list, `top_p` must be below 1, a `response_format` has its schema under `value`.
* Answers that end at a stop word say `stop_sequence`, and answers with tool calls say `stop` or,
  in a stream, nothing.
* A stream of a text completion has no usage; its own `/generate_stream` has.
* An error inside a chat's stream always says 422, whatever it is.
"""

from typing import Any

from services.inference import errors
from services.inference.engines import features
from services.inference.engines.asks import RerankAsk
from services.inference.engines.dialect import (
    Description,
    EngineModel,
    EngineNotReadyError,
    Load,
    Plan,
    count_of,
)
from services.inference.engines.metrics_page import MetricsPage, metrics_pattern
from services.inference.engines.pages import get, get_json
from services.inference.engines.standard import Standard
from services.inference.engines.tgi_answers import ChatEvents, GenerateEvents, mend
from services.inference.http_client import EngineClient
from services.inference.requests import OpenAIRequest, written

_NAME = "Text Generation Inference"
_PATTERN = metrics_pattern("tgi_queue_size", "tgi_batch_current_size", "tgi_request_count")
_IMPOSSIBLE = frozenset(
    {
        *("logit_bias", "suffix", "echo", "functions", "function_call", "audio"),
        *("web_search_options", "top_k"),
    }
)
_SAMPLING = ("temperature", "frequency_penalty", "repetition_penalty", "seed")


class Tgi(Standard):
    """The dialect of Text Generation Inference."""

    name = "tgi"
    _slots: int | None = None
    _capacity: int | None = None

    def plan(self, request: OpenAIRequest) -> Plan:
        """Passes whole answers and chats on, and asks for streamed completions in its own form."""
        features.check(_NAME, request, self._models.get(request.model))
        features.refuse(_NAME, request.fields, _IMPOSSIBLE)
        features.refuse_several(_NAME, request)
        if request.kind == "completion" and request.is_stream:
            return self._generate(request)
        plan = super().plan(request)
        if request.is_stream:
            return Plan(
                path=plan.path,
                body=plan.body,
                hides_usage=plan.hides_usage,
                translator=ChatEvents,
            )
        return Plan(path=plan.path, body=plan.body, mend=mend)

    def _changes(self, request: OpenAIRequest) -> dict[str, Any]:
        fields = request.fields
        changes: dict[str, Any] = {"model": "tgi"}
        if isinstance(fields.get("stop"), str):
            changes["stop"] = [fields["stop"]]
        if _is_all(fields.get("top_p")):
            changes["top_p"] = None
        if (schema := _schema(fields.get("response_format"))) is not None:
            changes["response_format"] = {"type": "json_object", "value": schema}
        return changes

    def _generate(self, request: OpenAIRequest) -> Plan:
        fields = request.fields
        prompt = fields["prompt"]
        if isinstance(prompt, list):
            if len(prompt) != 1 or not isinstance(prompt[0], str):
                raise errors.unsupported("prompt", f"{_NAME} streams one answer, to one text.")
            prompt = prompt[0]
        parameters: dict[str, Any] = {"details": True, "do_sample": fields.get("temperature") != 0}
        for name in _SAMPLING:
            if fields.get(name) is not None:
                parameters[name] = fields[name]
        if parameters.get("temperature") == 0:
            del parameters["temperature"]
        if fields.get("top_p") is not None and not _is_all(fields["top_p"]):
            parameters["top_p"] = fields["top_p"]
        if fields.get("max_tokens") is not None:
            parameters["max_new_tokens"] = fields["max_tokens"]
        if stop := fields.get("stop"):
            parameters["stop"] = [stop] if isinstance(stop, str) else stop
        if fields.get("logprobs"):
            raise errors.unsupported(
                "logprobs", f"{_NAME} does not stream them for text completions."
            )
        return Plan(
            path="/generate_stream",
            body=written({"inputs": prompt, "parameters": parameters}),
            hides_usage=not request.wants_usage,
            translator=lambda: GenerateEvents(request.model),
        )

    def reranking(self, ask: RerankAsk) -> tuple[str, bytes]:
        """Refuses: it ranks nothing."""
        raise errors.unsupported("model", f"{_NAME} ranks no documents.")

    def thinking(self, model: str, budget: int | None) -> dict[str, Any] | None:
        """Has no word for it."""
        return {} if budget == 0 else None

    async def describe(self, client: EngineClient) -> Description:
        """Asks `/info`."""
        info = await get_json(client, "/info")
        name = info.get("model_id")
        if not isinstance(name, str) or not name:
            raise EngineNotReadyError("the engine serves no model")
        self._slots = count_of(info.get("max_concurrent_requests"))
        # Older versions say it, newer ones do not.
        self._capacity = count_of(info.get("max_batch_total_tokens"))
        version = info.get("version")
        task = info.get("model_pipeline_tag")
        model = EngineModel(
            name=name,
            can_chat=True,
            can_embed=False,
            context_length=count_of(info.get("max_total_tokens")) or 0,
            can_see=task != "text-generation",
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
            return Load(slots=self._slots, kv_capacity_tokens=self._capacity)
        page = MetricsPage(_PATTERN, body)
        return Load(
            running=count_of(page.total("tgi_batch_current_size")),
            queued=count_of(page.total("tgi_queue_size")),
            slots=self._slots,
            kv_capacity_tokens=self._capacity,
            work=page.total("tgi_request_count"),
        )


def _is_all(top_p: object) -> bool:
    """Says whether a `top_p` leaves every token in, which is the same as none."""
    return isinstance(top_p, int | float) and top_p >= 1


def _schema(response_format: object) -> dict[str, Any] | None:
    """Returns the schema that an answer is to have; None where it is free."""
    if not isinstance(response_format, dict):
        return None
    if response_format.get("type") == "json_object":
        return {"type": "object"}
    if response_format.get("type") == "json_schema":
        described = response_format.get("json_schema")
        schema = described.get("schema") if isinstance(described, dict) else None
        return schema if isinstance(schema, dict) else {"type": "object"}
    return None
