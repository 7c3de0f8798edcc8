"""Anthropic's turns as OpenAI's messages.

    assistant   thinking, text, tool_use   one message: reasoning_content, content, tool_calls
    user        tool_result …              one `tool` message each
                text, image                one message after them

Turns of one role that follow each other are one turn, as Anthropic says. OpenAI's tool messages
take no pictures: those go into the user's message that follows.
"""

from typing import Any

import orjson

from services.inference import errors
from services.inference.anthropic import blocks, call_ids
from services.inference.anthropic.checks import (
    at,
    cache_control,
    flag_of,
    list_of,
    object_of,
    only,
    shown,
    text_of,
)

_MESSAGE = frozenset({"role", "content"})
_THINKING = frozenset({"type", "thinking", "signature"})
_TOOL_USE = frozenset({"type", "id", "name", "input", "cache_control", "caller"})
_TOOL_RESULT = frozenset({"type", "tool_use_id", "content", "is_error", "cache_control"})
_ERROR = "Error: "


def to_openai(system: object, turns: object) -> list[dict[str, Any]]:
    """Returns the messages of a request.

    Args:
        system: The field `system`.
        turns: The field `messages`.

    Raises:
        MeshError: `INVALID_ARGUMENT` or `UNSUPPORTED` with the field at fault.
    """
    messages: list[dict[str, Any]] = []
    if system is not None and (said := "\n".join(blocks.texts(system, "system"))):
        messages.append({"role": "system", "content": said})
    turns = list_of(turns, "messages")
    if not turns:
        raise errors.invalid("messages", "must have at least one message")
    for index, turn in enumerate(turns):
        param = f"messages[{index}]"
        only(object_of(turn, param), _MESSAGE, param)
        role, content = turn.get("role"), turn.get("content")
        where = at(param, "content")
        if role == "user":
            _add_user(messages, content, where)
        elif role == "assistant":
            _add_assistant(messages, content, where)
        elif role == "system":
            said = "\n".join(blocks.texts(content, where))
            messages.append({"role": "system", "content": said})
        else:
            raise errors.invalid(at(param, "role"), "must be user or assistant")
    return messages


def _add_user(messages: list[dict[str, Any]], content: object, param: str) -> None:
    if isinstance(content, str):
        _add_parts(messages, [{"type": "text", "text": content}])
        return
    parts: list[dict[str, Any]] = []
    shown_by_tools: list[dict[str, Any]] = []
    for place, block in blocks.blocks_of(content, param):
        kind = block.get("type")
        if kind == "text":
            parts.append({"type": "text", "text": blocks.text(block, place)})
        elif kind == "image":
            parts.append(blocks.image(block, place))
        elif kind == "tool_result":
            if parts:
                raise errors.invalid(place, "a tool_result must stand before all other blocks")
            messages.append(_tool_message(block, place, shown_by_tools))
        else:
            raise blocks.refusal(block, place)
    if not content:
        raise errors.invalid(param, "must not be empty")
    _add_parts(messages, shown_by_tools + parts)


def _add_parts(messages: list[dict[str, Any]], parts: list[dict[str, Any]]) -> None:
    """Adds to the user's turn, which may have begun before."""
    if not parts:
        return
    if messages[-1:] and messages[-1]["role"] == "user":
        before = messages[-1]["content"]
        said = [{"type": "text", "text": before}] if isinstance(before, str) else before
        messages[-1]["content"] = said + parts
    elif len(parts) == 1 and parts[0]["type"] == "text":
        # What every engine and template takes.
        messages.append({"role": "user", "content": parts[0]["text"]})
    else:
        messages.append({"role": "user", "content": parts})


def _tool_message(
    block: dict[str, Any], param: str, pictures: list[dict[str, Any]]
) -> dict[str, Any]:
    only(block, _TOOL_RESULT, param)
    cache_control(block, param)
    call_id = text_of(block, "tool_use_id", param)
    if not call_id:
        raise errors.invalid(at(param, "tool_use_id"), "must be the id of a tool_use")
    said: list[str] = []
    content = block.get("content")
    if isinstance(content, str):
        said.append(content)
    elif content is not None:
        for place, inner in blocks.blocks_of(content, at(param, "content")):
            if inner.get("type") == "text":
                said.append(blocks.text(inner, place))
            elif inner.get("type") == "image":
                pictures.append(blocks.image(inner, place))
            else:
                raise blocks.refusal(inner, place)
    text = "\n".join(said)
    if flag_of(block, "is_error", param):
        # OpenAI's messages have no flag for it, and the model must know.
        text = _ERROR + text
    return {"role": "tool", "tool_call_id": call_ids.to_engine(call_id), "content": text}


def _add_assistant(messages: list[dict[str, Any]], content: object, param: str) -> None:
    said: list[str] = []
    thought: list[str] = []
    calls: list[dict[str, Any]] = []
    if isinstance(content, str):
        said.append(content)
    else:
        for place, block in blocks.blocks_of(content, param):
            kind = block.get("type")
            if kind == "text":
                said.append(blocks.text(block, place))
            elif kind == "thinking":
                only(block, _THINKING, place)
                thought.append(text_of(block, "thinking", place))
            elif kind == "tool_use":
                calls.append(_call(block, place))
            else:
                raise blocks.refusal(block, place)
    if messages[-1:] and messages[-1]["role"] == "assistant":
        message = messages[-1]
    else:
        message = {"role": "assistant", "content": None}
        messages.append(message)
    if said:
        message["content"] = (message["content"] or "") + "".join(said)
    if thought:
        message["reasoning_content"] = message.get("reasoning_content", "") + "".join(thought)
    if calls:
        message["tool_calls"] = message.get("tool_calls", []) + calls
    elif message["content"] is None and "tool_calls" not in message:
        message["content"] = ""


def _call(block: dict[str, Any], param: str) -> dict[str, Any]:
    only(block, _TOOL_USE, param)
    cache_control(block, param)
    by = block.get("caller")
    if by is not None and object_of(by, at(param, "caller")).get("type") != "direct":
        kind = shown(by.get("type"))
        raise errors.unsupported(at(param, "caller"), f"the mesh runs no `{kind}`.")
    call_id, name = text_of(block, "id", param), text_of(block, "name", param)
    if not call_id or not name:
        raise errors.invalid(param, "must have an id and a name")
    arguments = object_of(block.get("input"), at(param, "input"))
    try:
        written = orjson.dumps(arguments).decode()
    except orjson.JSONEncodeError:
        raise errors.invalid_json(f"{at(param, 'input')} is nested too deeply.") from None
    return {
        "id": call_ids.to_engine(call_id),
        "type": "function",
        "function": {"name": name, "arguments": written},
    }
