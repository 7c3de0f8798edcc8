"""A part that dies: who notices, and who does not."""

import time

import httpx
import pytest

from e2e.mesh import CHAT, EMBED, Mesh

BODY = {"model": CHAT, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}


@pytest.mark.parametrize("part", ["routing", "registry", "metrics", "embeddings", "redis"])
def test_chats_go_on_without(mesh: Mesh, part: str) -> None:
    with mesh.http() as http:
        assert http.post("/v1/chat/completions", json=BODY).status_code == 200
        for _ in range(3):
            mesh.kill(part)
            for _ in range(4):
                reply = http.post("/v1/chat/completions", json=BODY)
                assert reply.status_code == 200, (part, reply.text)
            mesh.wait(f"{part} back", lambda: mesh.part(part).is_running())
    mesh.wait_whole()


def test_embeddings_go_on_without_their_cache(mesh: Mesh) -> None:
    redis = mesh.part("redis")
    with mesh.http() as http:
        body = {"model": EMBED, "input": "without a cache"}
        redis.suspend()  # worse than dead: it takes connections and says nothing
        try:
            for _ in range(3):
                assert http.post("/v1/embeddings", json=body).status_code == 200
        finally:
            redis.resume()


def test_without_routing_an_unknown_model_is_a_503(mesh: Mesh) -> None:
    routing = mesh.part("routing")
    with mesh.http() as http:
        routing.suspend()
        try:
            assert http.post("/v1/chat/completions", json=BODY).status_code == 200
            reply = http.post("/v1/chat/completions", json={**BODY, "model": "gpt-9"})
            assert (reply.status_code, reply.json()["error"]["code"]) == (
                503,
                "service_unavailable",
            )
        finally:
            routing.resume()
    mesh.wait_whole()


def test_nobody_gets_in_without_auth(mesh: Mesh) -> None:
    old = mesh.kill("auth")
    with mesh.http() as http:
        statuses = set()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            good = http.post("/v1/chat/completions", json=BODY).status_code
            bad = httpx.get(f"{mesh.url}/v1/models", headers={"authorization": "Bearer im-x"})
            assert bad.status_code in (401, 503)
            statuses.add(good)
            if good == 200:
                break
        assert statuses == {503, 200}, statuses
    assert mesh.part("auth").pid != old
    mesh.wait_whole()


@pytest.mark.parametrize("part", ["postgres", "envoy"])
def test_it_comes_back_by_itself(mesh: Mesh, part: str) -> None:
    mesh.kill(part)
    mesh.wait_whole()
    with mesh.http() as http:
        mesh.wait("a chat", lambda: http.post("/v1/chat/completions", json=BODY).status_code == 200)
        mesh.wait(
            "a new key",
            lambda: http.post("/mesh/v1/keys", json={"display_name": part}).status_code == 200,
        )


def test_existing_keys_work_while_postgresql_is_down(mesh: Mesh) -> None:
    with mesh.http() as http:
        postgres = mesh.part("postgres")
        everything = [postgres, *postgres.children(recursive=True)]
        for process in everything:
            process.suspend()
        try:
            assert http.post("/v1/chat/completions", json=BODY).status_code == 200
            assert http.get("/v1/models").status_code == 200
            reply = http.post("/mesh/v1/keys", json={"display_name": "no"})
            assert (reply.status_code, reply.json()["error"]["code"]) in (
                (503, "store_unavailable"),
                (503, "service_unavailable"),  # Envoy's own limit on the call came first
                (504, "service_unavailable"),
            )
        finally:
            for process in everything:
                process.resume()
    mesh.wait_whole()
