"""Whatever stands where a credential belongs: only a valid key opens the door."""

import base64
import hashlib
import hmac
import json
import random
import time

import pytest

from security.target import CANARY, ROUNDS, Target, dice, statuses

REFUSED = {400, 401, 431}
SCHEMES = (b"Bearer", b"bearer", b"BEARER", b"Basic", b"Digest", b"Token", b"", b"Bearer Bearer")
_GLUE = (b" ", b"  ", b"\t", b"", b":", b"=", b",")


def call(target: Target, headers: list[tuple[bytes, bytes]]) -> set[int]:
    body = json.dumps({"display_name": CANARY, "role": "ROLE_ADMIN"}).encode()
    lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
    start = b"POST /mesh/v1/keys HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
    framing = b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    return set(statuses(target.raw(start + lines + framing + body, 10)))


def noise(rng: random.Random, longest: int = 200) -> bytes:
    # Any byte that may stand in a header's value, and some that may not.
    size = rng.choice((0, 1, 7, 43, 46, 47, longest))
    return bytes(rng.choice((*range(0x20, 0x7F), *range(0x80, 0x100), 9)) for _ in range(size))


def test_the_admin_key_itself_does_open_it(target: Target) -> None:
    """The attacks below fail for what they send, not for how."""
    lines = (
        f"GET /mesh/v1/keys HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {target.mesh.admin_key}"
    )
    assert statuses(target.raw(lines.encode() + b"\r\nconnection: close\r\n\r\n", 10)) == [200]


def test_noise(target: Target) -> None:
    rng = dice("noise")
    for _ in range(ROUNDS):
        count = rng.choice((1, 1, 1, 2, 3))
        headers = [
            (
                rng.choice((b"authorization", b"Authorization", b"x-api-key", b"X-API-KEY")),
                rng.choice(SCHEMES) + rng.choice(_GLUE) + noise(rng, rng.choice((200, 20000))),
            )
            for _ in range(count)
        ]
        seen = call(target, headers)
        assert seen <= REFUSED, (headers, seen)
        assert seen


def test_bytes_that_no_header_may_have(target: Target) -> None:
    key = target.user_key.encode()
    for byte in (b"\0", b"\n", b"\r", b"\x01", b"\x7f", b"\x0b", b"\r\n "):
        for value in (b"Bearer " + byte + key, b"Bearer " + key[:9] + byte + key[9:]):
            assert call(target, [(b"authorization", value)]) <= REFUSED | {403}


def mutations(key: str) -> list[str]:
    """Returns what is nearly a key."""
    body = key.removeprefix("im-")
    return [
        key[:-1],
        key + "a",
        key + "," + key,
        key + " " + key,
        key.swapcase(),
        key.upper(),
        body,
        "im_" + body,
        "ｉｍ-" + body,
        "im-" + body[:-1] + ("a" if body[-1] != "a" else "b"),
        "im-" + "a" * 43,
        f'"{key}"',
        f"im-{body[::-1]}",
        key.replace("im-", "im-%00"),
        "".join(f"%{ord(c):02x}" for c in key),
        base64.b64encode(key.encode()).decode(),
        "' OR 1=1 --",
        "${jndi:ldap://127.0.0.1/a}",
        "../../" + key,
        "*",
        "null",
        "undefined",
    ]


def test_what_is_nearly_the_admin_key(target: Target) -> None:
    for each in mutations(target.mesh.admin_key):
        for name, value in ((b"authorization", f"Bearer {each}"), (b"x-api-key", each)):
            assert call(target, [(name, value.encode())]) <= REFUSED, each


def test_two_credentials_do_not_make_one(target: Target) -> None:
    user, admin = target.user_key.encode(), target.mesh.admin_key.encode()
    half = len(admin) // 2
    for headers in (
        [(b"authorization", b"Bearer " + user), (b"authorization", b"Bearer " + user)],
        [(b"authorization", b"Bearer " + admin[:half]), (b"authorization", admin[half:])],
        [(b"x-api-key", admin[:half]), (b"x-api-key", admin[half:])],
        [(b"authorization", b"Bearer wrong"), (b"x-api-key", admin)],
        [(b"authorization", b"Bearer"), (b"x-api-key", admin)],
        [(b"cookie", b"authorization=Bearer " + admin)],
        [(b"proxy-authorization", b"Bearer " + admin)],
        [(b"x-forwarded-authorization", b"Bearer " + admin)],
    ):
        assert call(target, headers) <= REFUSED, headers
    # A key that is valid, of a role that may not, beside claims of more.
    claims = [(b"x-mesh-role", b"admin"), (b"x-mesh-key-id", b"key_bootstrapadmin")]
    assert call(target, [(b"authorization", b"Bearer " + user), *claims]) == {403}


def _part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def tokens() -> list[str]:
    """Returns JSON web tokens that nobody issued."""
    now = int(time.time())
    claims = {
        "iss": "https://issuer.example.com",
        "aud": "infermesh",
        "sub": "admin",
        "role": "admin",
        "roles": ["admin"],
        "tenant": "default",
        "exp": now + 600,
        "iat": now,
    }
    made = []
    for algorithm in ("none", "None", "NONE", "nOnE", "", "HS256", "HS512", "RS256", "ES256", "\0"):
        head = {"alg": algorithm, "typ": "JWT", "kid": "../../../../dev/null"}
        signed = f"{_part(head)}.{_part(claims)}"
        mac = hmac.digest(b"", signed.encode(), hashlib.sha256)
        signature = base64.urlsafe_b64encode(mac).decode().rstrip("=")
        made += [f"{signed}.", f"{signed}.{signature}", signed, f"{signed}.{'A' * 86}"]
    head = {
        "alg": "RS256",
        "jku": "http://127.0.0.1:1/keys",
        "x5u": "http://127.0.0.1:1/",
        "jwk": {},
    }
    for changes in (
        {"exp": now - 600},
        {"nbf": now + 6000},
        {"exp": "never"},
        {"exp": -1},
        {"exp": 1e400},
        {"sub": "a" * 6000},
        {"aud": ["infermesh"] * 200},
        {"iss": {"a": [[[[[]]]]]}},
    ):
        made.append(f"{_part(head)}.{_part({**claims, **changes})}.AAAA")
    nested = made[0]
    for _ in range(6):
        nested = f"{_part({'alg': 'none', 'cty': 'JWT'})}.{_part(nested)}."
    deep = base64.urlsafe_b64encode(b"[" * 5000).decode().rstrip("=")
    return [*made, nested, f"{deep}.{deep}.", "..", "...", "a.b.c", f"{'A' * 9000}.{'A' * 9000}.A"]


@pytest.mark.parametrize("name", [b"authorization", b"x-api-key"])
def test_tokens_that_nobody_issued(target: Target, name: bytes) -> None:
    for token in tokens():
        value = token.encode() if name == b"x-api-key" else b"Bearer " + token.encode()
        assert call(target, [(name, value)]) <= REFUSED, token[:200]
