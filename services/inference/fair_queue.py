"""Who is next at the engine: fair between tenants, and inside a tenant by priority.

The tenants take turns by start-time fair queueing (Goyal, Vin and Cheng, 1996): a request starts,
in virtual time, where its tenant's last one ended, but not before the request that was served last;
it ends `cost` later; the earliest start is served first. So a tenant with few or short prompts does
not wait behind another's hundred long ones. What a tenant calls urgent goes before its own others
and nobody else's: everybody may call everything urgent.
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
        self._tenants: dict[str, _Waiters[T]] = {}
        # Where each tenant's next request starts in virtual time.
        self._starts: dict[str, int] = {}
        self._virtual_time = 0
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
        waiters = self._tenants.get(waiting.tenant)
        if waiters is None:
            if not self._tenants:
                # Nobody is owed anything by those who found no queue.
                self._starts.clear()
                self._virtual_time = 0
            elif len(self._starts) >= 2 * self._max_length:
                self._starts = {t: s for t, s in self._starts.items() if t in self._tenants}
            waiters = self._tenants[waiting.tenant] = _Waiters()
            start = self._starts.get(waiting.tenant, 0)
            self._starts[waiting.tenant] = max(start, self._virtual_time)
        waiters.lanes[waiting.priority][waiting] = None
        waiters.count += 1

    def pop(self) -> Waiting[T]:
        """Takes out the request whose turn it is.

        Raises:
            IndexError: Nobody waits.
        """
        if not self._tenants:
            raise IndexError("nobody waits")
        tenant = min(self._tenants, key=self._starts.__getitem__)
        waiting = self._tenants[tenant].first
        self._virtual_time = self._starts[tenant]
        self._starts[tenant] += waiting.cost
        self.discard(waiting)
        return waiting

    def discard(self, waiting: Waiting[T]) -> None:
        """Takes out a request that gives up, where it still waits."""
        if waiting not in self._arrivals:
            return
        del self._arrivals[waiting]
        waiters = self._tenants[waiting.tenant]
        del waiters.lanes[waiting.priority][waiting]
        waiters.count -= 1
        if not waiters.count:
            del self._tenants[waiting.tenant]

    def victim(self, tenant: str, priority: Priority) -> Waiting[T] | None:
        """Returns who must go for a newcomer to a full queue; None where it is the newcomer.

        It is the least urgent and newest of the tenant that has most here, where that makes the
        shares more equal; else one of the newcomer's own tenant that is less urgent than it.
        """
        own = self._tenants.get(tenant)
        longest = max(self._tenants.values(), key=lambda each: each.count, default=None)
        if longest is not None and longest.count > (own.count if own else 0) + 1:
            return longest.last
        if own is not None and own.last.priority > priority:
            return own.last
        return None


class _Waiters(Generic[T]):
    """The waiting requests of one tenant, of whom there is at least one."""

    __slots__ = ("count", "lanes")

    def __init__(self) -> None:
        self.lanes: tuple[OrderedDict[Waiting[T], None], ...] = tuple(
            OrderedDict() for _ in Priority
        )
        self.count = 0

    @property
    def first(self) -> Waiting[T]:
        """The most urgent, and of these the oldest."""
        return next(next(iter(lane)) for lane in self.lanes if lane)

    @property
    def last(self) -> Waiting[T]:
        """The least urgent, and of these the newest."""
        return next(next(reversed(lane)) for lane in reversed(self.lanes) if lane)
