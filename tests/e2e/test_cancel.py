"""A caller that hangs up stops the engine; the engine's own metrics are the witness."""

import json
import re
import socket
import time
from typing import Any

import httpx
import pytest

from e2e.mesh import CHAT, Mesh

ENGINES = (18041, 18042)
IDLE_S = 10.0
"""Much less than what was asked for takes; `make bench-cancellation` measures how soon it is."""


def running() -> int:
    total = 0
    for port in ENGINES:
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text
        total += int(float(re.search(r"^llamacpp:requests_processing (\S+)", text, re.M)[1]))
    return total


def events(mesh: Mesh) -> list[dict[str, Any]]:
    with mesh.http() as http:
        page = http.get("/mesh/v1/usage/events", params={"page_size": 50}).raise_for_status()
    found: list[dict[str, Any]] = page.json()["events"]
    return found


@pytest.mark.parametrize("stream", [True, False])
def test_hanging_up_stops_the_engine(mesh: Mesh, stream: bool) -> None:
    mesh.wait("idle engines", lambda: running() == 0)
    earlier = {event["request_id"] for event in events(mesh)}
    body = json.dumps(
        {
            "model": CHAT,
            "messages": [{"role": "user", "content": "Write a very long story."}],
            "max_tokens": 4000,
            "ignore_eos": True,
            "stream": stream,
        }
    ).encode()
    with socket.create_connection(("127.0.0.1", mesh.port)) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: mesh\r\n"
            b"content-type: application/json\r\n"
            b"authorization: Bearer %s\r\ncontent-length: %d\r\n\r\n%s"
            % (mesh.admin_key.encode(), len(body), body)
        )
        mesh.wait("a running request", lambda: running() == 1)
        time.sleep(0.5)
        assert running() == 1
    began = time.monotonic()
    mesh.wait("idle engines", lambda: running() == 0, IDLE_S)
    print(f"stream={stream}: engine idle {1000 * (time.monotonic() - began):.0f} ms after hang-up")
    event = mesh.wait(
        "ledger",
        lambda: [
            e
            for e in events(mesh)
            if e["request_id"] not in earlier
            and e["outcome"] == "OUTCOME_CANCELLED"
            and e["streamed"] == stream
        ],
    )[0]
    assert event["model"] == CHAT
