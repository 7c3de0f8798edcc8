"""The official Ollama clients for Python and JavaScript, unmodified, and what they meet."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import ollama
import pytest
from pydantic import BaseModel

from e2e.mesh import CHAT, EMBED, REPOSITORY, Mesh

MESSAGES = [
    {
        "role": "system",
        "content": "You are a helpful assistant. Reply in one short English sentence.",
    },
    {"role": "user", "content": "What is the capital of France?"},
]
OPTIONS = {"temperature": 0, "num_predict": 24}
QUESTION = {"model": CHAT, "messages": MESSAGES}


@pytest.fixture
def client(mesh: Mesh) -> Iterator[ollama.Client]:
    headers = {"authorization": f"Bearer {mesh.admin_key}"}
    with ollama.Client(host=mesh.url, headers=headers, timeout=60) as client:
        yield client


def refused(client: httpx.Client, path: str, **fields: Any) -> tuple[int, str]:
    """Returns status and message of a refusal, which has Ollama's form."""
    reply = client.post(path, json=fields)
    assert reply.headers["content-type"] == "application/json"
    said = reply.json()
    assert said.keys() == {"error"}, said
    return reply.status_code, said["error"]


def test_chat_in_one_piece_and_streamed_say_the_same(client: ollama.Client) -> None:
    whole = client.chat(**QUESTION, options=OPTIONS)
    assert whole.model == CHAT
    assert "Paris" in whole.message.content
    assert whole.done
    assert whole.done_reason in ("stop", "length")
    pieces = list(client.chat(**QUESTION, options=OPTIONS, stream=True))
    assert "".join(piece.message.content for piece in pieces) == whole.message.content
    assert len(pieces) > 3
    last = pieces[-1]
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert last.done_reason == whole.done_reason
    assert (last.prompt_eval_count, last.eval_count) == (whole.prompt_eval_count, whole.eval_count)
    assert last.eval_count == len(pieces) - 1 or last.eval_count > 0
    for answer in (whole, last):
        # The engine's own measures fit into the whole.
        assert 0 < answer.prompt_eval_duration + answer.eval_duration <= answer.total_duration


def test_a_body_that_says_nothing_of_streams_streams(mesh: Mesh) -> None:
    with mesh.http() as http:
        body = {"model": CHAT, "prompt": "Say hi", "options": OPTIONS}
        with http.stream("POST", "/api/generate", json=body) as reply:
            assert reply.headers["content-type"] == "application/x-ndjson"
            said = [json.loads(line) for line in reply.iter_lines()]
        assert len(said) > 1
        assert said[-1]["done"]
        reply = http.post("/api/generate", json=body | {"stream": False})
        assert reply.headers["content-type"] == "application/json; charset=utf-8"
        assert reply.json()["response"] == "".join(each["response"] for each in said)


@pytest.mark.parametrize("kind", [None, "application/x-www-form-urlencoded"])
def test_a_body_need_not_say_that_it_is_json(mesh: Mesh, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    body = {"model": CHAT, "prompt": "Say hi", "options": OPTIONS}
    with mesh.http() as http:
        reply = http.post("/api/generate", content=json.dumps(body), headers=headers)
        assert reply.status_code == 200, reply.text
        reply = http.post("/api/pull", content=json.dumps({"model": CHAT}), headers=headers)
        assert reply.json() == {"status": "success"}


def test_generate_with_a_template_and_without(client: ollama.Client) -> None:
    templated = client.generate(
        CHAT, MESSAGES[1]["content"], system=MESSAGES[0]["content"], options=OPTIONS
    )
    assert "Paris" in templated.response
    raw = client.generate(CHAT, "The capital of France is", raw=True, options=OPTIONS)
    assert "Paris" in raw.response
    pieces = list(
        client.generate(
            CHAT,
            MESSAGES[1]["content"],
            system=MESSAGES[0]["content"],
            options=OPTIONS,
            stream=True,
        )
    )
    assert "".join(piece.response for piece in pieces) == templated.response
    assert (pieces[-1].done, pieces[-1].eval_count) == (True, templated.eval_count)
    assert client.generate(CHAT, "").done_reason == "load"


class Country(BaseModel):
    capital: str


def test_an_answer_keeps_to_a_schema(client: ollama.Client) -> None:
    answer = client.chat(
        **QUESTION,
        format=Country.model_json_schema(),
        options={"temperature": 0, "num_predict": 60},
    )
    assert Country.model_validate_json(answer.message.content)


def test_latest_is_the_model_itself(client: ollama.Client, mesh: Mesh) -> None:
    answer = client.chat(f"{CHAT}:latest", MESSAGES, options={"num_predict": 2})
    assert answer.model == CHAT
    assert client.show(f"{CHAT}:latest").capabilities
    assert len(client.embed(f"{EMBED}:latest", "x").embeddings[0]) == 384


def test_embeddings(client: ollama.Client, mesh: Mesh) -> None:
    answer = client.embed(EMBED, ["one", "two"])
    assert [len(vector) for vector in answer.embeddings] == [384, 384]
    assert answer.prompt_eval_count > 0
    assert answer.total_duration > 0
    older = client.embeddings(EMBED, "one")
    assert list(older.embedding) == pytest.approx(list(answer.embeddings[0]))
    with mesh.openai() as other:
        same = other.embeddings.create(model=EMBED, input="one").data[0].embedding
    assert list(older.embedding) == pytest.approx(same, abs=1e-6)


def test_the_catalogue(client: ollama.Client) -> None:
    listed = {model.model: model for model in client.list().models}
    assert {CHAT, EMBED} <= listed.keys()
    assert listed[CHAT].modified_at is not None
    # What the mesh does not know it does not say.
    assert listed[CHAT].size is listed[CHAT].digest is None
    assert {CHAT, EMBED} <= {model.name for model in client.ps().models}
    shown = client.show(CHAT)
    assert "completion" in shown.capabilities
    assert shown.modelinfo["general.context_length"] > 0
    assert client.show(EMBED).capabilities == ["embedding"]
    with pytest.raises(ollama.ResponseError) as caught:
        client.show("no-such-model")
    assert caught.value.status_code == 404


def test_the_version(mesh: Mesh) -> None:
    with mesh.http() as http:
        assert http.get("/api/version").json().keys() == {"version"}


def test_refusals_of_every_part_have_ollamas_form(client: ollama.Client, mesh: Mesh) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        client.chat("no-such-model", MESSAGES)  # routing
    assert caught.value.status_code == 404
    assert "no-such-model" in caught.value.error
    with pytest.raises(ollama.ResponseError) as caught:
        list(client.chat(**QUESTION, options={"rope_frequency_base": 2.0}, stream=True))  # node
    assert caught.value.status_code == 400
    assert "rope_frequency_base" in caught.value.error
    with mesh.http("im-wrong") as stranger:  # auth
        assert refused(stranger, "/api/chat", **QUESTION)[0] == 401
        assert stranger.get("/api/tags").json().keys() == {"error"}
    with httpx.Client(base_url=mesh.url) as nobody:
        assert refused(nobody, "/api/generate", model=CHAT, prompt="x")[0] == 401
    with mesh.http() as http:
        assert refused(http, "/api/chat", messages=MESSAGES)[0] == 400  # auth: no model
        assert refused(http, "/api/nothing")[0] == 404
        assert refused(http, "/api/chat", model=CHAT, messages=[{"role": "x"}])[0] == 400
        assert refused(http, "/api/embed", model=EMBED, input="")[0] == 400  # embeddings
        long = "word " * 4000
        assert refused(http, "/api/embed", model=EMBED, input=long)[0] == 400
        for path in ("/api/create", "/api/copy", "/api/push"):
            status, message = refused(http, path, model=CHAT)
            assert (status, path in message) == (400, True)
        reply = http.request("DELETE", "/api/delete", json={"model": CHAT})
        assert (reply.status_code, reply.json().keys()) == (400, {"error"})
        big = b'{"model":"%b","prompt":"%b"}' % (CHAT.encode(), b"x" * (17 << 20))
        kind = {"content-type": "application/json"}
        reply = http.post("/api/generate", content=big, headers=kind)  # Envoy
        assert (reply.status_code, reply.json().keys()) == (413, {"error"})


def test_pull(client: ollama.Client, mesh: Mesh) -> None:
    # No node of this mesh has an Ollama; what is there is there.
    assert client.pull(CHAT).status == "success"
    assert [step.status for step in client.pull(CHAT, stream=True)] == ["success"]
    with pytest.raises(ollama.ResponseError) as caught:
        client.pull("qwen3:8b")
    assert caught.value.status_code == 400
    with mesh.http(make_key(mesh)) as user:
        assert refused(user, "/api/pull", model=CHAT)[0] == 403


def test_a_key_that_is_bound_to_a_model(mesh: Mesh) -> None:
    with mesh.http(make_key(mesh, rules={"allowed_models": [CHAT]})) as bound:
        options = {"num_predict": 2}
        fine = {"model": f"{CHAT}:latest", "prompt": "hi", "stream": False, "options": options}
        assert bound.post("/api/generate", json=fine).status_code == 200
        assert refused(bound, "/api/embed", model=EMBED, input="x")[0] == 404


def make_key(mesh: Mesh, **rules: Any) -> str:
    with mesh.http() as http:
        reply = http.post("/mesh/v1/keys", json={"display_name": "user", **rules})
        assert reply.status_code == 200, reply.text
        secret: str = reply.json()["secret"]
        return secret


def test_the_snippet_of_the_documentation(mesh: Mesh) -> None:
    page = (REPOSITORY / "docs" / "clients.md").read_text()
    snippet = re.search(r"```python ollama\n(.*?)```", page, re.DOTALL)
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
    assert "Paris" in done.stdout
    assert "2 vectors of 384 numbers" in done.stdout


def test_javascript(mesh: Mesh) -> None:
    done = subprocess.run(
        ["node", "tests/clients/ollama_client.mjs", mesh.url, mesh.admin_key, CHAT, EMBED],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert "Paris" in got["chat"]
    assert got["streamed"] == got["chat"]
    assert got["chunks"] > 2
    assert got["done"] == [True, True, True]
    whole, streamed = got["generated"]
    assert whole == streamed != ""
    assert got["version"]
    assert got["pulled"] == ["success", "success"]
    assert got["kept"] == 400
    assert got["dimensions"] == [384, 384, 384]
    assert {CHAT, EMBED} <= set(got["models"])
    assert {CHAT, EMBED} <= set(got["running"])
    assert "completion" in got["capabilities"]
    assert got["refused"]["status"] == 404
    assert "no-such-model" in got["refused"]["message"]
    assert got["abort"] == "AbortError"
