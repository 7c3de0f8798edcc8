"""Makes OpenAI's messages of Ollama's."""

import base64
from typing import Any

from services.inference import errors
from services.inference.requests import written

_ROLES = frozenset({"system", "user", "assistant", "tool"})
_FIELDS = frozenset(
    {"role", "content", "images", "thinking", "tool_calls", "tool_name", "tool_call_id", "name"}
)
_SNIFFED_CHARS = 24
# How pictures begin.
_KINDS = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"RIFF", "image/webp"),
    (b"BM", "image/bmp"),
)


def to_openai(messages: object) -> list[dict[str, Any]]:
    """Returns the messages.

    Calls of tools have ids in OpenAI's form only. Those that come without get one, and a tool's
    answer without one answers the oldest call of its name, or of any name, that has no answer yet.

    Raises:
        MeshError: `INVALID_ARGUMENT` or `UNSUPPORTED` with the place at fault.
    """
    if not isinstance(messages, list):
        raise errors.invalid("messages", "must be a list")
    open_calls: list[tuple[str, str]] = []
    made = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            raise errors.invalid(where, "must be an object")
        made.append(_message(message, where, open_calls))
    return made


def content(text: object, images: object, where: str) -> str | list[dict[str, Any]]:
    """Returns a text, or the parts of a text with pictures.

    Args:
        text: The text; None is empty.
        images: Pictures in base64; None is none.
        where: Where they stand; empty for the body itself.

    Raises:
        MeshError: `INVALID_ARGUMENT`: they are something else.
    """
    prefix = f"{where}." if where else ""
    if text is None:
        text = ""
    if not isinstance(text, str):
        raise errors.invalid(f"{prefix}{'content' if where else 'prompt'}", "must be a text")
    if not images:
        return text
    if not isinstance(images, list):
        raise errors.invalid(f"{prefix}images", "must be a list")
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
    for place, image in enumerate(images):
        url = _data_url(image, f"{prefix}images[{place}]")
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return parts


def _message(
    message: dict[str, Any], where: str, open_calls: list[tuple[str, str]]
) -> dict[str, Any]:
    for name, value in message.items():
        if name not in _FIELDS and value not in (None, False, "", [], {}):
            raise errors.unsupported(f"{where}.{name[:40]}", "is nothing that the mesh knows.")
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise errors.invalid(f"{where}.role", f"must be one of {', '.join(sorted(_ROLES))}")
    made: dict[str, Any] = {"role": role}
    made["content"] = content(message.get("content"), message.get("images"), where)
    if thinking := message.get("thinking"):
        if not isinstance(thinking, str):
            raise errors.invalid(f"{where}.thinking", "must be a text")
        made["reasoning_content"] = thinking
    if calls := message.get("tool_calls"):
        made["tool_calls"] = _calls(calls, f"{where}.tool_calls", open_calls)
    if role != "tool":
        for name in ("tool_name", "tool_call_id"):
            if message.get(name):
                raise errors.invalid(f"{where}.{name}", "belongs to messages of tools")
        if said := message.get("name"):
            made["name"] = said
    if role == "tool":
        made["tool_call_id"] = _answered(message, where, open_calls)
    return made


def _calls(calls: object, where: str, open_calls: list[tuple[str, str]]) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise errors.invalid(where, "must be a list")
    made = []
    for place, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        arguments = function.get("arguments") if isinstance(function, dict) else None
        if not isinstance(name, str) or not name:
            raise errors.invalid(f"{where}[{place}].function.name", "must be a function's name")
        if arguments is not None and not isinstance(arguments, dict):
            raise errors.invalid(f"{where}[{place}].function.arguments", "must be an object")
        call_id = call.get("id")
        if not isinstance(call_id, str) or not call_id:
            call_id = f"call_{where[9 : where.index(']')]}_{place}"
        open_calls.append((call_id, name))
        text = written(arguments or {}).decode()
        function = {"name": name, "arguments": text}
        made.append({"id": call_id, "type": "function", "function": function})
    return made


def _answered(message: dict[str, Any], where: str, open_calls: list[tuple[str, str]]) -> str:
    """Returns the id of the call that a tool's message answers, which is then closed."""
    call_id = message.get("tool_call_id")
    name = message.get("tool_name") or message.get("name")
    for call in open_calls:
        if call[0] == call_id or (not call_id and name in (None, call[1])):
            open_calls.remove(call)
            return call[0]
    if isinstance(call_id, str) and call_id:
        return call_id
    raise errors.invalid(f"{where}.tool_name", "answers no call in the messages before it")


def _data_url(image: object, where: str) -> str:
    if not isinstance(image, str) or not image:
        raise errors.invalid(where, "must be a picture in base64")
    if image.startswith("data:image/"):
        return image
    try:
        start = base64.b64decode(image[:_SNIFFED_CHARS], validate=True)
    except ValueError:  # no base64, or not even ASCII
        raise errors.invalid(where, "must be a picture in base64") from None
    for beginning, kind in _KINDS:
        if start.startswith(beginning):
            return f"data:{kind};base64,{image}"
    raise errors.invalid(where, "must be a picture: PNG, JPEG, GIF, WebP or BMP")
