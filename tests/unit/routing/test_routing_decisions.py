"""How nodes are chosen."""

from collections import Counter

import pytest

from infermesh.registry.v1 import node_service_pb2
from infermesh.registry.v1 import resources_pb2 as r
from services.kit.errors import MeshError
from services.routing.filters.ready import ReadyFilter
from services.routing.pickers.best_first import BestFirstPicker
from services.routing.scheduler import MAX_ADDRESSES, Scheduler
from services.routing.scorers.load import LoadScorer
from services.routing.view import STALE_S, MeshView


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Mesh:
    """A view with a scheduler over it, and a clock that a test turns."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.view = MeshView(self.clock)
        self.view.apply(
            node_service_pb2.WatchMeshResponse(
                synced=True, models=[r.Model(name="m"), r.Model(name="idle")]
            )
        )
        self.scheduler = Scheduler(
            self.view,
            filters=(ReadyFilter(),),
            scorers=((LoadScorer(), 1.0),),
            picker=BestFirstPicker(),
            clock=self.clock,
        )

    def report(
        self,
        node_id: str,
        load: int | None = 0,
        *,
        slots: int | None = 4,
        state: "r.NodeState.ValueType" = r.NODE_STATE_READY,
    ) -> None:
        node = r.Node(
            node_id=node_id, address=f"{node_id}:1", state=state, models=[r.ServedModel(name="m")]
        )
        if load is not None:
            node.load.running = load
            node.load.queued = 0
        if slots is not None:
            node.load.slots = slots
        node.report_time.FromMicroseconds(round(self.clock.now * 1e6))
        self.view.apply(node_service_pb2.WatchMeshResponse(nodes=[node]))

    def pick(self, times: int = 1) -> Counter[str]:
        return Counter(self.scheduler.decide("m")[0].node_id for _ in range(times))


def test_the_least_loaded_node_comes_first() -> None:
    mesh = Mesh()
    for node_id, load in (("a", 3), ("b", 1), ("c", 2)):
        mesh.report(node_id, load)
    assert [node.node_id for node in mesh.scheduler.decide("m")] == ["b", "c", "a"]


def test_load_counts_relative_to_slots() -> None:
    mesh = Mesh()
    mesh.report("small", 2, slots=2)
    mesh.report("big", 6, slots=16)
    assert mesh.pick() == {"big": 1}


def test_a_node_that_does_not_say_its_load_is_not_idle() -> None:
    mesh = Mesh()
    mesh.report("a", 1)
    mesh.report("b", 5)
    mesh.report("silent", None)
    # Taken as the mean of 3, it stands between the two.
    ordered = [node.node_id for node in mesh.scheduler.decide("m")]
    assert ordered == ["a", "silent", "b"]


def test_nodes_that_all_say_nothing_share_evenly() -> None:
    mesh = Mesh()
    for node_id in "abc":
        mesh.report(node_id, None, slots=None)
    assert mesh.pick(30) == {"a": 10, "b": 10, "c": 10}


def test_equal_nodes_take_turns() -> None:
    mesh = Mesh()
    mesh.report("a")
    mesh.report("b")
    # Each call is over and reported before the next, so that the scores stay equal.
    picks = []
    for _ in range(6):
        picks.extend(mesh.pick())
        mesh.clock.now += 1.0
        mesh.report("a")
        mesh.report("b")
    assert picks in (["a", "b"] * 3, ["b", "a"] * 3)


def test_equals_take_turns_beside_a_busier_node() -> None:
    mesh = Mesh()
    picks: Counter[str] = Counter()
    for _ in range(10):
        mesh.clock.now += 1.0
        mesh.report("a", 0)
        mesh.report("b", 0)
        mesh.report("busy", 9)
        picks += mesh.pick()
    assert picks == {"a": 5, "b": 5}


def test_a_burst_between_reports_spreads() -> None:
    mesh = Mesh()
    mesh.report("a", 0)
    mesh.report("b", 0)
    assert mesh.pick(100) == {"a": 50, "b": 50}


def test_the_node_that_reported_last_does_not_draw_the_herd() -> None:
    mesh = Mesh()
    mesh.report("a", 0)
    mesh.report("b", 0)
    mesh.clock.now += 0.5
    mesh.pick(40)
    # Measured before the burst, the report of `a` arrives right after it and shows nothing of it.
    mesh.clock.now += 0.01
    mesh.report("a", 0)
    picks = mesh.pick(40)
    assert picks["a"] == picks["b"] == 20


def test_a_report_takes_away_what_it_includes() -> None:
    mesh = Mesh()
    mesh.report("a", 0)
    mesh.pick(5)
    mesh.clock.now += 0.5
    mesh.report("a", 5)
    [rated] = mesh.scheduler.explain("m")
    assert (rated.reported_load, rated.node.sent.total) == (5, 0)


def test_an_old_report_says_nothing() -> None:
    mesh = Mesh()
    mesh.report("a", 0)
    mesh.report("b", 9)
    mesh.clock.now += STALE_S
    assert [one.reported_load for one in mesh.scheduler.explain("m")] == [None, None]
    assert mesh.pick(10) == {"a": 5, "b": 5}


def test_counts_stay_bounded_while_no_report_comes() -> None:
    mesh = Mesh()
    mesh.report("a")
    mesh.report("b")
    for _ in range(3000):
        mesh.clock.now += 0.02
        mesh.pick()
    [first, second] = mesh.scheduler.explain("m")
    # 10 s at 50 calls a second, over two nodes.
    assert first.node.sent.total + second.node.sent.total == pytest.approx(500, abs=10)


def test_only_ready_nodes_take_calls_and_explain_says_why() -> None:
    mesh = Mesh()
    mesh.report("a", 9)
    mesh.report("b", 0, state=r.NODE_STATE_DRAINING)
    mesh.report("c", 0, state=r.NODE_STATE_ENGINE_DOWN)
    mesh.report("d", 0, state=r.NODE_STATE_OFFLINE)
    assert [node.node_id for node in mesh.scheduler.decide("m")] == ["a"]
    assert [(one.node.node_id, one.refusal) for one in mesh.scheduler.explain("m")] == [
        ("a", ""),
        ("b", "draining"),
        ("c", "engine down"),
        ("d", "offline"),
    ]


def test_explaining_counts_nothing() -> None:
    mesh = Mesh()
    mesh.report("a")
    mesh.report("b")
    before = [one.node.node_id for one in mesh.scheduler.explain("m")]
    assert [one.node.node_id for one in mesh.scheduler.explain("m")] == before
    assert sum(one.node.sent.total for one in mesh.scheduler.explain("m")) == 0


def test_a_call_is_given_few_nodes_to_try() -> None:
    mesh = Mesh()
    for i in range(10):
        mesh.report(f"n{i}")
    assert len(mesh.scheduler.decide("m")) == MAX_ADDRESSES


def test_unknown_models_and_models_without_nodes_differ() -> None:
    mesh = Mesh()
    for model, reason in (("ghost", "MODEL_NOT_FOUND"), ("idle", "NO_NODE_AVAILABLE")):
        with pytest.raises(MeshError) as caught:
            mesh.scheduler.decide(model)
        assert caught.value.reason_name == reason
    assert mesh.scheduler.explain("idle") == []
    with pytest.raises(MeshError):
        mesh.scheduler.explain("ghost")


def test_weights_decide_between_scorers() -> None:
    mesh = Mesh()
    mesh.report("a", 9)
    mesh.report("b", 0)

    class Prefers:
        def scores(self, nodes, call):
            return [float(node.node_id == "a") for node in nodes]

    for weight, best in ((0.1, "b"), (9.0, "a")):
        mesh.scheduler._scorers = ((LoadScorer(), 1.0), (Prefers(), weight))
        mesh.scheduler._total_weight = 1.0 + weight
        assert mesh.scheduler.explain("m")[0].node.node_id == best


def test_a_new_sync_forgets_what_is_gone() -> None:
    mesh = Mesh()
    mesh.report("a")
    mesh.view.apply(node_service_pb2.WatchMeshResponse(synced=True))
    assert not mesh.view.knows("m")
    assert not mesh.view.hosting("m")


def test_a_deleted_node_is_dropped() -> None:
    mesh = Mesh()
    mesh.report("a")
    mesh.report("b")
    changes = []
    mesh.view.on_change(lambda: changes.append([node.node_id for node in mesh.view.nodes()]))
    mesh.view.apply(node_service_pb2.WatchMeshResponse(deleted_node_ids=["a", "unknown"]))
    assert changes == [["b"]]
    assert [node.node_id for node in mesh.view.hosting("m")] == ["b"]
    assert mesh.pick(4) == {"b": 4}
    mesh.view.apply(node_service_pb2.WatchMeshResponse(deleted_node_ids=["a"]))
    assert changes == [["b"]]
