"""Prefers the node with the least to do."""

from collections.abc import Sequence

from services.routing.plugins import Call
from services.routing.view import NodeView


class LoadScorer:
    """Scores by pressure: `1 / (1 + (reported + sent) / slots)`.

    `reported` are the running and queued requests of the latest report, `sent` the calls since
    that it cannot show. A node that does not report is taken to be as loaded as the mean of those
    that do: taken as idle, it would draw everything. A node that does not tell its slots likewise
    has the mean number of them, or one where none tells.
    """

    def scores(self, nodes: Sequence[NodeView], call: Call) -> Sequence[float]:
        """Returns one score a node, in their order."""
        loads = [node.load(call.now) for node in nodes]
        mean_load = _mean([load for load in loads if load is not None], 0.0)
        mean_slots = _mean([node.slots for node in nodes if node.slots], 1.0)
        scores = []
        for node, load in zip(nodes, loads, strict=True):
            busy = (mean_load if load is None else load) + node.sent.total
            scores.append(1.0 / (1.0 + busy / (node.slots or mean_slots)))
        return scores


def _mean(values: Sequence[int], default: float) -> float:
    return sum(values) / len(values) if values else default
