"""What a request for a response becomes, field by field, and what is refused by name."""

from typing import Any

import orjson
import pytest

from services.jobs.responses import chat
from services.jobs.responses.items import MAX_ITEMS
from services.jobs.responses.request import ResponseRequest, parse
from services.kit.errors import MeshError

TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}
OTHER = {"type": "function", "name": "g"}


def read(**fields: Any) -> ResponseRequest:
    return parse(orjson.dumps({"model": "m", "input": "hi", **fields}))


def messages(request: ResponseRequest) -> list[dict[str, Any]]:
    return chat.messages(request.instructions, request.items)


def test_the_least() -> None:
    request = read()
    assert messages(request) == [{"role": "user", "content": "hi"}]
    assert request.chat == {"model": "m", "stream": False}
    assert (request.is_stored, request.is_stream, request.previous_id) == (True, False, None)


def test_everything_has_its_place_in_the_chat() -> None:
    schema = {"type": "object", "properties": {}}
    request = read(
        instructions="Be brief.",
        stream=True,
        store=False,
        temperature=0.5,
        top_p=1,
        max_output_tokens=7,
        parallel_tool_calls=False,
        tools=[TOOL, OTHER],
        tool_choice={"type": "function", "name": "f"},
        reasoning={"effort": "low", "summary": "auto"},
        text={
            "format": {"type": "json_schema", "name": "x", "schema": schema, "strict": True},
            "verbosity": "low",
        },
        include=["message.output_text.logprobs"],
        top_logprobs=3,
        user="u",
        metadata={"a": "b"},
        seed=4,
        session_id="s",
    )
    assert messages(request)[0] == {"role": "system", "content": "Be brief."}
    assert request.chat == {
        "model": "m",
        "seed": 4,
        "session_id": "s",
        "stream": True,
        "stream_options": {"include_usage": True},
        "reasoning_effort": "low",
        "verbosity": "low",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": schema, "strict": True},
        },
        "tools": [
            {
                "type": "function",
                "function": {"name": "f", "parameters": {"type": "object"}, "strict": True},
            },
            {"type": "function", "function": {"name": "g"}},
        ],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "parallel_tool_calls": False,
        "temperature": 0.5,
        "top_p": 1,
        "user": "u",
        "max_tokens": 7,
        "logprobs": True,
        "top_logprobs": 3,
    }
    assert request.shown["tool_choice"] == {"type": "function", "name": "f"}
    assert request.shown["metadata"] == {"a": "b"}
    assert not request.is_stored


def test_allowed_tools_are_all_that_the_model_sees() -> None:
    choice = {
        "type": "allowed_tools",
        "mode": "required",
        "tools": [{"type": "function", "name": "g"}],
    }
    request = read(tools=[TOOL, OTHER], tool_choice=choice)
    assert [tool["function"]["name"] for tool in request.chat["tools"]] == ["g"]
    assert request.chat["tool_choice"] == "required"
    assert request.shown["tool_choice"] == choice
    assert len(request.shown["tools"]) == 2


def test_a_conversation_with_calls() -> None:
    request = read(
        input=[
            {"role": "developer", "content": "Use tools."},
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "What is this?"},
                    {"type": "input_image", "image_url": "data:x", "detail": "low"},
                    {"type": "input_file", "filename": "a.pdf", "file_data": "data:y"},
                    {"type": "input_audio", "input_audio": {"data": "z", "format": "wav"}},
                ],
            },
            {"type": "reasoning", "summary": [], "content": [{"text": "hm"}]},
            {"role": "assistant", "content": [{"type": "output_text", "text": "Let me see."}]},
            {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
            {"type": "function_call", "call_id": "2", "name": "g", "arguments": "[]"},
            {"type": "function_call_output", "call_id": "1", "output": "one"},
            {
                "type": "function_call_output",
                "call_id": "2",
                "output": [{"type": "input_text", "text": "two"}],
            },
            {"type": "function_call", "call_id": "3", "name": "f", "arguments": ""},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        ]
    )

    def call(name: str, call_id: str, arguments: str) -> dict[str, Any]:
        function = {"name": name, "arguments": arguments}
        return {"id": call_id, "type": "function", "function": function}

    assert messages(request) == [
        {"role": "system", "content": "Use tools."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": "data:x", "detail": "low"}},
                {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:y"}},
                {"type": "input_audio", "input_audio": {"data": "z", "format": "wav"}},
            ],
        },
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [call("f", "1", "{}"), call("g", "2", "[]")],
        },
        {"role": "tool", "tool_call_id": "1", "content": "one"},
        {"role": "tool", "tool_call_id": "2", "content": "two"},
        {"role": "assistant", "content": None, "tool_calls": [call("f", "3", "")]},
        {"role": "assistant", "content": "No."},
    ]


@pytest.mark.parametrize(
    ("fields", "reason", "param"),
    [
        ({"model": None}, "INVALID_ARGUMENT", "model"),
        ({"model": 3}, "INVALID_ARGUMENT", "model"),
        ({"input": None}, "INVALID_ARGUMENT", "input"),
        ({"input": 3}, "INVALID_ARGUMENT", "input"),
        (
            {"input": [{"role": "user", "content": ""}] * (MAX_ITEMS + 1)},
            "INVALID_ARGUMENT",
            "input",
        ),
        ({"input": ["x"]}, "INVALID_ARGUMENT", "input[0]"),
        ({"input": [{"type": "item_reference", "id": "a"}]}, "UNSUPPORTED", "input[0].type"),
        ({"input": [{"type": ["x"]}]}, "UNSUPPORTED", "input[0].type"),
        ({"input": [{"role": "tool", "content": ""}]}, "INVALID_ARGUMENT", "input[0].role"),
        ({"input": [{"role": "user"}]}, "INVALID_ARGUMENT", "input[0].content"),
        (
            {"input": [{"role": "user", "content": [{"type": "video"}]}]},
            "INVALID_ARGUMENT",
            "input[0].content[0].type",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "UNSUPPORTED",
            "input[0].content[0].file_id",
        ),
        (
            {"input": [{"type": "function_call", "call_id": "", "name": "f", "arguments": ""}]},
            "INVALID_ARGUMENT",
            "input[0].call_id",
        ),
        (
            {"input": [{"type": "function_call_output", "call_id": "1", "output": 3}]},
            "INVALID_ARGUMENT",
            "input[0].output",
        ),
        ({"stream": "yes"}, "INVALID_ARGUMENT", "stream"),
        ({"store": 1}, "INVALID_ARGUMENT", "store"),
        ({"background": True}, "UNSUPPORTED", "background"),
        ({"conversation": "c"}, "UNSUPPORTED", "conversation"),
        ({"prompt": {"id": "p"}}, "UNSUPPORTED", "prompt"),
        ({"truncation": "auto"}, "UNSUPPORTED", "truncation"),
        ({"service_tier": "flex"}, "UNSUPPORTED", "service_tier"),
        ({"messages": []}, "UNSUPPORTED", "messages"),
        ({"max_tokens": 3}, "UNSUPPORTED", "max_tokens"),
        ({"n": 2}, "UNSUPPORTED", "n"),
        ({"include": ["file_search_call.results"]}, "UNSUPPORTED", "include[0]"),
        ({"top_logprobs": 3}, "INVALID_ARGUMENT", "top_logprobs"),
        ({"temperature": True}, "INVALID_ARGUMENT", "temperature"),
        ({"temperature": 2.5}, "INVALID_ARGUMENT", "temperature"),
        ({"top_p": -1}, "INVALID_ARGUMENT", "top_p"),
        ({"max_output_tokens": 0}, "INVALID_ARGUMENT", "max_output_tokens"),
        ({"max_output_tokens": 1.5}, "INVALID_ARGUMENT", "max_output_tokens"),
        ({"metadata": {str(i): "" for i in range(17)}}, "INVALID_ARGUMENT", "metadata"),
        ({"metadata": {"a": 1}}, "INVALID_ARGUMENT", "metadata.a"),
        ({"reasoning": {"summary": "detailed"}}, "UNSUPPORTED", "reasoning.summary"),
        ({"reasoning": {"effort": 3}}, "INVALID_ARGUMENT", "reasoning.effort"),
        ({"text": {"format": {"type": "xml"}}}, "UNSUPPORTED", "text.format.type"),
        ({"text": {"format": "json"}}, "UNSUPPORTED", "text.format.type"),
        (
            {"text": {"format": {"type": "json_schema", "name": "x"}}},
            "INVALID_ARGUMENT",
            "text.format.schema",
        ),
        ({"tools": [{"type": "web_search"}]}, "UNSUPPORTED", "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "INVALID_ARGUMENT", "tools[0].name"),
        ({"tools": [TOOL] * 129}, "INVALID_ARGUMENT", "tools"),
        ({"tool_choice": "required"}, "INVALID_ARGUMENT", "tool_choice"),
        ({"tool_choice": "maybe"}, "INVALID_ARGUMENT", "tool_choice"),
        (
            {"tool_choice": {"type": "function", "name": "f"}},
            "INVALID_ARGUMENT",
            "tool_choice.name",
        ),
        ({"tool_choice": {"type": "web_search"}}, "UNSUPPORTED", "tool_choice.type"),
        ({"previous_response_id": "x" * 65}, "INVALID_ARGUMENT", "previous_response_id"),
    ],
)
def test_refused_by_name(fields: dict[str, Any], reason: str, param: str) -> None:
    with pytest.raises(MeshError) as caught:
        read(**fields)
    assert (caught.value.reason_name, caught.value.param) == (reason, param)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"[" * 2000])
def test_a_body_that_is_no_object(body: bytes) -> None:
    with pytest.raises(MeshError) as caught:
        parse(body)
    assert caught.value.http_status == 400


def test_what_is_too_deep_to_be_passed_on() -> None:
    for levels in (250, 900):
        nested = b"[" * levels + b"]" * levels
        with pytest.raises(MeshError) as caught:
            parse(b'{"model":"m","input":"hi","x":' + nested + b"}")
        assert caught.value.reason_name == "INVALID_JSON"
