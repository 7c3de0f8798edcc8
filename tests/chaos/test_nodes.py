"""A node that dies, freezes, slows down, flaps, loses its network, or has a broken engine.

Under 50 requests per second of 1 s each, half of them streams, the only requests that may fail are
streams that were flowing from the node when it happened.
"""

import asyncio
import signal

import pytest

from chaos import table
from chaos.conftest import wait
from chaos.fleet import ANSWER_TOKENS, DECODE_RATE, Fleet
from chaos.load import Event, Outcome, run

RATE = 50.0
BREAK_S, MEND_S, END_S = 3.0, 11.0, 18.0
# Who waited for the node itself would have waited for longer, until it is mended.
MOST_S = MEND_S - BREAK_S
NORMAL_S = ANSWER_TOKENS / DECODE_RATE


def _streams_from(outcomes: list[Outcome], node: str, fault: Event) -> list[Outcome]:
    """Returns the streams that were flowing from a node when something was done to it.

    This process may have read a first byte later than it came.
    """
    return [
        o
        for o in outcomes
        if o.is_stream
        and o.node == node
        and o.first_s is not None
        and o.first_s <= fault.done_s + 0.5
        and o.ended_s >= fault.began_s
    ]


def _back(fleet: Fleet, node: str, outcomes: list[Outcome]) -> list[float]:
    """Returns when a node that was mended got requests, if need be under a further load."""
    found = [o.began_s for o in outcomes if o.node == node and o.began_s >= MEND_S]
    for number in range(3):
        if found:
            break
        wait(lambda: node in fleet.ready_nodes(), 40)
        more = asyncio.run(run(fleet, RATE, 3.0, []))
        assert not [o for o in more if o.failure]
        found = [END_S + 3.0 * number + o.began_s for o in more if o.node == node]
    return found


def _report(name: str, fleet: Fleet, node: str, outcomes: list[Outcome], fault: Event) -> None:
    failed = [o for o in outcomes if o.failure]
    flowing = _streams_from(outcomes, node, fault)
    slow = [o for o in outcomes if o.began_s >= BREAK_S - NORMAL_S and o.ended_s - o.began_s > 2]
    back = _back(fleet, node, outcomes)
    table.note(
        name,
        requests=len(outcomes),
        failed=len(failed),
        flowing_streams=len(flowing),
        detection_s=round(max((o.began_s - BREAK_S for o in slow), default=0.0), 2),
        longest_s=round(max(o.ended_s - o.began_s for o in outcomes), 2),
        recovery_s=round(min(back) - MEND_S, 2) if back else None,
    )
    strangers = [o for o in failed if not o.is_stream or o.node != node or o.first_s is None]
    assert not strangers, strangers[:5]
    assert len(failed) <= len(flowing), (len(failed), len(flowing))
    assert back, "the node gets no requests after it was mended"


def test_killed(fleet: Fleet) -> None:
    events = [
        Event(BREAK_S, lambda: fleet.hold("node-1")),
        Event(MEND_S, lambda: fleet.release("node-1")),
    ]
    outcomes = asyncio.run(run(fleet, RATE, END_S, events))
    _report("node killed", fleet, "node-1", outcomes, events[0])


def test_frozen(fleet: Fleet) -> None:
    events = [
        Event(BREAK_S, lambda: fleet.signal("node-2", signal.SIGSTOP)),
        Event(MEND_S, lambda: fleet.signal("node-2", signal.SIGCONT)),
    ]
    outcomes = asyncio.run(run(fleet, RATE, END_S, events))
    _report("node frozen", fleet, "node-2", outcomes, events[0])
    assert max(o.ended_s - o.began_s for o in outcomes if not o.failure) < MOST_S


def test_engine_frozen(fleet: Fleet) -> None:
    events = [
        Event(BREAK_S, lambda: fleet.signal("engine-2", signal.SIGSTOP)),
        Event(MEND_S, lambda: fleet.signal("engine-2", signal.SIGCONT)),
    ]
    outcomes = asyncio.run(run(fleet, RATE, END_S, events))
    _report("engine frozen", fleet, "node-2", outcomes, events[0])


def test_slow(fleet: Fleet) -> None:
    events = [
        Event(BREAK_S, lambda: fleet.set_faults("node-3", slow=10)),
        Event(MEND_S, lambda: fleet.set_faults("node-3")),
    ]
    outcomes = asyncio.run(run(fleet, RATE, END_S, events))
    _report("engine 10 times slower", fleet, "node-3", outcomes, events[0])
    assert not [o for o in outcomes if o.failure]
    # It is not worth a failure, but it shall not draw its full share either.
    late = [o for o in outcomes if BREAK_S + 3 < o.began_s < MEND_S]
    share = sum(o.node == "node-3" for o in late) / len(late)
    table.note("engine 10 times slower: its share", share=round(share, 3))
    assert share < 0.2, share


def test_flapping(fleet: Fleet) -> None:
    events = []
    for number in range(4):
        at_s = BREAK_S + 2 * number
        events.append(Event(at_s, lambda: fleet.hold("node-1")))
        events.append(Event(at_s + 1, lambda: fleet.release("node-1")))
    outcomes = asyncio.run(run(fleet, RATE, END_S, events))
    failed = [o for o in outcomes if o.failure]
    flowing = sum(len(_streams_from(outcomes, "node-1", event)) for event in events[::2])
    table.note("node flaps 4 times", requests=len(outcomes), failed=len(failed), flowing=flowing)
    assert all(o.is_stream and o.node == "node-1" for o in failed), failed[:5]
    assert len(failed) <= flowing


def test_network_cut(fleet: Fleet) -> None:
    if not fleet.has_network:
        pytest.skip("this machine lets us make no network")
    events = [
        Event(BREAK_S, lambda: fleet.set_link(False)),
        Event(MEND_S, lambda: fleet.set_link(True)),
    ]
    outcomes = asyncio.run(run(fleet, RATE, END_S, events))
    _report("node's network cut", fleet, "node-4", outcomes, events[0])
    assert max(o.ended_s - o.began_s for o in outcomes if not o.failure) < MOST_S


def test_engine_fails_every_request(fleet: Fleet) -> None:
    events = [
        Event(BREAK_S, lambda: fleet.set_faults("node-3", error_rate=1.0)),
        Event(MEND_S, lambda: fleet.set_faults("node-3")),
    ]
    outcomes = asyncio.run(run(fleet, RATE, END_S, events))
    _report("engine answers 500", fleet, "node-3", outcomes, events[0])
    assert not [o for o in outcomes if o.failure]
