"""`infermesh models`: what the mesh can serve, and the files of the embedded models."""

from typing import Annotated

import typer

from services.cli.options import DEFAULT_ADDRESS, Address, Key

app = typer.Typer(help="List and delete models; fetch the embedded ones.", no_args_is_help=True)


@app.command("list")
def list_models(address: Address = DEFAULT_ADDRESS, key: Key = None) -> None:
    """List the models in the catalogue."""
    from services.cli.client import connect
    from services.cli.views import show_models

    with connect(address, key) as mesh:
        show_models(mesh)


@app.command()
def delete(
    name: Annotated[str, typer.Argument(help="The model's name.")],
    address: Address = DEFAULT_ADDRESS,
    key: Key = None,
) -> None:
    """Delete a model that no node serves any more from the catalogue."""
    from infermesh.registry.v1 import model_service_pb2
    from services.cli.client import TIMEOUT_S, connect

    request = model_service_pb2.DeleteModelRequest(name=name)
    with connect(address, key) as mesh:
        mesh.models.DeleteModel(request, metadata=mesh.metadata, timeout=TIMEOUT_S)
    typer.echo(f"{name} is deleted.")


@app.command()
def fetch() -> None:
    """Fetch the files of the embedded models, unless they are there."""
    from services.cli import models
    from services.cli.fetching import fetch_with_progress

    folder = models.default_folder()
    if not fetch_with_progress(folder):
        typer.echo(f"All models are there: {folder}")
