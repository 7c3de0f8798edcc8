"""What all commands share: whom to trust at a front door that speaks TLS."""

import os
from pathlib import Path
from typing import Annotated

import typer

from services.cli.options import CA_SETTING


def trust(
    ca: Annotated[
        Path | None,
        typer.Option(
            envvar=CA_SETTING,
            help="With https addresses: a PEM file with whom to trust. Default: the authority of "
            "the mesh in this folder, else whom the system trusts.",
            exists=True,
            dir_okay=False,
            resolve_path=True,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Turns a handful of GPU machines into one LLM endpoint."""
    if ca is not None:
        os.environ[CA_SETTING] = str(ca)
