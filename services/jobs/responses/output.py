"""Makes a response's items of a chat's pieces, and tells of each step in OpenAI's events.

An answer that came whole is one piece, so that both ways of answering end in the same items:

    reasoning          → item reasoning,     part reasoning_text
    content, refusal   → item message,       parts output_text, refusal
    tool_calls[i]      → item function_call, one each
"""

from collections.abc import Iterable
from typing import Any

from services.jobs.responses.items import Item, new_id

Event = dict[str, Any]

_STATUS = {"length": "incomplete", "content_filter": "incomplete"}
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


class Output:
    """The items of one response.

    Attributes:
        items: The items so far; they grow.
        model: The model that answers; empty until a piece has named it.
        usage: What it took, as the chat says it; None until it is known.
        finish_reason: Why the answer ended, in the chat's words; None until it has.
        gateway_metadata: How the answer came about, where the caller wants to see it.
    """

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.model = ""
        self.usage: dict[str, Any] | None = None
        self.finish_reason: str | None = None
        self.gateway_metadata: dict[str, Any] | None = None
        self._text: _Text | None = None
        self._calls: dict[int, _Call] = {}

    def feed(self, piece: dict[str, Any]) -> list[Event]:
        """Takes in a piece, a chunk of a stream or a whole chat; returns what happened."""
        self.model = self.model or piece.get("model") or ""
        if isinstance(piece.get("usage"), dict):
            self.usage = piece["usage"]
        if isinstance(piece.get("gateway_metadata"), dict):
            self.gateway_metadata = piece["gateway_metadata"]
        events: list[Event] = []
        for choice in piece.get("choices") or ():
            self._add(choice.get("delta") or choice.get("message") or {}, choice, events)
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
        return events

    def finish(self) -> list[Event]:
        """Ends the items that are open; returns what happened."""
        status = _STATUS.get(self.finish_reason or "", "completed")
        return self._close(status)

    def break_off(self) -> list[Event]:
        """Ends the items that are open as ones that broke off; returns what happened."""
        return self._close("incomplete")

    @property
    def incomplete_reason(self) -> str | None:
        """Why the response is not all that it could be; None where it is."""
        return _INCOMPLETE.get(self.finish_reason or "")

    def _add(self, delta: dict[str, Any], choice: dict[str, Any], events: list[Event]) -> None:
        reasoning = delta.get("reasoning_content") or delta.get("reasoning")
        if isinstance(reasoning, str) and reasoning:
            self._in("reasoning", "reasoning_text", events).add(reasoning, [], events)
        if content := delta.get("content"):
            logprobs = _logprobs(choice)
            self._in("message", "output_text", events).add(content, logprobs, events)
        if refusal := delta.get("refusal"):
            self._in("message", "refusal", events).add(refusal, [], events)
        for position, call in enumerate(delta.get("tool_calls") or ()):
            self._add_call(call.get("index", position), call, events)

    def _in(self, kind: str, part: str, events: list[Event]) -> "_Text":
        """Returns the item and part that text goes into, and opens them where they are not."""
        text = self._text
        if text is not None and text.item["type"] != kind:
            text.close("completed", events)
            text = self._text = None
        if text is None:
            text = self._text = _Text(kind, len(self.items))
            self.items.append(text.item)
            text.open(events)
        text.turn_to(part, events)
        return text

    def _add_call(self, index: int, delta: dict[str, Any], events: list[Event]) -> None:
        call = self._calls.get(index)
        if call is None:
            if self._text is not None:
                self._text.close("completed", events)
                self._text = None
            call = self._calls[index] = _Call(delta, len(self.items))
            self.items.append(call.item)
            call.open(events)
        call.add(delta.get("function") or {}, events)

    def _close(self, status: str) -> list[Event]:
        events: list[Event] = []
        if self._text is not None:
            self._text.close(status, events)
            self._text = None
        # Not earlier: engines may go on with a call after they have begun another.
        for call in self._calls.values():
            call.close(status, events)
        self._calls = {}
        return events


class _Text:
    """A message, or reasoning, that grows."""

    def __init__(self, kind: str, index: int) -> None:
        self.item: Item
        if kind == "message":
            self.item = {
                "id": new_id("msg"),
                "type": kind,
                "status": "in_progress",
                "role": "assistant",
                "content": [],
            }
        else:
            self.item = {
                "id": new_id("rs"),
                "type": kind,
                "status": "in_progress",
                "summary": [],
                "content": [],
            }
        self._index = index
        self._part: Item | None = None
        self._pieces: list[str] = []
        self._logprobs: list[Any] = []

    def open(self, events: list[Event]) -> None:
        events.append(_event("output_item.added", output_index=self._index, item=_copy(self.item)))

    def turn_to(self, kind: str, events: list[Event]) -> None:
        if self._part is not None and self._part["type"] == kind:
            return
        self._close_part(events)
        self._part = _new_part(kind)
        self.item["content"].append(self._part)
        events.append(self._of_part("content_part.added", part=dict(self._part)))

    def add(self, piece: str, logprobs: list[Any], events: list[Event]) -> None:
        part = self._part
        assert part is not None  # noqa: S101 - `turn_to` has set it
        self._pieces.append(piece)
        self._logprobs += logprobs
        more = {"logprobs": logprobs} if part["type"] == "output_text" else {}
        events.append(self._of_part(f"{part['type']}.delta", delta=piece, **more))

    def close(self, status: str, events: list[Event]) -> None:
        self._close_part(events)
        self.item["status"] = status
        events.append(_event("output_item.done", output_index=self._index, item=_copy(self.item)))

    def _close_part(self, events: list[Event]) -> None:
        part = self._part
        if part is None:
            return
        text = "".join(self._pieces)
        kind = part["type"]
        name = "refusal" if kind == "refusal" else "text"
        part[name] = text
        more: dict[str, Any] = {}
        if kind == "output_text":
            part["logprobs"] = more["logprobs"] = self._logprobs
        events.append(self._of_part(f"{kind}.done", **{name: text}, **more))
        events.append(self._of_part("content_part.done", part=dict(part)))
        self._part, self._pieces, self._logprobs = None, [], []

    def _of_part(self, kind: str, **fields: Any) -> Event:
        return _event(
            kind,
            item_id=self.item["id"],
            output_index=self._index,
            content_index=len(self.item["content"]) - 1,
            **fields,
        )


class _Call:
    """A call of a function of the caller's, whose arguments grow."""

    def __init__(self, delta: dict[str, Any], index: int) -> None:
        function = delta.get("function") or {}
        self.item: Item = {
            "id": new_id("fc"),
            "type": "function_call",
            "status": "in_progress",
            "call_id": delta.get("id") or new_id("call"),
            "name": function.get("name") or "",
            "arguments": "",
        }
        self._index = index
        self._pieces: list[str] = []

    def open(self, events: list[Event]) -> None:
        events.append(_event("output_item.added", output_index=self._index, item=dict(self.item)))

    def add(self, function: dict[str, Any], events: list[Event]) -> None:
        if not self.item["name"]:
            self.item["name"] = function.get("name") or ""
        if piece := function.get("arguments"):
            self._pieces.append(piece)
            events.append(self._of("function_call_arguments.delta", delta=piece))

    def close(self, status: str, events: list[Event]) -> None:
        self.item["arguments"] = "".join(self._pieces)
        self.item["status"] = status
        events.append(
            self._of(
                "function_call_arguments.done",
                name=self.item["name"],
                arguments=self.item["arguments"],
            )
        )
        events.append(_event("output_item.done", output_index=self._index, item=dict(self.item)))

    def _of(self, kind: str, **fields: Any) -> Event:
        return _event(kind, item_id=self.item["id"], output_index=self._index, **fields)


def _event(kind: str, **fields: Any) -> Event:
    return {"type": f"response.{kind}", **fields}


def _new_part(kind: str) -> Item:
    if kind == "output_text":
        return {"type": kind, "text": "", "annotations": [], "logprobs": []}
    return {"type": kind, "refusal" if kind == "refusal" else "text": ""}


def _copy(item: Item) -> Item:
    """Returns the item as it is now: an event must not change while it waits to be written."""
    return {**item, "content": [dict(part) for part in item["content"]]}


def _logprobs(choice: dict[str, Any]) -> list[dict[str, Any]]:
    found = (choice.get("logprobs") or {}).get("content")
    return [_logprob(each) for each in found] if isinstance(found, list) else []


def _logprob(each: dict[str, Any]) -> dict[str, Any]:
    return {**_token(each), "top_logprobs": _tokens(each.get("top_logprobs") or ())}


def _tokens(listed: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [_token(each) for each in listed]


def _token(each: dict[str, Any]) -> dict[str, Any]:
    token = each.get("token") or ""
    # OpenAI's clients ask for the bytes; some engines leave them out.
    known = each.get("bytes")
    return {
        "token": token,
        "bytes": known if known is not None else list(token.encode()),
        "logprob": each.get("logprob"),
    }
