"""Makes audit events of calls that ended, and hands them to a spool.

A service that changes things tells of it so; auth tells of more (`services.auth.audit`).
"""

import logging
import os
import time
from collections.abc import Callable, Mapping

from infermesh.auth.v1 import audit_service_pb2 as pb
from infermesh.errors.v1 import errors_pb2
from services.kit import headers
from services.kit.errors import MeshError

log = logging.getLogger(__name__)

Append = Callable[[bytes, bool], None]
"""Keeps an event, which is serialized; the second argument says whether it must not be missing.

Raises:
    OSError: It cannot be written.
"""

MAX_ID_CHARS = 64
_MAX_RESOURCE_CHARS = 300
_ERROR_INTERVAL_S = 10.0


class OutcomeRecorder:
    """Tells of how calls ended.

    Args:
        append: Where the events go.
        clock: A monotonic clock in seconds.
        now_us: The time in microseconds since 1970.
        has_room: Whether `append` has room for an event that must not be missing.
    """

    def __init__(
        self,
        append: Append,
        clock: Callable[[], float] = time.monotonic,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        has_room: Callable[[], bool] = lambda: True,
    ) -> None:
        self._append = append
        self._clock = clock
        self._now_us = now_us
        self._has_room = has_room
        self._next_error = float("-inf")

    def check_room(self) -> None:
        """Checks that a change can be told of, before it is made.

        Raises:
            MeshError: `STORE_UNAVAILABLE`: too much waits to be sent already.
        """
        if not self._has_room():
            raise cannot_be_written()

    def outcome(
        self,
        rpc: str,
        metadata: Mapping[str, str],
        outcome: str,
        *,
        resource: str = "",
        before: str = "",
        after: str = "",
    ) -> None:
        """Writes down how a call ended.

        Args:
            rpc: The RPC's path.
            metadata: What the call carries: the caller's identity, and the request's id.
            outcome: `OK` or the name of a gRPC status.
            resource: The id of what the call was about.
            before: The resource before the change, as JSON without secrets.
            after: The resource after it.
        """
        event = self.event(pb.AUDIT_KIND_OUTCOME)
        event.key_id = clean(metadata.get(headers.KEY_ID, ""))
        event.tenant = clean(metadata.get(headers.TENANT, ""))
        event.role = clean(metadata.get(headers.ROLE, ""))
        event.request_id = clean(metadata.get(headers.REQUEST_ID, ""))
        event.rpc = rpc
        event.resource = clean(resource, _MAX_RESOURCE_CHARS)
        event.outcome = outcome
        event.before, event.after = before.replace("\0", ""), after.replace("\0", "")
        # The change is made; that the log lacks it is said in the service's own log.
        self.keep(event, must=True)

    def event(self, kind: "pb.AuditKind.ValueType") -> pb.AuditEvent:
        """Returns a new event of now."""
        event = pb.AuditEvent(event_id=os.urandom(16).hex(), kind=kind, count=1)
        event.time.FromMicroseconds(self._now_us())
        return event

    def keep(self, event: pb.AuditEvent, *, must: bool) -> bool:
        """Hands an event to the spool; says whether it took it."""
        try:
            self._append(event.SerializeToString(), must)
        except OSError as error:
            # What fails once fails a thousand times a second.
            if self._clock() >= self._next_error:
                self._next_error = self._clock() + _ERROR_INTERVAL_S
                log.error("the audit log cannot be written", extra={"error": repr(error)})
            return False
        return True


def cannot_be_written() -> MeshError:
    """Returns the error for an administrative call that the log could not tell of."""
    return MeshError(
        errors_pb2.ERROR_REASON_STORE_UNAVAILABLE,
        "The audit log cannot be written, so that administrative calls have to wait.",
    )


def clean(text: str, length: int = MAX_ID_CHARS) -> str:
    """Returns a text as PostgreSQL takes it, without NUL, and no longer than that."""
    return text.replace("\0", "")[:length]
