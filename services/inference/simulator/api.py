"""What an engine serves beside answers: models, metrics, adapters, switches."""

import time
from collections.abc import Callable
from typing import Any

import orjson

from services.inference.simulator.answers import CREATED, Answers, reply
from services.inference.simulator.engine import Engine
from services.inference.simulator.exposition import metrics
from services.inference.simulator.faults import Share, faults_of
from services.inference.simulator.options import MAX_ADAPTERS, EngineOptions
from services.inference.simulator.prompt import RequestError, chat_text, tokens_of
from services.inference.simulator.timers import Timers
from services.inference.simulator.token_ids import id_of, piece_of, pieces_of
from services.inference.simulator.vectors import packed, score, vector

VERSION = "0.1.0+simulator"
_MAX_INPUTS = 2048
_ANSWERS = {b"/v1/chat/completions", b"/v1/completions"}
_VECTORS = {b"/v1/embeddings", b"/v1/rerank", b"/rerank"}


class Api:
    """One engine as HTTP shows it.

    Args:
        options: What the engine is like.
        timers: The event loop.

    Attributes:
        engine: The engine.
        errors: Says which requests are answered with 500.
        drops: Says which requests lose their connection.
        work: The paths of what goes through the engine.
        pages: What is answered at once, by method and path.
    """

    def __init__(self, options: EngineOptions, timers: Timers) -> None:
        self.engine = Engine(options, timers)
        self.errors = Share()
        self.drops = Share()
        self.started_at = time.time()
        self.work = _VECTORS if options.embeds else _ANSWERS
        self._adapters: dict[str, None] = dict.fromkeys(options.adapters)
        self._answers: dict[tuple[str, bool], Answers] = {}
        self.pages: dict[tuple[bytes, bytes], Callable[[bytes], bytes]] = {
            (b"GET", b"/health"): lambda body: reply(b"", content_type="text/plain"),
            (b"GET", b"/metrics"): self._metrics,
            (b"GET", b"/v1/models"): self._models,
            (b"GET", b"/version"): lambda body: _json({"version": VERSION}),
            (b"POST", b"/tokenize"): self._tokenize,
            (b"POST", b"/detokenize"): self._detokenize,
            (b"POST", b"/reset_prefix_cache"): self._forget,
            (b"POST", b"/v1/load_lora_adapter"): self._load_adapter,
            (b"POST", b"/v1/unload_lora_adapter"): self._unload_adapter,
            (b"GET", b"/sim/faults"): self._faults,
            (b"POST", b"/sim/faults"): self._set_faults,
        }

    def answers(self, model: object, *, is_chat: bool) -> Answers:
        """Returns the answers of a model.

        Raises:
            RequestError: There is no such model.
        """
        options = self.engine.options
        name = str(model or options.model)
        found = self._answers.get((name, is_chat))
        if found is None:
            self.check_model(name)
            found = Answers(
                name, options.answer_tokens, is_chat=is_chat, is_stamped=options.is_stamped
            )
            self._answers[name, is_chat] = found
        return found

    def check_model(self, name: str) -> None:
        """Passes for models that are there.

        Raises:
            RequestError: There is no such model.
        """
        if name != self.engine.options.model and name not in self._adapters:
            raise RequestError(
                f"The model `{name}` does not exist.",
                status=404,
                kind="NotFoundError",
                param="model",
            )

    def inputs(self, request: dict[str, Any]) -> list[str]:
        """Returns the texts to embed.

        Raises:
            RequestError: They are none, too many, not texts, or too long.
        """
        given = request.get("input")
        every: list[object] = given if isinstance(given, list) else [given]
        texts = [text for text in every if isinstance(text, str) and text]
        if len(texts) < len(every) or not 0 < len(texts) <= _MAX_INPUTS:
            raise RequestError("input must be a text or a list of texts", param="input")
        longest = self.engine.options.longest
        if any(tokens_of(text) > longest for text in texts):
            raise RequestError(f"This model's maximum context length is {longest} tokens.")
        if request.get("encoding_format", "float") not in ("float", "base64"):
            raise RequestError("encoding_format is float or base64", param="encoding_format")
        if request.get("dimensions") not in (None, self.engine.options.dimensions):
            raise RequestError("the model has one length of vectors", param="dimensions")
        return texts

    def vectors(self, request: dict[str, Any], texts: list[str], tokens: int) -> bytes:
        """Returns the answer to a request for embeddings."""
        options = self.engine.options
        found = [vector(text, options.dimensions) for text in texts]
        is_packed = request.get("encoding_format") == "base64"
        data = [
            {"object": "embedding", "index": i, "embedding": packed(v) if is_packed else v}
            for i, v in enumerate(found)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        model = request.get("model") or options.model
        return _json({"object": "list", "model": model, "data": data, "usage": usage})

    def ranked(self, request: dict[str, Any]) -> tuple[str, list[str], int]:
        """Returns the query and the documents of a request for a ranking, and how many are wanted.

        Raises:
            RequestError: They are none, too many, or not texts.
        """
        query, documents = request.get("query"), request.get("documents")
        if not isinstance(query, str) or not query:
            raise RequestError("query must be a text", param="query")
        if not isinstance(documents, list) or not 0 < len(documents) <= _MAX_INPUTS:
            raise RequestError("documents must be a list of texts", param="documents")
        if not all(isinstance(document, str) and document for document in documents):
            raise RequestError("documents must be a list of texts", param="documents")
        top_n = request.get("top_n") or len(documents)
        if not isinstance(top_n, int) or top_n < 0:
            raise RequestError("top_n must be a number", param="top_n")
        return query, documents, top_n

    def ranking(
        self, request: dict[str, Any], query: str, documents: list[str], top_n: int, tokens: int
    ) -> bytes:
        """Returns the answer to a request for a ranking, in vLLM's form."""
        scores = sorted(
            ((score(query, document), place) for place, document in enumerate(documents)),
            key=lambda each: (-each[0], each[1]),
        )
        results = [
            {"index": at, "document": {"text": documents[at]}, "relevance_score": value}
            for value, at in scores[:top_n]
        ]
        model = request.get("model") or self.engine.options.model
        usage = {"total_tokens": tokens}
        return _json({"id": "rerank-0", "model": model, "usage": usage, "results": results})

    def _metrics(self, body: bytes) -> bytes:
        page = metrics(self.engine, len(self._adapters), self.started_at, time.time())
        return reply(page, content_type="text/plain; version=0.0.4; charset=utf-8")

    def _models(self, body: bytes) -> bytes:
        options = self.engine.options

        def entry(name: str, parent: str | None, length: int | None) -> dict[str, object]:
            return {
                "id": name,
                "object": "model",
                "created": CREATED,
                "owned_by": "vllm",
                "root": name,
                "parent": parent,
                "max_model_len": length,
            }

        data = [entry(options.model, None, options.longest)]
        data += [entry(name, options.model, None) for name in self._adapters]
        return _json({"object": "list", "data": data})

    def _tokenize(self, body: bytes) -> bytes:
        request = parsed(body)
        text = chat_text(request) if "messages" in request else str(request.get("prompt") or "")
        pieces = pieces_of(text)
        answer = {
            "count": len(pieces),
            "max_model_len": self.engine.options.longest,
            "tokens": list(map(id_of, pieces)),
            "token_strs": pieces if request.get("return_token_strs") else None,
        }
        return _json(answer)

    def _detokenize(self, body: bytes) -> bytes:
        tokens = parsed(body).get("tokens")
        if not isinstance(tokens, list):
            raise RequestError("tokens must be a list", param="tokens")
        return _json({"prompt": "".join(map(piece_of, tokens))})

    def _forget(self, body: bytes) -> bytes:
        if self.engine.cache is not None:
            self.engine.cache.forget()
        return reply(b"", content_type="text/plain")

    def _load_adapter(self, body: bytes) -> bytes:
        name = _adapter_name(body)
        if name in self._adapters or name == self.engine.options.model:
            raise RequestError(f"The lora adapter '{name}' has already been loaded.")
        if len(self._adapters) >= MAX_ADAPTERS:
            raise RequestError(f"There are {MAX_ADAPTERS} adapters already.")
        self._adapters[name] = None
        text = f"Success: LoRA adapter '{name}' added successfully."
        return reply(text.encode(), content_type="text/plain")

    def _unload_adapter(self, body: bytes) -> bytes:
        name = _adapter_name(body)
        if name not in self._adapters:
            raise RequestError(
                f"The lora adapter '{name}' cannot be found.", status=404, kind="NotFoundError"
            )
        del self._adapters[name]
        for is_chat in (True, False):
            self._answers.pop((name, is_chat), None)
        text = f"Success: LoRA adapter '{name}' removed successfully."
        return reply(text.encode(), content_type="text/plain")

    def _faults(self, body: bytes) -> bytes:
        return _json(self.engine.faults)

    def _set_faults(self, body: bytes) -> bytes:
        try:
            faults = faults_of(parsed(body))
        except ValueError as error:
            raise RequestError(str(error)) from None
        self.engine.set_faults(faults)
        return _json(faults)


def parsed(body: bytes) -> dict[str, Any]:
    """Returns a body's JSON object.

    Raises:
        RequestError: It is none.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise RequestError("the body is not JSON") from None
    if not isinstance(value, dict):
        raise RequestError("the body is not a JSON object")
    return value


def error_reply(error: RequestError) -> bytes:
    """Returns an error in vLLM's form."""
    what = {
        "message": error.message,
        "type": error.kind,
        "param": error.param or None,
        "code": error.status,
    }
    return _json({"error": what}, status=error.status)


def _adapter_name(body: bytes) -> str:
    name = parsed(body).get("lora_name")
    if not isinstance(name, str) or not name:
        raise RequestError("Both 'lora_name' and 'lora_path' must be provided.")
    return name


def _json(value: object, *, status: int = 200) -> bytes:
    return reply(orjson.dumps(value), status=status)
