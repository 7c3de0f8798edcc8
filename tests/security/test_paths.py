"""However a path is written: what a key may do does not depend on it."""

import json
import random

from security.target import CANARY, ROUNDS, Target, dice, statuses

BODY = json.dumps({"display_name": CANARY, "role": "ROLE_ADMIN"}).encode()
SECRET = b'"prefix"'
"""Stands in every list of keys, and in no refusal."""

PATHS = [
    "/mesh/v1/keys",
    "//mesh/v1/keys",
    "/mesh//v1///keys",
    "/./mesh/v1/./keys",
    "/v1/../mesh/v1/keys",
    "/v1/models/../../mesh/v1/keys",
    "/v1/%2e%2e/mesh/v1/keys",
    "/v1/%2E%2E%2Fmesh/v1/keys",
    "/v1/..%2fmesh%2fv1%2fkeys",
    "/v1/%252e%252e/mesh/v1/keys",
    "/v1/..%252fmesh/v1/keys",
    "/v1/..%5cmesh/v1/keys",
    "/v1/..\\mesh\\v1\\keys",
    "/mesh\\v1\\keys",
    "/v1/..;/mesh/v1/keys",
    "/mesh/v1/keys;role=admin",
    "/mesh;/v1/keys",
    "/mesh/v1/keys/",
    "/mesh/v1/keys/.",
    "/mesh/v1/keys/x/..",
    "/mesh/v1/keys%2f",
    "/mesh/v1/keys%20",
    "/mesh/v1/keys%00",
    "/mesh/v1/keys%00.json",
    "/mesh/v1/keys%0d%0ax:y",
    "/mesh/v1/keys.json",
    "/mesh/v1/keys?",
    "/mesh/v1/keys?x=/v1/models",
    "/mesh/v1/keys?role=ROLE_ADMIN",
    "/mesh/v1/key%73",
    "/%6d%65%73%68/v1/keys",
    "/mesh%2fv1%2fkeys",
    "/MESH/V1/KEYS",
    "/mesh/v1/\u212aeys",
    "/mesh/v1/keyſ",
    "/v1/%c0%ae%c0%ae/mesh/v1/keys",
    "/v1/%e0%80%ae%e0%80%ae/mesh/v1/keys",
    "/v1/%uff0e%uff0e/mesh/v1/keys",
    "/mesh/v1/audit/events",
    "/mesh/v1/audit//events",
    "/infermesh.auth.v1.KeyService/ListKeys",
    "//infermesh.auth.v1.KeyService/ListKeys",
    "/v1/../infermesh.auth.v1.KeyService/ListKeys",
    "/infermesh.auth.v1.KeyService//ListKeys",
    "/infermesh.auth.v1.KeyService%2fListKeys",
    "/infermesh.auth.v1.KeyService/%4cistKeys",
    "/infermesh.inference.v1.InferenceService/../../infermesh.auth.v1.KeyService/ListKeys",
    "http://x/mesh/v1/keys",
    "http://127.0.0.1/mesh/v1/keys",
    "http://user:password@x/mesh/v1/keys",
    "https://x/mesh/v1/keys",
    "HTTP://x/mesh/v1/keys",
    "file:///mesh/v1/keys",
    "//127.0.0.1/mesh/v1/keys",
    "mesh/v1/keys",
    "*",
    "/v1/models/..%2f..%2fmesh%2fv1%2fkeys",
    "/v1/models/%2e%2e%2f%2e%2e%2fmesh/v1/keys",
    "/stats",
    "/quitquitquit",
    "/config_dump",
    "/server_info",
    "/runtime_modify?a=1",
]
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "LIST", "get", "X"]
OVERRIDES = [
    "x-http-method-override: DELETE",
    "x-http-method: PUT",
    "x-method-override: POST",
    "x-original-url: /mesh/v1/keys",
    "x-rewrite-url: /mesh/v1/keys",
    "x-envoy-original-path: /v1/models",
    "x-envoy-original-method: GET",
    "x-envoy-decorator-operation: x",
    "x-forwarded-for: 127.0.0.1",
    "x-forwarded-host: localhost",
    "x-forwarded-proto: https",
    "x-mesh-role: admin",
    "x-mesh-key-id: key_bootstrapadmin",
    "x-mesh-tenant: default",
    "x-mesh-model: all-minilm-l6-v2",
    "x-gateway-destination-endpoint: 127.0.0.1:23501",
    "x-request-id: x",
    "content-type: application/grpc",
    "content-type: application/grpc-web",
    "content-type: application/grpc-web-text",
    "content-type: application/grpc+json",
    "te: trailers",
    "grpc-timeout: 1n",
    "upgrade: h2c",
    "upgrade: websocket",
    "connection: x-mesh-role, authorization",
]


def request(method: str, path: str, key: str | None, *lines: str) -> bytes:
    head = [f"{method} {path} HTTP/1.1", "host: x", "connection: close", *lines]
    if key is not None:
        head.append(f"authorization: Bearer {key}")
    if not any(line.startswith("content-type") for line in lines):
        head.append("content-type: application/json")
    if method not in ("GET", "HEAD"):
        head.append(f"content-length: {len(BODY)}")
    return "\r\n".join(head).encode() + b"\r\n\r\n" + (b"" if method in ("GET", "HEAD") else BODY)


def attack(target: Target, *args: str | None) -> None:
    received = target.raw(request(*args), 3)
    seen = statuses(received)
    assert all(status < 500 for status in seen), (args, received[:500])
    assert SECRET not in received, args
    assert b"envoy" not in received.lower(), (args, received[:500])


def test_the_plain_path_does_list_keys_for_an_admin(target: Target) -> None:
    received = target.raw(request("GET", "/mesh/v1/keys", target.mesh.admin_key), 10)
    assert statuses(received) == [200]
    assert SECRET in received


def test_paths(target: Target) -> None:
    for path in PATHS:
        for key in (target.user_key, None):
            for method in ("GET", "POST"):
                attack(target, method, path, key)


def test_methods(target: Target) -> None:
    for method in METHODS:
        for path in ("/mesh/v1/keys", "/mesh/v1/keys/key_bootstrapadmin", "/v1/models"):
            attack(target, method, path, target.user_key)


def test_overrides(target: Target) -> None:
    for line in OVERRIDES:
        for method, path in (
            ("GET", "/mesh/v1/keys"),
            ("POST", "/mesh/v1/keys"),
            ("GET", "/v1/models"),
            ("POST", "/infermesh.auth.v1.KeyService/ListKeys"),
        ):
            attack(target, method, path, target.user_key, line)


def _scrambled(rng: random.Random) -> str:
    """Returns a path written in some other way, or another path."""
    written = ""
    for character in rng.choice(("/mesh/v1/keys", "/infermesh.auth.v1.KeyService/CreateKey")):
        how = rng.randrange(14)
        if how == 0:
            written += f"%{ord(character):02x}"
        elif how == 1:
            written += f"%25{ord(character):02X}"
        elif how == 2 and character == "/":
            written += rng.choice(("//", "/./", "/x/../", "\\", "%2f", "/;/", "/..;/", "/%2e/"))
        elif how == 3:
            written += character.swapcase()
        elif how == 4 and rng.random() < 0.3:
            written += character + rng.choice("\t ;:@&=+$,!*'()~\x7f\x80\xff")
        else:
            written += character
    return rng.choice(("", "", "", "http://x", "/v1/..", "/v1/models/%2e%2e/..")) + written


def test_paths_at_random(target: Target) -> None:
    rng = dice("paths")
    for _ in range(ROUNDS):
        lines = rng.sample(OVERRIDES, rng.choice((0, 0, 1, 2)))
        key = rng.choice((target.user_key, target.user_key, None))
        attack(target, rng.choice(METHODS[:5]), _scrambled(rng), key, *lines)


def test_key_ids_in_paths(target: Target) -> None:
    ids = ["..", "%2e%2e", "a/b", "a%2fb", "'", "%27%20OR%201%3D1--", "%00", "%ff%fe", "*", "{}"]
    ids += ["key_bootstrapadmin%20", "key_bootstrapadmin/../x", "KEY_BOOTSTRAPADMIN", "a" * 5000]
    ids += ["%F0%9F%94%91", "key_x;drop%20table%20auth.keys", "key_x%0d%0aset-cookie:a", "-1", "%"]
    with target.mesh.http() as http:
        known = http.get("/mesh/v1/keys?page_size=1000").json()["keys"]
    for each in ids:
        for method in ("GET", "DELETE", "PATCH"):
            path = f"/mesh/v1/keys/{each}"
            received = target.raw(request(method, path, target.mesh.admin_key), 3)
            assert all(status < 500 for status in statuses(received)), (method, each, received)
            assert b"set-cookie:" not in received.partition(b"\r\n\r\n")[0].lower()
    with target.mesh.http() as http:
        assert len(http.get("/mesh/v1/keys?page_size=1000").json()["keys"]) == len(known)
