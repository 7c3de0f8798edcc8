"""Reads an engine's server-sent events: what they carry, and how their stream ended.

StreamReader          parses every event; for answers that are folded or typed
StreamFilter          passes bytes on and parses the few events that it must; for OpenAI streams
"""

import re
from collections.abc import Callable
from typing import Any

import orjson

from services.inference.http_client import EngineConnectionError

MAX_EVENT_BYTES = 8 * 1024 * 1024
"""The longest single event; only one that breaks off, or has no end, is longer."""

_DONE = b"data: [DONE]\n\n"
# The quote after it tells a reason from null.
_FINISH = b'"finish_reason":"'
_SPACED_FINISH = b'"finish_reason": "'
_SPACED = b'"choices": '
_EVENT_END = re.compile(rb"\r?\n\r?\n")
_LAST_NULL_USAGE = b',"usage":null}\n\n'
_NULL_USAGE = re.compile(rb',\s*"usage"\s*:\s*null|"usage"\s*:\s*null\s*,')

Restore = Callable[[bytes, bytes], bytes]
"""Makes the last event of an answer what it would be without usage, from it and the usage event."""


class StreamReader:
    """Parses an engine's events.

    Attributes:
        usages: The usage objects that came, in order.
        has_content: Whether a first piece of an answer has come.
        is_done: Whether the engine ended the stream with `[DONE]`.
        error: The error object that the engine sent, if it did.
        error_event: The event that held it.
    """

    def __init__(self) -> None:
        self.usages: list[dict[str, Any]] = []
        self.has_content = False
        self.is_done = False
        self.error: dict[str, Any] | None = None
        self.error_event = b""
        self._rest = b""

    @property
    def is_in_event(self) -> bool:
        """Whether a part of an event waits for the rest of it."""
        return bool(self._rest)

    def read(self, piece: bytes) -> list[dict[str, Any]]:
        """Returns the objects of the events that are complete now.

        Raises:
            EngineConnectionError: What the engine sends is not a stream of JSON events.
        """
        objects = []
        for event in _split(self._whole(piece)):
            data = self._note(event)
            if self.error is not None:
                break
            if data is not None:
                objects.append(data)
        return objects

    def _whole(self, piece: bytes) -> bytes:
        """Returns what is complete, and keeps the rest for the next time."""
        if self._rest:
            piece = self._rest + piece
        if piece.endswith(b"\n\n"):
            self._rest = b""
            return piece
        lf, crlf = piece.rfind(b"\n\n"), piece.rfind(b"\n\r\n")
        end = max(lf + 2 if lf >= 0 else 0, crlf + 3 if crlf >= 0 else 0)
        self._rest = piece[end:]
        if len(self._rest) > MAX_EVENT_BYTES:
            raise EngineConnectionError("an event of the engine's has no end")
        return piece[:end]

    def _note(self, event: bytes) -> dict[str, Any] | None:
        """Returns an event's object; None for comments, `[DONE]` and `null`."""
        text = _data(event)
        if text is None:
            return None
        if text == b"[DONE]":
            self.is_done = True
            return None
        try:
            data = orjson.loads(text)
        except orjson.JSONDecodeError:
            raise EngineConnectionError("an event of the engine's is not JSON") from None
        if not isinstance(data, dict):
            # llama.cpp says `null` where it has nothing to say yet.
            return None
        if (error := data.get("error")) is not None:
            self.error = error if isinstance(error, dict) else {"message": str(error)}
            self.error_event = event
            return None
        if isinstance(usage := data.get("usage"), dict):
            self.usages.append(usage)
        if not self.has_content:
            self.has_content = _carries_content(data)
        return data


class StreamFilter(StreamReader):
    """Passes a stream on byte for byte, without what only the proxy asked for.

    Args:
        hides_usage: Whether the proxy asked for usage that the caller did not ask for.
        hides_progress: Whether the proxy asked for progress that the caller did not ask for.
        restore: The dialect's own way of undoing what asking for usage changes elsewhere.

    Attributes:
        is_finished: Whether an event has said why the answer ended.
    """

    def __init__(self, *, hides_usage: bool, hides_progress: bool, restore: Restore) -> None:
        super().__init__()
        self.is_finished = False
        self._hides_usage = hides_usage
        self._hides_progress = hides_progress
        self._restore = restore
        self._held = b""
        # The quotes make the marks safe: inside a JSON text they would be escaped.
        self._marks = [b'"usage":', b'data: {"error":', b"data: [DONE]\r", _FINISH]
        if hides_progress:
            self._marks.append(b'"prompt_progress":')

    def feed(self, piece: bytes) -> bytes:
        """Returns what to send to the caller now. Raises like `read`."""
        piece = self._whole(piece)
        if not piece:
            return piece
        if self._hides_usage and _LAST_NULL_USAGE in piece:
            # The last brace is the event's own, and so the field is. Many engines say it each time.
            piece = piece.replace(_LAST_NULL_USAGE, b"}\n\n")
        if not self.has_content and _SPACED_FINISH not in self._marks and _SPACED in piece:
            self._marks.append(_SPACED_FINISH)
        start = self._first_mark(piece)
        if start >= 0:
            # What stands before the first event of interest passes as it is.
            return piece[:start] + self._sift(piece[start:]) if start else self._sift(piece)
        if not self.has_content:
            for event in _split(piece):
                self._note(event)
                if self.has_content:
                    break
        if piece.endswith(_DONE) and (len(piece) == len(_DONE) or piece[-len(_DONE) - 1] == 10):
            self.is_done = True
        return piece

    def plain(self, piece: bytes) -> bytes:
        """Returns what `feed` would, where that needs no parsing and notes nothing; else b""."""
        if (
            not self.has_content
            or self.is_done
            or self._rest
            or self._held
            or not piece.endswith(b"\n\n")
            or piece.endswith(_DONE)
        ):
            return b""
        if self._hides_usage and _LAST_NULL_USAGE in piece:
            piece = piece.replace(_LAST_NULL_USAGE, b"}\n\n")
        for mark in self._marks:
            if mark in piece:
                return b""
        return piece

    def _first_mark(self, piece: bytes) -> int:
        """Returns where the first event begins that must be parsed, or -1."""
        if self._held:
            return 0
        first = len(piece)
        for mark in self._marks:
            if (found := piece.find(mark, 0, first)) >= 0:
                first = found
        if first == len(piece):
            return -1
        if not self.has_content or b"\r" in piece:
            return 0
        # From the start of the mark's own event, of which the mark may be the beginning.
        return piece.rfind(b"\n\n", 0, first) + 2 if first and b"\n\n" in piece[:first] else 0

    def rest(self) -> bytes:
        """Returns the events that are held back, when nothing more comes."""
        held, self._held = self._held, b""
        return held

    def _sift(self, piece: bytes) -> bytes:
        kept = []
        for event in _split(piece):
            data = self._note(event)
            if self.error is not None:
                break
            if data is not None:
                if self._hides_progress and "prompt_progress" in data:
                    continue
                if self._hides_usage and "usage" in data:
                    if data["usage"] is not None and not data.get("choices"):
                        kept.append(self._restore(self._held, event))
                        self._held = b""
                        continue
                    if data["usage"] is None:
                        event = _NULL_USAGE.sub(b"", event, count=1)
            kept.append(self.rest())
            is_last = data is not None and has_finished(data)
            self.is_finished = self.is_finished or is_last
            if is_last and self._hides_usage:
                self._held = event
            else:
                kept.append(event)
        return b"".join(kept)


def _split(piece: bytes) -> list[bytes]:
    """Returns whole events, each with its end."""
    if b"\r" not in piece:
        return [event + b"\n\n" for event in piece.split(b"\n\n")[:-1]]
    events = []
    start = 0
    for end in _EVENT_END.finditer(piece):
        events.append(piece[start : end.end()])
        start = end.end()
    return events


def _data(event: bytes) -> bytes | None:
    """Returns the data of an event, or None where it has none."""
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2:
        return event[6:-2]
    lines = [
        line[6:] if line.startswith(b"data: ") else line[5:]
        for line in event.splitlines()
        if line.startswith(b"data:")
    ]
    return b"\n".join(lines).strip() if lines else None


def _choices(data: dict[str, Any]) -> list[dict[str, Any]]:
    choices = data.get("choices")
    return [c for c in choices if isinstance(c, dict)] if isinstance(choices, list) else []


def _carries_content(data: dict[str, Any]) -> bool:
    for choice in _choices(data):
        delta = choice.get("delta")
        if choice.get("text") or choice.get("finish_reason"):
            return True
        if isinstance(delta, dict) and any(
            delta.get(name) for name in ("content", "reasoning_content", "reasoning", "tool_calls")
        ):
            return True
    return False


def has_finished(data: dict[str, Any]) -> bool:
    """Returns whether an event's object says why an answer ended."""
    return any(choice.get("finish_reason") for choice in _choices(data))
