"""What the audit log keeps of a request's body: its form, and of its texts no more than a trace.

    {"role": "user", "content": "…"}  →  {"role": "user", "content": {"chars": 812, "sha256": "…"}}

Nothing is recognised, and so nothing is overlooked: every text is replaced, but the few that name a
choice. The hash lets someone who has a text show that it was this one; of a short text there is
none, because it could be guessed.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import orjson

MAX_BYTES = 16 * 1024
"""The most that is kept of a body; of a longer one only which fields it has."""

# Their values are words of the API's own, where they look like it.
_CHOICES = frozenset(
    {
        "encoding_format",
        "finish_reason",
        "model",
        "modality",
        "preferred_framework",
        "optimization_level",
        "priority",
        "reasoning_effort",
        "role",
        "service_tier",
        "tool_choice",
        "type",
        "verbosity",
    }
)
# What stands in these is named by the caller.
_OPAQUE = frozenset({"arguments", "labels", "logit_bias", "metadata", "parameters", "schema"})
_CHOICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_MIN_HASHED_CHARS = 32
_MAX_ITEMS = 64
_MAX_NUMBERS = 8
_MAX_DEPTH = 12


def redacted(fields: Mapping[str, Any]) -> bytes:
    """Returns the form of a parsed JSON body, as JSON of at most 16 KiB."""
    found = orjson.dumps(_value(fields, "", _MAX_DEPTH))
    if len(found) <= MAX_BYTES:
        return found
    names = [name for name in fields if _NAME.fullmatch(name)][:_MAX_ITEMS]
    return orjson.dumps({"too_long_bytes": len(found), "fields": names})


def _value(value: Any, name: str, depth: int) -> Any:
    if isinstance(value, str):
        return _text(value, name)
    if isinstance(value, Mapping):
        if not depth or name in _OPAQUE:
            return {"fields": len(value)}
        kept = dict(_item(*each, depth - 1) for each in list(value.items())[:_MAX_ITEMS])
        return kept if len(value) <= _MAX_ITEMS else {**kept, "…": len(value) - _MAX_ITEMS}
    if isinstance(value, list | tuple):
        # Tokens by their ids are a text too.
        if not depth or (len(value) > _MAX_NUMBERS and isinstance(value[0], int | float)):
            return {"items": len(value)}
        kept_items = [_value(each, name, depth - 1) for each in value[:_MAX_ITEMS]]
        more = len(value) - _MAX_ITEMS
        return [*kept_items, {"items": more}] if more > 0 else kept_items
    return value


def _item(name: str, value: Any, depth: int) -> tuple[str, Any]:
    # What is no name is a text.
    shown = name if _NAME.fullmatch(name) else f"({len(name)} characters)"
    return shown, _value(value, name, depth)


def _text(text: str, name: str) -> Any:
    if name in _CHOICES and _CHOICE.fullmatch(text):
        return text
    if len(text) < _MIN_HASHED_CHARS:
        return {"chars": len(text)}
    data = text.encode("utf-8", "surrogatepass")
    return {"chars": len(text), "sha256": hashlib.sha256(data).hexdigest()}
