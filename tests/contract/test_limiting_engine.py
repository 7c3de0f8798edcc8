"""The limiter on a real Redis that dies, freezes, forgets and comes back."""

import asyncio
import signal
import time
from collections.abc import Sequence

import pytest
import redis.asyncio

from contract.limiting_redis import Server, forget, server
from inference_node import until
from services.auth.limiting.contract import (
    Alert,
    LimiterAwayError,
    Mode,
    Period,
    ScopeLimits,
    Settlement,
    Total,
    TotalsUnknownError,
    Verdict,
    Wanted,
)
from services.auth.limiting.engine import LimiterOptions, RedisLimiter, opened


class Ledger:
    """A `TotalsSource` that has what it is told, or does not answer."""

    def __init__(self) -> None:
        self.tokens = 0
        self.usd_nano = 0
        self.version = 1
        self.asked: list[int] = []
        self.is_away = False

    async def get_totals(self, wanted: Sequence[Wanted]) -> Sequence[Total]:
        self.asked.append(len(wanted))
        await asyncio.sleep(0)
        if self.is_away:
            raise TotalsUnknownError("away")
        return [Total(*each, self.tokens, self.usd_nano, self.version) for each in wanted]


def today() -> str:
    return time.strftime("%Y-%m-%d", time.gmtime())


@pytest.fixture
def clean_url(redis_url):
    forget(redis_url)
    return redis_url


@pytest.fixture
async def own(tmp_path, free_port):
    async with server(tmp_path, free_port()) as one:
        yield one


async def used(limiter: RedisLimiter, limits: ScopeLimits, name: str) -> int:
    return next(use.used for use in await limiter.state(limits) if use.limit == name)


async def assert_used(limiter: RedisLimiter, limits: ScopeLimits, name: str, wanted: int) -> None:
    await asyncio.sleep(0.02)  # ends are told in the background, as soon as it has its turn
    deadline = time.monotonic() + 5
    while (found := await used(limiter, limits, name)) != wanted:
        assert time.monotonic() < deadline, (name, found, wanted)
        await asyncio.sleep(0.02)


async def ask(limiter: RedisLimiter, ids: Sequence[str], limits: ScopeLimits) -> list[Verdict]:
    asked = [limiter.admit(id_, [limits], 10, 0) for id_ in ids]
    return list(await asyncio.gather(*asked))


async def in_touch(limiter: RedisLimiter) -> None:
    await until(lambda: limiter.status().mode is Mode.REDIS)


async def out_of_touch(limiter: RedisLimiter) -> None:
    await until(lambda: limiter.status().mode is not Mode.REDIS)


async def test_three_replicas_let_in_what_one_would(clean_url):
    limits = ScopeLimits("k:x", 50, None, None)
    async with (
        opened(LimiterOptions(clean_url)) as a,
        opened(LimiterOptions(clean_url)) as b,
        opened(LimiterOptions(clean_url)) as c,
    ):
        found = await asyncio.gather(
            *(
                ask(each, [f"{i}-{n}" for n in range(40)], limits)
                for i, each in enumerate((a, b, c))
            )
        )
        verdicts = [verdict for each in found for verdict in each]
        assert sum(verdict.admitted for verdict in verdicts) == 50
        assert sorted(v.requests.remaining for v in verdicts if v.admitted) == list(range(50))
        refused = next(verdict.refusal for verdict in verdicts if not verdict.admitted)
        assert (refused.scope, refused.limit, refused.allowed, refused.used) == (
            *("k:x", "requests_per_minute", 50, 50),
        )
        assert 58 < refused.retry_after_s <= 60
        assert sum(each.status().refused.get("requests_per_minute", 0) for each in (a, b, c)) == 70


async def test_the_tightest_of_all_scopes_is_told(clean_url):
    scopes = [ScopeLimits("t:a", 100, 50), ScopeLimits("k:x", 3, 1000), ScopeLimits("m:x/y")]
    async with opened(LimiterOptions(clean_url)) as limiter:
        verdict = await limiter.admit("1", scopes, 10, 0)
        assert (verdict.requests.limit, verdict.requests.remaining) == (3, 2)
        assert (verdict.tokens.limit, verdict.tokens.remaining) == (50, 40)
        assert 59 <= verdict.tokens.reset_s <= 60


async def test_an_end_frees_the_place_and_what_reached_no_node_all(clean_url):
    limits = ScopeLimits("k:x", 10, 1000, 1)
    async with opened(LimiterOptions(clean_url)) as limiter:
        assert (await limiter.admit("1", [limits], 100, 0)).admitted
        verdict = await limiter.admit("2", [limits], 100, 0)
        assert verdict.refusal.limit == "concurrent_requests"
        limiter.release("1", reached_node=True)
        assert (await limiter.admit("3", [limits], 100, 0)).admitted
        limiter.release("3", reached_node=False)
        await assert_used(limiter, limits, "concurrent_requests", 0)
        await assert_used(limiter, limits, "tokens_per_minute", 100)
        await assert_used(limiter, limits, "requests_per_minute", 2)
        await limiter.settle([Settlement("3", 7), Settlement("1", 5)], [])
        await assert_used(limiter, limits, "tokens_per_minute", 12)


async def test_only_calls_that_hold_a_place_need_every_end(clean_url):
    free = ScopeLimits("k:x", 10, 1000, None, 10**6)
    bound = ScopeLimits("t:a", None, None, 5)
    async with opened(LimiterOptions(clean_url), Ledger()) as limiter:
        assert not (await limiter.admit("1", [free], 10, 0)).holds_place
        assert (await limiter.admit("2", [bound, free], 10, 0)).holds_place
        # A limit that comes later does not wait for the end of what it did not count.
        later = free._replace(concurrent_requests=1)
        await assert_used(limiter, later, "concurrent_requests", 0)
        assert (await limiter.admit("3", [later], 10, 0)).holds_place
        limiter.release("2", reached_node=True)
        await limiter.settle([Settlement("1", 7)], [])
        await assert_used(limiter, later, "concurrent_requests", 1)
        await assert_used(limiter, bound, "concurrent_requests", 0)
        limiter.release("3", reached_node=True)
        await assert_used(limiter, later, "concurrent_requests", 0)
    async with opened(LimiterOptions("redis://127.0.0.1:1")) as alone:
        # A share remembers who runs, and is told of no other end.
        minute = ScopeLimits("k:y", 10)
        assert (await alone.admit("4", [minute], 10, 0)).holds_place


async def test_unknown_totals_are_asked_for_once_for_all_who_wait(clean_url):
    ledger = Ledger()
    ledger.tokens = 970
    limits = ScopeLimits("t:a", None, None, None, 1000, None)
    async with opened(LimiterOptions(clean_url), ledger) as limiter:
        verdicts = await ask(limiter, [str(i) for i in range(20)], limits)
        assert sum(verdict.admitted for verdict in verdicts) == 3
        assert sum(ledger.asked) == 1
        assert verdicts[-1].refusal.limit == "tokens_per_day"


async def test_an_unknown_total_is_not_nothing(clean_url):
    ledger = Ledger()
    ledger.is_away = True
    limits = ScopeLimits("t:a", None, None, None, 1000, None)
    async with opened(LimiterOptions(clean_url), ledger) as limiter:
        verdicts = await ask(limiter, ["1", "2"], limits)
        assert [(verdict.admitted, verdict.refusal) for verdict in verdicts] == [(False, None)] * 2
        assert limiter.status().unavailable_refused == 2
        with pytest.raises(LimiterAwayError):
            await limiter.state(limits)
        # What the ledger told of itself stands for its answer.
        await limiter.settle([], [Total("t:a", Period.DAY, today(), 985, 0, 5)])
        assert [verdict.admitted for verdict in await ask(limiter, ["3", "4"], limits)] == [
            *(True, False),
        ]


async def test_settling_tells_of_alerts(clean_url):
    limits = ScopeLimits("t:a", None, None, None, 1000, None, (50, 90))
    async with opened(LimiterOptions(clean_url)) as limiter:
        total = Total("t:a", Period.DAY, today(), 600, 0, 5)
        expected = [Alert("t:a", "tokens_per_day", 50, today())]
        assert await limiter.settle([], [total], {"t:a": limits}.get) == expected
        assert await limiter.settle([], [total], {"t:a": limits}.get) == []
        assert list(limiter.status().alerts) == expected


async def test_many_settlements_go_in_parts(clean_url):
    limits = ScopeLimits("k:x", None, 10**9, None)
    async with opened(LimiterOptions(clean_url)) as limiter:
        ids = [str(i) for i in range(1000)]
        assert all(verdict.admitted for verdict in await ask(limiter, ids, limits))
        settlements = [Settlement(id_, 3) for id_ in ids]
        for _ in range(2):
            await limiter.settle(settlements, [])
        await assert_used(limiter, limits, "tokens_per_minute", 3000)


async def test_a_script_that_redis_forgot_is_sent_again(clean_url):
    limits = ScopeLimits("k:x", 10)
    async with opened(LimiterOptions(clean_url)) as limiter:
        async with redis.asyncio.from_url(clean_url) as client:
            await client.script_flush()
        assert (await limiter.admit("1", [limits], 1, 0)).admitted
        async with redis.asyncio.from_url(clean_url) as client:
            await client.script_flush()
        await assert_used(limiter, limits, "requests_per_minute", 1)
        assert limiter.status().mode is Mode.REDIS


async def test_a_redis_that_is_killed_forgets_nothing_and_believes_no_old_total(own: Server):
    ledger = Ledger()
    minute = ScopeLimits("k:x", 100, 10_000, 50)
    day = ScopeLimits("t:a", None, None, None, 1000, None)
    async with opened(LimiterOptions(own.url), ledger) as limiter:
        await ask(limiter, [str(i) for i in range(20)], minute)
        assert (await limiter.admit("d", [day], 10, 0)).admitted
        # At once, before it wrote anything to its disk.
        own.kill()
        await out_of_touch(limiter)
        ledger.tokens, ledger.version = 995, 2
        await own.start()
        await in_touch(limiter)
        await assert_used(limiter, minute, "requests_per_minute", 20)
        await assert_used(limiter, minute, "tokens_per_minute", 200)
        await assert_used(limiter, minute, "concurrent_requests", 20)
        assert (await limiter.admit("e", [day], 10, 0)).refusal.limit == "tokens_per_day"
        assert sum(ledger.asked) == 2


async def test_without_redis_the_share_is_let_in_and_charged_once(own: Server):
    limits = ScopeLimits("k:x", 30, None, None)
    async with opened(LimiterOptions(own.url)) as a, opened(LimiterOptions(own.url)) as b:
        await ask(a, [f"a{i}" for i in range(5)], limits)
        await ask(b, [f"b{i}" for i in range(4)], limits)
        # Both know of each other, and of what is used.
        await until(lambda: a._shares.replicas == b._shares.replicas == 2)
        assert (await a.admit("a5", [limits], 1, 0)).requests.remaining == 20
        own.kill()
        await out_of_touch(a)
        await out_of_touch(b)
        found_a = await ask(a, [f"c{i}" for i in range(40)], limits)
        found_b = await ask(b, [f"d{i}" for i in range(40)], limits)
        let_in = [sum(v.admitted for v in found) for found in (found_a, found_b)]
        # b had its last answer one call before: what it knows of is one less.
        assert let_in[0] == 10 and let_in[1] in (10, 11)
        assert found_a[-1].refusal.limit == "requests_per_minute"
        status = a.status()
        assert (status.mode, status.local_admitted) == (Mode.LOCAL, 10)
        with pytest.raises(LimiterAwayError):
            await a.settle([Settlement("c0", 1)], [])
        a.release("c0", reached_node=True)
        await own.start()
        await in_touch(a)
        await in_touch(b)
        await assert_used(a, limits, "requests_per_minute", 10 + sum(let_in))
        own.kill()
        await out_of_touch(a)
        await own.start()
        await in_touch(a)
        await assert_used(a, limits, "requests_per_minute", 10 + sum(let_in))


async def test_told_to_refuse_it_refuses_without_redis(own: Server):
    limits = ScopeLimits("k:x", 30, None, None)
    async with opened(LimiterOptions(own.url, without_redis="refuse")) as limiter:
        assert (await limiter.admit("1", [limits], 1, 0)).admitted
        own.kill()
        await out_of_touch(limiter)
        verdict = await limiter.admit("2", [limits], 1, 0)
        assert not verdict.admitted and verdict.refusal is None
        assert limiter.status().mode is Mode.REFUSE
        assert limiter.status().unavailable_refused == 1
        await own.start()
        await in_touch(limiter)
        assert (await limiter.admit("2", [limits], 1, 0)).admitted


async def test_it_starts_without_redis(tmp_path, free_port):
    own = Server(tmp_path, free_port())
    limits = ScopeLimits("k:x", 3, None, None)
    async with opened(LimiterOptions(own.url)) as limiter:
        found = await ask(limiter, [str(i) for i in range(9)], limits)
        assert sum(verdict.admitted for verdict in found) == 3
        try:
            await own.start()
            await in_touch(limiter)
            await assert_used(limiter, limits, "requests_per_minute", 3)
        finally:
            own.kill()


async def test_a_frozen_redis_holds_up_one_call_and_counts_nothing_twice(own: Server):
    limits = ScopeLimits("k:x", 30, None, 30)
    async with opened(LimiterOptions(own.url)) as limiter:
        assert (await limiter.admit("1", [limits], 1, 0)).admitted
        own.signal(signal.SIGSTOP)
        began = time.monotonic()
        # Redis finds it in its socket when it goes on, and is told of it again.
        assert (await limiter.admit("2", [limits], 1, 0)).admitted
        assert 0.2 < time.monotonic() - began < 5
        took_s = []
        for i in range(10):
            began = time.monotonic()
            assert (await limiter.admit(f"q{i}", [limits], 1, 0)).admitted
            took_s.append(time.monotonic() - began)
        # Those after it wait for nothing; one or the other may for other work of this machine.
        assert sorted(took_s)[5] < 0.05, took_s
        limiter.release("2", reached_node=True)
        own.signal(signal.SIGCONT)
        await in_touch(limiter)
        await assert_used(limiter, limits, "requests_per_minute", 12)
        await assert_used(limiter, limits, "concurrent_requests", 11)


async def test_a_call_that_was_refused_keeps_no_place_in_a_redis_that_thaws(own: Server):
    limits = ScopeLimits("k:x", 30, None, 30)
    async with opened(LimiterOptions(own.url, without_redis="refuse")) as limiter:
        assert (await limiter.admit("1", [limits], 1, 0)).admitted
        own.signal(signal.SIGSTOP)
        assert not (await limiter.admit("2", [limits], 1, 0)).admitted
        own.signal(signal.SIGCONT)
        await in_touch(limiter)
        await assert_used(limiter, limits, "concurrent_requests", 1)


async def test_a_redis_that_refuses_to_write_is_away(own: Server):
    limits = ScopeLimits("k:x", 30, None, 30)
    async with opened(LimiterOptions(own.url)) as limiter:
        async with redis.asyncio.from_url(own.url) as client:
            await client.config_set("maxmemory", 1)
            assert (await limiter.admit("1", [limits], 1, 0)).admitted
            assert limiter.status().local_admitted == 1
            await client.config_set("maxmemory", 0)
        await in_touch(limiter)
        await assert_used(limiter, limits, "requests_per_minute", 1)


async def test_killed_at_any_moment_redis_counts_each_call_once(own: Server):
    limits = ScopeLimits("k:x", 10**6, 10**9, 10**5)
    async with opened(LimiterOptions(own.url)) as limiter:
        admitted = 0
        for turn in range(4):
            calls = asyncio.create_task(_keep_asking(limiter, limits, turn))
            await asyncio.sleep(0.05 + 0.03 * turn)
            own.kill()
            await asyncio.sleep(0.05)
            await own.start()
            await in_touch(limiter)
            admitted += await calls
        await asyncio.sleep(0.05)
        assert admitted > 100
        await assert_used(limiter, limits, "requests_per_minute", admitted)
        await assert_used(limiter, limits, "tokens_per_minute", admitted * 10)
        await assert_used(limiter, limits, "concurrent_requests", admitted // 2)


async def _keep_asking(limiter: RedisLimiter, limits: ScopeLimits, turn: int) -> int:
    """Asks for an even number of calls and ends every second."""
    admitted = 0
    deadline = time.monotonic() + 0.5
    while time.monotonic() < deadline or admitted % 2:
        verdict = await limiter.admit(f"{turn}-{admitted}", [limits], 10, 0)
        assert verdict.admitted
        admitted += 1
        if admitted % 2 == 0:
            limiter.release(f"{turn}-{admitted - 1}", reached_node=True)
        await asyncio.sleep(0.001)
    return admitted
