"""Models in Ollama's form."""

import orjson
import pytest

from infermesh.routing.v1 import openai_model_service_pb2 as pb
from services.kit.errors import MeshError
from services.routing import ollama_catalog

MODELS = [
    pb.OpenAIModel(
        id="big",
        created=1_700_000_000,
        capabilities=["chat", "tools", "structured_output", "vision"],
        context_length=8192,
        available=True,
    ),
    pb.OpenAIModel(id="away", created=1_700_000_000, capabilities=["embeddings"]),
    pb.OpenAIModel(id="other:latest", available=True),
]


def test_tags_say_what_is_known_and_no_more() -> None:
    said = orjson.loads(ollama_catalog.tags(MODELS))["models"]
    assert said[0] == {
        "name": "big",
        "model": "big",
        "modified_at": "2023-11-14T22:13:20Z",
        "details": {},
    }
    # A name with the tag is nothing that callers can say.
    assert [each["name"] for each in said] == ["big", "away"]


def test_what_runs_is_what_is_ready() -> None:
    assert orjson.loads(ollama_catalog.running(MODELS)) == {
        "models": [{"name": "big", "model": "big", "details": {}, "context_length": 8192}]
    }


def test_shown() -> None:
    said = orjson.loads(ollama_catalog.shown(MODELS[0]))
    assert said["capabilities"] == ["completion", "tools", "vision"]
    assert said["model_info"] == {"general.context_length": 8192}
    said = orjson.loads(ollama_catalog.shown(MODELS[1]))
    assert (said["capabilities"], said["model_info"]) == (["embedding"], {})


def test_who_is_named() -> None:
    assert ollama_catalog.named(b'{"model":"a:latest"}') == "a"
    assert ollama_catalog.named(b'{"name":"a","verbose":true}') == "a"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "INVALID_JSON"),
        (b"[]", "INVALID_ARGUMENT"),
        (b"{}", "INVALID_ARGUMENT"),
        (b'{"model":3}', "INVALID_ARGUMENT"),
    ],
)
def test_who_is_not_named(body: bytes, reason: str) -> None:
    with pytest.raises(MeshError) as caught:
        ollama_catalog.named(body)
    assert caught.value.reason_name == reason
