"""OpenAI's answers become Anthropic's messages, whole and in streams, and say the same in both."""

from typing import Any

import anthropic
import orjson
import pytest
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from services.inference.anthropic.answers import to_message
from services.inference.anthropic.events import EventStream
from services.inference.engines.dialect import Tokens, tokens_of
from services.inference.fold import Fold
from services.kit.errors import MeshError

EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
USAGE = {
    "prompt_tokens": 10,
    "completion_tokens": 3,
    "prompt_tokens_details": {"cached_tokens": 4},
}
STOPS = frozenset({"END"})


def piece(finish: str | None = None, /, more: dict[str, Any] | None = None, **delta: object) -> Any:
    choice = {"index": 0, "delta": delta, "finish_reason": finish, **(more or {})}
    return {"id": "chatcmpl-1", "model": "m", "choices": [choice]}


def call(index: int, arguments: str, **more: object) -> dict[str, Any]:
    name = more.pop("name", None)
    function = {"arguments": arguments} | ({"name": name} if name else {})
    return {"index": index, "function": function, **more}


TEXT = [piece(role="assistant", content=""), piece(content="Hel"), piece(content="lo")]
THOUGHT = [piece(reasoning_content="h"), piece(reasoning_content="m"), *TEXT]
CALLS = [
    piece(content="See."),
    piece(tool_calls=[call(0, "", id="call_1", name="f")]),
    piece(tool_calls=[call(0, '{"a"')]),
    piece(tool_calls=[call(0, ":1}")]),
    piece(tool_calls=[call(1, "{}", id="functions.g:1", name="g")]),
]
ENDS = [
    (TEXT, piece("stop"), "end_turn", None),
    (TEXT, piece("length"), "max_tokens", None),
    (TEXT, piece("content_filter"), "refusal", None),
    (TEXT, piece("stop", {"stop_reason": "END"}), "stop_sequence", "END"),
    (TEXT, piece("stop", {"matched_stop": "END"}), "stop_sequence", "END"),
    (TEXT, piece("stop", {"stop_reason": "OTHER"}), "end_turn", None),
    (TEXT, piece("stop", {"matched_stop": 7}), "end_turn", None),
    ([piece(refusal="No.")], piece("stop"), "refusal", None),
    (THOUGHT, piece("stop"), "end_turn", None),
    (CALLS, piece("tool_calls"), "tool_use", None),
    (CALLS, piece("stop"), "tool_use", None),
    (CALLS, piece("length"), "max_tokens", None),
    ([piece(role="assistant")], piece("stop"), "end_turn", None),
]


def events_of(text: bytes) -> list[dict[str, Any]]:
    found = []
    for event in text.decode().split("\n\n")[:-1]:
        name, data = event.split("\n")
        fields = orjson.loads(data.removeprefix("data: "))
        assert name == f"event: {fields['type']}"
        found.append(fields)
    return found


def streamed(pieces: list[Any], *, shows_thinking: bool = True) -> list[dict[str, Any]]:
    stream = EventStream("msg_1", "m", STOPS, shows_thinking=shows_thinking)
    text = b"".join(stream.feed([each]) for each in pieces)
    return events_of(text + stream.end(tokens_of(USAGE), None))


def accumulated(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Puts a stream together as Anthropic's own client does, each event checked by its types."""
    message: Any = None
    buffers: dict[int, bytes] = {}
    for event in events:
        if event["type"] == "ping":
            continue
        message = accumulate_event(
            event=EVENT.validate_python(event), current_snapshot=message, json_bufs=buffers
        )
    return message.to_dict(exclude_none=True)


def whole(pieces: list[Any], *, shows_thinking: bool = True) -> dict[str, Any]:
    fold = Fold("chat", "m")
    for each in pieces:
        fold.add(each)
    return to_message(fold.result(USAGE), "msg_1", STOPS, shows_thinking=shows_thinking)


@pytest.mark.parametrize(("pieces", "end", "reason", "sequence"), ENDS)
def test_a_stream_says_what_a_whole_answer_says(
    pieces: list[Any], end: Any, reason: str, sequence: str | None
) -> None:
    message = whole([*pieces, end])
    Message.model_validate(message)
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, sequence)
    got = accumulated(streamed([*pieces, end]))
    assert got == {name: value for name, value in message.items() if value is not None}


def test_the_order_of_events() -> None:
    got = [
        (event["type"], event.get("index"), event.get("delta", {}).get("type"))
        for event in streamed([*THOUGHT, *CALLS, piece("tool_calls")])
    ]
    assert got == [
        ("message_start", None, None),
        ("ping", None, None),
        ("content_block_start", 0, None),
        *[("content_block_delta", 0, "thinking_delta")] * 2,
        ("content_block_stop", 0, None),
        ("content_block_start", 1, None),
        *[("content_block_delta", 1, "text_delta")] * 3,
        ("content_block_stop", 1, None),
        ("content_block_start", 2, None),
        *[("content_block_delta", 2, "input_json_delta")] * 2,
        ("content_block_stop", 2, None),
        ("content_block_start", 3, None),
        ("content_block_delta", 3, "input_json_delta"),
        ("content_block_stop", 3, None),
        ("message_delta", None, None),
        ("message_stop", None, None),
    ]


def test_usage_counts_what_no_cache_held() -> None:
    usage = whole([*TEXT, piece("stop")])["usage"]
    assert usage == {"input_tokens": 6, "cache_read_input_tokens": 4, "output_tokens": 3}
    delta = streamed([*TEXT, piece("stop")])[-2]
    assert delta["usage"] == usage


def test_what_the_engine_does_not_count_is_unknown() -> None:
    data = {"model": "m", "choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]}
    assert to_message(data, "x", STOPS)["usage"] == {"input_tokens": None, "output_tokens": None}
    stream = EventStream("x", "m", STOPS)
    stream.feed(TEXT)
    assert events_of(stream.end(None, None))[-2]["usage"]["output_tokens"] is None
    usage = events_of(stream.end(Tokens(prompt=2), None))[-2]["usage"]
    assert usage == {"input_tokens": 2, "output_tokens": None}


def test_thinking_that_nobody_wants_to_read() -> None:
    message = whole([*THOUGHT, piece("stop")], shows_thinking=False)
    assert message["content"][0] == {"type": "thinking", "thinking": "", "signature": ""}
    got = accumulated(streamed([*THOUGHT, piece("stop")], shows_thinking=False))
    assert got["content"] == message["content"]


def test_arguments_that_are_no_json_object() -> None:
    for arguments in ('{"a":', "[1]", "x"):
        data = {
            "model": "m",
            "choices": [
                {
                    "message": {
                        "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]
                    },
                    "finish_reason": "tool_calls",
                }
            ],
        }
        assert to_message(data, "x", STOPS)["content"][0]["input"] == {"INVALID_JSON": arguments}


def test_a_call_whose_name_comes_late() -> None:
    pieces = [piece(tool_calls=[call(0, "{", id="c")]), piece(tool_calls=[call(0, "}", name="f")])]
    got = accumulated(streamed([*pieces, piece("tool_calls")]))
    assert got["content"] == [{"type": "tool_use", "id": "toolu_c", "name": "f", "input": {}}]


@pytest.mark.parametrize(
    "objects",
    [
        [{"choices": [7]}],
        [{"choices": [{"delta": {"content": 7}}]}],
        [{"choices": [{"delta": {"tool_calls": [1]}}]}],
        [*CALLS, piece(tool_calls=[call(0, "late")])],
    ],
)
def test_streams_that_cannot_be_read(objects: list[Any]) -> None:
    with pytest.raises(MeshError) as caught:
        EventStream("x", "m", STOPS).feed(objects)
    assert caught.value.reason_name == "ENGINE_FAILED"


def test_a_call_that_never_gets_a_name() -> None:
    stream = EventStream("x", "m", STOPS)
    stream.feed([piece(tool_calls=[call(0, "{}")])])
    with pytest.raises(MeshError):
        stream.feed([piece("tool_calls")])
    with pytest.raises(MeshError):
        stream.end(None, None)


def test_a_call_that_is_named_later() -> None:
    stream = EventStream("x", "m", STOPS)
    stream.feed([piece(tool_calls=[call(0, "{")])])
    assert b'"name":"f"' in stream.feed([piece("tool_calls", tool_calls=[call(0, "}", name="f")])])


@pytest.mark.parametrize("data", [{}, {"choices": []}, {"choices": [{"message": {}}]}])
def test_answers_that_cannot_be_read(data: dict[str, Any]) -> None:
    with pytest.raises(MeshError) as caught:
        to_message({**data, "model": "m"}, "x", STOPS)
    assert caught.value.reason_name == "ENGINE_FAILED"


def test_how_it_came_about() -> None:
    data = {
        "model": "m",
        "choices": [{"message": {"content": "a"}, "finish_reason": "stop"}],
        "gateway_metadata": {"node": "n"},
    }
    assert to_message(data, "x", STOPS)["gateway_metadata"] == {"node": "n"}
    stream = EventStream("x", "m", STOPS)
    stream.feed(TEXT)
    last = events_of(stream.end(None, {"node": "n"}))[-1]
    assert last == {"type": "message_stop", "gateway_metadata": {"node": "n"}}
    assert anthropic.types.RawMessageStopEvent.model_validate(last)
