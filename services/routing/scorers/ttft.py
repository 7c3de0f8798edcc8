"""Prefers the node that is expected to send the first token soonest."""

from collections.abc import Sequence

from services.routing.node import NodeView
from services.routing.plugins import Call
from services.routing.scorers.means import filled

_HALF_SCORE_S = 0.5


class TtftScorer:
    """Scores by `0.5 / (0.5 + seconds)`: half a second to the first token scores 0.5.

    The seconds are the node's reported moving average, drawn to the mean of all nodes as it grows
    old (`NodeView.time_to_first_token`).
    """

    def scores(self, nodes: Sequence[NodeView], call: Call) -> Sequence[float] | None:
        """Returns one score a node, in their order; None where no node reports the average."""
        reported = [node.time_to_first_token(call.now) for node in nodes]
        known = [each[0] for each in reported if each is not None]
        if not known:
            return None
        mean = sum(known) / len(known)
        return filled(
            [
                None
                if each is None
                else _HALF_SCORE_S / (_HALF_SCORE_S + mean + (each[0] - mean) * each[1])
                for each in reported
            ]
        )
