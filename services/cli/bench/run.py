"""Runs a plan: callers who wait for their answers, or calls that begin when they are meant to."""

import asyncio
import contextlib
import gc
import resource
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

from services.cli.bench.answer import Call, now_s
from services.cli.bench.plan import Plan
from services.cli.bench.prompts import Bodies

_SPARE_FILES = 64


class Asking(Protocol):
    """The way to the mesh."""

    async def ask(self, body: bytes, call: Call) -> None:
        """Asks and reads the whole answer into the call."""


@dataclass
class Taken:
    """What a run has seen so far; times are seconds by `now_s`.

    Attributes:
        began: When the first call could begin.
        calls: Calls that are over, in the order of their ends.
        open: Calls that are not.
        abandoned: Calls that were under way when the run was stopped.
    """

    began: float = 0.0
    calls: list[Call] = field(default_factory=list)
    open: int = 0
    abandoned: int = 0


class Run:
    """One run of a plan.

    Args:
        plan: What is asked.
        bodies: The bodies of the calls.
        asking: The way to the mesh.

    Attributes:
        taken: What it has seen.
    """

    def __init__(self, plan: Plan, bodies: Bodies, asking: Asking) -> None:
        self._plan, self._bodies, self._asking = plan, bodies, asking
        self._number = 0
        self._stopping = asyncio.Event()
        self.taken = Taken()

    async def warm_up(self) -> list[Call]:
        """Asks what does not count, one call after the other."""
        calls = []
        for _ in range(self._plan.warmup):
            call = Call(now_s())
            await self._ask(call)
            calls.append(call)
        return calls

    async def run(self) -> Taken:
        """Asks all that the plan says, or until `stop`."""
        _raise_file_limit(self._plan.concurrency)
        self.taken.began = now_s()
        # A collection would be a pause of ours in everybody's figures.
        gc.collect()
        gc.disable()
        try:
            await self._until_stopped(self._closed() if self._plan.rate is None else self._open())
        finally:
            gc.enable()
        return self.taken

    def stop(self) -> None:
        """Begins no more calls and leaves those under way."""
        self._stopping.set()

    async def _closed(self) -> None:
        """So many callers, each of whom asks again when it is answered."""
        most = self._plan.most_calls
        ends = now_s() + (self._plan.duration_s or float("inf"))
        begun = 0

        async def caller() -> None:
            nonlocal begun
            while begun < most and now_s() < ends:
                begun += 1
                await self._one(now_s())

        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._plan.concurrency, most)):
                group.create_task(caller())

    async def _open(self) -> None:
        """Calls begin when they are meant to; where none has room it waits, on its own time."""
        room = asyncio.Semaphore(self._plan.concurrency)

        async def one(meant: float) -> None:
            async with room:
                await self._one(meant)

        async with asyncio.TaskGroup() as group:
            for after_s in self._plan.beginnings():
                meant = self.taken.began + after_s
                await asyncio.sleep(max(meant - now_s(), 0))
                group.create_task(one(meant))

    async def _until_stopped(self, work: Coroutine[Any, Any, None]) -> None:
        doing = asyncio.create_task(work)
        stop = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({stop, doing}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not doing.done():
            doing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await doing

    async def _one(self, meant: float) -> None:
        call = Call(meant)
        self.taken.open += 1
        try:
            await self._ask(call)
        except asyncio.CancelledError:
            self.taken.abandoned += 1
            raise
        finally:
            self.taken.open -= 1
        self.taken.calls.append(call)

    async def _ask(self, call: Call) -> None:
        body = self._bodies(self._number)
        self._number += 1
        try:
            async with asyncio.timeout(call.meant + self._plan.timeout_s - now_s()):
                await self._asking.ask(body, call)
        except TimeoutError:
            call.error = "timeout"
        if call.error and call.last is None:
            call.last = now_s()


def _raise_file_limit(connections: int) -> None:
    """Lets this process have as many connections as the plan wants, or as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _SPARE_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
