"""Serves `infermesh.auth.v1.LimitService`."""

import base64
import binascii
import logging
from decimal import Decimal
from typing import Any

import grpc
import orjson

from infermesh.auth.v1 import limit_service_pb2 as pb
from infermesh.auth.v1 import limit_service_pb2_grpc
from infermesh.errors.v1 import errors_pb2
from services.auth import errors
from services.auth.keys import utc_now
from services.auth.limiting import contract
from services.auth.limiting.contract import (
    Limiter,
    LimiterAwayError,
    Mode,
    Period,
    TotalsSource,
    TotalsUnknownError,
    Use,
    Wanted,
)
from services.auth.limiting.metrics_totals import scope_message, scope_string, total_of
from services.auth.limits import LimitBook, Limits, LimitStore, Scope
from services.auth.limits_gate import LimitGate
from services.auth.limits_replies import decimal_text, usd_text
from services.kit.errors import MeshError

log = logging.getLogger(__name__)

_Context = grpc.aio.ServicerContext[Any, Any]

_DEFAULT_PAGE_SIZE = 100
_COUNTS = (
    contract.REQUESTS_PER_MINUTE,
    contract.TOKENS_PER_MINUTE,
    contract.CONCURRENT_REQUESTS,
    contract.TOKENS_PER_DAY,
)
_MODES = {
    Mode.REDIS: pb.LIMITER_MODE_REDIS,
    Mode.LOCAL: pb.LIMITER_MODE_LOCAL,
    Mode.REFUSE: pb.LIMITER_MODE_REFUSE,
}


class LimitServicer(limit_service_pb2_grpc.LimitServiceServicer):
    """Translates between the contract and the store, the book and the limiter.

    Args:
        store: Where limits are kept.
        book: The limits that this replica decides by.
        limiter: What is used of them; None where auth has no Redis, and nothing can be limited.
        gate: Told of alerts; None with `limiter`.
        totals: Knows the sums of the ledger; None where auth knows no metrics service.
    """

    def __init__(
        self,
        store: LimitStore,
        book: LimitBook,
        limiter: Limiter | None,
        gate: LimitGate | None,
        totals: TotalsSource | None,
    ) -> None:
        self._store = store
        self._book = book
        self._limiter = limiter
        self._gate = gate
        self._totals = totals

    async def SetLimits(self, request: pb.SetLimitsRequest, context: _Context) -> pb.Limits:
        """Sets the limits of a scope; this replica decides by them before it answers."""
        limits = _from_proto(request.limits)
        if self._limiter is None:
            raise errors.precondition(
                "Limits need Redis: set INFERMESH_REDIS_URL for the auth service."
            )
        if limits.needs_ledger and self._totals is None:
            raise errors.precondition(
                "Limits by day or month need the metrics service: "
                "set INFERMESH_METRICS_ADDRESS for the auth service."
            )
        async with self._book.changing:
            await self._store.put(limits)
            self._book.apply({limits.scope: limits})
        await self._refresh(limits)
        return _to_proto(limits)

    async def GetLimits(self, request: pb.GetLimitsRequest, context: _Context) -> pb.Limits:
        """Returns the limits of a scope."""
        return _to_proto(await self._find(request.scope))

    async def ListLimits(
        self, request: pb.ListLimitsRequest, context: _Context
    ) -> pb.ListLimitsResponse:
        """Returns a page of limits."""
        size = request.page_size or _DEFAULT_PAGE_SIZE
        after = _read_token(request.page_token) if request.page_token else None
        found = await self._store.page(size + 1, after)
        return pb.ListLimitsResponse(
            limits=[_to_proto(each) for each in found[:size]],
            next_page_token=_write_token(found[size - 1].scope) if len(found) > size else "",
        )

    async def DeleteLimits(self, request: pb.DeleteLimitsRequest, context: _Context) -> pb.Limits:
        """Takes all limits from a scope."""
        scope = _scope(request.scope)
        async with self._book.changing:
            gone = await self._store.delete(scope)
            self._book.apply({scope: None})
        if gone is None:
            raise errors.limits_not_found(scope.id)
        return _to_proto(gone)

    async def GetLimitState(
        self, request: pb.GetLimitStateRequest, context: _Context
    ) -> pb.LimitState:
        """Returns what is used of a scope's limits."""
        limits = await self._find(request.scope)
        if self._limiter is None:
            raise _away()
        try:
            uses = await self._limiter.state(limits.for_limiter())
        except LimiterAwayError:
            raise _away() from None
        return pb.LimitState(limits=_to_proto(limits), uses=[_use(each) for each in uses])

    async def SettleUsage(
        self, request: pb.SettleUsageRequest, context: _Context
    ) -> pb.SettleUsageResponse:
        """Takes in what calls took; answers when it is in Redis."""
        if self._limiter is None or self._gate is None:
            return pb.SettleUsageResponse()  # Nothing is limited, so that nothing is to be settled.
        settlements = [
            contract.Settlement(each.request_id, each.tokens if each.HasField("tokens") else None)
            for each in request.settlements
        ]
        try:
            alerts = await self._limiter.settle(
                settlements,
                [total_of(each) for each in request.totals if self._is_limited(each)],
                self._book.find,
            )
        except LimiterAwayError:
            raise _away() from None
        self._gate.tell(alerts)
        return pb.SettleUsageResponse()

    async def GetLimiterStatus(
        self, request: pb.GetLimiterStatusRequest, context: _Context
    ) -> pb.LimiterStatus:
        """Says how this replica limits."""
        if self._limiter is None:
            return pb.LimiterStatus()
        status = self._limiter.status()
        message = pb.LimiterStatus(
            mode=_MODES[status.mode],
            local_admitted_count=status.local_admitted,
            unavailable_refused_count=status.unavailable_refused,
            refused_counts=status.refused,
            alerts=[
                pb.LimitAlert(
                    scope=scope_message(alert.scope), limit=alert.limit, percent=alert.percent
                )
                for alert in status.alerts
            ],
        )
        message.since.FromNanoseconds(int(status.since * 1e9))
        return message

    def _is_limited(self, total: pb.ScopeTotal) -> bool:
        """Says whether anything is decided by a total; of eight that a call changes mostly none is.

        A limit that is set later brings its total along.
        """
        limits = self._book.find(scope_string(total.scope))
        if limits is None:
            return False
        is_day = total.period == pb.LIMIT_PERIOD_DAY
        return (limits.tokens_per_day if is_day else limits.usd_per_month) is not None

    async def _refresh(self, limits: Limits) -> None:
        """Brings what the ledger has of a scope to Redis.

        A sum of an earlier limit may still be there, and calls since then were not settled.
        """
        if self._totals is None or self._limiter is None or not limits.needs_ledger:
            return
        today = utc_now().date()
        scope = limits.scope.id
        wanted = []
        if limits.tokens_per_day is not None:
            wanted.append(Wanted(scope, Period.DAY, today.isoformat()))
        if limits.usd_per_month is not None:
            wanted.append(Wanted(scope, Period.MONTH, today.replace(day=1).isoformat()))
        try:
            await self._limiter.settle([], await self._totals.get_totals(wanted))
        except (TotalsUnknownError, LimiterAwayError) as error:
            # With the scope's next settled call they come as well.
            log.warning("sums cannot be renewed", extra={"scope": scope, "error": repr(error)})

    async def _find(self, message: pb.LimitScope) -> Limits:
        scope = _scope(message)
        found = await self._store.get([scope])
        if not found:
            raise errors.limits_not_found(scope.id)
        return found[0]


def _away() -> MeshError:
    return MeshError(
        errors_pb2.ERROR_REASON_STORE_UNAVAILABLE,
        "Redis, which counts what is used of limits, does not answer. Try again shortly.",
    )


def _scope(message: pb.LimitScope) -> Scope:
    return Scope(message.tenant, message.project, message.key_id, message.model)


def _from_proto(message: pb.Limits) -> Limits:
    counts: dict[str, Any] = {
        name: getattr(message, name) if message.HasField(name) else None  # type: ignore[arg-type,unused-ignore]
        for name in _COUNTS
    }
    return Limits(
        scope=_scope(message.scope),
        **counts,
        usd_per_month=Decimal(message.usd_per_month) if message.HasField("usd_per_month") else None,
        alert_percents=tuple(sorted(message.alert_percents)),
        update_time=utc_now(),
    )


def _to_proto(limits: Limits) -> pb.Limits:
    message = pb.Limits(
        scope=scope_message(limits.scope.id),
        alert_percents=limits.alert_percents,
        **{name: getattr(limits, name) for name in _COUNTS},
    )
    if limits.usd_per_month is not None:
        message.usd_per_month = decimal_text(limits.usd_per_month)
    message.update_time.FromDatetime(limits.update_time)
    return message


def _use(use: Use) -> pb.LimitUse:
    write = usd_text if use.limit == contract.USD_PER_MONTH else str
    message = pb.LimitUse(limit=use.limit, allowed=write(use.allowed), used=write(use.used))
    if use.reserved is not None:
        message.reserved = write(use.reserved)
    if use.reset_after_s is not None:
        message.reset_after.FromNanoseconds(int(use.reset_after_s * 1e9))
    return message


def _write_token(scope: Scope) -> str:
    return base64.urlsafe_b64encode(orjson.dumps([*scope])).decode().rstrip("=")


def _read_token(token: str) -> Scope:
    try:
        match orjson.loads(base64.b64decode(token + "=" * (-len(token) % 4), b"-_", validate=True)):
            # PostgreSQL takes no NUL in a text.
            case [str(), str(), str(), str()] as parts if "\0" not in "".join(parts):
                return Scope(*parts)
    except (binascii.Error, ValueError):
        raise errors.invalid_page_token() from None
    raise errors.invalid_page_token()
