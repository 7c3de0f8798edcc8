"""Refusals in Envoy's authorization protocol, which auth and routing answer in.

https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/service/auth/v3/external_auth.proto
"""

import base64

from envoy.config.core.v3 import base_pb2
from envoy.service.auth.v3 import external_auth_pb2

from services.kit import headers
from services.kit.errors import MeshError

ORIGINAL_PATH = "x-envoy-original-path"
"""The transcoder's mark: only calls that came as REST carry it."""

_OVERWRITE = base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD


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
