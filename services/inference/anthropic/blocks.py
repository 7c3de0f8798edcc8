"""Content blocks of requests, as parts of OpenAI's messages."""

from typing import Any

from services.inference import errors
from services.inference.anthropic.checks import (
    at,
    cache_control,
    list_of,
    object_of,
    only,
    shown,
    text_of,
)

_TEXT = frozenset({"type", "text", "cache_control", "citations"})
_IMAGE = frozenset({"type", "source", "cache_control", "transformations"})
_BASE64 = frozenset({"type", "media_type", "data"})
_URL = frozenset({"type", "url"})
_MEDIA_TYPES = ("image/jpeg", "image/png", "image/gif", "image/webp")
_IMPOSSIBLE = {
    "document": "the mesh reads no documents; send their text.",
    "search_result": "the mesh takes no search results; send their text.",
    "redacted_thinking": "only who wrote it can read it.",
    "container_upload": "the mesh has no containers.",
}


def blocks_of(content: object, param: str) -> list[tuple[str, dict[str, Any]]]:
    """Returns the blocks of a content that is a list, each with its path.

    Raises:
        MeshError: `INVALID_ARGUMENT`: it is no list of objects.
    """
    blocks = list_of(content, param)
    return [(f"{param}[{i}]", object_of(b, f"{param}[{i}]")) for i, b in enumerate(blocks)]


def text(block: dict[str, Any], param: str) -> str:
    """Returns what a text block says.

    Raises:
        MeshError: `INVALID_ARGUMENT` or `UNSUPPORTED` with the field at fault.
    """
    only(block, _TEXT, param)
    cache_control(block, param)
    if block.get("citations"):
        raise errors.unsupported(at(param, "citations"), "the mesh has no citations.")
    return text_of(block, "text", param)


def texts(content: object, param: str) -> list[str]:
    """Returns the texts of a content that may have nothing else.

    Raises:
        MeshError: `INVALID_ARGUMENT` or `UNSUPPORTED` with the field at fault.
    """
    if isinstance(content, str):
        return [content]
    found = []
    for place, block in blocks_of(content, param):
        if block.get("type") != "text":
            raise refusal(block, place)
        found.append(text(block, place))
    return found


def image(block: dict[str, Any], param: str) -> dict[str, Any]:
    """Returns an image block as OpenAI's part.

    Raises:
        MeshError: `INVALID_ARGUMENT` or `UNSUPPORTED` with the field at fault.
    """
    only(block, _IMAGE, param)
    cache_control(block, param)
    if block.get("transformations"):
        raise errors.unsupported(at(param, "transformations"), "the engine decides on sizes.")
    where = at(param, "source")
    source = object_of(block.get("source"), where)
    kind = source.get("type")
    if kind == "base64":
        only(source, _BASE64, where)
        media_type = source.get("media_type")
        if media_type not in _MEDIA_TYPES:
            names = ", ".join(_MEDIA_TYPES)
            raise errors.invalid(at(where, "media_type"), f"must be one of {names}")
        url = f"data:{media_type};base64,{text_of(source, 'data', where)}"
    elif kind == "url":
        only(source, _URL, where)
        url = text_of(source, "url", where)
    elif kind == "file":
        raise errors.unsupported(where, "the mesh keeps no files for Anthropic's clients.")
    else:
        raise errors.invalid(at(where, "type"), "must be base64 or url")
    return {"type": "image_url", "image_url": {"url": url}}


def refusal(block: dict[str, Any], param: str) -> Exception:
    """Returns the error for a block that cannot stand where it does."""
    kind = block.get("type")
    if not isinstance(kind, str):
        return errors.invalid(at(param, "type"), "must be the type of a block")
    why = _IMPOSSIBLE.get(kind, f"a block of type `{shown(kind)}` has no place here.")
    return errors.unsupported(param, why)
