"""Tables of what the mesh says about itself."""

from infermesh.metrics.v1 import metrics_service_pb2
from infermesh.registry.v1 import model_service_pb2, node_service_pb2, resources_pb2
from services.cli.client import TIMEOUT_S, Mesh
from services.cli.tables import show

_NO_VERSION = "b0-unknown"
"""What llama.cpp says where it was built outside its repository."""


def show_parts(mesh: Mesh) -> None:
    """Prints whether each service answers its health check."""
    request = metrics_service_pb2.GetMeshHealthRequest()
    reply = mesh.health.GetMeshHealth(request, metadata=mesh.metadata, timeout=TIMEOUT_S)
    rows = [
        (
            service.name,
            "serving" if service.serving else "down",
            f"{service.latency_ms:.1f}" if service.HasField("latency_ms") else "",
            "" if service.serving else service.detail,
        )
        for service in reply.services
    ]
    show("Parts", ("part", "state", "ms", "detail"), rows)


def show_nodes(mesh: Mesh) -> None:
    """Prints the nodes and what their engines report."""
    request = node_service_pb2.ListNodesRequest()
    reply = mesh.nodes.ListNodes(request, metadata=mesh.metadata, timeout=TIMEOUT_S)
    rows = [
        (
            node.node_id,
            state_name(node.state),
            node.address,
            _engine(node),
            ", ".join(model.name for model in node.models),
            _known(node.load, "running"),
            _known(node.load, "queued"),
        )
        for node in reply.nodes
    ]
    columns = ("node", "state", "address", "engine", "models", "running", "queued")
    show("Nodes", columns, rows)


def show_models(mesh: Mesh) -> None:
    """Prints the catalogue."""
    request = model_service_pb2.ListModelsRequest()
    reply = mesh.models.ListModels(request, metadata=mesh.metadata, timeout=TIMEOUT_S)
    rows = [
        (
            model.name,
            ", ".join(_capability(each) for each in model.capabilities),
            str(model.context_length) if model.context_length else "unknown",
            str(model.ready_node_count),
        )
        for model in reply.models
    ]
    show("Models", ("model", "can", "context", "ready nodes"), rows)


def state_name(state: resources_pb2.NodeState.ValueType) -> str:
    """Returns a node's state in words. Example: `engine down`."""
    name = resources_pb2.NodeState.Name(state)
    return name.removeprefix("NODE_STATE_").lower().replace("_", " ")


def _engine(node: resources_pb2.Node) -> str:
    known = node.engine_version not in ("", _NO_VERSION)
    return f"{node.engine} {node.engine_version}" if known else node.engine


def _capability(capability: resources_pb2.Capability.ValueType) -> str:
    return resources_pb2.Capability.Name(capability).removeprefix("CAPABILITY_").lower()


def _known(load: resources_pb2.NodeLoad, field: str) -> str:
    return str(getattr(load, field)) if load.HasField(field) else "unknown"  # type: ignore[arg-type]
