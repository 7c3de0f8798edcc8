"""Prefers the node that answers for the least money."""

from collections.abc import Sequence

from services.routing.node import NodeView
from services.routing.plugins import Call
from services.routing.scorers.means import filled


class CostScorer:
    """Scores by `cheapest / price`, the price being `(3 * input + output) / 4`; free scores 1."""

    def scores(self, nodes: Sequence[NodeView], call: Call) -> Sequence[float] | None:
        """Returns one score a node, in their order; None where no node has a price."""
        prices = [node.served[call.model].price for node in nodes]
        known = [price for price in prices if price is not None]
        if not known:
            return None
        cheapest = min(known)
        return filled(
            [None if price is None else (cheapest / price if price else 1.0) for price in prices]
        )
