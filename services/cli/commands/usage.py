"""`infermesh usage`: what the mesh was used for, and what that cost."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.options import DEFAULT_ADDRESS, Address, Key, fail

if TYPE_CHECKING:
    from infermesh.metrics.v1 import usage_service_pb2 as pb

# What sums are by, as a person types it, and which columns that fills.
_DIMENSIONS = {
    "day": ("day",),
    "tenant": ("tenant",),
    "project": ("tenant", "project"),
    "key": ("tenant", "project", "key_id"),
    "model": ("model",),
}
_ORDER = ("day", "tenant", "project", "key_id", "model")
_TIMEOUT_S = 60.0


def usage(
    by: Annotated[
        str, typer.Option(help="What to sum by: any of day, tenant, project, key, model.")
    ] = "tenant,model",
    since: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="From this day on, UTC.")
    ] = None,
    until: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Before this day, UTC.")
    ] = None,
    tenant: Annotated[str, typer.Option(help="Only this tenant.")] = "",
    project: Annotated[str, typer.Option(help="Only this project.")] = "",
    key_id: Annotated[str, typer.Option(help="Only this key, by its id.")] = "",
    model: Annotated[str, typer.Option(help="Only this model.")] = "",
    csv: Annotated[
        Path | None, typer.Option(help="Write the sums to this file, as CSV; - is the terminal.")
    ] = None,
    address: Address = DEFAULT_ADDRESS,
    key: Key = None,
) -> None:
    """Sum what was used, and what it cost where that is known."""
    from infermesh.metrics.v1 import usage_service_pb2 as pb
    from services.cli.client import connect
    from services.cli.tables import show

    dimensions = _parse(by)
    asked = pb.GetUsageTotalsRequest(
        tenant=tenant,
        project=project,
        key_id=key_id,
        model=model,
        group_by=(pb.UsageDimension.Value(f"USAGE_DIMENSION_{d.upper()}") for d in dimensions),
    )
    if since is not None:
        asked.start_time.FromDatetime(since)
    if until is not None:
        asked.end_time.FromDatetime(until)
    with connect(address, key) as mesh:
        if csv is not None:
            body = mesh.usage.ExportUsage(asked, metadata=mesh.metadata, timeout=_TIMEOUT_S)
            _write(csv, body.data)
            return
        totals = mesh.usage.GetUsageTotals(asked, metadata=mesh.metadata, timeout=_TIMEOUT_S).totals
    filled = {column for each in dimensions for column in _DIMENSIONS[each]}
    columns = [column for column in _ORDER if column in filled]
    show(
        "Usage",
        (
            *("key" if column == "key_id" else column for column in columns),
            *("requests", "failed", "prompt", "cached", "made", "US dollars", "cost unknown"),
        ),
        [(*(getattr(each, column) for column in columns), *_sums(each)) for each in totals],
    )


def _parse(by: str) -> list[str]:
    dimensions = list(dict.fromkeys(filter(None, (each.strip() for each in by.split(",")))))
    for each in dimensions:
        if each not in _DIMENSIONS:
            fail(f"{each}: sums are by {', '.join(_DIMENSIONS)}.")
    if not dimensions:
        fail(f"Say what to sum by: {', '.join(_DIMENSIONS)}.")
    return dimensions


def _sums(total: "pb.UsageTotal") -> tuple[str, ...]:
    return (
        str(total.request_count),
        str(total.failed_count),
        str(total.prompt_tokens),
        str(total.cached_tokens),
        str(total.completion_tokens),
        total.cost_usd if total.HasField("cost_usd") else "unknown",
        str(total.unpriced_count),
    )


def _write(file: Path, data: bytes) -> None:
    if str(file) == "-":
        typer.echo(data, nl=False)
        return
    try:
        file.write_bytes(data)
    except OSError as error:
        fail(f"The file cannot be written: {error}")
    typer.echo(f"The sums are in {file}.")
