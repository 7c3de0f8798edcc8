import datetime as dt
from collections import Counter
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from services.metrics.usage import (
    OPERATION_EMBEDDING,
    Sums,
    Usage,
    changes,
    latest_attempts,
    sum_key,
    sums_of,
    takes_place,
)


def usage(request_id: str = "r", attempt: int = 1, **changed: object) -> Usage:
    return Usage(
        request_id,
        attempt,
        tenant="acme",
        key_id="k",
        model="m",
        node_id="n",
        operation=1,
        streamed=False,
        outcome=1,
        prompt_tokens=3,
        completion_tokens=4,
        cached_tokens=None,
        start_time=dt.datetime(2026, 1, 2, 3, tzinfo=dt.UTC),
        time_to_first_token_us=None,
        duration_us=5,
    )._replace(**changed)


def test_the_highest_attempt_stays_and_the_first_of_equals() -> None:
    events = [
        usage("b", 2, node_id="first"),
        usage("a", 1),
        usage("b", 1),
        usage("b", 2, node_id="second"),
    ]
    latest = latest_attempts(events)
    assert list(latest) == ["a", "b"]
    assert latest["b"].node_id == "first"


def test_an_answer_stays_though_a_hedged_attempt_was_cancelled_after_it() -> None:
    answered = usage(attempt=1)
    cancelled = usage(attempt=2, outcome=2, prompt_tokens=None, completion_tokens=None)
    assert latest_attempts([answered, cancelled])["r"] is answered
    assert latest_attempts([cancelled, answered])["r"] is answered
    assert takes_place(answered, cancelled)
    assert not takes_place(cancelled, answered)


def test_unknown_tokens_are_counted_and_not_summed() -> None:
    sums = sums_of(usage(outcome=5, prompt_tokens=None, completion_tokens=None))
    assert sums == Sums(1, 1, 1, 1, 0, 0, 0, Decimal())
    priced = usage(cached_tokens=2, cost=Decimal("0.5"))
    assert sums_of(priced) == Sums(1, 0, 0, 0, 3, 4, 2, Decimal("0.5"))


def test_embeddings_make_no_tokens_and_are_known_without_them() -> None:
    embedding = usage(operation=OPERATION_EMBEDDING, completion_tokens=None)
    assert embedding.tokens == 3
    assert sums_of(embedding).unknown_count == 0
    assert usage(completion_tokens=None).tokens is None
    assert usage(operation=OPERATION_EMBEDDING, prompt_tokens=None).tokens is None


def test_the_day_is_that_of_utc() -> None:
    late = dt.datetime(2026, 1, 1, 23, tzinfo=dt.timezone(-dt.timedelta(hours=2)))
    assert sum_key(usage(start_time=late)).day == dt.date(2026, 1, 2)


def test_an_attempt_that_takes_a_place_changes_the_sums_by_the_difference() -> None:
    lost = usage(outcome=5, prompt_tokens=None, completion_tokens=None)
    again = usage(attempt=2, cost=Decimal("0.25"))
    assert list(changes([again], [lost]).values()) == [
        Sums(0, -1, -1, -1, 3, 4, 0, Decimal("0.25"))
    ]
    assert changes([usage(attempt=2)], [usage()]) == {}


_EVENTS = st.builds(
    usage,
    request_id=st.sampled_from("abcdef"),
    attempt=st.integers(1, 3),
    model=st.sampled_from(["m", "n"]),
    outcome=st.integers(1, 5),
    prompt_tokens=st.none() | st.integers(0, 9),
    project=st.sampled_from(["default", "web"]),
    cost=st.none() | st.decimals(0, 9, places=12),
)


@given(st.lists(st.lists(_EVENTS, max_size=8), max_size=6))
def test_sums_kept_by_changes_equal_sums_of_what_is_kept(batches: list[list[Usage]]) -> None:
    kept: dict[str, Usage] = {}
    sums: Counter[object] = Counter()
    for batch in batches:
        latest = latest_attempts(batch)
        added = [
            e
            for e in latest.values()
            if e.request_id not in kept or e.attempt > kept[e.request_id].attempt
        ]
        removed = [kept[e.request_id] for e in added if e.request_id in kept]
        for key, change in changes(added, removed).items():
            for name, value in change._asdict().items():
                sums[key, name] += value
        kept.update({e.request_id: e for e in added})
    expected: Counter[object] = Counter()
    for event in kept.values():
        for name, value in sums_of(event)._asdict().items():
            expected[sum_key(event), name] += value
    assert +sums == +expected
    assert not -sums
