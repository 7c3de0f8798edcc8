"""More calls than a node takes: the urgent first, a clear 429 for the rest, and never a hang."""

import contextlib
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
# One by one, so that answers end in the order in which they began, and not at the same time.
SLOTS = 1
# The engine gets one more, so that it never waits for the mesh.
PLACES = SLOTS + 1
QUEUED = 4
# 30 tokens at 50 a second.
ANSWER_S = 0.6


class Engine:
    """The node's engine, which can be stopped until all calls of a test are where they belong."""

    def __init__(self, fleet: Fleet, url: str) -> None:
        self._fleet = fleet
        self._url = url

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        self._fleet.fault(self._url, slow=10_000)
        try:
            yield
        finally:
            self._fleet.fault(self._url)


@pytest.fixture(scope="module", autouse=True)
def engine(fleet: Fleet) -> Engine:
    (url,) = fleet.engines(1, MODEL, "--decode-rate", "50", "--slots", str(SLOTS))
    fleet.join(
        {NODE: ("--engine", "sim", "--url", url)},
        ENGINE_SLOTS=str(SLOTS),
        MAX_QUEUED=str(QUEUED),
        MAX_QUEUE_WAIT_S="60",
    )
    return Engine(fleet, url)


class Answer(NamedTuple):
    name: str
    reply: httpx.Response
    took_s: float
    at: float


class Callers:
    """Calls that are under way together."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._http = mesh.http()
        self._pool = ThreadPoolExecutor(32)
        self._calls: list[Future[Answer]] = []

    def send(self, name: str, key: str | None = None, **fields: object) -> None:
        self._calls.append(self._pool.submit(self._one, name, key, fields))

    def wait_under_way(self, count: int) -> None:
        """Waits until so many calls are at the node: in its engine, and in its queue."""
        self._mesh.wait(f"{count} calls at the node", lambda: self._under_way() == count)

    def wait_answered(self, count: int) -> None:
        """Waits until so many calls have an answer."""
        self._mesh.wait(f"{count} answers", lambda: sum(c.done() for c in self._calls) >= count)

    def answers(self) -> list[Answer]:
        """Returns all answers in the order in which they came."""
        found = [call.result(60) for call in self._calls]
        self._pool.shutdown()
        self._http.close()
        return sorted(found, key=lambda answer: answer.at)

    def _under_way(self) -> int:
        load = self._http.get(f"/mesh/v1/nodes/{NODE}").raise_for_status().json()["load"]
        return int(load.get("running") or 0) + int(load.get("queued") or 0)

    def _one(self, name: str, key: str | None, fields: dict[str, object]) -> Answer:
        messages = [{"role": "user", "content": name}]
        body = {"model": MODEL, "messages": messages, "max_tokens": 30} | fields
        headers = {"authorization": f"Bearer {key}"} if key else None
        began = time.monotonic()
        reply = self._http.post("/v1/chat/completions", json=body, headers=headers)
        return Answer(name, reply, time.monotonic() - began, time.monotonic())


def test_a_full_node_says_429_at_once(mesh: Mesh, engine: Engine) -> None:
    callers = Callers(mesh)
    with engine.stopped():
        for number in range(30):
            callers.send(f"call {number}", stream=number % 2 == 0)
        # For these refusals nobody waited: the engine has given nothing yet.
        callers.wait_answered(30 - PLACES - QUEUED)
    resumed = time.monotonic()
    answers = callers.answers()
    good = [each for each in answers if each.reply.status_code == 200]
    refused = [each for each in answers if each.reply.status_code == 429]
    slowest_s = max(each.took_s for each in refused)
    print(f"{len(good)} answered, {len(refused)} refused within {slowest_s:.2f} s")
    assert len(good) + len(refused) == 30, {each.reply.status_code for each in answers}
    assert len(good) == PLACES + QUEUED
    assert all(each.at > resumed for each in good)
    for each in refused:
        error = each.reply.json()["error"]
        assert (error["code"], error["param"]) == ("overloaded", None)
        assert error["message"]
        assert 1 <= int(each.reply.headers["retry-after"]) <= 60
    # Nobody waits longer than the queue takes to empty, with room for a slow machine.
    assert answers[-1].at - resumed < 3 * ANSWER_S * (1 + QUEUED / SLOTS) + 10


def test_the_sdk_knows_the_refusal(mesh: Mesh, engine: Engine) -> None:
    callers = Callers(mesh)
    with engine.stopped():
        for number in range(PLACES + QUEUED):
            callers.send(f"call {number}", priority="high")
        callers.wait_under_way(PLACES + QUEUED)
        with mesh.openai() as client, pytest.raises(openai.RateLimitError) as refused:
            client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "Hi"}]
            )
    assert refused.value.response.headers["retry-after"]
    assert {each.reply.status_code for each in callers.answers()} == {200}


def test_urgent_calls_go_before_the_others(mesh: Mesh, engine: Engine) -> None:
    callers = Callers(mesh)
    with engine.stopped():
        for _ in range(PLACES):
            callers.send("first")
        callers.wait_under_way(PLACES)
        for _ in range(2):
            callers.send("low", priority="low")
        callers.wait_under_way(PLACES + 2)
        for _ in range(2):
            callers.send("high", priority="high")
        callers.wait_under_way(PLACES + 4)
    order = [each.name for each in callers.answers() if each.name != "first"]
    assert order == ["high"] * 2 + ["low"] * 2, order


def test_urgent_calls_take_the_places_of_others_in_a_full_queue(mesh: Mesh, engine: Engine) -> None:
    callers = Callers(mesh)
    with engine.stopped():
        for _ in range(PLACES + QUEUED):
            callers.send("low", priority="low")
        callers.wait_under_way(PLACES + QUEUED)
        for _ in range(2):
            callers.send("high", priority="high")
        callers.wait_answered(2)
    answers = callers.answers()
    assert {a.reply.status_code for a in answers if a.name == "high"} == {200}
    lows = [a.reply.status_code for a in answers if a.name == "low"]
    assert sorted(lows) == [200] * (PLACES + QUEUED - 2) + [429] * 2


@pytest.fixture
def small_tenant(fleet: Fleet) -> Iterator[str]:
    yield fleet.command("keys", "create", "busy-small", "--tenant", "busy-small").stdout.strip()


def test_a_tenant_with_few_calls_does_not_wait_behind_one_with_many(
    mesh: Mesh, engine: Engine, small_tenant: str
) -> None:
    callers = Callers(mesh)
    with engine.stopped():
        for _ in range(PLACES):
            callers.send("first")
        callers.wait_under_way(PLACES)
        for _ in range(QUEUED - 1):
            callers.send("many")
        callers.wait_under_way(PLACES + QUEUED - 1)
        callers.send("few", small_tenant)
        callers.wait_under_way(PLACES + QUEUED)
    names = [each.name for each in callers.answers() if each.name != "first"]
    # It goes second; in order of arrival it would be the last.
    assert names.index("few") <= 1, names
