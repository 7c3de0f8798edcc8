"""What calls count whose callers left before the end: as reserved, since nobody knows better."""

from typing import Any

import orjson
import pytest

from contract.limiting_redis import Script, forget
from services.auth.limiting.contract import ScopeLimits
from services.auth.limiting.wire import row

NOON = 1_799_971_200 + 43_200  # of 2027-01-15
DAY, MONTH = "2027-01-15", "2027-01-01"
HOLD_S = 300
KEY = ScopeLimits("k:x", None, None, 10, 1000, 5000, (50,))

LEFT, UNKNOWN = [3, "a", 2], [4, "a", -1]


@pytest.fixture
def script(redis_url):
    forget(redis_url)
    return Script(redis_url, HOLD_S)


def run(script: Script, now: int, *ops: list[Any]) -> list[Any]:
    rows = [orjson.loads(orjson.dumps(row(KEY)))]
    return script.run(now, rows, list(ops))


def used(script: Script, now: int) -> tuple[int, int, int, int, int]:
    """Places, the day and what of it is reserved, the month likewise."""
    state = run(script, now, [6, 1])[2][0]
    return state[5], state[6], state[7], state[9], state[10]


def begin(script: Script) -> None:
    run(
        script,
        NOON,
        [5, "d", KEY.scope, DAY, 100, 1, -1, []],
        [5, "u", KEY.scope, MONTH, 200, 1, -1, []],
        [1, "a", 600, 3000, [1]],
    )
    assert used(script, NOON) == (1, 100, 600, 200, 3000)


@pytest.mark.parametrize("ends", [(LEFT, UNKNOWN), (UNKNOWN, LEFT), (LEFT, UNKNOWN, LEFT, UNKNOWN)])
def test_who_leaves_pays_what_was_reserved_for_the_day_and_the_month(script, ends):
    begin(script)
    for end in ends:
        run(script, NOON + 1, end)
    assert used(script, NOON + 1) == (0, 700, 0, 3200, 0)
    later = NOON + 3 * HOLD_S
    assert used(script, later) == (0, 700, 0, 3200, 0)
    refused = run(script, later, [1, "b", 400, 100, [1]])[2][0]
    assert refused[:3] == [1, 1, 4]
    assert run(script, later, [1, "c", 300, 1800, [1]])[2][0][0] == 0


def test_it_counts_for_alerts(script):
    begin(script)
    run(script, NOON + 1, LEFT, UNKNOWN)
    alerts = run(script, NOON + 2, [1, "b", 1, 1, [1]])[3]
    assert sorted((each[2], each[3]) for each in alerts) == [(b"d", 50), (b"u", 50)]


def test_what_becomes_known_takes_its_place(script):
    begin(script)
    run(script, NOON + 1, LEFT, UNKNOWN)
    # Another attempt of the same call, which the ledger has now.
    run(script, NOON + 200, [5, "d", KEY.scope, DAY, 140, 2, -1, []], [4, "a", 40])
    assert used(script, NOON + 200) == (0, 140, 0, 200, 0)


@pytest.mark.parametrize("how", [0, 1])
def test_others_whose_tokens_nobody_knows_pay_nothing(script, how):
    begin(script)
    run(script, NOON + 1, [3, "a", how], UNKNOWN)
    assert used(script, NOON + 2 * HOLD_S) == (0, 100, 0, 200, 0)


def test_a_known_end_is_not_counted_twice(script):
    begin(script)
    run(script, NOON + 1, [5, "d", KEY.scope, DAY, 110, 2, -1, []], [4, "a", 10], LEFT, UNKNOWN)
    assert used(script, NOON + 1) == (0, 110, 0, 200, 0)


def test_a_new_day_begins_without_it(script):
    begin(script)
    run(script, NOON + 1, LEFT, UNKNOWN)
    tomorrow = NOON + 86_400
    run(script, tomorrow, [5, "d", KEY.scope, "2027-01-16", 0, 3, -1, []])
    assert used(script, tomorrow) == (0, 0, 0, 3200, 0)
