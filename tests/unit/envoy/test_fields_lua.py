"""envoy/fields.lua reads bodies as orjson does, which is what services read them with."""

import base64
import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lua_call import metadata_of

NAMES = ("model", "stream", "max_tokens", "max_completion_tokens", "n", "user", "session_id")
NAMES += ("preferred_framework", "optimization_level", "enable_caching")
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**50), 2**50)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=12,
)
_NAMES = st.sampled_from([*NAMES, "response_format", "metadata", "messages"]) | st.text(max_size=8)


def told(body: bytes, kind: bytes = b"application/json") -> dict[str, Any]:
    return metadata_of("fields.lua", body, b"/v1/chat/completions", kind)


def scalar(value: object) -> Any:
    if isinstance(value, str):
        return value.encode()
    return value if isinstance(value, bool | int | float) else None


def expected(fields: dict[str, Any]) -> dict[str, Any]:
    found = {name: scalar(fields.get(name)) for name in NAMES}
    for name, inner, key in (
        ("response_format", "type", "response_format"),
        ("metadata", "user_id", "user"),
    ):
        holder = fields.get(name)
        if isinstance(holder, dict) and found.get(key) is None:
            found[key] = scalar(holder.get(inner))
    if found["stream"] is None:
        found["stream"] = b"false"
    return {name: value for name, value in found.items() if value is not None}


@given(st.dictionaries(_NAMES, _VALUES, max_size=8), st.booleans(), st.sampled_from([None, 2]))
def test_what_orjson_reads(fields: dict[str, Any], ascii_only: bool, indent: int | None) -> None:
    body = json.dumps(fields, ensure_ascii=ascii_only, indent=indent).encode()
    assert told(body) == expected(orjson.loads(body))


@given(st.text(alphabet='{}[]":,\\ut01a \nmodel', max_size=60) | st.binary(max_size=40))
def test_what_is_json_is_never_called_invalid(text: str | bytes) -> None:
    body = text.encode() if isinstance(text, str) else text
    found = told(body)
    try:
        is_object = isinstance(orjson.loads(body), dict)
    except orjson.JSONDecodeError:
        is_object = False
    assert not (is_object and "body" in found)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"model":"a"',
        b'{"model":"a"}x',
        b'{"model":nul}',
        b'{"model":"\\ud800"}',
        b'{"model":"\xff"}',
        b'{"model":01-}',
        b"{'model':1}",
        b'\xef\xbb\xbf{"model":"a"}',
    ],
)
def test_what_is_no_json_object(body: bytes) -> None:
    assert told(body)["body"] == b"invalid"


def test_the_last_of_two_counts_as_at_the_node() -> None:
    body = b'{"model":"a","mod\\u0065l":"b","x":{"model":"c"},"stream":true,"stream":false}'
    assert told(body) == {"model": b"b", "stream": False}


@pytest.mark.parametrize("name", NAMES)
def test_names_count_however_they_are_written(name: str) -> None:
    escaped = "".join(f"\\u{ord(character):04x}" for character in name)
    assert told(f'{{"{escaped}":7}}'.encode())[name] == 7


def test_bodies_that_are_not_declared_as_json_are_not_read() -> None:
    body = b'{"model":"a"}'
    assert told(body, b"text/plain") == {"body": b"invalid", "stream": b"false"}
    assert told(body, b"Application/JSON ; charset=utf-8")["model"] == b"a"
    assert told(body, b"application/grpc+proto") == {}


def test_long_values_are_cut() -> None:
    assert told(orjson.dumps({"user": "a" + "é" * 4000}))["user"] == b"a"  # no half of a character
    assert len(told(orjson.dumps({"user": "u" * 5000}))["user"]) == 4096
    assert "n" not in told(b'{"n":1e999}')


def test_the_longest_answer_of_a_response() -> None:
    assert told(b'{"max_output_tokens":7}')["max_tokens"] == 7


@pytest.mark.parametrize("filler", [0, 3000, 5000, 100_000])
def test_tools_and_fallbacks_wherever_they_stand(filler: int) -> None:
    lists = {"tools": [{"type": "function"}], "fallback_models": ["a", "b"]}
    text = "x" * filler
    for fields in ({"p": text, **lists}, {**lists, "p": text}, {"p": text, **lists, "q": text}):
        found = told(orjson.dumps(fields))
        assert found["tools"] is True
        assert json.loads(base64.b64decode(found["models"])) == ["a", "b"]


def test_what_only_looks_like_tools_is_none() -> None:
    for text in ('"tools": [{', json.dumps({"tools": [{}], "fallback_models": ["a"]})):
        body = orjson.dumps({"messages": [{"content": text}], "x": {"tools": [{}]}})
        assert told(body) == {"stream": b"false"}
    assert "tools" not in told(b'{"tools":[]}')


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (["a", "b, ]", 'c"['], 3),
        ([[1, 2], [3]], 2),
        ([1, 2, 3], None),  # the tokens of one prompt
        (["a"], None),
        ([], None),
        ("a", None),
    ],
)
def test_prompts_are_counted(said: object, expected: int | None) -> None:
    for indent in (None, 1):
        assert told(json.dumps({"prompt": said}, indent=indent).encode()).get("prompts") == expected
