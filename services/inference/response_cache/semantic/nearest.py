"""Finds the vectors that are nearest to another, by cosine, among those of one group.

Every vector of the group is compared: with 1,000 of 384 components that takes 30 µs. An index that
skips some would find less, and pays above many more than a node keeps.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]

MAX_COMPONENTS = 8192


class Near(NamedTuple):
    """A vector that was found.

    Args:
        key: What it was kept under.
        text: Its text.
        similarity: The cosine, at most 1.
    """

    key: bytes
    text: str
    similarity: float


def unit_vector(values: Sequence[float]) -> Vector | None:
    """Returns a vector of length 1 in the same direction; None where it has none or is too long."""
    if not 0 < len(values) <= MAX_COMPONENTS:
        return None
    vector = np.array(values, dtype=np.float32)
    length = float(np.linalg.norm(vector))
    if not np.isfinite(length) or length == 0:
        return None
    return vector / np.float32(length)


class Nearest:
    """Vectors by group; the oldest go first.

    Args:
        max_vectors: The most that are kept, over all groups.
    """

    def __init__(self, max_vectors: int) -> None:
        self._max = max_vectors
        self._groups: dict[bytes, _Group] = {}
        # Of each key the group, oldest first.
        self._keys: OrderedDict[bytes, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, group: bytes, vector: Vector, threshold: float, most: int = 8) -> list[Near]:
        """Returns the vectors of a group that are at least so near, the nearest first.

        Args:
            group: The group.
            vector: Of length 1.
            threshold: The least cosine.
            most: How many at most.
        """
        found = self._groups.get(group)
        if found is None or found.size != vector.size:
            return []
        return found.find(vector, threshold, most)

    def put(self, group: bytes, key: bytes, text: str, vector: Vector) -> None:
        """Keeps a vector of length 1 with its text.

        A group has vectors of one size: where that changes, so has the model that made them, and
        the group begins anew.
        """
        self.drop(key)
        found = self._groups.get(group)
        if found is not None and found.size != vector.size:
            for each in list(found.keys):
                self.drop(each)
            found = None
        if found is None:
            found = self._groups[group] = _Group(vector.size)
        found.put(key, text, vector)
        self._keys[key] = group
        if len(self._keys) > self._max:
            self.drop(next(iter(self._keys)))

    def drop(self, key: bytes) -> None:
        """Forgets a vector, if it is there."""
        group = self._keys.pop(key, None)
        if group is None:
            return
        found = self._groups[group]
        found.drop(key)
        if not found.keys:
            del self._groups[group]


class _Group:
    """Vectors of one size, one below the other in a matrix that grows to at most twice of them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.keys: dict[bytes, int] = {}
        self._rows: list[tuple[bytes, str]] = []
        self._matrix: Any = np.empty((1, size), dtype=np.float32)

    def find(self, vector: Vector, threshold: float, most: int) -> list[Near]:
        cosines = self._matrix[: len(self._rows)] @ vector
        near = np.flatnonzero(cosines >= threshold)
        best = near[np.argsort(-cosines[near], kind="stable")[:most]]
        found = []
        for row in best:
            key, text = self._rows[row]
            found.append(Near(key, text, min(1.0, float(cosines[row]))))
        return found

    def put(self, key: bytes, text: str, vector: Vector) -> None:
        row = len(self._rows)
        if row == len(self._matrix):
            self._resize(2 * row)
        self._matrix[row] = vector
        self._rows.append((key, text))
        self.keys[key] = row

    def drop(self, key: bytes) -> None:
        row, last = self.keys.pop(key), len(self._rows) - 1
        moved = self._rows.pop()
        if row != last:
            self._matrix[row] = self._matrix[last]
            self._rows[row] = moved
            self.keys[moved[0]] = row
        if last <= len(self._matrix) // 4 and last > 0:
            self._resize(2 * last)

    def _resize(self, rows: int) -> None:
        matrix = np.empty((rows, self.size), dtype=np.float32)
        kept = min(rows, len(self._matrix))
        matrix[:kept] = self._matrix[:kept]
        self._matrix = matrix
