"""Keeps answers in memory: so many bytes of them, for so long, the least recently used go first."""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from services.inference.engines.dialect import Tokens

# What an entry takes besides its pieces.
_ENTRY_BYTES = 512
PIECE_BYTES = 48
"""What keeping a piece costs besides its bytes."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer in full.

    Attributes:
        pieces: As they went out: the whole JSON, the parts of a stream, or JSON lists of objects.
        tokens: What it took when it was made.
        content_type: Of the pieces; empty where the surface has its own.
        has_usage: Whether the engine told what it took.
        similarity: How near the question is that it was given to, 0 to 1; None for the same one.
    """

    pieces: Sequence[bytes]
    tokens: Tokens
    content_type: str = ""
    has_usage: bool = False
    similarity: float | None = None

    @property
    def size(self) -> int:
        """About how many bytes of memory it takes."""
        return _ENTRY_BYTES + sum(len(piece) + PIECE_BYTES for piece in self.pieces)


class AnswerStore:
    """Answers by key.

    Args:
        max_bytes: The most memory that they take together.
        max_answer_bytes: The most that one may take; larger ones are not kept.
        ttl_s: How long one is given again after it was made.
        clock: A monotonic clock in seconds.

    Attributes:
        size: About how many bytes of memory they take.
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        max_answer_bytes: int,
        ttl_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_answer_bytes = min(max_answer_bytes, max_bytes)
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._clock = clock
        self._entries: OrderedDict[bytes, tuple[float, Answer]] = OrderedDict()
        self.size = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> Answer | None:
        """Returns an answer that is not too old, or None."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        expires_at, answer = entry
        if self._clock() >= expires_at:
            self._remove(key)
            return None
        self._entries.move_to_end(key)
        return answer

    def put(self, key: bytes, answer: Answer) -> None:
        """Keeps an answer, if it is not too large; others make room for it."""
        self._put(key, answer, self._clock() + self._ttl_s)

    def lend(self, key: bytes, to: bytes, similarity: float) -> Answer | None:
        """Gives an answer to another question too, for as long as it has left.

        Args:
            key: What it is kept under.
            to: What it is kept under as well.
            similarity: How near the other question is.

        Returns:
            The answer as the other question's; None where there is none that is not too old.
        """
        answer = self.get(key)
        if answer is None:
            return None
        expires_at, _ = self._entries[key]
        lent = replace(answer, similarity=similarity)
        self._put(to, lent, expires_at)
        return lent

    def drop(self, answer: Answer) -> None:
        """Forgets an answer, to whatever questions it was given."""
        for key in [k for k, (_, kept) in self._entries.items() if kept.pieces is answer.pieces]:
            self._remove(key)

    def _put(self, key: bytes, answer: Answer, expires_at: float) -> None:
        size = answer.size
        if size > self.max_answer_bytes:
            return
        if key in self._entries:
            self._remove(key)
        while self._entries and self.size + size > self._max_bytes:
            self._remove(next(iter(self._entries)))
        self._entries[key] = (expires_at, answer)
        self.size += size

    def _remove(self, key: bytes) -> None:
        _, answer = self._entries.pop(key)
        self.size -= answer.size
