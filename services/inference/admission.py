"""How many requests the engine has at a time, and where the others wait.

    room at the engine  ── enter ────────────────────────► engine ── leave ──┐
    no room             ── wait ──► FairQueue ── its turn ──►  ▲             │
                                     │  full, or too long      └─────────────┘
                                     └► OVERLOADED with the seconds after which to try again

An engine's own queue is first come, first served, and nobody sees into it. So the engine gets what
it runs at the same time and a few more, which begin at once when others end; the rest waits here.
"""

import asyncio
import math
import time
from collections.abc import Callable

from services.inference import errors
from services.inference.fair_queue import FairQueue, Priority, Waiting
from services.inference.state import EngineState
from services.kit.errors import MeshError

_LOOK_AHEAD_SHARE = 8
_MIN_RETRY_S = 1
_MAX_RETRY_S = 60
_SMOOTHING = 0.1
# What an answer takes of the engine, in bytes of prompt; keeps short prompts from being free.
_ANSWER_COST = 4096


class Admission:
    """The door to one engine.

    Args:
        state: Where the counts stand that the mesh is told.
        engine_slots: How many requests the engine runs at a time; None is what it says itself.
        max_in_flight: The most at a time where the engine does not say, and in any case.
        max_queued: The most that wait.
        max_wait_s: The longest that one waits.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        state: EngineState,
        *,
        engine_slots: int | None = None,
        max_in_flight: int,
        max_queued: int,
        max_wait_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state = state
        self._engine_slots = engine_slots
        self._max_in_flight = max_in_flight
        self._max_wait_s = max_wait_s
        self._clock = clock
        self._queue: FairQueue[asyncio.Future[None]] = FairQueue(max_queued)
        self._timer: asyncio.TimerHandle | None = None
        self._capacity = max_in_flight
        # Moving average of how long a request has its place; None before the first gave it back.
        self._held_s: float | None = None
        # When the queue began, or one left it for the engine.
        self._moved_at = 0.0
        self.resize(None)

    @property
    def capacity(self) -> int:
        """How many requests the engine is given at a time."""
        return self._capacity

    def resize(self, slots: int | None) -> None:
        """Takes in how many requests the engine says that it runs at a time; None is unknown."""
        slots = self._engine_slots or slots
        if not slots:
            return
        look_ahead = max(1, slots // _LOOK_AHEAD_SHARE)
        self._capacity = min(slots + look_ahead, self._max_in_flight)
        self._let_in()

    def try_enter(self) -> bool:
        """Takes a place at the engine where there is one. Whoever has one must `leave`."""
        state = self._state
        if state.in_flight < self._capacity and not state.waiting:
            state.in_flight += 1
            return True
        return False

    async def wait(self, tenant: str, priority: Priority, prompt_bytes: int) -> None:
        """Waits for a place at the engine. Whoever has one must `leave`.

        Raises:
            MeshError: `OVERLOADED`: the queue is full, the wait too long, or the place went to
                somebody more urgent or with less here; what `refuse_waiting` says.
        """
        queue = self._queue
        now = self._clock()
        if queue.is_full:
            victim = queue.victim(tenant, priority)
            if victim is None:
                raise self._overloaded("is full")
            self._refuse(victim, self._overloaded("is full"))
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        waiting = Waiting(tenant, priority, prompt_bytes + _ANSWER_COST, now, future)
        if not queue:
            self._moved_at = now
        queue.push(waiting)
        self._state.waiting = len(queue)
        if self._timer is None:
            self._timer = loop.call_later(self._max_wait_s, self.expire)
        try:
            await future
        except asyncio.CancelledError:
            if future.cancelled():
                queue.discard(waiting)
                self._state.waiting = len(queue)
            elif future.exception() is None:
                # Its turn came in the moment in which the caller hung up.
                self._give_back()
            raise

    def leave(self, held_s: float) -> None:
        """Gives a place at the engine back.

        Args:
            held_s: How long the request had it.
        """
        average = self._held_s
        self._held_s = held_s if average is None else average + _SMOOTHING * (held_s - average)
        self._give_back()

    def _give_back(self) -> None:
        self._state.in_flight -= 1
        if self._state.waiting:
            self._let_in()

    def refuse_waiting(self, error: Callable[[], MeshError]) -> None:
        """Refuses all that wait, each with an error of its own."""
        while (waiting := self._queue.oldest) is not None:
            self._refuse(waiting, error())

    def expire(self) -> None:
        """Refuses those that have waited too long, and comes back for the others."""
        self._timer = None
        now = self._clock()
        while (oldest := self._queue.oldest) is not None:
            left_s = oldest.since + self._max_wait_s - now
            if left_s > 0:
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(left_s, self.expire)
                return
            # It has waited as long as a caller is kept; at another node it would do so again.
            self._refuse(oldest, self._overloaded("moves too slowly", is_final=True))

    def retry_after_s(self) -> int:
        """Returns the seconds in which the queue as it is now empties, 1 to 60.

        A place becomes free every so many seconds as a request has one, over the number of places.
        Before the first answer that is unknown, and the longest wait stands in for it.
        """
        if self._held_s is None:
            seconds = self._max_wait_s
        else:
            interval_s = self._held_s / self._capacity
            if self._queue:
                # One that stands still must not look as fast as it was.
                interval_s = max(interval_s, self._clock() - self._moved_at)
            seconds = interval_s * max(len(self._queue), 1)
        return min(max(math.ceil(seconds), _MIN_RETRY_S), _MAX_RETRY_S)

    def _let_in(self) -> None:
        state, queue = self._state, self._queue
        while state.in_flight < self._capacity and queue:
            waiting = queue.pop()
            state.waiting = len(queue)
            if waiting.ticket.done():
                # Its caller hung up and its task has not run since.
                continue
            self._moved_at = self._clock()
            state.in_flight += 1
            waiting.ticket.set_result(None)

    def _refuse(self, waiting: Waiting[asyncio.Future[None]], error: MeshError) -> None:
        self._queue.discard(waiting)
        self._state.waiting = len(self._queue)
        if not waiting.ticket.done():
            waiting.ticket.set_exception(error)

    def _overloaded(self, why: str, *, is_final: bool = False) -> MeshError:
        seconds = self.retry_after_s()
        return errors.overloaded(f"The node's queue {why}.", seconds, is_final=is_final)
