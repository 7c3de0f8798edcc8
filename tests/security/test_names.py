"""What people name things: kept as it is said, or refused, and never run."""

import json
import unicodedata
from pathlib import Path

import pytest

from e2e.mesh import CHAT
from security.target import Target

NASTY = [
    "'; DROP SCHEMA auth CASCADE; --",
    "' OR '1'='1",
    "$$; SELECT pg_sleep(60); --",
    "\\'; --",
    "%s%s%n%x",
    "{0.__class__.__mro__}",
    "{{7*7}}",
    "${jndi:ldap://127.0.0.1/a}",
    "$(touch /tmp/infermesh-owned)",
    "`id`",
    "x\nadmin logged in",
    '"}\n{"level":"info","message":"forged-line"}',
    "x\r\nset-cookie: forged=1",
    "\x1b[2J\x1b]0;owned\x07",
    '=HYPERLINK("http://127.0.0.1")',
    "@SUM(1)",
    "+1",
    "-1",
    "<script>alert(1)</script>",
    "redis.call('flushall')",
    "*1\r\n$8\r\nFLUSHALL\r\n",
    "]] os.exit() --[[",
    "%REQ(authorization)%",
    "../../../../etc/passwd",
    "a\0b",
    "\u202eevil",
    "\ud800",
    "\u2028",
    "a" * 5000,
    "",
    "😀" * 60,
]

FORMS = [
    ("/mesh/v1/keys", lambda text: {"display_name": text}),
    ("/mesh/v1/keys", lambda text: {"display_name": "x", "tenant": text}),
    ("/mesh/v1/keys", lambda text: {"display_name": "x", "project": text}),
    ("/mesh/v1/keys", lambda text: {"display_name": "x", "rules": {"labels": {"l": text}}}),
    ("/mesh/v1/keys", lambda text: {"display_name": "x", "rules": {"labels": {text: "v"}}}),
    ("/mesh/v1/keys", lambda text: {"display_name": "x", "rules": {"allowed_models": [text]}}),
    ("/mesh/v1/keys", lambda text: {"display_name": "x", "rules": {"networks": [text]}}),
    ("/mesh/v1/keys", lambda text: {"display_name": "x", "rules": {"cors_origins": [text]}}),
    ("/mesh/v1/tenants", lambda text: {"tenant": {"tenant": text}}),
    ("/mesh/v1/tenants", lambda text: {"tenant": text, "display_name": text}),
    ("/mesh/v1/join-tokens", lambda text: {"display_name": text}),
    ("/mesh/v1/policies", lambda text: {"policy": {"name": text}, "name": text}),
    ("/mesh/v1/splits", lambda text: {"split": {"model": text}, "model": text}),
    ("/v1/chat/completions", lambda text: {"model": text, "messages": [{"role": "user"}]}),
    (
        "/v1/chat/completions",
        lambda text: {
            "model": CHAT,
            "messages": [{"role": "user", "content": "x"}],
            "max_tokens": 1,
            "user": text,
            "session_id": text,
        },
    ),
]


@pytest.mark.parametrize("index", range(len(FORMS)))
def test_names(target: Target, index: int) -> None:
    path, form = FORMS[index]
    with target.mesh.http() as http:
        for text in NASTY:
            body = json.dumps(form(text)).encode()
            reply = http.post(path, content=body, headers={"content-type": "application/json"})
            assert reply.status_code < 500, (path, text, reply.text)
            assert "set-cookie" not in reply.headers
            if reply.status_code != 200 or path != "/mesh/v1/keys":
                continue
            made = reply.json()["key"]
            again = http.get(f"/mesh/v1/keys/{made['key_id']}").json()
            assert again["display_name"] == form(text)["display_name"], text
            http.delete(f"/mesh/v1/keys/{made['key_id']}").raise_for_status()
    assert not Path("/tmp/infermesh-owned").exists()


def test_queries(target: Target) -> None:
    with target.mesh.http() as http:
        for text in NASTY:
            safe = text.encode("utf-8", "surrogatepass")
            for path, field in (
                ("/mesh/v1/keys", "page_token"),
                ("/mesh/v1/keys", "page_size"),
                ("/mesh/v1/audit/events", "key_id"),
                ("/mesh/v1/audit/events", "rpc_prefix"),
                ("/mesh/v1/usage", "model"),
            ):
                reply = http.get(path, params={field: safe})
                assert reply.status_code < 500, (path, field, text, reply.text)


def test_logs_have_one_json_a_line(target: Target) -> None:
    """Runs after the names above have been through every service."""
    for name in ("auth", "registry", "routing", "metrics", "embeddings", "node-1", "envoy"):
        lines = (target.mesh.state_dir / "logs" / f"{name}.log").read_text().splitlines()
        for line in lines:
            if name == "envoy" and line.startswith("["):
                continue  # Envoy's own words of its start and end
            assert isinstance(json.loads(line), dict), (name, line)
            assert json.loads(line).get("message") != "forged-line"
            assert target.mesh.admin_key not in line
            assert target.user_key not in line


def look_alikes() -> list[str]:
    """Returns what looks like the name of the chat model, or becomes it when it is tidied up."""
    wide = "".join(chr(ord(c) + 0xFEE0) if c.isalnum() else c for c in CHAT)
    assert unicodedata.normalize("NFKC", wide) == CHAT
    return [
        wide,
        CHAT.replace("o", "о"),
        CHAT.replace("m", "ⅿ"),
        CHAT.replace("-", "‐"),
        CHAT.replace("-", "\u00ad-"),
        CHAT.upper(),
        CHAT.title(),
        CHAT + "\u200b",
        "\u200b" + CHAT,
        CHAT[:3] + "\u200d" + CHAT[3:],
        "\ufeff" + CHAT,
        CHAT + "\0",
        CHAT + "\0x",
        CHAT + " ",
        " " + CHAT,
        CHAT + ".",
        CHAT + "/",
        CHAT + "/.",
        "./" + CHAT,
        "x/../" + CHAT,
        CHAT + "\n",
        CHAT + "\t",
        CHAT.replace("2", "%32"),
        CHAT.replace("-", "%2d"),
        CHAT + "%00",
        CHAT + "?",
        CHAT + "#",
        CHAT + ",x",
        "x," + CHAT,
        CHAT + ":latest",
        CHAT + "@sha256",
        "*",
        CHAT[:-1] + "*",
        "[s]" + CHAT[1:],
        CHAT + "\u0301",
    ]


def test_look_alikes_of_a_model(target: Target) -> None:
    """Nothing is tidied up on the way: neither a key that may nor one that may not gets it so."""
    with target.mesh.http() as http:
        made = http.post(
            "/mesh/v1/keys",
            json={"display_name": "all but one", "rules": {"denied_models": [CHAT]}},
        ).json()
        assert target.chat(made["secret"]).status_code == 404
        for name in look_alikes():
            for key in (target.user_key, made["secret"], target.mesh.admin_key):
                reply = target.chat(key, model=name)
                assert 400 <= reply.status_code < 500, (name, reply.status_code, reply.text)
        http.delete(f"/mesh/v1/keys/{made['key']['key_id']}")


def test_overlong_utf8_in_a_model(target: Target) -> None:
    for encoded in (
        b"smollm2\xc0\xad135m",
        b"smollm2\xe0\x80\xad135m",
        b"\xf8\x88\x80\x80\xad",
        b"\xff",
    ):
        body = b'{"model":"%s","messages":[{"role":"user","content":"x"}]}' % encoded
        with target.mesh.http(target.user_key) as http:
            reply = http.post(
                "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
            )
        assert 400 <= reply.status_code < 500, reply.text
