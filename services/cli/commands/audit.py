"""`infermesh audit`: who did, or was refused, what."""

from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.audit_view import COLUMNS, full_path, moment, row
from services.cli.audit_view import changes as changes_of
from services.cli.options import DEFAULT_ADDRESS, Address, Key, fail

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from infermesh.auth.v1 import audit_service_pb2 as pb
    from services.cli.client import Mesh

_MAX_PAGE = 1000

app = typer.Typer(help="Read, check and export the audit log.", no_args_is_help=True)


class KindName(StrEnum):
    """A kind of event as a person types it."""

    CALL = "call"
    OUTCOME = "outcome"
    DENIAL = "denial"
    SUPPRESSED = "suppressed"
    INFERENCE = "inference"
    CHECKPOINT = "checkpoint"
    ALERT = "alert"


_WHEN = "a time in UTC such as 2026-11-01T12:30, or how long ago, such as 2h."
Since = Annotated[
    datetime | None, typer.Option(parser=moment, help=f"Only events at or after it: {_WHEN}")
]
Until = Annotated[
    datetime | None, typer.Option(parser=moment, help=f"Only events before it: {_WHEN}")
]


@app.command("list")
def list_events(
    since: Since = None,
    until: Until = None,
    actor: Annotated[str, typer.Option(help="Only events of this key, by its id.")] = "",
    tenant: Annotated[str, typer.Option(help="Only events of this tenant.")] = "",
    rpc: Annotated[
        str,
        typer.Option(
            help="Only this RPC, as in auth.KeyService/RevokeKey; auth.KeyService/ is a whole "
            "service, auth is all of auth's."
        ),
    ] = "",
    outcome: Annotated[str, typer.Option(help="Only this outcome, as in PERMISSION_DENIED.")] = "",
    kind: Annotated[KindName | None, typer.Option(help="Only this kind of event.")] = None,
    request: Annotated[str, typer.Option(help="Only events of this request, by its id.")] = "",
    page: Annotated[str, typer.Option(help="Go on where an earlier list ended.")] = "",
    limit: Annotated[int, typer.Option(help="How many events to show.", min=1, max=100_000)] = 100,
    changes: Annotated[bool, typer.Option("--changes", help="Show what changed.")] = False,
    address: Address = DEFAULT_ADDRESS,
    key: Key = None,
) -> None:
    """List events, newest first."""
    from infermesh.auth.v1 import audit_service_pb2 as pb
    from services.cli.client import connect
    from services.cli.tables import show

    asked = pb.ListAuditEventsRequest(
        page_size=min(limit, _MAX_PAGE),
        page_token=page,
        key_id=actor,
        tenant=tenant,
        rpc=full_path(rpc),
        outcome=outcome.upper(),
        kind=pb.AuditKind.Value(f"AUDIT_KIND_{kind.name if kind else 'UNSPECIFIED'}"),
        request_id=request,
    )
    _set_times(asked, since, until)
    found: list[pb.AuditEvent] = []
    rest = ""
    with connect(address, key) as mesh:
        for events, token in _pages(mesh, asked):
            found += events
            rest = token
            if len(found) >= limit:
                break
            asked.page_size = min(limit - len(found), _MAX_PAGE)
    rows = [row(each) + ((changes_of(each),) if changes else ()) for each in found]
    show("Audit events", [*COLUMNS, *(("detail",) if changes else ())], rows)
    if rest:
        typer.echo(f"There is more: --page {rest}", err=True)


@app.command()
def verify(
    file: Annotated[
        Path | None, typer.Option(help="Check this export instead; no mesh is needed.")
    ] = None,
    anchor: Annotated[
        str,
        typer.Option(
            help="What an earlier check printed, as NUMBER:HASH; the log must still hold it."
        ),
    ] = "",
    address: Address = DEFAULT_ADDRESS,
    key: Key = None,
) -> None:
    """Check that no event was changed, moved or removed."""
    if file is not None:
        _verify_file(file, anchor)
        return
    from infermesh.auth.v1 import audit_service_pb2 as pb
    from services.cli.client import connect

    checked, asked = 0, pb.VerifyAuditLogRequest()
    with connect(address, key) as mesh:
        if anchor:
            _check_anchor(mesh, anchor)
        while True:
            answer = mesh.audit.VerifyAuditLog(asked, metadata=mesh.metadata, timeout=60)
            checked += answer.checked_count
            if answer.HasField("fault"):
                _report(answer.fault)
            if answer.complete:
                break
            asked = pb.VerifyAuditLogRequest(sequence=answer.next_sequence, hash=answer.next_hash)
    typer.echo(f"{checked} events checked; the chain holds. Its end, to keep elsewhere:")
    typer.echo(f"{answer.next_sequence}:{answer.next_hash}")


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="Where to write; one event as JSON to a line.")],
    since: Since = None,
    until: Until = None,
    address: Address = DEFAULT_ADDRESS,
    key: Key = None,
) -> None:
    """Write events to a file that `audit verify --file` can check, oldest first."""
    from google.protobuf.json_format import MessageToJson

    from infermesh.auth.v1 import audit_service_pb2 as pb
    from services.cli.client import connect

    asked = pb.ListAuditEventsRequest(page_size=1000, oldest_first=True)
    _set_times(asked, since, until)
    count = 0
    try:
        with connect(address, key) as mesh, file.open("x") as out:
            for event in _events(mesh, asked):
                out.write(MessageToJson(event, indent=None, preserving_proto_field_name=True))
                out.write("\n")
                count += 1
    except OSError as error:
        fail(f"The file cannot be written: {error}")
    typer.echo(f"{count} events are in {file}.")


def _events(mesh: "Mesh", asked: "pb.ListAuditEventsRequest") -> "Iterator[pb.AuditEvent]":
    for events, _ in _pages(mesh, asked):
        yield from events


def _pages(
    mesh: "Mesh", asked: "pb.ListAuditEventsRequest"
) -> "Iterator[tuple[Sequence[pb.AuditEvent], str]]":
    """Yields pages, each with the token of the next; the last one's is empty."""
    from services.cli.client import TIMEOUT_S

    while True:
        page = mesh.audit.ListAuditEvents(asked, metadata=mesh.metadata, timeout=TIMEOUT_S)
        yield page.events, page.next_page_token
        if not page.next_page_token:
            return
        asked.page_token = page.next_page_token


def _set_times(
    asked: "pb.ListAuditEventsRequest", since: datetime | None, until: datetime | None
) -> None:
    if since is not None:
        asked.start_time.FromDatetime(since)
    if until is not None:
        asked.end_time.FromDatetime(until)


def _parse_anchor(anchor: str) -> tuple[int, str]:
    import re

    parts = re.fullmatch(r"([1-9][0-9]{0,17}):([0-9a-f]{64})", anchor)
    if parts is None:
        fail(f"{anchor} is no NUMBER:HASH.")
    return int(parts[1]), parts[2]


def _check_anchor(mesh: "Mesh", anchor: str) -> None:
    from infermesh.auth.v1 import audit_service_pb2 as pb
    from services.cli.client import TIMEOUT_S

    sequence, hash_ = _parse_anchor(anchor)
    oldest = mesh.audit.ListAuditEvents(
        pb.ListAuditEventsRequest(page_size=1, oldest_first=True),
        metadata=mesh.metadata,
        timeout=TIMEOUT_S,
    ).events
    if oldest and oldest[0].sequence > sequence + 1:
        fail(f"Retention has removed event {sequence}: the anchor is too old to check.")
    answer = mesh.audit.VerifyAuditLog(
        pb.VerifyAuditLogRequest(sequence=sequence, hash=hash_), metadata=mesh.metadata, timeout=60
    )
    if answer.HasField("fault"):
        _report(answer.fault)


def _report(fault: "pb.AuditFault") -> None:
    from infermesh.auth.v1 import audit_service_pb2 as pb

    words = {
        pb.AUDIT_FAULT_KIND_CHANGED: "event {} was changed or moved",
        pb.AUDIT_FAULT_KIND_GAP: "events before {} are missing",
        pb.AUDIT_FAULT_KIND_CUT: "the end is missing, up to event {}",
        pb.AUDIT_FAULT_KIND_START: "the start is missing: no checkpoint says that {} was removed",
    }
    fail("The chain is broken: " + words[fault.kind].format(fault.sequence) + ".")


def _verify_file(file: Path, anchor: str) -> None:
    from google.protobuf.json_format import Parse, ParseError

    from infermesh.auth.v1 import audit_service_pb2 as pb
    from services.kit import audit_chain

    wanted = _parse_anchor(anchor) if anchor else None
    previous: pb.AuditEvent | None = None
    count, has_anchor = 0, wanted is None
    try:
        with file.open() as lines:
            for line in lines:
                event = Parse(line, pb.AuditEvent())
                if previous is not None and event.sequence != previous.sequence + 1:
                    fail(f"The chain is broken: events before {event.sequence} are missing.")
                # The first event's own hash is taken on trust, unless it is the log's first.
                before = bytes.fromhex(previous.hash) if previous else audit_chain.START
                is_known = previous is not None or event.sequence == 1
                if is_known and audit_chain.link(before, event).hex() != event.hash:
                    fail(f"The chain is broken: event {event.sequence} was changed or moved.")
                has_anchor = has_anchor or wanted == (event.sequence, event.hash)
                previous, count = event, count + 1
    except (OSError, UnicodeDecodeError, ParseError, ValueError) as error:
        fail(f"{file} is no export of the audit log: {error}")
    if not has_anchor:
        fail(f"The export does not hold the event {anchor}.")
    if previous is None:
        typer.echo("The export holds no events.")
        return
    typer.echo(f"{count} events checked; the chain holds. Its end, to keep elsewhere:")
    typer.echo(f"{previous.sequence}:{previous.hash}")
