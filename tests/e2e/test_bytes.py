"""What the mesh changes of an engine's answers: nothing but what docs/clients.md lists.

The same request goes to the engine and through the mesh. Streams are compared event by event as
bytes, whole answers as JSON values. `id`, `created` and `timings` differ between two requests to
one engine too: their values are masked, that they are there is compared.
"""

import base64
import json
import re
import struct
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from e2e.fleet import Fleet
from e2e.mesh import CHAT, EMBED, Mesh
from e2e.test_cancel import running

SIM = "byte-sim"
SIM_EMBED = "byte-embed"
MESSAGES = [
    {"role": "system", "content": "You are a helpful assistant. Reply in one short sentence."},
    {"role": "user", "content": "What is the capital of France? Say “Paris” — and é."},
]
# What is in the engine's cache depends on what it did before.
STEADY = {"temperature": 0, "seed": 7, "cache_prompt": False}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}
USAGE = {"stream_options": {"include_usage": True}}

CHATS: dict[str, dict[str, Any]] = {
    "plain": {"max_tokens": 12},
    "usage": {"max_tokens": 6, **USAGE},
    "stop": {"max_tokens": 24, "stop": ["Paris"]},
    "logprobs": {"max_tokens": 4, "logprobs": True, "top_logprobs": 2},
    "schema": {
        "max_tokens": 24,
        "response_format": {"type": "json_schema", "json_schema": {"name": "c", "schema": SCHEMA}},
    },
    "several": {"max_tokens": 4, "n": 2, **USAGE},
    "bias": {"max_tokens": 4, "logit_bias": {"28": -100}},
}
SIMULATED = ("plain", "usage", "stop", "bias")
COMPLETIONS: dict[str, dict[str, Any]] = {
    "plain": {"prompt": "The capital of France is", "max_tokens": 8},
    "usage": {"prompt": "The capital of France is", "max_tokens": 4, **USAGE},
    "stop": {"prompt": "One, two, three,", "max_tokens": 12, "stop": "five"},
    "logprobs": {"prompt": "The capital of France is", "max_tokens": 3, "logprobs": 2},
}

_MASKED = re.compile(rb'"(id|created)"\s*:\s*("(?:[^"\\]|\\.)*"|\d+)')
_TIMINGS = re.compile(rb'"timings"\s*:\s*\{[^{}]*\}')


def masked(event: bytes) -> bytes:
    """Returns an event with the values masked that differ from request to request."""
    return _TIMINGS.sub(b'"timings":*', _MASKED.sub(rb'"\1":*', event))


def without(value: Any) -> Any:
    """Returns an answer with the same values masked."""
    if isinstance(value, dict):
        return {
            key: "*" if key in ("id", "created", "timings") else without(each)
            for key, each in value.items()
        }
    return [without(each) for each in value] if isinstance(value, list) else value


def events(reply: httpx.Response) -> list[bytes]:
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/event-stream")
    return [masked(event) for event in reply.content.split(b"\n\n") if event]


@pytest.fixture(scope="module")
def engines(mesh: Mesh, fleet: Fleet) -> dict[str, str]:
    """URLs of engines by the model that they serve."""
    # Without a decode rate: one event a token, however late a timer is.
    (sim,) = fleet.engines(1, SIM)
    (embed,) = fleet.engines(1, SIM_EMBED, "--embeddings")
    fleet.join(
        {
            "byte-sim": ("--engine", "vllm", "--url", sim),
            "byte-embed": ("--engine", "vllm", "--url", embed),
        }
    )
    chat, vectors = engine_of(mesh, CHAT), engine_of(mesh, EMBED)
    # What else an engine computes at the same time may show in the last digits of likelihoods.
    mesh.wait("idle engines", lambda: running() == 0)
    return {CHAT: chat, EMBED: vectors, SIM: sim, SIM_EMBED: embed}


def engine_of(mesh: Mesh, model: str) -> str:
    words = mesh.part_words("services.inference.llamacpp_server", f"--alias {model} ")
    return f"http://127.0.0.1:{words[words.index('--port') + 1]}"


@pytest.fixture
def http(mesh: Mesh) -> Iterator[httpx.Client]:
    with mesh.http() as http:
        yield http


def both(
    http: httpx.Client, engine: str, path: str, body: dict[str, Any]
) -> tuple[httpx.Response, httpx.Response]:
    return httpx.post(engine + path, json=body, timeout=60), http.post(path, json=body)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("model", "case"), [*((CHAT, case) for case in CHATS), *((SIM, case) for case in SIMULATED)]
)
def test_chat(http, engines, model: str, case: str, stream: bool) -> None:
    body = {"model": model, "messages": MESSAGES, **STEADY, **CHATS[case], "stream": stream}
    same(*both(http, engines[model], "/v1/chat/completions", wanted(body)), stream)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("model", "case"),
    [*((CHAT, case) for case in COMPLETIONS), (SIM, "plain"), (SIM, "usage"), (SIM, "stop")],
)
def test_completion(http, engines, model: str, case: str, stream: bool) -> None:
    body = {"model": model, **STEADY, **COMPLETIONS[case], "stream": stream}
    same(*both(http, engines[model], "/v1/completions", wanted(body)), stream)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_tools(http, engines, stream: bool) -> None:
    body = {"model": SIM, "messages": MESSAGES, "tools": [TOOL], "stream": stream, **STEADY}
    body["max_tokens"] = 12
    same(*both(http, engines[SIM], "/v1/chat/completions", wanted(body)), stream)


@pytest.mark.parametrize("encoding", ["float", "base64"])
@pytest.mark.parametrize(
    ("model", "given"),
    [
        (EMBED, "a cat"),
        (EMBED, ["a cat", "two"]),
        (EMBED, [[101, 4937, 102], [101, 102]]),
        (SIM_EMBED, "a cat"),
        (SIM_EMBED, ["a cat", "two"]),
    ],
)
def test_embeddings(http, engines, model: str, given: Any, encoding: str) -> None:
    body = {"model": model, "input": given, "encoding_format": encoding}
    direct, through = both(http, engines[model], "/v1/embeddings", body)
    assert direct.status_code == through.status_code == 200, (direct.text, through.text)
    told, got = direct.json(), through.json()
    # The mesh asks for each text by itself, and what an engine computes beside another text differs
    # in the last bits.
    for ours, theirs in zip(got["data"], told["data"], strict=True):
        theirs.pop("encoding_format", None)  # llama.cpp's own
        assert floats(ours.pop("embedding")) == pytest.approx(
            floats(theirs.pop("embedding")), abs=1e-6
        )
    assert got == told


@pytest.mark.parametrize("more", [{}, {"top_n": 1}])
def test_rerank(http, engines, more: dict[str, Any]) -> None:
    body = {"model": SIM_EMBED, "query": "a cat", "documents": ["a dog", "a cat", "two"], **more}
    direct, through = both(http, engines[SIM_EMBED], "/v1/rerank", body)
    assert direct.status_code == through.status_code == 200, (direct.text, through.text)
    told, got = direct.json(), through.json()
    for result in told["results"]:
        del result["document"]  # which the mesh returns where it is asked to
    assert got["results"] == told["results"]
    assert got["usage"]["total_tokens"] == told["usage"]["total_tokens"]


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/tokenize", {"prompt": "One two three"}),
        ("/tokenize", {"messages": MESSAGES, "return_token_strs": True}),
        ("/detokenize", {"tokens": [5, 6, 7]}),
    ],
)
def test_tokens(http, engines, path: str, asked: dict[str, Any]) -> None:
    direct, through = both(http, engines[SIM], path, {"model": SIM, **asked})
    assert direct.status_code == through.status_code == 200, (direct.text, through.text)
    assert through.json() == {**direct.json(), "model": SIM}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_what_the_engine_refuses_is_refused_in_its_words(http, engines, path: str) -> None:
    asked = {"messages": MESSAGES} if "chat" in path else {"prompt": "a"}
    body = {"model": SIM, **asked, "logprobs": True, "stream": True}
    direct, through = both(http, engines[SIM], path, body)
    assert direct.status_code == through.status_code == 400
    told, got = direct.json()["error"], through.json()["error"]
    assert got == told | {"code": "engine_rejected"}


def floats(given: list[float] | str) -> list[float]:
    if isinstance(given, list):
        return given
    data = base64.b64decode(given)
    return list(struct.unpack(f"<{len(data) // 4}f", data))


def wanted(body: dict[str, Any]) -> dict[str, Any]:
    # A whole answer always has its usage.
    return body if body["stream"] else {k: v for k, v in body.items() if k != "stream_options"}


def same(direct: httpx.Response, through: httpx.Response, stream: bool) -> None:
    if stream:
        assert events(through) == events(direct)
        return
    assert direct.status_code == through.status_code, (direct.text, through.text)
    got, told = without(json.loads(through.content)), without(json.loads(direct.content))
    if len(got["choices"]) > 1:
        # llama.cpp counts the tokens of one choice; the mesh those of all.
        assert got.pop("usage")["completion_tokens"] >= told.pop("usage")["completion_tokens"]
    assert got == told
