"""Reads `text`: the form that the text of an answer is to have."""

from collections.abc import Mapping
from typing import Any

from services.jobs import fields as check
from services.jobs.errors import refuse, unsupported

_MAX_NAME_CHARS = 64


def read(said: Mapping[str, Any], chat: dict[str, Any]) -> dict[str, Any]:
    """Returns what the response shows of it, and sets the chat's fields.

    Raises:
        MeshError: `INVALID_ARGUMENT` or `UNSUPPORTED`, with the field at fault.
    """
    wanted = check.mapping(said, "text")
    verbosity = check.text(wanted, "verbosity", 32, "text.")
    if verbosity is not None:
        chat["verbosity"] = verbosity
    shown: dict[str, Any] = {"format": _format(wanted, chat)}
    if verbosity is not None:
        shown["verbosity"] = verbosity
    return shown


def _format(wanted: Mapping[str, Any], chat: dict[str, Any]) -> dict[str, Any]:
    value = wanted.get("format")
    if value is None:
        return {"type": "text"}
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return {"type": "text"}
    if kind == "json_object":
        chat["response_format"] = {"type": kind}
        return {"type": kind}
    if kind != "json_schema":
        raise unsupported("text.format.type", "must be text, json_object or json_schema")
    name = check.text(value, "name", _MAX_NAME_CHARS, "text.format.")
    if not name:
        refuse("text.format.name", "must be a text that is not empty")
    if not isinstance(value.get("schema"), dict):
        refuse("text.format.schema", "must be a JSON schema")
    schema = {k: value[k] for k in ("name", "description", "schema", "strict") if k in value}
    chat["response_format"] = {"type": kind, "json_schema": schema}
    return {"type": kind, "description": None, "strict": None, **schema}
