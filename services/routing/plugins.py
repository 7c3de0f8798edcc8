"""What a routing decision is made of: filters, then scorers, then one picker.

filters   which nodes may take a call          by node and call, kept until the mesh changes
scorers   how good each is for it, 0 to 1      weighted by the policy
picker    in which order they are tried
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from services.routing.node import NodeView
from services.routing.prefix_index import Match
from services.routing.prompt import Prompt


@dataclass(slots=True)
class Call:
    """What is known about a call.

    Attributes:
        model: The model that it is to be answered with.
        now: When the decision is made, on the monotonic clock.
        prompt: Its prompt; None where it is not known, or not to be cached.
        session: A number that stands for the caller's session; None where it has none.
        own: The session's node, where not all nodes are scored.
        match: Which nodes have the start of the prompt.
        pressures: Of each node that is scored, in their order; see `pressure`.
        may_draw: Of each of these nodes, whether it may get the call for the sake of what it has
            cached; see `balance`.
    """

    model: str
    now: float
    prompt: Prompt | None = None
    session: int | None = None
    own: NodeView | None = None
    match: Match = ()
    pressures: Sequence[float] = ()
    may_draw: Sequence[bool] = ()

    def share(self, node: NodeView) -> float:
        """Returns which share of the prompt a node is taken to have cached, 0 to 1."""
        if self.prompt is not None:
            for mask, depth in self.match:
                if mask & node.bit:
                    return self.prompt.share(depth)
        return 0.0


class Filter(Protocol):
    """Says which nodes may not take a call."""

    def refusal(self, node: NodeView) -> str:
        """Returns why the node may not take the call; empty when it may."""
        ...


class Scorer(Protocol):
    """Says how good nodes are for a call."""

    def scores(self, nodes: Sequence[NodeView], call: Call) -> Sequence[float] | None:
        """Returns one score a node, in their order: 0 is worst, 1 is best.

        What is not known of a node is taken to be the mean of what is known of the others. None
        where nothing tells the nodes apart.
        """
        ...


class Picker(Protocol):
    """Orders nodes by their scores."""

    def order(self, nodes: Sequence[NodeView], scores: Sequence[float]) -> Sequence[int]:
        """Returns positions in `nodes`, best first."""
        ...
