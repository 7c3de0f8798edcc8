"""OpenAI's form of requests and answers, `POST /v1/embeddings`."""

import binascii
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import orjson

from infermesh.errors.v1 import errors_pb2
from services.embeddings.vectors import Input, Vector
from services.kit.errors import MeshError

MAX_INPUTS = 2048
MAX_DIMENSIONS = 65_536
MAX_TOKENS = 1_000_000
"""Of one input."""
_MAX_TOKEN = 2**31 - 1
_MAX_MODEL_CHARS = 200
# What changes nothing of a vector: who asks, and the mesh's own fields.
_FIELDS = frozenset(
    {
        *("model", "input", "encoding_format", "dimensions", "user", "safety_identifier"),
        *("preferred_framework", "fallback_models", "enable_caching", "optimization_level"),
        *("priority", "session_id"),
    }
)


class EmbeddingsRequest(NamedTuple):
    """A request that was checked."""

    model: str
    inputs: Sequence[Input]
    is_base64: bool
    dimensions: int | None = None


def parse(body: bytes) -> EmbeddingsRequest:
    """Reads a request body.

    Raises:
        MeshError: `INVALID_JSON`; `INVALID_ARGUMENT` or `UNSUPPORTED` with the field at fault.
    """
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MeshError(
            errors_pb2.ERROR_REASON_INVALID_JSON, f"The body is not valid JSON: {error}."
        ) from None
    if not isinstance(request, dict):
        _refuse(None, "The body must be a JSON object.")
    model = request.get("model")
    if not isinstance(model, str) or not 0 < len(model) <= _MAX_MODEL_CHARS:
        _refuse("model", f"`model` must be a text of 1 to {_MAX_MODEL_CHARS} characters.")
    encoding = request.get("encoding_format")
    if encoding not in (None, "float", "base64"):
        _refuse("encoding_format", "`encoding_format` must be `float` or `base64`.")
    dimensions = request.get("dimensions")
    if dimensions is not None and not (
        type(dimensions) is int and 0 < dimensions <= MAX_DIMENSIONS
    ):
        _refuse("dimensions", f"`dimensions` must be an integer from 1 to {MAX_DIMENSIONS}.")
    for name, said in request.items():
        if name not in _FIELDS and said is not None:
            raise MeshError(
                errors_pb2.ERROR_REASON_UNSUPPORTED,
                f"{name[:60]}: is nothing that the mesh can do with vectors.",
                param=name[:60],
            )
    inputs = _inputs(request.get("input"))
    return EmbeddingsRequest(model, inputs, encoding == "base64", dimensions)


def answer(request: EmbeddingsRequest, vectors: Sequence[Vector]) -> bytes:
    """Returns the response body; floats are exact, base64 is of little-endian float32."""
    tokens = sum(vector.tokens for vector in vectors)
    return orjson.dumps(
        {
            "object": "list",
            "data": [
                {
                    "object": "embedding",
                    "index": index,
                    "embedding": (
                        binascii.b2a_base64(vector.data, newline=False).decode()
                        if request.is_base64
                        else vector.values()
                    ),
                }
                for index, vector in enumerate(vectors)
            ],
            "model": request.model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


def _inputs(value: Any) -> Sequence[Input]:
    if isinstance(value, str):
        if not value:
            _refuse("input", "`input` must not be empty.")
        return [value]
    if not isinstance(value, list):
        _refuse("input", "`input` must be a text, a list of texts, or tokens.")
    if value and type(value[0]) is int:
        return [_tokens(value, "input")]
    if not 0 < len(value) <= MAX_INPUTS:
        _refuse("input", f"`input` must hold 1 to {MAX_INPUTS} texts.")
    if isinstance(value[0], list):
        return [_tokens(tokens, f"input[{index}]") for index, tokens in enumerate(value)]
    for index, text in enumerate(value):
        if not isinstance(text, str) or not text:
            _refuse(f"input[{index}]", f"`input[{index}]` must be a text that is not empty.")
    return value


def _tokens(value: Any, field: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not 0 < len(value) <= MAX_TOKENS:
        _refuse(field, f"`{field}` must be a list of 1 to {MAX_TOKENS} tokens.")
    if not all(type(token) is int and 0 <= token <= _MAX_TOKEN for token in value):
        _refuse(field, f"`{field}` must hold integers from 0 to {_MAX_TOKEN}.")
    return tuple(value)


def _refuse(param: str | None, message: str) -> NoReturn:
    raise MeshError(errors_pb2.ERROR_REASON_INVALID_ARGUMENT, message, param=param)
