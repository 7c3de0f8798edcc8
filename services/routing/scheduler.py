"""Makes a routing decision: filter, score, pick."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from infermesh.errors.v1 import errors_pb2
from services.kit.errors import MeshError
from services.routing.plugins import Call, Filter, Picker, Scorer
from services.routing.view import MeshView, NodeView

MAX_ADDRESSES = 4
"""How many nodes a call is given to try; Envoy tries no more than a few."""


@dataclass(frozen=True)
class Rated:
    """One node in a decision; `refusal` is empty and `score` counts when it is eligible."""

    node: NodeView
    score: float
    refusal: str
    reported_load: int | None


class Scheduler:
    """Chooses nodes for calls.

    Args:
        view: The nodes.
        filters: Each may refuse a node.
        scorers: With their weights; a node's score is the weighted mean.
        picker: Orders the eligible nodes.
        clock: A monotonic clock in seconds.
    """

    def __init__(
        self,
        view: MeshView,
        *,
        filters: Sequence[Filter],
        scorers: Sequence[tuple[Scorer, float]],
        picker: Picker,
        clock: Callable[[], float],
    ) -> None:
        self._view = view
        self._filters = filters
        self._scorers = scorers
        self._total_weight = sum(weight for _, weight in scorers)
        self._picker = picker
        self._clock = clock
        self._decisions = 0

    def decide(self, model: str) -> list[NodeView]:
        """Chooses nodes for a call, best first, and counts the call as sent to the first.

        Returns:
            At least one and at most `MAX_ADDRESSES` nodes.

        Raises:
            MeshError: `MODEL_NOT_FOUND` or `NO_NODE_AVAILABLE`.
        """
        call = Call(model, self._clock())
        refusal = self._refusal
        nodes = [node for node in self._view.hosting(model) if not refusal(node, call)]
        if not nodes:
            raise self._nothing(model)
        if len(nodes) > 1:
            scores = self._scores(nodes, call)
            nodes = [nodes[i] for i in self._picker.order(nodes, scores)[:MAX_ADDRESSES]]
        self._decisions += 1
        nodes[0].last_picked = self._decisions
        nodes[0].sent.add(call.now)
        return nodes

    def explain(self, model: str) -> list[Rated]:
        """Rates every node that hosts the model as `decide` would now; counts nothing.

        Raises:
            MeshError: `MODEL_NOT_FOUND`.
        """
        if not self._view.knows(model):
            raise self._nothing(model)
        call = Call(model, self._clock())
        hosting = self._view.hosting(model)
        refusals = [self._refusal(node, call) for node in hosting]
        nodes = [node for node, why in zip(hosting, refusals, strict=True) if not why]
        scores = self._scores(nodes, call)
        rated = [
            Rated(nodes[i], scores[i], "", nodes[i].load(call.now))
            for i in self._picker.order(nodes, scores)
        ]
        refused = [
            Rated(node, 0.0, why, node.load(call.now))
            for node, why in zip(hosting, refusals, strict=True)
            if why
        ]
        return rated + refused

    def _refusal(self, node: NodeView, call: Call) -> str:
        for one in self._filters:
            if why := one.refusal(node, call):
                return why
        return ""

    def _scores(self, nodes: Sequence[NodeView], call: Call) -> Sequence[float]:
        for node in nodes:
            node.sent.forget(call.now)
        if len(self._scorers) == 1:
            return self._scorers[0][0].scores(nodes, call)
        totals = [0.0] * len(nodes)
        for scorer, weight in self._scorers:
            for i, score in enumerate(scorer.scores(nodes, call)):
                totals[i] += score * weight / self._total_weight
        return totals

    def _nothing(self, model: str) -> MeshError:
        if not self._view.knows(model):
            return MeshError(
                errors_pb2.ERROR_REASON_MODEL_NOT_FOUND,
                f"The model `{model}` does not exist or you do not have access to it.",
                param="model",
                metadata={"model": model},
            )
        return MeshError(
            errors_pb2.ERROR_REASON_NO_NODE_AVAILABLE,
            f"No node serves the model `{model}` now. Try again later.",
            metadata={"model": model},
        )
