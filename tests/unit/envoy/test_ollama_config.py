"""What the front door does to Ollama's bodies before auth sees them."""

import re
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from infermesh.embeddings.v1 import ollama_embeddings_service_pb2
from infermesh.inference.v1 import ollama_service_pb2
from infermesh.registry.v1 import ollama_pull_service_pb2
from infermesh.routing.v1 import ollama_catalog_service_pb2
from lua_call import metadata_of

TEXT = (Path(__file__).parents[3] / "envoy" / "envoy.yaml").read_text()
LISTENER = yaml.safe_load(re.sub(r"\$\{[A-Z_]+\}", "0", TEXT))["static_resources"]["listeners"][0]
MANAGER = LISTENER["filter_chains"][0]["filters"][0]["typed_config"]


def told(fields: dict[str, Any], path: bytes = b"/api/chat") -> dict[str, Any]:
    return metadata_of("fields.lua", orjson.dumps(fields), path, b"application/json")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("m:latest", b"m"),
        ("a/b:latest", b"a/b"),
        (":latest", b""),
        ("m", b"m"),
        ("m:latest2", b"m:latest2"),
        ("m\\u003alatest", b"m\\u003alatest"),
        ("latest", b"latest"),
    ],
)
def test_the_tag_latest_is_no_part_of_a_name(said: str, expected: bytes) -> None:
    assert told({"model": said})["model"] == expected
    assert told({"model": said}, b"/v1/chat/completions")["model"] == said.encode()


def test_the_tag_is_none_however_it_is_written() -> None:
    body = b'{"model":"m\\u003al\\u0061test"}'
    found = metadata_of("fields.lua", body, b"/api/generate", b"application/json")
    assert found["model"] == b"m"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({}, True), ({"stream": None}, True), ({"stream": True}, True), ({"stream": False}, False)],
)
def test_a_body_streams_unless_it_says_no(fields: dict[str, Any], expected: bool) -> None:
    assert told(fields)["stream"] is expected


def test_what_is_reserved_and_routed_by() -> None:
    schema = {"type": "object", "properties": {"type": {"type": "string"}}}
    found = told({"options": {"num_predict": 7, "seed": 1}, "format": schema})
    assert (found["max_tokens"], found["response_format"]) == (7, b"json_schema")
    assert not {"num_predict", "schema"} & found.keys()
    found = told({"format": "json", "options": None})
    assert not {"max_tokens", "response_format"} & found.keys()
    # The last of two counts, as it does where the body is parsed.
    body = b'{"options":{"num_predict":7},"options":{}}'
    found = metadata_of("fields.lua", body, b"/api/chat", b"application/json")
    assert "max_tokens" not in found


@pytest.mark.parametrize(
    ("images", "expected"), [(["aGk="], True), ([], None), (None, None), ("aGk=", None)]
)
def test_pictures_need_a_model_that_sees(images: object, expected: bool | None) -> None:
    assert (
        told({"prompt": "What is it?", "images": images}, b"/api/generate").get("vision")
        is expected
    )


def test_other_paths_have_no_such_fields() -> None:
    fields = {"options": {"num_predict": 7}, "format": {"type": "object"}, "images": ["aGk="]}
    assert told(fields, b"/v1/chat/completions") == {"stream": b"false"}


@pytest.mark.parametrize("kind", [None, b"", b"application/x-www-form-urlencoded"])
def test_a_body_need_not_say_that_it_is_json(kind: bytes | None) -> None:
    assert metadata_of("fields.lua", b'{"model":"m"}', b"/api/chat", kind)["model"] == b"m"
    others = metadata_of("fields.lua", b'{"model":"m"}', b"/v1/chat/completions", kind)
    assert others == {"body": b"invalid", "stream": b"false"}


def test_other_types_are_no_json() -> None:
    found = metadata_of("fields.lua", b'{"model":"m"}', b"/api/chat", b"multipart/form-data")
    assert found["body"] == b"invalid"


def test_every_rpc_is_transcoded() -> None:
    filters = {each["name"]: each for each in MANAGER["http_filters"]}
    transcoded = filters["envoy.filters.http.grpc_json_transcoder"]["typed_config"]["services"]
    for module in (
        ollama_service_pb2,
        ollama_embeddings_service_pb2,
        ollama_catalog_service_pb2,
        ollama_pull_service_pb2,
    ):
        for service in module.DESCRIPTOR.services_by_name.values():
            assert service.full_name in transcoded
