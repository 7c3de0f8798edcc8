"""`infermesh node`: makes this machine a node of a mesh."""

import os
import socket
import sys
from typing import Annotated

import typer

from services.cli.options import STATE_DIR, StateDir, find_key


def node(
    join: Annotated[str, typer.Option(help="The mesh to join: host and port of its front door.")],
    url: Annotated[str, typer.Option(help="The engine's HTTP address on this machine.")],
    engine: Annotated[str, typer.Option(help="The engine's dialect.")] = "llamacpp",
    node_id: Annotated[
        str, typer.Option("--id", help="The node's name, unique in the mesh. Default: the host's.")
    ] = "",
    listen: Annotated[
        str, typer.Option(help="Where the mesh reaches this node: address and port to listen on.")
    ] = "0.0.0.0:17021",
    advertise: Annotated[
        str,
        typer.Option(
            help="The IP address and port that the mesh calls. "
            "Default: this machine's address towards the mesh."
        ),
    ] = "",
    key: Annotated[
        str | None,
        typer.Option(
            envvar="INFERMESH_NODE_KEY",
            help="A key with role node. Default: the one in .infermesh/node.key.",
            show_default=False,
        ),
    ] = None,
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Join a mesh with an engine on this machine, and stay until Ctrl-C."""
    name = node_id or socket.gethostname().split(".")[0]
    folder = (state_dir / name).absolute()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings = {
        "NODE_ID": name,
        "ENGINE": engine,
        "ENGINE_URL": url,
        "MESH_ADDRESS": join,
        "NODE_KEY": find_key(key, "node.key"),
        "LISTEN": listen,
        "ADVERTISE": advertise or _advertised(listen, join),
        "STATE_DIR": str(folder),
    }
    environment = os.environ | {f"INFERMESH_{k}": v for k, v in settings.items()}
    # The inference proxy takes this process over: signals and the exit status are then its own.
    os.execve(  # noqa: S606
        sys.executable, [sys.executable, "-m", "services.inference"], environment
    )


def _advertised(listen: str, join: str) -> str:
    """Returns the address to be called at; for a wildcard, the one that faces the mesh."""
    host, _, port = listen.rpartition(":")
    if host not in ("0.0.0.0", "[::]", "::", ""):
        return listen
    mesh_host, _, mesh_port = join.rpartition(":")
    family = socket.AF_INET6 if host in ("[::]", "::") else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        # Connecting a datagram socket sends nothing; it only picks the route.
        try:
            probe.connect((mesh_host.strip("[]"), int(mesh_port)))
        except (OSError, ValueError) as error:
            raise typer.BadParameter(f"{join}: {error}", param_hint="--join") from None
        own = probe.getsockname()[0]
    return f"[{own}]:{port}" if ":" in own else f"{own}:{port}"
