"""Who has waited in one node's queue as long as a caller is kept does not wait in another's."""

import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from e2e.fleet import Fleet
from e2e.mesh import Mesh

MODEL = "crawling"
WAIT_S = 3


@pytest.fixture(scope="module", autouse=True)
def nodes(fleet: Fleet) -> None:
    urls = fleet.engines(2, MODEL, "--decode-rate", "10", "--slots", "1")
    fleet.join(
        {f"crawler-{i}": ("--engine", "sim", "--url", url) for i, url in enumerate(urls)},
        ENGINE_SLOTS="1",
        MAX_QUEUED="50",
        MAX_QUEUE_WAIT_S=str(WAIT_S),
    )


def test_a_call_waits_once(mesh: Mesh) -> None:
    http = mesh.http()

    def ask(number: int) -> tuple[httpx.Response, float]:
        messages = [{"role": "user", "content": f"{number}"}]
        body = {"model": MODEL, "messages": messages, "max_tokens": 40}
        began = time.monotonic()
        return http.post("/v1/chat/completions", json=body), time.monotonic() - began

    with http, ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, range(12)))
    refused = [(reply, took_s) for reply, took_s in answers if reply.status_code == 429]
    assert len(refused) >= 4, [reply.status_code for reply, _ in answers]
    print(f"{len(refused)} refused after {max(took_s for _, took_s in refused):.2f} s at most")
    for reply, took_s in refused:
        assert took_s < 2 * WAIT_S, took_s
        assert reply.headers["retry-after"]
        assert "x-envoy-ratelimited" not in reply.headers
