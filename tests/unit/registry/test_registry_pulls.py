"""Which node pulls a model, and what its caller is told."""

import orjson
import pytest

from infermesh.registry.v1 import node_service_pb2, resources_pb2
from services.kit.errors import MeshError
from services.registry import pulls

READY = resources_pb2.NODE_STATE_READY
DOWN = resources_pb2.NODE_STATE_ENGINE_DOWN
OFFLINE = resources_pb2.NODE_STATE_OFFLINE


def node(
    node_id: str,
    *models: str,
    engine: str = "ollama",
    state: resources_pb2.NodeState.ValueType = READY,
) -> resources_pb2.Node:
    served = [resources_pb2.ServedModel(name=model) for model in models]
    return resources_pb2.Node(node_id=node_id, engine=engine, state=state, models=served)


def test_the_one_that_has_it_brings_it_up_to_date() -> None:
    nodes = [node("a"), node("b", "m", "x"), node("c", "m", engine="vllm")]
    assert pulls.node_for(nodes, "m") == "b"
    assert pulls.node_for(nodes, "m:latest") == "b"


def test_else_the_one_with_the_fewest_models() -> None:
    nodes = [
        node("a", "x", "y"),
        node("b", "x"),
        node("c", state=OFFLINE),
        node("d", state=DOWN),
        node("e", engine="llamacpp"),
    ]
    assert pulls.node_for(nodes, "m") == "b"


def test_what_another_engine_serves_is_there() -> None:
    assert pulls.node_for([node("a"), node("b", "m", engine="vllm")], "m") is None


@pytest.mark.parametrize("nodes", [[], [node("a", engine="vllm")], [node("a", "m", state=OFFLINE)]])
def test_nobody_pulls(nodes: list[resources_pb2.Node]) -> None:
    with pytest.raises(MeshError) as caught:
        pulls.node_for(nodes, "m")
    assert caught.value.reason_name == "FAILED_PRECONDITION"


def test_lines() -> None:
    def line(**fields: object) -> dict[str, object]:
        made = pulls.line(node_service_pb2.ModelProgress(**fields))
        assert made.endswith(b"\n")
        said: dict[str, object] = orjson.loads(made)
        return said

    assert line(status="pulling x", completed_bytes=0, total_bytes=9) == {
        "status": "pulling x",
        "completed": 0,
        "total": 9,
    }
    # The engine's `success` is not the end: the node has it loaded after that.
    assert line(status="success") == {"status": "verifying"}
    assert line(status="done", done=True) == {"status": "success"}
