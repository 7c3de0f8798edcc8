"""Decides which calls may be sent to a second node when the first stays silent."""

import math
from collections.abc import Callable

from services.routing.policy import Hedging

_MOST_SAVED = 20.0
_LEAST_CHARGE = 0.01


class HedgeBudget:
    """Keeps the calls that are sent twice below a share of all calls.

    Each call adds the budget, up to 20 calls. A call that is allowed to be sent twice takes away
    how likely that is: `exp(-delay / mean)`, by the mean time to the first token of the nodes, as
    if that were exponentially distributed; 1 where no node tells it. When nodes get slow, the
    likelihood and with it the charge rise, so hedging cannot feed an overload.
    """

    def __init__(self) -> None:
        self._saved = 1.0

    def allows(self, hedging: Hedging, mean_s: Callable[[], float | None]) -> bool:
        """Counts a call, and says whether it may be sent twice.

        Args:
            hedging: The policy's terms.
            mean_s: Returns the mean time to the first token; None when unknown.
        """
        self._saved = min(_MOST_SAVED, self._saved + hedging.budget)
        mean = mean_s()
        charge = 1.0
        if mean is not None:
            charge = max(_LEAST_CHARGE, math.exp(-hedging.delay_s / max(mean, 1e-6)))
        if self._saved < charge:
            return False
        self._saved -= charge
        return True
