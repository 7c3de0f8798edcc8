"""What is fetched of an issuer, and what is not."""

import gzip
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx2
import pytest

from services.auth.oidc.fetching import Document, Fetcher, FetchError
from unit.auth.oidc_samples import URL, settings

DISCOVERY = f"{URL}/.well-known/openid-configuration"
KEYS = f"{URL}/keys"
FOUND = {"issuer": URL, "jwks_uri": KEYS}


async def in_parts(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def fetch(answers: Mapping[str, Any], **fields: Any) -> tuple[Document, list[str]]:
    """Fetches from a web that has these pages, and no others; returns what was asked for."""
    asked: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(str(request.url))
        assert "authorization" not in request.headers
        page = answers.get(str(request.url), httpx2.Response(404))
        if isinstance(page, Exception):
            raise page
        if isinstance(page, AsyncIterator):
            return httpx2.Response(200, content=page)
        if not isinstance(page, httpx2.Response):
            page = httpx2.Response(200, json=page)
        return httpx2.Response(
            page.status_code, headers=page.headers, content=in_parts(page.content)
        )

    fetcher = Fetcher(settings(**fields), httpx2.MockTransport(answer))
    try:
        return await fetcher.key_set(), asked
    finally:
        await fetcher.close()


async def refused(answers: Mapping[str, Any], **fields: Any) -> str:
    with pytest.raises(FetchError) as caught:
        await fetch(answers, **fields)
    return str(caught.value)


def redirect(target: str) -> httpx2.Response:
    return httpx2.Response(302, headers={"location": target})


async def test_discovery_says_where_the_keys_are() -> None:
    found, asked = await fetch({DISCOVERY: FOUND, KEYS: {"keys": []}})
    assert found == Document({"keys": []}, None)
    assert asked == [DISCOVERY, KEYS]


async def test_a_slash_at_the_end_of_the_issuer_is_not_doubled() -> None:
    answers = {DISCOVERY: {**FOUND, "issuer": f"{URL}/"}, KEYS: {"keys": []}}
    _, asked = await fetch(answers, issuer=f"{URL}/")
    assert asked == [DISCOVERY, KEYS]


async def test_settings_say_where_the_keys_are() -> None:
    _, asked = await fetch({"https://keys.example/a?b": {}}, jwks_uri="https://keys.example/a?b")
    assert asked == ["https://keys.example/a?b"]


@pytest.mark.parametrize(
    "said",
    [
        {**FOUND, "issuer": "https://other.example"},
        {**FOUND, "issuer": f"{URL}/"},
        {"jwks_uri": KEYS},
        {"issuer": URL},
        {**FOUND, "jwks_uri": 1},
        {**FOUND, "jwks_uri": "http://issuer.example/keys"},
        {**FOUND, "jwks_uri": "file:///etc/passwd"},
        {**FOUND, "jwks_uri": "https://user:password@issuer.example/keys"},
        {**FOUND, "jwks_uri": "/keys"},
        {**FOUND, "jwks_uri": "https://[broken"},
        [],
    ],
)
async def test_discovery_that_is_not_believed(said: Any) -> None:
    assert await refused({DISCOVERY: said, KEYS: {"keys": []}})


async def test_redirects_stay_with_the_host() -> None:
    found, _ = await fetch(
        {DISCOVERY: redirect("/d"), f"{URL}/d": FOUND, KEYS: redirect(f"{URL}/k"), f"{URL}/k": {}}
    )
    assert found.content == {}
    for target in (
        *("https://other.example/keys", "http://issuer.example/keys", "//other.example/keys"),
        *("https://issuer.example:8443/keys", "http://127.0.0.1/keys", "file:///etc/passwd"),
    ):
        assert await refused({DISCOVERY: FOUND, KEYS: redirect(target), target: {}})
    assert "too many" in await refused({DISCOVERY: FOUND, KEYS: redirect(KEYS)})


@pytest.mark.parametrize(
    "answer",
    [
        httpx2.Response(404),
        httpx2.Response(500, json={"keys": []}),
        httpx2.Response(204),
        httpx2.Response(200, content=b""),
        httpx2.Response(200, content=b"{"),
        httpx2.Response(200, content=b"[]"),
        httpx2.Response(200, content=b"\xff"),
        httpx2.Response(200, content=b"[" * 100_000),
        httpx2.Response(
            200, content=gzip.compress(b'{"keys": []}'), headers={"content-encoding": "gzip"}
        ),
        httpx2.ConnectError("no route"),
        httpx2.ReadTimeout("slow"),
        httpx2.RemoteProtocolError("no HTTP"),
        OSError("broken"),
        TimeoutError(),
    ],
)
async def test_answers_that_are_none(answer: Any) -> None:
    assert await refused({DISCOVERY: FOUND, KEYS: answer})


async def test_an_answer_may_have_a_mebibyte() -> None:
    sent = 0

    async def parts() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(100):
            sent += 1
            yield b" " * 65536

    why = await refused({DISCOVERY: FOUND, KEYS: parts()})
    assert "1048576" in why
    assert sent == 17
    large = json.dumps({"keys": [], "pad": "p" * 1_000_000}).encode()
    found, _ = await fetch({DISCOVERY: FOUND, KEYS: httpx2.Response(200, content=large)})
    assert found.content["keys"] == []


@pytest.mark.parametrize(
    ("header", "max_age_s"),
    [
        ("max-age=300", 300),
        ("public, Max-Age=300, must-revalidate", 300),
        ("no-cache", None),
        ("", None),
        ("x-max-age=1", None),
        ("s-maxage=1", None),
        ("max-age=-1", None),
        ("max-age=99999999999", None),
    ],
)
async def test_for_how_long_keys_are_fresh(header: str, max_age_s: int | None) -> None:
    page = httpx2.Response(200, json={}, headers={"cache-control": header})
    found, _ = await fetch({DISCOVERY: FOUND, KEYS: page})
    assert found.max_age_s == max_age_s
