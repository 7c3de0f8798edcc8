"""Makes OpenAI's server-sent events of Ollama's lines of JSON."""

import abc
import time
import uuid
from typing import Any

import orjson

from services.inference.engines.dialect import count_of, objects_of
from services.inference.engines.translated import Lines
from services.inference.http_client import EngineConnectionError

_DONE = b"data: [DONE]\n\n"
_NS_PER_MS = 1_000_000


class _Events:
    """What the two kinds of answers have in common.

    Args:
        model: The model's name.
        kind: What OpenAI calls an event of this kind.
        prefix: How the answer's id begins.
    """

    def __init__(self, model: str, kind: str, prefix: str) -> None:
        self._lines = Lines()
        base = {
            "id": f"{prefix}{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": model,
        }
        # Written once: each event differs in its choice only.
        self._head = b"data: " + orjson.dumps(base)[:-1]

    def feed(self, piece: bytes) -> bytes:
        """Returns the events that are complete now.

        Raises:
            EngineConnectionError: A line is not what Ollama documents.
        """
        return b"".join(self._line(line) for line in self._lines.feed(piece) if line.strip())

    def _line(self, line: bytes) -> bytes:
        try:
            data = orjson.loads(line)
        except orjson.JSONDecodeError:
            data = None
        if not isinstance(data, dict):
            raise EngineConnectionError("a line of the engine's is not a JSON object")
        if "error" in data:
            # The status is gone by now; what breaks in the middle is the engine's failure.
            message = data["error"]
            error = {"message": message if isinstance(message, str) else None, "code": 500}
            return b"data: %b\n\n" % orjson.dumps({"error": error})
        events = self._content(data)
        if data.get("done"):
            events += self._choice(self._end(), reason=self._reason(data.get("done_reason")))
            events += self._usage(data) + _DONE
        return events

    @abc.abstractmethod
    def _content(self, data: dict[str, Any]) -> bytes:
        """Returns the events of what a line adds to the answer."""

    @abc.abstractmethod
    def _end(self) -> dict[str, Any]:
        """Returns what the last choice holds besides its reason."""

    def _reason(self, said: object) -> str:
        return "length" if said == "length" else "stop"

    def _choice(
        self, said: dict[str, Any], *, reason: str | None = None, logprobs: object = None
    ) -> bytes:
        choice = {"index": 0, **said, "logprobs": logprobs, "finish_reason": reason}
        return b'%b,"choices":[%b]}\n\n' % (self._head, orjson.dumps(choice))

    def _usage(self, data: dict[str, Any]) -> bytes:
        """Returns the event with the usage; a count that Ollama leaves out stays out."""
        prompt, answer = count_of(data.get("prompt_eval_count")), count_of(data.get("eval_count"))
        usage = {"prompt_tokens": prompt, "completion_tokens": answer}
        if prompt is not None and answer is not None:
            usage["total_tokens"] = prompt + answer
        usage = {name: count for name, count in usage.items() if count is not None}
        if not usage:
            return b""
        event = b'%b,"choices":[],"usage":%b' % (self._head, orjson.dumps(usage))
        if timings := _timings(data):
            event += b',"timings":%b' % orjson.dumps(timings)
        return event + b"}\n\n"


class ChatLines(_Events):
    """The lines of `/api/chat`.

    Args:
        model: The model's name.
    """

    def __init__(self, model: str) -> None:
        super().__init__(model, "chat.completion.chunk", "chatcmpl-")
        self._is_first = True
        self._calls = 0

    def _content(self, data: dict[str, Any]) -> bytes:
        message = data.get("message")
        if not isinstance(message, dict):
            raise EngineConnectionError("a line of the engine's has no message")
        delta: dict[str, Any] = {}
        if text := message.get("content"):
            delta["content"] = text
        if thinking := message.get("thinking"):
            delta["reasoning_content"] = thinking
        if calls := objects_of(message.get("tool_calls")):
            delta["tool_calls"] = [self._call(call) for call in calls]
        entries = objects_of(data.get("logprobs"))
        if not delta and not entries and not self._is_first:
            return b""
        if self._is_first:
            self._is_first = False
            delta = {"role": "assistant", "content": "", **delta}
        return self._choice({"delta": delta}, logprobs=_logprobs(entries))

    def _call(self, call: dict[str, Any]) -> dict[str, Any]:
        function = call.get("function")
        function = function if isinstance(function, dict) else {}
        index, self._calls = self._calls, self._calls + 1
        return {
            "index": index,
            # Versions before ids: OpenAI's callers need one to answer to.
            "id": call.get("id") or f"call_{uuid.uuid4().hex}",
            "type": "function",
            "function": {
                "name": function.get("name") or "",
                "arguments": orjson.dumps(function.get("arguments") or {}).decode(),
            },
        }

    def _end(self) -> dict[str, Any]:
        return {"delta": {}}

    def _reason(self, said: object) -> str:
        reason = super()._reason(said)
        return "tool_calls" if reason == "stop" and self._calls else reason


class GenerateLines(_Events):
    """The lines of `/api/generate`.

    Args:
        model: The model's name.
    """

    def __init__(self, model: str) -> None:
        super().__init__(model, "text_completion", "cmpl-")

    def _content(self, data: dict[str, Any]) -> bytes:
        text = data.get("response")
        return self._choice({"text": text}) if text else b""

    def _end(self) -> dict[str, Any]:
        return {"text": ""}


def _timings(data: dict[str, Any]) -> dict[str, float]:
    """Returns how long the parts took, as llama.cpp says it, and how long the model's loading."""
    said = {
        "load_ms": data.get("load_duration"),
        "prompt_ms": data.get("prompt_eval_duration"),
        "predicted_ms": data.get("eval_duration"),
    }
    return {
        name: value / _NS_PER_MS
        for name, value in said.items()
        if isinstance(value, int) and value >= 0
    }


def _logprobs(entries: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Returns OpenAI's form, in which every token has its list of rivals."""
    if not entries:
        return None
    content = [{"bytes": None, "top_logprobs": [], **entry} for entry in entries]
    return {"content": content}
