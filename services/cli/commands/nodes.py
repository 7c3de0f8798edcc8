"""`infermesh nodes`: the machines in the mesh."""

from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.commands import node_work, tokens
from services.cli.options import DEFAULT_ADDRESS, Address, Key

if TYPE_CHECKING:
    from infermesh.registry.v1 import resources_pb2

app = typer.Typer(
    help="List nodes, let them in, drain them, and have them do work.", no_args_is_help=True
)
app.command()(node_work.show)
app.command()(node_work.load)
app.command()(node_work.unload)
app.command()(node_work.benchmark)
app.add_typer(tokens.app, name="token")

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

    request = node_service_pb2.DrainNodeRequest(node_id=node_id)
    with connect(address, key) as mesh:
        node = mesh.nodes.DrainNode(request, metadata=mesh.metadata, timeout=TIMEOUT_S)
    _tell(node, "It will be draining when it is back.")


@app.command()
def resume(node_id: NodeId, address: Address = DEFAULT_ADDRESS, key: Key = None) -> None:
    """Let traffic to a drained node again."""
    from infermesh.registry.v1 import node_service_pb2
    from services.cli.client import TIMEOUT_S, connect

    request = node_service_pb2.ResumeNodeRequest(node_id=node_id)
    with connect(address, key) as mesh:
        node = mesh.nodes.ResumeNode(request, metadata=mesh.metadata, timeout=TIMEOUT_S)
    _tell(node, "It will take traffic when it is back.")


@app.command()
def delete(node_id: NodeId, address: Address = DEFAULT_ADDRESS, key: Key = None) -> None:
    """Forget a node that is offline."""
    from infermesh.registry.v1 import node_service_pb2
    from services.cli.client import TIMEOUT_S, connect

    request = node_service_pb2.DeleteNodeRequest(node_id=node_id)
    with connect(address, key) as mesh:
        mesh.nodes.DeleteNode(request, metadata=mesh.metadata, timeout=TIMEOUT_S)
    typer.echo(f"{node_id} is deleted.")


def _tell(node: "resources_pb2.Node", when_back: str) -> None:
    from infermesh.registry.v1 import resources_pb2
    from services.cli.views import state_name

    offline = node.state == resources_pb2.NODE_STATE_OFFLINE
    typer.echo(f"{node.node_id} is {state_name(node.state)}.{f' {when_back}' if offline else ''}")
