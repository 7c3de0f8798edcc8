"""Makes Ollama's answers of OpenAI's: whole ones, and lines of a stream."""

import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import orjson

from services.inference import errors
from services.inference.engines.dialect import Tokens
from services.inference.ollama.pieces import (
    Ending,
    Path,
    Shape,
    call_of,
    logprobs_of,
    timings_of,
    usage_tokens,
    utc_now,
)

_UNREADABLE = (AttributeError, LookupError, TypeError, ValueError)


def whole(
    path: Path,
    model: str,
    data: dict[str, Any],
    total_ns: int,
    now: Callable[[], datetime] = utc_now,
    *,
    is_given_again: bool = False,
) -> bytes:
    """Returns the whole answer.

    Args:
        path: Which of Ollama's paths was called.
        model: The model that answered.
        data: OpenAI's chat or completion.
        total_ns: How long the call was at the node.
        now: Tells the time of day.
        is_given_again: Whether it was made for an earlier call: then no engine took time for it.

    Raises:
        MeshError: `ENGINE_FAILED`: the answer is not what it should be.
    """
    try:
        choice = data["choices"][0]
        said = choice.get("message") or {"content": choice.get("text")}
        text = (said.get("content") or "") + (said.get("refusal") or "")
        thinking = said.get("reasoning_content") or said.get("reasoning") or ""
        calls = [call_of(place, c) for place, c in enumerate(said.get("tool_calls") or ())]
        logprobs = logprobs_of(choice.get("logprobs"))
        reason = choice.get("finish_reason")
    except _UNREADABLE:
        raise errors.failed("The engine's answer cannot be read.") from None
    ending = Ending(
        reason=reason,
        tokens=usage_tokens(data),
        total_ns=total_ns,
        timings={} if is_given_again else timings_of(data),
        metadata=data.get("gateway_metadata"),
    )
    return orjson.dumps(
        Shape(path, model, now).of(text, thinking, calls, logprobs, ending.fields())
    )


def loaded(path: Path, model: str, now: Callable[[], datetime] = utc_now) -> bytes:
    """Returns the answer to a request that only wants the model to be there."""
    ending = {"done": True, "done_reason": "load"}
    return orjson.dumps(Shape(path, model, now).of("", ending=ending))


class Lines:
    """One answer as lines of JSON.

    Args:
        path: Which of Ollama's paths was called.
        model: The model that answers.
        began_ns: When the call came, on the clock.
        clock_ns: A monotonic clock in nanoseconds.
        now: Tells the time of day.
        is_given_again: As `whole` has it.
    """

    def __init__(
        self,
        path: Path,
        model: str,
        *,
        began_ns: int,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        now: Callable[[], datetime] = utc_now,
        is_given_again: bool = False,
    ) -> None:
        self._is_given_again = is_given_again
        self._shape = Shape(path, model, now)
        self._clock_ns = clock_ns
        self._began_ns = began_ns
        self._first_ns: int | None = None
        self._last_ns = began_ns
        self._reason: str | None = None
        self._timings: dict[str, Any] = {}
        self._calls: dict[int, dict[str, Any]] = {}
        self._called = 0

    def feed(self, objects: list[dict[str, Any]]) -> bytes:
        """Returns the lines for what has come; b"" where there is nothing to say.

        Raises:
            MeshError: `ENGINE_FAILED`: it is not what it should be.
        """
        lines: list[bytes] = []
        try:
            for data in objects:
                if not self._is_given_again and (timings := timings_of(data)):
                    self._timings = timings
                for choice in data.get("choices") or ():
                    self._add(choice, lines)
        except _UNREADABLE:
            raise errors.failed("The engine's answer cannot be read.") from None
        if lines:
            self._last_ns = self._clock_ns()
            if self._first_ns is None:
                self._first_ns = self._last_ns
        return b"".join(lines)

    def end(self, tokens: Tokens | None, metadata: dict[str, Any] | None) -> bytes:
        """Returns the last lines.

        Args:
            tokens: What the answer took; None is unknown.
            metadata: How it came about, where the caller wants to see that.

        Raises:
            MeshError: `ENGINE_FAILED`: a call of a tool is not what it should be.
        """
        first = self._first_ns
        ending = Ending(
            reason=self._reason,
            tokens=tokens or Tokens(),
            total_ns=self._clock_ns() - self._began_ns,
            # A single piece says nothing of how long it took.
            eval_ns=None
            if first is None or self._is_given_again
            else (self._last_ns - first) or None,
            timings=self._timings,
            metadata=metadata,
        )
        return _line(self._shape.of("", ending=ending.fields()))

    def _add(self, choice: dict[str, Any], lines: list[bytes]) -> None:
        delta = choice.get("delta") or {"content": choice.get("text")}
        text = (delta.get("content") or "") + (delta.get("refusal") or "")
        thinking = delta.get("reasoning_content") or delta.get("reasoning") or ""
        logprobs = logprobs_of(choice.get("logprobs"))
        if text or thinking or logprobs:
            lines.append(_line(self._shape.of(text, thinking, None, logprobs)))
        for piece in delta.get("tool_calls") or ():
            index = piece.get("index", 0)
            if index not in self._calls:
                # What came before the next call is complete.
                self._say_calls(lines)
                self._calls = {index: {"function": {"name": "", "arguments": ""}}}
            call = self._calls[index]
            function = piece.get("function") or {}
            call["id"] = call.get("id") or piece.get("id")
            call["function"]["name"] += function.get("name") or ""
            call["function"]["arguments"] += function.get("arguments") or ""
        if reason := choice.get("finish_reason"):
            self._reason = reason
            self._say_calls(lines)

    def _say_calls(self, lines: list[bytes]) -> None:
        calls = []
        for call in self._calls.values():
            calls.append(call_of(self._called, call))
            self._called += 1
        self._calls = {}
        if calls:
            lines.append(_line(self._shape.of("", "", calls)))


def _line(said: dict[str, Any]) -> bytes:
    return orjson.dumps(said, option=orjson.OPT_APPEND_NEWLINE)
