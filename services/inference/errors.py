"""How the engine's failures become the mesh's, by status and code, never by text.

engine says              the mesh says
no connection, 503, 429  ENGINE_UNAVAILABLE    Envoy tries another node
other 4xx, 501           ENGINE_REJECTED       with the engine's message, `type` and `param`
401, 403                 ENGINE_FAILED         the node's credentials, not the caller's
other 5xx, broken off    ENGINE_FAILED
silence                  ENGINE_TIMEOUT
"""

import json
from typing import Any

import orjson

from infermesh.errors.v1 import errors_pb2
from services.inference.http_client import EngineConnectError, EngineTimeoutError
from services.kit.errors import MeshError

_UNAVAILABLE_STATUSES = frozenset({429, 502, 503, 504})
_NODE_FAULTS = frozenset({401, 403, 407})
_MAX_WORD_CHARS = 100


class EngineRejectedError(MeshError):
    """The engine refused the request as the caller's fault.

    REST callers read the `type` that the engine gave.
    """

    def __init__(self, message: str, *, param: str | None, engine_type: str | None) -> None:
        super().__init__(
            errors_pb2.ERROR_REASON_ENGINE_REJECTED,
            message,
            param=param,
            metadata={"engine_type": engine_type} if engine_type else None,
        )
        self._engine_type = engine_type

    def openai_body(self) -> str:
        """Returns OpenAI's error body with the engine's own `type`."""
        body = super().openai_body()
        if self._engine_type is None:
            return body
        fields = json.loads(body)
        fields["error"]["type"] = self._engine_type
        return json.dumps(fields, separators=(",", ":"))


def unavailable(message: str) -> MeshError:
    """Returns the error for an engine that takes no request now."""
    return MeshError(errors_pb2.ERROR_REASON_ENGINE_UNAVAILABLE, message)


def failed(message: str) -> MeshError:
    """Returns the error for an engine that failed."""
    return MeshError(errors_pb2.ERROR_REASON_ENGINE_FAILED, message)


def invalid(param: str, message: str) -> MeshError:
    """Returns the error for a field of the request that is missing or wrong."""
    return MeshError(errors_pb2.ERROR_REASON_INVALID_ARGUMENT, f"{param}: {message}", param=param)


def invalid_json(message: str) -> MeshError:
    """Returns the error for a body that is not JSON."""
    return MeshError(errors_pb2.ERROR_REASON_INVALID_JSON, message)


def model_not_found(model: str) -> MeshError:
    """Returns the error for a model that the engine does not serve."""
    return MeshError(
        errors_pb2.ERROR_REASON_MODEL_NOT_FOUND,
        f"The model `{model}` does not exist.",
        param="model",
        metadata={"model": model[:200]},
    )


def from_transport(error: Exception, *, has_answered: bool) -> MeshError:
    """Returns the mesh's error for a failure of the connection to the engine.

    Args:
        error: What `http_client` raised.
        has_answered: Whether the caller has got a part of the answer.
    """
    if isinstance(error, EngineTimeoutError):
        return MeshError(
            errors_pb2.ERROR_REASON_ENGINE_TIMEOUT, "The engine stopped answering in time."
        )
    if has_answered:
        return failed("The engine broke off in the middle of the answer.")
    if isinstance(error, EngineConnectError):
        return unavailable("The node's engine does not take connections.")
    return unavailable("The node's engine closed the connection before it answered.")


def from_response(status: int, body: bytes) -> MeshError:
    """Returns the mesh's error for an answer of the engine's that is not 200."""
    return from_engine(status, error_of(body))


def from_engine(status: int, error: dict[str, Any]) -> MeshError:
    """Returns the mesh's error for an error object of the engine's.

    Args:
        status: The HTTP status; for an error in a stream its `code`, or 500 where it has none.
        error: OpenAI's error object, with what the engine filled in.
    """
    message = _word(error.get("message"), 1000) or f"The engine answered {status}."
    if status in _UNAVAILABLE_STATUSES:
        return unavailable(message)
    if status in _NODE_FAULTS:
        return failed("The node may not use its engine.")
    if 400 <= status < 500 or status == 501:
        return EngineRejectedError(
            message,
            param=_word(error.get("param"), _MAX_WORD_CHARS),
            engine_type=_word(error.get("type"), _MAX_WORD_CHARS),
        )
    return failed(message)


def code_of(error: dict[str, Any]) -> int:
    """Returns the HTTP status that an error inside a stream stands for."""
    code = error.get("code")
    return code if isinstance(code, int) and 400 <= code < 600 else 500


def error_of(body: bytes) -> dict[str, Any]:
    """Returns the error object in a body; empty where it holds none."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    if not isinstance(fields, dict):
        return {}
    error = fields.get("error", fields)
    if isinstance(error, dict):
        return error
    # Some engines say `{"error": "text"}`.
    return {"message": error}


def _word(value: object, max_chars: int) -> str | None:
    return value[:max_chars] if isinstance(value, str) and value else None
