"""Guardrails of keys: checked when they are set, told to nodes with calls that name a model."""

from dataclasses import replace

import pytest

from infermesh.access.v1 import access_pb2
from infermesh.auth.v1 import key_service_pb2 as pb
from services.auth import rules
from services.auth.keyring import Keyring
from services.auth.rules import Rules
from services.auth.servicer import _rules, _to_proto
from services.kit import headers
from services.kit.errors import MeshError
from services.kit.guardrails import header
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

WANTED = pb.Guardrails(max_prompt_chars=9, blocked_patterns=["zebra"], redact=[2])


def told(bound_to: Rules, request: object) -> str | None:
    ring = Keyring(HASH_SECRET)
    ring.apply([replace(make_key(ring, access_pb2.ROLE_ADMIN), rules=bound_to)])
    reply, said = read_reply(make_decider(ring).decide(request))
    assert reply.status.code == 0
    return said.get(headers.GUARDRAILS)


CHATS = [
    check_request(REST_CHAT, rest_headers(ADMIN), rest={"model": "m"}),
    check_request(GRPC_CHAT, grpc_headers(ADMIN), typed={"model": "m"}),
]


@pytest.mark.parametrize("request_", CHATS)
@pytest.mark.parametrize("more", [Rules(), Rules(allowed_models=("m",))])
def test_nodes_are_told(request_: object, more: Rules) -> None:
    text = told(replace(more, guardrails=header.write(WANTED)), request_)
    assert text is not None
    assert header.read(text) == WANTED


@pytest.mark.parametrize("request_", CHATS)
def test_of_keys_without_any_nothing_is_said(request_: object) -> None:
    assert told(Rules(), request_) is None
    assert told(Rules(networks=("127.0.0.0/8",)), request_) is None


def test_calls_without_a_model_carry_none() -> None:
    request = check_request(LIST_KEYS, grpc_headers(ADMIN))
    assert told(Rules(guardrails=header.write(WANTED)), request) is None


def test_the_contract_and_the_store_say_the_same() -> None:
    ring = Keyring(HASH_SECRET)
    bound_to = _rules(pb.KeyRules(guardrails=WANTED))
    key = replace(make_key(ring, access_pb2.ROLE_USER), rules=bound_to)
    assert _to_proto(key).rules.guardrails == WANTED
    assert _rules(pb.KeyRules(guardrails=pb.Guardrails())) == rules.NONE


@pytest.mark.parametrize(
    ("patterns", "param"),
    [
        (["("], "[0]"),
        (["fine", "a*"], "[1]"),
        (["x" * 200] * 11, ""),
        # 2,000 characters that are a small program and take too many bytes.
        (["[" + "".join(map(chr, range(0x1F900, 0x1F900 + 198))) + "]"] * 10, ""),
    ],
)
def test_patterns_are_checked_when_they_are_set(patterns: list[str], param: str) -> None:
    text = header.write(pb.Guardrails(blocked_patterns=patterns))
    with pytest.raises(MeshError) as caught:
        rules.check(Rules(guardrails=text))
    assert caught.value.reason_name == "INVALID_ARGUMENT"
    assert caught.value.param == "rules.guardrails.blocked_patterns" + param


def test_the_most_patterns_fit_into_the_header() -> None:
    patterns = ["ä" * 60] * 20
    rules.check(Rules(guardrails=header.write(pb.Guardrails(blocked_patterns=patterns))))
