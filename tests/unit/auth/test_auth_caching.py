"""What keys say of earlier answers: kept with them, told to nodes with calls that name a model."""

from dataclasses import replace

import pytest

from infermesh.access.v1 import access_pb2
from infermesh.auth.v1 import key_service_pb2 as pb
from services.auth.keyring import Keyring
from services.auth.servicer import _rules, _to_proto
from services.kit import headers
from unit.auth.auth_samples import (
    ADMIN,
    GRPC_CHAT,
    HASH_SECRET,
    LIST_KEYS,
    REST_CHAT,
    check_request,
    grpc_headers,
    make_decider,
    make_key,
    read_reply,
    rest_headers,
)

CHATS = [
    check_request(REST_CHAT, rest_headers(ADMIN), rest={"model": "m"}),
    check_request(GRPC_CHAT, grpc_headers(ADMIN), typed={"model": "m"}),
]


def told(caching: int, request: object) -> str | None:
    ring = Keyring(HASH_SECRET)
    bound_to = _rules(pb.KeyRules(caching=caching))  # type: ignore[arg-type]
    ring.apply([replace(make_key(ring, access_pb2.ROLE_ADMIN), rules=bound_to)])
    reply, said = read_reply(make_decider(ring).decide(request))
    assert reply.status.code == 0
    return said.get(headers.CACHING)


@pytest.mark.parametrize("request_", CHATS)
def test_nodes_are_told_what_a_key_says_and_else_nothing(request_: object) -> None:
    assert told(pb.CACHING_OFF, request_) == "off"
    assert told(pb.CACHING_ON, request_) == "on"
    assert told(pb.CACHING_UNSPECIFIED, request_) is None


def test_calls_without_a_model_carry_nothing() -> None:
    assert told(pb.CACHING_OFF, check_request(LIST_KEYS, grpc_headers(ADMIN))) is None


@pytest.mark.parametrize("caching", pb.Caching.values())
def test_the_contract_and_the_store_say_the_same(caching: int) -> None:
    rules = pb.KeyRules(caching=caching, labels={"a": "b"})  # type: ignore[arg-type]
    key = make_key(Keyring(HASH_SECRET), access_pb2.ROLE_USER)
    assert _to_proto(replace(key, rules=_rules(rules))).rules == rules
