"""Keeps vectors in Redis; the service works without it.

    key:   `emb:1:` and a 20-byte BLAKE2b of tenant, model and text, each with its length before it;
           after them `tokens` where tokens stand for the text (u32 each), and the dimensions
           where they are not all
    value: u32 tokens │ float32 …        (little-endian)

The tenant is part of the key although it changes no vector: a shared entry would tell one tenant,
by the time that an answer takes, that another has embedded the text.
"""

import hashlib
import logging
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, cast

import redis.asyncio
from redis.exceptions import RedisError

from services.embeddings.vectors import Input, Vector

log = logging.getLogger(__name__)

_PREFIX = b"emb:1:"
_LENGTH = struct.Struct("<I")
_RETRY_S = 1.0


class Cache(Protocol):
    """Remembers vectors; may forget any of them at any time. It never fails."""

    async def get(
        self, tenant: str, model: str, texts: Sequence[Input], dimensions: int | None = None
    ) -> list[Vector | None]:
        """Returns the vectors of so many dimensions that are known, None for each that is not."""

    async def put(
        self,
        tenant: str,
        model: str,
        vectors: Mapping[Input, Vector],
        dimensions: int | None = None,
    ) -> None:
        """Remembers the vectors of texts."""


class RedisCache:
    """A `Cache` in Redis. While Redis does not answer, one call a second tries it.

    Args:
        client: Answers or fails within a bounded time.
        ttl_s: How long a vector is kept after it was made.
        clock: Returns seconds.
    """

    def __init__(
        self, client: "redis.asyncio.Redis", *, ttl_s: int, clock: Callable[[], float]
    ) -> None:
        self._client = client
        self._ttl_s = ttl_s
        self._clock = clock
        self._is_down = False
        self._next_try = 0.0

    async def get(
        self, tenant: str, model: str, texts: Sequence[Input], dimensions: int | None = None
    ) -> list[Vector | None]:
        """Returns the vectors of so many dimensions that are known, None for each that is not."""
        if not self._may_try():
            return [None] * len(texts)
        try:
            keys = [_key(tenant, model, text, dimensions) for text in texts]
            values = cast("list[bytes | None]", await self._client.mget(keys))
        except (RedisError, OSError, TimeoutError) as error:
            self._failed(error)
            return [None] * len(texts)
        self._succeeded()
        return [None if value is None else _decode(value) for value in values]

    async def put(
        self,
        tenant: str,
        model: str,
        vectors: Mapping[Input, Vector],
        dimensions: int | None = None,
    ) -> None:
        """Remembers the vectors of texts."""
        if self._is_down:
            return
        pipeline = self._client.pipeline(transaction=False)
        for text, vector in vectors.items():
            value = _LENGTH.pack(vector.tokens) + vector.data
            pipeline.set(_key(tenant, model, text, dimensions), value, ex=self._ttl_s)
        try:
            await pipeline.execute()
        except (RedisError, OSError, TimeoutError) as error:
            self._failed(error)

    def _may_try(self) -> bool:
        if not self._is_down:
            return True
        now = self._clock()
        if now < self._next_try:
            return False
        # Only this call pays the timeout if Redis still does not answer.
        self._next_try = now + _RETRY_S
        return True

    def _failed(self, error: Exception) -> None:
        if not self._is_down:
            log.warning("the cache does not answer", extra={"error": repr(error)})
        self._is_down = True
        self._next_try = self._clock() + _RETRY_S

    def _succeeded(self) -> None:
        if self._is_down:
            log.info("the cache answers again")
        self._is_down = False


def _key(tenant: str, model: str, text: Input, dimensions: int | None) -> bytes:
    digest = hashlib.blake2b(digest_size=20)
    parts = [tenant.encode(), model.encode()]
    if isinstance(text, str):
        parts.append(text.encode())
    else:
        parts += [struct.pack(f"<{len(text)}I", *text), b"tokens"]
    if dimensions is not None:
        parts.append(_LENGTH.pack(dimensions))
    for data in parts:
        digest.update(_LENGTH.pack(len(data)))
        digest.update(data)
    return _PREFIX + digest.digest()


def _decode(value: bytes) -> Vector | None:
    if len(value) <= _LENGTH.size or len(value) % 4:
        return None
    return Vector(value[_LENGTH.size :], _LENGTH.unpack_from(value)[0], cached=True)
