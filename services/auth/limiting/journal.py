"""What Redis has still to be told, and what it may have forgotten.

Redis writes to its disk once a second: killed, it forgets what it was told last. So what was let
in in the last two seconds is kept, and told again after each connection. A call that Redis knows
is not charged again, so that nothing counts twice.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence

from services.auth.limiting.wire import Charge, Plain

log = logging.getLogger(__name__)

KEPT_S = 2.0
MAX_KEPT = 100_000
"""About 30 MB. What comes after takes the place of the oldest."""


class Journal:
    """Charges and releases in their order.

    Args:
        hold_s: What is older has lapsed: it needs no telling.
        clock: A monotonic clock in seconds.
    """

    def __init__(self, hold_s: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._hold_s = hold_s
        self._clock = clock
        self._kept: deque[tuple[float, Charge | Plain]] = deque()
        self._is_full = False

    def keep(self, operation: Charge | Plain) -> None:
        """Keeps what Redis was told, for as long as it may not be on its disk."""
        kept, now = self._kept, self._clock()
        kept.append((now, operation))
        while kept[0][0] < now - KEPT_S or len(kept) > MAX_KEPT:
            kept.popleft()

    def add(self, operation: Charge | Plain) -> None:
        """Keeps what Redis has not been told, until it is."""
        if len(self._kept) >= MAX_KEPT:
            if not self._is_full:
                log.warning("too much waits for Redis; the oldest is forgotten")
            self._is_full = True
            self._kept.popleft()
        self._kept.append((self._clock(), operation))

    def start(self, count: int, now: int) -> Sequence[Charge | Plain]:
        """Returns the oldest, `count` at most; none of them is older than a reservation lasts."""
        while self._kept and now - self._kept[0][1].second > self._hold_s:
            self._kept.popleft()
        return [self._kept[i][1] for i in range(min(count, len(self._kept)))]

    def done(self, count: int) -> None:
        """Forgets the oldest: Redis has them."""
        for _ in range(min(count, len(self._kept))):
            self._kept.popleft()
        self._is_full = False
