"""More calls than a node takes: the urgent first, a clear 429 for the rest, and never a hang."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import httpx
import openai
import pytest

from e2e.fleet import Fleet
from e2e.mesh import Mesh

MODEL = "busy"
NODE = "busy-1"
SLOTS = 2
# The engine gets one more, so that it never waits for the mesh.
PLACES = SLOTS + 1
QUEUED = 4
# 30 tokens at 50 a second.
ANSWER_S = 0.6
# Calls that were sent are in the node's queue; none has been answered yet.
SETTLED_S = 0.2


@pytest.fixture(scope="module", autouse=True)
def node(fleet: Fleet) -> None:
    (url,) = fleet.engines(1, MODEL, "--decode-rate", "50", "--slots", str(SLOTS))
    fleet.join(
        {NODE: ("--engine", "sim", "--url", url)},
        ENGINE_SLOTS=str(SLOTS),
        MAX_QUEUED=str(QUEUED),
        MAX_QUEUE_WAIT_S="10",
    )


class Answer(NamedTuple):
    name: str
    reply: httpx.Response
    took_s: float
    at: float


class Callers:
    """Calls that are under way together."""

    def __init__(self, mesh: Mesh) -> None:
        self._http = mesh.http()
        self._pool = ThreadPoolExecutor(32)
        self._calls: list[Future[Answer]] = []

    def send(self, name: str, key: str | None = None, **fields: object) -> None:
        self._calls.append(self._pool.submit(self._one, name, key, fields))

    def answers(self) -> list[Answer]:
        """Returns all answers in the order in which they came."""
        found = [call.result(30) for call in self._calls]
        self._pool.shutdown()
        self._http.close()
        return sorted(found, key=lambda answer: answer.at)

    def _one(self, name: str, key: str | None, fields: dict[str, object]) -> Answer:
        messages = [{"role": "user", "content": name}]
        body = {"model": MODEL, "messages": messages, "max_tokens": 30} | fields
        headers = {"authorization": f"Bearer {key}"} if key else None
        began = time.monotonic()
        reply = self._http.post("/v1/chat/completions", json=body, headers=headers)
        return Answer(name, reply, time.monotonic() - began, time.monotonic())


def test_a_full_node_says_429_at_once(mesh: Mesh) -> None:
    callers = Callers(mesh)
    for number in range(30):
        callers.send(f"call {number}", stream=number % 2 == 0)
    answers = callers.answers()
    good = [each for each in answers if each.reply.status_code == 200]
    refused = [each for each in answers if each.reply.status_code == 429]
    slowest_s = max(each.took_s for each in refused)
    print(f"{len(good)} answered, {len(refused)} refused within {slowest_s:.2f} s")
    assert len(good) + len(refused) == 30, {each.reply.status_code for each in answers}
    assert len(good) >= PLACES + QUEUED
    assert len(refused) >= 10
    for each in refused:
        error = each.reply.json()["error"]
        assert (error["code"], error["param"]) == ("overloaded", None)
        assert error["message"]
        assert 1 <= int(each.reply.headers["retry-after"]) <= 60
    # Nobody waits longer than the queue takes to empty, with room for a slow machine.
    assert max(each.took_s for each in answers) < 3 * ANSWER_S * (1 + QUEUED / SLOTS) + 3


def test_the_sdk_knows_the_refusal(mesh: Mesh) -> None:
    callers = Callers(mesh)
    for number in range(PLACES + QUEUED):
        callers.send(f"call {number}", priority="high")
    time.sleep(SETTLED_S)
    with mesh.openai() as client, pytest.raises(openai.RateLimitError) as refused:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hi"}])
    assert refused.value.response.headers["retry-after"]
    assert {each.reply.status_code for each in callers.answers()} == {200}


def test_urgent_calls_go_before_the_others(mesh: Mesh) -> None:
    callers = Callers(mesh)
    for _ in range(PLACES):
        callers.send("first")
    time.sleep(SETTLED_S / 2)
    for _ in range(2):
        callers.send("low", priority="low")
    time.sleep(SETTLED_S)
    for _ in range(2):
        callers.send("high", priority="high")
    order = [each.name for each in callers.answers() if each.name != "first"]
    assert order == ["high"] * 2 + ["low"] * 2, order


def test_urgent_calls_take_the_places_of_others_in_a_full_queue(mesh: Mesh) -> None:
    callers = Callers(mesh)
    for _ in range(PLACES + QUEUED):
        callers.send("low", priority="low")
    time.sleep(SETTLED_S)
    for _ in range(2):
        callers.send("high", priority="high")
    answers = callers.answers()
    assert {a.reply.status_code for a in answers if a.name == "high"} == {200}
    lows = [a.reply.status_code for a in answers if a.name == "low"]
    assert sorted(lows) == [200] * (PLACES + QUEUED - 2) + [429] * 2


@pytest.fixture
def small_tenant(fleet: Fleet) -> Iterator[str]:
    yield fleet.command("keys", "create", "busy-small", "--tenant", "busy-small").stdout.strip()


def test_a_tenant_with_few_calls_does_not_wait_behind_one_with_many(
    mesh: Mesh, small_tenant: str
) -> None:
    callers = Callers(mesh)
    for _ in range(PLACES):
        callers.send("first")
    time.sleep(SETTLED_S / 2)
    for _ in range(QUEUED - 1):
        callers.send("many")
    time.sleep(SETTLED_S)
    callers.send("few", small_tenant)
    names = [each.name for each in callers.answers() if each.name != "first"]
    # It goes second and ends with the third; in order of arrival it would be the last.
    assert names.index("few") <= 2, names
