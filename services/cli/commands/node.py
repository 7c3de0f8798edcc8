"""`infermesh node`: makes this machine a node of a mesh."""

import json
import os
import re
import shutil
import socket
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from services.cli.options import CA_SETTING, STATE_DIR, StateDir, fail, find_key

_DEFAULT_PORT = 17121
_ENGINE_PORT = 17221
_PORTS_TO_TRY = 64
_DRAIN_S = "120"
_WILDCARDS = ("0.0.0.0", "[::]")


def _name(node_id: str) -> str:
    name = node_id or socket.gethostname().split(".")[0]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", name):
        raise typer.BadParameter(f"{name} is not a node's name: letters, digits, '.', '_' and '-'.")
    return name


class EngineName(StrEnum):
    """An engine's dialect as a person types it."""

    AUTO = "auto"
    LLAMACPP = "llamacpp"
    OLLAMA = "ollama"
    OPENAI = "openai"
    SGLANG = "sglang"
    SIM = "sim"
    TEI = "tei"
    TGI = "tgi"
    VLLM = "vllm"


def node(
    join: Annotated[
        str,
        typer.Option(
            help="The mesh to join: host and port of its front door; https://host:port for TLS."
        ),
    ],
    url: Annotated[
        str, typer.Option(help="The engine's HTTP address. Not with --model-file or --serve.")
    ] = "",
    engine: Annotated[
        EngineName, typer.Option(help="The engine's dialect; auto asks the engine.")
    ] = EngineName.AUTO,
    model_file: Annotated[
        Path | None,
        typer.Option(
            help="Start llama.cpp here with this GGUF file, and stop it with the node.",
            exists=True,
            dir_okay=False,
            resolve_path=True,
        ),
    ] = None,
    serve: Annotated[
        str,
        typer.Option(help="Start the engine (--engine vllm or sim) here with this model."),
    ] = "",
    engine_arg: Annotated[
        list[str] | None,
        typer.Option(help="A further argument of an engine that is started here. Repeatable."),
    ] = None,
    tier: Annotated[
        int,
        typer.Option(
            help="Nodes of a lower tier are preferred: 0 GPUs, 1 workstations, 2 a cloud.",
            min=0,
            max=9,
        ),
    ] = 0,
    label: Annotated[
        list[str] | None,
        typer.Option(help="What policies may choose by, as NAME=VALUE. Repeatable."),
    ] = None,
    price: Annotated[
        list[str] | None,
        typer.Option(
            help="US dollars for a million tokens of prompt and answer, as MODEL=IN:OUT. "
            "Repeatable."
        ),
    ] = None,
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
    token: Annotated[
        str | None,
        typer.Option(
            envvar="INFERMESH_NODE_TOKEN",
            help="A join token from `nodes token`. Better in the environment or in a file: who "
            "lists the processes reads the arguments.",
            show_default=False,
        ),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="A file with the join token.", exists=True, dir_okay=False)
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option(
            envvar=CA_SETTING,
            help="With https: a PEM file with whom to trust. Default: whom the system trusts.",
            exists=True,
            dir_okay=False,
            resolve_path=True,
        ),
    ] = None,
    certificate: Annotated[
        bool | None,
        typer.Option(
            "--certificate/--no-certificate",
            help="Get a certificate from the mesh and be called over TLS only. Default: with "
            "https. Without it the mesh calls this node in plain text.",
            show_default=False,
        ),
    ] = None,
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Join a mesh with an engine on this machine, and stay until Ctrl-C.

    The engine's API key, where it wants one, is taken from INFERMESH_ENGINE_API_KEY.
    """
    if token_file is not None:
        token = token_file.read_text()
    token = (token or "").strip()
    # A key that was given outright counts; the mesh's own key file only where nothing else does.
    node_key = key or ("" if token else find_key(None, "node.key"))
    # Takes a moment, which other commands' help saves.
    from services.kit.channels import split_address

    labels, prices = _labels(label or []), _prices(price or [])
    dialect, url, run_model = _engine(engine, url, model_file, serve)
    target, is_tls = split_address(join)
    certificate = is_tls if certificate is None else certificate
    if certificate and key:
        raise typer.BadParameter(
            "A certificate is for one node, as a join token's key is: give --token instead, or "
            "--no-certificate.",
            param_hint="--key",
        )
    listen, advertise = addresses(listen, advertise, target)
    # Beside the mesh's own parts, which have folders in the state folder too.
    folder = (state_dir / "nodes" / node_id).absolute()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings = {
        "NODE_ID": node_id,
        "ENGINE": dialect,
        "ENGINE_URL": url,
        "MESH_ADDRESS": join,
        "NODE_KEY": node_key,
        "NODE_TOKEN": "" if key else token,
        "LABELS": json.dumps(labels),
        "TIER": str(tier),
        "PRICES": json.dumps(prices),
        "RUN_MODEL": run_model,
        "RUN_ARGS": json.dumps(engine_arg or []),
        "LISTEN": listen,
        "ADVERTISE": advertise,
        "STATE_DIR": str(folder),
        **({"MESH_CA": str(ca)} if ca else {}),
        **({"TLS_DIR": str(folder / "tls"), "NODE_CERTIFICATE": "true"} if certificate else {}),
    }
    environment = os.environ | {f"INFERMESH_{k}": v for k, v in settings.items()}
    # An answer that flows is worth waiting for; whoever cannot wait says so.
    environment.setdefault("INFERMESH_DRAIN_S", _DRAIN_S)
    # The node may start its engine while gRPC's threads run; the engine does not use gRPC.
    environment.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
    called = "" if advertise == listen else f"; the mesh calls it at {advertise}"
    typer.echo(f"{node_id} listens on {listen}{called}.", err=True)
    # The inference proxy takes this process over: signals and the exit status are then its own.
    os.execve(  # noqa: S606
        sys.executable, [sys.executable, "-m", "services.inference"], environment
    )


def _engine(
    engine: EngineName, url: str, model_file: Path | None, serve: str
) -> tuple[str, str, str]:
    """Returns the engine's dialect, its URL, and the model with which the node starts it."""
    run_model = str(model_file) if model_file else serve
    if not run_model:
        if not url:
            raise typer.BadParameter("Where is the engine?", param_hint="--url")
        return engine.value, url, ""
    if url or (model_file and serve):
        raise typer.BadParameter(
            "Give one of these alone.", param_hint="--url/--model-file/--serve"
        )
    if model_file:
        if engine not in (EngineName.AUTO, EngineName.LLAMACPP):
            raise typer.BadParameter("This is for --engine llamacpp.", param_hint="--model-file")
        engine = EngineName.LLAMACPP
    elif engine not in (EngineName.VLLM, EngineName.SIM):
        raise typer.BadParameter("Say --engine vllm or sim with it.", param_hint="--serve")
    if engine is EngineName.VLLM and shutil.which("vllm") is None:
        fail("There is no program `vllm` here. Install vLLM, or start it elsewhere and give --url.")
    return engine.value, f"http://127.0.0.1:{_free_port('127.0.0.1', _ENGINE_PORT)}", run_model


def _labels(pairs: list[str]) -> dict[str, str]:
    labels = {}
    for pair in pairs:
        name, has_value, value = pair.partition("=")
        if not has_value or not re.fullmatch(r"[a-z][a-z0-9_.-]{0,62}", name) or len(value) > 200:
            raise typer.BadParameter(f"{pair} is not NAME=VALUE.", param_hint="--label")
        labels[name] = value
    return labels


def _prices(pairs: list[str]) -> dict[str, tuple[float, float]]:
    prices = {}
    for pair in pairs:
        # A model's name may hold a colon, but no equals sign.
        found = re.fullmatch(r"([^=]+)=([0-9.]+):([0-9.]+)", pair)
        try:
            if found is None:
                raise ValueError
            prices[found[1]] = float(found[2]), float(found[3])
        except ValueError:
            raise typer.BadParameter(f"{pair} is not MODEL=IN:OUT.", param_hint="--price") from None
    return prices


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


def _free_port(host: str, first: int = _DEFAULT_PORT) -> int:
    from services.cli.ports import is_port_free

    candidates = range(first, first + _PORTS_TO_TRY)
    port = next((each for each in candidates if is_port_free(host, each)), None)
    if port is None:
        fail(f"{host} has no free port from {first} on; choose one with --listen.")
    return port


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
