"""Orders by score, and lets equals take turns."""

from collections.abc import Sequence

from services.routing.node import NodeView


class BestFirstPicker:
    """Puts the highest score first; among equals, the node that was chosen longest ago."""

    def order(self, nodes: Sequence[NodeView], scores: Sequence[float]) -> Sequence[int]:
        """Returns positions in `nodes`, best first."""
        return sorted(range(len(nodes)), key=lambda i: (-scores[i], nodes[i].last_picked))
