"""`infermesh limits`: what tenants, projects and keys may use."""

from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.options import DEFAULT_ADDRESS, Address, Key, fail

if TYPE_CHECKING:
    from infermesh.auth.v1 import limit_service_pb2 as pb

app = typer.Typer(
    help="Set, show, list and delete limits of tenants, projects, keys, and keys with a model.",
    no_args_is_help=True,
)

Tenant = Annotated[str, typer.Option(help="The tenant.")]
Project = Annotated[str, typer.Option(help="The tenant's project; with --tenant.")]
# `--key` is the key with which the command itself calls.
KeyId = Annotated[str, typer.Option("--key-id", help="The key, by its id.")]
Model = Annotated[
    str, typer.Option(help="The model, by the name that callers send; with --key-id.")
]

_COLUMNS = ("calls/min", "tokens/min", "at once", "tokens/day", "USD/month", "alerts at")


@app.command("set")
def set_limits(
    tenant: Tenant = "",
    project: Project = "",
    key_id: KeyId = "",
    model: Model = "",
    rpm: Annotated[int | None, typer.Option(help="Calls in a minute.", min=0, max=10**9)] = None,
    tpm: Annotated[int | None, typer.Option(help="Tokens in a minute.", min=0, max=10**12)] = None,
    concurrent: Annotated[
        int | None, typer.Option(help="Calls at the same time.", min=0, max=10**6)
    ] = None,
    tokens_per_day: Annotated[
        int | None, typer.Option(help="Tokens in a day of UTC.", min=0, max=10**15)
    ] = None,
    usd_per_month: Annotated[
        str | None, typer.Option(help="US dollars in a month of UTC, as in 12.50.")
    ] = None,
    alert: Annotated[
        list[int] | None,
        typer.Option(
            help="Alert at this percentage of the last two; may be repeated.", min=1, max=100
        ),
    ] = None,
    address: Address = DEFAULT_ADDRESS,
    key: Key = None,
) -> None:
    """Set all limits of one scope; what is not named is not limited."""
    from infermesh.auth.v1 import limit_service_pb2 as pb
    from services.cli.client import TIMEOUT_S, connect

    limits = pb.Limits(
        scope=_scope(tenant, project, key_id, model),
        requests_per_minute=rpm,
        tokens_per_minute=tpm,
        concurrent_requests=concurrent,
        tokens_per_day=tokens_per_day,
        usd_per_month=usd_per_month,
        alert_percents=alert or (),
    )
    if (rpm, tpm, concurrent, tokens_per_day, usd_per_month) == (None,) * 5:
        fail("Name a limit to set; `infermesh limits delete` takes all away.")
    with connect(address, key) as mesh:
        made = mesh.limits.SetLimits(
            pb.SetLimitsRequest(limits=limits), metadata=mesh.metadata, timeout=TIMEOUT_S
        )
    _show([made])


@app.command()
def get(
    tenant: Tenant = "",
    project: Project = "",
    key_id: KeyId = "",
    model: Model = "",
    address: Address = DEFAULT_ADDRESS,
    key: Key = None,
) -> None:
    """Show the limits of one scope."""
    from infermesh.auth.v1 import limit_service_pb2 as pb
    from services.cli.client import TIMEOUT_S, connect

    request = pb.GetLimitsRequest(scope=_scope(tenant, project, key_id, model))
    with connect(address, key) as mesh:
        found = mesh.limits.GetLimits(request, metadata=mesh.metadata, timeout=TIMEOUT_S)
    _show([found])


@app.command("list")
def list_limits(address: Address = DEFAULT_ADDRESS, key: Key = None) -> None:
    """List the limits of all scopes."""
    from infermesh.auth.v1 import limit_service_pb2 as pb
    from services.cli.client import TIMEOUT_S, connect

    found: list[pb.Limits] = []
    request = pb.ListLimitsRequest(page_size=1000)
    with connect(address, key) as mesh:
        while True:
            page = mesh.limits.ListLimits(request, metadata=mesh.metadata, timeout=TIMEOUT_S)
            found.extend(page.limits)
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
    _show(found)


@app.command()
def delete(
    tenant: Tenant = "",
    project: Project = "",
    key_id: KeyId = "",
    model: Model = "",
    address: Address = DEFAULT_ADDRESS,
    key: Key = None,
) -> None:
    """Take all limits from one scope."""
    from infermesh.auth.v1 import limit_service_pb2 as pb
    from services.cli.client import TIMEOUT_S, connect

    scope = _scope(tenant, project, key_id, model)
    with connect(address, key) as mesh:
        mesh.limits.DeleteLimits(
            pb.DeleteLimitsRequest(scope=scope), metadata=mesh.metadata, timeout=TIMEOUT_S
        )
    typer.echo(f"The limits of {_name(scope)} are gone.")


@app.command()
def state(
    tenant: Tenant = "",
    project: Project = "",
    key_id: KeyId = "",
    model: Model = "",
    address: Address = DEFAULT_ADDRESS,
    key: Key = None,
) -> None:
    """Show what is used of one scope's limits now."""
    from infermesh.auth.v1 import limit_service_pb2 as pb
    from services.cli.client import TIMEOUT_S, connect
    from services.cli.tables import show

    request = pb.GetLimitStateRequest(scope=_scope(tenant, project, key_id, model))
    with connect(address, key) as mesh:
        found = mesh.limits.GetLimitState(request, metadata=mesh.metadata, timeout=TIMEOUT_S)
    rows = [
        (
            each.limit,
            each.allowed,
            each.used,
            each.reserved if each.HasField("reserved") else "",
            f"{each.reset_after.ToTimedelta().total_seconds():.0f}"
            if each.HasField("reset_after")
            else "",
        )
        for each in found.uses
    ]
    columns = ("limit", "allowed", "used", "of that reserved", "free in (s)")
    show(f"Limits of {_name(found.limits.scope)}", columns, rows)


def _scope(tenant: str, project: str, key_id: str, model: str) -> "pb.LimitScope":
    from infermesh.auth.v1 import limit_service_pb2 as pb

    if bool(tenant) == bool(key_id) or (project and not tenant) or (model and not key_id):
        fail("Name a scope: --tenant, --tenant and --project, --key-id, or --key-id and --model.")
    return pb.LimitScope(tenant=tenant, project=project, key_id=key_id, model=model)


def _name(scope: "pb.LimitScope") -> str:
    parts = (scope.tenant, scope.project, scope.key_id, scope.model)
    return "/".join(part for part in parts if part)


def _show(found: "list[pb.Limits]") -> None:
    from services.cli.tables import show

    def text(limits: "pb.Limits", name: str) -> str:
        return str(getattr(limits, name)) if limits.HasField(name) else ""  # type: ignore[arg-type,unused-ignore]

    names = (
        "requests_per_minute",
        "tokens_per_minute",
        "concurrent_requests",
        "tokens_per_day",
        "usd_per_month",
    )
    rows = [
        (
            *(each.scope.tenant, each.scope.project, each.scope.key_id, each.scope.model),
            *(text(each, name) for name in names),
            " ".join(f"{percent}%" for percent in each.alert_percents),
        )
        for each in found
    ]
    show("Limits", ("tenant", "project", "key", "model", *_COLUMNS), rows)
