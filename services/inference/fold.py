"""Makes one answer of a stream, as the engine gives it when it is not asked to stream."""

from typing import Any, Literal

_TOP_LEVEL = ("id", "created", "system_fingerprint", "service_tier")
_PIECES = ("content", "reasoning_content", "reasoning", "refusal")
_KNOWN = frozenset({*_PIECES, "role", "tool_calls"})


class Fold:
    """Collects the objects of a stream's events.

    Args:
        kind: What was asked for.
        model: The model, as the caller named it.
    """

    def __init__(self, kind: Literal["chat", "completion"], model: str) -> None:
        self._kind = kind
        self._model = model
        self._top: dict[str, Any] = {}
        self._choices: dict[int, _Choice] = {}
        self._timings: dict[int, Any] = {}
        self._last_index = 0

    def add(self, data: dict[str, Any]) -> None:
        """Takes in one event's object."""
        for name in _TOP_LEVEL:
            if name in data:
                self._top[name] = data[name]
        if "prompt_progress" in data:
            return
        for choice in data.get("choices") or ():
            index = choice.get("index", 0)
            self._choices.setdefault(index, _Choice()).add(choice)
            self._last_index = index
        if "timings" in data:
            # A usage event follows the answer that it belongs to.
            self._timings[self._last_index] = data["timings"]

    @property
    def is_finished(self) -> bool:
        """Whether every answer of which there is a part has said why it ended."""
        return bool(self._choices) and all(c.is_finished for c in self._choices.values())

    def result(self, usage: dict[str, Any] | None) -> dict[str, Any]:
        """Returns the whole answer, its choices by index.

        Args:
            usage: What it took; left out when None.
        """
        choices = [
            choice.chat(index) if self._kind == "chat" else choice.completion(index)
            for index, choice in sorted(self._choices.items())
        ]
        answer = {
            "choices": choices,
            "model": self._model,
            "object": "chat.completion" if self._kind == "chat" else "text_completion",
            **self._top,
        }
        if usage is not None:
            answer["usage"] = usage
        if self._timings:
            answer["timings"] = self._timings[min(self._timings)]
        return answer


class _Choice:
    """One answer of several."""

    def __init__(self) -> None:
        self._role = "assistant"
        self._text: dict[str, list[str]] = {}
        self._calls: dict[int, dict[str, Any]] = {}
        self._logprobs: dict[str, list[Any]] | None = None
        self._finish_reason: Any = None
        self._extra: dict[str, Any] = {}
        self._unknown: dict[str, Any] = {}

    def add(self, choice: dict[str, Any]) -> None:
        for name, value in choice.items():
            if name == "delta":
                self._add_delta(value or {})
            elif name == "text":
                self._text.setdefault("text", []).append(value or "")
            elif name == "logprobs":
                self._add_logprobs(value)
            elif name == "finish_reason":
                self._finish_reason = value if value is not None else self._finish_reason
            elif name != "index":
                self._extra[name] = value

    def _add_delta(self, delta: dict[str, Any]) -> None:
        self._role = delta.get("role") or self._role
        for name in _PIECES:
            if delta.get(name):
                self._text.setdefault(name, []).append(delta[name])
        for call in delta.get("tool_calls") or ():
            whole = self._calls.setdefault(
                call.get("index", 0),
                {"type": "function", "function": {"name": "", "arguments": ""}},
            )
            function = call.get("function") or {}
            whole["function"]["name"] += function.get("name") or ""
            whole["function"]["arguments"] += function.get("arguments") or ""
            if call.get("id"):
                whole["id"] = call["id"]
        for name, value in delta.items():
            if name not in _KNOWN and value is not None:
                self._add_unknown(name, value)

    def _add_unknown(self, name: str, value: Any) -> None:
        """Adds a part of a field that only some engines have: texts and lists grow, others last."""
        before: Any = self._unknown.get(name)
        grows = isinstance(before, str | list) and type(before) is type(value)
        self._unknown[name] = before + value if grows else value

    def _add_logprobs(self, logprobs: dict[str, Any] | None) -> None:
        if logprobs is None:
            return
        if self._logprobs is None:
            self._logprobs = {}
        for name, values in logprobs.items():
            if isinstance(values, list):
                self._logprobs.setdefault(name, []).extend(values)

    @property
    def is_finished(self) -> bool:
        return bool(self._finish_reason)

    def chat(self, index: int) -> dict[str, Any]:
        message: dict[str, Any] = {"role": self._role, **self._unknown}
        for name in _PIECES[1:]:
            if name in self._text:
                message[name] = "".join(self._text[name])
        content = "".join(self._text.get("content", ()))
        message["content"] = content if content or not self._calls else None
        if self._calls:
            message["tool_calls"] = [call for _, call in sorted(self._calls.items())]
        choice = {"finish_reason": self._finish_reason, "index": index, "message": message}
        if self._logprobs is not None:
            choice["logprobs"] = self._logprobs
        return choice | self._extra

    def completion(self, index: int) -> dict[str, Any]:
        return {
            "text": "".join(self._text.get("text", ())),
            "index": index,
            "logprobs": self._logprobs,
            "finish_reason": self._finish_reason,
        } | self._extra
