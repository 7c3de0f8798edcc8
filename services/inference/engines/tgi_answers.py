"""Makes OpenAI's answers of Text Generation Inference's."""

import time
import uuid
from typing import Any

import orjson

from services.inference.engines.dialect import objects_of
from services.inference.engines.translated import Lines
from services.inference.http_client import EngineConnectionError

_DONE = b"data: [DONE]\n\n"
# An answer's end in the engine's words and in OpenAI's; the rest is the same.
_REASONS = {"eos_token": "stop", "stop_sequence": "stop"}
# What an event has that must be looked at; all others pass as they are.
_MARKS = (b'"finish_reason":"', b'"tool_calls":', b'"choices":[]', b'"error":')


def mend(body: bytes) -> bytes:
    """Returns a whole answer with OpenAI's reasons for its end."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body
    if not isinstance(data, dict):
        return body
    for choice in objects_of(data.get("choices")):
        message = choice.get("message")
        calls = message.get("tool_calls") if isinstance(message, dict) else None
        choice["finish_reason"] = _reason(choice.get("finish_reason"), has_called=bool(calls))
    return orjson.dumps(data)


def _reason(said: object, *, has_called: bool) -> object:
    reason = _REASONS.get(said, said) if isinstance(said, str) else said
    return "tool_calls" if has_called and reason in ("stop", None, "") else reason


class ChatEvents:
    """The events of a chat, mended."""

    def __init__(self) -> None:
        self._lines = Lines()
        self._has_called = False
        self._is_finished = False
        self._latest: dict[str, Any] = {}

    def feed(self, piece: bytes) -> bytes:
        """Returns the events that are complete now.

        Raises:
            EngineConnectionError: An event is not JSON.
        """
        return b"".join(
            self._event(line[5:].strip())
            for line in self._lines.feed(piece)
            if line.startswith(b"data:")
        )

    def _event(self, text: bytes) -> bytes:
        if text == b"[DONE]":
            return self._missing_end() + _DONE
        if not any(mark in text for mark in _MARKS):
            return b"data: %b\n\n" % text
        data = _parsed(text)
        if isinstance(error := data.get("error"), dict):
            return _error(error.get("message"), error.get("http_status_code"))
        choices = objects_of(data.get("choices"))
        before = b"" if choices else self._missing_end()
        for choice in choices:
            delta = choice.get("delta")
            if isinstance(delta, dict) and delta.get("tool_calls"):
                self._has_called = True
            if choice.get("finish_reason"):
                reason = _reason(choice["finish_reason"], has_called=self._has_called)
                choice["finish_reason"] = reason
                self._is_finished = True
        if choices:
            self._latest = data
        return before + b"data: %b\n\n" % orjson.dumps(data)

    def _missing_end(self) -> bytes:
        """Returns the last event of an answer with tool calls, which the engine leaves out."""
        if self._is_finished or not self._has_called:
            return b""
        self._is_finished = True
        choice = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "tool_calls"}
        return b"data: %b\n\n" % orjson.dumps({**self._latest, "choices": [choice]})


class GenerateEvents:
    """The events of `/generate_stream`, as those of a text completion.

    Args:
        model: The model's name.
    """

    def __init__(self, model: str) -> None:
        self._lines = Lines()
        self._base = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }

    def feed(self, piece: bytes) -> bytes:
        """Returns the events that are complete now.

        Raises:
            EngineConnectionError: An event is not what the engine documents.
        """
        return b"".join(
            self._event(_parsed(line[5:].strip()))
            for line in self._lines.feed(piece)
            if line.startswith(b"data:")
        )

    def _event(self, data: dict[str, Any]) -> bytes:
        if "error" in data:
            return _error(data["error"], _STATUSES.get(str(data.get("error_type"))))
        token = data.get("token")
        if not isinstance(token, dict):
            raise EngineConnectionError("an event of the engine's has no token")
        text = "" if token.get("special") else token.get("text") or ""
        details = data.get("details")
        if not isinstance(details, dict):
            return self._choice(text, None)
        events = self._choice(text, _reason(details.get("finish_reason"), has_called=False))
        prompt, answer = details.get("input_length"), details.get("generated_tokens")
        usage = {"prompt_tokens": prompt, "completion_tokens": answer}
        if isinstance(prompt, int) and isinstance(answer, int):
            usage["total_tokens"] = prompt + answer
        usage = {name: count for name, count in usage.items() if count is not None}
        if usage:
            event = {**self._base, "choices": [], "usage": usage}
            events += b"data: %b\n\n" % orjson.dumps(event)
        return events + _DONE

    def _choice(self, text: str, reason: object) -> bytes:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
        return b"data: %b\n\n" % orjson.dumps({**self._base, "choices": [choice]})


# The engine's own statuses for its types of errors, which a stream cannot have any more.
_STATUSES = {
    "generation": 500,
    "overloaded": 429,
    "validation": 422,
    "incomplete_generation": 500,
    "incomplete_generation_stream": 500,
    "template_error": 422,
    "missing_template_variable": 422,
    "tool_error": 422,
    "stream_serialization_error": 500,
}


def _error(message: object, status: object) -> bytes:
    error = {
        "message": message if isinstance(message, str) else None,
        "type": None,
        "code": status if isinstance(status, int) else 500,
    }
    return b"data: %b\n\n" % orjson.dumps({"error": error})


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        data = orjson.loads(text)
    except orjson.JSONDecodeError:
        data = None
    if not isinstance(data, dict):
        raise EngineConnectionError("an event of the engine's is not a JSON object")
    return data
