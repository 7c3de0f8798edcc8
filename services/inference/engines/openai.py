"""Any endpoint that speaks OpenAI's HTTP and stops working when its caller hangs up."""

from typing import Any

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
    tokens_of,
)
from services.inference.http_client import EngineClient
from services.inference.requests import OpenAIRequest, with_fields

_PATHS = {"chat": "/v1/chat/completions", "completion": "/v1/completions"}


class OpenAICompatible:
    """The dialect of OpenAI-compatible endpoints of which nothing more is known.

    The load is what the proxy itself has running there.
    """

    name = "openai"
    # Not all of them send it; those that do not end the stream properly all the same.
    ends_with_done = False

    def __init__(self) -> None:
        self._health_path = "/health"

    def plan(self, request: OpenAIRequest) -> Plan:
        """Passes the request on; a stream is asked for its usage."""
        asks_usage = request.is_stream and not request.wants_usage
        changes: dict[str, Any] = {}
        if asks_usage:
            options = request.fields.get("stream_options") or {}
            changes["stream_options"] = {**options, "include_usage": True}
        return Plan(
            path=_PATHS[request.kind],
            body=with_fields(request, changes),
            hides_usage=asks_usage,
        )

    def restore(self, last: bytes, usage: bytes) -> bytes:
        """Changes nothing: asking for usage adds an event and touches no other."""
        return last

    def total(self, usages: list[dict[str, Any]], request: OpenAIRequest) -> Tokens:
        """Takes the last, which is over all answers."""
        return tokens_of(usages[-1]) if usages else Tokens()

    def is_too_long(self, status: int, error: dict[str, Any]) -> bool:
        """Knows the refusal by OpenAI's code."""
        return error.get("code") == "context_length_exceeded"

    async def count_tokens(self, client: EngineClient, text: str) -> int | None:
        """Says nothing: OpenAI's HTTP has no tokenizer."""
        return None

    async def describe(self, client: EngineClient) -> Description:
        """Asks `/v1/models`."""
        listing = await get_json(client, "/v1/models")
        entries = listing.get("data")
        models = tuple(
            EngineModel(
                name=entry["id"],
                can_chat=True,
                can_embed=False,
                context_length=count_of(entry.get("max_model_len")) or 0,
            )
            for entry in (entries if isinstance(entries, list) else [])
            if isinstance(entry, dict) and isinstance(entry.get("id"), str)
        )
        if not models:
            raise EngineNotReadyError("the engine serves no model")
        return Description(version="", models=models)

    async def probe(self, client: EngineClient) -> Load | None:
        """Asks `/health`, or `/v1/models` where that is not there."""
        status, _ = await get(client, self._health_path)
        if status == 404 and self._health_path == "/health":
            self._health_path = "/v1/models"
            status, _ = await get(client, self._health_path)
        return Load() if status == 200 else None
