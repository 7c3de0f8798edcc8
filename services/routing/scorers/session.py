"""Sends the calls of one session to one node, for as long as it stays."""

from collections.abc import Sequence

from services.routing.node import NodeView
from services.routing.plugins import Call

_MIX = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


class SessionScorer:
    """Scores by rank in a rendezvous hash of session and node: `0.5 ** rank`.

    When a node goes, only its own sessions move, each to its next in rank (Thaler and
    Ravishankar, "Using name-based mappings to increase hit rates", 1998). A node that is too
    busy (`balance.py`) scores 0.
    """

    def scores(self, nodes: Sequence[NodeView], call: Call) -> Sequence[float] | None:
        """Returns one score a node, in their order; None for a call without a session."""
        session = call.session
        if session is None or len(nodes) < 2:
            return None
        if call.own is not None:
            own = call.own
            pairs = zip(nodes, call.may_draw, strict=True)
            return [float(node is own and may_draw) for node, may_draw in pairs]
        scores = [0.0] * len(nodes)
        score = 1.0
        for i in sorted(range(len(nodes)), key=lambda i: -weight(nodes[i], session)):
            if call.may_draw[i]:
                scores[i] = score
            score /= 2
        return scores


def weight(node: NodeView, session: int) -> int:
    """Returns the node's weight for a session; of all nodes the heaviest is the session's."""
    mixed = ((node.digest ^ session) * _MIX) & _MASK
    return ((mixed ^ (mixed >> 32)) * _MIX) & _MASK
