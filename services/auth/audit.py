"""Writes down who was refused when a machine tried to get into the mesh."""

import logging
import time
from collections.abc import Callable
from typing import Any

from services.kit.errors import MeshError

log = logging.getLogger("services.auth.audit")

PATHS = frozenset(
    {
        "/infermesh.registry.v1.NodeService/AttachNode",
        "/infermesh.auth.v1.JoinTokenService/RedeemJoinToken",
    }
)
"""The RPCs by which a machine joins."""

_RECORDS_PER_MINUTE = 60
_PREFIX_CHARS = 7


class JoinAudit:
    """Logs refused joins, at most 60 a minute: a flood must not fill the disk.

    Args:
        clock: A monotonic clock in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._minute = -1
        self._records = 0
        self._suppressed = 0

    def refused(self, attributes: Any, secret: str | None, error: MeshError) -> None:
        """Writes one refusal down.

        Args:
            attributes: The attributes of Envoy's `CheckRequest`.
            secret: What the machine presented; only its first characters are written.
            error: What it was told.
        """
        minute = int(self._clock() / 60)
        if minute != self._minute:
            self._minute, self._records = minute, 0
        if self._records == _RECORDS_PER_MINUTE:
            self._suppressed += 1
            return
        self._records += 1
        http = attributes.request.http
        log.warning(
            "a join was refused",
            extra={
                "audit": True,
                "who": "" if secret is None else f"{secret[:_PREFIX_CHARS]}…",
                "where": attributes.source.address.socket_address.address,
                "what": http.path,
                "reason": error.reason_name,
                "request_id": http.headers.get("x-request-id", ""),
                "suppressed_before": self._suppressed,
            },
        )
        self._suppressed = 0
