"""What can be set of an issuer."""

from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import ValidationError

from services.auth.settings import AuthSettings
from services.kit.settings import load
from unit.auth.oidc_samples import ALGORITHMS, SETTINGS, settings


def problems(**fields: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        settings(**fields)
    return "; ".join(str(error["loc"]) + error["msg"] for error in caught.value.errors())


def test_what_holds_where_nothing_is_said() -> None:
    made = settings()
    assert made.audience == ("infermesh",)
    assert made.algorithms == frozenset(ALGORITHMS)
    assert (made.leeway_s, made.max_lifetime_s, made.keys_max_age_s) == (30, 86400, 86400)


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "Acme"},
        {"name": "a:b"},
        {"name": "n" * 33},
        {"name": "acme\n"},
        {"issuer": "http://issuer.example"},
        {"issuer": "http://127.0.0.1.example"},
        {"issuer": "ftp://issuer.example"},
        {"issuer": "issuer.example"},
        {"issuer": "https://"},
        {"issuer": "https://user@issuer.example"},
        {"issuer": "https://issuer.example?a"},
        {"issuer": "https://issuer.example:port"},
        {"jwks_uri": "http://issuer.example/keys"},
        {"audience": []},
        {"audience": ""},
        {"audience": ["a", ""]},
        {"algorithms": []},
        {"algorithms": ["HS256"]},
        {"algorithms": ["none"]},
        {"algorithms": ["RS256", "HS512"]},
        {"tenant": "acme"},
        {"tenant_claim": None},
        {"tenant_claim": None, "tenant": "Acme"},
        {"tenant_claim": ""},
        {"roles": {}},
        {"role_claim": None},
        {"role_claim": None, "roles": {}, "default_role": None},
        {"roles": {"machines": "node"}},
        {"roles": {"machines": "join"}},
        {"default_role": "node"},
        {"default_role": "root"},
        {"leeway_s": -1},
        {"leeway_s": 301},
        {"max_lifetime_s": 0},
        {"keys_max_age_s": 0},
        {"ca_file": "/nowhere/ca.pem"},
        {"audiences": ["typo"]},
    ],
)
def test_what_cannot_be_set(fields: dict[str, Any]) -> None:
    assert problems(**fields)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9000/realms/a", "http://[::1]:9", "http://localhost"]
)
def test_plain_http_on_this_machine(url: str) -> None:
    assert settings(issuer=url).issuer == url


def environment(monkeypatch: pytest.MonkeyPatch, issuers: str) -> None:
    for name, value in (
        ("DATABASE_URL", "postgresql+asyncpg://x"),
        ("KEY_HASH_SECRET", "s" * 32),
        ("OIDC_ISSUERS", issuers),
    ):
        monkeypatch.setenv(f"INFERMESH_{name}", value)


@pytest.mark.parametrize("empty", ["", "[]"])
def test_there_may_be_no_issuers(monkeypatch: pytest.MonkeyPatch, empty: str) -> None:
    environment(monkeypatch, empty)
    assert load(AuthSettings).oidc_issuers == ()


def test_issuers_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, orjson.dumps([SETTINGS]).decode())
    assert load(AuthSettings).oidc_issuers == (settings(),)


@pytest.mark.parametrize(
    ("issuers", "said"),
    [
        ("[{", "INFERMESH_OIDC_ISSUERS: "),
        ("acme", "INFERMESH_OIDC_ISSUERS: "),
        ("{}", "INFERMESH_OIDC_ISSUERS: "),
        (orjson.dumps([{**SETTINGS, "name": "A"}]).decode(), "INFERMESH_OIDC_ISSUERS_0_NAME: "),
        (orjson.dumps([SETTINGS, SETTINGS]).decode(), "two issuers have the same name"),
        (
            orjson.dumps([SETTINGS, {**SETTINGS, "name": "b"}]).decode(),
            "two issuers have the same issuer",
        ),
    ],
)
def test_a_mistake_is_one_line_and_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], issuers: str, said: str
) -> None:
    environment(monkeypatch, issuers)
    with pytest.raises(SystemExit) as caught:
        load(AuthSettings)
    assert caught.value.code == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.count("\n") == 1


def test_a_certificate_file(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.touch()
    assert settings(ca_file=str(path)).ca_file == path
