"""Ollama's requests become OpenAI's, and nothing of them is dropped without a word."""

import base64
from typing import Any

import orjson
import pytest

from services.inference.ollama import messages, options, requests
from services.kit.errors import MeshError

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(30)).decode()
JPEG = base64.b64encode(b"\xff\xd8\xff\xe0" + bytes(30)).decode()
HELLO = [{"role": "user", "content": "hello"}]


def chat(**fields: Any) -> requests.Asked:
    return requests.parse("chat", orjson.dumps({"model": "m", "messages": HELLO, **fields}))


def generate(**fields: Any) -> requests.Asked:
    return requests.parse("generate", orjson.dumps({"model": "m", "prompt": "hello", **fields}))


def refused(act: Any, *arguments: Any, **fields: Any) -> tuple[str, str | None]:
    with pytest.raises(MeshError) as caught:
        act(*arguments, **fields)
    return caught.value.reason_name, caught.value.param


def test_a_chat_streams_unless_it_says_no() -> None:
    assert chat().is_stream
    assert chat(stream=None).is_stream
    assert not chat(stream=False).is_stream
    request = requests.finish(chat(), {"temperature": 0})
    assert request.fields == {
        "model": "m",
        "messages": HELLO,
        "temperature": 0,
        "stream": True,
    }
    assert orjson.loads(request.body) == request.fields
    assert not requests.finish(chat(stream=False), {}).is_stream


def test_latest_is_no_part_of_a_name() -> None:
    assert chat(model="m:latest").model == "m"
    assert chat(model="m:8b").model == "m:8b"


def test_calls_without_ids_and_their_answers_meet() -> None:
    call = {"function": {"name": "weather", "arguments": {"city": "Paris"}}}
    other = {"function": {"name": "time", "arguments": {}}}
    made = messages.to_openai(
        [
            *HELLO,
            {"role": "assistant", "content": "", "tool_calls": [call, other, call]},
            {"role": "tool", "content": "noon", "tool_name": "time"},
            {"role": "tool", "content": "sunny", "tool_name": "weather"},
            {"role": "tool", "content": "rainy"},
        ]
    )
    ids = [each["id"] for each in made[1]["tool_calls"]]
    assert len(set(ids)) == 3
    assert made[1]["tool_calls"][0]["function"] == {
        "name": "weather",
        "arguments": '{"city":"Paris"}',
    }
    assert [each["tool_call_id"] for each in made[2:]] == [ids[1], ids[0], ids[2]]


def test_calls_keep_the_ids_that_they_have() -> None:
    call = {"id": "a", "function": {"name": "f", "arguments": {}}}
    made = messages.to_openai(
        [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "a"}]
    )
    assert made[0]["tool_calls"][0]["id"] == made[1]["tool_call_id"] == "a"


def test_an_answer_to_no_call_is_refused() -> None:
    lost = [*HELLO, {"role": "tool", "content": "x", "tool_name": "f"}]
    assert refused(messages.to_openai, lost) == ("INVALID_ARGUMENT", "messages[1].tool_name")


@pytest.mark.parametrize("role", ["developer", "", None, 3, [], {}])
def test_a_role_that_is_none_is_refused(role: object) -> None:
    wrong = [{"role": role, "content": "x"}]
    assert refused(messages.to_openai, wrong) == ("INVALID_ARGUMENT", "messages[0].role")


def test_what_was_thought_goes_back() -> None:
    said = {"role": "assistant", "content": "x", "thinking": "hm"}
    assert messages.to_openai([said])[0]["reasoning_content"] == "hm"
    where = "messages[0].thinking"
    assert refused(messages.to_openai, [said | {"thinking": 3}]) == ("INVALID_ARGUMENT", where)


def test_pictures_become_data_urls() -> None:
    made = messages.to_openai([{"role": "user", "content": "what?", "images": [PNG, JPEG]}])
    assert made[0]["content"] == [
        {"type": "text", "text": "what?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{JPEG}"}},
    ]
    for bad in ("%%%", base64.b64encode(b"no picture at all, not one").decode(), 3, ""):
        wrong = [{"role": "user", "content": "", "images": [bad]}]
        assert refused(messages.to_openai, wrong) == ("INVALID_ARGUMENT", "messages[0].images[0]")


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("json", {"type": "json_object"}),
        (
            {"type": "object"},
            {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
            },
        ),
        ("", None),
        (None, None),
    ],
)
def test_formats(form: object, expected: object) -> None:
    assert chat(format=form).fields.get("response_format") == expected


def test_a_prompt_goes_through_the_template_and_a_raw_one_does_not() -> None:
    asked = generate(system="be kind", images=[PNG])
    assert asked.kind == "chat"
    assert asked.fields["messages"][0] == {"role": "system", "content": "be kind"}
    assert asked.fields["messages"][1]["content"][0] == {"type": "text", "text": "hello"}
    raw = generate(raw=True)
    assert (raw.kind, raw.fields["prompt"]) == ("completion", "hello")
    infill = generate(suffix="end")
    assert (infill.kind, infill.fields["suffix"]) == ("completion", "end")
    assert not generate(prompt="", suffix="end").only_loads


def test_without_a_prompt_it_only_loads() -> None:
    assert generate(prompt="").only_loads
    assert generate(prompt="", raw=True).only_loads
    assert chat(messages=[]).only_loads
    assert not chat().only_loads
    assert refused(chat, messages=[], keep_alive=0) == ("UNSUPPORTED", "keep_alive")
    assert not chat(keep_alive=0).only_loads


@pytest.mark.parametrize(
    ("fields", "reason", "param"),
    [
        ({"template": "{{ .Prompt }}"}, "UNSUPPORTED", "template"),
        ({"context": [1, 2]}, "UNSUPPORTED", "context"),
        ({"raw": True, "system": "x"}, "UNSUPPORTED", "system"),
        ({"raw": True, "format": "json"}, "UNSUPPORTED", "format"),
        ({"width": 64}, "UNSUPPORTED", "width"),
        ({"frobnicate": 1}, "UNSUPPORTED", "frobnicate"),
        ({"model": ""}, "INVALID_ARGUMENT", "model"),
        ({"stream": "yes"}, "INVALID_ARGUMENT", "stream"),
        ({"format": 3}, "INVALID_ARGUMENT", "format"),
        ({"think": "a lot"}, "INVALID_ARGUMENT", "think"),
        ({"logprobs": True, "top_logprobs": 21}, "INVALID_ARGUMENT", "top_logprobs"),
        ({"system": 3}, "INVALID_ARGUMENT", "system"),
        ({"prompt": 3}, "INVALID_ARGUMENT", "prompt"),
        ({"images": "x"}, "INVALID_ARGUMENT", "images"),
    ],
)
def test_what_cannot_be_honoured_is_refused(
    fields: dict[str, Any], reason: str, param: str
) -> None:
    assert refused(generate, **fields) == (reason, param)


def test_fields_that_ask_for_nothing_pass() -> None:
    asked = generate(template="", context=[], frobnicate=None, suffix="", truncate=True, think=None)
    assert asked.fields == {"messages": HELLO}
    assert asked.think is None


def test_the_meshs_own_fields_pass() -> None:
    asked = chat(priority="high", fallback_models=["b"])
    request = requests.finish(asked, {})
    assert request.fields["fallback_models"] == ["b"]
    assert request.priority.name == "HIGH"


def test_what_is_no_json_is_refused() -> None:
    for body in (b"{", b"[]", b"3"):
        assert refused(requests.parse, "chat", body)[0] == "INVALID_JSON"


def test_options() -> None:
    said = {
        "temperature": 0.1,
        "seed": 3,
        "stop": ["a", ""],
        "num_predict": 7,
        "top_k": 20,
        "repeat_penalty": 1.2,
        "num_thread": 8,
        "num_ctx": 2048,
    }
    common = {"temperature": 0.1, "seed": 3, "stop": ["a"], "max_tokens": 7, "top_k": 20}
    assert options.to_openai(said, "llamacpp", 4096) == common | {"repeat_penalty": 1.2}
    assert options.to_openai(said, "vllm", 0) == common | {"repetition_penalty": 1.2}
    param = "options.repeat_penalty"
    assert refused(options.to_openai, said, "openai", 0) == ("UNSUPPORTED", param)
    assert options.to_openai(None, "vllm", 0) == {}


def test_options_that_ask_for_nothing_pass_everywhere() -> None:
    said = {"repeat_penalty": 1.0, "tfs_z": 1, "mirostat": 0, "mirostat_tau": 5, "num_predict": -1}
    assert options.to_openai(said, "tgi", 0) == {}


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"num_ctx": 4097}, "UNSUPPORTED"),
        ({"num_ctx": 0}, "INVALID_ARGUMENT"),
        ({"num_predict": -3}, "INVALID_ARGUMENT"),
        ({"num_predict": True}, "INVALID_ARGUMENT"),
        ({"num_predict": 0}, "UNSUPPORTED"),
        ({"temperature": "warm"}, "INVALID_ARGUMENT"),
        ({"stop": [1]}, "INVALID_ARGUMENT"),
        ({"stop": ["x"] * 65}, "INVALID_ARGUMENT"),
        ({"mirostat": 2}, "UNSUPPORTED"),
        ({"rope_frequency_base": 10000.0}, "UNSUPPORTED"),
    ],
)
def test_options_that_cannot_be_honoured(said: dict[str, Any], reason: str) -> None:
    (name,) = said
    assert refused(options.to_openai, said, "vllm", 4096) == (reason, f"options.{name}")


@pytest.mark.parametrize(
    ("path", "more", "param"),
    [
        ("chat", {"top_logprobs": 3}, "top_logprobs"),
        ("generate", {"prompt": "a", "raw": "yes"}, "raw"),
        ("chat", {"messages": [{"role": "user", "tool_name": "f"}]}, "messages[0].tool_name"),
    ],
)
def test_what_would_change_nothing(path: str, more: Any, param: str) -> None:
    with pytest.raises(MeshError) as caught:
        requests.parse(path, orjson.dumps({"model": "m", **more}))
    assert caught.value.param == param


def test_names_of_speakers_stay() -> None:
    message = {"role": "user", "content": "a", "name": "Bob"}
    asked = requests.parse("chat", orjson.dumps({"model": "m", "messages": [message]}))
    assert asked.fields["messages"] == [message]
