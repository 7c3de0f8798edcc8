"""Policies: which scorers count how much, who picks, and within which bounds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from services.routing.catalogue import PICKERS, SCORERS
from services.routing.filters.health import HealthFilter
from services.routing.filters.labels import LabelFilter
from services.routing.plugins import Filter, Picker, Scorer

DEFAULT_LOAD_FACTOR = 1.2
DEFAULT_MAX_PRESSURE = 64.0


@dataclass(frozen=True)
class Hedging:
    """When a call that has no first byte yet is sent to a second node as well.

    Attributes:
        delay_s: How long it waits for the first byte before that.
        budget: Which share of calls may be sent twice, 0 to 1.
    """

    delay_s: float
    budget: float


@dataclass(frozen=True)
class Policy:
    """How nodes are chosen. Its plugins exist and its numbers are in range.

    Attributes:
        name: Unique. Example: `balanced`.
        weights: Of each scorer that counts, more than 0.
        picker: The picker's name.
        load_factor: How much busier than the mean a node may be and still get calls for the sake
            of what it has cached; 1 or more.
        max_pressure: Above how many calls to a slot a node is given no more; 0 is no bound.
        allow: Values of labels that a node must have.
        deny: Values of labels that a node must not have.
        hedging: None where calls are not sent twice.
    """

    name: str
    weights: Mapping[str, float]
    picker: str = "best_first"
    load_factor: float = DEFAULT_LOAD_FACTOR
    max_pressure: float = DEFAULT_MAX_PRESSURE
    allow: Mapping[str, frozenset[str]] = field(default_factory=dict)
    deny: Mapping[str, frozenset[str]] = field(default_factory=dict)
    hedging: Hedging | None = None


class Plan:
    """A policy made ready for decisions.

    Attributes:
        policy: The policy.
        filters: What every node must pass.
        scorers: Names, scorers and weights; the weights add up to 1.
        picker: One of the policy's own, for it may remember.
        needs_prompt: Whether a scorer reads the prompt.
        needs_session: Whether a scorer reads the session.
    """

    def __init__(self, policy: Policy) -> None:
        total = sum(policy.weights.values())
        self.policy = policy
        self.filters: Sequence[Filter] = (
            HealthFilter(),
            *([LabelFilter(policy.allow, policy.deny)] if policy.allow or policy.deny else []),
        )
        self.scorers: Sequence[tuple[str, Scorer, float]] = tuple(
            (name, SCORERS[name], weight / total) for name, weight in policy.weights.items()
        )
        self.picker: Picker = PICKERS[policy.picker]()
        self.needs_prompt = "prefix" in policy.weights
        self.needs_session = "session" in policy.weights


BUILT_IN: Mapping[str, Policy] = {
    policy.name: policy
    for policy in (
        Policy("balanced", {"prefix": 3, "queue": 2, "kv_use": 0.3, "adapter": 1, "session": 0.5}),
        Policy("latency", {"prefix": 3, "queue": 3, "ttft": 2, "adapter": 1}),
        Policy("throughput", {"queue": 3, "kv_use": 1, "prefix": 2, "adapter": 1}),
        Policy("cost", {"cost": 6, "queue": 1, "prefix": 1}),
        Policy("session", {"session": 4, "queue": 1, "prefix": 1}),
        Policy("round_robin", {}, picker="round_robin"),
    )
}
"""The policies that always exist and cannot be changed."""

DEFAULT = "balanced"
"""The policy of a model that is given no other."""

BY_LEVEL: Mapping[str, str] = {"low": "cost", "medium": "balanced", "high": "latency"}
"""The policy that a caller's `optimization_level` stands for."""
