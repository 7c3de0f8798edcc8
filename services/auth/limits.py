"""The limits of tenants, projects, keys, and keys with a model, and how a call finds its own."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from typing import NamedTuple, Protocol

from services.auth.limiting.contract import ScopeLimits

MAX_LIMITS = 100_000
"""The most scopes that can have limits; every replica keeps all in memory."""

_CACHED_CALLERS = 8192
_NANO = 1_000_000_000
_ID = re.compile(r"([tk]):([^/]+)|([pm]):([^/]+)/(.+)", re.DOTALL)


class Scope(NamedTuple):
    """What limits apply to; what does not belong to it is empty.

    Attributes:
        tenant: The tenant, of a tenant or a project.
        project: The project, of a project.
        key_id: The key, of a key or a key with a model.
        model: The model, of a key with a model.
    """

    tenant: str = ""
    project: str = ""
    key_id: str = ""
    model: str = ""

    @property
    def id(self) -> str:
        """The scope in one word. Example: `t:acme`, `p:acme/web`, `k:key_x`, `m:key_x/llama`."""
        if self.tenant:
            return f"p:{self.tenant}/{self.project}" if self.project else f"t:{self.tenant}"
        return f"m:{self.key_id}/{self.model}" if self.model else f"k:{self.key_id}"


def scope_of(scope_id: str) -> Scope:
    """Returns the scope that `Scope.id` wrote.

    Raises:
        ValueError: No scope is written so.
    """
    match = _ID.fullmatch(scope_id)
    if match is None:
        raise ValueError(f"`{scope_id}` is no scope")
    first, second = match[2] or match[4], match[5] or ""
    if scope_id[0] in "tp":
        return Scope(tenant=first, project=second)
    return Scope(key_id=first, model=second)


class Limits(NamedTuple):
    """The limits of one scope. None is not limited, 0 lets nothing in.

    Attributes:
        scope: What they apply to.
        requests_per_minute: Calls.
        tokens_per_minute: Tokens.
        concurrent_requests: Calls at the same time.
        tokens_per_day: Tokens in a day of UTC.
        usd_per_month: US dollars in a month of UTC.
        alert_percents: At which percentages of the last two to raise an alert, rising.
        update_time: When they were set, aware, in UTC.
    """

    scope: Scope
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrent_requests: int | None
    tokens_per_day: int | None
    usd_per_month: Decimal | None
    alert_percents: tuple[int, ...]
    update_time: datetime

    @property
    def needs_ledger(self) -> bool:
        """Whether sums of the ledger are needed to decide by them."""
        return self.tokens_per_day is not None or self.usd_per_month is not None

    def for_limiter(self) -> ScopeLimits:
        """Returns them as the limiter takes them."""
        usd = self.usd_per_month
        return ScopeLimits(
            scope=self.scope.id,
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            concurrent_requests=self.concurrent_requests,
            tokens_per_day=self.tokens_per_day,
            usd_per_month=None if usd is None else int(usd * _NANO),
            alert_percents=self.alert_percents,
        )


class LimitStore(Protocol):
    """Where limits are kept.

    Every method raises `MeshError` `STORE_UNAVAILABLE` when the store cannot be reached. Every
    write is told of to all replicas when it is committed.
    """

    async def put(self, limits: Limits) -> None:
        """Sets the limits of a scope in place of those until now.

        Raises:
            MeshError: `FAILED_PRECONDITION`: `MAX_LIMITS` scopes have limits already.
        """

    async def get(self, scopes: Iterable[Scope]) -> Sequence[Limits]:
        """Returns the limits of these scopes, as far as they have any."""

    async def page(self, size: int, after: Scope | None) -> Sequence[Limits]:
        """Returns the next limits by tenant, project, key and model."""

    async def delete(self, scope: Scope) -> Limits | None:
        """Takes all limits from a scope; returns them, None where it has none."""

    def all(self) -> AsyncIterator[Sequence[Limits]]:
        """Yields all limits in batches."""


class LimitBook:
    """All limits in memory, where every call finds those that apply to it.

    Attributes:
        changing: Held from the reading of the store to the change of the book that follows, so
            that what was read earlier never takes the place of what was read later.
        of: `of(tenant, project, key_id, model)` returns the limits that apply to a call, the
            widest scope first; it is cached, and most callers have none.
    """

    def __init__(self) -> None:
        self.changing = asyncio.Lock()
        self._limits: dict[str, ScopeLimits] = {}
        self.of: Callable[[str, str, str, str], tuple[ScopeLimits, ...]]
        self._forget()

    def __len__(self) -> int:
        return len(self._limits)

    def find(self, scope_id: str) -> ScopeLimits | None:
        """Returns the limits of a scope by its id; None where it has none."""
        return self._limits.get(scope_id)

    def apply(self, found: Mapping[Scope, Limits | None]) -> None:
        """Brings in limits that were set, or taken away (None)."""
        for scope, limits in found.items():
            if limits is None:
                self._limits.pop(scope.id, None)
            else:
                self._limits[scope.id] = limits.for_limiter()
        self._forget()

    async def load(self, batches: AsyncIterator[Sequence[Limits]]) -> None:
        """Takes these limits in place of all earlier ones, once the last batch is there."""
        loaded: dict[str, ScopeLimits] = {}
        async for batch in batches:
            for limits in batch:
                loaded[limits.scope.id] = limits.for_limiter()
        self._limits = loaded
        self._forget()

    def _forget(self) -> None:
        self.of = lru_cache(_CACHED_CALLERS)(self._find_all)

    def _find_all(
        self, tenant: str, project: str, key_id: str, model: str
    ) -> tuple[ScopeLimits, ...]:
        scopes = (
            Scope(tenant=tenant),
            Scope(tenant=tenant, project=project),
            Scope(key_id=key_id),
            Scope(key_id=key_id, model=model),
        )
        found = (self._limits.get(scope.id) for scope in scopes)
        return tuple(limits for limits in found if limits is not None)


class FollowedLimits:
    """The book of limits, as `follower` follows it.

    Args:
        channel: Where PostgreSQL tells of writes.
        store: Where the limits are read from.
        book: The limits to keep current.
    """

    def __init__(self, channel: str, store: LimitStore, book: LimitBook) -> None:
        self.channel = channel
        self._store = store
        self._book = book

    async def load(self) -> None:
        """See `Followed`."""
        async with self._book.changing:
            await self._book.load(self._store.all())

    async def apply(self, names: Sequence[str]) -> None:
        """See `Followed`; a name is a scope's id."""
        scopes = [scope_of(name) for name in names]
        async with self._book.changing:
            found = {limits.scope: limits for limits in await self._store.get(scopes)}
            self._book.apply({scope: found.get(scope) for scope in scopes})
