"""Writes down who did, or was refused, what.

    decision ── called, denied ──┐
    servicers ── outcome ────────┼─► spool (a file) ─► chain in PostgreSQL
    every 10 s ─ suppressed ─────┘

An event is in the spool's file before its call goes on, so that it survives the process.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

import orjson

from infermesh.auth.v1 import audit_service_pb2 as pb
from services.auth.audit_limit import DenialLimit
from services.auth.audit_policy import JOINS
from services.kit import headers
from services.kit.audit_events import (
    Append,
    OutcomeRecorder,
    cannot_be_written,
    clean,
)
from services.kit.errors import MeshError

log = logging.getLogger("services.auth.audit")

_PREFIX_CHARS = 7
_MIN_SHOWN_CHARS = 24
_MAX_PATH, _MAX_RESOURCE = 200, 300
_ORIGINAL_PATH = "x-envoy-original-path"


class Recorder(OutcomeRecorder):
    """Makes events of what happens and hands them to the spool.

    Args:
        append: Where the events go.
        clock: A monotonic clock in seconds.
        now_us: The time in microseconds since 1970.
    """

    def __init__(
        self,
        append: Append,
        clock: Callable[[], float] = time.monotonic,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        super().__init__(append, clock, now_us)
        # Apart, so that a flood of bad keys does not hide who tries to join.
        self._limit = DenialLimit(clock)
        self._join_limit = DenialLimit(clock)

    def called(
        self, attributes: Any, key_id: str, tenant: str, role: str, model: str, is_inference: bool
    ) -> None:
        """Writes down that a call may go on.

        Args:
            attributes: The attributes of Envoy's `CheckRequest`.
            key_id: The caller's key.
            tenant: The caller's tenant.
            role: The caller's role, by name.
            model: The model that the call names; may be empty.
            is_inference: Whether it is no administrative call.

        Raises:
            MeshError: `STORE_UNAVAILABLE`, an administrative call that cannot be written down.
        """
        event = self.event(pb.AUDIT_KIND_INFERENCE if is_inference else pb.AUDIT_KIND_CALL)
        _fill(event, attributes)
        event.key_id, event.tenant, event.role = key_id, tenant, role
        event.resource = model or event.resource
        event.outcome = "OK"
        # A node that joins, and inference, go on: a full disk here is no reason to stop the mesh.
        must = not is_inference and event.rpc not in JOINS
        if not self.keep(event, must=must) and must:
            raise cannot_be_written()

    def denied(
        self,
        attributes: Any,
        error: MeshError,
        secret: str | None,
        identity: tuple[str, str, str] = ("", "", ""),
    ) -> None:
        """Writes down, or counts, that a call was refused.

        Args:
            attributes: The attributes of Envoy's `CheckRequest`; None where it does not parse.
            error: What the caller was told.
            secret: What the caller presented; of one that is no key's the first characters are
                written, of one that is a key's nothing.
            identity: The caller's key id, tenant and role, where the key is valid.
        """
        source = path = ""
        if attributes is not None:
            source = attributes.source.address.socket_address.address
            path = attributes.request.http.path
        is_join = path in JOINS
        limit = self._join_limit if is_join else self._limit
        if not limit.admit(source):
            return
        event = self.event(pb.AUDIT_KIND_DENIAL)
        if attributes is not None:
            _fill(event, attributes)
        event.key_id, event.tenant, event.role = identity
        shown = _prefix(secret)
        if not event.key_id:
            event.presented = clean(shown, _PREFIX_CHARS)
        event.outcome = error.reason_name
        if not self.keep(event, must=False):
            limit.suppress(source)
        if is_join:
            log.warning(
                "a join was refused",
                extra={
                    "audit": True,
                    "who": f"{shown}…" if shown else "",
                    "where": source,
                    "what": path,
                    "reason": error.reason_name,
                    "request_id": event.request_id,
                },
            )

    def summarise(self) -> None:
        """Writes down how many denials were only counted, where there are any."""
        for limit, rpc in ((self._limit, ""), (self._join_limit, "join")):
            count, sources = limit.take_suppressed()
            if count:
                event = self.event(pb.AUDIT_KIND_SUPPRESSED)
                event.resource = rpc
                event.count = count
                named = {clean(source): number for source, number in sources.items()}
                event.after = orjson.dumps({"busiest_sources": named}).decode()
                self.keep(event, must=True)

    def checkpoint(self) -> pb.AuditEvent:
        """Returns the event that says what retention removed; the store fills in what."""
        return self.event(pb.AUDIT_KIND_CHECKPOINT)


def _fill(event: pb.AuditEvent, attributes: Any) -> None:
    http = attributes.request.http
    event.source = clean(attributes.source.address.socket_address.address)
    event.rpc = clean(http.path.partition("?")[0], _MAX_PATH)
    event.resource = clean(http.headers.get(_ORIGINAL_PATH, "").partition("?")[0], _MAX_RESOURCE)
    event.request_id = clean(http.headers.get(headers.REQUEST_ID, ""))


def _prefix(secret: str | None) -> str:
    # Of a short one, a password say, the first characters would be most of it.
    return secret[:_PREFIX_CHARS] if secret and len(secret) >= _MIN_SHOWN_CHARS else ""
