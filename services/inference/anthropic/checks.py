"""What all parts of Anthropic's requests are held against; nothing is dropped without a word."""

import re
from typing import Any

from services.inference import errors

_CACHE_TTLS = (None, "5m", "1h")
_WORD = re.compile(r"[^\x20-\x7e]")


def only(fields: dict[str, Any], known: frozenset[str], param: str = "") -> None:
    """Passes for objects whose fields are all known; null is the same as nothing.

    Args:
        fields: The object.
        known: The names of its fields.
        param: Where it stands; empty for the body itself.

    Raises:
        MeshError: `UNSUPPORTED` with the first that is not known.
    """
    if fields.keys() <= known:
        return
    for name, value in fields.items():
        if name not in known and value is not None:
            raise errors.unsupported(at(param, shown(name)), "is nothing that the mesh knows.")


def at(param: str, name: str) -> str:
    """Returns the path of a field."""
    return f"{param}.{name}" if param else name


def shown(word: object) -> str:
    """Returns a word of the caller's as it can stand in an error."""
    return _WORD.sub("?", str(word)[:60])


def text_of(fields: dict[str, Any], name: str, param: str) -> str:
    """Returns a field that must be a text.

    Raises:
        MeshError: `INVALID_ARGUMENT`: it is missing, or something else.
    """
    value = fields.get(name)
    if not isinstance(value, str):
        raise errors.invalid(at(param, name), "must be a text")
    return value


def object_of(value: object, param: str) -> dict[str, Any]:
    """Returns a value that must be an object.

    Raises:
        MeshError: `INVALID_ARGUMENT`: it is something else.
    """
    if not isinstance(value, dict):
        raise errors.invalid(param, "must be an object")
    return value


def list_of(value: object, param: str) -> list[Any]:
    """Returns a value that must be a list.

    Raises:
        MeshError: `INVALID_ARGUMENT`: it is something else.
    """
    if not isinstance(value, list):
        raise errors.invalid(param, "must be a list")
    return value


def flag_of(fields: dict[str, Any], name: str, param: str) -> bool:
    """Returns a field that is true, false, or not there.

    Raises:
        MeshError: `INVALID_ARGUMENT`: it is something else.
    """
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise errors.invalid(at(param, name), "must be true or false")
    return bool(value)


def cache_control(fields: dict[str, Any], param: str) -> None:
    """Takes a hint of what to cache: engines cache what they have read anyway.

    Raises:
        MeshError: `INVALID_ARGUMENT`: it is no such hint.
    """
    hint = fields.get("cache_control")
    if hint is None:
        return
    where = at(param, "cache_control")
    if object_of(hint, where).get("type") != "ephemeral" or hint.get("ttl") not in _CACHE_TTLS:
        raise errors.invalid(where, "must be ephemeral, for 5m or 1h")
