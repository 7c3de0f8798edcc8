"""The rules of the ledger: what an event is, which attempt stays, what it adds to the sums."""

import datetime as dt
from collections.abc import Iterable, Mapping
from typing import NamedTuple

OUTCOME_OK = 1


class Usage(NamedTuple):
    """One request's row in the ledger. None is unknown."""

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


class SumKey(NamedTuple):
    """What sums are kept by."""

    day: dt.date
    tenant: str
    key_id: str
    model: str


class Sums(NamedTuple):
    """What is summed; also a change of sums, then with negative numbers in it."""

    request_count: int
    failed_count: int
    unknown_count: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


def takes_place(new: Usage, old: Usage) -> bool:
    """Says whether an attempt takes the place of another of the same request.

    An answer stays, whichever attempt it is: of two attempts that ran at the same time (hedging)
    Envoy cancels the slower one. Otherwise the higher attempt stays.
    """
    return (new.outcome == OUTCOME_OK, new.attempt) > (old.outcome == OUTCOME_OK, old.attempt)


_ZERO = Sums(0, 0, 0, 0, 0, 0)


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
    day = event.start_time.astimezone(dt.UTC).date()
    return SumKey(day, event.tenant, event.key_id, event.model)


def sums_of(event: Usage) -> Sums:
    """Returns what an event adds to its sums."""
    return Sums(
        request_count=1,
        failed_count=int(event.outcome != OUTCOME_OK),
        unknown_count=int(event.prompt_tokens is None or event.completion_tokens is None),
        prompt_tokens=event.prompt_tokens or 0,
        completion_tokens=event.completion_tokens or 0,
        cached_tokens=event.cached_tokens or 0,
    )


def changes(added: Iterable[Usage], removed: Iterable[Usage]) -> Mapping[SumKey, Sums]:
    """Returns by how much the sums change, in the order of their keys."""
    total: dict[SumKey, Sums] = {}
    for sign, events in ((1, added), (-1, removed)):
        for event in events:
            key = sum_key(event)
            old = total.get(key, _ZERO)
            total[key] = Sums(*(a + sign * b for a, b in zip(old, sums_of(event), strict=True)))
    return {key: sums for key, sums in sorted(total.items()) if sums != _ZERO}
