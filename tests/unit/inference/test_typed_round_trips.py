"""Typed messages become OpenAI's JSON and back again, whatever is set of them."""

from typing import Any

import orjson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infermesh.inference.v1 import inference_service_pb2 as pb
from services.inference.requests import check
from services.inference.typed import answers, chats, completions
from services.inference.typed.structs import plain
from typed_messages import OBJECTS, TEXT, messages, struct

FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

P = "infermesh.inference.v1."
OPTIONS = OBJECTS.map(lambda d: {f"x_{k}": v for k, v in d.items()}).map(
    lambda d: struct(d) if d else None
)
TEXTS = {f"{P}ContentPart.text": st.text(min_size=1, max_size=6)}


def tidy_message(message: pb.ChatMessage) -> None:
    for place, call in enumerate(message.tool_calls):
        call.index = place  # A request's JSON has no other.


def tidy_asked(message: pb.ChatMessage) -> None:
    tidy_message(message)
    if message.HasField("audio"):
        message.audio.CopyFrom(pb.AudioAnswer(id=message.audio.id))


def tidy_tool(tool: pb.Tool) -> None:
    if tool.HasField("custom"):
        tool.ClearField("parameters")
        tool.ClearField("strict")


def tidy_custom(custom: pb.CustomInput) -> None:
    if not custom.grammar:
        custom.ClearField("grammar_syntax")


def tidy_request(request: Any) -> None:
    if not request.sampling.ByteSize():
        request.ClearField("sampling")


def tidy_completion(request: pb.CompleteRequest) -> None:
    tidy_request(request)
    if request.prompts:
        del request.token_prompts[:]
    else:
        del request.prompts[:]
        if not request.token_prompts:
            request.prompts.append("")


CHATS = messages(
    pb.ChatRequest.DESCRIPTOR,
    {
        **TEXTS,
        f"{P}ChatRequest.engine_options": OPTIONS,
        f"{P}JsonSchema.schema": OBJECTS.map(struct),
    },
    {
        "ChatMessage": tidy_asked,
        "Tool": tidy_tool,
        "CustomInput": tidy_custom,
        "ChatRequest": tidy_request,
    },
)
COMPLETIONS = messages(
    pb.CompleteRequest.DESCRIPTOR,
    {
        f"{P}CompleteRequest.engine_options": OPTIONS,
        f"{P}TokenIds.ids": st.lists(st.integers(0, 9), min_size=1, max_size=3),
    },
    {"CompleteRequest": tidy_completion},
)
OF_CHATS = {f"{P}TokenLogprob.text_offset": st.none(), **TEXTS}
ANSWERS = messages(pb.ChatMessage.DESCRIPTOR, OF_CHATS, {"ChatMessage": tidy_message})
CHAT_ANSWERS = messages(pb.ChatResponse.DESCRIPTOR, {f"{P}ChatChoice.message": ANSWERS, **OF_CHATS})
CHAT_EVENTS = messages(pb.StreamChatResponse.DESCRIPTOR, OF_CHATS)
OF_COMPLETIONS = {
    f"{P}TokenLogprob.bytes": st.none(),
    f"{P}TopLogprob.bytes": st.none(),
    f"{P}Logprobs.refusal": st.none(),
    f"{P}TokenLogprob.top_logprobs": st.lists(
        st.builds(pb.TopLogprob, token=TEXT, logprob=st.floats(-2, 0)),
        unique_by=lambda top: top.token,
        max_size=3,
    ),
}
COMPLETION_ANSWERS = messages(pb.CompleteResponse.DESCRIPTOR, OF_COMPLETIONS)
COMPLETION_EVENTS = messages(pb.StreamCompleteResponse.DESCRIPTOR, OF_COMPLETIONS)


def through_json(fields: dict[str, Any]) -> dict[str, Any]:
    return orjson.loads(orjson.dumps(fields))


@FEW
@given(CHATS, st.booleans())
def test_chats(request: pb.ChatRequest, stream: bool) -> None:
    fields = through_json(chats.chat_to_json(request, stream=stream))
    assert chats.chat_from_json(fields) == request
    assert fields.get("stream", False) == stream
    if request.model and request.messages:
        asked = check("chat", orjson.dumps(fields), _without_models(fields))
        assert (asked.is_stream, asked.wants_usage) == (stream, stream)


@FEW
@given(COMPLETIONS, st.booleans())
def test_completions(request: pb.CompleteRequest, stream: bool) -> None:
    fields = through_json(completions.completion_to_json(request, stream=stream))
    assert completions.completion_from_json(fields) == request
    if request.model:
        asked = check("completion", orjson.dumps(fields), _without_models(fields))
        assert (asked.is_stream, asked.wants_usage) == (stream, stream)


@FEW
@given(CHAT_ANSWERS)
def test_answers_to_chats(response: pb.ChatResponse) -> None:
    fields = through_json(answers.chat_response_to_json(response))
    assert answers.chat_response_from_json(fields, response.model) == response


@FEW
@given(CHAT_EVENTS)
def test_events_of_chats(response: pb.StreamChatResponse) -> None:
    fields = through_json(answers.chat_event_to_json(response))
    index = pb.ChatDelta(index=1).ByteSize()
    said = [d for d in response.deltas if d.ByteSize() > (index if d.index else 0)]
    assert answers.deltas_from_json(fields) == said


@FEW
@given(COMPLETION_ANSWERS)
def test_answers_to_completions(response: pb.CompleteResponse) -> None:
    fields = through_json(answers.completion_response_to_json(response))
    assert answers.completion_response_from_json(fields, response.model) == response


@FEW
@given(COMPLETION_EVENTS)
def test_events_of_completions(response: pb.StreamCompleteResponse) -> None:
    fields = through_json(answers.completion_response_to_json(response))
    said = [p for p in response.pieces if p.text or p.finish_reason or p.HasField("logprobs")]
    assert answers.pieces_from_json(fields) == said


@FEW
@given(OBJECTS)
def test_structs(data: dict[str, Any]) -> None:
    assert plain(struct(data)) == data


def test_minus_zero_stays() -> None:
    assert orjson.dumps(plain(struct({"x": -0.0}))) == b'{"x":-0.0}'
    assert orjson.dumps(plain(struct({"x": 0.0}))) == b'{"x":0}'


def _without_models(fields: dict[str, Any]) -> dict[str, Any]:
    """The rules of the proto, which stand before, allow no empty names."""
    return {name: value for name, value in fields.items() if name != "fallback_models"}
