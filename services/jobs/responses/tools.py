"""Reads `tools` and `tool_choice`: functions of the caller's, and no tools of the mesh's own."""

from collections.abc import Mapping
from typing import Any

from services.jobs import fields as check
from services.jobs.errors import refuse, unsupported

_MAX_TOOLS = 128
_MAX_NAME_CHARS = 128
_MODES = ("none", "auto", "required")
_NOTED = ("name", "description", "parameters", "strict")


def read(said: Mapping[str, Any], chat: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the tools as the response shows them, and gives them to the chat.

    Raises:
        MeshError: `UNSUPPORTED` for a tool that is no function; `INVALID_ARGUMENT`.
    """
    listed = said.get("tools")
    if listed is None:
        return []
    if not isinstance(listed, list) or len(listed) > _MAX_TOOLS:
        refuse("tools", f"must be a list of at most {_MAX_TOOLS} tools")
    shown = [_function(tool, f"tools[{index}]") for index, tool in enumerate(listed)]
    if shown:
        chat["tools"] = [
            {
                "type": "function",
                "function": {k: tool[k] for k in _NOTED if tool[k] is not None},
            }
            for tool in shown
        ]
    return shown


def _function(tool: Any, where: str) -> dict[str, Any]:
    if not isinstance(tool, dict):
        refuse(where, "must be an object")
    if tool.get("type") != "function":
        raise unsupported(
            f"{where}.type", "the mesh has no tools of its own; only `function` is supported"
        )
    name = check.text(tool, "name", _MAX_NAME_CHARS, f"{where}.")
    if not name:
        refuse(f"{where}.name", "must be the name of a function")
    parameters = tool.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        refuse(f"{where}.parameters", "must be a JSON schema")
    strict = tool.get("strict")
    if strict is not None and not isinstance(strict, bool):
        refuse(f"{where}.strict", "must be true or false")
    return {
        "type": "function",
        "name": name,
        "description": check.text(tool, "description", None, f"{where}."),
        "parameters": parameters,
        "strict": strict,
    }


def read_choice(said: Mapping[str, Any], chat: dict[str, Any]) -> Any:
    """Returns the choice as the response shows it, and sets the chat's fields.

    Raises:
        MeshError: `INVALID_ARGUMENT` or `UNSUPPORTED`.
    """
    choice = said.get("tool_choice")
    if choice is None:
        return "auto"
    names = {tool["function"]["name"] for tool in chat.get("tools", ())}
    if isinstance(choice, str):
        if choice not in _MODES:
            refuse("tool_choice", f"must be one of {', '.join(_MODES)}, or an object")
        if names:
            chat["tool_choice"] = choice
        elif choice == "required":
            refuse("tool_choice", "there are no tools to choose from")
        return choice
    if not isinstance(choice, dict):
        refuse("tool_choice", "must be a text or an object")
    if choice.get("type") == "function":
        name = _known(choice, names, "tool_choice.name")
        chat["tool_choice"] = {"type": "function", "function": {"name": name}}
        return {"type": "function", "name": name}
    if choice.get("type") == "allowed_tools":
        return _allowed(choice, names, chat)
    raise unsupported("tool_choice.type", "must be function or allowed_tools")


def _allowed(choice: Mapping[str, Any], names: set[str], chat: dict[str, Any]) -> dict[str, Any]:
    mode = choice.get("mode")
    if mode not in ("auto", "required"):
        refuse("tool_choice.mode", "must be auto or required")
    listed = choice.get("tools")
    if not isinstance(listed, list) or not listed:
        refuse("tool_choice.tools", "must be a list that is not empty")
    allowed = {
        _known(tool, names, f"tool_choice.tools[{index}].name") for index, tool in enumerate(listed)
    }
    # The model sees no others, so that it cannot call them.
    chat["tools"] = [tool for tool in chat["tools"] if tool["function"]["name"] in allowed]
    chat["tool_choice"] = mode
    return {"type": "allowed_tools", "mode": mode, "tools": listed}


def _known(tool: Any, names: set[str], where: str) -> str:
    name = tool.get("name") if isinstance(tool, dict) else None
    if not isinstance(name, str) or name not in names:
        refuse(where, "must be the name of one of `tools`")
    return name
