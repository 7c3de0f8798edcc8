"""`infermesh up`: the whole mesh on this machine."""

import ipaddress
import os
from pathlib import Path
from typing import Annotated

import typer

from services.cli.options import STATE_DIR, StateDir, fail

# The last of the parts' ports is then still below those that the kernel gives to connections.
_MAX_BASE_PORT = 32700


def _ip_address(host: str) -> str:
    # Envoy listens on addresses, not on names, and would say so only after the start.
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        raise typer.BadParameter(
            f"{host} is not an IP address; 0.0.0.0 stands for all of this machine's."
        ) from None


def _origins(said: list[str] | None) -> list[str]:
    from services.cli import cors

    try:
        return list(cors.origins(said or (), os.environ))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def up(
    host: Annotated[
        str, typer.Option(help="The IP address of the front door.", callback=_ip_address)
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port of the front door.", min=1, max=65535)] = 8080,
    base_port: Annotated[
        int,
        typer.Option(
            help="The parts listen on loopback from this port on.", min=1, max=_MAX_BASE_PORT
        ),
    ] = 17000,
    nodes: Annotated[int, typer.Option(help="Nodes that serve the chat model.", min=1, max=18)] = 2,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="An origin whose web pages may call the mesh, or `*`; repeat for more. "
            "Default: INFERMESH_CORS_ORIGINS, else none.",
            callback=_origins,
        ),
    ] = None,
    tls: Annotated[
        bool,
        typer.Option("--tls", help="Speak TLS at the front door and between all parts."),
    ] = False,
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            help="The front door's own certificate chain, a PEM file; it then speaks TLS.",
            envvar="INFERMESH_TLS_CERT",
            exists=True,
            dir_okay=False,
            resolve_path=True,
        ),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(
            help="That certificate's private key, a PEM file.",
            envvar="INFERMESH_TLS_KEY",
            exists=True,
            dir_okay=False,
            resolve_path=True,
        ),
    ] = None,
    tls_host: Annotated[
        list[str] | None,
        typer.Option(
            help="With --tls alone: a name or address by which others reach this machine. "
            "Repeatable."
        ),
    ] = None,
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Start the whole mesh here and stay until Ctrl-C."""
    from services.cli import models
    from services.cli.fetching import fetch_with_progress
    from services.cli.lock import AlreadyRunningError, hold

    if (tls_cert is None) != (tls_key is None):
        raise typer.BadParameter("Give both of them.", param_hint="--tls-cert/--tls-key")
    folder = state_dir.absolute()
    try:
        with hold(folder):
            fetch_with_progress(models.default_folder())

            from services.cli import running, stack, stack_tls

            options = stack.Options(
                state_dir=folder,
                models_dir=models.default_folder(),
                host=host,
                port=port,
                base_port=base_port,
                chat_nodes=nodes,
                cors_origins=tuple(cors_origin or ()),
                tls=stack_tls.TlsOptions(tls, tls_cert, tls_key, tuple(tls_host or ())),
            )
            running.run(options, shown_state_dir=state_dir)
    except AlreadyRunningError as error:
        fail(str(error))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
