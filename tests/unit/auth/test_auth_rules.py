"""What keys are bound to: models by pattern, networks."""

import base64
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import orjson
import pytest

from infermesh.access.v1 import access_pb2
from services.auth.rules import Bounds, Rules, bounds_of, check
from services.kit import globs
from services.kit.errors import MeshError
from services.kit.globs import ModelGlobs
from support import within
from unit.auth.auth_samples import (
    ADMIN,
    GRPC_CHAT,
    LIST_KEYS,
    REST_CHAT,
    USER,
    check_request,
    grpc_headers,
    make_decider,
    make_key,
    make_ring,
    read_reply,
    rest_headers,
)


@pytest.mark.parametrize(
    ("allowed", "denied", "yes", "no"),
    [
        ([], [], ["m", "org/M:1"], []),
        (["llama-*"], [], ["llama-", "llama-3/x"], ["llama", "Llama-3", "x-llama-3", "\nllama-3"]),
        (["gpt-?", "m"], [], ["gpt-4", "m"], ["gpt-", "gpt-40", "mm"]),
        (["*"], ["*-big", "secret"], ["a", "big"], ["a-big", "secret"]),
        ([], ["a*"], ["b"], ["a", "ab"]),
        (["a*"], ["ab"], ["ac"], ["ab"]),
        (["a.c"], [], ["a.c"], ["abc"]),
    ],
)
def test_patterns(
    allowed: Sequence[str], denied: Sequence[str], yes: Sequence[str], no: Sequence[str]
) -> None:
    made = ModelGlobs(allowed, denied)
    for found in (made, globs.read(made.text)):
        assert [name for name in (*yes, *no) if found.allow(name)] == list(yes)


def test_brackets_are_no_sets() -> None:
    assert not ModelGlobs(["[ab]"], []).allow("a")


def test_no_pattern_is_slow() -> None:
    found = ModelGlobs(["a*" * 99 + "b"] * 20, [])

    def asked() -> float:
        start = time.perf_counter()
        assert not found.allow("a" * 200)
        return time.perf_counter() - start

    within(0.1, asked)


@pytest.mark.parametrize(
    ("networks", "yes", "no"),
    [
        ((), ["1.2.3.4", "", "x"], []),
        (("10.0.0.0/8",), ["10.1.2.3", "::ffff:10.1.2.3"], ["11.0.0.1", "::1", "", "unix", "10.1"]),
        (("10.1.2.3/8",), ["10.9.9.9"], []),
        (("2001:db8::/32", "::1/128"), ["2001:db8::7", "::1"], ["2001:db9::1", "127.0.0.1"]),
    ],
)
def test_networks(networks: tuple[str, ...], yes: Sequence[str], no: Sequence[str]) -> None:
    bounds = Bounds((), (), networks)
    assert [address for address in (*yes, *no) if bounds.admit(address)] == list(yes)


def test_keys_share_bounds_and_most_have_none() -> None:
    assert bounds_of(Rules(labels={"a": "b"})) is None
    one, two = (bounds_of(Rules(allowed_models=("a",), labels={"n": n})) for n in "12")
    assert one is not None
    assert one is two


def test_patterns_fit_into_their_header() -> None:
    check(Rules(allowed_models=("a" * 200,) * 19))
    with pytest.raises(MeshError) as caught:
        check(Rules(allowed_models=("a" * 200,) * 10, denied_models=("b" * 200,) * 10))
    assert caught.value.reason_name == "INVALID_ARGUMENT"


def decide(rules: Rules, path: str = REST_CHAT, **metadata: Any) -> tuple[Any, dict[str, str]]:
    ring = make_ring()
    ring.apply([replace(make_key(ring, access_pb2.ROLE_USER), rules=rules)])
    ring.apply([replace(make_key(ring, access_pb2.ROLE_ADMIN), rules=rules)])
    secret = ADMIN if path == LIST_KEYS else USER
    headers = rest_headers(secret) if path == REST_CHAT else grpc_headers(secret)
    fallbacks = metadata.pop("fallbacks", None)
    request = check_request(path, headers, **metadata)
    if fallbacks is not None:
        listed = request.attributes.metadata_context.filter_metadata["infermesh.fallbacks"]
        listed.update({"models": base64.b64encode(fallbacks).decode()})
    return read_reply(make_decider(ring).decide(request))


ONLY_M = Rules(allowed_models=("m*",), denied_models=("mx",))


def test_routing_is_told_of_the_patterns_and_only_where_there_are_some() -> None:
    reply, headers = decide(ONLY_M, rest={"model": "m1"})
    assert reply.status.code == 0
    assert headers["x-mesh-allowed-models"] == "m*,!mx"
    assert "x-mesh-allowed-models" not in decide(Rules(), rest={"model": "m1"})[1]
    _, headers = decide(Rules(networks=("127.0.0.0/8",)), rest={"model": "m1"})
    assert "x-mesh-allowed-models" not in headers


@pytest.mark.parametrize("model", ["mx", "other", "M1"])
def test_a_model_that_the_key_may_not_use_does_not_exist(model: str) -> None:
    reply, _ = decide(ONLY_M, rest={"model": model})
    assert reply.denied_response.status.code == 404
    error = orjson.loads(reply.denied_response.body)["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "model")


@pytest.mark.parametrize(
    ("fallbacks", "status"),
    [
        (b'["m1", "m2"]', 0),
        (b'["m1", "other"]', 404),
        (b'["mx"]', 404),
        (b'["m1", 5, null]', 0),
        (b'{"a": 1}', 0),
        (b'["m1"', 0),
        (b"\xff", 0),
    ],
)
def test_the_callers_own_fallbacks_in_rest(fallbacks: bytes, status: int) -> None:
    reply, _ = decide(ONLY_M, rest={"model": "m1"}, fallbacks=fallbacks)
    assert reply.denied_response.status.code == status
    if status:
        error = orjson.loads(reply.denied_response.body)["error"]
        assert error["param"] == "fallback_models"
    assert decide(Rules(), rest={"model": "m1"}, fallbacks=fallbacks)[0].status.code == 0


@pytest.mark.parametrize("prefix", ["", "chat."])
def test_the_callers_own_fallbacks_in_grpc(prefix: str) -> None:
    fields = {f"{prefix}model": "m1", f"{prefix}fallback_models": "other"}
    assert decide(ONLY_M, GRPC_CHAT, typed=fields)[0].status.code == 5
    fields[f"{prefix}fallback_models"] = "m2"
    assert decide(ONLY_M, GRPC_CHAT, typed=fields)[0].status.code == 0


def test_another_network_is_refused_whatever_the_call() -> None:
    elsewhere = Rules(networks=("10.0.0.0/8",))
    for path, metadata in ((REST_CHAT, {"rest": {"model": "m"}}), (LIST_KEYS, {}), ("/no", {})):
        reply, _ = decide(elsewhere, path, **metadata)
        assert reply.status.code == 7
    # The samples come from 127.0.0.1.
    assert decide(Rules(networks=("127.0.0.1/32",)), LIST_KEYS)[0].status.code == 0


def test_other_rules_count_from_the_next_call_on() -> None:
    ring = make_ring()
    decider = make_decider(ring)
    request = check_request(REST_CHAT, rest_headers(USER), rest={"model": "other"})
    assert read_reply(decider.decide(request))[0].status.code == 0
    key = make_key(ring, access_pb2.ROLE_USER)
    ring.apply([replace(key, rules=ONLY_M)])
    assert read_reply(decider.decide(request))[0].status.code == 5
    ring.apply([key])
    assert read_reply(decider.decide(request))[0].status.code == 0
