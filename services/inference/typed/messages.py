"""The messages of chats, asked and answered."""

import base64
from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf import timestamp_pb2

from infermesh.inference.v1 import inference_service_pb2 as pb
from services.inference.engines.dialect import count_of

ROLES: Mapping[int, str] = {
    pb.CHAT_ROLE_SYSTEM: "system",
    pb.CHAT_ROLE_DEVELOPER: "developer",
    pb.CHAT_ROLE_USER: "user",
    pb.CHAT_ROLE_ASSISTANT: "assistant",
    pb.CHAT_ROLE_TOOL: "tool",
}
_ROLE_NUMBERS = {name: number for number, name in ROLES.items()}

_TEXTS = ("name", "tool_call_id", "reasoning_content", "refusal")
_FILE = ("file_id", "file_data", "filename")


def message_to_json(message: pb.ChatMessage, *, is_answer: bool = False) -> dict[str, Any]:
    """Returns a message in OpenAI's form; of sound, requests say no more than its id."""
    fields: dict[str, Any] = {"role": ROLES[message.role]}
    parts = message.content
    if len(parts) == 1 and parts[0].WhichOneof("part") == "text":
        # Every engine takes a text; not every engine takes parts.
        fields["content"] = parts[0].text
    elif parts:
        fields["content"] = [part_to_json(part) for part in parts]
    else:
        says_else = message.tool_calls or message.refusal or message.HasField("audio")
        fields["content"] = None if says_else else ""
    for name in _TEXTS:
        if value := getattr(message, name):
            fields[name] = value
    if message.tool_calls:
        fields["tool_calls"] = [call_to_json(call) for call in message.tool_calls]
    if message.HasField("audio"):
        audio = message.audio
        fields["audio"] = audio_to_json(audio) if is_answer else {"id": audio.id}
    if message.url_citations:
        fields["annotations"] = citations_to_json(message.url_citations)
    return fields


def message_from_json(fields: Mapping[str, Any]) -> pb.ChatMessage:
    """Returns a message of a request or an answer.

    Raises:
        AttributeError, LookupError, TypeError, ValueError: It is not what OpenAI says it is.
    """
    content = fields.get("content")
    if isinstance(content, str):
        parts = [pb.ContentPart(text=content)] if content else []
    else:
        parts = [part_from_json(part) for part in content or ()]
    message = pb.ChatMessage(
        # What does not say so is the model's.
        role=_ROLE_NUMBERS[fields.get("role") or "assistant"],  # type: ignore[arg-type]
        content=parts,
        name=fields.get("name") or "",
        tool_call_id=fields.get("tool_call_id") or "",
        reasoning_content=reasoning_of(fields),
        refusal=fields.get("refusal") or "",
        tool_calls=calls_from_json(fields),
        url_citations=citations_from_json(fields),
    )
    if (audio := fields.get("audio")) is not None:
        message.audio.CopyFrom(audio_from_json(audio))
    return message


def part_to_json(part: pb.ContentPart) -> dict[str, Any]:
    """Returns a part of a message's content."""
    kind = part.WhichOneof("part")
    if kind == "text" or kind == "refusal":
        return {"type": kind, kind: getattr(part, kind)}
    if kind == "input_audio":
        data = base64.b64encode(part.input_audio.data).decode()
        return {"type": kind, kind: {"data": data, "format": part.input_audio.format}}
    if kind == "file":
        file = {name: value for name in _FILE if (value := getattr(part.file, name))}
        return {"type": kind, kind: file}
    image = {"url": part.image_url.url}
    if part.image_url.detail:
        image["detail"] = part.image_url.detail
    return {"type": "image_url", "image_url": image}


def part_from_json(fields: Mapping[str, Any]) -> pb.ContentPart:
    """Returns a part of a message's content. Raises like `message_from_json`."""
    kind = fields["type"]
    value = fields[kind]
    if kind == "text":
        return pb.ContentPart(text=value)
    if kind == "refusal":
        return pb.ContentPart(refusal=value)
    if kind == "image_url":
        image = pb.ImageUrl(url=value["url"], detail=value.get("detail") or "")
        return pb.ContentPart(image_url=image)
    if kind == "input_audio":
        data = base64.b64decode(value["data"], validate=True)
        return pb.ContentPart(input_audio=pb.InputAudio(data=data, format=value["format"]))
    if kind == "file":
        file = pb.InputFile(**{name: value[name] for name in _FILE if value.get(name)})
        return pb.ContentPart(file=file)
    raise ValueError("a part of another kind")


def call_to_json(call: pb.ToolCall) -> dict[str, Any]:
    """Returns a call of a tool."""
    if call.is_custom:
        said = {"name": call.name, "input": call.arguments}
        return {"id": call.id, "type": "custom", "custom": said}
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def calls_from_json(message: Mapping[str, Any]) -> list[pb.ToolCall]:
    """Returns the calls of tools in a message or a piece of one."""
    calls = []
    for place, call in enumerate(message.get("tool_calls") or ()):
        custom = call.get("custom")
        said = custom or call.get("function") or {}
        index = count_of(call.get("index"))
        calls.append(
            pb.ToolCall(
                id=call.get("id") or "",
                name=said.get("name") or "",
                arguments=said.get("input" if custom else "arguments") or "",
                index=place if index is None else index,
                is_custom=custom is not None or call.get("type") == "custom",
            )
        )
    return calls


def audio_to_json(audio: pb.AudioAnswer) -> dict[str, Any]:
    """Returns sound of the model's, or a piece of it."""
    fields: dict[str, Any] = {}
    if audio.id:
        fields["id"] = audio.id
    if audio.HasField("expire_time"):
        fields["expires_at"] = audio.expire_time.seconds
    if audio.data:
        fields["data"] = base64.b64encode(audio.data).decode()
    if audio.transcript:
        fields["transcript"] = audio.transcript
    return fields


def audio_from_json(fields: Mapping[str, Any]) -> pb.AudioAnswer:
    """Returns sound of the model's. Raises like `message_from_json`."""
    audio = pb.AudioAnswer(
        id=fields.get("id") or "",
        data=base64.b64decode(fields.get("data") or "", validate=True),
        transcript=fields.get("transcript") or "",
    )
    if (expires := fields.get("expires_at")) is not None:
        audio.expire_time.CopyFrom(timestamp_pb2.Timestamp(seconds=int(expires)))
    return audio


def citations_to_json(citations: Iterable[pb.UrlCitation]) -> list[dict[str, Any]]:
    """Returns what an answer rests on, as `annotations`."""
    return [
        {
            "type": "url_citation",
            "url_citation": {
                "start_index": each.start_index,
                "end_index": each.end_index,
                "title": each.title,
                "url": each.url,
            },
        }
        for each in citations
    ]


def citations_from_json(message: Mapping[str, Any]) -> list[pb.UrlCitation]:
    """Returns what an answer rests on. Raises like `message_from_json`."""
    return [
        pb.UrlCitation(
            start_index=each["url_citation"]["start_index"],
            end_index=each["url_citation"]["end_index"],
            title=each["url_citation"].get("title") or "",
            url=each["url_citation"]["url"],
        )
        for each in message.get("annotations") or ()
        if each.get("type") == "url_citation"
    ]


def reasoning_of(message: Mapping[str, Any]) -> str:
    """Returns the model's thoughts, which engines name in two ways."""
    return message.get("reasoning_content") or message.get("reasoning") or ""
