import pytest
from google.protobuf import json_format, struct_pb2

from infermesh.inference.v1 import inference_service_pb2 as pb
from services.inference.engines.dialect import Tokens
from services.inference.typed import answers, chats, completions, usage
from services.kit.errors import MeshError


def struct(data):
    message = struct_pb2.Struct()
    json_format.ParseDict(data, message)
    return message


def test_a_single_text_is_a_plain_string():
    message = pb.ChatMessage(role=pb.CHAT_ROLE_USER, content=[pb.ContentPart(text="hi")])
    fields = chats.chat_to_json(pb.ChatRequest(model="m", messages=[message]), stream=False)
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
        engine_options=struct({"top_k": 4, "min_p": 0.5}),
    )
    assert chats.chat_to_json(request, stream=False) == {
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
    "name", ["n", "N", "stream", "model", "max_tokens", "stop", "priority", "fallback_models"]
)
def test_what_has_a_field_of_its_own_comes_in_no_other_way(name):
    request = pb.ChatRequest(model="m", engine_options=struct({name: 99}))
    with pytest.raises(MeshError) as caught:
        chats.chat_to_json(request, stream=False)
    assert caught.value.param == f"engine_options.{name}"
    completion = pb.CompleteRequest(model="m", prompts=["a"], engine_options=struct({name: 99}))
    with pytest.raises(MeshError):
        completions.completion_to_json(completion, stream=False)


def test_a_tool_with_free_text_has_no_schema():
    tool = pb.Tool(name="f", custom=pb.CustomInput(), parameters=struct({"type": "object"}))
    with pytest.raises(MeshError) as caught:
        chats.chat_to_json(pb.ChatRequest(model="m", tools=[tool]), stream=False)
    assert caught.value.param == "tools[0].parameters"


@pytest.mark.parametrize(
    ("choice", "made"),
    [
        (pb.ToolChoice(mode="auto"), "auto"),
        (pb.ToolChoice(function_name="f"), {"type": "function", "function": {"name": "f"}}),
    ],
)
def test_tool_choice(choice, made):
    request = pb.ChatRequest(model="m", tool_choice=choice)
    assert chats.chat_to_json(request, stream=False)["tool_choice"] == made


@pytest.mark.parametrize(
    ("word", "number"), [*answers.FINISH_REASONS.items(), ("eos", 0), (None, 0)]
)
def test_an_answer(word, number):
    response = answers.chat_response_from_json(
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
    assert (
        answers.deltas_from_json({"choices": [{"index": 0, "delta": {"role": "assistant"}}]}) == []
    )
    assert answers.deltas_from_json({"choices": []}) == []
    deltas = answers.deltas_from_json(
        {"choices": [{"index": 1, "delta": {}, "finish_reason": "stop"}]}
    )
    assert deltas == [pb.ChatDelta(index=1, finish_reason=pb.FINISH_REASON_STOP)]


def test_unknown_is_not_zero():
    assert not usage.usage_of(Tokens(prompt=1, completion=1)).HasField("cached_tokens")
    assert usage.usage_of(Tokens(prompt=1, completion=1, cached=0)).HasField("cached_tokens")
