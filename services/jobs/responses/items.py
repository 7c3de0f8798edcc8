"""Items of a conversation: checks what callers send and gives it the form in which it is kept."""

import secrets
from typing import Any

from services.jobs.errors import invalid, refuse, unsupported

Item = dict[str, Any]

MAX_ITEMS = 4096
"""The most items that one request may bring."""

_ROLES = ("user", "system", "developer", "assistant")
_STATUSES = (None, "in_progress", "completed", "incomplete")
_MAX_ID_CHARS = 128
_MAX_NAME_CHARS = 200

# By role, the parts that a message may have.
_INPUT_PARTS = ("input_text", "input_image", "input_file", "input_audio")
_OUTPUT_PARTS = ("output_text", "refusal")


def new_id(prefix: str) -> str:
    """Returns a new id. Example: `msg_9f…` for `msg`."""
    return f"{prefix}_{secrets.token_hex(24)}"


def read(value: Any) -> list[Item]:
    """Returns the items of a request's `input`.

    Raises:
        MeshError: `INVALID_ARGUMENT` or `UNSUPPORTED`, with the field at fault.
    """
    if isinstance(value, str):
        return [_message({"role": "user", "content": value}, "input")]
    if not isinstance(value, list):
        refuse("input", "must be a text or a list of items")
    if len(value) > MAX_ITEMS:
        refuse("input", f"may hold {MAX_ITEMS} items at most")
    return [_item(each, f"input[{index}]") for index, each in enumerate(value)]


def _item(value: Any, where: str) -> Item:
    if not isinstance(value, dict):
        refuse(where, "must be an object")
    kind = value.get("type") or ("message" if "role" in value else None)
    read_item = _KINDS.get(kind) if isinstance(kind, str) else None
    if read_item is None:
        raise unsupported(
            f"{where}.type",
            f"items of this type are not supported; there are {', '.join(_KINDS)}",
        )
    return read_item(value, where)


def _message(value: Item, where: str) -> Item:
    role = value.get("role")
    if role not in _ROLES:
        refuse(f"{where}.role", f"must be one of {', '.join(_ROLES)}")
    is_output = role == "assistant"
    content = value.get("content")
    if isinstance(content, str):
        parts: list[Item] = [_text(content, is_output=is_output)]
    elif isinstance(content, list):
        parts = [
            _part(each, f"{where}.content[{index}]", is_output=is_output)
            for index, each in enumerate(content)
        ]
    else:
        raise invalid(f"{where}.content", "must be a text or a list of parts")
    return {
        "id": _id(value, "msg", where),
        "type": "message",
        "status": _status(value, where),
        "role": role,
        "content": parts,
    }


def _text(text: str, *, is_output: bool) -> Item:
    if is_output:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "input_text", "text": text}


def _part(value: Any, where: str, *, is_output: bool) -> Item:
    if not isinstance(value, dict):
        refuse(where, "must be an object")
    kind = value.get("type")
    # Clients that keep their own conversation mix up the two names.
    if kind in ("input_text", "output_text", "text"):
        return _text(_string(value, "text", where), is_output=is_output)
    if is_output:
        if kind == "refusal":
            return {"type": kind, "refusal": _string(value, "refusal", where)}
        refuse(f"{where}.type", f"must be one of {', '.join(_OUTPUT_PARTS)}")
    if kind == "input_image":
        return _image(value, where)
    if kind == "input_file":
        return _file(value, where)
    if kind == "input_audio":
        audio = value.get("input_audio")
        if not isinstance(audio, dict):
            refuse(f"{where}.input_audio", "must be an object")
        return {
            "type": kind,
            "input_audio": {
                "data": _string(audio, "data", f"{where}.input_audio"),
                "format": _string(audio, "format", f"{where}.input_audio"),
            },
        }
    raise invalid(f"{where}.type", f"must be one of {', '.join(_INPUT_PARTS)}")


def _image(value: Item, where: str) -> Item:
    if value.get("file_id") is not None:
        raise unsupported(f"{where}.file_id", "pictures come in `image_url`, not as files")
    detail = value.get("detail")
    if detail is not None and not isinstance(detail, str):
        refuse(f"{where}.detail", "must be a text")
    return {
        "type": "input_image",
        "image_url": _string(value, "image_url", where),
        "detail": detail or "auto",
    }


def _file(value: Item, where: str) -> Item:
    for name in ("file_id", "file_url"):
        if value.get(name) is not None:
            raise unsupported(f"{where}.{name}", "files come in `file_data`")
    kept = {"type": "input_file", "file_data": _string(value, "file_data", where)}
    if value.get("filename") is not None:
        kept["filename"] = _string(value, "filename", where)
    return kept


def _function_call(value: Item, where: str) -> Item:
    return {
        "id": _id(value, "fc", where),
        "type": "function_call",
        "status": _status(value, where),
        "call_id": _name(value, "call_id", where),
        "name": _name(value, "name", where),
        "arguments": _string(value, "arguments", where),
    }


def _function_call_output(value: Item, where: str) -> Item:
    output = value.get("output")
    if isinstance(output, list):
        output = [
            _part(each, f"{where}.output[{index}]", is_output=False)
            for index, each in enumerate(output)
        ]
    elif not isinstance(output, str):
        refuse(f"{where}.output", "must be a text or a list of parts")
    return {
        "id": _id(value, "fco", where),
        "type": "function_call_output",
        "status": _status(value, where),
        "call_id": _name(value, "call_id", where),
        "output": output,
    }


def _reasoning(value: Item, where: str) -> Item:
    if value.get("encrypted_content") is not None:
        raise unsupported(f"{where}.encrypted_content", "the mesh encrypts no reasoning")
    item: Item = {"id": _id(value, "rs", where), "type": "reasoning", "summary": []}
    for name, kind in (("summary", "summary_text"), ("content", "reasoning_text")):
        parts = value.get(name)
        if parts is None:
            continue
        if not isinstance(parts, list):
            refuse(f"{where}.{name}", "must be a list")
        item[name] = [
            {"type": kind, "text": _string(part, "text", f"{where}.{name}[{index}]")}
            for index, part in enumerate(parts)
        ]
    return item


_KINDS = {
    "message": _message,
    "function_call": _function_call,
    "function_call_output": _function_call_output,
    "reasoning": _reasoning,
}


def _string(value: Any, name: str, where: str) -> str:
    text = value.get(name) if isinstance(value, dict) else None
    if not isinstance(text, str):
        refuse(f"{where}.{name}", "must be a text")
    return text


def _name(value: Item, name: str, where: str) -> str:
    text = _string(value, name, where)
    if not 0 < len(text) <= _MAX_NAME_CHARS:
        refuse(f"{where}.{name}", f"must have 1 to {_MAX_NAME_CHARS} characters")
    return text


def _id(value: Item, prefix: str, where: str) -> str:
    found = value.get("id")
    if found is None:
        return new_id(prefix)
    if not isinstance(found, str) or not 0 < len(found) <= _MAX_ID_CHARS:
        refuse(f"{where}.id", f"must be a text of 1 to {_MAX_ID_CHARS} characters")
    return found


def _status(value: Item, where: str) -> str:
    found = value.get("status")
    if found not in _STATUSES:
        refuse(f"{where}.status", "must be in_progress, completed or incomplete")
    return found or "completed"
