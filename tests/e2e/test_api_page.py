"""The reference at the front door: for everybody, without a key, and nothing else with it."""

import json

import httpx
import pytest

from e2e.mesh import CHAT, REPOSITORY, Mesh

API = REPOSITORY / "gen" / "api"


@pytest.mark.parametrize(
    ("path", "file", "kind"),
    [
        ("/openapi.json", "openapi.json", "application/json"),
        ("/docs", "index.html", "text/html; charset=utf-8"),
        ("/docs?from=x", "index.html", "text/html; charset=utf-8"),
        ("/docs/page.css", "page.css", "text/css; charset=utf-8"),
        ("/docs/page.js", "page.js", "text/javascript; charset=utf-8"),
    ],
)
def test_it_is_there_without_a_key(mesh: Mesh, path: str, file: str, kind: str) -> None:
    reply = httpx.get(mesh.url + path)
    assert reply.status_code == 200
    assert reply.content == (API / file).read_bytes()
    assert reply.headers["content-type"] == kind
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert httpx.head(mesh.url + path).status_code == 200


def test_the_page_may_run_its_own_script_and_no_other(mesh: Mesh) -> None:
    said = httpx.get(f"{mesh.url}/docs").headers["content-security-policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in said.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert "unsafe" not in said
    # Everything else keeps the stricter one.
    other = httpx.get(f"{mesh.url}/openapi.json").headers["content-security-policy"]
    assert other == "default-src 'none'; frame-ancestors 'none'"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/docs/"),
        ("GET", "/docs/../v1/models"),
        ("GET", "/docs/page.py"),
        ("GET", "/openapi.json/x"),
        ("POST", "/docs"),
        ("PUT", "/openapi.json"),
        ("GET", "/v1/models?x=/docs"),
    ],
)
def test_nothing_else_opens_with_it(mesh: Mesh, method: str, path: str) -> None:
    reply = httpx.request(method, mesh.url + path)
    assert reply.status_code == 401
    assert reply.json()["error"]["code"] == "invalid_api_key"


def test_models_of_a_key_and_of_an_alias(mesh: Mesh) -> None:
    split = {"alias": "team/chat:v1", "targets": [{"model": CHAT, "weight": 1}]}
    with mesh.http() as http:
        http.post("/mesh/v1/splits", json=split).raise_for_status()
        made = http.post(
            "/mesh/v1/keys",
            json={
                "display_name": "reader",
                "role": "ROLE_USER",
                "rules": {"allowed_models": ["team/*", CHAT]},
            },
        ).raise_for_status()
        try:
            with mesh.http(made.json()["secret"]) as limited:
                listed = mesh.wait("alias", lambda: _with_alias(limited))
                assert [each["id"] for each in listed] == [CHAT, "team/chat:v1"]
                assert listed[1]["alias_for"] == [CHAT]
                assert listed[1]["context_length"] == listed[0]["context_length"]
                for name in ("team/chat:v1", "team%2Fchat:v1"):
                    got = limited.get(f"/v1/models/{name}").raise_for_status().json()
                    assert got["id"] == "team/chat:v1"
                hidden = limited.get("/v1/models/all-minilm-l6-v2")
                assert hidden.status_code == 404
                assert hidden.json()["error"]["code"] == "model_not_found"
            assert len(http.get("/v1/models").json()["data"]) > 2
        finally:
            http.delete("/mesh/v1/splits/team%2Fchat:v1").raise_for_status()
            http.delete(f"/mesh/v1/keys/{made.json()['key']['key_id']}").raise_for_status()


def _with_alias(http: httpx.Client) -> list[dict[str, object]]:
    data = http.get("/v1/models").raise_for_status().json()["data"]
    return data if any(each["alias_for"] for each in data) else []


def test_the_document_names_only_what_answers(mesh: Mesh) -> None:
    document = json.loads((API / "openapi.json").read_text())
    with mesh.http() as http:
        for path, item in document["paths"].items():
            if "get" in item and "{" not in path:
                assert http.get(path).status_code != 404, path
