"""How nodes are chosen by load, and what a decision says of itself."""

from collections import Counter

import pytest

from infermesh.registry.v1 import node_service_pb2
from infermesh.registry.v1 import resources_pb2 as r
from services.kit.errors import MeshError
from services.routing.facts import Facts
from services.routing.node import STALE_S
from services.routing.policy import Policy
from services.routing.sampling import ALL_SCORED
from services.routing.scheduler import MAX_ADDRESSES
from unit.routing.routing_mesh import Mesh, chat

LEAST_LOADED = Policy("least-loaded", {"queue": 1})


@pytest.fixture
def mesh() -> Mesh:
    mesh = Mesh()
    mesh.use(LEAST_LOADED)
    return mesh


def test_the_least_loaded_node_comes_first(mesh: Mesh) -> None:
    for node_id, load in (("a", 3), ("b", 1), ("c", 2)):
        mesh.report(node_id, load)
    assert mesh.order() == ["b", "c", "a"]


def test_load_counts_relative_to_slots(mesh: Mesh) -> None:
    mesh.report("small", 2, slots=2)
    mesh.report("big", 6, slots=16)
    assert mesh.pick() == {"big": 1}


def test_a_node_that_does_not_say_its_load_is_not_idle(mesh: Mesh) -> None:
    mesh.report("a", 1)
    mesh.report("b", 5)
    mesh.report("silent", None)
    # Taken as the mean of 3, it stands between the two.
    assert mesh.order() == ["a", "silent", "b"]


def test_nodes_that_all_say_nothing_share_evenly(mesh: Mesh) -> None:
    for node_id in "abc":
        mesh.report(node_id, None, slots=None)
    assert mesh.pick(30) == {"a": 10, "b": 10, "c": 10}


def test_equals_take_turns_beside_a_busier_node(mesh: Mesh) -> None:
    picks: Counter[str] = Counter()
    for _ in range(10):
        mesh.clock.now += 1.0
        mesh.report("a", 0)
        mesh.report("b", 0)
        mesh.report("busy", 9)
        picks += mesh.pick()
    assert picks == {"a": 5, "b": 5}


def test_a_burst_between_reports_spreads(mesh: Mesh) -> None:
    mesh.report("a", 0)
    mesh.report("b", 0)
    assert mesh.pick(100) == {"a": 50, "b": 50}


def test_the_node_that_reported_last_does_not_draw_the_herd(mesh: Mesh) -> None:
    mesh.report("a", 0)
    mesh.report("b", 0)
    mesh.clock.now += 0.5
    mesh.pick(40)
    # Measured before the burst, the report of `a` arrives right after it and shows nothing of it.
    mesh.clock.now += 0.01
    mesh.report("a", 0)
    picks = mesh.pick(40)
    assert picks["a"] == picks["b"] == 20


def test_a_report_takes_away_what_it_includes(mesh: Mesh) -> None:
    mesh.report("a", 0)
    mesh.pick(5)
    mesh.clock.now += 0.5
    mesh.report("a", 5)
    one = mesh.explain()["a"]
    assert (one.reported_load, one.node.sent.total) == (5, 0)


def test_an_old_report_says_nothing(mesh: Mesh) -> None:
    mesh.report("a", 0)
    mesh.report("b", 9)
    mesh.clock.now += STALE_S
    assert {one.reported_load for one in mesh.explain().values()} == {None}
    assert mesh.pick(10) == {"a": 5, "b": 5}


def test_counts_stay_bounded_while_no_report_comes(mesh: Mesh) -> None:
    mesh.report("a")
    mesh.report("b")
    for _ in range(3000):
        mesh.clock.now += 0.02
        mesh.pick()
    # 10 s at 50 calls a second, over two nodes.
    total = sum(one.node.sent.total for one in mesh.explain().values())
    assert total == pytest.approx(500, abs=10)


def test_only_ready_nodes_take_calls_and_explain_says_why(mesh: Mesh) -> None:
    mesh.report("a", 9)
    mesh.report("b", 0, state=r.NODE_STATE_DRAINING)
    mesh.report("c", 0, state=r.NODE_STATE_ENGINE_DOWN)
    mesh.report("d", 0, state=r.NODE_STATE_OFFLINE)
    assert mesh.order() == ["a"]
    assert {node_id: one.refusal for node_id, one in mesh.explain().items()} == {
        "a": "",
        "b": "draining",
        "c": "engine down",
        "d": "offline",
    }


def test_explaining_counts_nothing(mesh: Mesh) -> None:
    mesh.report("a")
    mesh.report("b")
    before = list(mesh.explain())
    assert list(mesh.explain()) == before
    assert sum(one.node.sent.total for one in mesh.explain().values()) == 0


def test_a_call_is_given_few_nodes_to_try(mesh: Mesh) -> None:
    for tier in range(3):
        for i in range(6):
            mesh.report(f"n{tier}{i}", tier=tier)
    order = mesh.order()
    assert len(order) == MAX_ADDRESSES
    # Four of a tier, so that other tiers are reached too.
    assert [node_id[1] for node_id in order] == ["0"] * 4 + ["1"] * 4


def test_unknown_models_and_models_without_nodes_differ(mesh: Mesh) -> None:
    for model, reason in (("ghost", "MODEL_NOT_FOUND"), ("idle", "NO_NODE_AVAILABLE")):
        with pytest.raises(MeshError) as caught:
            mesh.route(Facts(model=model))
        assert caught.value.reason_name == reason
    assert mesh.explain(Facts(model="idle")) == {}
    with pytest.raises(MeshError):
        mesh.explain(Facts(model="ghost"))


def test_full_queues_are_an_overload_with_a_time_to_come_back() -> None:
    mesh = Mesh()
    mesh.use(Policy("p", {"queue": 1}, max_pressure=10))
    mesh.report("a", 41, time_to_first_token=7.2)
    mesh.report("b", 44, time_to_first_token=9.0)
    with pytest.raises(MeshError) as caught:
        mesh.route()
    assert (caught.value.reason_name, caught.value.retry_after_s) == ("OVERLOADED", 7)
    mesh.report("b", 40)
    assert mesh.order() == ["b"]


def test_a_node_that_does_not_say_is_never_full() -> None:
    mesh = Mesh()
    mesh.use(Policy("p", {"queue": 1}, max_pressure=1))
    mesh.report("a", None)
    mesh.report("b", 50, slots=None)
    assert sorted(mesh.order()) == ["a", "b"]


def test_weights_decide_between_scorers() -> None:
    for weight, best in ((0.1, "b"), (9.0, "a")):
        mesh = Mesh()
        mesh.report("a", 4, kv_use=0.1)
        mesh.report("b", 0, kv_use=0.9)
        mesh.use(Policy("p", {"queue": 1, "kv_use": weight}))
        assert mesh.order()[0] == best


def test_a_new_sync_forgets_what_is_gone(mesh: Mesh) -> None:
    mesh.report("a")
    mesh.view.apply(node_service_pb2.WatchMeshResponse(synced=True))
    assert not mesh.view.knows("m")
    assert not mesh.view.hosting("m")
    with pytest.raises(MeshError):
        mesh.route()


def test_a_deleted_node_is_dropped(mesh: Mesh) -> None:
    mesh.report("a")
    mesh.report("b")
    changes = []
    mesh.view.on_change(lambda: changes.append([node.node_id for node in mesh.view.nodes()]))
    mesh.view.apply(node_service_pb2.WatchMeshResponse(deleted_node_ids=["a", "unknown"]))
    assert changes == [["b"]]
    assert mesh.pick(4) == {"b": 4}
    mesh.view.apply(node_service_pb2.WatchMeshResponse(deleted_node_ids=["a"]))
    assert changes == [["b"]]


def test_a_large_mesh_is_sampled_and_still_finds_room_and_prompts() -> None:
    mesh = Mesh()
    count = 10 * ALL_SCORED
    for i in range(count):
        mesh.report(f"n{i}", 0 if i % 20 == 0 else 3)
    mesh.use(LEAST_LOADED)
    picks = mesh.pick(200)
    # The 24 that are idle get three calls each, until they are as busy as the others.
    assert sum(n for node, n in picks.items() if int(node[1:]) % 20 == 0) == 72
    assert len(picks) > 100
    mesh.use(Policy("p", {"prefix": 1, "queue": 1}))
    [warm] = mesh.pick(1, chat("long " * 500))
    mesh.clock.now += 1.0
    for i in range(count):
        mesh.report(f"n{i}", 1)
    assert mesh.order(chat("long " * 500))[0] == warm
    mesh.use(Policy("p", {"session": 1}))
    assert len(mesh.pick(2, Facts(model="m", session_id="s1"))) == 1


def test_round_robin_and_random_look_at_no_load() -> None:
    mesh = Mesh()
    for node_id, load in (("a", 9), ("b", 0), ("c", 5)):
        mesh.report(node_id, load)
    mesh.use(Policy("p", {}, picker="round_robin"))
    assert mesh.pick(9) == {"a": 3, "b": 3, "c": 3}
    mesh.use(Policy("p", {}, picker="random"))
    picks = mesh.pick(600)
    assert all(120 < picks[node_id] < 280 for node_id in "abc")


def test_only_the_subset_that_a_gateway_allows_is_chosen(mesh: Mesh) -> None:
    for node_id in "abc":
        mesh.report(node_id)
    facts = Facts(model="m", subset=frozenset({"b:1", "x:1"}))
    assert mesh.order(facts) == ["b"]
    with pytest.raises(MeshError) as caught:
        mesh.route(Facts(model="m", subset=frozenset()))
    assert caught.value.reason_name == "NO_NODE_AVAILABLE"
