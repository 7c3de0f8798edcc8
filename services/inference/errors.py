"""How the engine's failures become the mesh's, by status and code, never by text.

engine says              the mesh says
no connection, 502-504   ENGINE_UNAVAILABLE    Envoy tries another node
429                      OVERLOADED            Envoy tries another node
404 of the model         ENGINE_UNAVAILABLE    it was there when the node last asked
other 4xx, 501           ENGINE_REJECTED       with the engine's message, `type` and `param`
401, 403                 ENGINE_FAILED         the node's credentials, not the caller's
424                      ENGINE_FAILED         TGI's status for a generation that failed
other 5xx, broken off    ENGINE_FAILED
silence, or over time    ENGINE_TIMEOUT
"""

import json
from typing import Any

import orjson

from infermesh.errors.v1 import errors_pb2
from services.inference.http_client import (
    EngineConnectError,
    EngineOvertimeError,
    EngineTimeoutError,
)
from services.kit.errors import MeshError

_UNAVAILABLE_STATUSES = frozenset({502, 503, 504})
_TOO_MANY_REQUESTS = 429
# Where an engine is full and does not say for how long.
_ENGINE_RETRY_S = 5
_NODE_FAULTS = frozenset({401, 403, 407})
_FAILED_DEPENDENCY = 424
# What errors inside a stream say instead of a status: OpenAI's codes and types.
_STATUSES_OF_WORDS = {
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "insufficient_quota": 429,
    "context_length_exceeded": 400,
    "content_filter": 400,
    "invalid_request_error": 400,
    "overloaded_error": 503,
}
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


def overloaded(message: str, retry_after_s: int, *, is_final: bool = False) -> MeshError:
    """Returns the error for a node that has no room.

    Args:
        message: Why it has none.
        retry_after_s: The seconds until it may have some.
        is_final: Whether the caller has waited enough for no other node to be tried.
    """
    return MeshError(
        errors_pb2.ERROR_REASON_OVERLOADED,
        f"{message} Try again in {retry_after_s} s.",
        retry_after_s=retry_after_s,
        is_final=is_final,
    )


def unsupported(param: str, message: str) -> MeshError:
    """Returns the error for what the model's engine cannot do."""
    return MeshError(errors_pb2.ERROR_REASON_UNSUPPORTED, f"{param}: {message}", param=param)


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
    if isinstance(error, EngineOvertimeError):
        return MeshError(
            errors_pb2.ERROR_REASON_ENGINE_TIMEOUT, "The answer took longer than one may take."
        )
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
    if status in _UNAVAILABLE_STATUSES or (status == 404 and _is_of_model(error)):
        return unavailable(message)
    if status == _TOO_MANY_REQUESTS:
        return overloaded(message, _ENGINE_RETRY_S)
    if status in _NODE_FAULTS:
        return failed("The node may not use its engine.")
    if (400 <= status < 500 and status != _FAILED_DEPENDENCY) or status == 501:
        return EngineRejectedError(
            message,
            param=_word(error.get("param"), _MAX_WORD_CHARS),
            engine_type=_word(error.get("type"), _MAX_WORD_CHARS),
        )
    return failed(message)


def is_of_model(body: bytes) -> bool:
    """Says whether the model is what an answer of 404 did not find."""
    return _is_of_model(error_of(body))


def _is_of_model(error: dict[str, Any]) -> bool:
    """Says whether the model is what was not found: OpenAI's code, vLLM's field, Ollama's form."""
    if error.get("param") == "model" or error.get("code") == "model_not_found":
        return True
    return error.keys() == {"message"}


def code_of(error: dict[str, Any]) -> int:
    """Returns the HTTP status that an error inside a stream stands for."""
    code = error.get("code")
    if isinstance(code, int):
        return code if 400 <= code < 600 else 500
    for word in (code, error.get("type")):
        if isinstance(word, str) and word in _STATUSES_OF_WORDS:
            return _STATUSES_OF_WORDS[word]
    return 500


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
