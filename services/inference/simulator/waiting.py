"""The queue in front of an engine."""

from collections import OrderedDict

from services.inference.simulator.sequence import Sequence


class Waiting:
    """Sequences in the order of their arrival, or of their priority first.

    Args:
        by_priority: Whether a lower `priority` goes first.
    """

    def __init__(self, *, by_priority: bool) -> None:
        self._by_priority = by_priority
        self._lines: dict[int, OrderedDict[Sequence, None]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, sequence: Sequence) -> None:
        """Puts one at its end."""
        line = self._lines.setdefault(self._line_of(sequence), OrderedDict())
        line[sequence] = None
        self._count += 1

    def first(self) -> Sequence:
        """Returns the next one, which stays."""
        return next(iter(self._lines[min(self._lines)]))

    def remove(self, sequence: Sequence) -> None:
        """Takes one out."""
        number = self._line_of(sequence)
        line = self._lines[number]
        del line[sequence]
        if not line:
            del self._lines[number]
        self._count -= 1

    def models(self) -> list[str]:
        """Returns the models that are waited for."""
        return list({sequence.model for line in self._lines.values() for sequence in line})

    def _line_of(self, sequence: Sequence) -> int:
        return sequence.priority if self._by_priority else 0
