"""How the events of the audit log are chained; docs/audit.md tells it for readers of exports.

    hash(n) = SHA-256(hash(n - 1) ‖ form(n))        hash(0) = 32 zero bytes

`form` is a JSON array, in UTF-8 and without spaces, of the event's fields but `hash` in the order
of their numbers, the time as microseconds since 1970 and the kind as its number.
"""

import hashlib

import orjson

from infermesh.auth.v1 import audit_service_pb2 as pb

START = bytes(32)
"""The hash before the first event."""


def link(previous: bytes, event: pb.AuditEvent) -> bytes:
    """Returns the hash of an event, 32 bytes, from the hash of the event before it."""
    return hashlib.sha256(previous + form(event)).digest()


def form(event: pb.AuditEvent) -> bytes:
    """Returns the bytes that stand for an event in its hash."""
    return orjson.dumps(
        (
            event.sequence,
            event.event_id,
            event.time.ToMicroseconds(),
            event.kind,
            event.key_id,
            event.tenant,
            event.role,
            event.presented,
            event.source,
            event.rpc,
            event.resource,
            event.request_id,
            event.outcome,
            event.before,
            event.after,
            event.count,
        )
    )
