"""What replicas let in without Redis."""

import asyncio
import itertools

import pytest

from services.auth.limiting.contract import ScopeLimits, Verdict
from services.auth.limiting.shares import MAX_SCOPES, Shares
from services.auth.limiting.wire import Admission

NOON = 1_799_971_200 + 43_200  # of 2027-01-15
DAY_S = 86_400
LOOP = asyncio.new_event_loop()
_NAMES = itertools.count()


class Clock:
    def __init__(self) -> None:
        self.now = float(NOON)

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def shares(clock: Clock, replicas: int = 1, rank: int = 0) -> Shares:
    one = Shares(900, clock)
    one.replicas, one.rank, one.away_since = replicas, rank, clock.now
    return one


def call(id_: str, *scopes: ScopeLimits, tokens: int = 10, usd: int = 0) -> Admission:
    unasked: asyncio.Future[Verdict] = asyncio.Future(loop=LOOP)
    return Admission(id_, scopes, tokens, usd, unasked)


def counters(requests: int = 0, tokens: int = 0, flying: int = 0, day: int = 0, month: int = 0):
    return [0, 0, 0, 0, requests, tokens, flying, day, month]


def let_in(one: Shares, limits: ScopeLimits, asked: int, **what: int) -> int:
    name = f"{next(_NAMES)}-"
    return sum(one.admit(call(f"{name}{i}", limits, **what)).admitted for i in range(asked))


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 7, 100])
@pytest.mark.parametrize("replicas", [1, 3, 4])
def test_the_shares_sum_to_what_was_left(clock, limit, replicas):
    limits = ScopeLimits("k:x", limit)
    assert (
        sum(let_in(shares(clock, replicas, rank), limits, 120) for rank in range(replicas)) == limit
    )


@pytest.mark.parametrize(
    "limits",
    [
        ScopeLimits("k:x", requests_per_minute=40),
        ScopeLimits("k:x", tokens_per_minute=400),
        ScopeLimits("k:x", concurrent_requests=40),
        ScopeLimits("k:x", tokens_per_day=400),
        ScopeLimits("k:x", usd_per_month=400),
    ],
)
def test_what_redis_knew_to_be_used_is_not_shared_out(clock, limits):
    total = 0
    for rank in range(3):
        one = shares(clock, 3, rank)
        one.note([limits], counters(10, 100, 10, 100, 100), NOON)
        total += let_in(one, limits, 60, usd=10)
    # Ten went in before; of tokens and dollars in tens a share that is none is lost.
    assert 27 <= total <= 30


def test_a_minute_later_the_minute_is_free_and_the_day_is_not(clock):
    minute, day = ScopeLimits("k:x", 10), ScopeLimits("t:a", tokens_per_day=100)
    one = shares(clock)
    one.note([minute], counters(10), NOON)
    one.note([day], counters(day=100), NOON)
    assert let_in(one, minute, 20) == let_in(one, day, 20) == 0
    clock.now += 60
    assert let_in(one, minute, 20) == 10
    assert let_in(one, day, 20) == 0
    clock.now += 59
    assert let_in(one, minute, 20) == 0
    clock.now += 1
    assert let_in(one, minute, 20) == 10


def test_a_sum_that_was_never_heard_is_unknown(clock):
    day = ScopeLimits("t:a", tokens_per_day=100)
    one = shares(clock)
    verdict = one.admit(call("1", day))
    assert not verdict.admitted and verdict.refusal is None
    # One of yesterday says nothing of today's, which other replicas counted with Redis.
    one.note([day], counters(day=0), NOON - DAY_S)
    assert one.admit(call("1", day)).refusal is None
    assert not one.admit(call("1", day)).admitted
    # A day that begins without Redis begins with nothing.
    one.away_since = NOON - DAY_S / 2 - 1
    assert let_in(one, day, 20) == 10


def test_what_is_too_large_never_passes_and_a_refusal_says_when(clock):
    one = shares(clock)
    limits = ScopeLimits("k:x", None, 100, 3)
    assert one.admit(call("1", limits, tokens=101)).refusal.retry_after_s is None
    assert let_in(one, limits, 3) == 3
    verdict = one.admit(call("2", limits, tokens=90))
    assert (verdict.refusal.limit, verdict.refusal.retry_after_s) == ("tokens_per_minute", 60)
    assert (verdict.refusal.allowed, verdict.refusal.used) == (100, 30)
    assert verdict.tokens.limit == 100


def test_ends_free_places_and_so_does_silence(clock):
    limits = ScopeLimits("k:x", None, None, 2)
    one = shares(clock)
    assert one.admit(call("1", limits)).admitted and one.admit(call("2", limits)).admitted
    assert one.admit(call("2", limits)).admitted  # the same call again
    assert not one.admit(call("3", limits)).admitted
    one.release("1")
    one.release("1")
    assert one.admit(call("3", limits)).admitted
    assert not one.admit(call("4", limits)).admitted
    clock.now += 900
    assert let_in(one, limits, 5) == 2


def test_all_scopes_are_charged_or_none(clock):
    one = shares(clock)
    roomy, full = ScopeLimits("t:a", 2), ScopeLimits("k:x", 0)
    assert not one.admit(call("1", roomy, full)).admitted
    assert let_in(one, roomy, 5) == 2


def test_what_redis_says_later_takes_the_place_of_what_was_counted_here(clock):
    one = shares(clock)
    limits = ScopeLimits("k:x", 10)
    assert let_in(one, limits, 4) == 4
    # Redis was told of the four.
    one.note([limits], counters(5), NOON)
    assert let_in(one, limits, 20) == 5


def test_memory_is_bounded(clock):
    one = shares(clock)
    for i in range(MAX_SCOPES + 10):
        one.note([ScopeLimits(f"k:{i}", 1)], counters(1), NOON)
    assert len(one._known) == MAX_SCOPES
    admitted = sum(let_in(one, ScopeLimits(f"m:{i}", 1), 1) for i in range(200))
    assert admitted == 200
