"""A clock that tests turn themselves, in the shape of an event loop."""

from collections.abc import Callable
from heapq import heappop, heappush


class _Handle:
    def __init__(self) -> None:
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class SimulatedTime:
    """Calls what is due when the test lets time pass."""

    def __init__(self) -> None:
        self.now = 0.0
        self._number = 0
        self._due: list[tuple[float, int, _Handle, Callable[[], object]]] = []

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[[], object], /) -> _Handle:
        return self.call_later(0.0, callback)

    def call_later(self, delay: float, callback: Callable[[], object], /) -> _Handle:
        handle = _Handle()
        self._number += 1
        heappush(self._due, (self.now + delay, self._number, handle, callback))
        return handle

    def until(self, moment: float) -> None:
        """Lets time pass until `moment`; what is due then is called as well."""
        while self._due and self._due[0][0] <= moment + 1e-9:
            at, _, handle, callback = heappop(self._due)
            if not handle.is_cancelled:
                self.now = max(self.now, at)
                callback()
        self.now = moment

    @property
    def pending(self) -> int:
        """How many calls are still to come."""
        return sum(not handle.is_cancelled for _, _, handle, _ in self._due)
