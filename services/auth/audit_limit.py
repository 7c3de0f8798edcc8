"""Bounds how many denials are written down, so that a flood of them cannot fill the disk."""

from collections import OrderedDict
from collections.abc import Callable

_MAX_SOURCES = 4096
_MAX_COUNTED = 256


class Bucket:
    """Gives `burst` tokens at once and `rate` a second after that."""

    __slots__ = ("_at", "_tokens")

    def __init__(self, burst: float, now: float) -> None:
        self._tokens = burst
        self._at = now

    def fill(self, rate: float, burst: float, now: float) -> bool:
        """Brings the bucket up to date; says whether it holds a token."""
        self._tokens = min(burst, self._tokens + (now - self._at) * rate)
        self._at = now
        return self._tokens >= 1

    def take(self) -> None:
        """Takes a token that is there."""
        self._tokens -= 1


class DenialLimit:
    """Lets a second and a source have so many denials, and counts the rest.

    A source may have 20 at once and 1 a second, all together 100 at once and 5 a second: with
    half a kilobyte each, 200 MB a day at the very most.

    Args:
        clock: A monotonic clock in seconds.
    """

    SOURCE_RATE, SOURCE_BURST = 1.0, 20.0
    RATE, BURST = 5.0, 100.0

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._all = Bucket(self.BURST, clock())
        self._sources: OrderedDict[str, Bucket] = OrderedDict()
        self._suppressed = 0
        self._counts: dict[str, int] = {}

    def admit(self, source: str) -> bool:
        """Says whether a denial is to be written down; one that is not is counted."""
        now = self._clock()
        bucket = self._sources.get(source)
        if bucket is None:
            # Who comes from many addresses gains nothing: the bucket of all still holds.
            if len(self._sources) >= _MAX_SOURCES:
                self._sources.popitem(last=False)
            bucket = self._sources[source] = Bucket(self.SOURCE_BURST, now)
        else:
            self._sources.move_to_end(source)
        if bucket.fill(self.SOURCE_RATE, self.SOURCE_BURST, now) and self._all.fill(
            self.RATE, self.BURST, now
        ):
            bucket.take()
            self._all.take()
            return True
        self.suppress(source)
        return False

    def suppress(self, source: str) -> None:
        """Counts a denial that is not written down."""
        self._suppressed += 1
        if source in self._counts or len(self._counts) < _MAX_COUNTED:
            self._counts[source] = self._counts.get(source, 0) + 1

    def take_suppressed(self) -> tuple[int, dict[str, int]]:
        """Returns how many were counted since the last time, and the ten busiest sources."""
        count, counts = self._suppressed, self._counts
        self._suppressed, self._counts = 0, {}
        busiest = sorted(counts.items(), key=lambda item: -item[1])[:10]
        return count, dict(busiest)
