"""Ollama's surface where things go wrong, where limits hold, and before an Ollama as the engine."""

import json
import re
import time
from collections.abc import Iterator

import httpx
import ollama
import pytest

from e2e.fleet import Fleet
from e2e.mesh import Mesh
from scripted_ollama import ScriptedOllama, scripted_ollama

SIM = "ollama-sim"
NATIVE = "ollama-native"
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def engine(fleet: Fleet) -> str:
    """A simulated engine that makes 100 tokens a second, for 40 seconds if it is let."""
    (url,) = fleet.engines(
        1, SIM, "--decode-rate", "100", "--slots", "4", "--answer-tokens", "4000"
    )
    fleet.join({"ollama-sim-1": ("--engine", "sim", "--url", url)})
    return url


@pytest.fixture(scope="module")
def native(fleet: Fleet) -> Iterator[ScriptedOllama]:
    """An Ollama as the engine of a node."""
    with scripted_ollama(NATIVE) as server:
        fleet.join({"ollama-native-1": ("--engine", "ollama", "--url", server.url)})
        yield server
        fleet.stop("ollama-native-1")


@pytest.fixture
def client(mesh: Mesh) -> Iterator[ollama.Client]:
    headers = {"authorization": f"Bearer {mesh.admin_key}"}
    with ollama.Client(host=mesh.url, headers=headers, timeout=60) as client:
        yield client


def running(engine: str) -> int:
    text = httpx.get(f"{engine}/metrics", timeout=10).text
    return sum(
        int(float(n)) for n in re.findall(r"^vllm:num_requests_running\S* (\S+)", text, re.M)
    )


def test_a_stream_that_breaks_ends_with_an_error(
    mesh: Mesh, fleet: Fleet, engine: str, client: ollama.Client
) -> None:
    fleet.fault(engine, drop_after=5)
    try:
        said = []
        with pytest.raises(ollama.ResponseError) as caught:
            for part in client.chat(SIM, MESSAGES, stream=True, options={"num_predict": 50}):
                said.append(part)
        assert said
        assert not any(part.done for part in said)
        assert "broke off" in caught.value.error
    finally:
        fleet.fault(engine)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_hanging_up_stops_the_engine(mesh: Mesh, engine: str, path: str, stream: bool) -> None:
    mesh.wait("an idle engine", lambda: running(engine) == 0)
    body = {"model": SIM, "stream": stream, "options": {"num_predict": 4000}}
    body |= {"messages": MESSAGES} if path == "/api/chat" else {"prompt": "hi"}
    with (
        mesh.http() as http,
        pytest.raises(httpx.ReadTimeout),
        http.stream("POST", path, json=body, timeout=0.5) as reply,
    ):
        for _ in reply.iter_lines():
            if running(engine):
                raise httpx.ReadTimeout("enough")
    began = time.monotonic()
    mesh.wait("an idle engine", lambda: running(engine) == 0, 10.0)
    print(f"{path} stream={stream}: idle {1000 * (time.monotonic() - began):.0f} ms after")


def test_a_limit_of_a_key_with_a_model_holds_for_the_tag_too(mesh: Mesh, engine: str) -> None:
    with mesh.http() as admin:
        made = admin.post("/mesh/v1/keys", json={"display_name": "ollama"}).json()
        scope = {"key_id": made["key"]["key_id"], "model": SIM}
        body = {"limits": {"scope": scope, "requests_per_minute": 1}}
        admin.put("/mesh/v1/limits", json=body).raise_for_status()
        options = {"num_predict": 1}
        body = {"model": SIM, "prompt": "x", "stream": False, "options": options}
        try:
            with mesh.http(made["secret"]) as user:
                assert user.post("/api/generate", json=body).status_code == 200
                reply = user.post("/api/generate", json=body | {"model": f"{SIM}:latest"})
            assert reply.status_code == 429
            assert reply.json().keys() == {"error"}
            assert int(reply.headers["retry-after"]) > 0
        finally:
            admin.delete(
                "/mesh/v1/limits",
                params={"scope.key_id": scope["key_id"], "scope.model": SIM},
            ).raise_for_status()


def test_usage_is_in_the_ledger(mesh: Mesh, engine: str, client: ollama.Client) -> None:
    answer = client.generate(SIM, "count me", options={"num_predict": 7})
    with mesh.http() as http:

        def events() -> list[dict[str, object]]:
            page = http.get("/mesh/v1/usage/events", params={"page_size": 5}).json()["events"]
            return [e for e in page if e["model"] == SIM and e.get("completion_tokens") == 7]

        event = mesh.wait("ledger", events)[0]
    assert answer.eval_count == 7
    assert event["prompt_tokens"] == answer.prompt_eval_count


def test_an_ollama_behind_the_mesh_tells_its_own_times(
    native: ScriptedOllama, client: ollama.Client
) -> None:
    options = {"top_k": 3, "repeat_penalty": 1.3, "num_ctx": 4096}
    whole = client.chat(NATIVE, MESSAGES, options=options)
    (last,) = [p for p in client.chat(NATIVE, MESSAGES, stream=True) if p.done]
    for answer in (whole, last):
        assert (answer.prompt_eval_count, answer.eval_count) == (11, 3)
        assert (answer.load_duration, answer.prompt_eval_duration) == (3_000_000, 5_000_000)
        assert answer.eval_duration == 7_000_000
    assert whole.message.content == "Hello there!"
    asked = next(body for path, body in native.asked if path == "/api/chat")
    assert asked["options"] == {"top_k": 3, "repeat_penalty": 1.3}


def test_a_pull_goes_to_the_node_with_ollama(
    mesh: Mesh, native: ScriptedOllama, client: ollama.Client
) -> None:
    said = [step.model_dump(exclude_none=True) for step in client.pull("fresh", stream=True)]
    assert {"status": "pulling manifest"} in said
    assert {"status": "pulling x", "total": 10, "completed": 4} in said
    assert [step["status"] for step in said].count("success") == 1
    assert said[-1] == {"status": "success"}
    assert client.pull("fresh").status == "success"
    names = [body["model"] for path, body in native.asked if path == "/api/pull"]
    assert names == ["fresh", "fresh"]
    mesh.wait("the model", lambda: "fresh" in {m.model for m in client.list().models})


def test_what_hits_the_wire_is_lines(mesh: Mesh, engine: str) -> None:
    body = {"model": SIM, "messages": MESSAGES, "options": {"num_predict": 100}}
    with mesh.http() as http, http.stream("POST", "/api/chat", json=body) as reply:
        times = []
        for line in reply.iter_lines():
            json.loads(line)
            times.append(time.monotonic())
    # As they are made, not at the end: 100 tokens take 1 s.
    assert times[-1] - times[0] > 0.1
