"""What engines would pass over without a word, or fail at, is refused or said in their words."""

from typing import Any

import orjson
import pytest

from services.inference.engines.asks import RerankAsk
from services.inference.engines.llamacpp import LlamaCpp
from services.inference.engines.rerank_form import rerank_request
from services.inference.ollama import requests as ollama
from services.inference.requests import parse, with_fields
from services.inference.response_cache.key import key_of
from services.kit.caller import Caller
from services.kit.errors import MeshError

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
CALLER = Caller("r", 1, "t", "k", "m")
F, G = ({"type": "function", "function": {"name": name}} for name in "fg")


def chat(**more: Any) -> Any:
    # As JSON written by hand: orjson reads deeper than it writes.
    text = orjson.dumps({**CHAT, **{n: v for n, v in more.items() if n != "x"}})
    if "x" in more:
        text = text[:-1] + b',"x":' + b"[" * more["x"] + b"]" * more["x"] + b"}"
    return parse("chat", text)


@pytest.mark.parametrize("levels", [260, 900])
def test_what_is_too_deep_to_be_written(levels: int) -> None:
    asked = chat(x=levels, session_id="s")
    for write in (
        lambda: with_fields(asked, {"stream": True}),
        lambda: key_of(CALLER, asked, "m", "whole", 0),
        lambda: rerank_request(RerankAsk("m", "q", ["d"], options=asked.fields)),
    ):
        with pytest.raises(MeshError) as caught:
            write()
        assert caught.value.reason_name == "INVALID_JSON"
    call = (
        b'{"function":{"name":"f","arguments":' + b'{"a":' * levels + b"1" + b"}" * levels + b"}}"
    )
    with pytest.raises(MeshError) as caught:
        ollama.parse(
            "chat", b'{"model":"m","messages":[{"role":"assistant","tool_calls":[%b]}]}' % call
        )
    assert caught.value.reason_name == "INVALID_JSON"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"logit_bias": 7}, "logit_bias"),
        ({"logit_bias": {"1": "x"}}, "logit_bias.1"),
        ({"stop": 5}, "stop"),
        ({"stop": ["a", 5]}, "stop[1]"),
        ({"response_format": "json"}, "response_format"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0]",
        ),
    ],
)
def test_values_of_the_wrong_form(more: dict[str, Any], param: str) -> None:
    with pytest.raises(MeshError) as caught:
        chat(**more)
    assert (caught.value.reason_name, caught.value.param) == ("INVALID_ARGUMENT", param)


def test_values_of_the_right_form() -> None:
    refusal = {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}
    asked = chat(
        messages=[{"role": "user", "content": [{"type": "text", "text": ""}]}, refusal],
        logit_bias={"1": -100},
        stop=["a"],
        response_format={"type": "text"},
    )
    assert asked.fields["stop"] == ["a"]
    assert chat(logit_bias=[[1, False]], stop="a", response_format=None).fields["stop"] == "a"


@pytest.mark.parametrize(
    ("choice", "said", "names"),
    [
        ({"type": "function", "function": {"name": "g"}}, "required", ["g"]),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [G]}}, "auto", ["g"]),
        ("required", "required", ["f", "g"]),
        (None, None, ["f", "g"]),
    ],
)
def test_llamacpp_knows_choices_that_are_words(choice: Any, said: Any, names: list[str]) -> None:
    sent = orjson.loads(LlamaCpp().plan(chat(tools=[F, G], tool_choice=choice)).body)
    assert sent["tool_choice"] == said
    assert [tool["function"]["name"] for tool in sent["tools"]] == names


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tools": [F], "tool_choice": {"type": "function", "function": G}}, "tool_choice"),
        ({"tools": [F], "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tools": [F], "tool_choice": G}, "tool_choice"),
        ({"tool_choice": G}, "tool_choice"),
        ({"tools": [F, {"type": "custom", "custom": {"name": "c"}}]}, "tools[1]"),
        ({"tools": [{"type": "function"}]}, "tools[0].function.name"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"web_search_options": {}}, "web_search_options"),
    ],
)
def test_what_llamacpp_would_pass_over(more: dict[str, Any], param: str) -> None:
    with pytest.raises(MeshError) as caught:
        LlamaCpp().plan(chat(**more))
    assert caught.value.param == param


def test_options_of_a_stream_are_part_of_the_question() -> None:
    def key(**options: Any) -> bytes:
        asked = chat(stream=True, stream_options=options)
        return key_of(CALLER, asked, "m", "bytes", 0)

    assert key(include_usage=True) != key()
    assert key(include_usage=True) != key(include_usage=True, continuous_usage_stats=True)
