import orjson
import pytest

from services.inference.engines.ollama import Ollama, _is_since
from services.inference.engines.ollama_answers import ChatLines, GenerateLines
from services.inference.requests import parse
from services.inference.transport_errors import EngineConnectionError
from services.kit.errors import MeshError


def body(**fields):
    asked = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return orjson.loads(Ollama().plan(parse("chat", orjson.dumps(asked))).body)


def refusal(messages):
    with pytest.raises(MeshError) as caught:
        body(messages=messages)
    return caught.value.reason_name, caught.value.param


def user(*parts):
    return [{"role": "user", "content": list(parts)}]


def image(url):
    return {"type": "image_url", "image_url": {"url": url}}


def test_parts_become_a_text_and_its_pictures():
    parts = (
        {"type": "text", "text": "a"},
        image("data:image/png;base64,QUJD"),
        {"type": "text", "text": "b"},
    )
    assert body(messages=user(*parts))["messages"] == [
        {"role": "user", "content": "a\nb", "images": ["QUJD"]}
    ]


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (image("https://example.org/a.png"), "UNSUPPORTED"),
        (image("data:image/png,raw"), "INVALID_ARGUMENT"),
        (image(None), "INVALID_ARGUMENT"),
        ({"type": "input_audio"}, "UNSUPPORTED"),
        ({"type": "text"}, "INVALID_ARGUMENT"),
        ("text", "INVALID_ARGUMENT"),
    ],
)
def test_parts_that_ollama_cannot_take(part, reason):
    assert refusal(user(part)) == (reason, "messages[0].content[0]")


@pytest.mark.parametrize("arguments", ["{", "[1]", 5])
def test_arguments_of_calls_must_be_objects(arguments):
    call = {"id": "c", "function": {"name": "f", "arguments": arguments}}
    messages = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    param = "messages[0].tool_calls[0].function.arguments"
    assert refusal(messages) == ("INVALID_ARGUMENT", param)


def test_reasoning_goes_back_as_thinking():
    messages = [{"role": "assistant", "content": "x", "reasoning_content": "y"}]
    assert body(messages=messages)["messages"][0]["thinking"] == "y"


@pytest.mark.parametrize(
    ("effort", "think"), [("none", False), ("minimal", "low"), ("high", "high"), ("xhigh", "max")]
)
def test_efforts(effort, think):
    assert body(reasoning_effort=effort)["think"] == think


def test_nothing_is_set_that_was_not_asked_for():
    assert body() == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        # Without these Ollama cuts a long prompt in silence.
        "truncate": False,
        "shift": False,
        "options": {},
    }


def events(translator, *lines):
    text = b"".join(translator.feed(orjson.dumps(line) + b"\n") for line in lines)
    found = text.decode().split("\n\n")
    assert found.pop() == ""
    return [e if e.endswith("[DONE]") else orjson.loads(e.removeprefix("data: ")) for e in found]


def says(**message):
    return {"model": "m", "message": {"role": "assistant", "content": "", **message}, "done": False}


END = {"model": "m", "message": {"role": "assistant", "content": ""}, "done": True}


def test_several_calls_count_up_over_the_whole_answer():
    call = {"id": "c1", "function": {"name": "f", "arguments": {"a": 1}}}
    nameless = {"function": {"index": 0, "name": "g"}}
    made = events(
        ChatLines("m"),
        says(tool_calls=[call]),
        says(tool_calls=[nameless]),
        {**END, "done_reason": "stop"},
    )
    first = made[0]["choices"][0]["delta"]["tool_calls"][0]
    second = made[1]["choices"][0]["delta"]["tool_calls"][0]
    assert (first["index"], first["id"], first["function"]["arguments"]) == (0, "c1", '{"a":1}')
    assert (second["index"], second["function"]) == (1, {"name": "g", "arguments": "{}"})
    assert second["id"].startswith("call_")
    assert made[2]["choices"][0]["finish_reason"] == "tool_calls"
    assert made[-1] == "data: [DONE]"


def test_an_answer_that_was_cut_says_so_although_it_called():
    call = {"id": "c1", "function": {"name": "f", "arguments": {}}}
    made = events(ChatLines("m"), says(tool_calls=[call]), {**END, "done_reason": "length"})
    assert made[1]["choices"][0]["finish_reason"] == "length"


def test_counts_that_ollama_leaves_out_stay_unknown():
    made = events(GenerateLines("m"), {"response": "a", "done": True, "eval_count": 1})
    assert made[-2]["usage"] == {"completion_tokens": 1}
    made = events(GenerateLines("m"), {"response": "a", "done": True})
    assert all("usage" not in event for event in made[:-1])
    made = events(GenerateLines("m"), {"done": True, "eval_count": -1, "prompt_eval_count": 2})
    assert made[-2]["usage"] == {"prompt_tokens": 2}


@pytest.mark.parametrize("line", [b"[1]\n", b"{\n", b'{"done":false}\n'])
def test_what_is_no_answer_is_a_broken_one(line):
    with pytest.raises(EngineConnectionError):
        ChatLines("m").feed(line)


def test_a_line_without_an_end_is_bounded():
    lines = ChatLines("m")
    with pytest.raises(EngineConnectionError):
        for _ in range(10):
            lines.feed(b"x" * 1024 * 1024)


def test_every_cut_gives_the_same_events():
    text = b"".join(
        orjson.dumps(line) + b"\n"
        for line in (says(content="é\n"), says(content="b"), {**END, "eval_count": 2})
    )
    whole = ChatLines("m").feed(text)
    for cut in range(1, len(text)):
        translator = ChatLines("m")
        pieces = translator.feed(text[:cut]) + translator.feed(text[cut:])
        assert pieces.count(b"\n\n") == whole.count(b"\n\n")
        assert pieces.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("version", "is_since"),
    [("0.12.11", True), ("0.13.0-rc1", True), ("0.12.2", False), ("", False), ("dev", False)],
)
def test_versions(version, is_since):
    assert _is_since(version, (0, 12, 11)) is is_since
