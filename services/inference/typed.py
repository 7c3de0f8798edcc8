"""Turns typed chats into OpenAI's JSON and its answers into typed messages. Pure functions."""

from collections.abc import Mapping
from typing import Any

from google.protobuf import struct_pb2, timestamp_pb2

from infermesh.inference.v1 import inference_service_pb2 as pb
from services.inference.engines.dialect import Tokens, count_of, tokens_of

ROLES: Mapping[int, str] = {
    pb.CHAT_ROLE_SYSTEM: "system",
    pb.CHAT_ROLE_DEVELOPER: "developer",
    pb.CHAT_ROLE_USER: "user",
    pb.CHAT_ROLE_ASSISTANT: "assistant",
    pb.CHAT_ROLE_TOOL: "tool",
}
_ROLE_NUMBERS = {name: number for number, name in ROLES.items()}

FINISH_REASONS: Mapping[str, "pb.FinishReason.ValueType"] = {
    "stop": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
    "tool_calls": pb.FINISH_REASON_TOOL_CALLS,
    "function_call": pb.FINISH_REASON_TOOL_CALLS,
    "content_filter": pb.FINISH_REASON_CONTENT_FILTER,
}

_PRIORITIES: Mapping[int, str] = {
    pb.PRIORITY_LOW: "low",
    pb.PRIORITY_NORMAL: "normal",
    pb.PRIORITY_HIGH: "high",
}

_SAMPLING = ("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty")
_OWN_FIELDS = frozenset({"stream", "stream_options"})


def to_openai(request: pb.ChatRequest, *, stream: bool) -> dict[str, Any]:
    """Returns the chat as OpenAI's request; unset fields are left out."""
    fields: dict[str, Any] = {
        "model": request.model,
        "messages": [_message(message) for message in request.messages],
    }
    _add_sampling(fields, request.sampling)
    for name in ("max_tokens", "parallel_tool_calls", "n"):
        if request.HasField(name):
            fields[name] = getattr(request, name)
    if request.tools:
        fields["tools"] = [_tool(tool) for tool in request.tools]
    if request.HasField("tool_choice"):
        choice = request.tool_choice
        fields["tool_choice"] = (
            choice.mode
            if choice.WhichOneof("choice") == "mode"
            else {"type": "function", "function": {"name": choice.function_name}}
        )
    if request.HasField("response_format"):
        fields["response_format"] = _response_format(request.response_format)
    _add_extensions(fields, request)
    if stream:
        fields["stream"] = True
        fields["stream_options"] = {"include_usage": True}
    options = plain(request.engine_options)
    return {k: v for k, v in options.items() if k not in _OWN_FIELDS} | fields


def plain(struct: struct_pb2.Struct) -> dict[str, Any]:
    """Returns a struct as Python's own types; whole numbers become ints."""
    return {name: _plain_value(value) for name, value in struct.fields.items()}


def _plain_value(value: struct_pb2.Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return plain(value.struct_value)
    if kind == "list_value":
        return [_plain_value(item) for item in value.list_value.values]
    if kind == "number_value":
        # Structs know doubles only, but engines take counts as ints.
        number = value.number_value
        return int(number) if number.is_integer() and abs(number) < 2**53 else number
    if kind in (None, "null_value"):
        return None
    return getattr(value, kind)


def _message(message: pb.ChatMessage) -> dict[str, Any]:
    fields: dict[str, Any] = {"role": ROLES[message.role]}
    parts = message.content
    if len(parts) == 1 and parts[0].WhichOneof("part") == "text":
        # Every engine takes a text; not every engine takes parts.
        fields["content"] = parts[0].text
    elif parts:
        fields["content"] = [_part(part) for part in parts]
    else:
        fields["content"] = None if message.tool_calls else ""
    for name in ("name", "tool_call_id", "reasoning_content"):
        if value := getattr(message, name):
            fields[name] = value
    if message.tool_calls:
        fields["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    return fields


def _part(part: pb.ContentPart) -> dict[str, Any]:
    if part.WhichOneof("part") == "text":
        return {"type": "text", "text": part.text}
    image = {"url": part.image_url.url}
    if part.image_url.detail:
        image["detail"] = part.image_url.detail
    return {"type": "image_url", "image_url": image}


def _tool(tool: pb.Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.HasField("parameters"):
        function["parameters"] = plain(tool.parameters)
    if tool.HasField("strict"):
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _response_format(response_format: pb.ResponseFormat) -> dict[str, Any]:
    if response_format.WhichOneof("format") == "json_object":
        return {"type": "json_object"}
    schema = response_format.json_schema
    fields: dict[str, Any] = {"name": schema.name, "schema": plain(schema.schema)}
    if schema.HasField("strict"):
        fields["strict"] = schema.strict
    return {"type": "json_schema", "json_schema": fields}


def _add_sampling(fields: dict[str, Any], sampling: pb.Sampling) -> None:
    for name in _SAMPLING:
        if sampling.HasField(name):  # type: ignore[arg-type]
            fields[name] = getattr(sampling, name)
    if sampling.stop:
        fields["stop"] = list(sampling.stop)
    if sampling.logit_bias:
        fields["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}


def _add_extensions(fields: dict[str, Any], request: pb.ChatRequest) -> None:
    if request.preferred_framework:
        fields["preferred_framework"] = request.preferred_framework
    if request.fallback_models:
        fields["fallback_models"] = list(request.fallback_models)
    if request.HasField("enable_caching"):
        fields["enable_caching"] = request.enable_caching
    if request.optimization_level:
        fields["optimization_level"] = request.optimization_level
    if request.priority:
        fields["priority"] = _PRIORITIES[request.priority]
    if request.session_id:
        fields["session_id"] = request.session_id


def to_response(data: dict[str, Any], model: str) -> pb.ChatResponse:
    """Returns OpenAI's answer as a typed one.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: It is not what OpenAI says it is.
    """
    response = pb.ChatResponse(id=data.get("id") or "", model=model)
    if created := data.get("created"):
        response.create_time.CopyFrom(timestamp_pb2.Timestamp(seconds=int(created)))
    for choice in data["choices"]:
        message = choice["message"]
        content = message.get("content")
        response.choices.add(
            index=choice["index"],
            finish_reason=_finish_reason(choice),
            message=pb.ChatMessage(
                role=_ROLE_NUMBERS.get(message.get("role") or "", pb.CHAT_ROLE_ASSISTANT),  # type: ignore[arg-type]
                content=[pb.ContentPart(text=content)] if content else [],
                reasoning_content=_reasoning(message),
                tool_calls=_tool_calls(message),
            ),
        )
    if isinstance(usage := data.get("usage"), dict):
        response.usage.CopyFrom(to_usage(tokens_of(usage)))
    if metadata := data.get("gateway_metadata"):
        response.gateway_metadata.CopyFrom(pb.GatewayMetadata(**metadata))
    return response


def to_deltas(data: dict[str, Any]) -> list[pb.ChatDelta]:
    """Returns what one event of a stream says. Raises like `to_response`."""
    deltas = []
    for choice in data.get("choices") or ():
        delta = choice.get("delta") or {}
        typed = pb.ChatDelta(
            index=choice["index"],
            content=delta.get("content") or "",
            reasoning_content=_reasoning(delta),
            tool_calls=_tool_calls(delta),
            finish_reason=_finish_reason(choice),
        )
        if typed.content or typed.reasoning_content or typed.tool_calls or typed.finish_reason:
            deltas.append(typed)
    return deltas


def to_usage(tokens: Tokens) -> pb.Usage:
    """Returns what a request took."""
    return pb.Usage(
        prompt_tokens=tokens.prompt,
        completion_tokens=tokens.completion,
        cached_tokens=tokens.cached,
    )


def _finish_reason(choice: dict[str, Any]) -> "pb.FinishReason.ValueType":
    return FINISH_REASONS.get(choice.get("finish_reason") or "", pb.FINISH_REASON_UNSPECIFIED)


def _reasoning(message: dict[str, Any]) -> str:
    return message.get("reasoning_content") or message.get("reasoning") or ""


def _tool_calls(message: dict[str, Any]) -> list[pb.ToolCall]:
    calls = []
    for place, call in enumerate(message.get("tool_calls") or ()):
        function = call.get("function") or {}
        index = count_of(call.get("index"))
        calls.append(
            pb.ToolCall(
                id=call.get("id") or "",
                name=function.get("name") or "",
                arguments=function.get("arguments") or "",
                index=place if index is None else index,
            )
        )
    return calls
