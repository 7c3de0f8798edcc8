"""The key-value cache: blocks that running sequences share, and that are remembered after them.

As in vLLM, a full block is known by a hash over its tokens and all before them. A block that no
sequence uses stays until its memory is needed; the one that was used longest ago goes first, and
of one sequence the last block first, since the first ones are the ones that others share.
"""

from collections import OrderedDict
from collections.abc import Sequence


class Lease:
    """The blocks of one running sequence.

    Attributes:
        hashes: The hashes of the prompt's full blocks, in order.
        matched: How many of them, from the first on, were in the cache.
    """

    __slots__ = ("_own", "_shared", "hashes", "matched")

    def __init__(self, hashes: Sequence[int], matched: int, own: int) -> None:
        self.hashes = hashes
        self.matched = matched
        self._own = own
        self._shared = list(hashes[:matched])

    def publish(self, hashes: Sequence[int]) -> None:
        """Moves own blocks to the shared ones."""
        self._shared += hashes
        self._own -= len(hashes)

    def give_up(self) -> tuple[list[int], int]:
        """Returns the shared blocks and the number of own ones, which the lease then has not."""
        shared, own = self._shared, self._own
        self._shared, self._own = [], 0
        return shared, own


class KvCache:
    """Blocks of one engine.

    Args:
        blocks: How many there are.
    """

    def __init__(self, blocks: int) -> None:
        self._blocks = blocks
        self._users: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._own = 0

    @property
    def use(self) -> float:
        """The share of blocks that running sequences use, 0 to 1."""
        return (len(self._users) + self._own) / self._blocks

    @property
    def remembered(self) -> int:
        """How many blocks can be found by their hash."""
        return len(self._users) + len(self._idle)

    def take(self, hashes: Sequence[int], blocks: int, limit: int) -> Lease | None:
        """Gives a sequence its blocks, those that hold the start of its prompt first.

        Args:
            hashes: The prompt's full blocks, in order.
            blocks: How many it needs over all, its answer included.
            limit: How many of the prompt's blocks may come from the cache.

        Returns:
            The blocks, or None while there are not enough of them.
        """
        users, idle = self._users, self._idle
        matched = woken = 0
        for each in hashes[:limit]:
            if each in idle:
                woken += 1
            elif each not in users:
                break
            matched += 1
        own = blocks - matched
        free = self._blocks - len(users) - self._own - len(idle)
        if own > free + len(idle) - woken:
            return None
        for each in hashes[:matched]:
            if each in users:
                users[each] += 1
            else:
                del idle[each]
                users[each] = 1
        for _ in range(own - free):
            idle.popitem(last=False)
        self._own += own
        return Lease(hashes, matched, own)

    def publish(self, lease: Lease, upto: int) -> None:
        """Makes the prompt's blocks that are computed now findable, the first `upto` of them."""
        self._publish(lease, lease.hashes[lease.matched : upto])

    def _publish(self, lease: Lease, hashes: Sequence[int]) -> None:
        # A block that somebody else computed meanwhile stays this sequence's own.
        new = [each for each in hashes if each not in self._users and each not in self._idle]
        for each in new:
            self._users[each] = 1
        lease.publish(new)
        self._own -= len(new)

    def release(self, lease: Lease, answer: Sequence[int] = ()) -> None:
        """Takes the blocks back; those that are findable stay until their memory is needed.

        Args:
            lease: The blocks.
            answer: The hashes of the blocks that the answer filled.
        """
        self._publish(lease, answer)
        users, idle = self._users, self._idle
        shared, own = lease.give_up()
        self._own -= own
        for each in reversed(shared):
            left = users[each] - 1
            if left:
                users[each] = left
            else:
                del users[each]
                idle[each] = None

    def forget(self) -> None:
        """Forgets every block that no sequence uses."""
        self._idle.clear()
