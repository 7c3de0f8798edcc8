"""Asks the metrics service what the ledger has."""

from collections.abc import Sequence
from decimal import ROUND_CEILING, Decimal
from typing import cast

import grpc

from infermesh.auth.v1 import limit_service_pb2
from infermesh.metrics.v1 import usage_service_pb2, usage_service_pb2_grpc
from services.auth.limiting.contract import Period, Total, TotalsUnknownError, Wanted

_PERIODS = {
    Period.DAY: limit_service_pb2.LIMIT_PERIOD_DAY,
    Period.MONTH: limit_service_pb2.LIMIT_PERIOD_MONTH,
}
_TIMEOUT_S = 1.0


class MetricsTotals:
    """A `TotalsSource` over gRPC.

    Args:
        channel: To the metrics service.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = usage_service_pb2_grpc.UsageServiceStub(channel)

    async def get_totals(self, wanted: Sequence[Wanted]) -> Sequence[Total]:
        """Returns a total for each that is wanted, in this order.

        Raises:
            TotalsUnknownError: Metrics does not answer.
        """
        request = usage_service_pb2.GetScopeTotalsRequest(
            scopes=[
                usage_service_pb2.ScopePeriod(
                    scope=scope_message(each.scope),
                    period=_PERIODS[each.period],
                    start_date=each.start_date,
                )
                for each in wanted
            ]
        )
        try:
            reply = await self._stub.GetScopeTotals(request, timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise TotalsUnknownError(f"metrics: {error.code().name}") from error
        if len(reply.totals) != len(wanted):
            raise TotalsUnknownError("metrics: another number of totals than was asked for")
        return [
            Total(*each, found.tokens, nano_usd(found.usd), found.version)
            for each, found in zip(wanted, reply.totals, strict=True)
        ]


def scope_message(scope: str) -> limit_service_pb2.LimitScope:
    """Returns the message that names a scope such as `p:acme/web`."""
    kind, _, name = scope.partition(":")
    if kind == "t":
        return limit_service_pb2.LimitScope(tenant=name)
    if kind == "k":
        return limit_service_pb2.LimitScope(key_id=name)
    # Neither a tenant nor a key's id has a slash in it; a model may.
    owner, _, name = name.partition("/")
    if kind == "p":
        return limit_service_pb2.LimitScope(tenant=owner, project=name)
    return limit_service_pb2.LimitScope(key_id=owner, model=name)


def scope_string(scope: limit_service_pb2.LimitScope) -> str:
    """Returns the scope as a string; the reverse of `scope_message`."""
    if scope.tenant:
        return f"p:{scope.tenant}/{scope.project}" if scope.project else f"t:{scope.tenant}"
    return f"m:{scope.key_id}/{scope.model}" if scope.model else f"k:{scope.key_id}"


def total_of(message: limit_service_pb2.ScopeTotal) -> Total:
    """Returns a total as it came."""
    is_day = cast(int, message.period) == limit_service_pb2.LIMIT_PERIOD_DAY
    return Total(
        scope_string(message.scope),
        Period.DAY if is_day else Period.MONTH,
        message.start_date,
        message.tokens,
        nano_usd(message.usd),
        message.version,
    )


def nano_usd(usd: str) -> int:
    """Returns billionths of a dollar, rounded up: a budget is never passed by a rounding."""
    return int((Decimal(usd or "0") * 10**9).to_integral_value(ROUND_CEILING))
