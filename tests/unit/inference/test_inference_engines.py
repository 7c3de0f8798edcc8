import asyncio

import orjson
import pytest

from services.inference.engines import ENGINES
from services.inference.engines.dialect import EngineOptions, Tokens, count_of, share_of
from services.inference.engines.llamacpp import LlamaCpp
from services.inference.engines.openai import OpenAICompatible
from services.inference.engines.vllm import Vllm
from services.inference.requests import parse


def request(kind="chat", **fields):
    prompt = {"prompt": "hi"} if kind == "completion" else {}
    messages = {"messages": [{"role": "user", "content": "hi"}]} if kind == "chat" else {}
    return parse(kind, orjson.dumps({"model": "m", **prompt, **messages, **fields}))


def sent(plan):
    fields = orjson.loads(plan.body)
    return {k: v for k, v in fields.items() if k not in ("model", "messages", "prompt")}


def test_every_dialect_is_named_as_it_is_set():
    assert {name: make(EngineOptions()).name for name, make in ENGINES.items()} == {
        n: n for n in ENGINES
    }


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


@pytest.mark.parametrize("value", [-1, True, None, "3", float("nan"), 2**31])
def test_what_is_no_count_is_unknown(value):
    assert count_of(value) is None


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf"), True, None, "0.5"])
def test_what_is_no_share_is_unknown(value):
    assert share_of(value) is None


def test_a_full_cache_that_was_rounded_is_full():
    assert share_of(1.0001) == 1.0
    assert share_of(0) == 0.0


def test_vllm_passes_bodies_on_untouched_where_nothing_is_asked_of_it():
    asked = request()
    assert Vllm().plan(asked).body is asked.body
    asked = request(stream=True, stream_options={"include_usage": True})
    plan = Vllm().plan(asked)
    assert plan.body is asked.body
    assert (plan.hides_usage, plan.translator, plan.mend) == (False, None, None)


def test_vllm_moves_the_fingerprint_back():
    last = b'data: {"choices":[{"finish_reason":"stop"}]}\n\n'
    usage = b'data: {"choices":[],"usage":{},"system_fingerprint":"f"}\n\n'
    restored = b'data: {"choices":[{"finish_reason":"stop"}],"system_fingerprint":"f"}\n\n'
    assert Vllm().restore(last, usage) == restored
    assert Vllm().restore(b"", usage) == b""
    assert Vllm().restore(restored, usage) == restored


def test_the_model_that_answers_is_what_the_engine_is_asked_for():
    asked = request(fallback_models=["x"])
    asked.model = "other"
    for make in (LlamaCpp, Vllm, OpenAICompatible):
        fields = orjson.loads(make().plan(asked).body)
        assert fields["model"] == "other"
        assert "fallback_models" not in fields


def test_an_endpoint_that_does_not_stop_is_asked_for_streams():
    plan = OpenAICompatible(EngineOptions(always_streams=True)).plan(request())
    assert sent(plan) == {"stream": True, "stream_options": {"include_usage": True}}
    assert (plan.is_folded, plan.hides_usage) == (True, True)


def test_keys_go_in_the_form_of_the_endpoint():
    assert OpenAICompatible(EngineOptions()).headers == {}
    assert OpenAICompatible(EngineOptions(api_key="k")).headers == {"authorization": "Bearer k"}
    azure = OpenAICompatible(EngineOptions(api_key="k", api_version="v"))
    assert azure.headers == {"api-key": "k"}


def test_a_cloud_is_asked_rarely():
    assert OpenAICompatible(EngineOptions(is_remote=True)).probe_interval_s >= 10
    assert OpenAICompatible(EngineOptions()).probe_interval_s == 0


async def test_llamacpp_that_computes_too_long_to_say_its_load_is_up(monkeypatch):
    class Answer:
        status = 200

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        async def read_all(self):
            return b"{}"

    class Busy:
        async def get(self, path):
            if path == "/metrics":
                await asyncio.Event().wait()
            return Answer()

    monkeypatch.setattr("services.inference.engines.llamacpp._METRICS_TIMEOUT_S", 0.0)
    load = await LlamaCpp(EngineOptions()).probe(Busy())
    assert load is not None and load.running is None and load.queued is None
