"""What a routing decision is made of: filters, then scorers, then one picker."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from services.routing.view import NodeView


@dataclass(slots=True, frozen=True)
class Call:
    """What is known about a call.

    Attributes:
        model: The model that it names.
        now: When the decision is made, on the monotonic clock.
    """

    model: str
    now: float


class Filter(Protocol):
    """Says which nodes may not take a call."""

    def refusal(self, node: NodeView, call: Call) -> str:
        """Returns why the node may not take the call; empty when it may."""
        ...


class Scorer(Protocol):
    """Says how good nodes are for a call."""

    def scores(self, nodes: Sequence[NodeView], call: Call) -> Sequence[float]:
        """Returns one score a node, in their order: 0 is worst, 1 is best."""
        ...


class Picker(Protocol):
    """Orders nodes by their scores."""

    def order(self, nodes: Sequence[NodeView], scores: Sequence[float]) -> Sequence[int]:
        """Returns positions in `nodes`, best first."""
        ...
