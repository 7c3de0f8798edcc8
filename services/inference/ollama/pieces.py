"""What Ollama's answers are made of: the shape of a line, calls of tools, probabilities, ends."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import orjson

from services.inference.engines.dialect import Tokens, count_of

LINES = "application/x-ndjson"
JSON = "application/json; charset=utf-8"

Path = Literal["chat", "generate"]

_LOGPROB = ("token", "logprob", "bytes")
_NS_PER_MS = 1_000_000
# Ollama's answers to calls of tools end with `stop`.
_REASONS = {"tool_calls": "stop", "function_call": "stop"}


def utc_now() -> datetime:
    """Returns the time of day."""
    return datetime.now(UTC)


@dataclass(slots=True)
class Ending:
    """What is known of an answer at its end; None is unknown and stays unsaid.

    Attributes:
        reason: OpenAI's word for why it ended.
        tokens: What it took.
        total_ns: How long the call was at the node.
        eval_ns: How long its pieces came, from the first to the last, as the node saw it.
        timings: What the engine measured itself, as llama.cpp says it: `prompt_ms`,
            `predicted_ms`, and `load_ms` where it loads models.
        metadata: How the answer came about, where the caller wants to see that.
    """

    reason: str | None
    tokens: Tokens
    total_ns: int
    eval_ns: int | None = None
    timings: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] | None = None

    def fields(self) -> dict[str, Any]:
        """Returns the fields of the last line, less the answer itself."""
        said: dict[str, Any] = {
            "done": True,
            "done_reason": _REASONS.get(self.reason or "stop", self.reason or "stop"),
            "total_duration": self.total_ns,
            "load_duration": self._timing("load_ms"),
            "prompt_eval_count": self.tokens.prompt,
            "prompt_eval_duration": self._timing("prompt_ms"),
            "eval_count": self.tokens.completion,
            "eval_duration": self._timing("predicted_ms") or self.eval_ns,
            "gateway_metadata": self.metadata,
        }
        return {name: value for name, value in said.items() if value is not None}

    def _timing(self, name: str) -> int | None:
        value = self.timings.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            return None
        return round(value * _NS_PER_MS)


class Shape:
    """Writes the objects of one answer.

    Args:
        path: Which of Ollama's paths it answers.
        model: The model that answers.
        now: Tells the time of day.
    """

    def __init__(self, path: Path, model: str, now: Callable[[], datetime] = utc_now) -> None:
        self._path = path
        self._model = model
        self._now = now

    def of(
        self,
        text: str,
        thinking: str = "",
        calls: list[dict[str, Any]] | None = None,
        logprobs: list[dict[str, Any]] | None = None,
        ending: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Returns a piece of the answer, the whole of it, or its end.

        Args:
            text: What is said.
            thinking: What is thought.
            calls: Calls of tools.
            logprobs: The tokens' probabilities.
            ending: The fields of its end; None where there is more to come.
        """
        made: dict[str, Any] = {"model": self._model, "created_at": _timestamp(self._now())}
        said: dict[str, Any]
        if self._path == "chat":
            said = made["message"] = {"role": "assistant", "content": text}
        else:
            said = made
            made["response"] = text
        if thinking:
            said["thinking"] = thinking
        if calls:
            said["tool_calls"] = calls
        if logprobs:
            made["logprobs"] = logprobs
        return made | (ending or {"done": False})


def _timestamp(now: datetime) -> str:
    return now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def call_of(place: int, call: dict[str, Any]) -> dict[str, Any]:
    """Returns a call of a tool.

    Args:
        place: The call's place among those of the answer.
        call: OpenAI's call, complete.

    Raises:
        ValueError: Its arguments are no JSON object.
    """
    function = call["function"]
    arguments = orjson.loads(function.get("arguments") or "{}")
    if not isinstance(arguments, dict):
        raise ValueError("arguments that are no object")
    made = {"function": {"index": place, "name": function["name"], "arguments": arguments}}
    return {"id": call["id"], **made} if call.get("id") else made


def logprobs_of(said: Any) -> list[dict[str, Any]]:
    """Returns the probabilities of the tokens of OpenAI's choice."""
    if not isinstance(said, dict):
        return []
    return [
        _logprob(entry) | {"top_logprobs": [_logprob(e) for e in entry.get("top_logprobs") or ()]}
        for entry in said.get("content") or ()
    ]


def _logprob(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: entry[name] for name in _LOGPROB if name in entry}


def timings_of(data: dict[str, Any]) -> dict[str, Any]:
    """Returns what an engine's object says of times; empty where it says nothing."""
    timings = data.get("timings")
    return timings if isinstance(timings, dict) else {}


def usage_tokens(data: dict[str, Any]) -> Tokens:
    """Returns what a whole answer says that it took."""
    usage = data.get("usage")
    if not isinstance(usage, dict):
        return Tokens()
    return Tokens(count_of(usage.get("prompt_tokens")), count_of(usage.get("completion_tokens")))
