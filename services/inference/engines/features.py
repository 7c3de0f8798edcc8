"""Refuses what a model or its engine cannot do, so that nothing is dropped without a word."""

from typing import Any

from services.inference import errors
from services.inference.engines.dialect import EngineModel
from services.inference.requests import OpenAIRequest

_PLAIN_FORMATS = (None, "text")


def check(engine: str, request: OpenAIRequest, model: EngineModel | None) -> None:
    """Checks a request against what is known of the model.

    Args:
        engine: The engine's name, for the message.
        request: The request.
        model: The model; None where nothing is known.

    Raises:
        MeshError: `UNSUPPORTED` with the field at fault.
    """
    if model is None:
        return
    fields = request.fields
    if not model.can_call_tools and fields.get("tools") and fields.get("tool_choice") != "none":
        raise errors.unsupported("tools", f"`{model.name}` cannot call tools on {engine}.")
    if not model.can_structure and format_of(fields) not in _PLAIN_FORMATS:
        raise errors.unsupported(
            "response_format", f"`{model.name}` cannot keep to a format on {engine}."
        )
    lacking = {}
    if not model.can_see:
        lacking["image_url"] = f"`{model.name}` cannot see on {engine}."
    if not model.can_hear:
        lacking["input_audio"] = f"`{model.name}` cannot hear on {engine}."
    if lacking and request.kind == "chat":
        for index, message in enumerate(fields["messages"]):
            content = message.get("content")
            if isinstance(content, list):
                _check_parts(lacking, index, content)


def _check_parts(lacking: dict[str, str], index: int, parts: list[Any]) -> None:
    for place, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind in lacking:
            raise errors.unsupported(f"messages[{index}].content[{place}]", lacking[kind])


def format_of(fields: dict[str, Any]) -> object:
    """Returns the type of the format that the answer is to have; None where none is asked for."""
    response_format = fields.get("response_format")
    return response_format.get("type") if isinstance(response_format, dict) else response_format


def refuse(engine: str, fields: dict[str, Any], names: frozenset[str]) -> None:
    """Refuses fields that the engine has no way to honour, unless they ask for nothing.

    Raises:
        MeshError: `UNSUPPORTED` with the field at fault.
    """
    for name in names & fields.keys():
        # null, false, 0 and what is empty ask for nothing.
        if fields[name]:
            raise errors.unsupported(name, f"is nothing that {engine} can do.")


def refuse_several(engine: str, request: OpenAIRequest) -> None:
    """Refuses more than one answer. Raises like `refuse`."""
    if request.n > 1:
        raise errors.unsupported("n", f"{engine} gives one answer for each request.")
    refuse_best_of(engine, request)


def refuse_best_of(engine: str, request: OpenAIRequest) -> None:
    """Refuses more answers than are returned. Raises like `refuse`."""
    best_of = request.fields.get("best_of")
    if isinstance(best_of, int) and best_of > 1:
        raise errors.unsupported("best_of", f"{engine} makes one answer for each request.")
