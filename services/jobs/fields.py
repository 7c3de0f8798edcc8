"""Reads requests and their single fields; null is the same as nothing."""

from collections.abc import Mapping
from typing import Any

import orjson

from infermesh.errors.v1 import errors_pb2
from services.jobs.errors import refuse
from services.kit.errors import MeshError

_MAX_PAIRS = 16
_MAX_KEY_CHARS = 64
_MAX_VALUE_CHARS = 512


def body(data: bytes) -> dict[str, Any]:
    """Returns the JSON object that a body is. Raises `MeshError` (`INVALID_JSON`)."""
    try:
        said = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise MeshError(
            errors_pb2.ERROR_REASON_INVALID_JSON, f"The body is not valid JSON: {error}"
        ) from None
    if not isinstance(said, dict):
        raise MeshError(errors_pb2.ERROR_REASON_INVALID_JSON, "The body is not a JSON object.")
    # What is made of it, for engines and in answers, is up to four levels deeper.
    written([[[[said]]]])
    return said


def written(said: Any) -> bytes:
    """Returns what came from a caller as JSON; what can be read may be too deep to be written.

    Raises:
        MeshError: `INVALID_JSON`: it is nested over 254 deep.
    """
    try:
        return orjson.dumps(said)
    except orjson.JSONEncodeError as error:
        raise MeshError(
            errors_pb2.ERROR_REASON_INVALID_JSON, f"The body is nested too deeply: {error}"
        ) from None


def text(
    said: Mapping[str, Any], name: str, max_chars: int | None = None, prefix: str = ""
) -> str | None:
    """Returns a text, or None. Raises `MeshError` (`INVALID_ARGUMENT`), as all of these do."""
    value = said.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        refuse(prefix + name, "must be a text")
    if max_chars is not None and len(value) > max_chars:
        refuse(prefix + name, f"may have {max_chars} characters at most")
    return value


def boolean(said: Mapping[str, Any], name: str) -> bool | None:
    """Returns true, false or None."""
    value = said.get(name)
    if value is not None and not isinstance(value, bool):
        refuse(name, "must be true or false")
    return value


def integer(said: Mapping[str, Any], name: str, least: int, most: int | None = None) -> int | None:
    """Returns a whole number within bounds, or None."""
    value = said.get(name)
    if value is None:
        return None
    if type(value) is not int or value < least or (most is not None and value > most):
        bound = f"{least} to {most}" if most is not None else f"{least} or more"
        refuse(name, f"must be a whole number, {bound}")
    return value


def number(said: Mapping[str, Any], name: str, least: float, most: float) -> float | None:
    """Returns a number within bounds, or None."""
    value = said.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        refuse(name, f"must be a number from {least} to {most}")
    return value


def mapping(said: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns an object; empty for None."""
    value = said.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        refuse(name, "must be an object")
    return value


def metadata(said: Mapping[str, Any]) -> dict[str, str]:
    """Returns the pairs that a caller wants to find again."""
    pairs = mapping(said, "metadata")
    if len(pairs) > _MAX_PAIRS:
        refuse("metadata", f"may have {_MAX_PAIRS} pairs at most")
    for key, value in pairs.items():
        if len(key) > _MAX_KEY_CHARS:
            refuse("metadata", f"its keys may have {_MAX_KEY_CHARS} characters at most")
        if not isinstance(value, str) or len(value) > _MAX_VALUE_CHARS:
            refuse(f"metadata.{key}", f"must be a text of at most {_MAX_VALUE_CHARS} characters")
    return pairs
