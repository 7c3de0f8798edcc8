"""Options that several commands share, and where their values come from."""

import os
from pathlib import Path
from typing import Annotated, NoReturn

import typer

STATE_DIR = Path(".infermesh")

Address = Annotated[
    str,
    typer.Option(
        "--address",
        envvar="INFERMESH_ADDRESS",
        help="The mesh: host and port; https://host:port for TLS.",
    ),
]
Key = Annotated[
    str | None,
    typer.Option(
        "--key",
        envvar="INFERMESH_KEY",
        help="The API key. Default: the one in .infermesh/admin.key.",
        show_default=False,
        show_envvar=True,
    ),
]
StateDir = Annotated[
    Path,
    typer.Option("--state-dir", help="The folder that holds all that the mesh writes."),
]

CA_SETTING = "INFERMESH_CA"
"""The environment's word on whom to trust, a PEM file."""

DEFAULT_ADDRESS = "127.0.0.1:8080"


def fail(message: str) -> NoReturn:
    """Prints one line on standard error and ends the command with status 1."""
    typer.secho(message, err=True, fg="red")
    raise typer.Exit(1)


def find_ca() -> Path | None:
    """Returns whom to trust at an https front door; None for whom the system trusts.

    That is what `--ca` said, else the authority of the mesh in this folder.
    """
    if said := os.environ.get(CA_SETTING):
        return Path(said)
    own = STATE_DIR / "tls" / "ca.pem"
    return own if own.exists() else None


def find_key(key: str | None, file_name: str = "admin.key") -> str:
    """Returns the key that was given, or the one that the mesh in this folder made."""
    if key:
        return key.strip()
    path = STATE_DIR / file_name
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        fail(f"No key: give --key, or run this beside the mesh's {path}.")
    except OSError as error:
        fail(f"The key cannot be read: {error}")
