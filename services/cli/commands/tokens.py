"""`infermesh nodes token`: what a machine needs to join."""

import re
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.options import DEFAULT_ADDRESS, Address, Key

if TYPE_CHECKING:
    from infermesh.auth.v1 import join_token_service_pb2 as pb

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

app = typer.Typer(help="Create a join token; list and revoke tokens.", invoke_without_command=True)


def _seconds(text: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]{0,8}[smhd]", text):
        raise typer.BadParameter(f"{text} is not a time such as 30m, 1h or 7d.")
    return text


@app.callback()
def create(
    context: typer.Context,
    expires: Annotated[
        str, typer.Option(help="How long it is valid, as 30m, 1h or 7d.", callback=_seconds)
    ] = "1h",
    uses: Annotated[
        int, typer.Option(help="How many nodes may join with it; 0 is any number.", min=0)
    ] = 1,
    name: Annotated[str, typer.Option(help="A name for people to know it by.")] = "",
    address: Address = DEFAULT_ADDRESS,
    key: Key = None,
) -> None:
    """Create a join token. Its secret is printed this once, alone on standard output."""
    if context.invoked_subcommand is not None:
        return
    from google.protobuf import duration_pb2

    from infermesh.auth.v1 import join_token_service_pb2 as pb
    from services.cli.client import TIMEOUT_S, connect

    request = pb.CreateJoinTokenRequest(
        display_name=name,
        ttl=duration_pb2.Duration(seconds=int(expires[:-1]) * _UNITS[expires[-1]]),
        max_uses=uses,
    )
    with connect(address, key) as mesh:
        made = mesh.tokens.CreateJoinToken(request, metadata=mesh.metadata, timeout=TIMEOUT_S)
    good_for = f"{uses} nodes" if uses > 1 else "one node" if uses else "any number of nodes"
    typer.echo(
        f"{made.token.token_id}, for {good_for}, until "
        f"{made.token.expire_time.ToDatetime():%Y-%m-%d %H:%M} UTC; give it to a machine as "
        "INFERMESH_NODE_TOKEN. It is not shown again:",
        err=True,
    )
    typer.echo(made.secret)


@app.command("list")
def list_tokens(address: Address = DEFAULT_ADDRESS, key: Key = None) -> None:
    """List the join tokens, newest first, those that are no good any more included."""
    from infermesh.auth.v1 import join_token_service_pb2 as pb
    from services.cli.client import TIMEOUT_S, connect
    from services.cli.tables import show

    with connect(address, key) as mesh:
        reply = mesh.tokens.ListJoinTokens(
            pb.ListJoinTokensRequest(), metadata=mesh.metadata, timeout=TIMEOUT_S
        )
    rows = [
        (
            each.token_id,
            each.display_name,
            f"{each.prefix}…",
            f"{each.create_time.ToDatetime():%Y-%m-%d %H:%M}",
            f"{each.expire_time.ToDatetime():%Y-%m-%d %H:%M}",
            f"{each.use_count} of {each.max_uses}" if each.max_uses else str(each.use_count),
            _state(each),
        )
        for each in reply.tokens
    ]
    columns = ("id", "name", "secret", "created (UTC)", "expires (UTC)", "used", "state")
    show("Join tokens", columns, rows)


@app.command()
def revoke(
    token_id: Annotated[str, typer.Argument(help="The token's id, as `nodes token list` says.")],
    address: Address = DEFAULT_ADDRESS,
    key: Key = None,
) -> None:
    """Revoke a join token; nodes that joined with it stay."""
    from infermesh.auth.v1 import join_token_service_pb2 as pb
    from services.cli.client import TIMEOUT_S, connect

    request = pb.RevokeJoinTokenRequest(token_id=token_id)
    with connect(address, key) as mesh:
        revoked = mesh.tokens.RevokeJoinToken(request, metadata=mesh.metadata, timeout=TIMEOUT_S)
    typer.echo(f"{revoked.token_id} is revoked.")


def _state(token: "pb.JoinToken") -> str:
    from datetime import UTC, datetime

    if token.HasField("revoke_time"):
        return "revoked"
    if token.expire_time.ToDatetime(UTC) <= datetime.now(UTC):
        return "expired"
    return "used up" if 0 < token.max_uses <= token.use_count else "valid"
