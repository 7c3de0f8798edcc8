"""Which limits a call finds, and how they change."""

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from services.auth.limiting.contract import ScopeLimits
from services.auth.limits import FollowedLimits, LimitBook, Limits, Scope, scope_of

NOW = datetime(2026, 11, 21, tzinfo=UTC)
TENANT = Scope(tenant="acme")
PROJECT = Scope(tenant="acme", project="web")
KEY = Scope(key_id="key_1")
MODEL = Scope(key_id="key_1", model="org/llama:8b")
IDS = {TENANT: "t:acme", PROJECT: "p:acme/web", KEY: "k:key_1", MODEL: "m:key_1/org/llama:8b"}


def limits(scope: Scope, rpm: int | None = 60, usd: Decimal | None = None) -> Limits:
    return Limits(scope, rpm, None, None, None, usd, (), NOW)


class Store:
    """A `LimitStore` in memory, as far as it is read."""

    def __init__(self) -> None:
        self.rows: dict[Scope, Limits] = {}

    async def get(self, scopes: Sequence[Scope]) -> list[Limits]:
        return [self.rows[scope] for scope in scopes if scope in self.rows]

    async def all(self) -> AsyncIterator[Sequence[Limits]]:
        for row in self.rows.values():
            yield [row]


@pytest.mark.parametrize("scope", IDS)
def test_a_scope_is_written_in_one_word_and_read_again(scope: Scope) -> None:
    assert scope.id == IDS[scope]
    assert scope_of(scope.id) == scope


@pytest.mark.parametrize("text", ["", "t:", "t:a/b", "p:acme", "p:acme/", "m:key_1", "x:acme", "t"])
def test_what_is_no_scope_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no scope"):
        scope_of(text)


def test_a_call_finds_the_limits_of_all_its_scopes_the_widest_first() -> None:
    book = LimitBook()
    book.apply({scope: limits(scope) for scope in reversed(IDS)})
    found = book.of("acme", "web", "key_1", "org/llama:8b")
    assert [each.scope for each in found] == list(IDS.values())
    assert [each.scope for each in book.of("acme", "other", "key_1", "m")] == ["t:acme", "k:key_1"]
    assert book.of("other", "web", "key_2", "org/llama:8b") == ()


def test_a_change_is_seen_by_the_next_call() -> None:
    book = LimitBook()
    assert book.of("acme", "web", "key_1", "m") == ()
    book.apply({KEY: limits(KEY, 5)})
    [found] = book.of("acme", "web", "key_1", "m")
    assert found.requests_per_minute == 5
    book.apply({KEY: limits(KEY, 6)})
    assert book.of("acme", "web", "key_1", "m")[0].requests_per_minute == 6
    book.apply({KEY: None})
    assert book.of("acme", "web", "key_1", "m") == ()
    assert len(book) == 0


def test_callers_without_limits_are_looked_up_once() -> None:
    book = LimitBook()
    for _ in range(10):
        assert book.of("acme", "web", "key_1", "m") == ()
    assert book.of.cache_info().misses == 1  # type: ignore[attr-defined]


def test_dollars_become_billionths() -> None:
    made = limits(KEY, None, Decimal("12.500001")).for_limiter()
    assert made == ScopeLimits(scope="k:key_1", usd_per_month=12_500_001_000)
    assert limits(KEY, None, Decimal("0")).for_limiter().usd_per_month == 0


async def test_it_follows_what_is_written_and_taken_away() -> None:
    store, book = Store(), LimitBook()
    followed = FollowedLimits("channel", store, book)  # type: ignore[arg-type]
    store.rows = {TENANT: limits(TENANT), KEY: limits(KEY)}
    await followed.load()
    assert book.find("t:acme") is not None
    store.rows = {KEY: limits(KEY, 7), MODEL: limits(MODEL)}
    await followed.apply(["t:acme", "k:key_1", "m:key_1/org/llama:8b"])
    assert book.find("t:acme") is None
    found = book.of("acme", "web", "key_1", "org/llama:8b")
    assert [each.scope for each in found] == ["k:key_1", "m:key_1/org/llama:8b"]
    assert found[0].requests_per_minute == 7
    store.rows = {}
    await followed.load()
    assert len(book) == 0
