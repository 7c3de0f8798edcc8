"""Answers to chats and completions, whole and piece by piece."""

from collections.abc import Mapping
from typing import Any

from google.protobuf import timestamp_pb2

from infermesh.inference.v1 import inference_service_pb2 as pb
from services.inference.typed import messages
from services.inference.typed.likelihoods import (
    lists_to_json,
    logprobs_from_json,
    logprobs_to_json,
)
from services.inference.typed.usage import metadata_to_json, usage_from_json, usage_to_json

FINISH_REASONS: Mapping[str, "pb.FinishReason.ValueType"] = {
    "stop": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
    "tool_calls": pb.FINISH_REASON_TOOL_CALLS,
    "function_call": pb.FINISH_REASON_TOOL_CALLS,
    "content_filter": pb.FINISH_REASON_CONTENT_FILTER,
}
_REASON_NAMES: Mapping[int, str] = {
    number: name for name, number in FINISH_REASONS.items() if name != "function_call"
}

# All that most pieces of answers have, of which there are many.
_USUAL = frozenset({"role", "content"})

UNREADABLE = (AttributeError, LookupError, TypeError, ValueError)
"""What reading an answer raises that is not what OpenAI says it is."""


def chat_response_from_json(data: dict[str, Any], model: str) -> pb.ChatResponse:
    """Returns OpenAI's answer to a chat, by the name of the model that answered.

    Raises:
        AttributeError, LookupError, TypeError, ValueError: It is not what OpenAI says it is.
    """
    response = pb.ChatResponse(
        id=data.get("id") or "",
        model=model,
        create_time=created_of(data),
        choices=[
            pb.ChatChoice(
                index=choice["index"],
                message=messages.message_from_json(choice["message"]),
                finish_reason=_reason_of(choice),
                logprobs=logprobs_from_json(choice),
            )
            for choice in data["choices"]
        ],
        service_tier=data.get("service_tier") or "",
        system_fingerprint=data.get("system_fingerprint") or "",
    )
    _add_ending(response, data)
    return response


def chat_response_to_json(response: pb.ChatResponse) -> dict[str, Any]:
    """Returns a typed answer to a chat in OpenAI's form."""
    choices = []
    for choice in response.choices:
        fields: dict[str, Any] = {
            "index": choice.index,
            "message": messages.message_to_json(choice.message, is_answer=True),
            "finish_reason": _REASON_NAMES.get(choice.finish_reason),
            "logprobs": None,
        }
        if choice.HasField("logprobs"):
            fields["logprobs"] = logprobs_to_json(choice.logprobs)
        choices.append(fields)
    return _top("chat.completion", response) | {"choices": choices} | _ending(response)


def deltas_from_json(data: dict[str, Any]) -> list[pb.ChatDelta]:
    """Returns what one event of a chat's stream says. Raises like `chat_response_from_json`."""
    deltas = []
    for choice in data.get("choices") or ():
        delta = choice.get("delta") or {}
        typed = pb.ChatDelta(content=delta.get("content") or "", finish_reason=_reason_of(choice))
        if not _USUAL.issuperset(delta):
            _add_unusual(typed, delta)
        if "logprobs" in choice and (said := logprobs_from_json(choice)) is not None:
            typed.logprobs.CopyFrom(said)
        if typed.ByteSize():
            typed.index = choice["index"]
            deltas.append(typed)
    return deltas


def _add_unusual(typed: pb.ChatDelta, delta: dict[str, Any]) -> None:
    typed.reasoning_content = messages.reasoning_of(delta)
    typed.refusal = delta.get("refusal") or ""
    typed.tool_calls.extend(messages.calls_from_json(delta))
    typed.url_citations.extend(messages.citations_from_json(delta))
    if (audio := delta.get("audio")) is not None:
        typed.audio.CopyFrom(messages.audio_from_json(audio))


def chat_event_to_json(response: pb.StreamChatResponse) -> dict[str, Any]:
    """Returns a typed message of a chat's stream as the object of one of OpenAI's events."""
    choices = []
    for delta in response.deltas:
        said: dict[str, Any] = {
            name: value
            for name in ("content", "reasoning_content", "refusal")
            if (value := getattr(delta, name))
        }
        if delta.tool_calls:
            said["tool_calls"] = [_piece_to_json(call) for call in delta.tool_calls]
        if delta.HasField("audio"):
            said["audio"] = messages.audio_to_json(delta.audio)
        if delta.url_citations:
            said["annotations"] = messages.citations_to_json(delta.url_citations)
        fields: dict[str, Any] = {
            "index": delta.index,
            "delta": said,
            "finish_reason": _REASON_NAMES.get(delta.finish_reason),
        }
        if delta.HasField("logprobs"):
            fields["logprobs"] = logprobs_to_json(delta.logprobs)
        choices.append(fields)
    return _top("chat.completion.chunk", response) | {"choices": choices} | _ending(response)


def completion_response_from_json(data: dict[str, Any], model: str) -> pb.CompleteResponse:
    """Returns OpenAI's answer to a completion. Raises like `chat_response_from_json`."""
    response = pb.CompleteResponse(
        id=data.get("id") or "",
        model=model,
        create_time=created_of(data),
        choices=[_text_choice(choice) for choice in data["choices"]],
        system_fingerprint=data.get("system_fingerprint") or "",
    )
    _add_ending(response, data)
    return response


def completion_response_to_json(
    response: pb.CompleteResponse | pb.StreamCompleteResponse,
) -> dict[str, Any]:
    """Returns a typed answer to a completion, or a message of its stream, in OpenAI's form."""
    texts = response.choices if isinstance(response, pb.CompleteResponse) else response.pieces
    choices = [
        {
            "index": choice.index,
            "text": choice.text,
            "finish_reason": _REASON_NAMES.get(choice.finish_reason),
            "logprobs": lists_to_json(choice.logprobs.content)
            if choice.HasField("logprobs")
            else None,
        }
        for choice in texts
    ]
    return _top("text_completion", response) | {"choices": choices} | _ending(response)


def pieces_from_json(data: dict[str, Any]) -> list[pb.CompletionChoice]:
    """Returns what one event of a completion's stream says. Raises like above."""
    pieces = [_text_choice(choice) for choice in data.get("choices") or ()]
    return [each for each in pieces if each.text or each.finish_reason or each.HasField("logprobs")]


def created_of(data: Mapping[str, Any]) -> timestamp_pb2.Timestamp | None:
    """Returns when an engine answered; None where it does not say."""
    created = data.get("created")
    return None if created is None else timestamp_pb2.Timestamp(seconds=int(created))


def _text_choice(choice: Mapping[str, Any]) -> pb.CompletionChoice:
    return pb.CompletionChoice(
        index=choice["index"],
        text=choice.get("text") or "",
        finish_reason=_reason_of(choice),
        logprobs=logprobs_from_json(choice),
    )


def _piece_to_json(call: pb.ToolCall) -> dict[str, Any]:
    fields: dict[str, Any] = {"index": call.index}
    if call.id:
        fields |= {"id": call.id, "type": "custom" if call.is_custom else "function"}
    said: dict[str, Any] = {"input" if call.is_custom else "arguments": call.arguments}
    if call.name:
        said["name"] = call.name
    return {**fields, "custom" if call.is_custom else "function": said}


def _reason_of(choice: Mapping[str, Any]) -> "pb.FinishReason.ValueType":
    return FINISH_REASONS.get(choice.get("finish_reason") or "", pb.FINISH_REASON_UNSPECIFIED)


def _add_ending(response: pb.ChatResponse | pb.CompleteResponse, data: dict[str, Any]) -> None:
    if isinstance(usage := data.get("usage"), dict):
        response.usage.CopyFrom(usage_from_json(usage))
    if metadata := data.get("gateway_metadata"):
        response.gateway_metadata.CopyFrom(pb.GatewayMetadata(**metadata))


def _top(kind: str, response: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {"id": response.id, "object": kind, "model": response.model}
    if response.HasField("create_time"):
        fields["created"] = response.create_time.seconds
    if response.system_fingerprint:
        fields["system_fingerprint"] = response.system_fingerprint
    if tier := getattr(response, "service_tier", ""):
        fields["service_tier"] = tier
    return fields


def _ending(response: Any) -> dict[str, Any]:
    fields = {}
    if response.HasField("usage"):
        fields["usage"] = usage_to_json(response.usage)
    if response.HasField("gateway_metadata"):
        fields["gateway_metadata"] = metadata_to_json(response.gateway_metadata)
    return fields
