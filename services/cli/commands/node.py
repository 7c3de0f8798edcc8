"""`infermesh node`: makes this machine a node of a mesh."""

import os
import re
import socket
import sys
from typing import Annotated

import typer

from services.cli.options import STATE_DIR, StateDir, fail, find_key

_DEFAULT_PORT = 17121
_PORTS_TO_TRY = 64
_WILDCARDS = ("0.0.0.0", "[::]")


def _name(node_id: str) -> str:
    name = node_id or socket.gethostname().split(".")[0]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", name):
        raise typer.BadParameter(f"{name} is not a node's name: letters, digits, '.', '_' and '-'.")
    return name


def node(
    join: Annotated[str, typer.Option(help="The mesh to join: host and port of its front door.")],
    url: Annotated[str, typer.Option(help="The engine's HTTP address on this machine.")],
    engine: Annotated[str, typer.Option(help="The engine's dialect.")] = "llamacpp",
    node_id: Annotated[
        str,
        typer.Option(
            "--id",
            help="The node's name, unique in the mesh. Default: the host's.",
            show_default=False,
            callback=_name,
        ),
    ] = "",
    listen: Annotated[
        str,
        typer.Option(
            help="Address and port to listen on. Whoever reaches it is believed. Default: this "
            f"machine's address towards the mesh, on the first free port from {_DEFAULT_PORT} on.",
            show_default=False,
        ),
    ] = "",
    advertise: Annotated[
        str,
        typer.Option(
            help="The IP address and port that the mesh calls. Default: where the node listens; "
            "for every address, this machine's towards the mesh.",
            show_default=False,
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
    node_key = find_key(key, "node.key")
    listen, advertise = addresses(listen, advertise, join)
    # Beside the mesh's own parts, which have folders in the state folder too.
    folder = (state_dir / "nodes" / node_id).absolute()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings = {
        "NODE_ID": node_id,
        "ENGINE": engine,
        "ENGINE_URL": url,
        "MESH_ADDRESS": join,
        "NODE_KEY": node_key,
        "LISTEN": listen,
        "ADVERTISE": advertise,
        "STATE_DIR": str(folder),
    }
    environment = os.environ | {f"INFERMESH_{k}": v for k, v in settings.items()}
    called = "" if advertise == listen else f"; the mesh calls it at {advertise}"
    typer.echo(f"{node_id} listens on {listen}{called}.", err=True)
    # The inference proxy takes this process over: signals and the exit status are then its own.
    os.execve(  # noqa: S606
        sys.executable, [sys.executable, "-m", "services.inference"], environment
    )


def addresses(listen: str, advertise: str, join: str) -> tuple[str, str]:
    """Returns where the node listens, and where the mesh calls it.

    Args:
        listen: What the person chose; empty for the address that faces the mesh, which is
            loopback for a mesh on this machine, since a node's port asks nobody for a key.
        advertise: What the person chose; empty for `listen`.
        join: The mesh's host and port.
    """
    if not listen:
        host = _bracketed(_own_address(join))
        listen = f"{host}:{_free_port(host.strip('[]'))}"
    if advertise:
        return listen, advertise
    host, _, port = listen.rpartition(":")
    if host not in _WILDCARDS:
        return listen, listen
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return listen, f"{_bracketed(_own_address(join, family))}:{port}"


def _own_address(join: str, family: socket.AddressFamily = socket.AF_UNSPEC) -> str:
    """Returns this machine's address that faces the mesh."""
    host, _, port = join.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) <= 65535):
        raise typer.BadParameter(f"{join} is not a host and a port.", param_hint="--join")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), family, socket.SOCK_DGRAM)
        # IPv4 first, for `localhost` is both and a mesh listens on 127.0.0.1 unless told.
        family, _, _, _, target = min(found, key=lambda each: each[0] != socket.AF_INET)
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            # Connecting a datagram socket sends nothing; it only picks the route.
            probe.connect(target)
            return str(probe.getsockname()[0])
    except (OSError, UnicodeError) as error:
        raise typer.BadParameter(f"{join}: {error}", param_hint="--join") from None


def _free_port(host: str) -> int:
    from services.cli.ports import is_port_free

    candidates = range(_DEFAULT_PORT, _DEFAULT_PORT + _PORTS_TO_TRY)
    port = next((each for each in candidates if is_port_free(host, each)), None)
    if port is None:
        fail(f"{host} has no free port from {_DEFAULT_PORT} on; choose one with --listen.")
    return port


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
