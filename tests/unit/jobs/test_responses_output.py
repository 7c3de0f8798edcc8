"""A chat's pieces become a response's items and events, in OpenAI's order."""

from typing import Any

import orjson
import pytest
from openai.types.responses import Response as SdkResponse
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from services.jobs.responses.output import Output
from services.jobs.responses.request import parse
from services.jobs.responses.response import Response
from services.jobs.sse import Reader, written
from services.kit.errors import MeshError

EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def piece(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"model": "m-1", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def call(index: int, arguments: str, **first: Any) -> dict[str, Any]:
    function = {"arguments": arguments, **({"name": first["name"]} if "name" in first else {})}
    return {"index": index, "function": function, **({"id": first["id"]} if "id" in first else {})}


USAGE = {
    "choices": [],
    "usage": {
        "prompt_tokens": 5,
        "completion_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 2},
    },
}
PIECES = [
    piece(role="assistant", content=None),
    piece(reasoning_content="Let "),
    piece(reasoning_content="me."),
    piece(content="Hel"),
    piece(content="lo"),
    piece(tool_calls=[call(0, "", name="f", id="c0")]),
    piece(tool_calls=[call(0, '{"a"')]),
    piece(tool_calls=[call(1, "{}", name="g", id="c1")]),
    piece(tool_calls=[call(0, ":1}")]),
    piece(finish="tool_calls"),
    USAGE,
]


def made(pieces: list[dict[str, Any]], **fields: Any) -> tuple[Response, list[dict[str, Any]]]:
    body = {"model": "m", "input": "hi", "stream": True, **fields}
    response = Response(parse(orjson.dumps(body)), now_s=lambda: 1000.0)
    events = response.feed(pieces[:1])
    for each in pieces[1:]:
        events += response.feed([each])
    events += response.finish()
    return response, events + response.last()


def test_events_come_in_order() -> None:
    response, events = made(PIECES)
    assert [event["type"].removeprefix("response.") for event in events] == [
        *("created", "in_progress"),
        *("output_item.added", "content_part.added"),
        *("reasoning_text.delta", "reasoning_text.delta", "reasoning_text.done"),
        *("content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added"),
        *("output_text.delta", "output_text.delta", "output_text.done"),
        *("content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta"),
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done") * 2,
        "completed",
    ]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    final = events[-1]["response"]
    assert [item["type"] for item in final["output"]] == [
        *("reasoning", "message", "function_call", "function_call")
    ]
    assert [item["status"] for item in final["output"]] == ["completed"] * 4
    assert final["output"][0]["content"] == [{"type": "reasoning_text", "text": "Let me."}]
    assert final["output"][1]["content"][0]["text"] == "Hello"
    calls = [(i["name"], i["call_id"], i["arguments"]) for i in final["output"][2:]]
    assert calls == [("f", "c0", '{"a":1}'), ("g", "c1", "{}")]
    assert final["usage"]["input_tokens_details"]["cached_tokens"] == 2
    assert (final["usage"]["total_tokens"], final["model"]) == (12, "m-1")
    assert response.has_finished


def test_every_event_is_what_the_sdk_knows() -> None:
    _, events = made(PIECES)
    for event in events:
        again = EVENTS.validate_json(orjson.dumps(event), strict=False)
        assert again.type == event["type"]


def test_earlier_events_do_not_change_later() -> None:
    response, events = made(PIECES)
    added = [e["item"] for e in events if e["type"] == "response.output_item.added"]
    assert [item["status"] for item in added] == ["in_progress"] * 4
    assert [item.get("content") for item in added] == [[], [], None, None]
    assert events[0]["response"]["output"] == []
    assert response.as_json()["output"] != []


@pytest.mark.parametrize(
    ("finish", "status", "reason"),
    [
        ("stop", "completed", None),
        ("length", "incomplete", "max_output_tokens"),
        ("content_filter", "incomplete", "content_filter"),
    ],
)
def test_how_it_ends(finish: str, status: str, reason: str | None) -> None:
    _, events = made([piece(content="x"), piece(finish=finish)])
    final = events[-1]["response"]
    assert events[-1]["type"] == f"response.{status}"
    assert final["status"] == final["output"][0]["status"] == status
    assert final["incomplete_details"] == (reason and {"reason": reason})
    # What the engine does not say is not known.
    assert final["usage"] is None


def test_a_whole_chat_ends_in_the_same_items() -> None:
    stream, whole = Output(), Output()
    for each in PIECES:
        stream.feed(each)
    stream.finish()
    message = {
        "role": "assistant",
        "reasoning_content": "Let me.",
        "content": "Hello",
        "tool_calls": [
            {"id": "c0", "function": {"name": "f", "arguments": '{"a":1}'}},
            {"id": "c1", "function": {"name": "g", "arguments": "{}"}},
        ],
    }
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    whole.feed({"choices": [choice], "usage": USAGE["usage"]})
    whole.finish()

    def plain(output: Output) -> list[dict[str, Any]]:
        return [{k: v for k, v in item.items() if k != "id"} for item in output.items]

    assert plain(stream) == plain(whole)
    assert stream.usage == whole.usage


def test_a_stream_that_breaks_off() -> None:
    response = Response(parse(b'{"model":"m","input":"hi","stream":true}'))
    response.feed([piece(content="Hel")])
    error = MeshError(_reason("ENGINE_TIMEOUT"), "Too slow.")
    events = response.fail(error) + response.last()
    assert [e["type"] for e in events][-3:] == [
        "response.output_item.done",
        "error",
        "response.failed",
    ]
    assert events[-2]["code"] == "engine_timeout"
    final = events[-1]["response"]
    assert (final["status"], final["error"]["code"]) == ("failed", "server_error")
    assert final["output"][0]["status"] == "incomplete"
    SdkResponse.model_validate(final, strict=False)


def test_log_probabilities() -> None:
    logprob = {"token": "é", "logprob": -1.0, "top_logprobs": [{"token": "e", "logprob": -2.0}]}
    said = piece(content="é")
    said["choices"][0]["logprobs"] = {"content": [logprob]}
    _, events = made([said, piece(finish="stop")], include=["message.output_text.logprobs"])
    found = events[-1]["response"]["output"][0]["content"][0]["logprobs"]
    assert found[0]["bytes"] == [195, 169]
    assert found[0]["top_logprobs"] == [{"token": "e", "bytes": [101], "logprob": -2.0}]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_events_of_nodes_are_read_however_they_are_cut(size: int) -> None:
    text = b': wait\n\ndata: {"a":1}\r\n\r\ndata:{"b":\ndata: 2}\n\ndata: null\n\ndata: [DONE]\n\n'
    reader, found = Reader(), []
    for start in range(0, len(text), size):
        found += reader.read(text[start : start + size])
    assert found == [{"a": 1}, {"b": 2}]


def test_what_is_no_event_is_the_engines_fault() -> None:
    with pytest.raises(MeshError) as caught:
        Reader().read(b"data: {\n\n")
    assert caught.value.reason_name == "ENGINE_FAILED"


def test_events_are_named() -> None:
    assert written([{"type": "a", "n": 1}]) == b'event: a\ndata: {"type":"a","n":1}\n\n'


def _reason(name: str) -> Any:
    from infermesh.errors.v1 import errors_pb2

    return errors_pb2.ErrorReason.Value(f"ERROR_REASON_{name}")
