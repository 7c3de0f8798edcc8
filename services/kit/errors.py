"""How the mesh refuses: one exception, two forms on the wire.

    MeshError                       carries reason, message, param, metadata
     ├─ to_status()                 google.rpc.Status with ErrorInfo, for gRPC callers
     └─ openai_body()               OpenAI's `{"error": …}`, for REST callers

A service raises a `MeshError` (or a subclass of its own); `kit.guard` turns it into the gRPC
status, the status details and the trailer that Envoy makes the REST body.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, cast

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from infermesh.errors.v1 import errors_pb2
from services.kit import headers

DOMAIN = "infermesh"

# Trailers share the 8 KiB that HTTP stacks commonly allow for all of them together, gRPC's among
# them. A message is in them up to four times, two of these in base64; a `param` up to twice.
_MAX_MESSAGE_BYTES = 1024
_MAX_PARAM_CHARS = 200
_MAX_PARAM_BYTES = 600
_MAX_METADATA_BYTES = 768
_MAX_BYTES_OF_A_CHAR = 12


class _Form(NamedTuple):
    code: grpc.StatusCode
    http_status: int
    openai_type: str


_R = errors_pb2.ErrorReason
_C = grpc.StatusCode

_INVALID = _Form(_C.INVALID_ARGUMENT, 400, "invalid_request_error")
_MISSING = _Form(_C.NOT_FOUND, 404, "invalid_request_error")
_UNAVAILABLE = _Form(_C.UNAVAILABLE, 503, "server_error")

# The transcoder derives the HTTP status from the gRPC code by the standard table; `http_status`
# states the same for the replies that auth and routing write themselves.
FORMS: Mapping[int, _Form] = {
    _R.ERROR_REASON_INVALID_API_KEY: _Form(_C.UNAUTHENTICATED, 401, "invalid_request_error"),
    _R.ERROR_REASON_PERMISSION_DENIED: _Form(_C.PERMISSION_DENIED, 403, "invalid_request_error"),
    _R.ERROR_REASON_MODEL_NOT_FOUND: _MISSING,
    _R.ERROR_REASON_NO_NODE_AVAILABLE: _UNAVAILABLE,
    _R.ERROR_REASON_INVALID_JSON: _INVALID,
    _R.ERROR_REASON_INVALID_ARGUMENT: _INVALID,
    _R.ERROR_REASON_ENGINE_REJECTED: _INVALID,
    _R.ERROR_REASON_ENGINE_FAILED: _Form(_C.INTERNAL, 500, "server_error"),
    _R.ERROR_REASON_ENGINE_UNAVAILABLE: _UNAVAILABLE,
    _R.ERROR_REASON_NOT_FOUND: _MISSING,
    _R.ERROR_REASON_INPUT_TOO_LONG: _INVALID,
    _R.ERROR_REASON_STORE_UNAVAILABLE: _UNAVAILABLE,
    _R.ERROR_REASON_INTERNAL: _Form(_C.INTERNAL, 500, "server_error"),
    _R.ERROR_REASON_UNKNOWN_URL: _MISSING,
    _R.ERROR_REASON_ENGINE_TIMEOUT: _Form(_C.DEADLINE_EXCEEDED, 504, "server_error"),
    _R.ERROR_REASON_SERVICE_UNAVAILABLE: _UNAVAILABLE,
    _R.ERROR_REASON_REQUEST_TOO_LARGE: _Form(_C.INVALID_ARGUMENT, 413, "invalid_request_error"),
    _R.ERROR_REASON_OVERLOADED: _Form(_C.RESOURCE_EXHAUSTED, 429, "rate_limit_error"),
    _R.ERROR_REASON_UNSUPPORTED: _INVALID,
    _R.ERROR_REASON_CONTENT_BLOCKED: _INVALID,
    _R.ERROR_REASON_RATE_LIMIT_EXCEEDED: _Form(_C.RESOURCE_EXHAUSTED, 429, "rate_limit_error"),
    _R.ERROR_REASON_INSUFFICIENT_QUOTA: _Form(_C.RESOURCE_EXHAUSTED, 429, "insufficient_quota"),
    _R.ERROR_REASON_FAILED_PRECONDITION: _Form(
        _C.FAILED_PRECONDITION, 400, "invalid_request_error"
    ),
}


_NAMES = frozenset(_R.keys())


class MeshError(Exception):
    """A refusal or failure that the caller is told of.

    Args:
        reason: An `ErrorReason` number.
        message: A sentence for the caller. Holds nothing that the caller may not know. It is cut
            to 1 KiB on the wire, which is 1024 plain characters or 85 emoji.
        param: The request field at fault, where one is, cut to 200 characters and 600 bytes.
            Example: `messages[0].role`.
        metadata: Facts for programs, put into `ErrorInfo.metadata`; what comes after 768 bytes
            is left out.
        retry_after_s: After how many seconds it is worth another try, where that is known.
        is_final: Whether Envoy shall not try another node, whatever the code.
    """

    def __init__(
        self,
        reason: "errors_pb2.ErrorReason.ValueType",
        message: str,
        *,
        param: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_after_s: int | None = None,
        is_final: bool = False,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = _cut(message, _MAX_MESSAGE_BYTES)
        self.param = None if param is None else _cut(param[:_MAX_PARAM_CHARS], _MAX_PARAM_BYTES)
        self.metadata = _bounded(metadata or {})
        self.retry_after_s = retry_after_s
        self.is_final = is_final
        self._form = FORMS[reason]

    @property
    def code(self) -> grpc.StatusCode:
        """The gRPC status code."""
        return self._form.code

    @property
    def http_status(self) -> int:
        """The HTTP status code."""
        return self._form.http_status

    @property
    def reason_name(self) -> str:
        """The reason without its prefix. Example: `MODEL_NOT_FOUND`."""
        return _R.Name(self.reason).removeprefix("ERROR_REASON_")

    def openai_body(self) -> str:
        """Returns OpenAI's error body as ASCII JSON, fit for a header value."""
        return json.dumps(
            {
                "error": {
                    "message": self.message,
                    "type": self._form.openai_type,
                    "param": self.param,
                    "code": self.reason_name.lower(),
                }
            },
            separators=(",", ":"),
        )

    def to_status(self) -> status_pb2.Status:
        """Returns the status with `ErrorInfo`.

        With it go `BadRequest` where a field is at fault, and `RetryInfo` where it is known when
        to try again.
        """
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        details: list[Message] = [
            error_details_pb2.ErrorInfo(
                reason=self.reason_name, domain=DOMAIN, metadata=self.metadata
            )
        ]
        if self.param is not None:
            violation = error_details_pb2.BadRequest.FieldViolation(
                field=self.param, description=self.message
            )
            details.append(error_details_pb2.BadRequest(field_violations=[violation]))
        if self.retry_after_s is not None:
            delay = duration_pb2.Duration(seconds=self.retry_after_s)
            details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        for detail in details:
            packed = any_pb2.Any()
            packed.Pack(detail)
            status.details.append(packed)
        return status

    def trailers(self) -> tuple[tuple[str, str | bytes], ...]:
        """Returns the trailing metadata that carries both forms."""
        trailers: tuple[tuple[str, str | bytes], ...] = (
            ("grpc-status-details-bin", self.to_status().SerializeToString()),
            (headers.ERROR_BODY, self.openai_body()),
        )
        if self.retry_after_s is not None:
            trailers += ((headers.RETRY_AFTER, str(self.retry_after_s)),)
        if self.is_final:
            trailers += ((headers.FINAL, "true"),)
        return trailers


class StoreUnavailableError(MeshError):
    """The store does not answer; the same call may work later.

    Args:
        cause: Why, for logs. Callers are told a sentence that does not hold it.
    """

    def __init__(self, cause: str) -> None:
        super().__init__(
            _R.ERROR_REASON_STORE_UNAVAILABLE,
            "The service's database does not answer. Try again shortly.",
        )
        self.args = (cause,)


def _cut(text: str, limit: int) -> str:
    """Returns the longest start of the text that takes at most `limit` bytes in any trailer."""
    if _MAX_BYTES_OF_A_CHAR * len(text) <= limit:
        return text
    for end, character in enumerate(text):
        limit -= _wire_bytes(character)
        if limit < 0:
            return text[:end]
    return text


def _wire_bytes(character: str) -> int:
    if " " <= character <= "~" and character not in '"\\%':
        return 1
    percent_encoded = 3 * len(character.encode("utf-8", "replace"))
    return max(percent_encoded, len(json.dumps(character)) - 2)


def _bounded(metadata: Mapping[str, str]) -> dict[str, str]:
    kept: dict[str, str] = {}
    room = _MAX_METADATA_BYTES
    for key, value in metadata.items():
        room -= sum(map(_wire_bytes, key))
        if room <= 0:
            break
        kept[key] = _cut(value, room)
        room -= sum(map(_wire_bytes, kept[key]))
    return kept


def from_rpc_error(error: grpc.aio.AioRpcError) -> MeshError | None:
    """Returns the `MeshError` that another service of the mesh sent, or None where it sent none."""
    for key, value in cast(Iterable[tuple[str, Any]], error.trailing_metadata() or ()):
        if key != "grpc-status-details-bin":
            continue
        status = status_pb2.Status.FromString(value)
        info = error_details_pb2.ErrorInfo()
        request = error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        param = retry_after_s = None
        for detail in status.details:
            if detail.Is(info.DESCRIPTOR):
                detail.Unpack(info)
            elif detail.Is(request.DESCRIPTOR) and detail.Unpack(request):
                param = request.field_violations[0].field if request.field_violations else None
            elif detail.Is(retry.DESCRIPTOR) and detail.Unpack(retry):
                retry_after_s = retry.retry_delay.seconds
        name = "ERROR_REASON_" + info.reason
        if info.domain == DOMAIN and name in _NAMES:
            return MeshError(
                _R.Value(name),
                status.message,
                param=param,
                metadata=dict(info.metadata),
                retry_after_s=retry_after_s,
            )
    return None
