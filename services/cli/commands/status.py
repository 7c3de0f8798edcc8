"""`infermesh status`: the mesh at a glance."""

from services.cli.options import DEFAULT_ADDRESS, Address, Key


def status(address: Address = DEFAULT_ADDRESS, key: Key = None) -> None:
    """Show the parts, the nodes and the models of a running mesh."""
    from services.cli.client import connect
    from services.cli.views import show_models, show_nodes, show_parts

    with connect(address, key) as mesh:
        show_parts(mesh)
        show_nodes(mesh)
        show_models(mesh)
