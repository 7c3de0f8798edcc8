"""The mesh's own fields in OpenAI's bodies: at the top level, checked here, unknown to engines.

Routing acts on all of them but one: `priority` decides who is next at the node too.
"""

from typing import Any

from services.inference import errors
from services.inference.fair_queue import Priority

NAMES = frozenset(
    {
        "preferred_framework",
        "fallback_models",
        "enable_caching",
        "optimization_level",
        "priority",
        "session_id",
    }
)
"""What engines do not get."""

_LEVELS = ("low", "medium", "high")
_PRIORITIES = {"low": Priority.LOW, "normal": Priority.NORMAL, "high": Priority.HIGH}
_MAX_FALLBACKS = 8
_MAX_MODEL_CHARS = 200
_MAX_FRAMEWORK_CHARS = 64
_MAX_SESSION_CHARS = 200


def check(fields: dict[str, Any]) -> Priority:
    """Checks the fields and returns the priority; null is the same as nothing.

    Raises:
        MeshError: `INVALID_ARGUMENT` for a field of the wrong type or value.
    """
    if NAMES.isdisjoint(fields):
        return Priority.NORMAL
    _check_text(fields, "preferred_framework", _MAX_FRAMEWORK_CHARS)
    _check_text(fields, "session_id", _MAX_SESSION_CHARS)
    _check_fallbacks(fields.get("fallback_models"))
    caching = fields.get("enable_caching")
    if caching is not None and not isinstance(caching, bool):
        raise errors.invalid("enable_caching", "must be true or false")
    if fields.get("optimization_level") not in (None, *_LEVELS):
        raise errors.invalid("optimization_level", f"must be one of {', '.join(_LEVELS)}")
    priority = fields.get("priority")
    if priority is None:
        return Priority.NORMAL
    if not isinstance(priority, str) or priority not in _PRIORITIES:
        raise errors.invalid("priority", f"must be one of {', '.join(_PRIORITIES)}")
    return _PRIORITIES[priority]


def _check_text(fields: dict[str, Any], name: str, max_chars: int) -> None:
    value = fields.get(name)
    if value is not None and not (isinstance(value, str) and len(value) <= max_chars):
        raise errors.invalid(name, f"must be a text of at most {max_chars} characters")


def _check_fallbacks(models: object) -> None:
    if models is None:
        return
    if not isinstance(models, list) or len(models) > _MAX_FALLBACKS:
        raise errors.invalid("fallback_models", f"must be a list of at most {_MAX_FALLBACKS} names")
    for index, model in enumerate(models):
        if not isinstance(model, str) or not 0 < len(model) <= _MAX_MODEL_CHARS:
            raise errors.invalid(f"fallback_models[{index}]", "must be the name of a model")
