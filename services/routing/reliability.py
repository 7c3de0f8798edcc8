"""How far the prefix index is right about a node, by what its engine says that it had cached."""

import math

_MEMORY_TOKENS = 50_000.0
"""Expected tokens after which an old finding counts a third of a new one."""


class Reliability:
    """The share of the expected cached tokens that really were cached, a moving average.

    The node's counters only grow, and tell of the same answers: how many tokens routing expected
    in the cache, and how many were. The average moves by the tokens that it is about, so that many
    short prompts weigh what one long prompt does:
    `value += (1 - exp(-expected / 50000)) * (cached / expected - value)`.

    Attributes:
        value: 0 (nothing is ever cached) to 1 (the index is right, or the node does not say).
    """

    __slots__ = ("_cached", "_expected", "value")

    def __init__(self) -> None:
        self.value = 1.0
        self._expected = 0
        self._cached = 0

    def take(self, expected: int, cached: int) -> None:
        """Takes in the node's counters."""
        new_expected, new_cached = expected - self._expected, cached - self._cached
        self._expected, self._cached = expected, cached
        if new_expected <= 0 or new_cached < 0:  # Nothing new, or the node started anew.
            return
        found = min(1.0, new_cached / new_expected)
        self.value += (1.0 - math.exp(-new_expected / _MEMORY_TOKENS)) * (found - self.value)

    def forget(self) -> None:
        """Starts anew: the engine did."""
        self.value = 1.0
