"""What finds one kind of things in texts."""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import re2

_MAX_PROOFS = 2000


class Proofs:
    """How many more finds of one prompt are proven.

    A proof costs some ten microseconds of Python, and a prompt can be made of what looks like
    numbers: past 2,000 what only looks like a find is taken for one.
    """

    __slots__ = ("_left",)

    def __init__(self, count: int = _MAX_PROOFS) -> None:
        self._left = count

    def take(self) -> bool:
        """Says whether there is one more, and counts it."""
        self._left -= 1
        return self._left >= 0


class Recognizer(Protocol):
    """Finds one kind of things.

    Attributes:
        word: What stands in their place. Example: `<EMAIL_ADDRESS>`.
    """

    word: str

    def find(self, text: str, proofs: Proofs) -> Iterator[tuple[int, int]]:
        """Returns the places, in order and apart from each other.

        Args:
            text: A text as it is read.
            proofs: Bounds what is proven.
        """


def compiled(pattern: str) -> Any:
    """Returns RE2's object for a pattern of the mesh's own."""
    options = re2.Options()
    options.log_errors = False
    return re2.compile(pattern, options)


def apart(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Returns places in order, one for those that overlap."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
