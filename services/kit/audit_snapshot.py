"""What the audit log keeps of requests and resources: ids, and JSON without secrets."""

import re
from collections.abc import Sequence
from typing import Any

import orjson
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

_SECRET = re.compile(r"im-[A-Za-z0-9_-]{43}")
_MAX_JSON_BYTES = 8192
MAX_ID_CHARS = 300


def snapshot(message: Message) -> str:
    """Returns a message as JSON.

    Fields of the name `secret` are left out; what looks like a key's secret elsewhere is
    replaced. Of more than 8 KiB only the length is kept. An empty message is an empty text.
    """
    found = _without_secrets(MessageToDict(message, preserving_proto_field_name=True))
    if not found:
        return ""
    text = orjson.dumps(found, option=orjson.OPT_SORT_KEYS)
    if len(text) > _MAX_JSON_BYTES:
        text = orjson.dumps({"too_long_bytes": len(text)})
    return text.decode()


def resource_id(message: Message, names: Sequence[str]) -> str:
    """Returns what a message is about, its parts separated by `/`; empty where it does not say.

    Args:
        message: A request or a response.
        names: The fields that name the resource; where there are none, or the message does not
            have them, it is the first that ends with `_id`, in the message or in one in it.
    """
    holder = find_holder(message, names)
    if holder is not None:
        return "/".join(str(getattr(holder, name)) for name in names)[:MAX_ID_CHARS]
    parts = []
    for field, value in message.ListFields():
        if isinstance(value, str) and field.name.endswith("_id"):
            return value[:MAX_ID_CHARS]
        if isinstance(value, Message):
            parts.append(value)
    return next((found for part in parts if (found := resource_id(part, ()))), "")


def find_holder(message: Message, names: Sequence[str]) -> Message | None:
    """Returns the message, or one in it, that has all fields that are named."""
    if not names:
        return None
    parts = [value for _, value in message.ListFields() if isinstance(value, Message)]
    for part in (message, *parts):
        if all(name in part.DESCRIPTOR.fields_by_name for name in names):
            return part
    return None


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_secrets(v) for k, v in value.items() if k != "secret"}
    if isinstance(value, list):
        return [_without_secrets(each) for each in value]
    return _SECRET.sub("[a secret]", value) if isinstance(value, str) else value
