"""What a simulated engine needs of an event loop, so that tests can turn the clock themselves."""

from collections.abc import Callable
from typing import Protocol


class Handle(Protocol):
    """Something that will happen unless it is cancelled."""

    def cancel(self) -> None:
        """Has it not happen."""
        ...


class Timers(Protocol):
    """The part of asyncio's event loop that keeps time."""

    def time(self) -> float:
        """Returns seconds that never run backwards."""
        ...

    def call_soon(self, callback: Callable[[], object], /) -> Handle:
        """Calls in the loop's next turn."""
        ...

    def call_later(self, delay: float, callback: Callable[[], object], /) -> Handle:
        """Calls after so many seconds."""
        ...
