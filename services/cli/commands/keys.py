"""`infermesh keys`: who may call the mesh."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.options import DEFAULT_ADDRESS, Address, Key

if TYPE_CHECKING:
    from infermesh.auth.v1 import key_service_pb2

app = typer.Typer(help="Create, list and revoke API keys.", no_args_is_help=True)


class RoleName(StrEnum):
    """A role as a person types it."""

    USER = "user"
    NODE = "node"
    ADMIN = "admin"


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="A name for people to know the key by.")],
    role: Annotated[RoleName, typer.Option(help="What the key may do.")] = RoleName.USER,
    tenant: Annotated[str, typer.Option(help="The tenant that it acts for.")] = "default",
    address: Address = DEFAULT_ADDRESS,
    key: Key = None,
) -> None:
    """Create a key. Its secret is printed this once, alone on standard output."""
    from infermesh.access.v1 import access_pb2
    from infermesh.auth.v1 import key_service_pb2
    from services.cli.client import TIMEOUT_S, connect

    request = key_service_pb2.CreateKeyRequest(
        display_name=name,
        role=access_pb2.Role.Value(f"ROLE_{role.name}"),
        tenant=tenant,
    )
    with connect(address, key) as mesh:
        made = mesh.keys.CreateKey(request, metadata=mesh.metadata, timeout=TIMEOUT_S)
    typer.echo(f"{made.key.key_id} for {name}; the secret is not shown again:", err=True)
    typer.echo(made.secret)


@app.command("list")
def list_keys(address: Address = DEFAULT_ADDRESS, key: Key = None) -> None:
    """List the keys, newest first, revoked ones included."""
    from infermesh.access.v1 import access_pb2
    from infermesh.auth.v1 import key_service_pb2
    from services.cli.client import TIMEOUT_S, connect
    from services.cli.tables import show

    found: list[key_service_pb2.Key] = []
    request = key_service_pb2.ListKeysRequest(page_size=1000)
    with connect(address, key) as mesh:
        while True:
            page = mesh.keys.ListKeys(request, metadata=mesh.metadata, timeout=TIMEOUT_S)
            found.extend(page.keys)
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
    rows = [
        (
            each.key_id,
            each.display_name,
            access_pb2.Role.Name(each.role).removeprefix("ROLE_").lower(),
            each.tenant,
            f"{each.prefix}…",
            f"{each.create_time.ToDatetime():%Y-%m-%d %H:%M}",
            _state(each),
        )
        for each in found
    ]
    show("Keys", ("id", "name", "role", "tenant", "secret", "created (UTC)", "state"), rows)


def _state(key: "key_service_pb2.Key") -> str:
    from datetime import UTC, datetime

    if key.HasField("revoke_time"):
        return "revoked"
    expires = key.expire_time.ToDatetime(UTC) if key.HasField("expire_time") else None
    return "valid" if expires is None or expires > datetime.now(UTC) else "expired"


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="The key's id, as `keys list` shows it.")],
    address: Address = DEFAULT_ADDRESS,
    key: Key = None,
) -> None:
    """Revoke a key for good."""
    from infermesh.auth.v1 import key_service_pb2
    from services.cli.client import TIMEOUT_S, connect

    request = key_service_pb2.RevokeKeyRequest(key_id=key_id)
    with connect(address, key) as mesh:
        revoked = mesh.keys.RevokeKey(request, metadata=mesh.metadata, timeout=TIMEOUT_S)
    typer.echo(f"{revoked.key_id} ({revoked.display_name}) is revoked.")
