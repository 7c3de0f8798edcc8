"""Envoy's authorization protocol, in which the mesh's own Envoy and auth ask where a call goes.

Auth asks while it holds a call against its limits, with Envoy's own question and what it knows of
the caller; what is answered becomes part of its own answer. On the internal listener, where nobody
asks auth, Envoy asks itself. The protocol for gateways that are not ours is in servicer_ext_proc.
"""

import logging
from functools import lru_cache
from typing import Any

import grpc
from envoy.service.auth.v3 import external_auth_pb2
from google.protobuf.message import DecodeError

from services.kit import check_replies, headers
from services.kit.errors import MeshError
from services.routing import replies
from services.routing.deciding import Decider
from services.routing.gateway import facts_of_check

log = logging.getLogger(__name__)

SERVICE_NAME = "envoy.service.auth.v3.Authorization"


def add_to_server(decider: Decider, server: grpc.aio.Server) -> None:
    """Serves `Check`."""

    def check(request: Any, _: object) -> bytes:
        reply = answer(decider, request)
        decider.settle_soon()
        return reply

    handler: Any = grpc.unary_unary_rpc_method_handler(check, request_deserializer=_parse)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE_NAME, {"Check": handler}),)
    )


def answer(decider: Decider, request: external_auth_pb2.CheckRequest | None) -> bytes:
    """Returns an encoded `CheckResponse`: the headers that send a call where it goes, or a refusal.

    One without headers lets the call go on without a choice; Envoy balances it by itself.

    Args:
        decider: Says where calls go.
        request: The question; None for one that cannot be read.
    """
    if request is None:
        return _CONTINUE
    facts = facts_of_check(request)
    outcome = decider.decide(facts)
    if outcome is None:
        return _CONTINUE
    if isinstance(outcome, MeshError):
        return check_replies.deny(outcome, for_grpc=not facts.is_rest)
    # In protobuf the concatenation of messages is their merge: each piece is encoded once.
    return b"".join(
        [
            _set(name, value) if name != headers.DECISION else _encode(name, value)
            for name, value in replies.told(outcome, facts)
        ]
    )


def _encode(name: str, value: str) -> bytes:
    response = external_auth_pb2.CheckResponse()
    response.ok_response.headers.append(check_replies.header(name, value))
    return bytes(response.SerializeToString())


_set = lru_cache(maxsize=4096)(_encode)


def _continue() -> bytes:
    response = external_auth_pb2.CheckResponse()
    response.ok_response.SetInParent()
    return bytes(response.SerializeToString())


_CONTINUE = _continue()


def _parse(data: bytes) -> external_auth_pb2.CheckRequest | None:
    try:
        return external_auth_pb2.CheckRequest.FromString(data)
    except DecodeError as error:
        # Envoy passes on what callers wrote; text that is not UTF-8 does not parse as a string.
        log.debug("a question does not parse", extra={"error": str(error)})
        return None
