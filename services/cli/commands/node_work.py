"""`infermesh nodes show / load / unload / benchmark`: what a node does, and is to do."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli.options import DEFAULT_ADDRESS, Address, Key

if TYPE_CHECKING:
    from infermesh.registry.v1 import node_service_pb2 as pb

NodeId = Annotated[str, typer.Argument(help="The node's id, as `nodes list` shows it.")]
Model = Annotated[str, typer.Argument(help="The model's name.")]

_MEBIBYTE = 1024 * 1024


def show(node_id: NodeId, address: Address = DEFAULT_ADDRESS, key: Key = None) -> None:
    """Show all that is known of one node."""
    from infermesh.registry.v1 import node_service_pb2 as pb
    from services.cli.client import TIMEOUT_S, connect
    from services.cli.views import show_node

    with connect(address, key) as mesh:
        request = pb.GetNodeRequest(node_id=node_id)
        show_node(mesh.nodes.GetNode(request, metadata=mesh.metadata, timeout=TIMEOUT_S))


def load(
    node_id: NodeId,
    model: Model,
    source: Annotated[
        str,
        typer.Option(
            help="Where the engine finds it: a LoRA adapter's folder on the node, a GGUF file, a "
            "repository. Not needed where the name says it."
        ),
    ] = "",
    address: Address = DEFAULT_ADDRESS,
    key: Key = None,
) -> None:
    """Have a node's engine take a model into memory, with progress."""
    from infermesh.registry.v1 import node_service_pb2 as pb
    from services.cli.client import connect

    request = pb.LoadModelRequest(node_id=node_id, model=model, source=source)
    with connect(address, key) as mesh:
        _follow(mesh.nodes.LoadModel(request, metadata=mesh.metadata))
    typer.echo(f"{node_id} serves {model}.")


def unload(
    node_id: NodeId, model: Model, address: Address = DEFAULT_ADDRESS, key: Key = None
) -> None:
    """Have a node's engine drop a model from memory."""
    from infermesh.registry.v1 import node_service_pb2 as pb
    from services.cli.client import connect

    request = pb.UnloadModelRequest(node_id=node_id, model=model)
    with connect(address, key) as mesh:
        _follow(mesh.nodes.UnloadModel(request, metadata=mesh.metadata))
    typer.echo(f"{node_id} has dropped {model} from its memory.")


def benchmark(
    node_id: NodeId,
    model: Model,
    requests: Annotated[int, typer.Option(help="How many requests.", min=1, max=10_000)] = 32,
    concurrency: Annotated[int, typer.Option(help="How many at a time.", min=1, max=256)] = 4,
    prompt_tokens: Annotated[
        int, typer.Option(help="About how many tokens a prompt has.", min=1, max=100_000)
    ] = 128,
    output_tokens: Annotated[
        int, typer.Option(help="The most tokens of an answer.", min=1, max=100_000)
    ] = 64,
    address: Address = DEFAULT_ADDRESS,
    key: Key = None,
) -> None:
    """Have a node put load on its own engine, and show how fast it is."""
    from infermesh.registry.v1 import node_service_pb2 as pb
    from services.cli.client import connect
    from services.cli.views import show_benchmark

    request = pb.BenchmarkNodeRequest(
        node_id=node_id,
        model=model,
        requests=requests,
        concurrency=concurrency,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
    )
    with connect(address, key) as mesh, _spinner() as spinner:
        result: pb.BenchmarkResult | None = None
        for progress in mesh.nodes.BenchmarkNode(request, metadata=mesh.metadata):
            spinner.update(f"{progress.completed} of {requests} answered")
            if progress.HasField("result"):
                result = progress.result
    if result is not None:
        show_benchmark(result)


def _follow(messages: Iterable[Any]) -> None:
    with _spinner() as spinner:
        for message in messages:
            spinner.update(_words(message.progress))


def _spinner() -> Any:
    from rich.console import Console

    # On standard error, and only on a terminal: the result alone is on standard output.
    return Console(stderr=True).status("Asking the node …")


def _words(progress: "pb.ModelProgress") -> str:
    if not progress.HasField("completed_bytes") or not progress.total_bytes:
        return progress.status
    done, total = progress.completed_bytes / _MEBIBYTE, progress.total_bytes / _MEBIBYTE
    return f"{progress.status}: {done:.0f} of {total:.0f} MiB"
