import asyncio

import pytest

from services.inference import errors
from services.inference.admission import Admission
from services.inference.fair_queue import Priority
from services.inference.state import EngineState
from services.kit.errors import MeshError


class Door:
    """An admission, a clock that stands still, and the tasks that came to it."""

    def __init__(self, *, slots=None, engine_slots=None, **settings):
        self.now = 100.0
        self.state = EngineState()
        defaults = {"max_in_flight": 100, "max_queued": 10, "max_wait_s": 30.0}
        self.admission = Admission(
            self.state,
            engine_slots=engine_slots,
            clock=lambda: self.now,
            **(defaults | settings),
        )
        self.admission.resize(slots)
        self.tasks = {}
        self.inside = []

    async def come(self, name, *, tenant="t", priority=Priority.NORMAL, size=0):
        async def enter():
            if not self.admission.try_enter():
                await self.admission.wait(tenant, priority, size)
            self.inside.append(name)

        self.tasks[name] = asyncio.create_task(enter())
        # Not every test looks at every refusal.
        self.tasks[name].add_done_callback(lambda task: task.cancelled() or task.exception())
        await self.settle()

    async def settle(self):
        for _ in range(5):
            await asyncio.sleep(0)

    async def leave(self, after_s=0.0):
        self.now += after_s
        self.admission.leave(after_s)
        await self.settle()

    def refusal(self, name):
        error = self.tasks[name].exception()
        assert isinstance(error, MeshError)
        return error

    @property
    def counts(self):
        return self.state.in_flight, self.state.waiting


async def test_what_the_engine_runs_and_a_few_more():
    assert Door(slots=4).admission.capacity == 5
    assert Door(slots=64).admission.capacity == 72
    assert Door(slots=4, engine_slots=2).admission.capacity == 3
    assert Door(slots=400, max_in_flight=100).admission.capacity == 100


async def test_unknown_slots_are_not_none_at_all():
    door = Door(slots=None, max_in_flight=7)
    assert door.admission.capacity == 7
    door.admission.resize(4)
    # A probe that did not say is no news.
    door.admission.resize(None)
    assert door.admission.capacity == 5


async def test_room_is_taken_at_once_and_given_back():
    door = Door(slots=1)
    for name in "abc":
        await door.come(name)
    assert (door.inside, door.counts) == (["a", "b"], (2, 1))
    await door.leave()
    assert (door.inside, door.counts) == (["a", "b", "c"], (2, 0))
    await door.leave()
    await door.leave()
    assert door.counts == (0, 0)


async def test_nobody_overtakes_those_who_wait():
    door = Door(slots=1)
    for name in "abc":
        await door.come(name)
    door.state.in_flight -= 1
    # Room, but not for a newcomer.
    assert not door.admission.try_enter()


async def test_the_queue_goes_by_priority_and_tenant():
    door = Door(slots=1)
    for name in "xy":
        await door.come(name)
    for n in range(3):
        await door.come(f"a{n}", tenant="a")
    await door.come("b0", tenant="b")
    await door.come("h", tenant="a", priority=Priority.HIGH)
    for _ in range(5):
        await door.leave()
    assert door.inside[2:4] == ["h", "b0"]
    assert door.inside.index("b0") < door.inside.index("a1")


async def test_a_full_queue_refuses_at_once():
    door = Door(slots=1, max_queued=2)
    for name in "abcde":
        await door.come(name)
    error = door.refusal("e")
    assert (error.reason_name, error.http_status) == ("OVERLOADED", 429)
    assert error.retry_after_s is not None
    assert dict(error.trailers())["retry-after"] == str(error.retry_after_s)
    assert door.counts == (2, 2)


async def test_a_queue_of_no_length_is_a_limit():
    door = Door(slots=1, max_queued=0)
    for name in "abc":
        await door.come(name)
    assert door.refusal("c").reason_name == "OVERLOADED"


async def test_one_tenant_cannot_fill_the_queue_for_all():
    door = Door(slots=1, max_queued=4)
    for n in range(6):
        await door.come(f"a{n}", tenant="a")
    await door.come("b", tenant="b")
    assert door.refusal("a5").reason_name == "OVERLOADED"
    await door.leave()
    await door.leave()
    assert "b" in door.inside
    assert door.counts == (2, 2)


async def test_waiting_ends():
    door = Door(slots=1, max_wait_s=10.0)
    for name in "ab":
        await door.come(name)
    await door.come("c")
    door.now += 6
    await door.come("d")
    door.now += 4
    door.admission.expire()
    await door.settle()
    assert door.refusal("c").reason_name == "OVERLOADED"
    assert not door.tasks["d"].done()
    assert door.counts == (2, 1)
    await door.leave()
    assert door.inside == ["a", "b", "d"]


async def test_hanging_up_leaves_the_queue_at_once():
    door = Door(slots=1)
    for name in "abcd":
        await door.come(name)
    door.tasks["c"].cancel()
    await door.settle()
    assert door.counts == (2, 1)
    await door.leave()
    assert door.inside == ["a", "b", "d"]


async def test_hanging_up_in_the_moment_of_ones_turn_gives_the_place_back():
    door = Door(slots=1)
    for name in "abcd":
        await door.come(name)
    # The place is c's, and c's task has not run since.
    door.admission.leave(1.0)
    door.tasks["c"].cancel()
    await door.settle()
    assert door.inside == ["a", "b", "d"]
    assert door.counts == (2, 0)


async def test_a_turn_does_not_go_to_one_that_has_just_hung_up():
    door = Door(slots=1)
    for name in "abcd":
        await door.come(name)
    door.tasks["c"].cancel()
    # Before c's task could leave the queue.
    door.admission.leave(1.0)
    await door.settle()
    assert door.inside == ["a", "b", "d"]
    assert door.counts == (2, 0)


async def test_an_engine_that_goes_down_has_no_queue():
    door = Door(slots=1)
    for name in "abcd":
        await door.come(name)
    door.tasks["d"].cancel()
    door.admission.refuse_waiting(lambda: errors.unavailable("down"))
    await door.settle()
    assert door.refusal("c").reason_name == "ENGINE_UNAVAILABLE"
    assert door.counts == (2, 0)


async def test_more_slots_let_more_in():
    door = Door(slots=1)
    for name in "abcde":
        await door.come(name)
    door.admission.resize(3)
    await door.settle()
    assert door.inside == list("abcd")
    assert door.counts == (4, 1)


async def test_fewer_slots_let_nobody_in_until_there_is_room():
    door = Door(slots=3)
    for name in "abcde":
        await door.come(name)
    door.admission.resize(1)
    await door.leave()
    await door.leave()
    assert door.counts == (2, 1)
    await door.leave()
    assert door.counts == (2, 0)


async def test_when_to_come_back_follows_from_how_fast_places_become_free():
    door = Door(slots=1, max_queued=8, max_wait_s=30.0)
    # Unknown before the first answer.
    assert door.admission.retry_after_s() == 30
    for n in range(10):
        await door.come(n)
    assert door.admission.retry_after_s() == 30
    for _ in range(2):
        await door.leave(after_s=3.0)
    # Six wait for two places, each taken for 3 s.
    assert door.admission.retry_after_s() == 9
    # It stands still: no longer as fast as it was.
    door.now += 5
    assert door.admission.retry_after_s() == 30
    door.now += 1000
    assert door.admission.retry_after_s() == 60


async def test_what_was_before_the_queue_says_how_fast_it_will_be():
    door = Door(slots=1, max_queued=4)
    await door.come("earlier")
    await door.leave(after_s=4.0)
    for n in range(6):
        await door.come(n)
    assert door.admission.retry_after_s() == 8


async def test_a_fast_queue_still_says_a_second():
    door = Door(slots=1)
    for n in range(4):
        await door.come(n)
    await door.leave(after_s=0.001)
    assert door.admission.retry_after_s() == 1


@pytest.mark.parametrize("count", [1, 20])
async def test_the_counts_come_back_to_nothing(count):
    door = Door(slots=2, max_queued=3)
    for n in range(count):
        await door.come(n, tenant=str(n % 3), priority=Priority(n % 3))
    for n in range(0, count, 4):
        door.tasks[n].cancel()
    await door.settle()
    for _ in range(len(door.inside) + door.state.waiting):
        if door.state.in_flight:
            await door.leave()
    assert door.counts == (0, 0)
