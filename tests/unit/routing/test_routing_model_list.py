"""What OpenAI's list of models shows, and to whom."""

import pytest

from infermesh.registry.v1 import node_service_pb2
from infermesh.registry.v1 import resources_pb2 as r
from infermesh.routing.v1 import policy_service_pb2, split_service_pb2
from services.kit.errors import MeshError
from services.kit.globs import ModelGlobs, read
from services.routing import store
from services.routing.model_list import ModelList
from services.routing.store import Document
from unit.routing.routing_mesh import Mesh

CHAT, TOOLS = r.CAPABILITY_CHAT, r.CAPABILITY_TOOLS


def catalogue(mesh: Mesh, *models: r.Model) -> None:
    mesh.view.apply(node_service_pb2.WatchMeshResponse(models=models))


def model(name: str, *capabilities: "r.Capability.ValueType", context: int = 0) -> r.Model:
    made = r.Model(name=name, capabilities=capabilities, context_length=context)
    made.create_time.FromSeconds(1_700_000_000 + len(name))
    return made


@pytest.fixture
def mesh() -> Mesh:
    mesh = Mesh("none")
    catalogue(
        mesh,
        model("org/big:v1", CHAT, TOOLS, context=8192),
        model("small", CHAT, context=2048),
        model("idle", CHAT),
    )
    mesh.report("one", models=("org/big:v1", "small"))
    return mesh


def set_documents(
    mesh: Mesh,
    alias: dict[str, int] | None = None,
    routes: dict[str, list[str]] | None = None,
) -> None:
    documents = []
    if alias is not None:
        split = split_service_pb2.Split(
            alias="prod",
            targets=[split_service_pb2.SplitTarget(model=m, weight=w) for m, w in alias.items()],
        )
        split.create_time.FromSeconds(1_800_000_000)
        documents.append(Document(store.SPLIT, "prod", split.SerializeToString()))
    for name, fallbacks in (routes or {}).items():
        route = policy_service_pb2.ModelRoute(model=name, fallback_models=fallbacks)
        documents.append(Document(store.ROUTE, name, route.SerializeToString()))
    mesh.book.load(documents)


def names(mesh: Mesh, globs: ModelGlobs | None = None) -> list[str]:
    listed = ModelList(mesh.view, mesh.book)
    return [m.id for m in (listed.all(globs) if globs else listed.all())]


def test_what_is_served_is_listed_by_name(mesh: Mesh) -> None:
    assert names(mesh) == ["org/big:v1", "small"]
    mesh.report("one", models=("org/big:v1", "small"), state=r.NODE_STATE_OFFLINE)
    assert names(mesh) == []


def test_a_model_says_what_it_can_do(mesh: Mesh) -> None:
    got = ModelList(mesh.view, mesh.book).get("org/big:v1")
    assert (got.id, got.object, got.owned_by) == ("org/big:v1", "model", "infermesh")
    assert got.created == 1_700_000_010
    assert list(got.capabilities) == ["chat", "tools"]
    assert got.context_length == 8192
    assert got.available
    assert not got.alias_for
    assert not got.fallback_models


def test_a_context_that_is_unknown_is_not_zero(mesh: Mesh) -> None:
    got = ModelList(mesh.view, mesh.book).get("idle")
    assert not got.HasField("context_length")
    assert not got.available


def test_an_alias_can_do_what_all_its_targets_can(mesh: Mesh) -> None:
    set_documents(mesh, alias={"org/big:v1": 1, "small": 3, "idle": 0})
    assert names(mesh) == ["org/big:v1", "prod", "small"]
    got = ModelList(mesh.view, mesh.book).get("prod")
    assert list(got.alias_for) == ["org/big:v1", "small"]  # idle takes no new calls
    assert list(got.capabilities) == ["chat"]
    assert got.context_length == 2048
    assert got.created == 1_800_000_000
    assert got.available


def test_an_alias_of_what_nobody_serves_is_left_out(mesh: Mesh) -> None:
    set_documents(mesh, alias={"idle": 1})
    assert "prod" not in names(mesh)
    assert not ModelList(mesh.view, mesh.book).get("prod").available


def test_a_name_that_only_has_fallbacks_is_there(mesh: Mesh) -> None:
    set_documents(mesh, routes={"later": ["small"], "idle": ["org/big:v1"]})
    assert names(mesh) == ["idle", "later", "org/big:v1", "small"]
    got = ModelList(mesh.view, mesh.book).get("later")
    assert list(got.fallback_models) == ["small"]
    assert list(got.capabilities) == ["chat"]
    assert got.available
    assert not got.alias_for


def test_a_key_sees_what_it_may_use(mesh: Mesh) -> None:
    set_documents(mesh, alias={"org/big:v1": 1, "small": 1}, routes={"small": ["idle", "x"]})
    listed = ModelList(mesh.view, mesh.book)
    assert names(mesh, read("prod,small")) == ["prod", "small"]
    got = listed.get("prod", read("prod,small"))
    assert list(got.alias_for) == ["small"]  # not what it may not use
    assert not listed.get("small", read("small")).fallback_models
    # The alias alone is of no use.
    assert names(mesh, read("prod")) == []


@pytest.mark.parametrize(
    ("name", "globs"), [("gpt-9", ""), ("small", "org/*"), ("prod", "prod"), ("", "")]
)
def test_what_is_not_there_and_what_is_not_the_keys_look_alike(
    mesh: Mesh, name: str, globs: str
) -> None:
    set_documents(mesh, alias={"small": 1})
    with pytest.raises(MeshError) as error:
        ModelList(mesh.view, mesh.book).get(name, read(globs))
    assert error.value.reason_name == "MODEL_NOT_FOUND"
    assert error.value.param == "model"
