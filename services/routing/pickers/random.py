"""Takes nodes by chance, whatever their scores."""

import random
from collections.abc import Sequence

from services.routing.node import NodeView


class RandomPicker:
    """Puts the nodes in an order of chance.

    Args:
        source: Where chance comes from.
    """

    def __init__(self, source: random.Random | None = None) -> None:
        self._source = source or random.Random()  # noqa: S311 - no secret rests on it

    def order(self, nodes: Sequence[NodeView], scores: Sequence[float]) -> Sequence[int]:
        """Returns positions in `nodes`, best first."""
        order = list(range(len(nodes)))
        self._source.shuffle(order)
        return order
