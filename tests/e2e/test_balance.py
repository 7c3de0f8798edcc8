"""Chats spread over the nodes, and a node that dies takes only the streams that flow from it."""

import collections
import itertools
import threading
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import httpx

from e2e.mesh import CHAT, Mesh

_BODY = {
    "model": CHAT,
    "messages": [{"role": "user", "content": "Count from one to five."}],
    "max_tokens": 8,
    "temperature": 0,
}


class Answer(NamedTuple):
    status: int
    node: str | None
    streamed: bool
    is_whole: bool


def assert_only_streams_broke(answers: list[Answer], node: str) -> None:
    """At most the streams that were flowing from the node: half of 8 callers stream."""
    broken = [answer for answer in answers if not answer.is_whole]
    print(f"{len(broken)} of {len(answers)} chats broke: {broken}")
    assert len(broken) <= 4, broken
    assert all(a.status == 200 and a.streamed and a.node == node for a in broken), broken


def ordered(mesh: Mesh) -> Collection[str]:
    """Returns the nodes that routing would send a chat to now."""
    with mesh.http() as http:
        said = http.get("/mesh/v1/routing:explain", params={"model": CHAT}).raise_for_status()
    names: list[str] = said.json()["ordered_node_ids"]
    return names


def chats(mesh: Mesh, count: int, concurrency: int, on_done=lambda done: None):
    """Sends chats, half of them streams, and returns how each went as an `Answer`."""
    counter = itertools.count(1)
    local = threading.local()

    def one(number: int) -> Answer:
        if not hasattr(local, "http"):
            local.http = mesh.http()
        streamed = number % 2 == 0
        status, node, is_whole = 0, None, False
        try:
            with local.http.stream(
                "POST", "/v1/chat/completions", json={**_BODY, "stream": streamed}
            ) as reply:
                status, node = reply.status_code, reply.headers.get("x-mesh-node")
                content = reply.read()
                end = b"data: [DONE]\n\n" if streamed else b"}"
                is_whole = content.endswith(end) and b'"error"' not in content
        except httpx.TransportError:
            is_whole = False
        on_done(next(counter))
        return Answer(status, node, streamed, is_whole)

    with ThreadPoolExecutor(concurrency) as pool:
        return list(pool.map(one, range(count)))


def test_two_hundred_chats_spread_evenly(mesh: Mesh) -> None:
    results = chats(mesh, 200, 8)
    assert all(answer.is_whole for answer in results), results
    share = collections.Counter(answer.node for answer in results)
    print(f"share of the nodes: {share}")
    assert set(share) == {"node-1", "node-2"}
    # Evenly but for what one engine is slower than the other on a machine with other work.
    assert 60 <= share["node-1"] <= 140, share


def test_a_node_killed_in_the_middle_fails_nobody_else(mesh: Mesh) -> None:
    killed = threading.Event()

    def kill(done: int) -> None:
        if done == 60 and not killed.is_set():
            killed.set()
            mesh.kill("node-2")

    results = chats(mesh, 200, 8, kill)
    assert_only_streams_broke(results, "node-2")
    mesh.wait_whole()

    def has_its_share() -> bool:
        after = collections.Counter(answer.node for answer in chats(mesh, 40, 8))
        assert after["node-2"] >= 10, after
        return True

    mesh.wait("its share", has_its_share)


def test_an_engine_killed_in_the_middle_fails_nobody_else(mesh: Mesh) -> None:
    killed = threading.Event()

    def kill(done: int) -> None:
        if done == 30 and not killed.is_set():
            killed.set()
            mesh.kill("engine:18041")

    results = chats(mesh, 100, 8, kill)
    assert_only_streams_broke(results, "node-1")
    mesh.wait_whole()


def test_a_drained_node_gets_nothing_until_it_resumes(mesh: Mesh) -> None:
    with mesh.http() as http:
        http.post("/mesh/v1/nodes/node-1:drain", json={}).raise_for_status()
        mesh.wait("drain", lambda: "node-1" not in mesh.ready_nodes())
        mesh.wait("routing to know", lambda: "node-1" not in ordered(mesh))
        assert {answer.node for answer in chats(mesh, 12, 4)} == {"node-2"}
        http.post("/mesh/v1/nodes/node-1:resume", json={}).raise_for_status()
        mesh.wait("resume", lambda: "node-1" in mesh.ready_nodes())
        mesh.wait("traffic", lambda: "node-1" in {a.node for a in chats(mesh, 8, 4)})


def test_explain_says_why(mesh: Mesh) -> None:
    with mesh.http() as http:
        mesh.wait("both nodes", lambda: set(ordered(mesh)) == {"node-1", "node-2"})
        said = http.get("/mesh/v1/routing:explain", params={"model": CHAT}).json()
        assert set(said["ordered_node_ids"]) == {"node-1", "node-2"}
        assert all(c["eligible"] for c in said["candidates"])
        assert http.get("/mesh/v1/routing:explain", params={"model": "x"}).status_code == 404


def test_nodes_are_back_within_a_lease_of_a_new_envoy(mesh: Mesh) -> None:
    took_s = []
    for _ in range(3):
        mesh.kill("envoy")
        mesh.wait("envoy", lambda: httpx.get(f"{mesh.url}/health").status_code)
        began = time.monotonic()
        mesh.wait_whole(30.0)
        took_s.append(time.monotonic() - began)
        print(f"whole again {took_s[-1]:.2f} s after the front door was back")
    # The best of them: the others may have waited for other work of this machine.
    assert min(took_s) < 4.0, took_s


def test_a_silent_node_is_out_within_five_seconds_and_comes_back(mesh: Mesh) -> None:
    took_s: list[float] = []
    while not took_s or (min(took_s) >= 5.0 and len(took_s) < 3):
        node = mesh.part("node-2")
        node.suspend()
        began = time.monotonic()
        try:
            mesh.wait("its lease to run out", lambda: "node-2" not in mesh.ready_nodes())
            took_s.append(time.monotonic() - began)
            print(f"out after {took_s[-1]:.2f} s")
            answers = chats(mesh, 8, 4)
            assert all(a.is_whole and a.node == "node-1" for a in answers), answers
        finally:
            node.resume()
        mesh.wait_whole()
    assert min(took_s) < 5.0, took_s
