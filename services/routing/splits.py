"""Aliases: names that stand for several models, each with a share of the calls."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import xxhash

from infermesh.routing.v1 import split_service_pb2 as pb


class Split:
    """Chooses among the targets of one alias.

    Args:
        message: The split; its weights are not all 0.
        turns: Where the turns of each model stand, to go on from.
    """

    def __init__(self, message: pb.Split, turns: Mapping[str, float] | None = None) -> None:
        self.sticky_by = message.sticky_by
        self._targets = [(each.model, each.weight) for each in message.targets if each.weight]
        self._total = sum(weight for _, weight in self._targets)
        self._turns = {model: (turns or {}).get(model, 0.0) for model, _ in self._targets}

    @property
    def turns(self) -> Mapping[str, float]:
        """Where the turns of each model stand."""
        return self._turns

    def choose(self, caller: str) -> str:
        """Returns the model for a call.

        Args:
            caller: Who keeps its target; empty where the call takes a turn.
        """
        if len(self._targets) == 1:
            return self._targets[0][0]
        return self._by_hash(caller) if caller else self._by_turn()

    def _by_turn(self) -> str:
        """Chooses by smooth weighted round robin, which is exact over each `total` calls.

        Each target gains its weight, the one that has most pays the total: no target is ever a
        whole call ahead of its share.
        """
        turns = self._turns
        for model, weight in self._targets:
            turns[model] += weight / self._total
        chosen = max(turns, key=turns.__getitem__)
        turns[chosen] -= 1.0
        return chosen

    def _by_hash(self, caller: str) -> str:
        """Chooses by weighted rendezvous hashing: the largest `-weight / ln(hash)`.

        A caller changes its target only towards one whose share grew (Schindelhauer and Schomaker,
        "Weighted distributed hash tables", 2005).
        """
        key = caller.encode()

        def score(target: tuple[str, int]) -> float:
            model, weight = target
            digest = xxhash.xxh3_64_intdigest(key, xxhash.xxh3_64_intdigest(model.encode()))
            return -weight / math.log((digest + 0.5) / 2**64)

        return max(self._targets, key=score)[0]


class SplitCounts:
    """Counts what splits chose, until the counts are taken away to the store."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()

    def count(self, alias: str, model: str) -> None:
        """Counts a call."""
        self._counts[alias, model] += 1

    def pending(self, alias: str, model: str) -> int:
        """Returns the calls that are not in the store yet."""
        return self._counts[alias, model]

    def take(self) -> Mapping[tuple[str, str], int]:
        """Returns the counts, and starts again from 0."""
        counts, self._counts = self._counts, Counter()
        return counts

    def give_back(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Adds counts that could not be stored."""
        self._counts.update(counts)


def targets(message: pb.Split) -> Sequence[str]:
    """Returns the models of a split."""
    return [each.model for each in message.targets]
