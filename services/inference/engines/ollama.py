"""Ollama, by its native API: https://github.com/ollama/ollama/blob/main/docs/api.md

What is particular about it:

* Answers are lines of JSON, not server-sent events, and streams unless it is told not to. It stops
  when its caller hangs up, so every request goes as a stream.
* It loads models on demand and puts them away again; `/api/ps` says which are in memory. It says
  nothing of its queue.
* It cuts prompts that are too long unless it is told to refuse them.
* Models without a tag are `:latest`.
"""

import re
from typing import Any

import orjson

from services.inference import errors
from services.inference.engines import features
from services.inference.engines.asks import RerankAsk
from services.inference.engines.dialect import (
    Description,
    EngineModel,
    EngineNotReadyError,
    Load,
    Plan,
    Vector,
    count_of,
    objects_of,
)
from services.inference.engines.ollama_answers import ChatLines, GenerateLines
from services.inference.engines.ollama_requests import chat, generate
from services.inference.engines.pages import get, get_json, post_json
from services.inference.engines.standard import Standard, vector_of
from services.inference.http_client import EngineClient
from services.inference.requests import OpenAIRequest, written

_LATEST = ":latest"
_LOGPROBS_SINCE = (0, 12, 11)
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")
_NUM_CTX = re.compile(r"^num_ctx\s+(\d+)\s*$", re.MULTILINE)


class Ollama(Standard):
    """The dialect of Ollama's native API."""

    name = "ollama"
    _has_logprobs = False
    # Models that were put away: what their caches held is gone.
    _unloads = 0

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._shown: dict[tuple[str, str], EngineModel] = {}
        self._loaded: frozenset[str] = frozenset()

    def plan(self, request: OpenAIRequest) -> Plan:
        """Translates the request, and asks for a stream whatever the caller wants."""
        features.check("Ollama", request, self._models.get(request.model))
        if request.kind == "chat":
            return Plan(
                path="/api/chat",
                body=written(chat(request, has_logprobs=self._has_logprobs)),
                is_folded=not request.is_stream,
                hides_usage=not request.wants_usage,
                translator=lambda: ChatLines(request.model),
            )
        return Plan(
            path="/api/generate",
            body=orjson.dumps(generate(request)),
            is_folded=not request.is_stream,
            hides_usage=not request.wants_usage,
            translator=lambda: GenerateLines(request.model),
        )

    def thinking(self, model: str, budget: int | None) -> dict[str, Any] | None:
        """Turns it on and off; Ollama has no budget for it."""
        return None if budget else {"think": budget is None}

    def embedding(
        self, model: str, text: str | list[int], dimensions: int | None = None
    ) -> tuple[str, bytes]:
        """Asks for a refusal where the text is too long, instead of the vector of its start."""
        if not isinstance(text, str):
            raise errors.unsupported("input", "Ollama embeds texts only, no tokens.")
        fields: dict[str, Any] = {"model": model, "input": text, "truncate": False}
        if dimensions is not None:
            fields["dimensions"] = dimensions
        return "/api/embed", orjson.dumps(fields)

    def reranking(self, ask: RerankAsk) -> tuple[str, bytes]:
        """Refuses: there is no such thing."""
        raise errors.unsupported("model", "Ollama ranks no documents.")

    def vector(self, answer: bytes) -> Vector:
        """Reads the first of the vectors."""
        data = orjson.loads(answer)
        return vector_of(data["embeddings"][0], data.get("prompt_eval_count"))

    async def describe(self, client: EngineClient) -> Description:
        """Asks `/api/version`, `/api/tags`, `/api/ps` and, for each new model, `/api/show`."""
        version = (await get_json(client, "/api/version")).get("version")
        version = version[:200] if isinstance(version, str) else ""
        self._has_logprobs = _is_since(version, _LOGPROBS_SINCE)
        entries = objects_of((await get_json(client, "/api/tags")).get("models"))
        running = objects_of((await get_json(client, "/api/ps")).get("models"))
        contexts = {str(m.get("name")): count_of(m.get("context_length")) for m in running}
        shown: dict[tuple[str, str], EngineModel] = {}
        for entry in entries:
            name = entry.get("name")
            if not isinstance(name, str) or not name:
                continue
            # What a model is does not change while its digest does not.
            key = (name, str(entry.get("digest")))
            model = self._shown.get(key) or await self._show(client, name)
            if not model.context_length and (context := contexts.get(name)):
                # Where the model file says nothing, the server chooses when it loads the model.
                model = _with_context(model, context)
            # Kept at once: asking for many models takes longer than one turn may.
            self._shown[key] = shown[key] = model
        self._shown = shown
        return Description(version=version, models=self._remember(list(shown.values())))

    async def _show(self, client: EngineClient, name: str) -> EngineModel:
        shown = await post_json(client, "/api/show", {"model": name})
        info = shown.get("model_info")
        info = info if isinstance(info, dict) else {}
        parameters = shown.get("parameters")
        told = _NUM_CTX.search(parameters) if isinstance(parameters, str) else None
        trained = count_of(info.get(f"{info.get('general.architecture')}.context_length")) or 0
        context = int(told[1]) if told else 0
        can = shown.get("capabilities")
        known = set(map(str, can)) if isinstance(can, list) else None
        if known is None:
            # Versions before `capabilities`: what pools makes vectors.
            is_embedding = any(key.endswith(".pooling_type") for key in info)
            known = {"embedding"} if is_embedding else {"completion", "tools", "vision"}
        return EngineModel(
            name=name.removesuffix(_LATEST),
            can_chat="completion" in known,
            can_embed="embedding" in known,
            context_length=min(context, trained) if context and trained else context,
            can_call_tools="tools" in known,
            can_see="vision" in known,
        )

    async def probe(self, client: EngineClient) -> Load | None:
        """Asks `/api/ps`, which says nothing of load but which models are in memory."""
        status, body = await get(client, "/api/ps")
        if status != 200:
            return None
        try:
            data = orjson.loads(body)
        except orjson.JSONDecodeError:
            raise EngineNotReadyError("/api/ps is not JSON") from None
        models = objects_of(data.get("models")) if isinstance(data, dict) else []
        loaded = frozenset(str(model.get("name")) for model in models)
        self._unloads += len(self._loaded - loaded)
        self._loaded = loaded
        return Load(instance=float(self._unloads))


def _with_context(model: EngineModel, context: int) -> EngineModel:
    return EngineModel(
        name=model.name,
        can_chat=model.can_chat,
        can_embed=model.can_embed,
        context_length=context,
        can_call_tools=model.can_call_tools,
        can_see=model.can_see,
    )


def _is_since(version: str, since: tuple[int, int, int]) -> bool:
    found = _VERSION.match(version)
    return found is not None and tuple(map(int, found.groups())) >= since
