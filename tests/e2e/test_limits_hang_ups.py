"""Callers of the real mesh who do not wait: they hold no place, and pay what was reserved."""

import json
import random
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from e2e.mesh import CHAT, Mesh


@pytest.fixture
def admin(mesh: Mesh) -> Iterator[httpx.Client]:
    with mesh.http() as client:
        yield client


@pytest.fixture
def key(admin: httpx.Client) -> Iterator[tuple[str, str]]:
    """A key's id and its secret."""
    made = admin.post("/mesh/v1/keys", json={"display_name": "hang-ups", "tenant": "hang-ups"})
    made.raise_for_status()
    key_id, secret = made.json()["key"]["key_id"], made.json()["secret"]
    yield key_id, secret
    admin.delete("/mesh/v1/limits", params={"scope.key_id": key_id})
    admin.delete(f"/mesh/v1/keys/{key_id}")


def limit(admin: httpx.Client, key_id: str, **limits: int) -> None:
    body = {"limits": {"scope": {"key_id": key_id}, **limits}}
    admin.put("/mesh/v1/limits", json=body).raise_for_status()


def use(admin: httpx.Client, key_id: str, name: str) -> tuple[int, int]:
    """What is used of a limit, and how much of that is reserved."""
    reply = admin.get("/mesh/v1/limits:state", params={"scope.key_id": key_id}).raise_for_status()
    [found] = [each for each in reply.json()["uses"] if each["limit"] == name]
    return int(found["used"]), int(found.get("reserved") or 0)


def test_who_leaves_before_the_answer_of_auth_holds_no_place(mesh: Mesh, admin, key) -> None:
    key_id, secret = key
    limit(admin, key_id, concurrent_requests=1000, tokens_per_day=10**9)
    chat = {"model": CHAT, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    body = json.dumps(chat).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: mesh\r\nauthorization: Bearer {secret}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    host, _, port = mesh.address.rpartition(":")
    chance = random.Random(4)
    for _ in range(200):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head.encode() + body)
            time.sleep(chance.uniform(0, 0.003))
    mesh.wait(
        "no place is held", lambda: use(admin, key_id, "concurrent_requests")[0] == 0, limit_s=40
    )


def test_a_budget_holds_for_those_who_always_hang_up(mesh: Mesh, admin, key) -> None:
    key_id, secret = key
    limit(admin, key_id, tokens_per_day=200)
    body = {
        "model": CHAT,
        "messages": [{"role": "user", "content": "Count from one to a thousand in words."}],
        "max_tokens": 60,
        "stream": True,
    }
    headers = {"authorization": f"Bearer {secret}"}
    began = 0
    for _ in range(6):
        with httpx.stream(
            "POST", f"{mesh.url}/v1/chat/completions", json=body, headers=headers, timeout=60
        ) as answer:
            if answer.status_code != 200:
                assert answer.status_code == 429
                break
            began += 1
            for line in answer.iter_lines():
                if '"content":"' in line:
                    break
        mesh.wait("the ledger has it", lambda: use(admin, key_id, "tokens_per_day")[1] == 0)
    # Nothing is reserved any more, and what was stays used: no budget comes back by waiting.
    assert began in (1, 2)
    used, reserved = use(admin, key_id, "tokens_per_day")
    assert (reserved, used >= 60 * began) == (0, True)
