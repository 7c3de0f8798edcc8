"""`infermesh nodes`: the machines in the mesh."""

from typing import Annotated

import typer

from services.cli.options import DEFAULT_ADDRESS, Address, Key

app = typer.Typer(help="List, drain and resume nodes.", no_args_is_help=True)

NodeId = Annotated[str, typer.Argument(help="The node's id, as `nodes list` shows it.")]


@app.command("list")
def list_nodes(address: Address = DEFAULT_ADDRESS, key: Key = None) -> None:
    """List the nodes, offline ones included."""
    from services.cli.client import connect
    from services.cli.views import show_nodes

    with connect(address, key) as mesh:
        show_nodes(mesh)


@app.command()
def drain(node_id: NodeId, address: Address = DEFAULT_ADDRESS, key: Key = None) -> None:
    """Stop new traffic to a node; what runs there finishes."""
    from infermesh.registry.v1 import node_service_pb2
    from services.cli.client import TIMEOUT_S, connect
    from services.cli.views import state_name

    request = node_service_pb2.DrainNodeRequest(node_id=node_id)
    with connect(address, key) as mesh:
        node = mesh.nodes.DrainNode(request, metadata=mesh.metadata, timeout=TIMEOUT_S)
    typer.echo(f"{node_id} is {state_name(node.state)}.")


@app.command()
def resume(node_id: NodeId, address: Address = DEFAULT_ADDRESS, key: Key = None) -> None:
    """Let traffic to a drained node again."""
    from infermesh.registry.v1 import node_service_pb2
    from services.cli.client import TIMEOUT_S, connect
    from services.cli.views import state_name

    request = node_service_pb2.ResumeNodeRequest(node_id=node_id)
    with connect(address, key) as mesh:
        node = mesh.nodes.ResumeNode(request, metadata=mesh.metadata, timeout=TIMEOUT_S)
    typer.echo(f"{node_id} is {state_name(node.state)}.")
