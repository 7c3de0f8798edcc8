"""What outcomes say about a policy."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from routing_load import Outcome


@dataclass(frozen=True, slots=True)
class Figures:
    """One policy at one rate.

    Attributes:
        rate: Questions per second that were asked.
        ttft_ms: Time to first token at the 50th, 90th and 99th percentile; a failure counts as
            longer than every answer.
        hit_share: The share of prompt tokens that came from caches.
        best_share: That share at best.
        requests_skew: The most answers of one node over the mean.
        load_skew: The most requests that one node had open, in the mean over time, over the mean
            of the nodes.
        per_s: Answers per second, from the first question to the last answer.
        tokens_per_s: Tokens of answers per second.
        failed: Questions without a whole answer.
        failures: Why, each with how often.
    """

    policy: str
    rate: float
    count: int
    ttft_ms: tuple[float, float, float]
    hit_share: float
    best_share: float
    requests_skew: float
    load_skew: float
    per_s: float
    tokens_per_s: float
    failed: int
    failures: dict[str, int]

    @property
    def of_best(self) -> float:
        """The hit rate as a share of the best possible."""
        return self.hit_share / self.best_share if self.best_share else 0.0


def figures(
    policy: str, rate: float, outcomes: Sequence[Outcome], best_share: float, nodes: int
) -> Figures:
    """Returns the figures of one run."""
    good = [outcome for outcome in outcomes if not outcome.failure]
    waits = sorted(
        outcome.first_s if not outcome.failure and outcome.first_s is not None else float("inf")
        for outcome in outcomes
    )
    start = min(outcome.due_at for outcome in outcomes)
    end = max(outcome.due_at + outcome.end_s for outcome in outcomes)
    prompt = sum(outcome.prompt for outcome in good)
    return Figures(
        policy=policy,
        rate=rate,
        count=len(outcomes),
        ttft_ms=(_at(waits, 0.5), _at(waits, 0.9), _at(waits, 0.99)),
        hit_share=sum(outcome.cached for outcome in good) / max(prompt, 1),
        best_share=best_share,
        requests_skew=_skew(((outcome.node, 1.0) for outcome in good), nodes),
        load_skew=_skew(((outcome.node, outcome.end_s) for outcome in good), nodes),
        per_s=len(good) / (end - start),
        tokens_per_s=sum(outcome.answer for outcome in good) / (end - start),
        failed=len(outcomes) - len(good),
        failures=dict(Counter(outcome.failure for outcome in outcomes if outcome.failure)),
    )


def _at(ordered: Sequence[float], share: float) -> float:
    """Returns a percentile in milliseconds, by the nearest rank."""
    rank = max(0, min(len(ordered) - 1, -(-int(share * 1000) * len(ordered) // 1000) - 1))
    return 1000 * ordered[rank]


def _skew(parts: Iterable[tuple[str, float]], nodes: int) -> float:
    sums: dict[str, float] = {}
    for node, value in parts:
        sums[node] = sums.get(node, 0.0) + value
    total = sum(sums.values())
    return max(sums.values()) * nodes / total if total else 0.0
