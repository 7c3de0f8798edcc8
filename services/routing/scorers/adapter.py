"""Prefers nodes that have the LoRA adapter in memory already."""

from collections.abc import Sequence

from services.routing.node import NodeView
from services.routing.plugins import Call


class AdapterScorer:
    """Scores 1 where the adapter that the call names is loaded, else 0."""

    def scores(self, nodes: Sequence[NodeView], call: Call) -> Sequence[float] | None:
        """Returns one score a node, in their order; None for a model that is no adapter."""
        model = call.model
        if not any(node.served[model].is_adapter for node in nodes):
            return None
        return [float(model in node.adapters) for node in nodes]
