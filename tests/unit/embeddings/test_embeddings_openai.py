import base64
import struct

import orjson
import pytest

from services.embeddings import openai
from services.embeddings.vectors import Vector
from services.kit.errors import MeshError


def _body(**changed: object) -> bytes:
    return orjson.dumps({"model": "m", "input": "hello", **changed})


def test_one_text_and_a_list() -> None:
    assert openai.parse(_body()).inputs == ["hello"]
    assert openai.parse(_body(input=["a", " "])).inputs == ["a", " "]
    assert not openai.parse(_body(encoding_format=None, dimensions=None, user="u")).is_base64
    assert openai.parse(_body(encoding_format="base64")).is_base64


def test_tokens_in_place_of_texts() -> None:
    one = openai.parse(_body(input=[3, 0, 2**31 - 1]))
    assert one.inputs == [(3, 0, 2**31 - 1)]
    assert openai.parse(_body(input=[[1], [2, 3]])).inputs == [(1,), (2, 3)]


def test_dimensions() -> None:
    assert openai.parse(_body(dimensions=3)).dimensions == 3
    assert openai.parse(_body()).dimensions is None


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"[]", None),
        (b'{"input":"a"}', "model"),
        (_body(model=""), "model"),
        (_body(model=7), "model"),
        (_body(model="m" * 201), "model"),
        (b'{"model":"m"}', "input"),
        (_body(input=""), "input"),
        (_body(input=[]), "input"),
        (_body(input={}), "input"),
        (_body(input=5), "input"),
        (_body(input=["a"] * 2049), "input"),
        (_body(input=["a", ""]), "input[1]"),
        (_body(input=["a", None]), "input[1]"),
        (_body(input=[True]), "input[0]"),
        (_body(input=[1, -2]), "input"),
        (_body(input=[1, 2**31]), "input"),
        (_body(input=[1, True]), "input"),
        (_body(input=[1, "a"]), "input"),
        (_body(input=["a", 1]), "input[1]"),
        (_body(input=[[1, 2], []]), "input[1]"),
        (_body(input=[[1, 2], "a"]), "input[1]"),
        (_body(input=[[1], [2, 0.5]]), "input[1]"),
        (_body(input=[[1]] * 2049), "input"),
        (_body(encoding_format="hex"), "encoding_format"),
        (_body(encoding_format=[]), "encoding_format"),
        (_body(dimensions=0), "dimensions"),
        (_body(dimensions=True), "dimensions"),
        (_body(dimensions="3"), "dimensions"),
        (_body(dimensions=65_537), "dimensions"),
    ],
)
def test_what_is_wrong_is_named(body: bytes, param: str | None) -> None:
    with pytest.raises(MeshError) as caught:
        openai.parse(body)
    assert (caught.value.reason_name, caught.value.param) == ("INVALID_ARGUMENT", param)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\0", b"\xff", b"[" * 10_000, b'{"model":"\\ud800"}', b'{"a":NaN}']
)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(MeshError) as caught:
        openai.parse(body)
    assert caught.value.reason_name == "INVALID_JSON"


def test_the_answer_has_openais_form() -> None:
    vectors = [Vector(struct.pack("<2f", 0.1, -1.0), 3), Vector(struct.pack("<2f", 2, 3), 4, True)]
    floats = orjson.loads(openai.answer(openai.parse(_body(input=["a", "b"])), vectors))
    assert floats == {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": 0,
                "embedding": [struct.unpack("<f", struct.pack("<f", 0.1))[0], -1.0],
            },
            {"object": "embedding", "index": 1, "embedding": [2.0, 3.0]},
        ],
        "model": "m",
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }
    packed = orjson.loads(
        openai.answer(openai.parse(_body(input=["a", "b"], encoding_format="base64")), vectors)
    )
    assert base64.b64decode(packed["data"][0]["embedding"]) == vectors[0].data


@pytest.mark.parametrize(
    ("name", "said"), [("input_type", "query"), ("truncate_prompt_tokens", 0), ("task", "")]
)
def test_what_may_change_vectors_is_not_dropped(name: str, said: object) -> None:
    with pytest.raises(MeshError) as caught:
        openai.parse(_body(**{name: said}))
    assert (caught.value.reason_name, caught.value.param) == ("UNSUPPORTED", name)
    openai.parse(_body(user="u", priority="low", task=None))
