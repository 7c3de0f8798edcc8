"""A caller that hangs up stops the engine; the engine's own metrics are the witness."""

import json
import re
import socket
import time

import httpx
import pytest

from e2e.mesh import CHAT, Mesh

ENGINES = (18041, 18042)


def running() -> int:
    total = 0
    for port in ENGINES:
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text
        total += int(float(re.search(r"^llamacpp:requests_processing (\S+)", text, re.M)[1]))
    return total


@pytest.mark.parametrize("stream", [True, False])
def test_hanging_up_stops_the_engine(mesh: Mesh, stream: bool) -> None:
    mesh.wait("idle engines", lambda: running() == 0)
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
    mesh.wait("idle engines", lambda: running() == 0, 2.0)
    print(f"stream={stream}: engine idle {1000 * (time.monotonic() - began):.0f} ms after hang-up")
    with mesh.http() as http:
        event = mesh.wait(
            "ledger",
            lambda: [
                e
                for e in http.get("/mesh/v1/usage/events", params={"page_size": 1}).json()["events"]
                if e["outcome"] == "OUTCOME_CANCELLED" and e["streamed"] == stream
            ],
        )[0]
    assert event["model"] == CHAT
