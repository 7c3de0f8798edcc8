"""Ollama's forms of requests and answers: `POST /api/embed` and the older `/api/embeddings`.

https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import orjson

from infermesh.errors.v1 import errors_pb2
from services.embeddings.openai import MAX_DIMENSIONS, MAX_INPUTS
from services.embeddings.vectors import Vector
from services.kit.errors import MeshError

_LATEST = ":latest"
_MAX_MODEL_CHARS = 200
_FIELDS = frozenset({"model", "options", "keep_alive", "truncate", "dimensions", "stream"})


class OllamaRequest(NamedTuple):
    """A request that was checked; its model is without the tag `:latest`."""

    model: str
    inputs: Sequence[str]
    dimensions: int | None = None


def parse(body: bytes, field: str) -> OllamaRequest:
    """Reads a request body.

    Options change nothing of the vector of a text that fits, and one that does not is refused.

    Args:
        body: Ollama's JSON.
        field: Where its texts are: `input`, or `prompt` for a single one.

    Raises:
        MeshError: `INVALID_JSON`, or `INVALID_ARGUMENT` or `UNSUPPORTED` with the field at fault.
    """
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MeshError(
            errors_pb2.ERROR_REASON_INVALID_JSON, f"The body is not valid JSON: {error}."
        ) from None
    if not isinstance(request, dict):
        raise MeshError(errors_pb2.ERROR_REASON_INVALID_JSON, "The body must be a JSON object.")
    model = request.get("model")
    if not isinstance(model, str) or not 0 < len(model) <= _MAX_MODEL_CHARS:
        _refuse("model", f"`model` must be a text of 1 to {_MAX_MODEL_CHARS} characters.")
    for name, value in request.items():
        if name != field and name not in _FIELDS and value not in (None, False, "", [], {}):
            _unsupported(name[:60], "is nothing that the mesh knows.")
    # Ollama's 0 leaves the size to the model.
    dimensions = request.get("dimensions") or None
    if dimensions is not None and not (
        type(dimensions) is int and 0 < dimensions <= MAX_DIMENSIONS
    ):
        _refuse("dimensions", f"`dimensions` must be an integer from 0 to {MAX_DIMENSIONS}.")
    texts = _texts(request.get(field), field)
    return OllamaRequest(model.removesuffix(_LATEST), texts, dimensions)


def answer(request: OllamaRequest, vectors: Sequence[Vector], total_ns: int) -> bytes:
    """Returns the answer to `/api/embed`.

    Args:
        request: What was asked.
        vectors: One for each text.
        total_ns: How long it took.
    """
    return orjson.dumps(
        {
            "model": request.model,
            "embeddings": [vector.values() for vector in vectors],
            "total_duration": total_ns,
            "prompt_eval_count": sum(vector.tokens for vector in vectors),
        }
    )


def single(vectors: Sequence[Vector]) -> bytes:
    """Returns the answer to `/api/embeddings`."""
    return orjson.dumps({"embedding": vectors[0].values()})


def _texts(value: Any, field: str) -> Sequence[str]:
    if isinstance(value, str):
        if not value:
            _refuse(field, f"`{field}` must not be empty.")
        return [value]
    if field == "prompt" or not isinstance(value, list):
        _refuse(field, f"`{field}` must be a text{'.' if field == 'prompt' else ' or a list.'}")
    if not 0 < len(value) <= MAX_INPUTS:
        _refuse(field, f"`{field}` must hold 1 to {MAX_INPUTS} texts.")
    for index, text in enumerate(value):
        if not isinstance(text, str) or not text:
            place = f"{field}[{index}]"
            _refuse(place, f"`{place}` must be a text that is not empty.")
    return value


def _refuse(param: str, message: str) -> NoReturn:
    raise MeshError(errors_pb2.ERROR_REASON_INVALID_ARGUMENT, message, param=param)


def _unsupported(param: str, message: str) -> NoReturn:
    raise MeshError(errors_pb2.ERROR_REASON_UNSUPPORTED, f"{param}: {message}", param=param)
