"""Lets one of those who ask the same at the same time do the work, and the others wait for it."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from services.inference.response_cache.store import Answer


class Flights:
    """The answers that are being made now, by key.

    Args:
        max_waiting: How many wait for one answer at most; more go to the engine themselves.
        max_wait_s: How long one waits at most; then it goes to the engine itself.
    """

    def __init__(self, *, max_waiting: int, max_wait_s: float) -> None:
        self._max_waiting = max_waiting
        self._max_wait_s = max_wait_s
        self._flights: dict[bytes, Flight] = {}

    async def join(self, key: bytes, find: Callable[[], Answer | None]) -> Answer | None:
        """Waits for the answer while somebody makes it.

        Who gets None makes it: as the first (`lead`), or beside others where too many wait, it
        takes too long, or it failed or grew too large to be kept. When only the caller of the
        first left, the next of the waiting is the first.

        Args:
            key: What is asked.
            find: Looks for the answer.
        """
        answer = find()
        if answer is not None or key not in self._flights:
            return answer
        try:
            async with asyncio.timeout(self._max_wait_s):
                while (flight := self._flights.get(key)) is not None:
                    if flight.waiting >= self._max_waiting:
                        return None
                    await flight.over()
                    if flight.answer is not None or flight.is_hopeless:
                        return flight.answer
        except TimeoutError:
            return None
        return find()

    @contextmanager
    def lead(self, key: bytes) -> Iterator["Flight | None"]:
        """Makes the caller the first; gives None where another is, and the caller goes beside."""
        if key in self._flights:
            yield None
            return
        flight = self._flights[key] = Flight()
        try:
            yield flight
        except Exception:
            # It would fail for those who wait too, one after the other.
            flight.give_up()
            raise
        finally:
            del self._flights[key]
            flight.end()


class Flight:
    """One answer that is being made.

    Attributes:
        answer: The answer, once the first has it.
        is_hopeless: Whether there will be none to keep.
        waiting: How many wait for it.
    """

    def __init__(self) -> None:
        self.answer: Answer | None = None
        self.is_hopeless = False
        self.waiting = 0
        self._over = asyncio.Event()

    async def over(self) -> None:
        """Waits for the end, whatever it is."""
        self.waiting += 1
        try:
            await self._over.wait()
        finally:
            self.waiting -= 1

    def give_up(self) -> None:
        """Lets those who wait go: there will be no answer to keep."""
        self.is_hopeless = True
        self._over.set()

    def end(self) -> None:
        """Wakes those who wait."""
        self._over.set()
