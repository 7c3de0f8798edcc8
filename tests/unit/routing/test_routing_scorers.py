"""What each scorer says of nodes."""

import pytest

from services.routing.facts import Facts
from services.routing.policy import Policy
from unit.routing.routing_mesh import Mesh


def scores(mesh: Mesh, name: str, facts: Facts | None = None) -> dict[str, float]:
    mesh.use(Policy("p", {name: 1}))
    return {
        node_id: one.scores[name]
        for node_id, one in mesh.explain(facts).items()
        if name in one.scores
    }


def test_queue() -> None:
    mesh = Mesh()
    mesh.report("a", 0)
    mesh.report("b", 4)
    mesh.report("c", 12)
    assert scores(mesh, "queue") == {"a": 1.0, "b": 0.5, "c": 0.25}


def test_kv_use_and_what_is_not_known_of_it() -> None:
    mesh = Mesh()
    mesh.report("a", kv_use=0.2)
    mesh.report("b", kv_use=0.6)
    mesh.report("silent")
    assert scores(mesh, "kv_use") == pytest.approx({"a": 0.8, "b": 0.4, "silent": 0.6})
    nothing = Mesh()
    nothing.report("a")
    nothing.report("b")
    assert scores(nothing, "kv_use") == {}


def test_ttft() -> None:
    mesh = Mesh()
    mesh.report("fast", time_to_first_token=0.0)
    mesh.report("slow", time_to_first_token=1.5)
    mesh.report("silent")
    assert scores(mesh, "ttft") == pytest.approx({"fast": 1.0, "slow": 0.25, "silent": 0.625})


def test_a_slow_node_is_tried_again_after_a_while() -> None:
    mesh = Mesh()
    for _ in range(200):
        mesh.report("fast", time_to_first_token=0.1)
        mesh.report("slow", time_to_first_token=2.0)
        mesh.clock.now += 0.5
    mesh.report("fast", time_to_first_token=0.1)
    mesh.report("slow", time_to_first_token=2.0)
    found = scores(mesh, "ttft")
    assert found["fast"] == pytest.approx(found["slow"], abs=0.01)
    mesh.report("slow", time_to_first_token=1.9)
    found = scores(mesh, "ttft")
    assert found["slow"] < found["fast"] - 0.05


def test_cost() -> None:
    mesh = Mesh()
    mesh.report("own", served={"input_price": 0.1, "output_price": 0.1})
    mesh.report("cloud", served={"input_price": 0.2, "output_price": 1.0})
    mesh.report("silent", served={"input_price": 0.0})
    assert scores(mesh, "cost") == pytest.approx({"own": 1.0, "cloud": 0.25, "silent": 0.625})
    mesh.report("own", served={"input_price": 0.0, "output_price": 0.0})
    assert scores(mesh, "cost")["own"] == 1.0


def test_adapter() -> None:
    mesh = Mesh()
    mesh.report("a", served={"base_model": "base"}, loaded_adapters=["other"])
    mesh.report("b", served={"base_model": "base"}, loaded_adapters=["other", "m"])
    assert scores(mesh, "adapter") == {"a": 0.0, "b": 1.0}
    plain = Mesh()
    plain.report("a")
    plain.report("b", loaded_adapters=["m"])
    assert scores(plain, "adapter") == {}


def test_sessions_stay_spread_out_and_move_only_with_their_node() -> None:
    mesh = Mesh()
    for node_id in "abcdefgh":
        mesh.report(node_id, 0, slots=1000)
    mesh.use(Policy("p", {"session": 1}, load_factor=100))
    homes = {i: mesh.order(Facts(model="m", session_id=f"s{i}"))[0] for i in range(400)}
    for node_id in "abcdefgh":
        assert 25 < list(homes.values()).count(node_id) < 80
    mesh.clock.now += 60
    for node_id in "abcdefg":
        mesh.report(node_id, 0, slots=1000)
    mesh.report("h", state=4, slots=1000)
    for i, home in homes.items():
        now = mesh.explain(Facts(model="m", session_id=f"s{i}"))
        best = max((one for one in now.values() if not one.refusal), key=lambda one: one.score)
        assert home in ("h", best.node.node_id)


def test_the_user_stands_for_a_session_that_is_not_named() -> None:
    mesh = Mesh()
    for node_id in "abc":
        mesh.report(node_id, 0, slots=100)
    mesh.use(Policy("p", {"session": 1}))
    homes = {mesh.order(Facts(model="m", user="u7"))[0] for _ in range(5)}
    assert len(homes) == 1
    assert scores(mesh, "session", Facts(model="m")) == {}


def test_a_session_stays_on_nodes_that_do_not_tell_their_slots() -> None:
    mesh = Mesh()
    for node_id in "ab":
        mesh.report(node_id, 0, slots=None)
    mesh.use(Policy("p", {"session": 4, "queue": 1}))
    # Five calls between two reports, as many as none of them shows.
    facts = Facts(model="m", session_id="s")
    homes = {mesh.route(facts).decision.nodes[0].node_id for _ in range(5)}
    assert len(homes) == 1
