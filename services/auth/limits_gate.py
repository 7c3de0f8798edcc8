"""Asks the limiter about calls that auth lets pass otherwise, and says how that went."""

import asyncio
import functools
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import orjson

from infermesh.auth.v1 import audit_service_pb2 as audit_pb
from services.auth import limits_replies
from services.auth.audit import Recorder
from services.auth.later import then
from services.auth.limiting.contract import Alert, Limiter, ScopeLimits, Verdict
from services.auth.limits import LimitBook, scope_of
from services.auth.reservation import Estimator, Prices, Reservation
from services.kit import headers
from services.kit.errors import MeshError

log = logging.getLogger(__name__)

Identity = tuple[str, str, str]
"""A caller's key id, tenant and role."""

GoOn = Callable[[bytes, Callable[[], None]], "bytes | asyncio.Future[bytes]"]
"""Called with the answer to a call that is admitted; returns the one to give.

What it is called with besides gives back what the call was reserved, where it is refused after all.
"""

_SHORT_S = 1.0
_MOST_SHORT = 4096


class LimitGate:
    """Reserves what a call may take, or refuses it.

    Args:
        book: All limits.
        limiter: Decides by them.
        estimator: Guesses what a call takes.
        prices: What that costs.
        recorder: Where refusals and alerts go.

    Attributes:
        book: All limits.
        estimator: Guesses what a call takes.
    """

    def __init__(
        self,
        book: LimitBook,
        limiter: Limiter,
        estimator: Estimator,
        prices: Prices,
        recorder: Recorder,
    ) -> None:
        self.book = book
        self._limiter = limiter
        self.estimator = estimator
        self._prices = prices
        self._recorder = recorder
        self._short: dict[str, float] = {}

    def is_short(self, scopes: Sequence[ScopeLimits]) -> bool:
        """Says whether one of these scopes had no room for a call a moment ago."""
        short = self._short
        if not short:
            return False
        since = time.monotonic() - _SHORT_S
        return any(short.get(each.scope, 0.0) > since for each in scopes)

    def ask(
        self,
        attributes: Any,
        identity: Identity,
        model: str,
        scopes: Sequence[ScopeLimits],
        reply: bytes,
        *,
        is_grpc: bool,
        go_on: GoOn,
    ) -> "bytes | asyncio.Future[bytes]":
        """Returns the answer to a call that has limits.

        Args:
            attributes: The attributes of Envoy's `CheckRequest`.
            identity: Who calls.
            model: The model that the call names.
            scopes: The limits that apply; at least one.
            reply: The answer without limits.
            is_grpc: Whether the caller speaks gRPC.
            go_on: Called before the call goes on.
        """
        http = attributes.request.http
        metadata = attributes.metadata_context.filter_metadata
        reservation = self.estimator.estimate(http.path, metadata, is_grpc=is_grpc)
        tokens = reservation.prompt + reservation.made
        usd_nano = self._prices.usd_nano(model, reservation)
        # Envoy gives every request an id.
        request_id = http.headers.get(headers.REQUEST_ID) or str(uuid.uuid4())
        asked = self._limiter.admit(request_id, scopes, tokens, usd_nano)

        def release() -> None:
            self._limiter.release(request_id, reached_node=False)

        def answer(verdict: Verdict) -> "bytes | asyncio.Future[bytes]":
            self.tell(verdict.alerts)
            if verdict.admitted:
                return go_on(limits_replies.admitted(reply, verdict), release)
            if verdict.refusal is not None:
                self._note_short(verdict.refusal.scope)
            error = _refusal(verdict, tokens, usd_nano)
            self._recorder.denied(attributes, error, None, identity)
            return limits_replies.refused(error, verdict, for_grpc=is_grpc)

        return then(asked, answer)

    def _note_short(self, scope: str) -> None:
        short = self._short
        if len(short) >= _MOST_SHORT:
            short.clear()
        short[scope] = time.monotonic()

    async def admit(
        self,
        request_id: str,
        model: str,
        scopes: Sequence[ScopeLimits],
        reservation: Reservation,
        reply: bytes,
    ) -> bytes:
        """Returns the answer to a call that has limits and that a service makes for a key.

        Args:
            request_id: The call's id.
            model: The model that it names.
            scopes: The limits that apply; at least one.
            reservation: What it may take.
            reply: The answer without limits.

        Raises:
            MeshError: A limit has no room, or nobody can tell.
        """
        tokens = reservation.prompt + reservation.made
        usd_nano = self._prices.usd_nano(model, reservation)
        asked = self._limiter.admit(request_id, scopes, tokens, usd_nano)
        try:
            verdict = await asyncio.shield(asked)
        except asyncio.CancelledError:
            # Who asked does not hear that it may.
            asked.add_done_callback(functools.partial(self._release, request_id))
            raise
        self.tell(verdict.alerts)
        if not verdict.admitted:
            raise _refusal(verdict, tokens, usd_nano)
        return limits_replies.admitted(reply, verdict)

    def _release(self, request_id: str, asked: "asyncio.Future[Verdict]") -> None:
        if not asked.cancelled() and asked.result().admitted:
            self._limiter.release(request_id, reached_node=False)

    def tell(self, alerts: Iterable[Alert]) -> None:
        """Says in the audit log and in the log which percentages of limits were passed."""
        for alert in alerts:
            said = {"limit": alert.limit, "percent": alert.percent, "period": alert.period}
            log.warning("a limit's alert is passed", extra={"scope": alert.scope, **said})
            event = self._recorder.event(audit_pb.AUDIT_KIND_ALERT)
            scope = scope_of(alert.scope)
            event.tenant, event.key_id, event.resource = scope.tenant, scope.key_id, alert.scope
            event.outcome = "OK"
            event.after = orjson.dumps(said).decode()
            self._recorder.keep(event, must=True)


def _refusal(verdict: Verdict, tokens: int, usd_nano: int) -> MeshError:
    if verdict.refusal is None:
        return limits_replies.unavailable()
    return limits_replies.refusal_error(verdict.refusal, tokens, usd_nano)
