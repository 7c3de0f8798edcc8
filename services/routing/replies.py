"""The answers of the endpoint picker protocol, encoded as Envoy reads them.

The protocol is the Gateway API Inference Extension's: the addresses to try, best first, in a
header and, with the same value, in the dynamic metadata of `envoy.lb`.
"""

import base64
from functools import lru_cache

from envoy.config.core.v3 import base_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from envoy.type.v3 import http_status_pb2

from services.kit import headers
from services.kit.errors import MeshError

_METADATA_NAMESPACE = "envoy.lb"

CONTINUE: bytes = pb.ProcessingResponse(
    request_headers=pb.HeadersResponse(response=pb.CommonResponse())
).SerializeToString()
"""Lets the call go on without a choice; Envoy balances it by itself."""


# As many orders as a mesh of this size really sees; each is a few hundred bytes.
@lru_cache(maxsize=4096)
def destination(addresses: tuple[str, ...]) -> bytes:
    """Returns the reply that sends a call to these addresses, best first."""
    value = ",".join(addresses)
    reply = pb.ProcessingResponse(
        request_headers=pb.HeadersResponse(
            response=pb.CommonResponse(
                header_mutation=pb.HeaderMutation(set_headers=[_header(headers.DESTINATION, value)])
            )
        )
    )
    reply.dynamic_metadata.get_or_create_struct(_METADATA_NAMESPACE)[headers.DESTINATION] = value
    return bytes(reply.SerializeToString())


def refusal(error: MeshError, *, rest: bool) -> bytes:
    """Returns the reply that ends a call.

    Envoy makes an immediate response a gRPC one where the caller's own request was gRPC: the body
    then becomes `grpc-message`.

    Args:
        error: What the caller is told.
        rest: Whether the caller speaks REST; else it speaks gRPC.
    """
    reply = pb.ImmediateResponse(
        status=http_status_pb2.HttpStatus(code=error.http_status),
        details=f"infermesh_{error.reason_name.lower()}",
    )
    if rest:
        reply.body = error.openai_body().encode()
        reply.headers.set_headers.append(_header("content-type", "application/json"))
    else:
        reply.body = error.message.encode()
        reply.grpc_status.status = error.code.value[0]
        details = base64.b64encode(error.to_status().SerializeToString()).rstrip(b"=").decode()
        reply.headers.set_headers.append(_header("grpc-status-details-bin", details))
    return bytes(pb.ProcessingResponse(immediate_response=reply).SerializeToString())


def _header(name: str, value: str) -> base_pb2.HeaderValueOption:
    return base_pb2.HeaderValueOption(
        header=base_pb2.HeaderValue(key=name, raw_value=value.encode()),
        append_action=base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
    )
