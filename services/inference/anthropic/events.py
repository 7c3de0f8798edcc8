"""Makes Anthropic's stream of OpenAI's.

    message_start, ping
    content_block_start, content_block_delta …, content_block_stop     once for each block
    message_delta (why it ended, what it took), message_stop

One block is open at a time, and each follows the one before.
"""

from typing import Any

import orjson

from services.inference import errors
from services.inference.anthropic import call_ids, reasons
from services.inference.engines.dialect import Tokens, count_of

CONTENT_TYPE = "text/event-stream; charset=utf-8"

_PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_TEXT: dict[str, Any] = {"type": "text", "text": ""}
_THINKING: dict[str, Any] = {"type": "thinking", "thinking": "", "signature": ""}
_DELTA = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,'
    b'"delta":{"type":"%b","%b":%b}}\n\n'
)
_STOP = b'event: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n'


class _Call:
    """A call of a tool, as far as it has come."""

    __slots__ = ("arguments", "id", "is_open", "name")

    def __init__(self) -> None:
        self.id: object = None
        self.name = ""
        # What came before the name.
        self.arguments = ""
        self.is_open = False


class EventStream:
    """One answer.

    Args:
        message_id: The message's id.
        model: The model that answers.
        stops: Texts at which the answer is to end.
        shows_thinking: Whether the caller wants to read what the model thinks.
    """

    def __init__(
        self, message_id: str, model: str, stops: frozenset[str], *, shows_thinking: bool = True
    ) -> None:
        self._id = message_id
        self._model = model
        self._stops = stops
        self._shows_thinking = shows_thinking
        self._has_begun = False
        self._blocks = 0
        self._open = ""
        self._calls: dict[int, _Call] = {}
        self._last: dict[str, Any] | None = None
        self._refuses = False

    def feed(self, objects: list[dict[str, Any]]) -> bytes:
        """Returns the events for what has come.

        Raises:
            MeshError: `ENGINE_FAILED`: it is not what it should be, or a tool called has no name.
        """
        events: list[bytes] = []
        try:
            if not self._has_begun:
                self._has_begun = True
                events.append(self._start(_read(objects)))
            for data in objects:
                for choice in data.get("choices") or ():
                    self._add(choice, events)
        except (AttributeError, LookupError, TypeError, ValueError):
            raise errors.failed("The engine's answer cannot be read.") from None
        return b"".join(events)

    def end(self, tokens: Tokens | None, metadata: dict[str, Any] | None) -> bytes:
        """Returns the last events.

        Args:
            tokens: What the answer took; None is unknown.
            metadata: How it came about, where the caller wants to see that.

        Raises:
            MeshError: `ENGINE_FAILED`: a call of a tool has no name.
        """
        self._check_calls()
        events: list[bytes] = []
        self._close(events)
        reason, stop = reasons.stop_of(
            self._last or {"finish_reason": None},
            self._stops,
            calls_tools=bool(self._calls),
            refuses=self._refuses,
        )
        events.append(
            event(
                "message_delta",
                delta={"stop_reason": reason, "stop_sequence": stop},
                usage=reasons.usage_of(tokens),
            )
        )
        more = {} if metadata is None else {"gateway_metadata": metadata}
        events.append(event("message_stop", **more))
        return b"".join(events)

    def _start(self, tokens: Tokens) -> bytes:
        usage = reasons.usage_of(tokens)
        # Most engines count at the end, and Anthropic's clients insist on numbers here; what
        # `message_delta` says takes their place.
        usage |= {"input_tokens": usage["input_tokens"] or 0, "output_tokens": 0}
        message: dict[str, Any] = {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }
        return event("message_start", message=message) + _PING

    def _add(self, choice: dict[str, Any], events: list[bytes]) -> None:
        delta = choice.get("delta")
        if delta:
            if thought := delta.get("reasoning_content") or delta.get("reasoning"):
                self._enter("thinking", _THINKING, events)
                if self._shows_thinking:
                    self._delta(b"thinking_delta", b"thinking", thought, events)
            if text := delta.get("content"):
                self._enter("text", _TEXT, events)
                self._delta(b"text_delta", b"text", text, events)
            if text := delta.get("refusal"):
                self._refuses = True
                self._enter("text", _TEXT, events)
                self._delta(b"text_delta", b"text", text, events)
            for call in delta.get("tool_calls") or ():
                self._add_call(call, events)
        if choice.get("finish_reason"):
            self._last = choice
        if self._last is not None:
            # Not only at the end: an answer that is kept has been read to its end by then.
            self._check_calls()

    def _check_calls(self) -> None:
        if not all(call.is_open for call in self._calls.values()):
            raise errors.failed("The engine calls a tool without a name.")

    def _add_call(self, piece: dict[str, Any], events: list[bytes]) -> None:
        index = piece.get("index", 0)
        call = self._calls.setdefault(index, _Call())
        function = piece.get("function") or {}
        call.id = call.id or piece.get("id")
        arguments = function.get("arguments") or ""
        if not call.is_open:
            call.name += function.get("name") or ""
            call.arguments += arguments
            if not call.name:
                return
            call.is_open = True
            arguments, call.arguments = call.arguments, ""
            block = {
                "type": "tool_use",
                "id": call_ids.to_anthropic(call.id),
                "name": call.name,
                "input": {},
            }
            self._enter(f"call {index}", block, events)
        elif self._open != f"call {index}":
            raise ValueError("a call goes on after the next block has begun")
        if arguments:
            self._delta(b"input_json_delta", b"partial_json", arguments, events)

    def _enter(self, name: str, block: dict[str, Any], events: list[bytes]) -> None:
        if self._open == name:
            return
        self._close(events)
        self._open = name
        events.append(event("content_block_start", index=self._blocks, content_block=block))

    def _close(self, events: list[bytes]) -> None:
        if self._open:
            events.append(_STOP % self._blocks)
            self._blocks += 1
            self._open = ""

    def _delta(self, kind: bytes, name: bytes, value: str, events: list[bytes]) -> None:
        if not isinstance(value, str):
            raise TypeError("a piece is no text")
        events.append(_DELTA % (self._blocks, kind, name, orjson.dumps(value)))


def _read(objects: list[dict[str, Any]]) -> Tokens:
    """Returns what llama.cpp says of the prompt before it answers."""
    for data in objects:
        if isinstance(progress := data.get("prompt_progress"), dict):
            return Tokens(
                prompt=count_of(progress.get("total")), cached=count_of(progress.get("cache"))
            )
    return Tokens()


def event(kind: str, **fields: Any) -> bytes:
    """Returns one event."""
    data = orjson.dumps({"type": kind, **fields})
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)
