"""Says in llama.cpp's words which tools may be called, and refuses what it would pass over.

It knows `auto`, `none` and `required`, takes every other choice for `auto`, and fails (500) on
tools that are no functions.
"""

from typing import Any

from services.inference import errors

_MODALITIES: tuple[object, ...] = (None, [], ["text"])


def tools_of(fields: dict[str, Any]) -> dict[str, Any]:
    """Returns the tools and the choice among them where it knows no such choice.

    Raises:
        MeshError: `UNSUPPORTED` or `INVALID_ARGUMENT` with the field at fault.
    """
    if fields.get("modalities") not in _MODALITIES:
        raise errors.unsupported("modalities", "llama.cpp answers with text only.")
    if fields.get("web_search_options") is not None:
        raise errors.unsupported("web_search_options", "is nothing that llama.cpp can do.")
    tools = fields.get("tools") or []
    by_name: dict[str, Any] = {}
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict) or tool.get("type") != "function":
            raise errors.unsupported(f"tools[{index}]", "llama.cpp knows functions only.")
        name = _function_of(tool)
        if not name:
            raise errors.invalid(f"tools[{index}].function.name", "must be a function's name")
        by_name[name] = tool
    choice = fields.get("tool_choice")
    if choice is None or isinstance(choice, str):
        return {}
    mode, names = _chosen(choice)
    for name in names:
        if name not in by_name:
            raise errors.invalid("tool_choice", "names none of the tools")
    # The model sees no others, so that it calls no others.
    return {"tools": [by_name[name] for name in names], "tool_choice": mode}


def _chosen(choice: object) -> tuple[str, list[str]]:
    """Returns the mode and the functions of a choice that is an object."""
    if name := _function_of(choice):
        return "required", [name]
    allowed = choice.get("allowed_tools") if isinstance(choice, dict) else None
    if isinstance(allowed, dict):
        mode, listed = allowed.get("mode"), allowed.get("tools")
        names = [_function_of(tool) for tool in listed] if isinstance(listed, list) else []
        if mode in ("auto", "required") and names:
            return mode, list(dict.fromkeys(names))
    raise errors.invalid("tool_choice", "must be a mode, a function or a list of allowed functions")


def _function_of(tool: object) -> str:
    """Returns the name of the function that a tool or a choice is; empty where it is none."""
    function = tool.get("function") if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else ""
