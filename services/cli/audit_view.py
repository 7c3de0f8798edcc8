"""How the audit log is asked for and shown in the terminal."""

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import typer

from services.cli.durations import seconds_of

if TYPE_CHECKING:
    from infermesh.auth.v1 import audit_service_pb2 as pb

COLUMNS = ("number", "time (UTC)", "kind", "who", "from", "what", "resource", "outcome")

_FORMATS = ("%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S")
_PATH = re.compile(r"/infermesh\.([a-z]+)\.v1\.(.*)")
_SHORT = re.compile(r"([a-z]+)(\.[A-Za-z/]*)?")
_MAX_VALUE_CHARS = 80


def moment(text: str) -> datetime:
    """Returns the time, in UTC, that a person means with `2026-11-01`, `2026-11-01T12:30` or `2h`.

    Raises:
        typer.BadParameter: It is none.
    """
    for form in _FORMATS:
        try:
            return datetime.strptime(text, form).replace(tzinfo=UTC)
        except ValueError:
            continue
    try:
        return datetime.now(UTC) - timedelta(seconds=seconds_of(text))
    except (typer.BadParameter, OverflowError):
        raise typer.BadParameter(
            f"{text} is no time such as 2026-11-01, 2026-11-01T12:30 or 2h ago, written 2h."
        ) from None


def full_path(what: str) -> str:
    """Returns the path that a person means with `auth.KeyService/RevokeKey`, `auth.KeyService/`
    or `auth`; what begins with a slash stays as it is."""
    found = _SHORT.fullmatch(what)
    return what if found is None else f"/infermesh.{found[1]}.v1{found[2] or '.'}"


def row(event: "pb.AuditEvent") -> tuple[str, ...]:
    """Returns the cells of an event."""
    from infermesh.auth.v1 import audit_service_pb2 as pb

    path = _PATH.fullmatch(event.rpc)
    who = " ".join(filter(None, (event.key_id, event.tenant, event.role)))
    return (
        str(event.sequence),
        f"{event.time.ToDatetime():%Y-%m-%d %H:%M:%S}",
        pb.AuditKind.Name(event.kind).removeprefix("AUDIT_KIND_").lower(),
        who or (f"{event.presented}…" if event.presented else ""),
        event.source,
        f"{path[1]}.{path[2]}" if path else event.rpc,
        f"{event.count} denials" if event.count > 1 else event.resource,
        event.outcome,
    )


def changes(event: "pb.AuditEvent") -> str:
    """Returns what an event tells of a change: `field: before → after`, one after the other."""
    import orjson

    try:
        before = dict(_flat(orjson.loads(event.before or b"{}")))
        after = dict(_flat(orjson.loads(event.after or b"{}")))
    except orjson.JSONDecodeError:
        return event.after
    told = []
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if old == new:
            continue
        # Of what was made or removed there is one side only.
        told.append(f"{name}: {_shown(old)} → {_shown(new)}" if event.before else _one(name, new))
    return "; ".join(told)


def _one(name: str, value: Any) -> str:
    return f"{name}: {_shown(value)}"


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and (value or not name):
        for key, each in value.items():
            yield from _flat(each, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _shown(value: Any) -> str:
    import orjson

    if value is None:
        return "—"
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    return text if len(text) <= _MAX_VALUE_CHARS else f"{text[:_MAX_VALUE_CHARS]}…"
