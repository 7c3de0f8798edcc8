"""Asks for the ledger's sums that Redis does not have, once for all calls that wait for them."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence

from services.auth.limiting.contract import (
    LimiterAwayError,
    Total,
    TotalsSource,
    TotalsUnknownError,
    Wanted,
)

log = logging.getLogger(__name__)

_TIMEOUT_S = 1.0
# A ledger that does not answer is not asked for each call.
_PAUSE_S = 0.5
_MAX_ASKED = 1000
_MAX_WAITING = 10_000
_MAX_REMEMBERED = 50_000

Write = Callable[[Sequence[Total]], Awaitable[object]]


class Seeding:
    """Brings totals to Redis.

    While the ledger does not answer, the last total of the period that passed through this replica
    is used: the ledger takes nothing in while it is away.

    Args:
        source: Knows what the ledger has; None where there is nobody to ask.
        write: Takes totals to Redis; raises `LimiterAwayError` where it does not take them.
    """

    def __init__(self, source: TotalsSource | None, write: Write) -> None:
        self._source = source
        self._write = write
        self._waiting: dict[Wanted, asyncio.Future[bool]] = {}
        self._remembered: OrderedDict[Wanted, Total] = OrderedDict()
        self._task: asyncio.Task[None] | None = None
        self._paused_until = 0.0

    def remember(self, totals: Sequence[Total]) -> None:
        """Takes note of totals that the ledger told of."""
        for total in totals:
            key = Wanted(total.scope, total.period, total.start_date)
            known = self._remembered.pop(key, None)
            newer = known is None or total.version > known.version
            self._remembered[key] = total if newer else known  # type: ignore[assignment]
        while len(self._remembered) > _MAX_REMEMBERED:
            self._remembered.popitem(last=False)

    async def seed(self, wanted: Sequence[Wanted]) -> bool:
        """Returns whether Redis has all of these now."""
        futures = []
        for each in wanted:
            future = self._waiting.get(each)
            if future is None:
                if len(self._waiting) >= _MAX_WAITING:
                    return False
                future = self._waiting[each] = asyncio.get_running_loop().create_future()
            futures.append(future)
        if self._task is None:
            self._task = asyncio.create_task(self._work(), name="limits-totals")
        # Shielded: others may wait for the same.
        return all([await asyncio.shield(future) for future in futures])

    async def close(self) -> None:
        """Gives up on what is asked for."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _work(self) -> None:
        try:
            while self._waiting:
                asked = list(self._waiting)[:_MAX_ASKED]
                found = await self._find(asked)
                try:
                    await self._write([total for total in found if total is not None])
                except LimiterAwayError:
                    found = [None] * len(asked)
                for key, total in zip(asked, found, strict=True):
                    self._waiting.pop(key).set_result(total is not None)
        finally:
            self._task = None
            for future in self._waiting.values():
                if not future.done():
                    future.set_result(False)
            self._waiting.clear()

    async def _find(self, asked: Sequence[Wanted]) -> list[Total | None]:
        now = asyncio.get_running_loop().time()
        if self._source is not None and now >= self._paused_until:
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    totals = await self._source.get_totals(asked)
                self.remember(totals)
                return list(totals)
            except (TotalsUnknownError, TimeoutError) as error:
                self._paused_until = now + _TIMEOUT_S + _PAUSE_S
                log.warning("the ledger's sums are not known", extra={"error": repr(error)})
        return [self._remembered.get(key) for key in asked]
