"""Web pages: which ones browsers let call the mesh, and what they may read."""

import httpx
import pytest

from security.target import PAGE, Target

PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-os,x-api-key",
}
STRANGERS = [
    "https://evil.example.com",
    "http://app.example.com",
    "https://app.example.com:8443",
    "https://app.example.com.evil.com",
    "https://app.example.com, https://evil.example.com",
    "https://APP.example.com",
    "null",
    "*",
    "https://app.example.com/",
    "",
]


def test_a_preflight_needs_no_key(target: Target) -> None:
    for path in ("/v1/chat/completions", "/mesh/v1/keys", "/infermesh.auth.v1.KeyService/ListKeys"):
        reply = httpx.options(f"{target.mesh.url}{path}", headers={**PREFLIGHT, "origin": PAGE})
        assert reply.status_code == 200
        assert reply.headers["access-control-allow-origin"] == PAGE
        assert "POST" in reply.headers["access-control-allow-methods"]
        assert "x-stainless-os" in reply.headers["access-control-allow-headers"]
        assert "access-control-allow-credentials" not in reply.headers


def test_answers_and_refusals_can_be_read_by_the_page(target: Target) -> None:
    for key, status in ((target.user_key, 200), ("im-none", 401)):
        with target.mesh.http(key) as http:
            reply = http.get("/v1/models", headers={"origin": PAGE})
        assert reply.status_code == status
        assert reply.headers["access-control-allow-origin"] == PAGE
        exposed = reply.headers["access-control-expose-headers"].split(", ")
        assert {"x-request-id", "retry-after", "grpc-status", "grpc-message"} <= set(exposed)
        assert "x-ratelimit-remaining-tokens" in exposed


@pytest.mark.parametrize("origin", STRANGERS)
def test_other_pages_are_told_nothing(target: Target, origin: str) -> None:
    url = f"{target.mesh.url}/v1/models"
    reply = target.user.options(url, headers={**PREFLIGHT, "origin": origin, "authorization": ""})
    assert reply.status_code == 401
    assert not [name for name in reply.headers if name.startswith("access-control-")]
    reply = target.user.get("/v1/models", headers={"origin": origin})
    assert not [name for name in reply.headers if name.startswith("access-control-")]


def test_a_preflight_is_no_way_in(target: Target) -> None:
    """Only the question is answered without a key, whatever else the call carries."""
    headers = {"origin": PAGE, "access-control-request-method": "GET"}
    for method in ("GET", "POST", "DELETE"):
        reply = httpx.request(method, f"{target.mesh.url}/mesh/v1/keys", headers=headers)
        assert reply.status_code == 401
    reply = httpx.request(
        "OPTIONS", f"{target.mesh.url}/mesh/v1/keys", headers={"origin": PAGE}, content=b"{}"
    )
    assert reply.status_code == 401
