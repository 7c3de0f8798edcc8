"""Errors in the forms of other dialects than OpenAI's.

Whoever refuses a call writes OpenAI's form, and the front door (`envoy/front.lua`, which decides
by the path) makes the dialect's own of it. What is said in the middle of a stream never passes
there as an error: the node writes it with the functions below, of which the front door has twins.

    Anthropic   {"type":"error","error":{"type":…,"message":…,"param":…},"request_id":…}
    Ollama      {"error":"…"}
"""

import json
from collections.abc import Mapping

from services.kit.errors import MeshError

ANTHROPIC_TYPES: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""Anthropic's words for HTTP statuses; others are `invalid_request_error` below 500, else
`api_error`."""


def anthropic_type(http_status: int) -> str:
    """Returns Anthropic's word for an HTTP status."""
    other = "api_error" if http_status >= 500 else "invalid_request_error"
    return ANTHROPIC_TYPES.get(http_status, other)


def anthropic_error(error: MeshError, request_id: str) -> bytes:
    """Returns Anthropic's error body; `param` is in it where a field is at fault.

    Args:
        error: The refusal.
        request_id: The request's id.
    """
    said = {"type": anthropic_type(error.http_status), "message": error.message}
    if error.param is not None:
        said["param"] = error.param
    return _written({"type": "error", "error": said, "request_id": request_id})


def ollama_error(error: MeshError) -> bytes:
    """Returns Ollama's error body."""
    return _written({"error": error.message})


def _written(body: object) -> bytes:
    # As ASCII, which says what no UTF-8 can: callers' words are in messages.
    return json.dumps(body, separators=(",", ":")).encode()
