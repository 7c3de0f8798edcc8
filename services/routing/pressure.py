"""How busy nodes are, relative to what they can do at once."""

from collections.abc import Sequence

from services.routing.node import NodeView

SLOTS_UNTOLD = 16.0
"""What a node is taken to run at the same time where no node says it.

vLLM does not, and runs many: with one slot each, a few calls between two reports would look like an
overload, and neither a session nor a cached prompt could keep its node.
"""


def pressures(nodes: Sequence[NodeView], now: float) -> list[float]:
    """Returns each node's `(reported + sent) / slots`; 1 is a node whose slots are all in use.

    `reported` are the running and queued requests of the latest report, `sent` the calls since that
    it cannot show. A node that does not report is taken to be as loaded as the mean of those that
    do: taken as idle, it would draw everything. A node that does not tell its slots likewise has
    the mean number of them, or `SLOTS_UNTOLD` where none tells.
    """
    loads: list[int | None] = []
    slots: list[int | None] = []
    for node in nodes:
        sent = node.sent
        sent.forget(now)
        loads.append(node.load(now))
        slots.append(node.slots)
    if None in loads:
        known = [load for load in loads if load is not None]
        mean_load = sum(known) / len(known) if known else 0.0
    else:
        mean_load = 0.0
    if None in slots or 0 in slots:
        told = [each for each in slots if each]
        mean_slots = sum(told) / len(told) if told else SLOTS_UNTOLD
    else:
        mean_slots = SLOTS_UNTOLD
    return [
        ((mean_load if load is None else load) + node.sent.total) / (each or mean_slots)
        for node, load, each in zip(nodes, loads, slots, strict=True)
    ]


def is_full(node: NodeView, now: float, limit: float) -> bool:
    """Says whether a node reports more than `limit` calls for each of its slots.

    Only a node that says so itself is full: what was sent since may be done already.
    """
    load = node.load(now)
    return load is not None and bool(node.slots) and load > limit * (node.slots or 0)
