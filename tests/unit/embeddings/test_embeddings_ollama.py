"""Ollama's forms of requests for vectors."""

import struct
from typing import Any

import orjson
import pytest

from services.embeddings import ollama
from services.embeddings.vectors import Vector
from services.kit.errors import MeshError


def parse(field: str = "input", **fields: Any) -> ollama.OllamaRequest:
    return ollama.parse(orjson.dumps({"model": "m", field: "x", **fields}), field)


def test_texts() -> None:
    assert parse() == ("m", ["x"], None)
    assert parse(input=["a", "b"]).inputs == ["a", "b"]
    assert parse("prompt", prompt="p").inputs == ["p"]


def test_latest_is_no_part_of_a_name() -> None:
    assert parse(model="m:latest").model == "m"


def test_what_tunes_the_machine_and_what_asks_for_nothing_pass() -> None:
    said = {"options": {"num_ctx": 9}, "keep_alive": "5m", "truncate": True, "nothing": None}
    assert parse(**said).inputs == ["x"]
    assert parse(dimensions=0).dimensions is None
    assert parse(dimensions=8).dimensions == 8


@pytest.mark.parametrize(
    ("fields", "reason", "param"),
    [
        ({"model": 3}, "INVALID_ARGUMENT", "model"),
        ({"input": ""}, "INVALID_ARGUMENT", "input"),
        ({"input": []}, "INVALID_ARGUMENT", "input"),
        ({"input": ["a", ""]}, "INVALID_ARGUMENT", "input[1]"),
        ({"input": ["a", 3]}, "INVALID_ARGUMENT", "input[1]"),
        ({"input": ["a"] * 2049}, "INVALID_ARGUMENT", "input"),
        ({"dimensions": -1}, "INVALID_ARGUMENT", "dimensions"),
        ({"dimensions": True}, "INVALID_ARGUMENT", "dimensions"),
        ({"images": ["x"]}, "UNSUPPORTED", "images"),
    ],
)
def test_refusals(fields: dict[str, Any], reason: str, param: str) -> None:
    with pytest.raises(MeshError) as caught:
        parse(**fields)
    assert (caught.value.reason_name, caught.value.param) == (reason, param)


def test_the_older_form_takes_one_text() -> None:
    with pytest.raises(MeshError) as caught:
        parse("prompt", prompt=["a", "b"])
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("body", [b"{", b"[]"])
def test_what_is_no_json_is_refused(body: bytes) -> None:
    with pytest.raises(MeshError) as caught:
        ollama.parse(body, "input")
    assert caught.value.reason_name == "INVALID_JSON"


def test_answers() -> None:
    vectors = [Vector(struct.pack("<2f", 0.5, 1), 3), Vector(struct.pack("<2f", 2, 4), 4)]
    assert orjson.loads(ollama.answer(parse(), vectors, 9)) == {
        "model": "m",
        "embeddings": [[0.5, 1.0], [2.0, 4.0]],
        "total_duration": 9,
        "prompt_eval_count": 7,
    }
    assert orjson.loads(ollama.single(vectors[:1])) == {"embedding": [0.5, 1.0]}
