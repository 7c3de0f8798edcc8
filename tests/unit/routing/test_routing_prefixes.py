"""What the prefix index remembers, forgets and costs, and how far it is believed."""

import random
import tracemalloc

import pytest

from infermesh.registry.v1 import node_service_pb2
from infermesh.registry.v1 import resources_pb2 as r
from services.routing.policy import Policy
from services.routing.prefix_index import PrefixIndex
from services.routing.reliability import Reliability
from unit.routing.routing_mesh import Mesh, chat

ENDS = tuple(range(100, 1100, 100))


def chain(name: str, length: int = 4) -> list[int]:
    return [hash((name, i)) & (2**64 - 1) for i in range(length)]


def insert(index: PrefixIndex, number: int, blocks: list[int]) -> None:
    index.insert(number, blocks, ENDS[: len(blocks)], 100 * len(blocks))


def test_the_deepest_match_comes_first_and_each_node_once() -> None:
    index = PrefixIndex()
    a, b, c = index.add_node(), index.add_node(), index.add_node()
    insert(index, a, chain("x", 2))
    insert(index, b, chain("x", 4))
    insert(index, c, chain("y"))
    assert index.match(chain("x")) == [(1 << b, 4), (1 << a, 2)]
    assert index.match(chain("z")) == []
    assert index.match([]) == []
    insert(index, a, chain("x", 4))
    assert index.match(chain("x", 3)) == [(1 << a | 1 << b, 3)]


def test_a_full_cache_forgets_what_was_used_least_recently_from_its_end() -> None:
    index = PrefixIndex()
    node = index.add_node()
    index.set_capacity(node, 800)
    insert(index, node, chain("x"))
    insert(index, node, chain("y"))
    insert(index, node, chain("x", 1))
    insert(index, node, chain("z", 2))
    assert index.owned_bytes(node) == 800
    # The start of x was used again; its end is the oldest.
    assert index.match(chain("x")) == [(1, 2)]
    assert index.match(chain("y")) == [(1, 4)]
    assert index.match(chain("z")) == [(1, 2)]


def test_what_follows_the_last_block_takes_room_too() -> None:
    index = PrefixIndex()
    node = index.add_node()
    index.set_capacity(node, 10_000)
    index.insert(node, chain("x", 2), ENDS[:2], 9_000)
    assert index.owned_bytes(node) == 9_000
    index.insert(node, chain("y", 2), ENDS[:2], 9_000)
    assert index.match(chain("x")) == [(1, 1)]


def test_a_prompt_that_no_cache_can_hold_pushes_nothing_out() -> None:
    index = PrefixIndex()
    node = index.add_node()
    index.set_capacity(node, 1000)
    insert(index, node, chain("x"))
    index.insert(node, chain("y"), ENDS[:4], 1001)
    assert index.match(chain("x")) == [(1 << node, 4)]
    assert index.match(chain("y")) == []


def test_memory_stays_bounded_however_many_prefixes_are_offered() -> None:
    index = PrefixIndex(max_entries=2_000)
    nodes = [index.add_node() for _ in range(4)]
    for node in nodes:
        index.set_capacity(node, 1 << 40)
    source = random.Random(1)

    def offer(count: int) -> None:
        for _ in range(count):
            blocks = [source.getrandbits(64) for _ in range(10)]
            index.insert(source.choice(nodes), blocks, ENDS, 1000)

    offer(1_000)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    offer(5_000)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert len(index) <= 2_000
    assert len(index._owners) == len(index)
    # Entries took the place of entries, each of less than 400 bytes.
    assert grown < 2_000 * 400


def test_nodes_share_the_bound_and_numbers_are_given_out_again() -> None:
    index = PrefixIndex(max_entries=100)
    first = index.add_node()
    for i in range(25):
        insert(index, first, chain(f"x{i}"))
    assert len(index) == 100
    second = index.add_node()
    assert len(index) == 50
    index.remove_node(first)
    assert len(index) == 0
    assert index.add_node() == first
    assert index.match(chain("x24")) == []
    assert second != first


PREFIX = Policy("p", {"prefix": 2, "queue": 1})
SYSTEM = "You are the assistant of a house of many rooms. " * 60


def test_a_prompt_goes_where_its_start_has_been() -> None:
    mesh = Mesh()
    mesh.use(PREFIX)
    for node_id in "abcd":
        mesh.report(node_id, 0, slots=64)
    [first] = mesh.pick(1, chat(SYSTEM))
    for _ in range(4):
        assert mesh.order(chat(SYSTEM + "And more. " * 9))[0] == first
    outcome = mesh.route(chat(SYSTEM))
    assert outcome.decision.expected_cached == pytest.approx(0.9, abs=0.1)
    [other] = mesh.pick(1, chat("Something else entirely. " * 60))
    assert other != first


def test_new_prompts_are_spread_over_all_caches() -> None:
    mesh = Mesh()
    mesh.use(PREFIX)
    for node_id in "abcd":
        mesh.report(node_id, 0, slots=64)
    picks = [mesh.order(chat(f"{i} is a number. " * 60))[0] for i in range(16)]
    assert {picks.count(node_id) for node_id in "abcd"} == {4}


def test_caching_that_a_caller_forbids_leaves_no_trace() -> None:
    mesh = Mesh()
    mesh.use(PREFIX)
    mesh.report("a")
    mesh.report("b")
    outcome = mesh.route(chat(SYSTEM, is_cached=False))
    assert outcome.decision.expected_cached is None
    assert len(mesh.view.index) == 0


def test_an_engine_that_starts_anew_has_nothing_cached() -> None:
    mesh = Mesh()
    mesh.use(PREFIX)
    mesh.report("a", engine_generation=1)
    mesh.pick(1, chat(SYSTEM))
    assert len(mesh.view.index) == 0  # until the answer is on its way
    mesh.router.settle()
    assert len(mesh.view.index) > 0
    mesh.report("a", engine_generation=1)
    assert len(mesh.view.index) > 0
    mesh.report("a", engine_generation=2)
    assert len(mesh.view.index) == 0
    mesh.pick(1, chat(SYSTEM))
    mesh.report("a", engine_generation=2, state=r.NODE_STATE_OFFLINE)
    assert len(mesh.view.index) == 0
    mesh.view.apply(node_service_pb2.WatchMeshResponse(deleted_node_ids=["a"]))
    assert mesh.view.index.add_node() == 0


def test_the_index_is_as_large_as_the_engines_cache() -> None:
    mesh = Mesh()
    mesh.use(PREFIX)
    mesh.report("a", kv_capacity_tokens=1000)
    mesh.pick(1, chat(SYSTEM))
    mesh.pick(1, chat("Another one. " * 200))
    assert mesh.view.index.owned_bytes(0) <= 4000


def test_engines_correct_what_the_index_believes() -> None:
    reliability = Reliability()
    assert reliability.value == 1.0
    expected = cached = 0
    for _ in range(50):
        expected, cached = expected + 10_000, cached + 2_000
        reliability.take(expected, cached)
    assert reliability.value == pytest.approx(0.2, abs=0.01)
    # The node started anew: its counters too. More than was expected is no more than all.
    reliability.take(0, 0)
    assert reliability.value == pytest.approx(0.2, abs=0.01)
    for i in range(1, 50):
        reliability.take(i * 10_000, i * 30_000)
    assert reliability.value == pytest.approx(1.0, abs=0.01)


def test_a_node_whose_cache_fails_is_sought_less() -> None:
    mesh = Mesh()
    mesh.use(Policy("p", {"prefix": 1, "queue": 1}))
    mesh.report("a", slots=16)
    mesh.report("b", slots=16)
    [first] = mesh.pick(1, chat(SYSTEM))
    mesh.clock.now += 1
    mesh.report(first, 1, slots=16, expected_cached_tokens=1_000_000, cached_tokens=1_000)
    assert mesh.order(chat(SYSTEM))[0] != first
