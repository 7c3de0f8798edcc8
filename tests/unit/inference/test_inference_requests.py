import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference import extensions
from services.inference.requests import parse, with_fields
from services.kit.errors import MeshError

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def refusal(kind, body):
    with pytest.raises(MeshError) as caught:
        parse(kind, body if isinstance(body, bytes) else orjson.dumps(body))
    return caught.value.reason_name, caught.value.param


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"model": "m"\x00}',
        b"\x00" * 10,
        b'"text"',
        b"[" * 10_000 + b"]" * 10_000,
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b'{"model": NaN}',
        b'{"model": "\xff"}',
    ],
)
def test_what_is_not_a_json_object_is_refused(body):
    assert refusal("chat", body) == ("INVALID_JSON", None)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 3}, "model"),
        ({"model": ""}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "a"}, {"content": "b"}]}, "messages[1].role"),
        ({"messages": [{"role": 1, "content": "b"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        ({"stream": "yes"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"stream_options": []}, "stream_options"),
    ],
)
def test_wrong_fields_are_named(change, param):
    assert refusal("chat", CHAT | change) == ("INVALID_ARGUMENT", param)


@pytest.mark.parametrize("prompt", [None, 3, [], {}])
def test_a_completion_needs_a_prompt(prompt):
    assert refusal("completion", {"model": "m", "prompt": prompt}) == ("INVALID_ARGUMENT", "prompt")


PICTURE = {"type": "image_url", "image_url": {"url": "data:,"}}


@pytest.mark.parametrize(
    ("kind", "most", "too_many", "param"),
    [
        ("chat", {"messages": CHAT["messages"] * 4096}, CHAT["messages"], "messages"),
        ("chat", {"tools": [{}] * 128}, [{}], "tools"),
        ("completion", {"prompt": ["a"] * 128}, ["a"], "prompt"),
        ("completion", {"prompt": [[1]] * 128}, [[1]], "prompt"),
    ],
)
def test_there_is_a_most_of_everything(kind, most, too_many, param):
    body = CHAT | most
    parse(kind, orjson.dumps(body))
    assert refusal(kind, body | {param: body[param] + too_many}) == ("INVALID_ARGUMENT", param)
    assert parse("completion", orjson.dumps(CHAT | {"prompt": [1] * 5000}))  # tokens of one prompt


def test_pictures_count_over_all_messages():
    words = [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "no"}] * 200
    said = [{"role": "user", "content": [*words, *[PICTURE] * 64]}] * 2
    parse("chat", orjson.dumps(CHAT | {"messages": said}))
    more = [*said, {"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]
    assert refusal("chat", CHAT | {"messages": more}) == ("INVALID_ARGUMENT", "messages")


@pytest.mark.parametrize("tools", ["get_weather", {}, 3])
def test_tools_are_a_list(tools):
    assert refusal("chat", CHAT | {"tools": tools}) == ("INVALID_ARGUMENT", "tools")


@pytest.mark.parametrize("content", ["hi", None, [{"type": "text", "text": "hi"}]])
def test_every_form_of_content_passes(content):
    body = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": content}]})
    assert parse("chat", body).body == body


def test_what_is_asked_for():
    body = orjson.dumps(CHAT | {"stream": True, "n": 3, "stream_options": {"include_usage": True}})
    request = parse("chat", body)
    assert (request.is_stream, request.wants_usage, request.n) == (True, True, 3)
    # Usage in a stream means nothing where there is no stream.
    request = parse("chat", orjson.dumps(CHAT | {"stream_options": {"include_usage": True}}))
    assert (request.is_stream, request.wants_usage, request.n) == (False, False, 1)


def test_bytes_stay_as_they_are_where_they_can():
    body = b' {"model":"m" , "messages":[{"role":"user","content":"\\u00e9"}], "x": 1.50}'
    request = parse("chat", body)
    assert with_fields(request, {}) is body
    assert with_fields(request, {"stream": True}) == b'{"stream":true,' + body[2:]


def test_a_field_that_is_there_is_replaced_not_doubled():
    request = parse("chat", orjson.dumps(CHAT | {"stream": False, "seed": 2**60}))
    changed = with_fields(request, {"stream": True})
    assert changed.count(b'"stream"') == 1
    assert orjson.loads(changed) == CHAT | {"stream": True, "seed": 2**60}


@given(
    extra=st.dictionaries(
        st.text(max_size=8).filter(lambda name: name not in extensions.NAMES),
        st.integers(-(2**53), 2**53) | st.text() | st.none(),
        max_size=5,
    ),
    changes=st.dictionaries(st.sampled_from(["stream", "x", "seed"]), st.booleans(), max_size=3),
)
def test_changes_say_what_they_should(extra, changes):
    fields = {**extra, **CHAT}
    fields.pop("stream", None)
    fields.pop("stream_options", None)
    request = parse("chat", orjson.dumps(fields))
    assert orjson.loads(with_fields(request, changes)) == {**fields, **changes}
