"""Remembers which node was sent which prompts: a least-recently-used index of block hashes.

    owners:  block hash ─► the nodes that have it, one bit a node
    per node: block hash ─► bytes, least recently used first

A node's part is bound twice: by the bytes of text that its key-value cache holds, and by its share
of the entries of the whole index. An entry, a block on a node, takes about 400 bytes of memory.
"""

from collections import OrderedDict
from collections.abc import Sequence

DEFAULT_MAX_ENTRIES = 250_000
"""About 100 MB."""

DEFAULT_CAPACITY_BYTES = 2 * 1024 * 1024
"""Of text: what is assumed of a node that does not say how much its cache holds."""

Match = Sequence[tuple[int, int]]
"""Nodes as bits, and how many blocks they have; the deepest first. Each node is in it once."""


class _Owned:
    """What one node has."""

    __slots__ = ("bit", "blocks", "bytes", "capacity")

    def __init__(self, bit: int) -> None:
        self.bit = bit
        self.blocks: OrderedDict[int, int] = OrderedDict()
        self.bytes = 0
        self.capacity = DEFAULT_CAPACITY_BYTES


class PrefixIndex:
    """An approximation of what the nodes' prefix caches hold.

    Nodes are numbered; a number that is free again is given out again, so that bits stay few.

    Args:
        max_entries: The most blocks, counted once for each node that has them.
    """

    def __init__(self, max_entries: int = DEFAULT_MAX_ENTRIES) -> None:
        self._max_entries = max_entries
        self._owners: dict[int, int] = {}
        self._nodes: dict[int, _Owned] = {}
        self._free: list[int] = []
        self._limit = max_entries

    def __len__(self) -> int:
        """Returns the entries in use."""
        return sum(len(node.blocks) for node in self._nodes.values())

    def add_node(self) -> int:
        """Returns the number of a node that has nothing yet."""
        number = self._free.pop() if self._free else len(self._nodes)
        self._nodes[number] = _Owned(1 << number)
        self._share_out()
        return number

    def remove_node(self, number: int) -> None:
        """Forgets a node."""
        self.clear(number)
        del self._nodes[number]
        self._free.append(number)
        self._share_out()

    def clear(self, number: int) -> None:
        """Forgets what a node has: its engine started anew."""
        node = self._nodes[number]
        while node.blocks:
            self._drop_oldest(node)

    def set_capacity(self, number: int, capacity_bytes: int) -> None:
        """Sets how much text a node's cache holds; 0 is unknown."""
        node = self._nodes[number]
        node.capacity = capacity_bytes or DEFAULT_CAPACITY_BYTES
        self._trim(node)

    def owned_bytes(self, number: int) -> int:
        """Returns how much text a node is taken to have."""
        return self._nodes[number].bytes

    def match(self, blocks: Sequence[int]) -> Match:
        """Returns which nodes have the start of a prompt, and how much of it."""
        owners = self._owners
        found: list[tuple[int, int]] = []
        alive = -1
        for depth, block in enumerate(blocks):
            having = owners.get(block, 0) & alive
            if having != alive:
                if depth:
                    found.append((alive & ~having, depth))
                alive = having
                if not having:
                    break
        else:
            if blocks:
                found.append((alive, len(blocks)))
        found.reverse()
        return found

    def insert(self, number: int, blocks: Sequence[int], ends: Sequence[int], size: int) -> None:
        """Notes that a node is sent a prompt; passes over one that is larger than its cache.

        Args:
            number: The node.
            blocks: The prompt's hashes, first to last.
            ends: Where each block ends, in bytes.
            size: The prompt's length in bytes. What follows the last block counts with that block.
        """
        node = self._nodes[number]
        if size > node.capacity:
            # Its engine cannot hold it and refuses it: noted, it would push out all the others.
            return
        owned, owners, bit = node.blocks, self._owners, node.bit
        end = size
        # The start is used last, so that a prompt is forgotten from its end, as engines do it.
        for i in range(len(blocks) - 1, -1, -1):
            block = blocks[i]
            start = ends[i - 1] if i else 0
            if block in owned:
                owned.move_to_end(block)
            else:
                owned[block] = end - start
                node.bytes += end - start
                having = owners.get(block)
                owners[block] = having | bit if having else bit
            end = start
        self._trim(node)

    def _trim(self, node: _Owned) -> None:
        while node.blocks and (node.bytes > node.capacity or len(node.blocks) > self._limit):
            self._drop_oldest(node)

    def _drop_oldest(self, node: _Owned) -> None:
        block, size = node.blocks.popitem(last=False)
        node.bytes -= size
        left = self._owners[block] & ~node.bit
        if left:
            self._owners[block] = left
        else:
            del self._owners[block]

    def _share_out(self) -> None:
        limit = self._max_entries // max(1, len(self._nodes))
        shrinks, self._limit = limit < self._limit, limit
        if shrinks:
            for node in self._nodes.values():
                self._trim(node)
