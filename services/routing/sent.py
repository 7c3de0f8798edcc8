"""Counts the calls that were sent to a node and that its load report cannot show yet."""

from collections import deque

SLICE_S = 0.05
WINDOW_S = 10.0
REPORT_LAG_S = 0.05


class SentCounter:
    """Counts calls by slices of time, so that a report takes away what it includes and no more.

    A report is measured a little before it arrives. Calls sent after it was measured are in
    nobody's number unless they stay counted here; counting from the arrival instead would make
    the node that reported last look idle and draw the whole next burst.

    Calls older than 10 s are forgotten even without a report: while the registry is away, what
    counts is who was sent how much lately. The counter holds at most 200 slices.
    """

    __slots__ = ("_slices", "total")

    def __init__(self) -> None:
        self._slices: deque[list[float]] = deque(maxlen=int(WINDOW_S / SLICE_S))
        self.total = 0
        """Calls that are counted now."""

    def add(self, now: float, calls: int = 1) -> None:
        """Counts calls."""
        slices = self._slices
        if slices and now - slices[-1][0] < SLICE_S:
            slices[-1][1] += calls
        else:
            if len(slices) == slices.maxlen:
                self.total -= int(slices[0][1])
            slices.append([now, calls])
        self.total += calls

    def settle(self, reported_at: float) -> None:
        """Takes away the calls that a report which arrived at `reported_at` includes."""
        self._drop_before(reported_at - REPORT_LAG_S)

    def forget(self, now: float) -> None:
        """Takes away the calls that are too old to say anything."""
        self._drop_before(now - WINDOW_S)

    def _drop_before(self, moment: float) -> None:
        slices = self._slices
        # A slice goes once its end is past, so that no call is taken away too early.
        while slices and slices[0][0] + SLICE_S <= moment:
            self.total -= int(slices.popleft()[1])
