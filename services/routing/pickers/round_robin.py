"""Lets nodes take turns, whatever their scores."""

from collections.abc import Sequence

from services.routing.node import NodeView


class RoundRobinPicker:
    """Puts the node first that was chosen longest ago."""

    def order(self, nodes: Sequence[NodeView], scores: Sequence[float]) -> Sequence[int]:
        """Returns positions in `nodes`, best first."""
        return sorted(range(len(nodes)), key=lambda i: nodes[i].last_picked)
