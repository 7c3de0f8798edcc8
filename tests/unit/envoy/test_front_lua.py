"""envoy/front.lua cuts prompts as services/routing/prompt.py does: both run here."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lupa import luajit21

from infermesh.inference.v1 import inference_service_pb2 as pb
from services.routing import prompt

SCRIPT = (Path(__file__).parents[3] / "envoy" / "front.lua").read_bytes()
HANDLE = b"""
function(path, body, get, set, encode)
  local metadata = {set = function(_, namespace, key, value) set(namespace, key, value) end}
  local headers = {
    get = function(_, name) return ({[":path"] = path, [":method"] = "POST"})[name] end,
    remove = function() end,
  }
  local buffer = {
    length = function() return #body end,
    getBytes = function(_, from, count) return body:sub(from + 1, from + count) end,
  }
  return {
    headers = function() return headers end,
    body = function() return buffer end,
    base64Escape = function(_, text) return encode(text) end,
    streamInfo = function()
      return {dynamicMetadata = function() return metadata end}
    end,
  }
end
"""
REST = b"/v1/chat/completions"


def told(body: bytes, path: bytes = REST) -> dict[str, Any]:
    """Runs the script on a call and returns the metadata, without its namespaces."""
    lua = luajit21.LuaRuntime(encoding=None)
    lua.execute(SCRIPT)
    found: dict[str, Any] = {}

    def note(namespace: bytes, key: bytes, value: Any) -> None:
        found[key.decode()] = value

    handle = lua.eval(HANDLE)(path, body, None, note, base64.b64encode)
    lua.globals()[b"envoy_on_request"](handle)
    return found


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


@pytest.mark.parametrize("after", [0, 3000, 5000, 100_000])
def test_tools_and_fallbacks_at_either_end(after: int) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    for body in (
        chat("x" * after, tools=tools, fallback_models=["a", "b"]),
        json.dumps({"tools": tools, "fallback_models": ["a", "b"], "x": "x" * after}).encode(),
    ):
        found = told(body)
        assert found["tools"] is True
        assert json.loads(base64.b64decode(found["models"])) == ["a", "b"]


def test_what_only_looks_like_tools_is_none() -> None:
    for text in ('"tools": [{', json.dumps({"tools": [{}], "fallback_models": ["a"]})):
        assert told(chat(text)).keys() == {"text", "size", "prompt_bytes"}
    assert "tools" not in told(chat("hi", tools=[]))


def test_auth_is_told_how_long_the_body_is() -> None:
    body = chat("é" * 5000)
    assert told(body)["prompt_bytes"] == len(body)
    assert told(b"{}")["prompt_bytes"] == 2
    for path in (
        b"/v1/embeddings",
        b"/infermesh.embeddings.v1.EmbeddingsService/Embed",
        b"/infermesh.inference.v1.InferenceService/Embed",
    ):
        assert told(body, path) == {"prompt_bytes": len(body)}


def test_other_paths_are_left_alone() -> None:
    assert told(chat("hi"), b"/v1/models") == {}
    assert told(chat("hi"), b"/v1/chat/completions?api-version=1").keys() == {
        "text",
        "size",
        "prompt_bytes",
    }
