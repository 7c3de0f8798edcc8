"""`infermesh certs`: the mesh's authority, and certificates for its parts and its front door."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.options import STATE_DIR, fail

if TYPE_CHECKING:
    from services.kit.certificate_reading import Shown

app = typer.Typer(
    help="Make the mesh's authority and its certificates, renew them, and see what they say.",
    no_args_is_help=True,
)

Folder = Annotated[Path, typer.Option("--dir", help="The folder of the certificates.")]

_FOLDER = STATE_DIR / "tls"
_KEEP_S = 60.0
_PARTS = ("auth", "registry", "routing", "embeddings", "metrics", "jobs")


@app.command()
def init(folder: Folder = _FOLDER) -> None:
    """Make the authority, good for ten years; one that is there stays."""
    from services.cli.certs import Certs, CertsError

    certs = Certs(folder)
    try:
        made = certs.init()
    except CertsError as error:
        fail(str(error))
    typer.echo(f"{'Made' if made else 'Found'} the authority in {certs.ca_dir}.")
    typer.echo(f"Callers of the front door are given {certs.ca_file}.")


@app.command()
def issue(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="front, envoy, service/NAME or node/ID.", show_default=False),
    ] = None,
    host: Annotated[
        list[str] | None,
        typer.Option(help="For front: a name or address by which callers reach it. Repeatable."),
    ] = None,
    life: Annotated[str, typer.Option(help="How long they are good, as 24h or 90d.")] = "24h",
    services: Annotated[
        bool, typer.Option("--services", help="Those of Envoy and of all services too.")
    ] = False,
    folder: Folder = _FOLDER,
) -> None:
    """Make certificates, each with a key of its own, in folders of these names."""
    from services.cli.certs import FRONT, Certs, CertsError
    from services.cli.durations import seconds_of

    wanted = list(names or ())
    if services:
        wanted += ["envoy", *(f"service/{name}" for name in _PARTS)]
    if not wanted:
        raise typer.BadParameter("Say for whom.", param_hint="NAMES")
    if FRONT in wanted and not host:
        raise typer.BadParameter("The front door's certificate names a host.", param_hint="--host")
    certs, length = Certs(folder), timedelta(seconds=seconds_of(life))
    if length < timedelta(minutes=1):
        raise typer.BadParameter("A minute is the least.", param_hint="--life")
    try:
        for name in wanted:
            shown = (
                certs.issue_front(host or (), length)
                if name == FRONT
                else certs.issue(name, length)
            )
            typer.echo(f"{name}: good until {_moment(shown.end)}, in {certs.folder(name)}")
    except CertsError as error:
        fail(str(error))


@app.command()
def renew(
    everything: Annotated[
        bool, typer.Option("--all", help="Those too that are good for long yet.")
    ] = False,
    folder: Folder = _FOLDER,
) -> None:
    """Renew the certificates that have used up two thirds of their life. Nothing is restarted."""
    from services.cli.certs import Certs, CertsError

    try:
        renewed = Certs(folder).renew(everything=everything)
    except CertsError as error:
        fail(str(error))
    for leaf in renewed:
        typer.echo(f"{leaf.name}: good until {_moment(leaf.shown.end)}")
    if not renewed:
        typer.echo("None is due.")


@app.command()
def keep(
    host: Annotated[
        list[str],
        typer.Option(help="A name or address by which callers reach the front door. Repeatable."),
    ],
    folder: Folder = _FOLDER,
) -> None:
    """Make what Envoy and all services need, and renew what is due, until Ctrl-C."""
    import time

    from services.cli.certs import FRONT, Certs, CertsError

    certs, failed = Certs(folder), ""
    wanted = ("envoy", *(f"service/{name}" for name in _PARTS))
    while True:
        try:
            certs.init()
            for name in wanted:
                certs.ensure(name)
            # Last: once it is there, all are.
            certs.ensure(FRONT, host)
            for leaf in certs.renew():
                typer.echo(f"{leaf.name}: good until {_moment(leaf.shown.end)}")
            failed = ""
        except CertsError as error:
            if str(error) != failed:
                typer.secho(str(error), err=True, fg="red")
            failed = str(error)
        time.sleep(_KEEP_S)


@app.command()
def show(
    file: Annotated[
        Path | None,
        typer.Argument(help="A certificate; without it all in the folder.", show_default=False),
    ] = None,
    folder: Folder = _FOLDER,
) -> None:
    """Show certificates: for whom, until when, and which serial number."""
    from rich.console import Console

    from services.cli.certs import Certs, CertsError
    from services.cli.tables import table
    from services.kit.certificate_reading import CertificateError, read

    try:
        if file is not None:
            shown = read(file.read_bytes())
            rows = [_row(shown.name or "-", shown)]
        else:
            certs = Certs(folder)
            leaves = [certs.authority(), *certs.leaves()]
            rows = [_row(leaf.name, leaf.shown) for leaf in leaves]
    except (CertsError, OSError, CertificateError) as error:
        fail(str(error))
    Console(highlight=False).print(
        table("Certificates", ("name", "hosts", "until", "left", "serial"), rows)
    )


def _row(name: str, shown: "Shown") -> tuple[str, ...]:
    hosts = "" if shown.name else ", ".join(shown.hosts)
    return name, hosts, _moment(shown.end), _left(shown), shown.serial[:12]


def _moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _left(shown: "Shown") -> str:
    left = shown.end - datetime.now(UTC)
    if left <= timedelta(0):
        return "expired"
    if left >= timedelta(days=2):
        return f"{left / timedelta(days=1):.0f} d"
    return f"{left.total_seconds() / 3600:.1f} h"
