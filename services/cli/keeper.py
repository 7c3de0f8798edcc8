"""Keeps one part alive: starts it, waits until it is ready, and brings it back when it dies."""

import asyncio
import contextlib
import enum
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any

from services.cli.part import Part, spawn, sweep_group

PROBE_INTERVAL_S = 0.07
PROBE_TIMEOUT_S = 2.0
MAX_FIRST_TRIES = 5
"""A part that was never ready and died this often is given up: it is set up wrongly."""


class PartState(enum.Enum):
    """Where a part is in its life."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    BACKOFF = "backoff"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True)
class PartStatus:
    """A part as it is now.

    Attributes:
        pid: Its process; None when none runs.
        restarts: How often it was started again.
        last_exit: The status that it last ended with, negative for a signal; None before that.
        detail: One sentence about why, where there is something to say.
        ready_after_s: How long its latest start took; None until it is ready.
    """

    name: str
    state: PartState
    pid: int | None = None
    restarts: int = 0
    last_exit: int | None = None
    detail: str = ""
    ready_after_s: float | None = None


class Backoff:
    """Says how long to wait before the next start: doubling, and forgotten after a good run."""

    def __init__(
        self, *, first_s: float = 0.2, most_s: float = 5.0, reset_after_s: float = 30.0
    ) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._reset_after_s = reset_after_s
        self._next_s = first_s

    def next_delay_s(self, lived_s: float) -> float:
        """Returns the delay after a run that lasted `lived_s`, in seconds."""
        if lived_s >= self._reset_after_s:
            self._next_s = self._first_s
        delay = self._next_s
        self._next_s = min(self._next_s * 2, self._most_s)
        return delay


OnChange = Callable[[PartStatus], None]


class Keeper:
    """Keeps one part alive."""

    def __init__(self, part: Part, after: Sequence["Keeper"], on_change: OnChange) -> None:
        self.part = part
        self.status = PartStatus(part.name, PartState.WAITING)
        self.once_ready = asyncio.Event()
        self.settled = asyncio.Event()  # ready for the first time, or given up
        self._after = after
        self._on_change = on_change
        self._stopping = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._backoff = Backoff()

    async def run(self) -> None:
        """Runs the part until `stop`, or until it is given up."""
        try:
            self._set(await self._run())
        finally:
            self.settled.set()

    async def _run(self) -> PartState:
        for other in self._after:
            if not await self._unless_stopping(other.once_ready.wait()):
                return PartState.STOPPED
        first_start = time.monotonic()
        tries = 0
        while not self._stopping.is_set():
            tries += 1
            started = time.monotonic()
            await self._run_once()
            if self._stopping.is_set():
                break
            lived_s = time.monotonic() - started
            too_late = time.monotonic() - first_start > self.part.start_limit_s
            if not self.once_ready.is_set() and (tries >= MAX_FIRST_TRIES or too_late):
                return PartState.FAILED
            self._set(PartState.BACKOFF)
            delay = self._backoff.next_delay_s(lived_s)
            await self._unless_stopping(asyncio.sleep(delay))
            self.status = replace(self.status, restarts=self.status.restarts + 1)
        return PartState.STOPPED

    async def _run_once(self) -> None:
        started = time.monotonic()
        try:
            process = await spawn(self.part)
        except OSError as error:
            self._set(PartState.STARTING, detail=f"cannot be started: {error}")
            return
        self._process = process
        try:
            self._set(PartState.STARTING, pid=process.pid, detail="", ready_after_s=None)
            exited = asyncio.ensure_future(process.wait())
            ready = await self._wait_ready(exited, started)
            if ready is not None:
                self._set(PartState.READY, ready_after_s=ready)
                self.once_ready.set()
                self.settled.set()
            elif not exited.done() and not self._stopping.is_set():
                self._set(PartState.STARTING, detail=f"not ready in {self.part.start_limit_s:g} s")
                self.kill()
            code = await exited
            detail = "; ".join(filter(None, (_exit_words(code), self.status.detail)))
            self.status = replace(self.status, pid=None, last_exit=code, detail=detail)
        finally:
            self._process = None
            sweep_group(process.pid)

    async def _wait_ready(self, exited: "asyncio.Future[int]", started: float) -> float | None:
        """Returns the seconds until the part was ready; None when it ended or took too long."""
        while not exited.done() and not self._stopping.is_set():
            if await self._probe():
                # Something else may hold the port and answer in its place.
                return None if exited.done() else time.monotonic() - started
            if time.monotonic() - started > self.part.start_limit_s:
                return None
            await asyncio.wait({exited}, timeout=PROBE_INTERVAL_S)
        return None

    async def _probe(self) -> bool:
        # A probe fails in as many ways as there are protocols; each of them means "not yet".
        try:
            return await asyncio.wait_for(self.part.probe(), PROBE_TIMEOUT_S)
        except Exception as error:
            self.status = replace(self.status, detail=f"probe: {error or type(error).__name__}")
            return False

    async def _unless_stopping(self, waiting: Coroutine[Any, Any, object]) -> bool:
        task = asyncio.ensure_future(waiting)
        stop = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            return not self._stopping.is_set()
        finally:
            task.cancel()
            stop.cancel()

    def stop(self) -> None:
        """Asks the part to end and sees to it that it is not started again."""
        self._stopping.set()
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(self.part.stop_signal)

    def kill(self) -> None:
        """Ends the part's process group at once."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, 9)

    def _set(self, state: PartState, **changes: Any) -> None:
        if state is PartState.READY:
            changes["detail"] = ""
        self.status = replace(self.status, state=state, **changes)
        self._on_change(self.status)


def _exit_words(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"exited with {code}"
