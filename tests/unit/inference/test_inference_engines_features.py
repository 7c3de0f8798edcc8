import orjson
import pytest

from services.inference.engines.dialect import EngineModel, EngineOptions
from services.inference.engines.llamacpp import LlamaCpp
from services.inference.engines.ollama import Ollama
from services.inference.engines.tgi import Tgi
from services.inference.requests import parse
from services.kit.errors import MeshError

TOOL = {"type": "function", "function": {"name": "f"}}
PICTURE = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}


def request(kind="chat", **fields):
    asked = {"messages": [{"role": "user", "content": "hi"}]} if kind == "chat" else {"prompt": "p"}
    return parse(kind, orjson.dumps({"model": "m", **asked, **fields}))


def refusal(engine, asked):
    with pytest.raises(MeshError) as caught:
        engine.plan(asked)
    return caught.value.reason_name, caught.value.param


def knowing(make, **can):
    engine = make(EngineOptions())
    engine._remember([EngineModel("m", can_chat=True, can_embed=False, **can)])
    return engine


@pytest.mark.parametrize("make", [LlamaCpp, Ollama, Tgi])
def test_what_the_model_cannot_do_is_refused_by_name(make):
    engine = knowing(make, can_call_tools=False, can_structure=False, can_see=False)
    assert refusal(engine, request(tools=[TOOL])) == ("UNSUPPORTED", "tools")
    assert refusal(engine, request(response_format=SCHEMA)) == ("UNSUPPORTED", "response_format")
    seen = request(messages=[{"role": "user", "content": PICTURE}])
    assert refusal(engine, seen) == ("UNSUPPORTED", "messages[0].content[0]")
    for plain in ({"tools": [], "response_format": {"type": "text"}}, {"tools": None}):
        engine.plan(request(**plain))
    engine.plan(request(tools=[TOOL], tool_choice="none"))
    parts = [{"type": "text", "text": "hi"}]
    engine.plan(request(messages=[{"role": "user", "content": parts}]))


def test_sounds_that_nobody_hears():
    said = [{"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}]
    asked = request(messages=[{"role": "user", "content": said}])
    deaf = knowing(LlamaCpp, can_hear=False)
    assert refusal(deaf, asked) == ("UNSUPPORTED", "messages[0].content[0]")
    knowing(LlamaCpp, can_see=False).plan(asked)


@pytest.mark.parametrize(
    ("kind", "fields", "param"),
    [
        ("completion", {"suffix": "."}, "suffix"),
        ("completion", {"echo": True}, "echo"),
        ("completion", {"best_of": 2}, "best_of"),
        ("chat", {"functions": [{"name": "f"}]}, "functions"),
        ("chat", {"modalities": ["text", "audio"], "audio": {"voice": "a"}}, "audio"),
    ],
)
def test_what_llamacpp_would_pass_over(kind, fields, param):
    assert refusal(LlamaCpp(EngineOptions()), request(kind, **fields)) == ("UNSUPPORTED", param)


def test_what_asks_llamacpp_for_nothing_passes():
    asked = {"suffix": "", "echo": False, "best_of": 1}
    LlamaCpp(EngineOptions()).plan(request("completion", **asked))


@pytest.mark.parametrize("make", [LlamaCpp, Ollama, Tgi])
def test_what_is_not_known_is_left_to_the_engine(make):
    engine = make(EngineOptions())
    engine.plan(request(tools=[TOOL], response_format=None))
    engine.plan(request(response_format=SCHEMA))
    engine.plan(request(messages=[{"role": "user", "content": PICTURE}]))


@pytest.mark.parametrize(
    ("kind", "fields", "param"),
    [
        ("chat", {"n": 2}, "n"),
        ("completion", {"best_of": 2}, "best_of"),
        ("chat", {"logit_bias": {"1": 5}}, "logit_bias"),
        ("completion", {"suffix": "x"}, "suffix"),
        ("completion", {"echo": True}, "echo"),
        ("completion", {"stream": True, "prompt": ["a", "b"]}, "prompt"),
        ("completion", {"stream": True, "prompt": [1, 2]}, "prompt"),
        ("completion", {"stream": True, "logprobs": 2}, "logprobs"),
    ],
)
def test_what_tgi_has_no_way_to_do(kind, fields, param):
    assert refusal(Tgi(), request(kind, **fields)) == ("UNSUPPORTED", param)


@pytest.mark.parametrize("fields", [{"n": 1}, {"logit_bias": {}}, {"n": None}])
def test_what_asks_for_nothing_passes_tgi(fields):
    Tgi().plan(request(**fields))


@pytest.mark.parametrize(
    ("kind", "fields", "param"),
    [
        ("chat", {"n": 2}, "n"),
        ("chat", {"logprobs": True}, "logprobs"),
        ("chat", {"logit_bias": {"1": 5}}, "logit_bias"),
        ("chat", {"num_ctx": 1_000_000}, "num_ctx"),
        ("chat", {"keep_alive": 0}, "keep_alive"),
        ("chat", {"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
        ("chat", {"tools": [TOOL], "parallel_tool_calls": False}, "parallel_tool_calls"),
        ("chat", {"tools": [{"type": "web_search"}]}, "tools[0]"),
        ("chat", {"response_format": {"type": "grammar"}}, "response_format"),
        ("chat", {"suffix": "x"}, "suffix"),
        ("completion", {"logprobs": 1}, "logprobs"),
        ("completion", {"echo": True}, "echo"),
        ("completion", {"prompt": ["a", "b"]}, "prompt"),
        ("completion", {"prompt": [1, 2]}, "prompt"),
        ("completion", {"best_of": 3}, "best_of"),
    ],
)
def test_what_ollama_has_no_word_for(kind, fields, param):
    assert refusal(Ollama(), request(kind, **fields)) == ("UNSUPPORTED", param)


@pytest.mark.parametrize("fields", [{"logit_bias": {}}, {"keep_alive": None}, {"echo": False}])
def test_what_asks_for_nothing_passes_ollama(fields):
    plan = Ollama().plan(request(**fields))
    assert not orjson.loads(plan.body).keys() & fields.keys()
