"""How chats and completions are to be answered."""

from collections.abc import Mapping
from typing import Any

from infermesh.inference.v1 import inference_service_pb2 as pb
from services.inference import errors
from services.inference.typed.structs import plain, struct_of

_PRIORITIES: Mapping[int, str] = {
    pb.PRIORITY_LOW: "low",
    pb.PRIORITY_NORMAL: "normal",
    pb.PRIORITY_HIGH: "high",
}
_PRIORITY_NUMBERS = {name: number for number, name in _PRIORITIES.items()}

_SAMPLING = ("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty")
_EXTENSION_TEXTS = ("preferred_framework", "optimization_level", "session_id")
_LOCATION = ("country", "region", "city", "timezone")

SAMPLING_FIELDS = frozenset({*_SAMPLING, "stop", "logit_bias"})
"""What `Sampling` holds of OpenAI's fields."""


def sampling_to_json(sampling: pb.Sampling) -> dict[str, Any]:
    """Returns how tokens are picked."""
    fields: dict[str, Any] = {
        name: getattr(sampling, name)
        for name in _SAMPLING
        if sampling.HasField(name)  # type: ignore[arg-type]
    }
    if sampling.stop:
        fields["stop"] = list(sampling.stop)
    if sampling.logit_bias:
        fields["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    return fields


def sampling_from_json(fields: Mapping[str, Any]) -> pb.Sampling:
    """Returns how tokens are picked. Raises what a wrong type raises."""
    stop = fields.get("stop") or ()
    return pb.Sampling(
        **{name: fields[name] for name in _SAMPLING if fields.get(name) is not None},
        stop=[stop] if isinstance(stop, str) else stop,
        logit_bias={int(token): bias for token, bias in (fields.get("logit_bias") or {}).items()},
    )


def extensions_to_json(request: Any) -> dict[str, Any]:
    """Returns the mesh's own fields of a request, as far as its message has them."""
    fields: dict[str, Any] = {
        name: value for name in _EXTENSION_TEXTS if (value := getattr(request, name, ""))
    }
    if request.fallback_models:
        fields["fallback_models"] = list(request.fallback_models)
    if request.priority:
        fields["priority"] = _PRIORITIES[request.priority]
    if "enable_caching" in request.DESCRIPTOR.fields_by_name and request.HasField("enable_caching"):
        fields["enable_caching"] = request.enable_caching
    return fields


def extensions_from_json(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the mesh's own fields as those of a message."""
    said = {name: fields[name] for name in _EXTENSION_TEXTS if fields.get(name)}
    if models := fields.get("fallback_models"):
        said["fallback_models"] = models
    if priority := fields.get("priority"):
        said["priority"] = _PRIORITY_NUMBERS[priority]
    if fields.get("enable_caching") is not None:
        said["enable_caching"] = fields["enable_caching"]
    return said


def tool_to_json(index: int, tool: pb.Tool) -> dict[str, Any]:
    """Returns a tool.

    Raises:
        MeshError: `INVALID_ARGUMENT`: a tool with free text has what functions have.
    """
    said: dict[str, Any] = {"name": tool.name}
    if tool.description:
        said["description"] = tool.description
    if tool.HasField("custom"):
        for name in ("parameters", "strict"):
            if tool.HasField(name):
                raise errors.invalid(f"tools[{index}].{name}", "is of functions, not of free text")
        if grammar := tool.custom.grammar:
            form = {"definition": grammar, "syntax": tool.custom.grammar_syntax}
            said["format"] = {"type": "grammar", "grammar": form}
        return {"type": "custom", "custom": said}
    if tool.HasField("parameters"):
        said["parameters"] = plain(tool.parameters)
    if tool.HasField("strict"):
        said["strict"] = tool.strict
    return {"type": "function", "function": said}


def tool_from_json(fields: Mapping[str, Any]) -> pb.Tool:
    """Returns a tool. Raises what another form than OpenAI's raises."""
    kind = fields.get("type") or "function"
    said = fields[kind]
    tool = pb.Tool(name=said["name"], description=said.get("description") or "")
    if kind == "custom":
        tool.custom.SetInParent()
        form = said.get("format") or {}
        if form.get("type") == "grammar":
            tool.custom.grammar = form["grammar"]["definition"]
            tool.custom.grammar_syntax = form["grammar"]["syntax"]
        return tool
    if said.get("parameters") is not None:
        tool.parameters.CopyFrom(struct_of(said["parameters"]))
    if said.get("strict") is not None:
        tool.strict = said["strict"]
    return tool


def choice_to_json(choice: pb.ToolChoice) -> Any:
    """Returns how tools are to be used."""
    kind = choice.WhichOneof("choice")
    if kind == "mode":
        return choice.mode
    if kind == "allowed_tools":
        allowed = choice.allowed_tools
        tools = [{"type": "function", "function": {"name": n}} for n in allowed.function_names]
        tools += [{"type": "custom", "custom": {"name": n}} for n in allowed.custom_names]
        return {"type": kind, kind: {"mode": allowed.mode, "tools": tools}}
    if kind == "custom_name":
        return {"type": "custom", "custom": {"name": choice.custom_name}}
    return {"type": "function", "function": {"name": choice.function_name}}


def choice_from_json(said: Any) -> pb.ToolChoice:
    """Returns how tools are to be used. Raises what another form than OpenAI's raises."""
    if isinstance(said, str):
        return pb.ToolChoice(mode=said)
    kind = said["type"]
    if kind == "allowed_tools":
        allowed = pb.AllowedTools(mode=said[kind]["mode"])
        for tool in said[kind]["tools"]:
            is_custom = tool["type"] == "custom"
            names = allowed.custom_names if is_custom else allowed.function_names
            names.append(tool[tool["type"]]["name"])
        return pb.ToolChoice(allowed_tools=allowed)
    if kind == "custom":
        return pb.ToolChoice(custom_name=said[kind]["name"])
    return pb.ToolChoice(function_name=said["function"]["name"])


def format_to_json(response_format: pb.ResponseFormat) -> dict[str, Any]:
    """Returns the form that the answer must have."""
    kind = response_format.WhichOneof("format")
    if kind != "json_schema":
        return {"type": kind}
    schema = response_format.json_schema
    fields: dict[str, Any] = {"name": schema.name, "schema": plain(schema.schema)}
    if schema.description:
        fields["description"] = schema.description
    if schema.HasField("strict"):
        fields["strict"] = schema.strict
    return {"type": kind, kind: fields}


def format_from_json(fields: Mapping[str, Any]) -> pb.ResponseFormat:
    """Returns the form that the answer must have. Raises what another form raises."""
    kind = fields["type"]
    if kind == "text":
        return pb.ResponseFormat(text=True)
    if kind == "json_object":
        return pb.ResponseFormat(json_object=True)
    said = fields[kind]
    schema = pb.JsonSchema(
        name=said["name"],
        schema=struct_of(said.get("schema") or {}),
        description=said.get("description") or "",
    )
    if said.get("strict") is not None:
        schema.strict = said["strict"]
    return pb.ResponseFormat(json_schema=schema)


def search_to_json(search: pb.WebSearchOptions) -> dict[str, Any]:
    """Returns how the web is searched."""
    fields: dict[str, Any] = {}
    if search.search_context_size:
        fields["search_context_size"] = search.search_context_size
    if search.HasField("user_location"):
        location = search.user_location
        place = {name: value for name in _LOCATION if (value := getattr(location, name))}
        fields["user_location"] = {"type": "approximate", "approximate": place}
    return fields


def search_from_json(fields: Mapping[str, Any]) -> pb.WebSearchOptions:
    """Returns how the web is searched. Raises what another form than OpenAI's raises."""
    search = pb.WebSearchOptions(search_context_size=fields.get("search_context_size") or "")
    if (location := fields.get("user_location")) is not None:
        place = location["approximate"]
        search.user_location.CopyFrom(
            pb.UserLocation(**{name: place[name] for name in _LOCATION if place.get(name)})
        )
    return search
