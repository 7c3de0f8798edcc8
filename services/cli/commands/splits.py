"""`infermesh splits`: aliases that stand for several models."""

from enum import StrEnum
from typing import Annotated

import typer

from services.cli.commands.policies import pairs
from services.cli.options import DEFAULT_ADDRESS, Address, Key, fail

app = typer.Typer(help="Share the calls of an alias among models.", no_args_is_help=True)

Alias = Annotated[str, typer.Argument(help="The name that callers send as model.")]


class StickyBy(StrEnum):
    """By what a caller keeps its target, as a person types it."""

    NONE = "none"
    KEY = "key"
    USER = "user"
    SESSION = "session"


@app.command("list")
def list_splits(address: Address = DEFAULT_ADDRESS, key: Key = None) -> None:
    """List the splits with their counts."""
    from infermesh.routing.v1 import split_service_pb2 as pb
    from services.cli.client import TIMEOUT_S, connect
    from services.cli.tables import show

    with connect(address, key) as mesh:
        splits = mesh.splits.ListSplits(
            pb.ListSplitsRequest(), metadata=mesh.metadata, timeout=TIMEOUT_S
        ).splits
    rows = []
    for split in splits:
        total = sum(target.weight for target in split.targets)
        sticky = pb.Stickiness.Name(split.sticky_by).removeprefix("STICKINESS_").lower()
        for target in split.targets:
            share = f"{target.weight / total:.1%}"
            rows.append(
                (
                    split.alias,
                    target.model,
                    share,
                    str(target.calls),
                    "" if sticky in ("unspecified", "none") else sticky,
                )
            )
    show("Splits", ("alias", "model", "share", "calls", "sticky by"), rows)


@app.command("set")
def set_split(
    alias: Alias,
    targets: Annotated[list[str], typer.Argument(help="Models and weights, as in v1=90 v2=10.")],
    sticky_by: Annotated[
        StickyBy, typer.Option(help="By what a caller keeps its target.")
    ] = StickyBy.NONE,
    address: Address = DEFAULT_ADDRESS,
    key: Key = None,
) -> None:
    """Create a split, or replace the one of that alias. It holds from the next call on."""
    from infermesh.routing.v1 import split_service_pb2 as pb
    from services.cli.client import TIMEOUT_S, connect

    split = pb.Split(alias=alias, sticky_by=pb.Stickiness.Value(f"STICKINESS_{sticky_by.name}"))
    for model, weight in pairs(targets):
        if not weight.isdecimal() or int(weight) > 1_000_000:
            fail(f"{model}={weight}: the weight must be 0 to 1000000.")
        split.targets.add(model=model, weight=int(weight))
    with connect(address, key) as mesh:
        known = mesh.splits.ListSplits(
            pb.ListSplitsRequest(), metadata=mesh.metadata, timeout=TIMEOUT_S
        ).splits
        if any(each.alias == alias for each in known):
            mesh.splits.UpdateSplit(
                pb.UpdateSplitRequest(split=split), metadata=mesh.metadata, timeout=TIMEOUT_S
            )
        else:
            mesh.splits.CreateSplit(
                pb.CreateSplitRequest(split=split), metadata=mesh.metadata, timeout=TIMEOUT_S
            )
    typer.echo(f"The alias {alias} is set.")


@app.command()
def delete(alias: Alias, address: Address = DEFAULT_ADDRESS, key: Key = None) -> None:
    """Delete a split and its counts."""
    from infermesh.routing.v1 import split_service_pb2 as pb
    from services.cli.client import TIMEOUT_S, connect

    with connect(address, key) as mesh:
        mesh.splits.DeleteSplit(
            pb.DeleteSplitRequest(alias=alias), metadata=mesh.metadata, timeout=TIMEOUT_S
        )
    typer.echo(f"The alias {alias} is deleted.")
