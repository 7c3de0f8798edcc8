"""Envoy's authorization protocol, in which the mesh's own Envoy and auth ask where a call goes.

Auth asks while it holds a call against its limits, with Envoy's own question and what it knows of
the caller; what is answered becomes part of its own answer. On the internal listener, where nobody
asks auth, Envoy asks itself. The protocol for gateways that are not ours is in servicer_ext_proc.
"""

from functools import lru_cache

import grpc
from envoy.service.auth.v3 import external_auth_pb2

from services.kit import authorization, headers
from services.kit.errors import MeshError
from services.routing import replies
from services.routing.deciding import Decider
from services.routing.gateway import facts_of_check

_CONTINUE: bytes = external_auth_pb2.CheckResponse(
    ok_response=external_auth_pb2.OkHttpResponse()
).SerializeToString()


def add_to_server(decider: Decider, server: grpc.aio.Server) -> None:
    """Serves `Check`."""

    def check(question: external_auth_pb2.CheckRequest | None) -> bytes:
        reply = answer(decider, question)
        decider.settle_soon()
        return reply

    authorization.add_to_server(check, server)


def answer(decider: Decider, question: external_auth_pb2.CheckRequest | None) -> bytes:
    """Returns an encoded `CheckResponse`: the headers that send a call where it goes, or a refusal.

    One without headers lets the call go on without a choice; Envoy balances it by itself.

    Args:
        decider: Says where calls go.
        question: What is asked; None for one that cannot be read.
    """
    if question is None:
        return _CONTINUE
    facts = facts_of_check(question)
    outcome = decider.decide(facts)
    if outcome is None:
        return _CONTINUE
    if isinstance(outcome, MeshError):
        return authorization.deny(outcome, for_grpc=not facts.is_rest)
    # In protobuf the concatenation of messages is their merge: each piece is encoded once.
    return b"".join(
        [
            _set(name, value) if name != headers.DECISION else _encode(name, value)
            for name, value in replies.told(outcome, facts)
        ]
    )


def _encode(name: str, value: str) -> bytes:
    response = external_auth_pb2.CheckResponse()
    response.ok_response.headers.append(authorization.header(name, value))
    return bytes(response.SerializeToString())


_set = lru_cache(maxsize=4096)(_encode)
