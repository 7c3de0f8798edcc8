"""Anthropic's official SDKs, unmodified: for Python, with its own checks of answers, and for JS."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest

from e2e.fleet import Fleet
from e2e.mesh import CHAT, EMBED, REPOSITORY, Mesh
from e2e.tool_engine import ToolEngine, tool_engine

TOOLS_MODEL = "anthropic-tools"
SIMULATED = "anthropic-simulated"
SYSTEM = "You are a helpful assistant. Reply in one short English sentence."
PARIS = [{"role": "user", "content": "What is the capital of France?"}]
ASKED = {"model": CHAT, "system": SYSTEM, "messages": PARIS, "max_tokens": 24}
# The SDK has no parameter for it, the API has.
GREEDY = {"temperature": 0}
WEATHER = {
    "name": "get_weather",
    "description": "Tells the weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}


@pytest.fixture(scope="module")
def engine(fleet: Fleet) -> Iterator[ToolEngine]:
    (simulator,) = fleet.engines(1, SIMULATED, "--decode-rate", "50", "--answer-tokens", "2000")
    with tool_engine(TOOLS_MODEL) as engine:
        fleet.join(
            {
                "anthropic-api": ("--engine", "openai", "--url", engine.url),
                "anthropic-sim": ("--engine", "sim", "--url", simulator),
            }
        )
        engine.simulator = simulator  # type: ignore[attr-defined]
        yield engine


def client_of(mesh: Mesh, key: str | None = None) -> anthropic.Anthropic:
    return anthropic.Anthropic(
        base_url=mesh.url,
        api_key=key or mesh.admin_key,
        max_retries=0,
        timeout=60,
        _strict_response_validation=True,
    )


@pytest.fixture
def claude(mesh: Mesh) -> Iterator[anthropic.Anthropic]:
    with client_of(mesh) as client:
        yield client


def test_a_message(claude: anthropic.Anthropic, mesh: Mesh) -> None:
    message = claude.messages.create(**ASKED, extra_body=GREEDY)
    assert message.model == CHAT
    assert message.id.startswith("msg_")
    assert message._request_id
    assert "Paris" in message.content[0].text
    assert message.stop_reason == "end_turn"
    with mesh.http() as http:
        turns = [{"role": "system", "content": SYSTEM}, *PARIS]
        body = {"model": CHAT, "messages": turns, "max_tokens": 24, **GREEDY}
        same = http.post("/v1/chat/completions", json=body).json()
    assert message.content[0].text == same["choices"][0]["message"]["content"]
    taken = message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)
    assert taken == same["usage"]["prompt_tokens"]
    assert message.usage.output_tokens == same["usage"]["completion_tokens"]


def test_a_stream_says_the_same(claude: anthropic.Anthropic) -> None:
    whole = claude.messages.create(**ASKED, extra_body=GREEDY)
    with claude.messages.stream(**ASKED, extra_body=GREEDY) as stream:
        pieces = list(stream.text_stream)
        message = stream.get_final_message()
    assert len(pieces) > 2
    assert "".join(pieces) == message.content[0].text == whole.content[0].text
    assert message.stop_reason == whole.stop_reason
    assert message.usage.output_tokens == whole.usage.output_tokens
    events = [event.type for event in claude.messages.create(**ASKED, stream=True)]
    assert events[0] == "message_start"
    assert events[-2:] == ["message_delta", "message_stop"]


def test_an_answer_that_is_cut(claude: anthropic.Anthropic) -> None:
    message = claude.messages.create(**{**ASKED, "max_tokens": 2}, extra_body=GREEDY)
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 2)


def test_an_answer_that_is_begun(claude: anthropic.Anthropic) -> None:
    begun = {"role": "assistant", "content": "The capital of France is"}
    message = claude.messages.create(**{**ASKED, "messages": [*PARIS, begun]}, extra_body=GREEDY)
    assert message.content[0].text.strip().startswith("Paris")


def test_counting_is_what_the_answer_takes(claude: anthropic.Anthropic) -> None:
    prompt = {name: ASKED[name] for name in ("model", "system", "messages")}
    counted = claude.messages.count_tokens(**prompt)
    usage = claude.messages.create(**ASKED).usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_counting_where_nobody_can(claude: anthropic.Anthropic, engine: ToolEngine) -> None:
    with pytest.raises(anthropic.BadRequestError, match="count tokens"):
        claude.messages.count_tokens(model=TOOLS_MODEL, messages=PARIS)
    assert claude.messages.count_tokens(model=SIMULATED, messages=PARIS).input_tokens > 5


@pytest.mark.parametrize("stream", [False, True])
def test_a_round_of_tools(claude: anthropic.Anthropic, engine: ToolEngine, stream: bool) -> None:
    def ask(messages: list[Any]) -> anthropic.types.Message:
        asked = {"model": TOOLS_MODEL, "max_tokens": 50, "tools": [WEATHER], "messages": messages}
        if not stream:
            return claude.messages.create(**asked)
        with claude.messages.stream(**asked) as events:
            return events.get_final_message()

    turns: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    message = ask(turns)
    thinking, call = message.content
    assert (thinking.type, thinking.thinking) == ("thinking", "I need a tool.")
    assert (call.type, call.name, call.input) == ("tool_use", "get_weather", {"city": "Paris"})
    assert message.stop_reason == "tool_use"
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "20 degrees"}
    turns += [
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": [result]},
    ]
    assert ask(turns).content[0].text == "It is 20 degrees."
    sent = engine.bodies[-1]
    assert sent["messages"][-1]["tool_call_id"] == "functions.get_weather:0"
    assert sent["messages"][-2]["tool_calls"][0]["id"] == "functions.get_weather:0"
    assert sent["messages"][-2]["reasoning_content"] == "I need a tool."
    assert sent["tools"][0]["function"]["parameters"] == WEATHER["input_schema"]


def test_a_stream_that_breaks(claude: anthropic.Anthropic, engine: ToolEngine) -> None:
    asked = {"model": TOOLS_MODEL, "max_tokens": 5}
    messages = [{"role": "user", "content": "break"}]
    with pytest.raises(anthropic.APIStatusError, match="I broke"):
        for event in claude.messages.create(**asked, messages=messages, stream=True):
            assert event.type != "message_stop"


def test_errors_are_the_sdks_own(claude: anthropic.Anthropic, mesh: Mesh) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        claude.messages.create(**{**ASKED, "model": "gpt-9"})
    assert missing.value.body["error"]["type"] == "not_found_error"
    assert missing.value.body["request_id"] == missing.value.request_id
    with pytest.raises(anthropic.BadRequestError) as bad:
        claude.messages.create(**{**ASKED, "max_tokens": 0})
    assert bad.value.body["error"]["param"] == "max_tokens"
    with pytest.raises(anthropic.BadRequestError, match="documents"):
        block = {"type": "document", "source": {"type": "text", "data": "x"}}
        claude.messages.create(**{**ASKED, "messages": [{"role": "user", "content": [block]}]})
    with pytest.raises(anthropic.BadRequestError, match="embeddings only"):
        claude.messages.create(**{**ASKED, "model": EMBED})
    with pytest.raises(anthropic.BadRequestError, match="cannot see"):
        source = {"type": "base64", "media_type": "image/png", "data": "AA=="}
        picture = {"role": "user", "content": [{"type": "image", "source": source}]}
        claude.messages.create(**{**ASKED, "messages": [picture]})
    with pytest.raises(anthropic.AuthenticationError), client_of(mesh, "im-nobody") as stranger:
        stranger.messages.create(**ASKED)


def raw(mesh: Mesh, path: str = "/v1/messages", **more: Any) -> httpx.Response:
    return httpx.post(
        mesh.url + path,
        headers={"x-api-key": mesh.admin_key, "content-type": "application/json"},
        timeout=60,
        **more,
    )


def test_refusals_of_the_front_door(mesh: Mesh) -> None:
    got = [
        raw(mesh, content=b'{"model": "' + b"a" * 17_000_000 + b'"}'),
        raw(mesh, "/v1/messages/batches", json={}),
        raw(mesh, content=b"{"),
        httpx.get(f"{mesh.url}/v1/messages", headers={"x-api-key": mesh.admin_key}),
        httpx.post(f"{mesh.url}/v1/messages", json=ASKED),
    ]
    assert [(each.status_code, each.json()["error"]["type"]) for each in got] == [
        (413, "request_too_large"),
        (404, "not_found_error"),
        (400, "invalid_request_error"),
        (404, "not_found_error"),
        (401, "authentication_error"),
    ]
    assert all(each.json()["type"] == "error" for each in got)
    openai_says = httpx.post(f"{mesh.url}/v1/chat/completions", json=ASKED).json()
    assert openai_says["error"]["code"] == "invalid_api_key"


def test_limits_refuse_in_anthropics_shape(mesh: Mesh) -> None:
    with mesh.http() as http:
        made = http.post("/mesh/v1/keys", json={"display_name": "anthropic"})
        created = made.raise_for_status().json()
        scope = {"key_id": created["key"]["key_id"]}
        limits = {"scope": scope, "requests_per_minute": 1}
        http.put("/mesh/v1/limits", json={"limits": limits}).raise_for_status()
    with client_of(mesh, created["secret"]) as client:
        client.messages.create(**ASKED)
        with pytest.raises(anthropic.RateLimitError) as refused:
            for _ in range(3):
                client.messages.create(**ASKED)
    assert refused.value.body["error"]["type"] == "rate_limit_error"
    assert int(refused.value.response.headers["retry-after"]) > 0


def test_hanging_up_stops_the_engine(mesh: Mesh, engine: ToolEngine) -> None:
    def running() -> bool:
        page = httpx.get(f"{engine.simulator}/metrics").text  # type: ignore[attr-defined]
        line = next(x for x in page.splitlines() if x.startswith("vllm:num_requests_running"))
        return float(line.rpartition(" ")[2]) > 0

    body = {"model": SIMULATED, "max_tokens": 2000, "messages": PARIS, "stream": True}
    headers = {"x-api-key": mesh.admin_key}
    with httpx.stream("POST", f"{mesh.url}/v1/messages", json=body, headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        pieces = answer.iter_bytes()  # which closes the connection when it goes
        next(pieces)
        assert running()
    # It would go on for 40 s.
    mesh.wait("the engine is idle", lambda: not running(), 10.0)


def test_the_snippet_of_the_documentation(mesh: Mesh) -> None:
    page = (REPOSITORY / "docs" / "clients.md").read_text()
    snippet = re.search(r"```python anthropic\n(.*?)```", page, re.DOTALL)
    assert snippet
    done = subprocess.run(
        [sys.executable, "-c", snippet[1]],
        env=os.environ | {"MESH_URL": mesh.url, "MESH_KEY": mesh.admin_key},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    message, _, streamed = done.stdout.partition("\n")
    assert message
    assert streamed


def test_javascript(mesh: Mesh, engine: ToolEngine) -> None:
    done = subprocess.run(
        [
            *("node", "tests/clients/anthropic_client.mjs"),
            *(mesh.url, mesh.admin_key, CHAT, TOOLS_MODEL),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert "Paris" in got["text"]
    assert got["streamed"] == got["text"]
    assert got["deltas"] > 2
    assert got["stop"] == "end_turn"
    assert got["request"]
    for usage in (got["usage"], got["streamedUsage"]):
        assert usage["input_tokens"] + usage["cache_read_input_tokens"] == got["counted"]
    assert got["call"] == {"name": "get_weather", "input": {"city": "Paris"}}
    assert got["told"] == "It is 20 degrees."
    assert got["errors"] == {
        "missing": {
            "class": "NotFoundError",
            "status": 404,
            "type": "not_found_error",
            "request": True,
        },
        "bad": {
            "class": "BadRequestError",
            "status": 400,
            "type": "invalid_request_error",
            "request": True,
        },
        "stranger": {
            "class": "AuthenticationError",
            "status": 401,
            "type": "authentication_error",
            "request": True,
        },
    }
