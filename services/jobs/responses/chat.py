"""Puts a conversation into the form of chat completions, which every engine speaks.

Reasoning of earlier turns is left out: it is not given to the model a second time.
"""

from collections.abc import Iterable
from typing import Any

from services.jobs.responses.items import Item

_ROLES = {"developer": "system"}
"""Templates of open models know the role `system` alone."""


def messages(instructions: str | None, items: Iterable[Item]) -> list[dict[str, Any]]:
    """Returns the messages of a chat.

    Args:
        instructions: What stands before all items; None for nothing.
        items: The conversation, oldest first.
    """
    made: list[dict[str, Any]] = []
    if instructions is not None:
        made.append({"role": "system", "content": instructions})
    for item in items:
        kind = item["type"]
        if kind == "message":
            made.append(_message(item))
        elif kind == "function_call":
            _add_call(made, item)
        elif kind == "function_call_output":
            made.append(
                {
                    "role": "tool",
                    "tool_call_id": item["call_id"],
                    "content": _content(item["output"]),
                }
            )
    return made


def _message(item: Item) -> dict[str, Any]:
    role = item["role"]
    return {"role": _ROLES.get(role, role), "content": _content(item["content"])}


def _add_call(made: list[dict[str, Any]], item: Item) -> None:
    """Adds a call to the assistant's message before it: one answer is one message."""
    if not made or made[-1]["role"] != "assistant":
        made.append({"role": "assistant", "content": None})
    made[-1].setdefault("tool_calls", []).append(
        {
            "id": item["call_id"],
            "type": "function",
            "function": {"name": item["name"], "arguments": item["arguments"]},
        }
    )


def _content(parts: str | list[Item]) -> str | list[dict[str, Any]]:
    """Returns text as text where it can be: some templates take nothing else."""
    if isinstance(parts, str):
        return parts
    texts = [_text(part) for part in parts]
    if len(texts) < 2 and None not in texts:
        return "".join(text for text in texts if text is not None)
    return [
        {"type": "text", "text": text} if text is not None else _part(part)
        for text, part in zip(texts, parts, strict=True)
    ]


def _text(part: Item) -> str | None:
    text: str | None = part.get("text", part.get("refusal"))
    return text


def _part(part: Item) -> dict[str, Any]:
    if part["type"] == "input_image":
        return {
            "type": "image_url",
            "image_url": {"url": part["image_url"], "detail": part["detail"]},
        }
    if part["type"] == "input_file":
        return {"type": "file", "file": {k: v for k, v in part.items() if k != "type"}}
    return part
