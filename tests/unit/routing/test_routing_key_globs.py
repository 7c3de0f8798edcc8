"""A key that may not use all models, against chains and aliases that its owner did not choose."""

import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2

from infermesh.routing.v1 import policy_service_pb2, split_service_pb2
from services.kit import globs
from services.kit.errors import MeshError
from services.routing import store
from services.routing.facts import Facts
from services.routing.gateway import facts_of
from services.routing.store import Document
from unit.routing.routing_mesh import Mesh


@pytest.fixture
def mesh() -> Mesh:
    mesh = Mesh("big", "small", "other")
    for name in ("big", "small", "other"):
        mesh.report(f"node-{name}", models=(name,))
    route = policy_service_pb2.ModelRoute(model="big", fallback_models=["other", "small"])
    split = split_service_pb2.Split(
        alias="prod",
        targets=[
            split_service_pb2.SplitTarget(model="big", weight=9),
            split_service_pb2.SplitTarget(model="small", weight=1),
        ],
    )
    mesh.book.load(
        [
            Document(store.ROUTE, "big", route.SerializeToString()),
            Document(store.SPLIT, "prod", split.SerializeToString()),
        ]
    )
    return mesh


def models(mesh: Mesh, model: str, allowed: str, **more: object) -> list[str]:
    facts = Facts(model=model, globs=globs.read(allowed), **more)  # type: ignore[arg-type]
    return list(mesh.route(facts).decision.models)


def test_a_chain_is_cut_to_what_the_key_may_use(mesh: Mesh) -> None:
    assert models(mesh, "big", "*") == ["big", "other", "small"]
    assert models(mesh, "big", "*,!other") == ["big", "small"]
    assert models(mesh, "big", "big") == ["big"]


def test_the_callers_own_fallbacks_are_cut_too(mesh: Mesh) -> None:
    assert models(mesh, "big", "big,small", fallbacks=["other", "small"]) == ["big", "small"]
    assert models(mesh, "big", "big", fallbacks=["other"]) == ["big"]


def test_an_alias_leads_to_no_target_that_the_key_may_not_use(mesh: Mesh) -> None:
    assert {models(mesh, "prod", "prod,small")[0] for _ in range(20)} == {"small"}
    assert mesh.counts.take() == {("prod", "small"): 20}
    with pytest.raises(MeshError) as caught:
        models(mesh, "prod", "prod")
    assert caught.value.reason_name == "MODEL_NOT_FOUND"
    assert caught.value.metadata["model"] == "prod"


def test_auth_says_so_in_a_header() -> None:
    request = external_processor_pb2.ProcessingRequest()
    said = request.request_headers.headers.headers
    said.add(key="x-mesh-model", raw_value=b"m")
    assert facts_of(request).globs is None
    said.add(key="x-mesh-allowed-models", raw_value=b"m*,!mm")
    found = facts_of(request).globs
    assert found is not None
    assert (found.allow("m1"), found.allow("mm"), found.allow("x")) == (True, False, False)
