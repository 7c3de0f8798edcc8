"""Prefers the node that has the most of the prompt in its cache."""

from collections.abc import Sequence

from services.routing.node import NodeView
from services.routing.plugins import Call


class PrefixScorer:
    """Scores by `share * reliability`.

    `share` is how much of the prompt the node has been sent before and can still have, by the
    prefix index; `reliability` how often the index is right about the node. A node that is too
    busy (`balance.py`) scores 0, whatever it has: load limits affinity.

    Where no node has anything of the prompt, nodes score by how long ago they were sent a prompt
    of which they had nothing, 0.5 at most, so that new prompts are spread over all caches.
    """

    def scores(self, nodes: Sequence[NodeView], call: Call) -> Sequence[float] | None:
        """Returns one score a node, in their order; None for a call whose prompt is not known."""
        prompt = call.prompt
        if prompt is None or not prompt.blocks:
            return None
        if not call.match:
            return _coldest(nodes, call)
        shares = [(mask, prompt.share(depth)) for mask, depth in call.match]
        scores = []
        for node, may_draw in zip(nodes, call.may_draw, strict=True):
            score = 0.0
            if may_draw:
                bit = node.bit
                for mask, share in shares:
                    if mask & bit:
                        score = share * node.reliability.value
                        break
            scores.append(score)
        return scores


def _coldest(nodes: Sequence[NodeView], call: Call) -> Sequence[float] | None:
    """Returns `0.5 * rank`, the rank from 1 (longest ago) to 0; equals share the better one."""
    times = sorted({node.last_cold for node in nodes})
    if len(times) < 2:
        return None
    scores = {time: 0.5 - 0.5 * i / (len(times) - 1) for i, time in enumerate(times)}
    return [
        scores[node.last_cold] if may_draw else 0.0
        for node, may_draw in zip(nodes, call.may_draw, strict=True)
    ]
