import time

import orjson
import pytest

from infermesh.inference.v1 import inference_service_pb2 as pb
from services.inference.accounting import Account
from services.inference.answers import Answers
from services.inference.engines.dialect import Tokens
from services.inference.gateway_metadata import GatewayMetadata, cost_usd
from services.kit.caller import caller_of

DECISION = {
    "policy": "balanced",
    "candidates": [
        {"node": "n2", "model": "m", "score": 0.9},
        {"node": "n1", "model": "m", "score": 0.25},
        {"node": "n1", "model": "fallback", "score": 0.1},
    ],
}


def described(tokens, decision=DECISION, price=(None, None)):
    text = decision if isinstance(decision, str) else orjson.dumps(decision).decode()
    caller = caller_of((("x-mesh-decision", text),))
    account = Account(
        None,
        None,
        began_ns=time.monotonic_ns() - 70 * 10**6,
        waited_ns=50 * 10**6,
        answers=Answers(),
        expected_cached=None,
    )
    account.succeed(tokens)
    return GatewayMetadata("n1", "vllm", lambda model: price).of(caller, account, "m")


def test_everything_known():
    fields = described(Tokens(prompt=200, completion=10, cached=50), price=(2.0, 8.0))
    assert fields.pop("response_time_ms") >= 70
    assert fields.pop("queue_ms") == 50
    assert fields == {
        "node": "n1",
        "deployment": None,
        "framework": "vllm",
        "model": "m",
        "cache_hit": 0.25,
        "score": 0.25,
        "policy": "balanced",
        "cost_estimate_usd": 0.00048,
    }


def test_the_unknown_is_null_not_zero():
    fields = described(Tokens(), decision={})
    unknown = ("cache_hit", "score", "policy", "cost_estimate_usd", "deployment")
    assert [fields[name] for name in unknown] == [None] * 5


def test_it_fits_the_contract():
    for tokens in (Tokens(), Tokens(prompt=2, completion=1, cached=1)):
        message = pb.GatewayMetadata(**described(tokens, price=(1.0, 1.0)))
        assert message.HasField("cache_hit") == (tokens.cached is not None)
        assert not message.HasField("deployment")


@pytest.mark.parametrize(
    "decision",
    [
        "x",
        "[]",
        {"policy": 1, "candidates": 2},
        {"candidates": [3, {"node": "n1", "model": "m", "score": "x"}]},
    ],
)
def test_a_decision_of_another_form_says_nothing(decision):
    fields = described(Tokens(), decision=decision)
    assert (fields["policy"], fields["score"]) == (None, None)


@pytest.mark.parametrize(
    ("price", "tokens", "cost"),
    [
        ((1.0, 2.0), Tokens(prompt=1_000_000, completion=500_000), 2.0),
        ((0.0, 0.0), Tokens(prompt=1, completion=1), 0.0),
        ((None, 2.0), Tokens(prompt=1, completion=1), None),
        ((1.0, None), Tokens(prompt=1, completion=1), None),
        ((1.0, 2.0), Tokens(prompt=1), None),
    ],
)
def test_what_it_cost(price, tokens, cost):
    assert cost_usd(price, tokens) == cost
