"""The journal, the asking for totals, the names of scopes, and the connection without a socket."""

import asyncio
from collections.abc import Sequence
from typing import Any

import hiredis
import orjson
import pytest

from services.auth.limiting import journal as journals
from services.auth.limiting import wire
from services.auth.limiting.contract import (
    LimiterAwayError,
    Period,
    ScopeLimits,
    Total,
    TotalsUnknownError,
    Wanted,
)
from services.auth.limiting.journal import Journal
from services.auth.limiting.link import Link, LinkLostError
from services.auth.limiting.metrics_totals import nano_usd, scope_message, scope_string
from services.auth.limiting.seeding import Seeding
from services.auth.limiting.wire import Charge, Plain

LIMITS = ScopeLimits("k:x", 10)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def charge(number: int, second: int = 1000) -> Charge:
    return Charge(f"{number}", [LIMITS], number, 0, second)


# The journal


def test_what_redis_was_told_is_kept_until_it_must_be_on_disk():
    clock = Clock()
    journal = Journal(900, clock)
    journal.keep(charge(1))
    clock.now += 1.5
    journal.keep(charge(2))
    clock.now += 1
    journal.keep(charge(3))
    assert [each.tokens for each in journal.start(9, 1002)] == [2, 3]


def test_what_redis_was_not_told_is_kept_until_it_is():
    clock = Clock()
    journal = Journal(900, clock)
    for number in range(1, 4):
        journal.add(charge(number))
        clock.now += 100
    first = journal.start(2, 1300)
    assert [each.tokens for each in first] == [1, 2]
    journal.add(charge(4))
    journal.done(len(first))
    assert [each.tokens for each in journal.start(9, 1300)] == [3, 4]
    # What has lapsed need not be told.
    assert list(journal.start(9, 1901)) == []


def test_the_journal_is_bounded(monkeypatch):
    monkeypatch.setattr(journals, "MAX_KEPT", 5)
    journal = Journal(900, Clock())
    for number in range(9):
        journal.add(charge(number))
    assert [each.tokens for each in journal.start(9, 1000)] == [4, 5, 6, 7, 8]
    for number in range(9, 20):
        journal.keep(charge(number))
    assert len(journal.start(99, 1000)) == 5


# Totals


class Ledger:
    def __init__(self) -> None:
        self.asked: list[int] = []
        self.is_away = False
        self.is_slow = asyncio.Event()
        self.is_slow.set()

    async def get_totals(self, wanted: Sequence[Wanted]) -> list[Total]:
        self.asked.append(len(wanted))
        await self.is_slow.wait()
        if self.is_away:
            raise TotalsUnknownError("away")
        return [Total(*each, 5, 0, 7) for each in wanted]


def wanted(number: int) -> Wanted:
    return Wanted(f"k:{number}", Period.DAY, "2027-01-15")


async def test_a_total_is_asked_for_once_and_thousands_in_parts():
    ledger = Ledger()
    written: list[Total] = []

    async def write(totals: Sequence[Total]) -> None:
        written.extend(totals)

    seeding = Seeding(ledger, write)
    ledger.is_slow.clear()
    waiting = [asyncio.ensure_future(seeding.seed([wanted(i % 2500)])) for i in range(5000)]
    await asyncio.sleep(0)
    ledger.is_slow.set()
    assert all(await asyncio.gather(*waiting))
    assert max(ledger.asked) <= 1000 and sum(ledger.asked) == 2500 == len(written)


async def test_without_the_ledger_its_last_word_stands():
    ledger = Ledger()
    ledger.is_away = True
    written: list[Total] = []

    async def write(totals: Sequence[Total]) -> None:
        written.extend(totals)

    seeding = Seeding(ledger, write)
    known = Total(*wanted(1), 5, 0, 7)
    seeding.remember([known, known._replace(tokens=3, version=6)])
    assert not await seeding.seed([wanted(1), wanted(2)])
    assert written == [known]
    assert await seeding.seed([wanted(1)])
    # It is not asked again at once.
    assert ledger.asked == [2]


async def test_totals_that_redis_does_not_take_are_not_there():
    async def write(_: Sequence[Total]) -> None:
        raise LimiterAwayError("away")

    assert not await Seeding(Ledger(), write).seed([wanted(1)])


async def test_giving_up_leaves_nobody_waiting():
    ledger = Ledger()
    ledger.is_slow.clear()

    async def write(_: Sequence[Total]) -> None:
        raise AssertionError("nothing to write")

    seeding = Seeding(ledger, write)
    waiting = asyncio.ensure_future(seeding.seed([wanted(1)]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await seeding.close()
    assert await waiting is False


# Names and money


@pytest.mark.parametrize(
    "scope", ["t:acme", "p:acme/web", "k:key_1", "m:key_1/org/model:7b", "k:oidc:a.b-c"]
)
def test_scopes_have_one_name_each(scope):
    assert scope_string(scope_message(scope)) == scope


@pytest.mark.parametrize(
    ("usd", "nano"),
    [
        ("0", 0),
        ("12.5", 12_500_000_000),
        ("0.000000000001", 1),
        ("999999.999999999999", 10**15),
        ("", 0),
    ],
)
def test_dollars_are_rounded_up(usd, nano):
    assert nano_usd(usd) == nano


# The wire


def test_a_scope_of_many_calls_goes_out_once():
    loop = asyncio.new_event_loop()
    calls = [
        wire.Admission(
            f"{i}",
            [LIMITS, ScopeLimits("t:a", None, 5, alert_percents=(50,))],
            1,
            2,
            asyncio.Future(loop=loop),
        )
        for i in range(3)
    ]
    sent = orjson.loads(wire.request("run", None, 900, [*calls, Plain([3, "0", 1], 0)]))
    assert sent == [
        "run",
        False,
        900,
        [["k:x", 10, -1, -1, -1, -1, []], ["t:a", -1, 5, -1, -1, -1, [50]]],
        [[1, "0", 1, 2, [1, 2]], [1, "1", 1, 2, [1, 2]], [1, "2", 1, 2, [1, 2]], [3, "0", 1]],
    ]
    loop.close()


def test_a_hostile_id_is_data_only():
    id_ = '"],[8,"\r\n*1\r\n$8\r\nFLUSHALL\r\n\x00\u2028'
    sent = wire.packed(wire.request("run", None, 900, [Plain([3, id_, 1], 0)]))
    reader = hiredis.Reader()
    reader.feed(sent)
    command = reader.gets()
    assert len(command) == 4 and reader.gets() is False
    assert orjson.loads(command[3])[4] == [[3, id_, 1]]


# The connection


class Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_aborted = False

    def write(self, data: Any) -> None:
        self.written += data

    def abort(self) -> None:
        self.is_aborted = True


def link() -> tuple[Link, Transport]:
    one, transport = Link(), Transport()
    one.connection_made(transport)
    return one, transport


async def test_answers_go_to_those_who_asked_in_order():
    one, _ = link()
    got: list[Any] = []
    one.send(b"", lambda reply: got.append(("a", reply)))
    one.send(b"", lambda reply: got.append(("b", reply)))
    for byte in b":1\r\n*2\r\n:2\r\n$1\r\nx\r\n":
        one.data_received(bytes([byte]))
    assert got == [("a", 1), ("b", [2, b"x"])]


@pytest.mark.parametrize("said", [b"HTTP/1.1 400\r\n", b":1\r\n:2\r\n"])
async def test_what_is_not_an_answer_ends_the_connection(said):
    one, transport = link()
    lost: list[bool] = []
    one.on_lost = lambda: lost.append(True)
    one.send(b"", lambda _: None)
    one.data_received(said)
    assert transport.is_aborted and not one.is_open and lost == [True]


async def test_everybody_who_waits_learns_of_the_loss():
    one, _ = link()
    got: list[Any] = []
    for _ in range(3):
        one.send(b"", got.append)
    one.connection_lost(None)
    one.send(b"", got.append)
    assert [type(each) for each in got] == [LinkLostError] * 4
