"""Checks as Envoy sends them, and what reads the answers."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from envoy.service.auth.v3 import external_auth_pb2

from infermesh.access.v1 import access_pb2
from services.auth import access, audit_policy, contracts
from services.auth.audit import Recorder
from services.auth.decision import Decider
from services.auth.keyring import Keyring
from services.auth.store import Key

HASH_SECRET = b"h" * 32
NOW = datetime(2026, 1, 1, tzinfo=UTC)

REST_CHAT = "/infermesh.inference.v1.OpenAIService/CreateChatCompletion"
GRPC_CHAT = "/infermesh.inference.v1.InferenceService/Chat"
LIST_KEYS = "/infermesh.auth.v1.KeyService/ListKeys"

SECRETS: Mapping[int, str] = {
    access_pb2.ROLE_USER: "im-" + "u" * 43,
    access_pb2.ROLE_NODE: "im-" + "n" * 43,
    access_pb2.ROLE_ADMIN: "im-" + "a" * 43,
}
USER = SECRETS[access_pb2.ROLE_USER]
ADMIN = SECRETS[access_pb2.ROLE_ADMIN]


def make_key(ring: Keyring, role: int, secret: str | None = None, key_id: str | None = None) -> Key:
    name = access.ROLE_NAMES[role]
    return Key(
        key_id=key_id or f"key_{name}",
        display_name=f"the {name}'s",
        role=role,
        tenant="acme",
        prefix="im-xxxx",
        secret_hash=ring.digest(secret or SECRETS[role]),
        create_time=NOW,
    )


def make_ring() -> Keyring:
    """Returns a ring with one key of each role."""
    ring = Keyring(HASH_SECRET)
    ring.apply(make_key(ring, role) for role in SECRETS)
    return ring


def make_decider(ring: Keyring, recorder: Recorder | None = None) -> Decider:
    table = audit_policy.mark(access.build_table(contracts.services()), inference=False)
    return Decider(ring, table, access.ModelNames(), recorder or Recorder(lambda *_: None))


def check_request(
    path: str,
    headers: Mapping[str, str],
    *,
    rest: Mapping[str, Any] | None = None,
    typed: Mapping[str, str] | None = None,
) -> external_auth_pb2.CheckRequest:
    """Returns a check of a call.

    Args:
        path: The path after the transcoder.
        headers: The headers after the transcoder.
        rest: What envoy/fields.lua found.
        typed: What `grpc_field_extraction` found.
    """
    request = external_auth_pb2.CheckRequest()
    request.attributes.source.address.socket_address.address = "127.0.0.1"
    request.attributes.source.address.socket_address.port_value = 53412
    request.attributes.destination.address.socket_address.address = "127.0.0.1"
    request.attributes.destination.address.socket_address.port_value = 8080
    http = request.attributes.request.http
    http.id = "11235813"
    http.method = "POST"
    http.path = path
    http.host = "127.0.0.1:8080"
    http.scheme = "http"
    http.protocol = "HTTP/1.1"
    http.size = 311
    for name, value in headers.items():
        http.headers[name] = value
    metadata = request.attributes.metadata_context.filter_metadata
    if rest is not None:
        metadata["infermesh.request"].update(dict(rest))
    if typed is not None:
        found = {name: [value] for name, value in typed.items()}
        metadata["envoy.filters.http.grpc_field_extraction"].update(found)
    return request


def rest_headers(secret: str, original_path: str = "/v1/chat/completions") -> dict[str, str]:
    """Returns the headers of a REST call once it has been transcoded."""
    return {
        "authorization": f"Bearer {secret}",
        "content-type": "application/grpc",
        "x-envoy-original-path": original_path,
        "x-envoy-original-method": "POST",
        "x-request-id": "1f0e2d3c-4b5a-4978-8695-a4b3c2d1e0f9",
    }


def grpc_headers(secret: str) -> dict[str, str]:
    """Returns the headers of a native gRPC call."""
    return {
        "authorization": f"Bearer {secret}",
        "content-type": "application/grpc",
        "x-request-id": "1f0e2d3c-4b5a-4978-8695-a4b3c2d1e0f9",
    }


def read_reply(data: bytes) -> tuple[Any, dict[str, str]]:
    """Returns the reply and the headers that it sets, for the service or for the caller."""
    reply = external_auth_pb2.CheckResponse.FromString(data)
    part = reply.denied_response if reply.HasField("denied_response") else reply.ok_response
    return reply, {option.header.key: option.header.value for option in part.headers}
