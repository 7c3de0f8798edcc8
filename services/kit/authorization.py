"""Envoy's authorization protocol, in which auth and routing are asked on every call.

https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/service/auth/v3/external_auth.proto
"""

import asyncio
import base64
import logging
from collections.abc import Callable
from typing import Any

import grpc
from envoy.config.core.v3 import base_pb2
from envoy.service.auth.v3 import external_auth_pb2
from google.protobuf.message import DecodeError

from services.kit import headers
from services.kit.errors import MeshError

log = logging.getLogger(__name__)

SERVICE_NAME = "envoy.service.auth.v3.Authorization"
METHOD = f"/{SERVICE_NAME}/Check"

ORIGINAL_PATH = "x-envoy-original-path"
"""The transcoder's mark: only calls that came as REST carry it."""

_OVERWRITE = base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD

Answer = Callable[[Any], "bytes | asyncio.Future[bytes]"]
"""Returns the encoded `CheckResponse` to a `CheckRequest`; None is one that cannot be read."""


def add_to_server(answer: Answer, server: grpc.aio.Server) -> None:
    """Serves `Check`. Answers are cached as bytes, so they pass by the message serializer."""

    def check(request: Any, _: object) -> "bytes | asyncio.Future[bytes]":
        return answer(request)

    handler: Any = grpc.unary_unary_rpc_method_handler(check, request_deserializer=_parse)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE_NAME, {"Check": handler}),)
    )


def _parse(data: bytes) -> external_auth_pb2.CheckRequest | None:
    try:
        return external_auth_pb2.CheckRequest.FromString(data)
    except DecodeError as error:
        # Envoy passes on what callers wrote; text that is not UTF-8 does not parse as a string.
        log.debug("a question does not parse", extra={"error": str(error)})
        return None


def deny(error: MeshError, *, for_grpc: bool, challenge: str = "Bearer") -> bytes:
    """Returns the answer that refuses a call, in the form that the caller reads."""
    response = external_auth_pb2.CheckResponse()
    response.status.code = error.code.value[0]
    denied = response.denied_response
    denied.status.code = error.http_status
    if for_grpc:
        # Envoy makes the body `grpc-message` and would derive a status of its own from the HTTP
        # status (404 would be UNIMPLEMENTED) if none were given.
        denied.body = error.message
        details = base64.b64encode(error.to_status().SerializeToString()).decode().rstrip("=")
        denied.headers.append(header("grpc-status", str(error.code.value[0])))
        denied.headers.append(header("grpc-status-details-bin", details))
    else:
        denied.body = error.openai_body()
        denied.headers.append(header("content-type", "application/json"))
        if error.http_status == 401:
            denied.headers.append(header("www-authenticate", challenge))
    if error.retry_after_s is not None:
        denied.headers.append(header(headers.RETRY_AFTER, str(error.retry_after_s)))
    return bytes(response.SerializeToString())


def header(name: str, value: str) -> base_pb2.HeaderValueOption:
    """Returns a header that takes the place of any of its name."""
    return base_pb2.HeaderValueOption(
        header=base_pb2.HeaderValue(key=name, value=value), append_action=_OVERWRITE
    )
