"""Says how many lines may run, so that batches stay below everybody else.

A refusal for lack of room halves the number and lets nothing begin for a while; each line that ends
well adds a little, as in TCP (additive increase, multiplicative decrease, RFC 5681).
"""

from collections.abc import Callable

_FIRST_S = 0.5
_MOST_S = 30.0


class Pace:
    """How fast one worker goes.

    Args:
        most: The most lines at a time.
        clock: Monotonic, in seconds.
    """

    def __init__(self, most: int, clock: Callable[[], float]) -> None:
        self._most = most
        self._clock = clock
        self._allowed = float(most)
        self._wait_s = _FIRST_S
        self._until = 0.0

    def free(self, running: int) -> int:
        """Returns how many lines may begin now."""
        if self._clock() < self._until:
            return 0
        return max(0, int(self._allowed) - running)

    def went_well(self) -> None:
        """Takes note that a line was answered."""
        self._allowed = min(self._most, self._allowed + 1 / self._allowed)
        self._wait_s = _FIRST_S

    def was_refused(self, retry_after_s: float | None) -> float:
        """Takes note that there was no room; returns when to try the line again, in seconds."""
        now = self._clock()
        if now >= self._until:  # Of what began together one refusal counts.
            self._allowed = max(1.0, self._allowed / 2)
            wait_s = max(self._wait_s, retry_after_s or 0.0)
            self._wait_s = min(_MOST_S, self._wait_s * 2)
            self._until = now + min(_MOST_S, wait_s)
        return self._until - now
