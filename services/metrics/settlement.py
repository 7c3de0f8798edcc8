"""Tells auth what calls took, at least once; auth makes that exactly once.

    record ─► ledger, totals, outbox: one transaction ─► wake ─► batch ─► SettleUsage ─► delete

The rows of a batch are locked until auth has answered, so that several replicas share the outbox,
and a replica that dies gives its batch back.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

import grpc
from sqlalchemy.ext.asyncio import AsyncEngine

from infermesh.auth.v1 import limit_service_pb2
from services.kit.database import transaction
from services.metrics import outbox, scope_store
from services.metrics.convert_sums import scope_total
from services.metrics.outbox import Taken
from services.metrics.scopes import Span, VersionedTotal, spans_of

log = logging.getLogger(__name__)

Settle = Callable[[limit_service_pb2.SettleUsageRequest], Awaitable[None]]
"""Brings a batch to auth; returns when it is taken in."""

MAX_BATCH = 1000
"""A request is in 8 spans at most, and auth takes 10000 totals at a time."""

_PAUSE_S = 0.15
_POLL_S = 5.0
_FIRST_BACKOFF_S = 0.1
_MAX_BACKOFF_S = 2.0


class Settler:
    """Sends what is in the outbox.

    Args:
        engine: Opens connections.
        settle: Brings a batch to auth.
    """

    def __init__(self, engine: AsyncEngine, settle: Settle) -> None:
        self._engine = engine
        self._settle = settle
        self._waiting = asyncio.Event()
        self._most = MAX_BATCH
        # What an earlier process left is sent at once.
        self._waiting.set()

    def wake(self) -> None:
        """Says that there is something to send."""
        self._waiting.set()

    async def run(self) -> None:
        """Sends forever: at once what comes after a pause, else in batches, six a second."""
        backoff_s = _FIRST_BACKOFF_S
        is_failing = False
        while True:
            # What a replica left that died is nobody's to wake for.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_POLL_S):
                    await self._waiting.wait()
            self._waiting.clear()
            try:
                while await self.send_batch():
                    pass
            except Exception as error:
                if not is_failing:
                    log.warning("usage cannot be settled, it waits", extra={"error": repr(error)})
                is_failing = True
                self._waiting.set()
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, _MAX_BACKOFF_S)
                continue
            if is_failing:
                log.info("usage is settled again")
            is_failing, backoff_s = False, _FIRST_BACKOFF_S
            await asyncio.sleep(_PAUSE_S)

    async def send_batch(self) -> int:
        """Sends one batch and returns how many entries it had; those that are refused stay.

        Raises:
            StoreUnavailableError: PostgreSQL does not answer.
            grpc.aio.AioRpcError: Auth does not take it in.
        """
        async with transaction(self._engine) as connection:
            taken = await outbox.take(connection, self._most)
            if not taken:
                return 0
            uses = {each.entry.use for each in taken}
            spans = sorted({span for use in uses for span in spans_of(use)})
            totals = await scope_store.read(connection, spans)
            try:
                await self._settle(_request(taken, totals))
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
                    raise
                # It would be refused for ever, and all behind it would wait.
                if len(taken) > 1:
                    self._most = len(taken) // 2
                    return len(taken)
                log.error(
                    "auth refuses a settlement; it is dropped, the ledger has it",
                    extra={
                        "settled_request_id": taken[0].entry.request_id,
                        "error": error.details(),
                    },
                )
            await outbox.remove(connection, taken)
        self._most = min(2 * self._most, MAX_BATCH)
        return len(taken)


def _request(
    taken: Sequence[Taken], totals: Mapping[Span, VersionedTotal]
) -> limit_service_pb2.SettleUsageRequest:
    tokens = {each.entry.request_id: each.tokens for each in taken}
    return limit_service_pb2.SettleUsageRequest(
        settlements=(
            limit_service_pb2.Settlement(request_id=request_id, tokens=count)
            for request_id, count in tokens.items()
        ),
        totals=(scope_total(span, total) for span, total in totals.items()),
    )
