"""Which nodes may take a call: engines, labels, capabilities, tiers, fallbacks."""

import pytest

from infermesh.registry.v1 import resources_pb2 as r
from infermesh.routing.v1 import policy_service_pb2
from services.kit.errors import MeshError
from services.routing import store
from services.routing.facts import Facts
from services.routing.filters import capability
from services.routing.policy import Policy
from services.routing.store import Document
from unit.routing.routing_mesh import Mesh, chat

CHAT, TOOLS = r.CAPABILITY_CHAT, r.CAPABILITY_TOOLS


def test_the_preferred_framework_is_kept_to_where_there_is_one() -> None:
    mesh = Mesh()
    mesh.report("a", 0, engine="vllm")
    mesh.report("b", 3, engine="ollama")
    assert mesh.order(Facts(model="m", framework="ollama")) == ["b"]
    assert sorted(mesh.order(Facts(model="m", framework="tgi"))) == ["a", "b"]
    assert mesh.explain(Facts(model="m", framework="ollama"))["a"].refusal == "not preferred"


def test_labels_allow_and_deny() -> None:
    mesh = Mesh()
    mesh.report("a", labels={"zone": "eu", "spot": "yes"})
    mesh.report("b", labels={"zone": "us"})
    mesh.report("c")
    mesh.use(Policy("p", {"queue": 1}, allow={"zone": frozenset({"eu", "us"})}))
    assert sorted(mesh.order()) == ["a", "b"]
    mesh.use(Policy("p", {"queue": 1}, deny={"spot": frozenset({"yes"})}))
    assert sorted(mesh.order()) == ["b", "c"]
    mesh.report("b", labels={"zone": "us", "spot": "yes"})
    assert mesh.order() == ["c"]
    assert mesh.explain()["a"].refusal == "label spot denied"


def test_capabilities_are_needed_where_a_node_has_them() -> None:
    mesh = Mesh()
    mesh.report("plain", 0, capabilities=[CHAT])
    mesh.report("tools", 9, capabilities=[CHAT, TOOLS])
    assert mesh.order(Facts(model="m", needs=capability.TOOLS)) == ["tools"]
    # None can: a node says so better, with the field at fault.
    assert len(mesh.order(Facts(model="m", needs=capability.VISION))) == 2


def test_lower_tiers_come_first_and_full_ones_are_passed_over() -> None:
    mesh = Mesh()
    mesh.use(Policy("p", {"queue": 1}, max_pressure=2))
    mesh.report("cloud", 0, tier=2)
    mesh.report("gpu", 7, tier=0)
    mesh.report("desk", 0, tier=1)
    assert mesh.order() == ["gpu", "desk", "cloud"]
    mesh.report("gpu", 9, tier=0)
    assert mesh.order() == ["desk", "cloud"]


def fallback_mesh() -> Mesh:
    mesh = Mesh("big", "small", "embedder", "gone")
    mesh.report("a", models=("big",), capabilities=[CHAT])
    mesh.report("b", models=("small",), capabilities=[CHAT])
    mesh.report("e", models=("embedder",), capabilities=[r.CAPABILITY_EMBEDDINGS])
    return mesh


def test_the_callers_fallbacks_follow_the_model() -> None:
    mesh = fallback_mesh()
    decision = mesh.route(Facts(model="big", fallbacks=["small", "ghost", "big"])).decision
    assert [node.node_id for node in decision.nodes] == ["a", "b"]
    assert decision.models == ["big", "small"]
    # A model without nodes is left out, one that is unknown too.
    decision = mesh.route(Facts(model="gone", fallbacks=["ghost", "small"])).decision
    assert (decision.models, decision.nodes[0].node_id) == (["small"], "b")
    with pytest.raises(MeshError) as caught:
        mesh.route(Facts(model="ghost", fallbacks=["phantom"]))
    assert caught.value.reason_name == "MODEL_NOT_FOUND"


def test_a_fallback_must_be_able_to_do_it() -> None:
    mesh = fallback_mesh()
    decision = mesh.route(chat("x", "big", fallbacks=["embedder", "small"])).decision
    assert decision.models == ["big", "small"]


def test_a_models_own_chain_counts_without_the_callers() -> None:
    mesh = fallback_mesh()
    route = policy_service_pb2.ModelRoute(model="big", fallback_models=["small"])
    mesh.book.load([Document(store.ROUTE, "big", route.SerializeToString())])
    assert mesh.route(Facts(model="big")).decision.models == ["big", "small"]
    chosen = mesh.route(Facts(model="big", fallbacks=["embedder"])).decision
    assert chosen.models == ["big", "embedder"]
    mesh.report("a", models=("big",), state=r.NODE_STATE_OFFLINE)
    assert mesh.route(Facts(model="big")).decision.models == ["small"]


def test_the_policy_is_the_models_or_that_of_the_level() -> None:
    mesh = fallback_mesh()
    route = policy_service_pb2.ModelRoute(model="big", policy="session")
    mesh.book.load([Document(store.ROUTE, "big", route.SerializeToString())])
    for model, level, policy in (
        ("big", "", "session"),
        ("small", "", "balanced"),
        ("big", "low", "cost"),
        ("big", "medium", "balanced"),
        ("big", "high", "latency"),
        ("big", "nonsense", "session"),
    ):
        assert mesh.route(Facts(model=model, level=level)).plan.policy.name == policy


def test_names_that_callers_make_up_are_not_kept() -> None:
    mesh = Mesh()
    mesh.report("a", engine="vllm")
    mesh.pick(1, Facts(model="m"))
    kept = len(mesh.pools._kept)
    for i in range(20):
        mesh.pick(1, Facts(model="m", framework=f"made-up-{i}", fallbacks=[f"no-{i}"]))
    assert len(mesh.pools._kept) == kept
    mesh.pick(1, Facts(model="m", framework="vllm"))
    assert len(mesh.pools._kept) == kept + 1
