"""Works through batches for as long as the process lives."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from services.jobs.batches import requests
from services.jobs.batches.callers import NotNowError
from services.jobs.batches.claim import Claim
from services.jobs.batches.pace import Pace
from services.jobs.batches.results import Results
from services.jobs.batches.runner import NoRoomError, Runner
from services.jobs.batches.store import Batch
from services.jobs.batches.work import Work
from services.jobs.files.store import FileStore
from services.kit.errors import StoreUnavailableError

log = logging.getLogger(__name__)

_IDLE_S = 1.0
# Where nothing runs here, and nobody has said that there is something.
_RESTING_S = 3.0
_BEATS = 3.0
_ADDED = 200
_RETRY_S = 2.0
_INTERRUPTED = (
    "interrupted",
    "The mesh was stopped while this request ran. It was not run again.",
)
_FAILED = ("internal", "The mesh failed to handle the request.")


class Worker:
    """Reads inputs, runs lines and writes results.

    Args:
        work: The tables.
        files: Where inputs are.
        results: Writes outputs.
        runner: Runs lines.
        pace: How many lines at a time.
        max_lines: The most lines of a batch.
        lease_s: How long others believe that this worker lives.
        clock: Monotonic, in seconds.
    """

    def __init__(
        self,
        work: Work,
        files: FileStore,
        results: Results,
        runner: Runner,
        pace: Pace,
        *,
        max_lines: int,
        lease_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._work = work
        self._files = files
        self._results = results
        self._runner = runner
        self._pace = pace
        self._max_lines = max_lines
        self._beat_s = lease_s / _BEATS
        self._clock = clock
        self._running: dict[asyncio.Task[None], Claim] = {}
        self._reasons: dict[asyncio.Task[None], tuple[str, str]] = {}
        self._poked = asyncio.Event()
        self._next_beat = 0.0
        # Batches of which no line may begin, and until when.
        self._held: dict[str, float] = {}

    def poke(self) -> None:
        """Says that there may be something to do."""
        self._poked.set()

    @contextlib.asynccontextmanager
    async def working(self, drain_s: float) -> AsyncIterator[None]:
        """Works for as long as the context lasts; what runs then has `drain_s` to end."""
        loop = asyncio.create_task(self._loop(), name="batches")
        beat = asyncio.create_task(self._beat(), name="batches' heartbeat")
        try:
            yield
        finally:
            loop.cancel()
            await asyncio.gather(loop, return_exceptions=True)
            await self._drain(drain_s)
            beat.cancel()
            await asyncio.gather(beat, return_exceptions=True)
            with contextlib.suppress(StoreUnavailableError):  # the lease ends by itself
                await self._work.leave()

    async def _beat(self) -> None:
        while True:
            try:
                await self._work.beat()
            except StoreUnavailableError as error:
                log.warning("the worker cannot say that it lives", extra={"error": str(error)})
            await asyncio.sleep(self._beat_s)

    async def _loop(self) -> None:
        while True:
            self._poked.clear()
            try:
                is_busy = await self._step()
            except StoreUnavailableError as error:
                log.warning("batches wait", extra={"error": str(error)})
                is_busy = False
            except Exception:
                log.exception("batches cannot go on")
                is_busy = False
            if not is_busy:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._pause_s()):
                        await self._poked.wait()

    def _pause_s(self) -> float:
        if self._running:
            return _IDLE_S
        return max(_IDLE_S, min(_RESTING_S, self._beat_s))

    async def _step(self) -> bool:
        """Does what there is to do; returns whether there may be more at once."""
        if self._clock() >= self._next_beat:
            self._next_beat = self._clock() + self._beat_s
            await self._work.beat()
            await self._work.reap()
        await self._stop_what_is_over()
        await self._work.expire()
        if (batch := await self._work.to_validate()) is not None:
            await self._try_to_read(batch)
        claims: list[Claim] = []
        if free := self._pace.free(len(self._running)):
            claims = await self._work.claim(free, self._held_now())
        for claim in claims:
            task = asyncio.create_task(self._run(claim), name=f"batch line {claim.request_id}")
            self._running[task] = claim
            task.add_done_callback(self._on_end)
        is_ended = await self._results.finalize()
        return bool(batch or claims or is_ended)

    def _held_now(self) -> list[str]:
        now = self._clock()
        self._held = {batch_id: until for batch_id, until in self._held.items() if until > now}
        return list(self._held)

    def _on_end(self, task: asyncio.Task[None]) -> None:
        self._running.pop(task, None)
        self._reasons.pop(task, None)
        self._poked.set()

    async def _stop_what_is_over(self) -> None:
        if not self._running:
            return
        stopped = await self._work.stopped([c.batch.id for c in self._running.values()])
        for task, claim in list(self._running.items()):
            if claim.batch.id in stopped and task not in self._reasons:
                self._reasons[task] = stopped[claim.batch.id]
                task.cancel()

    async def _try_to_read(self, batch: Batch) -> None:
        try:
            await self._read(batch)
        except StoreUnavailableError:
            raise
        except Exception:
            # A file that cannot be read must not keep the others waiting.
            log.exception("a batch's input cannot be read", extra={"batch": batch.id})
            await self._work.fail(batch, requests.file_errors(*_FAILED))

    async def _read(self, batch: Batch) -> None:
        """Makes lines of a batch's input."""
        file_id = batch.fields["input_file_id"]
        reader = requests.LineReader(batch.fields["endpoint"])
        total = number = 0
        while (piece := await self._files.piece(file_id, number)) is not None:
            number += 1
            found = reader.feed(piece)
            total += await self._add(batch, found, total)
        total += await self._add(batch, reader.finish(), total)
        # A file that is deleted meanwhile ends early: half of its lines are not the batch.
        if not total or await self._files.piece(file_id, 0) is None:
            why = requests.file_errors("empty_file", "The input file has no lines, or is gone.")
            await self._work.fail(batch, why)
        elif total > self._max_lines:
            why = requests.file_errors(
                "too_many_lines", f"A batch may have {self._max_lines} lines at most."
            )
            await self._work.fail(batch, why)
        else:
            await self._work.begin(batch, total)

    async def _add(self, batch: Batch, found: list[requests.Line], before: int) -> int:
        room = max(0, self._max_lines - before)
        for start in range(0, min(room, len(found)), _ADDED):
            await self._work.add(batch, found[start : min(room, start + _ADDED)])
        return len(found)

    async def _run(self, claim: Claim) -> None:
        """Runs a line and writes down how it ended."""
        try:
            outcome = await self._runner.run(claim)
        except NotNowError as error:
            wait_s = error.wait_s
            # All of them have the same key: another line of it would only be asked for in vain.
            self._held[claim.batch.id] = self._clock() + wait_s
            await self._kept(lambda: self._work.put_back(claim, wait_s))
            return
        except NoRoomError as error:
            refused_s = self._pace.was_refused(error.retry_after_s)
            await self._kept(lambda: self._work.put_back(claim, refused_s))
            return
        except asyncio.CancelledError:
            task = asyncio.current_task()
            why = self._reasons.get(task, _INTERRUPTED) if task else _INTERRUPTED
            await self._end(claim, why)
            return
        except Exception:
            log.exception("a batch's line failed", extra={"batch": claim.batch.id})
            await self._end(claim, _FAILED)
            return
        self._pace.went_well()
        await self._kept(lambda: self._work.finish(claim, outcome.result, is_ok=outcome.is_ok))

    async def _end(self, claim: Claim, why: tuple[str, str]) -> None:
        result = requests.unanswered(claim.request_id, claim.custom_id, *why)
        await self._kept(lambda: self._work.finish(claim, result, is_ok=False))

    async def _kept(self, write: Callable[[], Awaitable[None]]) -> None:
        """Writes until it is written: while this worker lives nobody takes the line from it."""
        while True:
            try:
                await write()
                return
            except StoreUnavailableError as error:
                log.warning("a line's end waits for the store", extra={"error": str(error)})
                await asyncio.sleep(_RETRY_S)

    async def _drain(self, drain_s: float) -> None:
        tasks = list(self._running)
        if not tasks:
            return
        await asyncio.wait(tasks, timeout=drain_s)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=drain_s + _RETRY_S)
