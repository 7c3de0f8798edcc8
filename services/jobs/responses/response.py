"""OpenAI's object of a response, from its first event to its last."""

import time
from collections.abc import Callable, Iterable
from typing import Any

from services.jobs.responses.items import Item, new_id
from services.jobs.responses.output import Event, Output
from services.jobs.responses.request import ResponseRequest
from services.kit.errors import MeshError


class Response:
    """One response that is being made.

    Args:
        request: What was asked.
        now_s: Returns seconds since 1970.

    Attributes:
        id: Its id.
        create_time_s: When it was begun, in seconds since 1970.
        status: How it is.
        is_stored: Whether it can be asked for later.
    """

    def __init__(self, request: ResponseRequest, now_s: Callable[[], float] = time.time) -> None:
        self.id = new_id("resp")
        self.create_time_s = now_s()
        self.status = "in_progress"
        self.is_stored = request.is_stored
        self._now_s = now_s
        self._request = request
        self._output = Output()
        self._error: dict[str, Any] | None = None
        self._next = 0

    @property
    def has_finished(self) -> bool:
        """Whether the answer has said why it ended."""
        return self._output.finish_reason is not None

    @property
    def items(self) -> list[Item]:
        """The items of the answer."""
        return self._output.items

    def feed(self, pieces: Iterable[dict[str, Any]]) -> list[Event]:
        """Takes in pieces of the chat; returns the events that they make, in order."""
        made: list[Event] = []
        for piece in pieces:
            events = self._output.feed(piece)
            if self._next == 0 and not made:
                shown = self.as_json()
                made += [
                    {"type": "response.created", "response": shown},
                    {"type": "response.in_progress", "response": shown},
                ]
            made += events
        return self._numbered(made)

    def finish(self) -> list[Event]:
        """Ends the response; returns the events but for the last."""
        events = self._output.finish()
        self.status = "incomplete" if self._output.incomplete_reason else "completed"
        return self._numbered(events)

    def fail(self, error: MeshError) -> list[Event]:
        """Ends the response as failed; returns the events but for the last."""
        events = self._output.break_off()
        self.status = "failed"
        # The only words that OpenAI's clients know for what happens here.
        is_limit = error.http_status == 429
        self._error = {
            "code": "rate_limit_exceeded" if is_limit else "server_error",
            "message": error.message,
        }
        events.append(
            {
                "type": "error",
                "code": error.reason_name.lower(),
                "message": error.message,
                "param": error.param,
            }
        )
        return self._numbered(events)

    def last(self) -> list[Event]:
        """Returns the event that ends the stream, by the status."""
        return self._numbered([{"type": f"response.{self.status}", "response": self.as_json()}])

    def as_json(self) -> dict[str, Any]:
        """Returns the object as it is now."""
        request, output = self._request, self._output
        is_over = self.status != "in_progress"
        reason = output.incomplete_reason if self.status == "incomplete" else None
        shown = {
            "id": self.id,
            "object": "response",
            "created_at": int(self.create_time_s),
            "status": self.status,
            "background": False,
            "completed_at": int(self._now_s()) if self.status == "completed" else None,
            "error": self._error,
            "incomplete_details": {"reason": reason} if reason else None,
            "instructions": request.instructions,
            "model": output.model or request.model,
            "output": output.items if is_over else [],
            "previous_response_id": request.previous_id,
            "store": self.is_stored,
            **request.shown,
            "usage": _usage(output.usage) if is_over else None,
        }
        if output.gateway_metadata is not None:
            shown["gateway_metadata"] = output.gateway_metadata
        return shown

    def _numbered(self, events: list[Event]) -> list[Event]:
        for event in events:
            event["sequence_number"] = self._next
            self._next += 1
        return events


def _usage(usage: dict[str, Any] | None) -> dict[str, Any] | None:
    """Returns the counts in the words of responses; None where the engine gave none.

    OpenAI's form has no word for a detail that is not known: it is 0 here, unknown in the ledger.
    """
    if usage is None:
        return None
    prompt, made = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not isinstance(prompt, int) or not isinstance(made, int):
        return None
    return {
        "input_tokens": prompt,
        "input_tokens_details": {
            "cached_tokens": _detail(usage, "prompt_tokens_details", "cached_tokens"),
            "cache_write_tokens": 0,
        },
        "output_tokens": made,
        "output_tokens_details": {
            "reasoning_tokens": _detail(usage, "completion_tokens_details", "reasoning_tokens")
        },
        "total_tokens": prompt + made,
    }


def _detail(usage: dict[str, Any], group: str, name: str) -> int:
    found = (usage.get(group) or {}).get(name)
    return found if isinstance(found, int) else 0
