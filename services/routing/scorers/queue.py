"""Prefers the node with the least to do."""

from collections.abc import Sequence

from services.routing.node import NodeView
from services.routing.plugins import Call


class QueueScorer:
    """Scores by pressure: `1 / (1 + pressure)`; `pressure.py` says what that is."""

    def scores(self, nodes: Sequence[NodeView], call: Call) -> Sequence[float] | None:
        """Returns one score a node, in their order."""
        return [1.0 / (1.0 + pressure) for pressure in call.pressures]
