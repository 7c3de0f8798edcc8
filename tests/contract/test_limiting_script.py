"""The script against the written definition, on a real Redis at times of the test's own."""

import random
from typing import Any

import orjson
import pytest

from contract.limiting_redis import Script, forget
from services.auth.limiting.contract import LIMIT_NAMES, ScopeLimits
from services.auth.limiting.wire import row
from unit.auth.limiting_model import Model

NOON = 1_799_971_200 + 43_200  # of 2027-01-15
DAY = "2027-01-15"
MONTH = "2027-01-01"
HOLD_S = 300


@pytest.fixture
def script(redis_url):
    forget(redis_url)
    return Script(redis_url, HOLD_S)


def rows_of(*scopes: ScopeLimits) -> list[Any]:
    return [orjson.loads(orjson.dumps(row(limits))) for limits in scopes]


def seeds(scopes: list[ScopeLimits]) -> list[Any]:
    ops = []
    for limits in scopes:
        for period, date in (("d", DAY), ("u", MONTH)):
            ops.append([5, period, limits.scope, date, 0, 0, -1, []])
    return ops


def first_seconds(result: list[Any]) -> float | None:
    return None if result[3] < 0 else result[3] / 1000


def admit(script: Script, now: int, id_: str, tokens: int, *scopes: ScopeLimits) -> list[Any]:
    places = list(range(1, len(scopes) + 1))
    reply = script.run(now, rows_of(*scopes), [[1, id_, tokens, 0, places]])
    return reply[2][0]  # type: ignore[no-any-return]


def state(script: Script, now: int, limits: ScopeLimits) -> list[int]:
    return script.run(now, rows_of(limits), [[6, 1]])[2][0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("seed", range(10))
def test_it_lets_in_what_the_definition_says(script, seed):
    chance = random.Random(seed)
    model = Model(HOLD_S)
    scopes = [
        ScopeLimits("t:a", 30, 3000, None, 20_000, None),
        ScopeLimits("p:a/b", None, None, 6, None, 10**9),
        ScopeLimits("k:x", 12, 900, 4, 9000, 2 * 10**8),
        ScopeLimits("k:y", 12, None, None, None, None),
    ]
    rows = rows_of(*scopes)
    now = NOON + chance.randrange(60)
    script.run(now, rows, seeds(scopes))
    for limits in scopes:
        model.total(limits.scope, 0, 0)
    live: list[str] = []
    ended: list[str] = []
    let_in = 0
    for turn in range(250):
        now += chance.choice([0, 0, 0, 0, 1, 1, 2, 5, 17] + [64] * (turn % 40 == 0) + [250])
        ops: list[list[Any]] = []
        expected: list[Any] = []
        for each in range(chance.choice([1, 1, 1, 3, 6])):
            what = chance.random()
            if what < 0.6 or not live:
                id_ = f"{seed}-{turn}-{each}"
                if live and chance.random() < 0.1:
                    id_ = chance.choice(live)
                places = sorted(chance.sample(range(4), chance.randint(1, 4)))
                tokens, usd = chance.randrange(400), chance.randrange(10**8)
                called = [scopes[place] for place in places]
                refused = model.admit(id_, called, tokens, usd, now)
                ops.append([1, id_, tokens, usd, [place + 1 for place in places]])
                expected.append((called, refused))
                if not refused and id_ not in live:
                    live.append(id_)
                    let_in += 1
            elif what < 0.75:
                id_ = live.pop(chance.randrange(len(live)))
                reached = chance.random() < 0.7
                model.release(id_, reached, now)
                ops.append([3, id_, int(reached)])
                expected.append(None)
                ended.append(id_)
            elif what < 0.95:
                id_ = chance.choice(live + ended)
                true = None if chance.random() < 0.2 else chance.randrange(600)
                if id_ in live:
                    live.remove(id_)
                    ended.append(id_)
                model.settle(id_, true, now)
                ops.append([4, id_, -1 if true is None else true])
                expected.append(None)
            else:
                scope = chance.choice(scopes).scope
                value, version = chance.randrange(6000), chance.randrange(20)
                model.total(scope, value, version)
                ops.append([5, "d", scope, DAY, value, version, -1, []])
                expected.append(None)
        results = script.run(now, rows, ops)[2]
        for result, wanted in zip(results, expected, strict=True):
            if wanted is None:
                continue
            called, refused = wanted
            assert (result[0] == 1) == bool(refused), (turn, result, refused)
            if refused:
                named = called[result[1] - 1].scope, LIMIT_NAMES[result[2] - 1]
                assert named in refused
        for place, limits in enumerate(scopes, 1):
            found = script.run(now, rows, [[6, place]])[2][0]
            requests, tokens, places_, day, month = model.uses(limits.scope, now)
            if limits[1] is not None or limits[2] is not None:
                assert (found[1], found[3]) == (requests, tokens), (turn, limits.scope)
            if any(value is not None for value in limits[3:6]):
                assert (found[5], found[7], found[10]) == (places_, day, month), turn
    assert let_in > 50


@pytest.mark.parametrize("seed", range(8))
def test_retry_after_is_the_first_moment_at_which_it_passes(script, seed):
    chance = random.Random(seed)
    limits = ScopeLimits("k:r", 8, 1000)
    now = NOON
    refused = 0
    for turn in range(120):
        now += chance.choice([0, 1, 3, 9])
        tokens = chance.randrange(1, 500)
        result = admit(script, now, f"{seed}-{turn}", tokens, limits)
        if result[0] == 0:
            continue
        refused += 1
        wait = first_seconds(result)
        assert wait is not None
        # Asked a second early it is refused still, then it passes: what passes is asked last.
        at = now + 0.25 + wait
        assert at == int(at)
        if at - 1 > now:
            assert admit(script, int(at) - 1, f"{seed}-{turn}-early", tokens, limits)[0] == 1
        now = int(at)
        assert admit(script, now, f"{seed}-{turn}-then", tokens, limits)[0] == 0
    assert refused > 20


def test_a_call_larger_than_its_limit_never_passes(script):
    assert first_seconds(admit(script, NOON, "a", 101, ScopeLimits("k:a", None, 100))) is None
    assert first_seconds(admit(script, NOON, "b", 0, ScopeLimits("k:b", 0))) is None
    assert first_seconds(admit(script, NOON, "c", 0, ScopeLimits("k:c", None, 0))) is None
    assert first_seconds(admit(script, NOON, "d", 0, ScopeLimits("k:d", None, None, 0))) is None
    limits = ScopeLimits("k:e", tokens_per_day=0)
    script.run(NOON, [], seeds([limits]))
    assert first_seconds(admit(script, NOON, "e", 0, limits)) is None


def test_all_scopes_are_charged_or_none(script):
    roomy, full = ScopeLimits("t:a", 10, 1000, 10, None, None), ScopeLimits("k:x", 1)
    assert admit(script, NOON, "1", 10, roomy, full)[0] == 0
    before = state(script, NOON, roomy)
    result = admit(script, NOON, "2", 10, roomy, full)
    assert result[:3] == [1, 2, 1]
    assert state(script, NOON, roomy) == before
    assert script.client.get("infermesh:limits:r:2") is None


def test_the_limit_that_takes_longest_is_named(script):
    slow, quick = ScopeLimits("t:a", 1), ScopeLimits("k:x", None, None, 1)
    assert admit(script, NOON, "1", 10, quick, slow)[0] == 0
    assert admit(script, NOON, "2", 10, quick, slow)[:4] == [1, 2, 1, 59_750]


def test_a_total_that_is_not_known_is_asked_for_and_nothing_is_charged(script):
    limits = ScopeLimits("t:a", 10, None, None, 1000, 10**9)
    assert admit(script, NOON, "1", 10, limits) == [
        *(2, b"d", b"t:a", DAY.encode()),
        *(b"u", b"t:a", MONTH.encode()),
    ]
    script.run(NOON, [], seeds([limits]))
    assert admit(script, NOON, "1", 10, limits)[0] == 0
    # Another Redis does not believe what this one knew.
    reply = script.run(NOON, rows_of(limits), [[1, "2", 10, 0, [1]]], run="other")
    assert reply[2][0][0] == 2


def test_a_day_that_is_spent_waits_for_midnight_and_one_that_is_reserved_for_a_moment(script):
    limits = ScopeLimits("t:a", None, None, None, 1000)
    script.run(NOON, [], [[5, "d", "t:a", DAY, 500, 1, -1, []]])
    assert admit(script, NOON, "1", 300, limits)[0] == 0
    assert first_seconds(admit(script, NOON, "2", 300, limits)) == 5
    assert first_seconds(admit(script, NOON, "3", 501, limits)) == 43_200 - 0.25
    # The reservation lapses by itself, the total stays.
    later = NOON + HOLD_S + 60
    assert admit(script, later, "4", 500, limits)[0] == 0


@pytest.mark.parametrize(
    ("second", "day", "month"),
    [
        (NOON, "2027-01-15", "2027-01-01"),
        (951_782_400, "2000-02-29", "2000-02-01"),
        (4_107_542_399, "2100-02-28", "2100-02-01"),
        (4_107_542_400, "2100-03-01", "2100-03-01"),
        (1_798_761_599, "2026-12-31", "2026-12-01"),
    ],
)
def test_days_and_months_are_those_of_utc(script, second, day, month):
    limits = ScopeLimits("t:a", None, None, None, 1000, 10**9)
    result = admit(script, second, "1", 10, limits)
    assert result == [2, b"d", b"t:a", day.encode(), b"u", b"t:a", month.encode()]


def test_the_month_ends_where_the_next_begins(script):
    limits = ScopeLimits("t:a", usd_per_month=100)
    for second, date, left in (
        (951_782_400, "2000-02-01", 86_400),
        (1_798_761_599, "2026-12-01", 1),
        (NOON, MONTH, 16 * 86_400 + 43_200),
    ):
        script.run(second, [], [[5, "u", "t:a", date, 100, 1, -1, []]])
        assert state(script, second, limits)[11] == left * 1000 - 250


def test_settling_again_changes_nothing_and_settling_otherwise_corrects(script):
    limits = ScopeLimits("k:x", 10, 1000)
    admit(script, NOON, "1", 100, limits)
    for true in (40, 40, 160, 160, 30):
        script.run(NOON + 5, [], [[4, "1", true]])
        assert state(script, NOON + 5, limits)[3] == true
    # What was too little is counted when it became known, what was too much where it was.
    script.run(NOON + 6, [], [[4, "1", 90]])
    assert state(script, NOON + 59, limits)[3] == 90
    assert state(script, NOON + 60, limits)[3] == 60
    assert state(script, NOON + 66, limits)[3] == 0


def test_a_call_of_which_nothing_is_heard_gives_back_by_itself(script):
    limits = ScopeLimits("k:x", None, None, 1, 1000)
    script.run(NOON, [], [[5, "d", "k:x", DAY, 0, 0, -1, []]])
    assert admit(script, NOON, "lost", 1000, limits)[0] == 0
    assert admit(script, NOON + HOLD_S, "early", 1, limits)[0] == 1
    assert admit(script, NOON + HOLD_S + 60, "later", 1000, limits)[0] == 0
    # Its late end takes nothing from the call that has its place.
    script.run(NOON + HOLD_S + 61, [], [[3, "lost", 0], [4, "lost", 5]])
    assert state(script, NOON + HOLD_S + 61, limits)[5:8] == [1, 0, 1000]


def test_a_clock_that_is_set_back_lets_nothing_in_twice(script):
    limits = ScopeLimits("k:x", 2, 1000)
    assert admit(script, NOON, "1", 10, limits)[0] == 0
    assert admit(script, NOON, "2", 10, limits)[0] == 0
    assert admit(script, NOON - 30, "3", 10, limits)[0] == 1
    # Set back by more than a minute, it is a new minute; what ended before takes nothing from it.
    assert admit(script, NOON - 3600, "4", 10, limits)[0] == 0
    script.run(NOON - 3600, [], [[4, "1", 0]])
    assert state(script, NOON - 3600, limits)[1:4:2] == [1, 10]


def test_a_slot_that_was_lost_with_the_clock_gives_nothing_back(script):
    limits = ScopeLimits("k:x", 10, 1000)
    admit(script, NOON, "1", 100, limits)
    admit(script, NOON + 90, "2", 100, limits)
    assert admit(script, NOON + 5, "3", 10, limits)[0] == 0
    script.run(NOON + 6, [], [[4, "1", 0]])
    assert state(script, NOON + 6, limits)[1:4:2] == [1, 10]


def test_what_the_ledger_says_stands_whatever_is_heard_later(script):
    limits = ScopeLimits("k:x", 10, 1000)
    admit(script, NOON, "1", 100, limits)
    script.run(NOON, [], [[4, "1", 70], [3, "1", 0]])
    assert state(script, NOON, limits)[3] == 70
    # In the other order it is counted again.
    admit(script, NOON, "2", 100, limits)
    script.run(NOON + 1, [], [[3, "2", 0]])
    assert state(script, NOON + 1, limits)[3] == 70
    script.run(NOON + 2, [], [[4, "2", 30]])
    assert state(script, NOON + 2, limits)[1:4:2] == [2, 100]


def test_what_was_let_in_elsewhere_is_charged_once_and_where_it_was(script):
    limits = ScopeLimits("k:x", 1, 1000, 5)
    charge = [2, "1", 100, 0, [1], NOON - 20]
    for _ in range(2):
        script.run(NOON, rows_of(limits), [charge])
        found = state(script, NOON, limits)
        assert (found[1], found[3], found[5]) == (1, 100, 1)
    assert state(script, NOON + 39, limits)[1] == 1
    assert state(script, NOON + 40, limits)[1] == 0
    # Of a minute that is over only the place is taken.
    script.run(NOON + 40, rows_of(limits), [[2, "old", 100, 0, [1], NOON - 20]])
    found = state(script, NOON + 40, limits)
    assert (found[1], found[3], found[5]) == (0, 0, 2)


def test_alerts_are_told_once_in_a_period(script):
    limits = ScopeLimits("t:a", None, None, None, 1000, None, (50, 80))
    rows = rows_of(limits)
    told = []
    for version, value in enumerate((499, 500, 790, 801, 1000), 1):
        script.run(NOON, [], [[5, "d", "t:a", DAY, value, version, -1, []]])
        for id_ in (f"a{version}", f"b{version}"):
            alerts = script.run(NOON, rows, [[1, id_, 0, 0, [1]]])[3]
            told += [(value, alert[3]) for alert in alerts]
    assert told == [(500, 50), (801, 80)]
    # By the total itself, with a limit that was raised.
    reply = script.run(NOON, [], [[5, "d", "t:a", DAY, 1001, 9, 2000, [50, 80]]])
    assert [alert[1:] for alert in reply[3]] == [[b"t:a", b"d", 50, DAY.encode()]]


def test_scopes_that_are_silent_are_forgotten(script):
    for i in range(8):
        admit(script, NOON, f"{i}", 10, ScopeLimits(f"k:{i}", 10, 1000, 10))
    assert len(script.client.keys("infermesh:limits:[mf]:*")) == 16
    for i in range(4):
        script.run(NOON + HOLD_S + 121 + i, [], [])
    assert script.client.keys("infermesh:limits:[mf]:*") == []
    assert script.client.zcard("infermesh:limits:idle") == 0


def test_large_numbers_stay_exact(script):
    limits = ScopeLimits("t:a", None, None, None, 10**15, 999_999_999_999_999)
    script.run(NOON, [], [[5, "d", "t:a", DAY, 10**15 - 7, 1, -1, []]])
    script.run(NOON, [], [[5, "u", "t:a", MONTH, 999_999_999_999_990, 1, -1, []]])
    rows = rows_of(limits)
    assert script.run(NOON, rows, [[1, "1", 7, 9, [1]]])[2][0][7:9] == [10**15, 999_999_999_999_999]
    assert script.run(NOON, rows, [[1, "2", 1, 0, [1]]])[2][0][0] == 1
