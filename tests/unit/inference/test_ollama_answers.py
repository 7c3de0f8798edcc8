"""OpenAI's answers become Ollama's."""

from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from services.inference.engines.dialect import Tokens
from services.inference.ollama import answers
from services.kit.errors import MeshError

NOW = datetime(2026, 1, 2, 3, 4, 5, 6, UTC)
AT = "2026-01-02T03:04:05.000006Z"


class Clock:
    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        return self.ns


def lines_of(path: Any, clock: Clock | None = None) -> answers.Lines:
    return answers.Lines(path, "m", began_ns=0, clock_ns=clock or Clock(), now=lambda: NOW)


def read(data: bytes) -> list[dict[str, Any]]:
    assert data.endswith(b"\n") or not data
    return [orjson.loads(line) for line in data.splitlines()]


def delta(reason: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": reason}]}


def test_a_stream_of_a_chat() -> None:
    clock = Clock()
    lines = lines_of("chat", clock)
    assert lines.feed([delta(role="assistant")]) == b""
    clock.ns = 10
    assert read(lines.feed([delta(reasoning_content="hm"), delta(content="he")])) == [
        {
            "model": "m",
            "created_at": AT,
            "message": {"role": "assistant", "content": "", "thinking": "hm"},
            "done": False,
        },
        {
            "model": "m",
            "created_at": AT,
            "message": {"role": "assistant", "content": "he"},
            "done": False,
        },
    ]
    clock.ns = 30
    assert len(read(lines.feed([delta(content="llo"), delta("length")]))) == 1
    clock.ns = 40
    assert read(lines.end(Tokens(3, 2), None)) == [
        {
            "model": "m",
            "created_at": AT,
            "message": {"role": "assistant", "content": ""},
            "done": True,
            "done_reason": "length",
            "total_duration": 40,
            "prompt_eval_count": 3,
            "eval_count": 2,
            "eval_duration": 20,
        }
    ]


def test_a_stream_of_generate_from_a_chat_and_from_a_completion() -> None:
    lines = lines_of("generate")
    (piece,) = read(lines.feed([delta(content="a")]))
    assert (piece["response"], piece["done"]) == ("a", False)
    (piece,) = read(lines.feed([{"choices": [{"text": "b", "finish_reason": "stop"}]}]))
    assert piece["response"] == "b"
    (last,) = read(lines.end(None, {"node": "n"}))
    assert (last["response"], last["done_reason"]) == ("", "stop")
    assert last["gateway_metadata"] == {"node": "n"}


def test_what_is_unknown_is_left_out() -> None:
    (last,) = read(lines_of("chat").end(None, None))
    unknown = {"load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count"}
    assert not (unknown | {"eval_duration", "gateway_metadata"}) & last.keys()


def test_what_the_engine_measured_goes_before_what_the_node_saw() -> None:
    lines = lines_of("chat")
    timings = {"prompt_ms": 1.5, "predicted_ms": 2, "load_ms": float("nan")}
    lines.feed([delta(content="a"), {"choices": [], "timings": timings}])
    (last,) = read(lines.end(Tokens(0, 0), None))
    assert (last["prompt_eval_duration"], last["eval_duration"]) == (1_500_000, 2_000_000)
    assert (last["prompt_eval_count"], last["eval_count"]) == (0, 0)
    assert "load_duration" not in last


def test_calls_are_said_when_they_are_complete() -> None:
    def call(index: int, **fields: Any) -> dict[str, Any]:
        return delta(tool_calls=[{"index": index, **fields}])

    lines = lines_of("chat")
    begun = call(0, id="a", function={"name": "f", "arguments": ""})
    assert lines.feed([begun, call(0, function={"arguments": '{"x":'})]) == b""
    assert lines.feed([call(0, function={"arguments": "1}"})]) == b""
    (first,) = read(lines.feed([call(1, id="b", function={"name": "g"})]))
    assert first["message"]["tool_calls"] == [
        {"id": "a", "function": {"index": 0, "name": "f", "arguments": {"x": 1}}}
    ]
    (second,) = read(lines.feed([delta("tool_calls")]))
    assert second["message"]["tool_calls"] == [
        {"id": "b", "function": {"index": 1, "name": "g", "arguments": {}}}
    ]
    (last,) = read(lines.end(None, None))
    assert last["done_reason"] == "stop"


def test_a_call_that_cannot_be_read_is_the_engines_failure() -> None:
    piece = {"index": 0, "function": {"name": "f", "arguments": "{oops"}}
    with pytest.raises(MeshError) as caught:
        lines_of("chat").feed([delta("tool_calls", tool_calls=[piece])])
    assert caught.value.reason_name == "ENGINE_FAILED"


def test_a_whole_chat() -> None:
    token = {"token": "hi", "logprob": -0.5, "bytes": [104, 105], "top_logprobs": []}
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}
    said = {"content": None, "reasoning_content": "hm", "tool_calls": [call]}
    data = {
        "choices": [
            {
                "message": said,
                "finish_reason": "tool_calls",
                "logprobs": {"content": [token | {"id": 7}]},
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
        "timings": {"prompt_ms": 1, "predicted_ms": 2, "load_ms": 3},
    }
    assert orjson.loads(answers.whole("chat", "m", data, 9, lambda: NOW)) == {
        "model": "m",
        "created_at": AT,
        "message": {
            "role": "assistant",
            "content": "",
            "thinking": "hm",
            "tool_calls": [
                {"id": "a", "function": {"index": 0, "name": "f", "arguments": {"x": 1}}}
            ],
        },
        "logprobs": [token],
        "done": True,
        "done_reason": "stop",
        "total_duration": 9,
        "load_duration": 3_000_000,
        "prompt_eval_count": 3,
        "prompt_eval_duration": 1_000_000,
        "eval_count": 2,
        "eval_duration": 2_000_000,
    }


def test_a_whole_completion() -> None:
    data = {"choices": [{"text": "x", "finish_reason": "stop"}]}
    said = orjson.loads(answers.whole("generate", "m", data, 9, lambda: NOW))
    assert (said["response"], said["done"], said["done_reason"]) == ("x", True, "stop")
    assert "eval_count" not in said


@pytest.mark.parametrize("data", [{}, {"choices": []}, {"choices": [3]}, {"choices": "x"}])
def test_an_answer_that_cannot_be_read_is_the_engines_failure(data: dict[str, Any]) -> None:
    with pytest.raises(MeshError) as caught:
        answers.whole("chat", "m", data, 9)
    assert caught.value.reason_name == "ENGINE_FAILED"
