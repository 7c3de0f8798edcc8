"""Requests for answers to chats."""

from collections.abc import Mapping
from typing import Any

from infermesh.inference.v1 import inference_service_pb2 as pb
from services.inference import extensions
from services.inference.typed import settings
from services.inference.typed.messages import message_from_json, message_to_json
from services.inference.typed.structs import options, struct_of

_OPTIONAL = (
    *("max_tokens", "max_completion_tokens", "parallel_tool_calls", "n"),
    *("logprobs", "top_logprobs", "store"),
)
_TEXTS = (
    *("user", "reasoning_effort", "verbosity", "service_tier", "safety_identifier"),
    *("prompt_cache_key", "prompt_cache_retention"),
)
# What the RPC says, in place of the request.
_OF_RPC = frozenset({"stream", "stream_options"})
_OWN = (
    frozenset({*_OPTIONAL, *_TEXTS, "model", "messages", "tools", "tool_choice", "response_format"})
    | {"metadata", "modalities", "audio", "prediction", "web_search_options"}
    | settings.SAMPLING_FIELDS
    | _OF_RPC
)


def chat_to_json(request: pb.ChatRequest, *, stream: bool) -> dict[str, Any]:
    """Returns the chat as OpenAI's request; unset fields are left out.

    Raises:
        MeshError: `INVALID_ARGUMENT` for fields that contradict each other.
    """
    fields: dict[str, Any] = {
        "model": request.model,
        "messages": [message_to_json(message) for message in request.messages],
        **settings.sampling_to_json(request.sampling),
    }
    for name in _OPTIONAL:
        if request.HasField(name):  # type: ignore[arg-type]
            fields[name] = getattr(request, name)
    for name in _TEXTS:
        if value := getattr(request, name):
            fields[name] = value
    if request.tools:
        fields["tools"] = [settings.tool_to_json(i, tool) for i, tool in enumerate(request.tools)]
    if request.HasField("tool_choice"):
        fields["tool_choice"] = settings.choice_to_json(request.tool_choice)
    if request.HasField("response_format"):
        fields["response_format"] = settings.format_to_json(request.response_format)
    _add_rare(fields, request)
    fields |= settings.extensions_to_json(request)
    if stream:
        fields["stream"] = True
        fields["stream_options"] = {"include_usage": True}
    if request.HasField("engine_options"):
        fields |= options(request.engine_options, _OWN)
    return fields


def _add_rare(fields: dict[str, Any], request: pb.ChatRequest) -> None:
    if request.metadata:
        fields["metadata"] = dict(request.metadata)
    if request.modalities:
        fields["modalities"] = list(request.modalities)
    if request.HasField("audio"):
        fields["audio"] = {"voice": request.audio.voice, "format": request.audio.format}
    if texts := list(request.prediction):
        parts = [{"type": "text", "text": text} for text in texts]
        fields["prediction"] = {
            "type": "content",
            "content": texts[0] if len(texts) == 1 else parts,
        }
    if request.HasField("web_search_options"):
        fields["web_search_options"] = settings.search_to_json(request.web_search_options)


def chat_from_json(fields: Mapping[str, Any]) -> pb.ChatRequest:
    """Returns OpenAI's request as a typed one; whether it streams is the RPC's to say.

    Raises:
        AttributeError, LookupError, TypeError, ValueError: It is not what OpenAI says it is.
    """
    request = pb.ChatRequest(
        model=fields["model"],
        messages=[message_from_json(message) for message in fields["messages"]],
        **{name: fields[name] for name in _OPTIONAL if fields.get(name) is not None},
        **{name: fields[name] for name in _TEXTS if fields.get(name)},
        tools=[settings.tool_from_json(tool) for tool in fields.get("tools") or ()],
        metadata=fields.get("metadata") or {},
        modalities=fields.get("modalities") or (),
        prediction=_prediction(fields.get("prediction")),
        **settings.extensions_from_json(fields),
    )
    sampling = settings.sampling_from_json(fields)
    if sampling.ByteSize():
        request.sampling.CopyFrom(sampling)
    if (choice := fields.get("tool_choice")) is not None:
        request.tool_choice.CopyFrom(settings.choice_from_json(choice))
    if (response_format := fields.get("response_format")) is not None:
        request.response_format.CopyFrom(settings.format_from_json(response_format))
    if (audio := fields.get("audio")) is not None:
        request.audio.CopyFrom(pb.AudioOutput(voice=audio["voice"], format=audio["format"]))
    if (search := fields.get("web_search_options")) is not None:
        request.web_search_options.CopyFrom(settings.search_from_json(search))
    known = _OWN | extensions.NAMES
    if more := {name: value for name, value in fields.items() if name not in known}:
        request.engine_options.CopyFrom(struct_of(more))
    return request


def _prediction(said: Mapping[str, Any] | None) -> list[str]:
    if said is None:
        return []
    content = said["content"]
    return [content] if isinstance(content, str) else [part["text"] for part in content]
