"""Anthropic's requests become OpenAI's chats, and nothing is lost on the way without a word."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.anthropic import call_ids
from services.inference.anthropic.requests import Asked, Thinking, parse
from services.kit.errors import MeshError

HELLO = [{"role": "user", "content": "hi"}]
TOOL = {
    "name": "get_weather",
    "description": "Tells the weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
FUNCTION = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": TOOL["input_schema"],
        "description": "Tells the weather.",
    },
}
PIXEL = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}


def asked(**fields: object) -> Asked:
    request = {"model": "m", "max_tokens": 9, "messages": HELLO, **fields}
    return parse(orjson.dumps(request))


def chat(**fields: object) -> dict[str, Any]:
    request = asked(**fields).request
    assert orjson.loads(request.body) == request.fields
    return request.fields


def messages(turns: list[dict[str, Any]], **fields: object) -> list[dict[str, Any]]:
    return chat(messages=turns, **fields)["messages"]


def turn(role: str, *content: dict[str, Any]) -> dict[str, Any]:
    return {"role": role, "content": list(content)}


def text(said: str, **more: object) -> dict[str, Any]:
    return {"type": "text", "text": said, **more}


def refused(**fields: object) -> tuple[str, str | None]:
    with pytest.raises(MeshError) as caught:
        asked(**fields)
    return caught.value.reason_name, caught.value.param


def test_the_least() -> None:
    assert chat() == {"model": "m", "max_tokens": 9, "messages": HELLO}


def test_fields_under_openais_names() -> None:
    got = chat(
        stop_sequences=["END"],
        stream=True,
        temperature=0.5,
        top_p=1,
        top_k=40,
        metadata={"user_id": "u-1"},
        priority="high",
        service_tier="auto",
        cache_control={"type": "ephemeral", "ttl": "1h"},
        output_config={
            "effort": "low",
            "format": {"type": "json_schema", "schema": {"type": "object"}},
        },
    )
    assert got == {
        "model": "m",
        "max_tokens": 9,
        "messages": HELLO,
        "stop": ["END"],
        "stream": True,
        "temperature": 0.5,
        "top_p": 1,
        "top_k": 40,
        "user": "u-1",
        "priority": "high",
        "reasoning_effort": "low",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
        },
    }


def test_null_is_the_same_as_nothing() -> None:
    names = ("system", "tools", "tool_choice", "thinking", "output_config", "metadata", "stream")
    more = ("temperature", "top_k", "stop_sequences", "container", "frob")
    assert chat(**dict.fromkeys(names + more)) == chat()


@pytest.mark.parametrize(
    "system", ["Be\nkind.", [text("Be", cache_control={"type": "ephemeral"}), text("kind.")]]
)
def test_system(system: object) -> None:
    said = {"role": "system", "content": "Be\nkind."}
    assert messages(HELLO, system=system) == [said, *HELLO]


def test_content_of_a_user() -> None:
    got = messages([turn("user", text("See:"), {"type": "image", "source": PIXEL})])
    url = "data:image/png;base64,iVBORw0KGgo="
    picture = {"type": "image_url", "image_url": {"url": url}}
    assert got == [{"role": "user", "content": [text("See:"), picture]}]
    source = {"type": "url", "url": "https://example.com/a.png"}
    got = messages([turn("user", {"type": "image", "source": source})])
    assert got[0]["content"][0]["image_url"] == {"url": "https://example.com/a.png"}


def test_turns_of_one_role_are_one() -> None:
    begun = [{"role": "assistant", "content": "a"}, turn("assistant", text("b"))]
    got = messages([*HELLO, {"role": "user", "content": "there"}, *begun, *HELLO])
    assert got == [
        {"role": "user", "content": [text("hi"), text("there")]},
        {"role": "assistant", "content": "ab"},
        *HELLO,
    ]


def test_a_round_of_tools() -> None:
    call = {"type": "tool_use", "id": "toolu_call_1", "name": "get_weather", "input": {"city": "x"}}
    other = {**call, "id": "toolu_call_2"}
    got = messages(
        [
            *HELLO,
            turn(
                "assistant",
                {"type": "thinking", "thinking": "hm", "signature": ""},
                text("Let me see."),
                call,
                other,
            ),
            turn(
                "user",
                {"type": "tool_result", "tool_use_id": "toolu_call_1", "content": "20"},
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_call_2",
                    "is_error": True,
                    "content": [text("no"), {"type": "image", "source": PIXEL}],
                },
                text("And?"),
            ),
        ],
        tools=[TOOL],
    )
    function = {"name": "get_weather", "arguments": '{"city":"x"}'}
    assert got[1] == {
        "role": "assistant",
        "content": "Let me see.",
        "reasoning_content": "hm",
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": function},
            {"id": "call_2", "type": "function", "function": function},
        ],
    }
    assert got[2] == {"role": "tool", "tool_call_id": "call_1", "content": "20"}
    assert got[3] == {"role": "tool", "tool_call_id": "call_2", "content": "Error: no"}
    assert [part["type"] for part in got[4]["content"]] == ["image_url", "text"]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, {"tool_choice": "auto"}),
        ({"type": "any"}, {"tool_choice": "required"}),
        ({"type": "none"}, {"tool_choice": "none"}),
        (
            {"type": "tool", "name": "get_weather"},
            {"tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
        ),
        (
            {"type": "any", "disable_parallel_tool_use": True},
            {"tool_choice": "required", "parallel_tool_calls": False},
        ),
    ],
)
def test_choices_of_tools(choice: dict[str, Any], expected: dict[str, Any]) -> None:
    got = chat(tools=[TOOL], tool_choice=choice)
    assert got == {**chat(), "tools": [FUNCTION], **expected}


def test_tools_in_full() -> None:
    tool = {**TOOL, "type": "custom", "strict": True, "cache_control": {"type": "ephemeral"}}
    strict = {"type": "function", "function": {**FUNCTION["function"], "strict": True}}
    assert chat(tools=[tool])["tools"] == [strict]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"type": "enabled", "budget_tokens": 4}, Thinking(4)),
        ({"type": "enabled", "budget_tokens": 4, "display": "omitted"}, Thinking(4, False)),
        ({"type": "adaptive"}, Thinking(None)),
        ({"type": "disabled"}, Thinking(0)),
    ],
)
def test_thinking(config: dict[str, Any], expected: Thinking) -> None:
    assert asked(thinking=config).thinking == expected
    assert asked().thinking is None


def test_an_answer_that_is_begun() -> None:
    assert asked(messages=[*HELLO, {"role": "assistant", "content": "I"}]).is_begun
    assert not asked().is_begun


@pytest.mark.parametrize(
    ("fields", "reason", "param"),
    [
        ({"max_tokens": None}, "INVALID_ARGUMENT", "max_tokens"),
        ({"max_tokens": 0}, "INVALID_ARGUMENT", "max_tokens"),
        ({"max_tokens": True}, "INVALID_ARGUMENT", "max_tokens"),
        ({"model": ""}, "INVALID_ARGUMENT", "model"),
        ({"messages": []}, "INVALID_ARGUMENT", "messages"),
        ({"messages": "hi"}, "INVALID_ARGUMENT", "messages"),
        ({"messages": [{"role": "tool"}]}, "INVALID_ARGUMENT", "messages[0].role"),
        ({"messages": HELLO * 4097}, "INVALID_ARGUMENT", "messages"),
        ({"messages": [turn("user")]}, "INVALID_ARGUMENT", "messages[0].content"),
        ({"messages": [{**HELLO[0], "name": "x"}]}, "UNSUPPORTED", "messages[0].name"),
        ({"system": [{"type": "image"}]}, "UNSUPPORTED", "system[0]"),
        ({"stream": 1}, "INVALID_ARGUMENT", "stream"),
        ({"temperature": 1.1}, "INVALID_ARGUMENT", "temperature"),
        ({"top_p": "1"}, "INVALID_ARGUMENT", "top_p"),
        ({"top_k": 1.5}, "INVALID_ARGUMENT", "top_k"),
        ({"stop_sequences": [1]}, "INVALID_ARGUMENT", "stop_sequences[0]"),
        ({"metadata": {"user": "x"}}, "UNSUPPORTED", "metadata.user"),
        ({"container": "c"}, "UNSUPPORTED", "container"),
        ({"mcp_servers": [{}]}, "UNSUPPORTED", "mcp_servers"),
        ({"speed": "fast"}, "UNSUPPORTED", "speed"),
        ({"service_tier": "gold"}, "INVALID_ARGUMENT", "service_tier"),
        ({"priority": "gold"}, "INVALID_ARGUMENT", "priority"),
        ({"seed": 1}, "UNSUPPORTED", "seed"),
        ({"tool_choice": {"type": "any"}}, "INVALID_ARGUMENT", "tool_choice"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "x"}},
            "INVALID_ARGUMENT",
            "tool_choice.name",
        ),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "UNSUPPORTED", "tools[0]"),
        ({"tools": [{**TOOL, "defer_loading": True}]}, "UNSUPPORTED", "tools[0].defer_loading"),
        ({"tools": [{"name": "x"}]}, "INVALID_ARGUMENT", "tools[0].input_schema"),
        ({"thinking": {"type": "enabled"}}, "INVALID_ARGUMENT", "thinking.budget_tokens"),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 9}},
            "INVALID_ARGUMENT",
            "thinking.budget_tokens",
        ),
        ({"thinking": {"type": "between_tools"}}, "UNSUPPORTED", "thinking.type"),
        ({"output_config": {"effort": "some"}}, "INVALID_ARGUMENT", "output_config.effort"),
        ({"cache_control": {"type": "x"}}, "INVALID_ARGUMENT", "cache_control"),
    ],
)
def test_refusals_name_the_field(fields: dict[str, Any], reason: str, param: str) -> None:
    assert refused(**fields) == (reason, param)


@pytest.mark.parametrize(
    ("block", "reason", "param"),
    [
        ({"type": "document", "source": {}}, "UNSUPPORTED", ""),
        ({"type": "search_result"}, "UNSUPPORTED", ""),
        ({"type": "server_tool_use"}, "UNSUPPORTED", ""),
        ({}, "INVALID_ARGUMENT", ".type"),
        ({"type": "text"}, "INVALID_ARGUMENT", ".text"),
        ({"type": "text", "text": "x", "frob": 1}, "UNSUPPORTED", ".frob"),
        (text("x", citations=[{}]), "UNSUPPORTED", ".citations"),
        ({"type": "image", "source": {"type": "file"}}, "UNSUPPORTED", ".source"),
        (
            {"type": "image", "source": {**PIXEL, "media_type": "image/bmp"}},
            "INVALID_ARGUMENT",
            ".source.media_type",
        ),
        ({"type": "tool_result", "tool_use_id": "a"}, "INVALID_ARGUMENT", ""),
    ],
)
def test_refusals_name_the_block(block: dict[str, Any], reason: str, param: str) -> None:
    got = refused(messages=[turn("user", text("x"), block)])
    assert got == (reason, f"messages[0].content[1]{param}")


def test_what_only_its_writer_can_read_is_refused() -> None:
    redacted = {"type": "redacted_thinking", "data": "x"}
    got = refused(messages=[*HELLO, turn("assistant", redacted)])
    assert got == ("UNSUPPORTED", "messages[1].content[0]")


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b'{"a":"\xff"}'])
def test_what_is_no_json_object(body: bytes) -> None:
    with pytest.raises(MeshError) as caught:
        parse(body)
    assert caught.value.reason_name == "INVALID_JSON"


def test_json_that_is_too_deep() -> None:
    schema = orjson.Fragment('{"a":' * 300 + "1" + "}" * 300)
    assert refused(tools=[{"name": "x", "input_schema": schema}])[0] == "INVALID_JSON"


def test_counting_takes_no_limits() -> None:
    body = orjson.dumps({"model": "m", "messages": HELLO, "tools": [TOOL]})
    got = parse(body, counts_only=True).request.fields
    assert got == {"model": "m", "messages": HELLO, "tools": [FUNCTION]}
    with pytest.raises(MeshError) as caught:
        parse(orjson.dumps({"model": "m", "messages": HELLO, "top_k": 1}), counts_only=True)
    assert caught.value.param == "top_k"


@given(st.text(min_size=1))
def test_ids_of_calls_come_back_as_they_were(engine_id: str) -> None:
    engine_id = engine_id.encode("utf-8", "ignore").decode() or "x"
    ours = call_ids.to_anthropic(engine_id)
    assert ours.startswith("toolu_")
    assert set(ours) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
    assert call_ids.to_engine(ours) == engine_id


def test_ids_of_others() -> None:
    assert call_ids.to_engine("call_x") == "call_x"
    assert call_ids.to_engine("toolu_") == "toolu_"
    assert call_ids.to_engine("toolu_b64_!") == "toolu_b64_!"
    assert call_ids.to_anthropic(None) != call_ids.to_anthropic("")
