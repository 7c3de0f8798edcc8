"""One call and what came back of it."""

import time
from array import array
from dataclasses import dataclass, field
from typing import Any

import orjson

now_s = time.perf_counter
"""The clock of all times here; that of an event loop may be one of whole milliseconds."""

_MAX_BODY_BYTES = 16 * 1024 * 1024


@dataclass(slots=True)
class Call:
    """What is known of a call; times are seconds by `now_s`.

    Attributes:
        meant: When it was meant to begin.
        sent: When it was sent; None while it was not.
        first: When the first chunk with content came; None before that, and without a stream.
        last: When the last chunk with content came, else the last byte.
        gaps: Seconds between two chunks with content.
        error: Why it failed: the mesh's code, or what happened; empty when it was answered.
        prompt_tokens: As the answer's usage says; None where it says nothing.
        output_tokens: As the answer's usage says; None where it says nothing.
        cached_tokens: Prompt tokens that were in a cache, by the usage; None where it is silent.
        node: Who answered, by `x-mesh-node`.
        cache: `x-mesh-cache`: `hit`, `miss`, or empty where no earlier answer was looked for.
    """

    meant: float
    sent: float | None = None
    first: float | None = None
    last: float | None = None
    gaps: "array[float]" = field(default_factory=lambda: array("d"))
    error: str = ""
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    node: str = ""
    cache: str = ""

    @property
    def ttft_s(self) -> float | None:
        """Time to first token."""
        return None if self.first is None else self.first - self.meant

    @property
    def e2e_s(self) -> float | None:
        """Time to the end of the answer."""
        return None if self.last is None else self.last - self.meant

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first."""
        if self.first is None or self.last is None or (self.output_tokens or 0) < 2:
            return None
        return (self.last - self.first) / ((self.output_tokens or 0) - 1)


class Reading:
    """Reads an answer into its call, in pieces as they come.

    Args:
        call: The call.
        is_stream: Whether a good answer comes as a stream of events.
    """

    def __init__(self, call: Call, is_stream: bool) -> None:
        self._call = call
        self._is_stream = is_stream
        self._status = 0
        self._rest = b""
        self._is_whole = False

    def header(self, name: bytes, value: bytes) -> None:
        """Takes a header of the answer."""
        name = name.lower()
        if name == b"x-mesh-node":
            self._call.node = value.decode("latin-1")
        elif name == b"x-mesh-cache":
            self._call.cache = value.decode("latin-1")

    def status(self, status: int) -> None:
        """Takes the status of the answer."""
        self._status = status

    def body(self, data: bytes, now: float) -> None:
        """Takes a piece of the body that came at `now`.

        Raises:
            ValueError: It is no answer of a mesh.
        """
        if self._status != 200 or not self._is_stream:
            self._rest += data
            if len(self._rest) > _MAX_BODY_BYTES:
                raise ValueError("answer too long")
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _MAX_BODY_BYTES:
            raise ValueError("event too long")
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip(), now)

    def end(self, now: float) -> None:
        """Takes the end of the answer; the call then has an error or all that is known of it."""
        call = self._call
        if self._status == 200 and self._is_stream:
            if not self._is_whole:
                call.error = call.error or "stream_cut"
            return
        said = _object(self._rest)
        if self._status != 200:
            call.error = _code(said) or f"http_{self._status}"
        elif said is None:
            call.error = "not_json"
        else:
            call.last = now
            self._usage(said.get("usage"))

    def _event(self, data: bytes, now: float) -> None:
        if data == b"[DONE]":
            self._is_whole = not self._call.error
            return
        said = _object(data)
        if said is None:
            raise ValueError("event is no JSON")
        if code := _code(said):
            self._call.error = code
            return
        if any(_has_content(choice) for choice in said.get("choices") or ()):
            call = self._call
            if call.first is None:
                call.first = now
            elif call.last is not None:
                call.gaps.append(now - call.last)
            call.last = now
        self._usage(said.get("usage"))

    def _usage(self, usage: Any) -> None:
        if not isinstance(usage, dict):
            return
        call = self._call
        call.prompt_tokens = usage.get("prompt_tokens")
        call.output_tokens = usage.get("completion_tokens")
        call.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        said = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return said if isinstance(said, dict) else None


def _code(said: dict[str, Any] | None) -> str:
    """Returns the code of an error in OpenAI's form; empty where there is none."""
    error = said.get("error") if said else None
    if not error:
        return ""
    if not isinstance(error, dict):
        return "error"
    return str(error.get("code") or error.get("type") or "error")


def _has_content(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta") or {}
    wanted = ("content", "reasoning_content", "tool_calls", "refusal")
    return any(delta.get(name) for name in wanted)
