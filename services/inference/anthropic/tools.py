"""Anthropic's tools and the choice among them, as OpenAI's."""

from typing import Any

from services.inference import errors
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

_TOOL = frozenset(
    {
        *("type", "name", "description", "input_schema", "cache_control", "strict"),
        # How finely the input is streamed: as finely as the engine gives it.
        "eager_input_streaming",
        *("allowed_callers", "defer_loading", "input_examples"),
    }
)
_CHOICE = frozenset({"type", "name", "disable_parallel_tool_use"})
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def to_openai(tools: object, choice: object) -> dict[str, Any]:
    """Returns the fields `tools`, `tool_choice` and `parallel_tool_calls`, as far as asked for.

    Args:
        tools: The field `tools`.
        choice: The field `tool_choice`.

    Raises:
        MeshError: `INVALID_ARGUMENT` or `UNSUPPORTED` with the field at fault.
    """
    listed = [] if tools is None else list_of(tools, "tools")
    functions = [_function(tool, f"tools[{index}]") for index, tool in enumerate(listed)]
    fields: dict[str, Any] = {}
    if functions:
        fields["tools"] = functions
    if choice is None:
        return fields
    chosen = object_of(choice, "tool_choice")
    only(chosen, _CHOICE, "tool_choice")
    kind = chosen.get("type")
    if not functions and kind != "none":
        raise errors.invalid("tool_choice", "needs tools to choose from")
    if kind == "tool":
        name = text_of(chosen, "name", "tool_choice")
        if name not in {function["function"]["name"] for function in functions}:
            raise errors.invalid("tool_choice.name", "is not the name of one of the tools")
        fields["tool_choice"] = {"type": "function", "function": {"name": name}}
    elif isinstance(kind, str) and kind in _CHOICES:
        if functions:
            fields["tool_choice"] = _CHOICES[kind]
    else:
        raise errors.invalid("tool_choice.type", "must be auto, any, tool or none")
    if flag_of(chosen, "disable_parallel_tool_use", "tool_choice") and functions:
        fields["parallel_tool_calls"] = False
    return fields


def _function(tool: object, param: str) -> dict[str, Any]:
    fields = object_of(tool, param)
    kind = fields.get("type")
    if kind not in (None, "custom"):
        raise errors.unsupported(param, f"the mesh does not run `{shown(kind)}` itself.")
    only(fields, _TOOL, param)
    cache_control(fields, param)
    if flag_of(fields, "defer_loading", param):
        raise errors.unsupported(at(param, "defer_loading"), "all tools are given to the model.")
    if fields.get("allowed_callers") not in (None, ["direct"]):
        raise errors.unsupported(at(param, "allowed_callers"), "only the model calls tools.")
    if fields.get("input_examples"):
        raise errors.unsupported(
            at(param, "input_examples"), "engines take none; put them into the description."
        )
    name = text_of(fields, "name", param)
    if not name:
        raise errors.invalid(at(param, "name"), "must not be empty")
    function: dict[str, Any] = {
        "name": name,
        "parameters": object_of(fields.get("input_schema"), at(param, "input_schema")),
    }
    if fields.get("description") is not None:
        function["description"] = text_of(fields, "description", param)
    if flag_of(fields, "strict", param):
        function["strict"] = True
    return {"type": "function", "function": function}
