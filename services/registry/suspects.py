"""Remembers who lied of late, so that lies cost the mesh less and less."""

import math
from collections import OrderedDict, deque
from collections.abc import Callable

from services.kit.errors import MeshError
from services.registry import refusals

LIES = 3
"""How many lies within `WINDOW_S` make a suspect."""

WINDOW_S = 60.0
_MAX_SUSPECTS = 4096


class Suspects:
    """Counts the lies of each node and refuses those that lie often, for a minute after the last.

    Args:
        clock: A monotonic clock in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lies: OrderedDict[str, deque[float]] = OrderedDict()
        self._last: dict[str, str] = {}

    def check(self, name: str, node_id: str) -> None:
        """Lets a node pass that did not lie often of late.

        Args:
            name: Who it is, as far as the mesh can tell: source, key and name of the node.
            node_id: The node's name, for the message.

        Raises:
            MeshError: `FAILED_PRECONDITION`.
        """
        lies = self._lies.get(name)
        if lies is None:
            return
        wait_s = lies[-1] + WINDOW_S - self._clock()
        if wait_s <= 0:
            self._forget(name)
        elif len(lies) == LIES:
            raise refusals.suspect(node_id, LIES, self._last[name], math.ceil(wait_s))

    def note(self, name: str, lie: MeshError) -> None:
        """Notes a lie."""
        now = self._clock()
        lies = self._lies.setdefault(name, deque(maxlen=LIES))
        while lies and lies[0] <= now - WINDOW_S:
            lies.popleft()
        lies.append(now)
        self._last[name] = lie.message
        self._lies.move_to_end(name)
        if len(self._lies) > _MAX_SUSPECTS:
            self._forget(next(iter(self._lies)))

    def _forget(self, name: str) -> None:
        del self._lies[name]
        del self._last[name]
