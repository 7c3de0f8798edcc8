import pytest

from services.inference.fair_queue import FairQueue, Priority, Waiting

LOW, NORMAL, HIGH = Priority.LOW, Priority.NORMAL, Priority.HIGH


def waiting(name, tenant="t", priority=NORMAL, cost=1):
    return Waiting(tenant, priority, cost, 0.0, name)


def fill(queue, *entries):
    for entry in entries:
        queue.push(entry)
    return entries


def drained(queue):
    return [queue.pop().ticket for _ in range(len(queue))]


def test_one_tenant_is_served_in_the_order_it_came():
    queue = FairQueue(10)
    fill(queue, *(waiting(n) for n in range(5)))
    assert drained(queue) == [0, 1, 2, 3, 4]
    assert len(queue) == 0
    with pytest.raises(IndexError):
        queue.pop()


def test_the_more_urgent_go_first():
    queue = FairQueue(10)
    fill(queue, waiting("l", priority=LOW), waiting("n"), waiting("h", priority=HIGH))
    queue.push(waiting("h2", priority=HIGH))
    assert drained(queue) == ["h", "h2", "n", "l"]


def test_tenants_take_turns():
    queue = FairQueue(100)
    fill(queue, *(waiting(f"a{n}", "a") for n in range(50)))
    queue.pop()
    queue.pop()
    fill(queue, waiting("b0", "b"), waiting("b1", "b"))
    order = drained(queue)
    # Whoever comes later waits for one of the other's at most, not for fifty.
    assert order.index("b0") <= 1
    assert order.index("b1") <= 3


def test_long_prompts_count_for_more():
    queue = FairQueue(100)
    fill(queue, *(waiting(f"long{n}", "long", cost=10) for n in range(10)))
    fill(queue, *(waiting(f"short{n}", "short", cost=1) for n in range(40)))
    first = [queue.pop() for _ in range(22)]
    spent = {
        tenant: sum(w.cost for w in first if w.tenant == tenant) for tenant in ("long", "short")
    }
    # Equal shares, but for the cost of one request.
    assert abs(spent["long"] - spent["short"]) <= 10


def test_a_tenant_pays_for_what_it_just_had():
    queue = FairQueue(100)
    fill(queue, waiting("big", "a", cost=100), *(waiting(f"b{n}", "b") for n in range(60)))
    assert queue.pop().ticket == "big"
    # Away for a moment and back: that does not wipe the slate.
    queue.push(waiting("again", "a"))
    assert [queue.pop().ticket for _ in range(50)] == [f"b{n}" for n in range(50)]


def test_an_empty_queue_owes_nothing():
    queue = FairQueue(100)
    fill(queue, waiting("big", "a", cost=1000))
    queue.pop()
    fill(queue, waiting("a", "a"), waiting("b", "b"))
    assert drained(queue) == ["a", "b"]


def test_one_that_gives_up_leaves_no_trace():
    queue = FairQueue(10)
    first, second, third = fill(queue, waiting(1, "a"), waiting(2, "b"), waiting(3, "a"))
    queue.discard(first)
    queue.discard(first)
    assert queue.oldest is second
    assert sorted(drained(queue)) == [2, 3]
    queue.discard(third)
    assert len(queue) == 0
    assert queue.oldest is None


def test_the_least_urgent_make_room():
    queue = FairQueue(3)
    fill(queue, waiting("l1", priority=LOW), waiting("l2", priority=LOW), waiting("n"))
    assert queue.is_full
    assert queue.victim("x", HIGH).ticket == "l2"
    assert queue.victim("x", NORMAL).ticket == "l2"
    assert queue.victim("t", LOW) is None


def test_what_others_call_urgent_counts_for_nothing():
    queue = FairQueue(3)
    fill(queue, *(waiting(f"{n}", f"tenant {n}") for n in range(3)))
    assert queue.victim("pushy", HIGH) is None
    queue.discard(queue.oldest)
    fill(queue, waiting("h", "pushy", priority=HIGH))
    assert queue.victim("pushy", HIGH) is None
    assert drained(queue) == ["1", "2", "h"]


def test_nobody_makes_room_for_the_less_urgent():
    queue = FairQueue(1)
    fill(queue, waiting("h", priority=HIGH))
    assert queue.victim("other", NORMAL) is None
    assert queue.victim("other", HIGH) is None


def test_the_tenant_with_most_makes_room():
    queue = FairQueue(4)
    fill(queue, waiting("b0", "b"), *(waiting(f"a{n}", "a") for n in range(3)))
    assert queue.victim("a", NORMAL) is None
    assert queue.victim("c", NORMAL).ticket == "a2"
    assert queue.victim("b", NORMAL).ticket == "a2"
    queue.discard(queue.victim("b", NORMAL))
    queue.push(waiting("b1", "b"))
    # Two each: nothing would be more equal.
    assert queue.victim("b", NORMAL) is None
    assert queue.victim("a", NORMAL) is None


def test_a_queue_without_places_has_no_victims():
    assert FairQueue(0).is_full
    assert FairQueue(0).victim("a", HIGH) is None


def test_memory_is_bounded_by_the_places():
    queue = FairQueue(4)
    queue.push(waiting("stays", "stays", priority=NORMAL, cost=1))
    for n in range(1000):
        queue.push(waiting(n, f"tenant {n}"))
        queue.pop()
    assert len(queue) == 1
    assert len(queue._starts) <= 9
