"""Limits affinity by load: which nodes may get calls for the sake of what they have cached.

Two bounds, both relative to the mean of the tier:

    now     pressure <= 2 * load_factor * mean + slack        no pile-up in a burst
    lately  calls for each slot, over about the last 30 s,
            <= load_factor * mean + slack                     no node carries more than its share

`slack` is an eighth of the node's slots, and one call at least. In a mesh that does next to nothing
(half a call a node), a node that has one call or less may always draw: a single caller's chat stays
where it is.
A bound on the present alone would have to be so tight to keep the long run even that each burst
would spill prompts to nodes that do not have them.

"Lately" is a count with forward decay: each call adds `exp((now - start) / 30 s)`, so that counts
of any age compare without being decayed one by one (Cormode et al., "Forward decay", 2009).
"""

import math
from collections.abc import Iterable, Sequence

from services.routing.node import NodeView
from services.routing.pressure import SLOTS_UNTOLD

MEMORY_S = 30.0
_BURST = 2.0
_SLACK = 0.125
_MAX_EXPONENT = 200.0


class Balance:
    """Keeps count of the calls that nodes got lately.

    Args:
        now: The monotonic clock's time, in seconds.
    """

    def __init__(self, now: float) -> None:
        self._start = now

    def weight(self, now: float, nodes: Iterable[NodeView]) -> float:
        """Returns what one call at this moment counts.

        Args:
            now: The monotonic clock's time.
            nodes: All nodes; their counts are made small again from time to time.
        """
        exponent = (now - self._start) / MEMORY_S
        if exponent > _MAX_EXPONENT:
            shrink = math.exp(-exponent)
            for node in nodes:
                node.drawn *= shrink
            self._start, exponent = now, 0.0
        return math.exp(exponent)


def may_draw(
    nodes: Sequence[NodeView],
    pressures: Sequence[float],
    mean_pressure: float,
    load_factor: float,
    weight: float,
) -> list[bool]:
    """Says of each node whether it may get a call for the sake of what it has cached.

    Args:
        nodes: The nodes.
        pressures: Theirs, in their order.
        mean_pressure: The mean of the tier.
        load_factor: The policy's.
        weight: What one call counts now.
    """
    told = [node.slots for node in nodes if node.slots]
    mean_slots = sum(told) / len(told) if told else SLOTS_UNTOLD
    slots = [node.slots or mean_slots for node in nodes]
    burst = mean_pressure * load_factor * _BURST
    share = load_factor * sum([node.drawn for node in nodes]) / sum(slots)
    return [
        pressure <= burst + max(_SLACK, 1.0 / each)
        and (
            node.drawn <= share * each + weight * max(1.0, _SLACK * each) or pressure * each <= 1.0
        )
        for node, pressure, each in zip(nodes, pressures, slots, strict=True)
    ]
