"""What is the same question, what is kept of answers, and who makes them."""

import asyncio

import orjson
import pytest

from services.inference.engines.dialect import Tokens
from services.inference.requests import OpenAIRequest, check
from services.inference.response_cache.flights import Flights
from services.inference.response_cache.key import CachedModels, key_of, may_reuse
from services.inference.response_cache.recording import Recording
from services.inference.response_cache.store import Answer, AnswerStore
from services.kit.caller import Caller

KEY = b"k" * 20
CALLER = Caller(request_id="r", attempt=1, tenant="t", key_id="k", model="m")


class Clock:
    """Seconds that the test lets pass."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def chat(**fields: object) -> OpenAIRequest:
    said = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return check("chat", orjson.dumps(said), said)


def key(request: OpenAIRequest, caller: Caller = CALLER, model: str = "m", start: int = 0) -> bytes:
    return key_of(caller, request, model, "whole", start)


def answer(size: int = 10, pieces: int = 1) -> Answer:
    return Answer((b"x" * size,) * pieces, Tokens(1, 2))


@pytest.mark.parametrize(
    "same",
    [
        {"enable_caching": True},
        {"user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "auto"},
        {"temperature": None},
        {"model": "an alias"},
        {"fallback_models": ["x"], "priority": "low", "optimization_level": "high"},
    ],
)
def test_what_says_how_and_not_what(same: dict[str, object]) -> None:
    assert key(chat(**same)) == key(chat())


def test_the_order_of_fields_does_not_count() -> None:
    assert key(chat(seed=1, top_p=0.5)) == key(chat(top_p=0.5, seed=1))


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"n": 2},
        {"tools": []},
        {"stop": ""},
        {"temperature": 0},
        {"messages": [{"content": "hi", "role": "system"}]},
    ],
)
def test_what_says_what(other: dict[str, object]) -> None:
    assert key(chat(**other)) != key(chat())


def test_who_asks_whom_counts() -> None:
    keys = {
        key(chat()),
        key(chat(), CALLER._replace(tenant="u")),
        key(chat(), model="m2"),
        key(chat(), start=1),
        key_of(CALLER, chat(), "m", "bytes", 0),
    }
    assert len(keys) == 5
    assert key(chat(), CALLER._replace(key_id="other", request_id="s")) in keys


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"enable_caching": True}, True),
        ({"enable_caching": True, "temperature": 1}, True),
        ({"enable_caching": False, "temperature": 0}, False),
        ({"temperature": 0}, True),
        ({"temperature": 0.0}, True),
        ({"temperature": 0.01}, False),
        ({"temperature": None}, False),
        ({}, False),
    ],
)
def test_who_may_get_an_earlier_answer(fields: dict[str, object], kept: bool) -> None:
    assert may_reuse(CALLER, chat(**fields), "llama-8b", CachedModels(["llama-*"])) is kept


def test_who_may_not() -> None:
    asked, models = chat(enable_caching=True), CachedModels()
    assert may_reuse(CALLER, asked, "m", models)
    assert not may_reuse(CALLER._replace(tenant=""), asked, "m", models)
    assert not may_reuse(CALLER._replace(decision="{}"), asked, "m", models)
    assert not may_reuse(CALLER, chat(temperature=0), "m", models)


@pytest.mark.parametrize(
    ("caching", "fields", "kept"),
    [
        ("off", {"enable_caching": True}, False),
        ("off", {"temperature": 0}, False),
        ("on", {"temperature": 0}, True),
        ("on", {"temperature": 0.0}, True),
        ("on", {"temperature": 0.1}, False),
        ("on", {}, False),
        ("on", {"enable_caching": True}, True),
        ("on", {"enable_caching": False, "temperature": 0}, False),
    ],
)
def test_what_a_key_wants(caching: str, fields: dict[str, object], kept: bool) -> None:
    caller = CALLER._replace(caching=caching)
    for models in (CachedModels(), CachedModels(["*"])):
        assert may_reuse(caller, chat(**fields), "m", models) is kept


def store(clock: Clock, **more: int) -> AnswerStore:
    sizes = {"max_bytes": 4000, "max_answer_bytes": 2000, **more}
    return AnswerStore(ttl_s=10, clock=clock, **sizes)


def test_an_answer_is_kept_for_its_time() -> None:
    clock = Clock()
    kept = store(clock)
    kept.put(KEY, answer())
    clock.advance(9.9)
    assert kept.get(KEY) == answer()
    clock.advance(0.1)
    # Asking for it does not make it younger.
    assert kept.get(KEY) is None
    assert (len(kept), kept.size) == (0, 0)


def test_memory_is_bounded_and_the_least_used_go() -> None:
    kept = store(Clock())
    keys = [bytes([i]) for i in range(6)]
    size = answer(700).size
    for each in keys[:3]:
        kept.put(each, answer(700))
    assert kept.get(keys[0]) is not None
    kept.put(keys[3], answer(700))
    assert [each for each in keys if kept.get(each)] == [keys[0], keys[2], keys[3]]
    assert kept.size == 3 * size <= 4000
    kept.put(keys[0], answer(10))
    assert kept.size == 2 * size + answer(10).size


def test_many_small_pieces_count_as_what_they_take() -> None:
    kept = store(Clock())
    kept.put(KEY, answer(1, pieces=100))
    assert kept.get(KEY) is None
    assert kept.size == 0


def test_a_recording_ends_where_it_grows_too_large() -> None:
    flights = Flights(max_waiting=1, max_wait_s=1)
    with flights.lead(KEY) as flight:
        assert flight is not None
        recording = Recording(300, flight)
        recording.add(b"x" * 100, "text/plain")
        assert not flight.is_hopeless
        recording.add(b"x" * 200)
        assert flight.is_hopeless
        recording.add(b"x")
        assert recording.end() is None


async def test_one_makes_it_and_the_rest_wait() -> None:
    flights = Flights(max_waiting=2, max_wait_s=5)
    assert await flights.join(KEY, lambda: None) is None
    with flights.lead(KEY) as flight:
        assert flight is not None
        waiting = [asyncio.create_task(flights.join(KEY, lambda: None)) for _ in range(2)]
        await asyncio.sleep(0)
        # No more than two wait.
        assert await flights.join(KEY, lambda: None) is None
        with flights.lead(KEY) as second:
            assert second is None
        assert not any(task.done() for task in waiting)
        flight.answer = answer()
    assert await asyncio.gather(*waiting) == [answer(), answer()]


async def take_part(flights: Flights) -> str:
    """Gets the answer, or makes it."""
    if await flights.join(KEY, lambda: None) is not None:
        return "got it"
    with flights.lead(KEY) as flight:
        if flight is None:
            return "beside"
        await asyncio.sleep(0)
        flight.answer = answer()
    return "made it"


async def test_after_a_failure_all_go_by_themselves() -> None:
    flights = Flights(max_waiting=9, max_wait_s=5)
    with pytest.raises(ValueError, match="no"), flights.lead(KEY):
        tasks = [asyncio.create_task(take_part(flights)) for _ in range(3)]
        await asyncio.sleep(0)
        raise ValueError("no")
    # Nobody waits for another try of what failed.
    assert sorted(await asyncio.gather(*tasks)) == ["beside", "beside", "made it"]


async def test_after_a_hang_up_one_takes_over() -> None:
    flights = Flights(max_waiting=9, max_wait_s=5)
    with pytest.raises(asyncio.CancelledError), flights.lead(KEY):
        tasks = [asyncio.create_task(take_part(flights)) for _ in range(3)]
        await asyncio.sleep(0)
        raise asyncio.CancelledError
    assert sorted(await asyncio.gather(*tasks)) == ["got it", "got it", "made it"]


async def test_nobody_waits_for_ever() -> None:
    flights = Flights(max_waiting=9, max_wait_s=0)
    with flights.lead(KEY):
        assert await flights.join(KEY, lambda: None) is None
