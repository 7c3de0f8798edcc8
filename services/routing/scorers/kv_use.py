"""Prefers the node with the most room in its key-value cache."""

from collections.abc import Sequence

from services.routing.node import NodeView
from services.routing.plugins import Call
from services.routing.scorers.means import filled


class KvUseScorer:
    """Scores by `1 - kv_use`."""

    def scores(self, nodes: Sequence[NodeView], call: Call) -> Sequence[float] | None:
        """Returns one score a node, in their order; None where no node reports its use."""
        return filled([None if node.kv_use is None else 1.0 - node.kv_use for node in nodes])
