import json

import pytest
from google.protobuf import json_format, struct_pb2
from hypothesis import given
from hypothesis import strategies as st

from infermesh.inference.v1 import inference_service_pb2 as pb
from services.inference import typed
from services.inference.engines.dialect import Tokens
from services.inference.requests import check

text = st.text(max_size=20)
name = st.from_regex(r"[A-Za-z0-9_-]{1,12}", fullmatch=True)
scalars = st.none() | st.booleans() | text | st.integers(-(2**53) + 1, 2**53 - 1)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
)
objects = st.dictionaries(text, values, max_size=4)


def struct(data):
    message = struct_pb2.Struct()
    json_format.ParseDict(data, message)
    return message


parts = st.one_of(
    text.map(lambda value: pb.ContentPart(text=value)),
    st.builds(
        lambda detail: pb.ContentPart(image_url=pb.ImageUrl(url="https://a/b", detail=detail)),
        st.sampled_from(["", "auto", "low"]),
    ),
)
calls = st.builds(pb.ToolCall, id=text, name=name, arguments=objects.map(json.dumps))
messages = st.builds(
    pb.ChatMessage,
    role=st.sampled_from(sorted(typed.ROLES)),
    content=st.lists(parts, max_size=3),
    name=text,
    tool_calls=st.lists(calls, max_size=2),
    tool_call_id=text,
)


@given(st.lists(messages, min_size=1, max_size=4), st.booleans())
def test_every_chat_becomes_a_request_that_the_openai_surface_takes(chat, stream):
    fields = typed.to_openai(pb.ChatRequest(model="m", messages=chat), stream=stream)
    request = check("chat", json.dumps(fields).encode(), fields)
    assert (request.is_stream, request.wants_usage) == (stream, stream)
    for message, made in zip(chat, fields["messages"], strict=True):
        assert made["role"] == typed.ROLES[message.role]
        content = made["content"]
        if isinstance(content, list):
            assert len(content) == len(message.content)
        elif message.content:
            assert content == message.content[0].text
        assert [c["id"] for c in made.get("tool_calls", [])] == [c.id for c in message.tool_calls]


@given(objects)
def test_structs_come_back_as_they_were(data):
    assert typed.plain(struct(data)) == data


def test_a_single_text_is_a_plain_string():
    message = pb.ChatMessage(role=pb.CHAT_ROLE_USER, content=[pb.ContentPart(text="hi")])
    fields = typed.to_openai(pb.ChatRequest(model="m", messages=[message]), stream=False)
    assert fields == {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def test_every_field():
    request = pb.ChatRequest(
        model="m",
        messages=[
            pb.ChatMessage(
                role=pb.CHAT_ROLE_ASSISTANT,
                tool_calls=[pb.ToolCall(id="c", name="f", arguments="{}")],
            ),
            pb.ChatMessage(
                role=pb.CHAT_ROLE_TOOL, content=[pb.ContentPart(text="4")], tool_call_id="c"
            ),
        ],
        sampling=pb.Sampling(temperature=0, seed=7, stop=["x"], logit_bias={5: -1.5}),
        max_tokens=9,
        tools=[pb.Tool(name="f", description="d", parameters=struct({"type": "object"}))],
        tool_choice=pb.ToolChoice(function_name="f"),
        parallel_tool_calls=False,
        response_format=pb.ResponseFormat(
            json_schema=pb.JsonSchema(name="s", schema=struct({"maxLength": 3}), strict=True)
        ),
        n=2,
        engine_options=struct({"top_k": 4, "min_p": 0.5, "n": 99, "stream": True, "model": "x"}),
    )
    assert typed.to_openai(request, stream=False) == {
        "top_k": 4,
        "min_p": 0.5,
        "model": "m",
        "messages": [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                ],
            },
            {"role": "tool", "content": "4", "tool_call_id": "c"},
        ],
        "temperature": 0,
        "seed": 7,
        "stop": ["x"],
        "logit_bias": {"5": -1.5},
        "max_tokens": 9,
        "tools": [
            {
                "type": "function",
                "function": {"name": "f", "description": "d", "parameters": {"type": "object"}},
            }
        ],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "parallel_tool_calls": False,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "s", "schema": {"maxLength": 3}, "strict": True},
        },
        "n": 2,
    }


@pytest.mark.parametrize(
    ("choice", "made"),
    [
        (pb.ToolChoice(mode="auto"), "auto"),
        (pb.ToolChoice(function_name="f"), {"type": "function", "function": {"name": "f"}}),
    ],
)
def test_tool_choice(choice, made):
    request = pb.ChatRequest(model="m", tool_choice=choice)
    assert typed.to_openai(request, stream=False)["tool_choice"] == made


@pytest.mark.parametrize(("word", "number"), [*typed.FINISH_REASONS.items(), ("eos", 0), (None, 0)])
def test_an_answer(word, number):
    response = typed.to_response(
        {
            "id": "i",
            "created": 12,
            "choices": [
                {
                    "index": 0,
                    "finish_reason": word,
                    "message": {
                        "role": "assistant",
                        "content": "hi",
                        "reasoning_content": "hm",
                        "tool_calls": [
                            {"id": "c", "function": {"name": "f", "arguments": "{}"}},
                            {"id": "d", "function": {"name": "g", "arguments": "{}"}},
                        ],
                    },
                }
            ],
            "usage": {
                "prompt_tokens": 3,
                "completion_tokens": 2,
                "prompt_tokens_details": {"cached_tokens": 1},
            },
        },
        "caller's",
    )
    assert (response.id, response.model, response.create_time.seconds) == ("i", "caller's", 12)
    choice = response.choices[0]
    assert choice.finish_reason == number
    assert choice.message.role == pb.CHAT_ROLE_ASSISTANT
    assert [part.text for part in choice.message.content] == ["hi"]
    assert choice.message.reasoning_content == "hm"
    assert [(c.index, c.name) for c in choice.message.tool_calls] == [(0, "f"), (1, "g")]
    assert response.usage == pb.Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=1)


def test_pieces_that_say_nothing_are_left_out():
    assert typed.to_deltas({"choices": [{"index": 0, "delta": {"role": "assistant"}}]}) == []
    assert typed.to_deltas({"choices": []}) == []
    deltas = typed.to_deltas({"choices": [{"index": 1, "delta": {}, "finish_reason": "stop"}]})
    assert deltas == [pb.ChatDelta(index=1, finish_reason=pb.FINISH_REASON_STOP)]


def test_unknown_is_not_zero():
    assert not typed.to_usage(Tokens(prompt=1, completion=1)).HasField("cached_tokens")
    assert typed.to_usage(Tokens(prompt=1, completion=1, cached=0)).HasField("cached_tokens")
