"""The limiter: asks the script in Redis, in batches, and does without it while Redis is away."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import hiredis

from services.auth.limiting import wire
from services.auth.limiting.contract import (
    Alert,
    FindLimits,
    LimiterAwayError,
    Mode,
    ScopeLimits,
    Settlement,
    Status,
    Total,
    TotalsSource,
    Use,
    Verdict,
)
from services.auth.limiting.journal import Journal
from services.auth.limiting.link import TIMEOUT_S, Link, LinkLostError
from services.auth.limiting.seeding import Seeding
from services.auth.limiting.shares import Shares
from services.auth.limiting.tally import Tally
from services.auth.limiting.upkeep import Upkeep, run_script
from services.auth.limiting.uses import uses
from services.auth.limiting.wire import Admission, Plain

log = logging.getLogger(__name__)

# Redis does one batch at a time and nothing beside: this many operations take it a few ms at most.
_MAX_BATCH = 128
_MAX_QUEUE = 20_000
# Nobody waits for the answer to an end, so that it goes with the next call, or after this time.
_RELEASE_S = 0.005


@dataclass(frozen=True)
class LimiterOptions:
    """How a replica limits.

    Attributes:
        redis_url: `redis://user:password@host:port/db`, or `rediss://…`.
        reservation_s: After how long a call of which nothing is heard gives back what it reserved.
        without_redis: While Redis is away, let calls in by this replica's share (`local`), or
            refuse those that have limits (`refuse`).
        replica: This replica's name; by default one that no other has.
        at: Tests set the script's time by it: second and microsecond.
    """

    redis_url: str
    reservation_s: int = 900
    without_redis: Literal["local", "refuse"] = "local"
    replica: str = ""
    at: Callable[[], tuple[int, int]] | None = None


class RedisLimiter:
    """A `Limiter` in Redis.

    What callers ask for in one turn of the loop, or while Redis works on what was asked before,
    goes to it as one call of the script.

    Args:
        options: How to limit.
        source: Knows what the ledger has; None where there is nobody to ask.
    """

    def __init__(self, options: LimiterOptions, source: TotalsSource | None = None) -> None:
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._link: Link | None = None
        self._queue: deque[wire.Operation] = deque()
        self._is_asking = False
        self._is_due = False
        self._is_soon = False
        self._journal = Journal(options.reservation_s)
        self._shares = Shares(options.reservation_s)
        self._shares.away_since = time.time()
        self._seeding = Seeding(source, self._write_totals)
        self._tasks: set[asyncio.Task[None]] = set()
        self._upkeep = Upkeep(
            options.redis_url,
            options.replica or secrets.token_hex(8),
            self._journal,
            self._shares,
            self._request,
            self._on_up,
            self._on_lost,
        )
        self._tally = Tally(Mode.LOCAL if options.without_redis == "local" else Mode.REFUSE)

    # What auth asks ----------------------------------------------------------------------------

    def admit(
        self, request_id: str, scopes: Sequence[ScopeLimits], tokens: int, usd_nano: int
    ) -> "asyncio.Future[Verdict]":
        """Asks for a call; see `Limiter`."""
        future: asyncio.Future[Verdict] = self._loop.create_future()
        call = Admission(request_id, scopes, tokens, usd_nano, future)
        if self._link is None:
            self._decide_alone(call)
        elif len(self._queue) >= _MAX_QUEUE:
            self._answer(call, Verdict(False))
        else:
            self._ask(call)
        return future

    def release(self, request_id: str, *, reached_node: bool, caller_left: bool = False) -> None:
        """The call has ended; see `Limiter`."""
        self._shares.release(request_id)
        how = 2 if reached_node and caller_left else int(reached_node)
        operation = Plain([wire.RELEASE, request_id, how], int(time.time()))
        if self._link is None:
            self._journal.add(operation)
        else:
            self._queue.append(operation)
            if not self._is_asking and not self._is_due:
                self._is_due = True
                self._loop.call_later(_RELEASE_S, self._flush)

    async def settle(
        self,
        settlements: Sequence[Settlement],
        totals: Sequence[Total],
        find: FindLimits | None = None,
    ) -> list[Alert]:
        """Takes in what calls took and what the ledger has; see `Limiter`.

        Raises:
            LimiterAwayError: Not all of it is in Redis. Send it again.
        """
        self._seeding.remember(totals)
        # The totals first: what calls took is then counted before their reservations go.
        ops = [wire.total_op(total, find(total.scope) if find else None) for total in totals]
        ops += [
            [wire.SETTLE, each.request_id, -1 if each.tokens is None else each.tokens]
            for each in settlements
        ]
        alerts: list[Alert] = []
        for start in range(0, len(ops), _MAX_BATCH):
            plain = [Plain(op, 0) for op in ops[start : start + _MAX_BATCH]]
            reply = await self._call(self._request(plain))
            alerts += self._tally.take_alerts(reply.alerts)
        return alerts

    async def state(self, limits: ScopeLimits) -> list[Use]:
        """Returns what is used, one for each limit that is set.

        Raises:
            LimiterAwayError: Redis does not answer, or a total is not known.
        """
        for _ in range(2):
            argument = wire.state_request(
                self._upkeep.run_id, self._at(), self._options.reservation_s, limits
            )
            result = (await self._call(argument)).results[0]
            if result[0] != wire.MISSING:
                return uses(limits, result)
            if not await self._seeding.seed(wire.wanted(result)):
                break
        raise LimiterAwayError("what the ledger has of the scope is not known")

    def status(self) -> Status:
        """Returns how this replica limits."""
        return self._tally.status()

    # Batches -----------------------------------------------------------------------------------

    def _ask(self, operation: wire.Operation) -> None:
        self._queue.append(operation)
        if not self._is_asking and not self._is_soon:
            self._is_due = self._is_soon = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_due = self._is_soon = False
        link = self._link
        if self._is_asking or link is None or not self._queue:
            return
        queue = self._queue
        if len(queue) <= _MAX_BATCH:
            batch: Sequence[wire.Operation] = list(queue)
            queue.clear()
        else:
            batch = [queue.popleft() for _ in range(_MAX_BATCH)]
        self._is_asking = True
        argument = self._request(batch)
        packed = wire.packed(argument)

        def on_reply(reply: Any) -> None:
            if wire.is_unknown_script(reply):
                link.send(wire.packed_with_script(argument), on_reply)
                return
            self._is_asking = False
            if isinstance(reply, Exception):
                self._on_failure(link, batch, reply)
                return
            self._on_answer(batch, wire.read(reply))
            if queue:
                self._flush()

        link.send(packed, on_reply)

    def _request(self, operations: Sequence[wire.Operation]) -> bytes:
        hold_s = self._options.reservation_s
        return wire.request(self._upkeep.run_id, self._at(), hold_s, operations)

    def _at(self) -> tuple[int, int] | None:
        return self._options.at() if self._options.at is not None else None

    def _on_answer(self, batch: Sequence[wire.Operation], reply: wire.Reply) -> None:
        second, micros, results, found = reply
        alerts: dict[int, tuple[Alert, ...]] = {}
        for each in found:
            alerts[each[0]] = (*alerts.get(each[0], ()), *self._tally.take_alerts([each]))
        for i, operation in enumerate(batch):
            if not isinstance(operation, Admission):
                self._journal.keep(operation)
                continue
            result = results[i]
            kind = result[0]
            if kind == wire.MISSING:
                self._find_totals(operation, wire.wanted(result))
                continue
            if kind != wire.REFUSED:
                self._shares.note(operation.scopes, result, second)
                operation.second = second
                self._journal.keep(operation.charge())
            told = alerts.get(i + 1, ()) if alerts else ()
            self._answer(operation, wire.verdict(result, operation.scopes, micros, told))

    def _answer(self, call: Admission, verdict: Verdict) -> None:
        if not verdict.admitted:
            self._tally.on_refusal(verdict)
        if not call.future.done():
            call.future.set_result(verdict)

    def _decide_alone(self, call: Admission) -> bool:
        if self._options.without_redis == "refuse":
            self._answer(call, Verdict(False))
            return False
        verdict = self._shares.admit(call)
        if verdict.admitted:
            self._tally.on_local()
            charge = call.charge()
            if self._link is None:
                self._journal.add(charge)
            else:
                self._ask(charge)
        self._answer(call, verdict)
        return verdict.admitted

    def _find_totals(self, call: Admission, wanted: Sequence[Any]) -> None:
        if call.tried:
            self._decide_alone(call)
            return
        call.tried = True

        async def find() -> None:
            try:
                is_seeded = await self._seeding.seed(wanted)
            except asyncio.CancelledError:
                self._answer(call, Verdict(False))
                raise
            if is_seeded and self._link is not None:
                self._ask(call)
            else:
                self._decide_alone(call)

        task = asyncio.create_task(find(), name="limits-unknown-total")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write_totals(self, totals: Sequence[Total]) -> None:
        for start in range(0, len(totals), _MAX_BATCH):
            part = totals[start : start + _MAX_BATCH]
            await self._call(
                self._request([Plain(wire.total_op(total, None), 0) for total in part])
            )

    async def _call(self, argument: bytes) -> wire.Reply:
        """Runs the script beside the batches.

        Raises:
            LimiterAwayError: Redis does not answer.
        """
        link = self._link
        if link is None:
            raise LimiterAwayError("Redis is away")
        try:
            return await run_script(link, argument)
        except (LinkLostError, hiredis.ReplyError) as error:
            link.close()
            raise LimiterAwayError("Redis is away") from error

    # Redis comes and goes ------------------------------------------------------------------------

    def _on_up(self, link: Link) -> None:
        self._link = link
        self._shares.away_since = None
        self._tally.on_redis(is_there=True)

    def _on_failure(self, link: Link, batch: Sequence[wire.Operation], error: Exception) -> None:
        if not isinstance(error, LinkLostError):
            log.error("Redis refuses to limit", extra={"error": str(error)})
        if self._link is link:
            self._link = None
            self._shares.away_since = time.time()
            self._tally.on_redis(is_there=False)
        link.close()
        # Whether the batch was done is not known: it is told again when Redis is back, and what is
        # known there by then changes nothing.
        unsent = list(self._queue)
        self._queue.clear()
        for operation in (*batch, *unsent):
            if not isinstance(operation, Admission):
                self._journal.add(operation)
            elif not self._decide_alone(operation):
                # Redis may have let it in all the same.
                op = [wire.RELEASE, operation.request_id, 0]
                self._journal.add(Plain(op, int(time.time())))

    def _on_lost(self, link: Link) -> None:
        if self._link is link:
            self._on_failure(link, (), LinkLostError("the connection to Redis is lost"))

    async def run(self, started: asyncio.Event) -> None:
        """Keeps the connection until it is cancelled.

        Args:
            started: Set after the first try to connect, whether it worked or not.
        """
        try:
            await self._upkeep.run(started)
        finally:
            deadline = self._loop.time() + 4 * TIMEOUT_S
            while self._link and (self._queue or self._is_asking) and self._loop.time() < deadline:
                self._flush()
                await asyncio.sleep(0.005)
            link = self._link
            if link is not None:
                await self._upkeep.leave(link)
                self._on_failure(link, (), LinkLostError("this replica leaves"))

    async def close(self) -> None:
        """Gives up on what is being asked for."""
        for task in list(self._tasks):
            task.cancel()
        await self._seeding.close()


@contextlib.asynccontextmanager
async def opened(
    options: LimiterOptions, source: TotalsSource | None = None
) -> AsyncIterator[RedisLimiter]:
    """Runs a limiter for as long as the context lasts.

    It is entered after one try to connect: without Redis it starts as the options say.
    """
    limiter = RedisLimiter(options, source)
    started = asyncio.Event()
    try:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(limiter.run(started), name="limiter")
            await started.wait()
            yield limiter
            task.cancel()
    finally:
        await limiter.close()
