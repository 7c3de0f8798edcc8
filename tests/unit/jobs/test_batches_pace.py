"""Batches give way at once, and come back slowly."""

from services.jobs.batches.pace import Pace


def test_pace() -> None:
    now = 100.0
    pace = Pace(8, lambda: now)
    assert (pace.free(0), pace.free(5), pace.free(9)) == (8, 3, 0)
    assert pace.was_refused(None) == 0.5
    # Of what began together one refusal counts.
    assert pace.was_refused(None) == 0.5
    assert pace.free(0) == 0
    now += 0.5
    assert pace.free(0) == 4
    assert pace.was_refused(7) == 7
    now += 7
    assert pace.free(0) == 2
    for _ in range(10):
        waited = pace.was_refused(600)
        assert 0 < waited <= 30
        now += waited
    assert pace.free(0) == 1
    for _ in range(100):
        pace.went_well()
    assert pace.free(0) == 8
    assert pace.was_refused(None) == 0.5
