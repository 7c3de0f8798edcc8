"""Who is next at the engine: by priority, and inside a priority fair between tenants.

Inside a priority the tenants take turns by start-time fair queueing (Goyal, Vin and Cheng, 1996):
a request starts, in virtual time, where its tenant's last one ended, but not before the request
that was served last; it ends `cost` later; the earliest start is served first. So a tenant with
few or short prompts does not wait behind another's hundred long ones.
"""

from collections import OrderedDict
from dataclasses import dataclass
from enum import IntEnum
from typing import Generic, TypeVar


class Priority(IntEnum):
    """How urgent a request is; the lower number goes first."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Waiting(Generic[T]):
    """A request in the queue.

    Attributes:
        tenant: Whose it is.
        priority: How urgent it is.
        cost: How much of the engine it takes, in any unit that all of a queue's share.
        since: When it came, in seconds of the queue's owner's clock.
        ticket: What its owner wants back when its turn comes.
    """

    tenant: str
    priority: Priority
    cost: int
    since: float
    ticket: T


class FairQueue(Generic[T]):
    """A bounded queue.

    Its work is linear in the tenants that wait, of whom there are at most `max_length`.

    Args:
        max_length: The most requests that wait.
    """

    def __init__(self, max_length: int) -> None:
        self._max_length = max_length
        self._lanes: tuple[_Lane[T], ...] = tuple(_Lane(max_length) for _ in Priority)
        # All in the order in which they came.
        self._arrivals: OrderedDict[Waiting[T], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._arrivals)

    @property
    def is_full(self) -> bool:
        """Whether the next one needs the place of another."""
        return len(self._arrivals) >= self._max_length

    @property
    def oldest(self) -> Waiting[T] | None:
        """The one that waits the longest, whatever its turn; None when nobody waits."""
        return next(iter(self._arrivals), None)

    def push(self, waiting: Waiting[T]) -> None:
        """Puts a request in; the caller has looked for a place."""
        self._arrivals[waiting] = None
        self._lanes[waiting.priority].push(waiting)

    def pop(self) -> Waiting[T]:
        """Takes out the request whose turn it is.

        Raises:
            IndexError: Nobody waits.
        """
        for lane in self._lanes:
            if lane.tenants:
                waiting = lane.pop()
                del self._arrivals[waiting]
                return waiting
        raise IndexError("nobody waits")

    def discard(self, waiting: Waiting[T]) -> None:
        """Takes out a request that gives up, where it still waits."""
        if waiting in self._arrivals:
            del self._arrivals[waiting]
            self._lanes[waiting.priority].remove(waiting)

    def victim(self, tenant: str, priority: Priority) -> Waiting[T] | None:
        """Returns who must go for a newcomer to a full queue; None where it is the newcomer.

        The newest of the least urgent go first, and of equally urgent ones the newest of the
        tenant that has most of them here, where that makes the shares more equal.
        """
        for rank in reversed(Priority):
            if rank < priority:
                return None
            lane = self._lanes[rank]
            if not lane.tenants:
                continue
            longest = max(lane.tenants.values(), key=len)
            if rank == priority and len(longest) <= len(lane.tenants.get(tenant, ())) + 1:
                return None
            return next(reversed(longest))
        return None


class _Lane(Generic[T]):
    """The waiting requests of one priority."""

    def __init__(self, max_length: int) -> None:
        self.tenants: dict[str, OrderedDict[Waiting[T], None]] = {}
        self._max_tags = 2 * max_length
        # Where each tenant's next request starts in virtual time.
        self._starts: dict[str, int] = {}
        self._virtual_time = 0

    def push(self, waiting: Waiting[T]) -> None:
        queue = self.tenants.get(waiting.tenant)
        if queue is None:
            if not self.tenants:
                # Nobody is owed anything by those who found no queue.
                self._starts.clear()
                self._virtual_time = 0
            elif len(self._starts) >= self._max_tags:
                self._starts = {t: s for t, s in self._starts.items() if t in self.tenants}
            queue = self.tenants[waiting.tenant] = OrderedDict()
            start = self._starts.get(waiting.tenant, 0)
            self._starts[waiting.tenant] = max(start, self._virtual_time)
        queue[waiting] = None

    def pop(self) -> Waiting[T]:
        tenant = min(self.tenants, key=self._starts.__getitem__)
        queue = self.tenants[tenant]
        waiting, _ = queue.popitem(last=False)
        self._virtual_time = self._starts[tenant]
        self._starts[tenant] += waiting.cost
        if not queue:
            del self.tenants[tenant]
        return waiting

    def remove(self, waiting: Waiting[T]) -> None:
        queue = self.tenants[waiting.tenant]
        del queue[waiting]
        if not queue:
            del self.tenants[waiting.tenant]
