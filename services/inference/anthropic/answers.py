"""Makes Anthropic's message of OpenAI's answer."""

from typing import Any

import orjson

from services.inference import errors
from services.inference.anthropic import call_ids, reasons
from services.inference.engines.dialect import Tokens, tokens_of

UNREADABLE_INPUT = "INVALID_JSON"
"""The field of a tool's input that holds what the model wrote where that is no JSON object."""


def to_message(
    data: dict[str, Any],
    message_id: str,
    stops: frozenset[str],
    *,
    shows_thinking: bool = True,
) -> dict[str, Any]:
    """Returns the message.

    Args:
        data: The answer; its model is the one that answered.
        message_id: The message's id.
        stops: Texts at which the answer was to end.
        shows_thinking: Whether the caller wants to read what the model thought.

    Raises:
        MeshError: `ENGINE_FAILED`: the answer is not what it should be.
    """
    try:
        choice = data["choices"][0]
        said = choice["message"]
        content = _content(said, shows_thinking=shows_thinking)
        reason, stop = reasons.stop_of(
            choice,
            stops,
            calls_tools=bool(said.get("tool_calls")),
            refuses=bool(said.get("refusal")),
        )
    except (AttributeError, LookupError, TypeError):
        raise errors.failed("The engine's answer cannot be read.") from None
    usage = data.get("usage")
    tokens = tokens_of(usage) if isinstance(usage, dict) else Tokens()
    message = {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "model": data["model"],
        "content": content,
        "stop_reason": reason,
        "stop_sequence": stop,
        "usage": reasons.usage_of(tokens),
    }
    if "gateway_metadata" in data:
        message["gateway_metadata"] = data["gateway_metadata"]
    return message


def _content(said: dict[str, Any], *, shows_thinking: bool) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = []
    if thought := said.get("reasoning_content") or said.get("reasoning"):
        # Nothing in the mesh signs what models think, or asks for a signature.
        shown = thought if shows_thinking else ""
        content.append({"type": "thinking", "thinking": shown, "signature": ""})
    if text := (said.get("content") or "") + (said.get("refusal") or ""):
        content.append({"type": "text", "text": text})
    for call in said.get("tool_calls") or ():
        function = call["function"]
        content.append(
            {
                "type": "tool_use",
                "id": call_ids.to_anthropic(call.get("id")),
                "name": function["name"],
                "input": _input(function.get("arguments")),
            }
        )
    return content


def _input(arguments: object) -> dict[str, Any]:
    """Returns a call's arguments as an object.

    Models write what is none, and the end of what they write may be missing; Anthropic's answers
    have no other place for it.
    """
    if isinstance(arguments, dict):
        return arguments
    if not arguments:
        return {}
    try:
        found = orjson.loads(str(arguments))
    except orjson.JSONDecodeError:
        found = None
    return found if isinstance(found, dict) else {UNREADABLE_INPUT: str(arguments)}
