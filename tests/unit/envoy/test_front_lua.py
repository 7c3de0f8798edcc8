"""envoy/front.lua cuts prompts as services/routing/prompt.py does: both run here."""

import base64
import json
from typing import Any

import pytest
from google.api import httpbody_pb2
from hypothesis import given
from hypothesis import strategies as st

from infermesh.inference.v1 import inference_service_pb2 as pb
from lua_call import metadata_of
from services.routing import prompt

REST = b"/v1/chat/completions"


def told(body: bytes, path: bytes = REST) -> dict[str, Any]:
    """Runs the script on a call and returns the metadata."""
    return metadata_of("front.lua", body, path)


def assert_same(body: bytes) -> None:
    found, expected = told(body), prompt.cut(body)
    if expected is None:
        assert "text" not in found
    else:
        assert (base64.b64decode(found["text"]), found["size"]) == expected


def chat(text: str, **fields: object) -> bytes:
    messages = [{"role": "user", "content": text}]
    return json.dumps({"model": "m", "messages": messages, **fields}).encode()


@pytest.mark.parametrize("length", [0, 1, 4000, 4096, 5183, 5184, 5185, 17_000, 66_000, 300_000])
def test_prompts_of_every_length(length: int) -> None:
    text = "".join(chr(97 + i * i % 26) for i in range(length))
    assert_same(chat(text))
    assert_same(json.dumps({"prompt": text}).encode())


@pytest.mark.parametrize("before", [0, 4000, 4090, 4096, 5000, 32_700, 32_768, 40_000])
def test_prompts_wherever_they_stand(before: int) -> None:
    filler = {"user": "u" * before}
    assert_same(json.dumps({**filler, "messages": []}).encode())
    assert_same(json.dumps({"prompt": "p", **filler, "messages": []}).encode())


@given(st.binary(max_size=200), st.integers(0, 40_000), st.binary(max_size=6000))
def test_whatever_comes(start: bytes, filler: int, end: bytes) -> None:
    assert_same(start + b" " * filler + b'"messages"' + end)
    assert_same(start + b" " * filler + end)


def test_typed_prompts_begin_after_the_model() -> None:
    message = pb.ChatMessage(role=pb.CHAT_ROLE_USER, content=[pb.ContentPart(text="x" * 9000)])
    request = pb.ChatRequest(model="a-model", messages=[message])
    service = b"/infermesh.inference.v1.InferenceService/"
    cuts = [
        told(b"\0" + len(sent).to_bytes(4, "big") + sent, service + method)
        for method, sent in (
            (b"Chat", request.SerializeToString()),
            (b"StreamChat", pb.StreamChatRequest(chat=request).SerializeToString()),
        )
    ]
    # The message around it is three bytes more of the body.
    assert cuts[0] | {"prompt_bytes": 0} == cuts[1] | {"prompt_bytes": 0}
    rest = request.SerializeToString()[2 + len("a-model") :]
    assert base64.b64decode(cuts[0]["text"]).startswith(rest[:4096])
    assert cuts[0]["size"] == len(rest)
    completion = pb.CompleteRequest(model="a-model", prompts=["x" * 9000]).SerializeToString()
    for method in (b"Complete", b"StreamComplete"):
        cut = told(b"\0" + len(completion).to_bytes(4, "big") + completion, service + method)
        rest = completion[2 + len("a-model") :]
        assert base64.b64decode(cut["text"]).startswith(rest[:4096])
        assert (cut["size"], cut["prompt_bytes"]) == (len(rest), len(completion) + 5)


def test_the_chat_of_a_service_of_the_mesh_is_cut_like_a_callers() -> None:
    body = chat("x" * 9000)
    sent = httpbody_pb2.HttpBody(data=body).SerializeToString()
    path = b"/infermesh.inference.v1.OpenAIService/CreateChatCompletion"
    cut = told(b"\0" + len(sent).to_bytes(4, "big") + sent, path)
    assert cut | {"prompt_bytes": 0} == told(body) | {"prompt_bytes": 0}


def test_auth_is_told_how_long_the_body_is() -> None:
    body = chat("é" * 5000)
    assert told(body)["prompt_bytes"] == len(body)
    assert told(b"{}")["prompt_bytes"] == 2
    for path in (
        b"/v1/embeddings",
        b"/v1/responses",
        b"/infermesh.embeddings.v1.EmbeddingsService/Embed",
        b"/infermesh.inference.v1.InferenceService/Embed",
        b"/infermesh.inference.v1.InferenceService/Rerank",
        b"/infermesh.inference.v1.InferenceService/CountTokens",
        b"/infermesh.inference.v1.InferenceService/Tokenize",
        b"/infermesh.inference.v1.InferenceService/Detokenize",
        b"/v1/rerank",
        b"/v2/rerank",
        b"/rerank",
        b"/tokenize",
        b"/detokenize",
    ):
        assert told(body, path) == {"prompt_bytes": len(body)}


def test_other_paths_are_left_alone() -> None:
    assert told(chat("hi"), b"/v1/models") == {}
    assert told(chat("hi"), b"/v1/chat/completions?api-version=1").keys() == {
        "text",
        "size",
        "prompt_bytes",
    }
