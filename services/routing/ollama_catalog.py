"""What callers can name as `model`, in Ollama's form.

https://github.com/ollama/ollama/blob/main/docs/api.md. Sizes, digests and families are left out:
the mesh does not know them.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import orjson

from infermesh.errors.v1 import errors_pb2
from infermesh.routing.v1 import openai_model_service_pb2 as pb
from services.kit.errors import MeshError

LATEST = ":latest"

API_VERSION = "0.12.11"
"""The version of Ollama whose API is spoken here, the first that tells probabilities."""

# Ollama's words; it has none for structured output, which all of its models can do.
_CAPABILITIES = {
    "chat": "completion",
    "embeddings": "embedding",
    "tools": "tools",
    "vision": "vision",
}


def tags(models: Iterable[pb.OpenAIModel]) -> bytes:
    """Returns the answer to `/api/tags`."""
    return orjson.dumps({"models": [_entry(model) for model in _reachable(models)]})


def running(models: Iterable[pb.OpenAIModel]) -> bytes:
    """Returns the answer to `/api/ps`: the models that a ready node serves."""
    entries = []
    for model in _reachable(models):
        if model.available:
            entry = {"name": model.id, "model": model.id, "details": {}}
            entries.append(entry | _context(model, "context_length"))
    return orjson.dumps({"models": entries})


def shown(model: pb.OpenAIModel) -> bytes:
    """Returns the answer to `/api/show`."""
    return orjson.dumps(
        {
            "details": {},
            # Ollama writes the architecture in front, which the mesh does not know.
            "model_info": _context(model, "general.context_length"),
            "capabilities": _capabilities(model),
            "modified_at": _time(model.created),
        }
    )


def version() -> bytes:
    """Returns the answer to `/api/version`."""
    return orjson.dumps({"version": API_VERSION})


def named(body: bytes) -> str:
    """Returns the model that a request to `/api/show` names, without the tag `:latest`.

    Raises:
        MeshError: `INVALID_JSON`, or `INVALID_ARGUMENT` where it names none.
    """
    try:
        fields: Any = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MeshError(
            errors_pb2.ERROR_REASON_INVALID_JSON, f"The body is not valid JSON: {error}."
        ) from None
    name = (fields.get("model") or fields.get("name")) if isinstance(fields, dict) else None
    if not isinstance(name, str) or not name:
        raise MeshError(
            errors_pb2.ERROR_REASON_INVALID_ARGUMENT,
            "model: must be the name of a model",
            param="model",
        )
    return name.removesuffix(LATEST)


def refusal(what: str) -> MeshError:
    """Returns the error for what the mesh does not do.

    Args:
        what: What was asked for. Example: `/api/create`.
    """
    return MeshError(
        errors_pb2.ERROR_REASON_UNSUPPORTED,
        f"{what}: the mesh does not make, copy, send or delete models; do that where the engines "
        "are.",
    )


def _reachable(models: Iterable[pb.OpenAIModel]) -> Iterable[pb.OpenAIModel]:
    return (model for model in models if not model.id.endswith(LATEST))


def _entry(model: pb.OpenAIModel) -> dict[str, Any]:
    return {
        "name": model.id,
        "model": model.id,
        "modified_at": _time(model.created),
        "details": {},
    }


def _context(model: pb.OpenAIModel, name: str) -> dict[str, int]:
    return {name: model.context_length} if model.HasField("context_length") else {}


def _capabilities(model: pb.OpenAIModel) -> list[str]:
    return [_CAPABILITIES[each] for each in model.capabilities if each in _CAPABILITIES]


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
