import logging
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from services.embeddings.cache import RedisCache
from services.embeddings.vectors import Vector

ONE = Vector(b"\0\0\x80?", 3)


class _Redis:
    """A dictionary that can be taken away."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.is_down = False
        self.tries = 0

    async def mget(self, keys: list[bytes]) -> list[bytes | None]:
        self._reach()
        return [self.values.get(key) for key in keys]

    def pipeline(self, transaction: bool) -> "_Redis":
        return self

    def set(self, key: bytes, value: bytes, ex: int) -> None:
        assert ex == 60
        if not self.is_down:
            self.values[key] = value

    async def execute(self) -> None:
        self._reach()

    def _reach(self) -> None:
        self.tries += 1
        if self.is_down:
            raise RedisConnectionError("down")


class _Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def _cache(redis: Any, clock: _Clock) -> RedisCache:
    return RedisCache(redis, ttl_s=60, clock=clock)


async def test_a_vector_comes_back_marked_as_cached() -> None:
    cache = _cache(_Redis(), _Clock())
    await cache.put("acme", "m", {"a": ONE})
    assert await cache.get("acme", "m", ["a", "b"]) == [ONE._replace(cached=True), None]


async def test_forms_and_sizes_share_nothing() -> None:
    redis = _Redis()
    cache = _cache(redis, _Clock())
    tokens = (97,)
    await cache.put("t", "m", {"a": ONE})
    await cache.put("t", "m", {tokens: ONE})
    await cache.put("t", "m", {"a": ONE}, 1)
    await cache.put("t", "m", {tokens: ONE}, 1)
    await cache.put("t", "m", {"a\0\0\0": ONE})  # the bytes of the tokens
    assert len(redis.values) == 5
    assert await cache.get("t", "m", [tokens], 1) == [ONE._replace(cached=True)]
    assert await cache.get("t", "m", ["a"], 2) == [None]


async def test_tenants_and_models_share_nothing() -> None:
    redis = _Redis()
    cache = _cache(redis, _Clock())
    # Joined without their lengths these would be equal.
    for tenant, model, text in (("a", "bc", "d"), ("ab", "c", "d"), ("a", "b", "cd")):
        assert await cache.get(tenant, model, [text]) == [None]
        await cache.put(tenant, model, {text: ONE})
    assert len(redis.values) == 3
    assert all(key.startswith(b"emb:1:") and b"acme" not in key for key in redis.values)


async def test_without_redis_nothing_is_known_and_one_call_a_second_tries(
    caplog: pytest.LogCaptureFixture,
) -> None:
    redis, clock = _Redis(), _Clock()
    cache = _cache(redis, clock)
    redis.is_down = True
    with caplog.at_level(logging.INFO):
        for _ in range(5):
            assert await cache.get("t", "m", ["a"]) == [None]
            await cache.put("t", "m", {"a": ONE})
        assert redis.tries == 1
        clock.now += 1.0
        assert await cache.get("t", "m", ["a"]) == [None]
        assert await cache.get("t", "m", ["a"]) == [None]
        assert redis.tries == 2
        redis.is_down = False
        clock.now += 1.0
        assert await cache.get("t", "m", ["a"]) == [None]
        await cache.put("t", "m", {"a": ONE})
        assert (await cache.get("t", "m", ["a"]))[0] is not None
    assert [record.message for record in caplog.records] == [
        "the cache does not answer",
        "the cache answers again",
    ]


async def test_a_value_of_another_form_is_not_known() -> None:
    redis = _Redis()
    cache = _cache(redis, _Clock())
    await cache.put("t", "m", {"a": ONE})
    for value in (b"", b"abc", b"\1\0\0\0", b"\1\0\0\0\0"):
        redis.values = dict.fromkeys(redis.values, value)
        assert await cache.get("t", "m", ["a"]) == [None]
