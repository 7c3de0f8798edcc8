"""The rules of the ledger: what an event is, which attempt stays, what it adds to the sums."""

import datetime as dt
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import NamedTuple

from infermesh.metrics.v1 import usage_service_pb2
from services.metrics.scopes import Use

OUTCOME_OK = int(usage_service_pb2.OUTCOME_OK)
OPERATION_EMBEDDING = int(usage_service_pb2.OPERATION_EMBEDDING)
DEFAULT_PROJECT = "default"


class Usage(NamedTuple):
    """One request's row in the ledger. None is unknown.

    Args:
        requested_model: The model as the caller named it; empty where it is `model`.
        reserved: Whether auth reserved tokens for it.
        cost: In US dollars, by the prices of when it was written.
    """

    request_id: str
    attempt: int
    tenant: str
    key_id: str
    model: str
    node_id: str
    operation: int
    streamed: bool
    outcome: int
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    start_time: dt.datetime
    time_to_first_token_us: int | None
    duration_us: int | None
    project: str = DEFAULT_PROJECT
    requested_model: str = ""
    reserved: bool = False
    cost: Decimal | None = None

    @property
    def day(self) -> dt.date:
        """The day on which it started, UTC."""
        return self.start_time.astimezone(dt.UTC).date()

    @property
    def use(self) -> Use:
        """Whose totals it is in."""
        model = self.requested_model or self.model
        return Use(self.day, self.tenant, self.project, self.key_id, model)

    @property
    def output_tokens(self) -> int | None:
        """Tokens made; None is unknown."""
        return output_tokens(self.operation, self.completion_tokens)

    @property
    def tokens(self) -> int | None:
        """All its tokens; None where some are unknown."""
        return all_tokens(self.operation, self.prompt_tokens, self.completion_tokens)


def output_tokens(operation: int, completion_tokens: int | None) -> int | None:
    """Returns how many tokens were made: none where embeddings were asked for."""
    if completion_tokens is None and operation == OPERATION_EMBEDDING:
        return 0
    return completion_tokens


def all_tokens(
    operation: int, prompt_tokens: int | None, completion_tokens: int | None
) -> int | None:
    """Returns the tokens of a prompt and those made; None where some are unknown."""
    made = output_tokens(operation, completion_tokens)
    return None if prompt_tokens is None or made is None else prompt_tokens + made


class SumKey(NamedTuple):
    """What sums are kept by."""

    day: dt.date
    tenant: str
    project: str
    key_id: str
    model: str


class Sums(NamedTuple):
    """What is summed; also a change of sums, then with negative numbers in it."""

    request_count: int
    failed_count: int
    unknown_count: int
    unpriced_count: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    cost: Decimal

    @property
    def is_cost_known(self) -> bool:
        """Whether the cost of any request is known."""
        return self.unpriced_count < self.request_count

    def plus(self, other: "Sums", sign: int) -> "Sums":
        """Returns the sum with another, which counts `sign` times."""
        return Sums(
            self.request_count + sign * other.request_count,
            self.failed_count + sign * other.failed_count,
            self.unknown_count + sign * other.unknown_count,
            self.unpriced_count + sign * other.unpriced_count,
            self.prompt_tokens + sign * other.prompt_tokens,
            self.completion_tokens + sign * other.completion_tokens,
            self.cached_tokens + sign * other.cached_tokens,
            self.cost + sign * other.cost,
        )


def takes_place(new: Usage, old: Usage) -> bool:
    """Says whether an attempt takes the place of another of the same request.

    An answer stays, whichever attempt it is: of two attempts that ran at the same time (hedging)
    Envoy cancels the slower one. Otherwise the higher attempt stays.
    """
    return (new.outcome == OUTCOME_OK, new.attempt) > (old.outcome == OUTCOME_OK, old.attempt)


_NOTHING = Decimal()
_ZERO = Sums(0, 0, 0, 0, 0, 0, 0, _NOTHING)


def latest_attempts(events: Iterable[Usage]) -> dict[str, Usage]:
    """Returns the attempt of each request that stays, in the order of the request ids.

    The order is the one in which all writers lock rows, so that none waits for another in a circle.
    """
    latest: dict[str, Usage] = {}
    for event in events:
        known = latest.get(event.request_id)
        if known is None or takes_place(event, known):
            latest[event.request_id] = event
    return dict(sorted(latest.items()))


def sum_key(event: Usage) -> SumKey:
    """Returns the sums that an event belongs to."""
    return SumKey(event.day, event.tenant, event.project, event.key_id, event.model)


def sums_of(event: Usage) -> Sums:
    """Returns what an event adds to its sums."""
    return Sums(
        request_count=1,
        failed_count=int(event.outcome != OUTCOME_OK),
        unknown_count=int(event.tokens is None),
        unpriced_count=int(event.cost is None),
        prompt_tokens=event.prompt_tokens or 0,
        completion_tokens=event.completion_tokens or 0,
        cached_tokens=event.cached_tokens or 0,
        cost=_NOTHING if event.cost is None else event.cost,
    )


def changes(added: Iterable[Usage], removed: Iterable[Usage]) -> Mapping[SumKey, Sums]:
    """Returns by how much the sums change, in the order of their keys."""
    total: dict[SumKey, Sums] = {}
    for sign, events in ((1, added), (-1, removed)):
        for event in events:
            key = sum_key(event)
            old = total.get(key, _ZERO)
            total[key] = old.plus(sums_of(event), sign)
    return {key: sums for key, sums in sorted(total.items()) if sums != _ZERO}


def uses(added: Iterable[Usage], removed: Iterable[Usage]) -> Iterable[tuple[Use, int, Decimal]]:
    """Yields by how much requests change the totals of whose they are: tokens and US dollars."""
    for sign, events in ((1, added), (-1, removed)):
        for event in events:
            tokens = (event.prompt_tokens or 0) + (event.completion_tokens or 0)
            cost = _NOTHING if event.cost is None else event.cost
            yield event.use, sign * tokens, sign * cost
