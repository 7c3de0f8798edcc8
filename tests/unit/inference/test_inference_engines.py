import orjson
import pytest

from services.inference.agent import node_load, served_model
from services.inference.engines import ENGINES
from services.inference.engines.dialect import (
    EngineModel,
    Load,
    Tokens,
    count_of,
    prometheus_values,
)
from services.inference.engines.llamacpp import LlamaCpp
from services.inference.engines.openai import OpenAICompatible
from services.inference.http_connection import EngineConnectionError
from services.inference.requests import parse


def request(kind="chat", **fields):
    prompt = {"prompt": "hi"} if kind == "completion" else {}
    messages = {"messages": [{"role": "user", "content": "hi"}]} if kind == "chat" else {}
    return parse(kind, orjson.dumps({"model": "m", **prompt, **messages, **fields}))


def sent(plan):
    fields = orjson.loads(plan.body)
    return {k: v for k, v in fields.items() if k not in ("model", "messages", "prompt")}


def test_every_dialect_is_named_as_it_is_set():
    assert {name: make().name for name, make in ENGINES.items()} == {n: n for n in ENGINES}


@pytest.mark.parametrize(
    ("kind", "fields", "plan"),
    [
        (
            "chat",
            {},
            {
                "stream": True,
                "stream_options": {"include_usage": True},
                "return_progress": True,
            },
        ),
        ("completion", {}, {"stream": True, "return_progress": True}),
        (
            "chat",
            {"stream": True, "stream_options": {"include_usage": True}},
            {
                "stream": True,
                "stream_options": {"include_usage": True},
                "return_progress": True,
            },
        ),
    ],
)
def test_llamacpp_always_streams_so_that_it_can_be_stopped(kind, fields, plan):
    asked = request(kind, **fields)
    made = LlamaCpp().plan(asked)
    assert sent(made) == plan
    assert made.is_folded is not asked.is_stream


def test_llamacpp_hides_only_what_the_caller_did_not_ask_for():
    engine = LlamaCpp()
    plan = engine.plan(request(stream=True))
    assert (plan.hides_usage, plan.hides_progress) == (True, True)
    plan = engine.plan(
        request(stream=True, stream_options={"include_usage": True}, return_progress=True)
    )
    assert (plan.hides_usage, plan.hides_progress) == (False, False)
    plan = engine.plan(request("completion", stream=True))
    assert not plan.hides_usage


def test_openai_passes_what_does_not_stream_as_it_is():
    asked = request()
    assert OpenAICompatible().plan(asked).body is asked.body
    plan = OpenAICompatible().plan(request(stream=True))
    assert sent(plan) == {"stream": True, "stream_options": {"include_usage": True}}
    assert plan.hides_usage


def test_llamacpp_counts_a_shared_prompt_once():
    usage = {
        "prompt_tokens": 32,
        "completion_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 30},
    }
    engine = LlamaCpp()
    total = engine.total([usage, usage], request(n=2))
    assert total == Tokens(prompt=32, completion=4, cached=30)
    # Two prompts, one answer each.
    total = engine.total([usage, usage], request("completion"))
    assert total == Tokens(prompt=64, completion=4, cached=60)
    assert engine.total([], request()) == Tokens()


def test_metrics_are_summed_over_labels_and_missing_is_unknown():
    text = b'# HELP a b\na{x="1 2"} 3\na{x="}"} 4.0 1700000000\nab 9\nb 2\n'
    assert prometheus_values(text, {b"a": "one", b"b": "two", b"c": "three"}) == {
        "one": 7.0,
        "two": 2.0,
    }
    with pytest.raises(EngineConnectionError):
        prometheus_values(b"a\n", {b"a": "one"})


@pytest.mark.parametrize("value", [-1, True, None, "3", float("nan"), 2**31])
def test_what_is_no_count_is_unknown(value):
    assert count_of(value) is None


def test_reports():
    load = node_load(Load(), in_flight=3)
    assert (load.running, load.HasField("queued"), load.HasField("slots")) == (3, False, False)
    load = node_load(Load(running=0, queued=2, kv_use=0.5, slots=4), in_flight=3)
    assert (load.running, load.queued, load.kv_use, load.slots) == (0, 2, 0.5, 4)
    model = served_model(EngineModel("m", can_chat=False, can_embed=True, context_length=512))
    assert (model.name, list(model.capabilities), model.context_length) == ("m", [2], 512)
