"""A service or store that is gone for 30 s: existing and new chats go on."""

import asyncio
import os

import pytest

from chaos import table
from chaos.fleet import Fleet
from chaos.load import Event, run

RATE = 30.0
AWAY_S = float(os.environ.get("CHAOS_AWAY_S", "30"))


@pytest.mark.timeout(200)
@pytest.mark.parametrize("part", ["routing", "registry", "redis", "postgres", "metrics"])
def test_chats_go_on_without(fleet: Fleet, part: str) -> None:
    events = [
        Event(2.0, lambda: fleet.hold(part)),
        Event(2.0 + AWAY_S, lambda: fleet.release(part)),
    ]
    outcomes = asyncio.run(run(fleet, RATE, AWAY_S + 8.0, events))
    failed = [o for o in outcomes if o.failure]
    table.note(
        f"{part} gone for {AWAY_S:g} s",
        requests=len(outcomes),
        failed=len(failed),
        longest_s=round(max(o.ended_s - o.began_s for o in outcomes), 2),
    )
    assert not failed, failed[:5]
