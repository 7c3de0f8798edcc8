"""Chats spread over the nodes, and a node that dies takes only the streams that flow from it."""

import collections
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx

from e2e.mesh import CHAT, Mesh

_BODY = {
    "model": CHAT,
    "messages": [{"role": "user", "content": "Count from one to five."}],
    "max_tokens": 8,
    "temperature": 0,
}
NODE_PORTS = {"node-1": 18021, "node-2": 18022}


def chats(mesh: Mesh, count: int, concurrency: int, on_done=lambda done: None):
    """Sends chats and returns (status, node) of each; half of them stream."""
    counter = itertools.count(1)
    local = threading.local()

    def one(number: int) -> tuple[int, str | None]:
        if not hasattr(local, "http"):
            local.http = mesh.http()
        body = {**_BODY, "stream": number % 2 == 0}
        try:
            reply = local.http.post("/v1/chat/completions", json=body)
            result = (reply.status_code, reply.headers.get("x-mesh-node"))
            if reply.status_code == 200 and b'"error"' in reply.content:
                result = (599, result[1])  # a stream that broke while it flowed
        except httpx.TransportError:
            result = (598, None)  # broken while it flowed, without even an error event
        on_done(next(counter))
        return result

    with ThreadPoolExecutor(concurrency) as pool:
        return list(pool.map(one, range(count)))


def test_two_hundred_chats_spread_evenly(mesh: Mesh) -> None:
    results = chats(mesh, 200, 8)
    assert {status for status, _ in results} == {200}
    share = collections.Counter(node for _, node in results)
    assert set(share) == {"node-1", "node-2"}
    assert 80 <= share["node-1"] <= 120, share


def test_a_node_killed_in_the_middle_fails_nobody_else(mesh: Mesh) -> None:
    killed = threading.Event()

    def kill(done: int) -> None:
        if done == 60 and not killed.is_set():
            killed.set()
            mesh.kill("node-2")

    results = chats(mesh, 200, 8, kill)
    broken = [(status, node) for status, node in results if status != 200]
    # At most the streams that were flowing from it at that moment: half of 8 callers stream.
    assert len(broken) <= 4, broken
    assert all(status in (598, 599) for status, _ in broken), broken
    mesh.wait_whole()
    after = collections.Counter(node for _, node in chats(mesh, 40, 8))
    assert after["node-2"] >= 10, after


def test_an_engine_killed_in_the_middle_fails_nobody_else(mesh: Mesh) -> None:
    killed = threading.Event()

    def kill(done: int) -> None:
        if done == 30 and not killed.is_set():
            killed.set()
            mesh.kill("engine:18041")

    results = chats(mesh, 100, 8, kill)
    broken = [(status, node) for status, node in results if status != 200]
    assert len(broken) <= 4, broken
    assert all(status in (598, 599) for status, _ in broken), broken
    mesh.wait_whole()


def test_a_drained_node_gets_nothing_until_it_resumes(mesh: Mesh) -> None:
    with mesh.http() as http:
        http.post("/mesh/v1/nodes/node-1:drain", json={}).raise_for_status()
        mesh.wait("drain", lambda: "node-1" not in mesh.ready_nodes())
        time.sleep(0.5)
        assert {node for _, node in chats(mesh, 12, 4)} == {"node-2"}
        http.post("/mesh/v1/nodes/node-1:resume", json={}).raise_for_status()
        mesh.wait("resume", lambda: "node-1" in mesh.ready_nodes())
        mesh.wait("traffic", lambda: "node-1" in {node for _, node in chats(mesh, 8, 4)})


def test_explain_says_why(mesh: Mesh) -> None:
    with mesh.http() as http:
        said = http.get("/mesh/v1/routing:explain", params={"model": CHAT}).json()
        assert set(said["ordered_node_ids"]) == {"node-1", "node-2"}
        assert all(c["eligible"] for c in said["candidates"])
        assert http.get("/mesh/v1/routing:explain", params={"model": "x"}).status_code == 404


def test_nodes_are_back_within_two_seconds_of_a_new_envoy(mesh: Mesh) -> None:
    for _ in range(3):
        mesh.kill("envoy")
        mesh.wait("envoy", lambda: httpx.get(f"{mesh.url}/health").status_code, 10)
        began = time.monotonic()
        mesh.wait_whole(4.0)
        print(f"whole again {time.monotonic() - began:.2f} s after the front door was back")
