"""Tables of what the mesh says about itself."""

import typer

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
            str(node.tier),
            _known(node.load, "running"),
            _known(node.load, "queued"),
        )
        for node in reply.nodes
    ]
    columns = ("node", "state", "address", "engine", "models", "tier", "running", "queued")
    show("Nodes", columns, rows)


def show_node(node: resources_pb2.Node) -> None:
    """Prints all that is known of one node."""
    load = node.load
    facts = [
        ("state", state_name(node.state)),
        ("address", node.address),
        ("engine", _engine(node)),
        ("tier", str(node.tier)),
        ("labels", ", ".join(f"{name}={value}" for name, value in sorted(node.labels.items()))),
        ("running", _known(load, "running")),
        ("queued", _known(load, "queued")),
        ("slots", _known(load, "slots")),
        ("cache in use", f"{load.kv_use:.0%}" if load.HasField("kv_use") else "unknown"),
        ("cache, tokens", _known(load, "kv_capacity_tokens")),
        ("tokens/s", _known(load, "tokens_per_second", ".1f")),
        ("first token, s", _known(load, "time_to_first_token", ".3f")),
        ("cached tokens", _cached(load)),
        ("adapters", ", ".join(load.loaded_adapters)),
        ("engine starts", str(load.engine_generation)),
        ("does", "; ".join(node.commands)),
    ]
    show(node.node_id, ("what", "detail"), [(name, value) for name, value in facts if value])
    rows = [
        (
            model.name,
            ", ".join(map(_capability, model.capabilities)),
            str(model.context_length) if model.context_length else "unknown",
            model.base_model,
            _price(model),
        )
        for model in node.models
    ]
    show("Models", ("model", "can", "context", "adapter of", "$ in:out"), rows)


def show_benchmark(result: node_service_pb2.BenchmarkResult) -> None:
    """Prints what a benchmark found."""
    failed = f"; failed: {result.first_failure}" if result.first_failure else ""
    rate = (
        f"{result.output_tokens_per_second:.1f}"
        if result.HasField("output_tokens_per_second")
        else "unknown"
    )
    rows = [
        (name, f"{times.p50:.3f}", f"{times.p95:.3f}", f"{times.p99:.3f}")
        for name, times, is_known in (
            ("latency, s", result.latency, result.HasField("latency")),
            ("first token, s", result.time_to_first_token, result.HasField("time_to_first_token")),
        )
        if is_known
    ]
    typer.echo(
        f"{result.requests_per_second:.2f} requests/s, {rate} tokens/s over "
        f"{result.duration:.1f} s{failed}"
    )
    show("Times", ("time", "p50", "p95", "p99"), rows)


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


def _known(load: resources_pb2.NodeLoad, field: str, form: str = "") -> str:
    if not load.HasField(field):  # type: ignore[arg-type]
        return "unknown"
    return format(getattr(load, field), form)


def _cached(load: resources_pb2.NodeLoad) -> str:
    if not load.HasField("cached_tokens"):
        return "unknown"
    return f"{load.cached_tokens} of {load.prompt_tokens}, {load.expected_cached_tokens} expected"


def _price(model: resources_pb2.ServedModel) -> str:
    if not model.HasField("input_price") or not model.HasField("output_price"):
        return ""
    return f"{model.input_price:g}:{model.output_price:g}"
