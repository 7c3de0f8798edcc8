"""Which nodes of a large tier are scored, so that a decision costs the same at any size."""

from bisect import bisect_left
from collections.abc import Iterator

from services.routing.node import NodeView
from services.routing.plugins import Call
from services.routing.pools import Tier
from services.routing.scorers.session import weight
from services.routing.view import MeshView

ALL_SCORED = 48
"""Up to this many nodes of a tier, all are scored."""

_IN_TURN = 24
_WITH_PROMPT = 24
_ON_RING = 16


def sample(view: MeshView, tier: Tier, call: Call, *, by_session: bool) -> list[NodeView]:
    """Returns some nodes in turn, those that have the most of the prompt, and the session's own.

    The best of a few dozen in turn is hardly ever much busier than the best of all.

    Args:
        view: The mesh.
        tier: Where the nodes are taken from.
        call: The call, with its match.
        by_session: Whether the session's node is wanted.
    """
    nodes, start = tier.nodes, tier.turn
    tier.turn = (start + _IN_TURN) % len(nodes)
    taken = list(nodes[start : start + _IN_TURN])
    taken += nodes[: _IN_TURN - len(taken)]
    seen = {node.number for node in taken}
    room = _WITH_PROMPT
    for mask, _ in call.match:
        for number in _some_bits(mask, room, start):
            room -= 1
            if number not in seen:
                taken.append(view.numbered(number))
                seen.add(number)
        if room <= 0:
            break
    if by_session and call.session is not None:
        call.own = _own(tier, call.session)
        if call.own.number not in seen:
            taken.append(call.own)
    return taken


def _own(tier: Tier, session: int) -> NodeView:
    """Returns the node of a session: the heaviest of the few that follow it on the ring.

    When a node comes or goes, only sessions near it on the ring move.
    """
    nodes = tier.nodes
    start = bisect_left(tier.digests, session)
    few = [nodes[(start + i) % len(nodes)] for i in range(_ON_RING)]
    return max(few, key=lambda node: weight(node, session))


def _some_bits(mask: int, count: int, start: int) -> Iterator[int]:
    """Yields the positions of up to `count` bits that are set, beginning somewhere at `start`."""
    rest = 0
    if mask.bit_count() > count:
        high = mask >> start << start
        mask, rest = (high, mask ^ high) if high else (mask, 0)
    while count > 0:
        if not mask:
            if not rest:
                return
            mask, rest = rest, 0
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low
        count -= 1
