"""Sums and totals between their wire form and the domain's."""

import datetime as dt
from collections.abc import Sequence

from infermesh.auth.v1 import limit_service_pb2
from infermesh.errors.v1 import errors_pb2
from infermesh.metrics.v1 import usage_service_pb2 as pb
from services.kit.errors import MeshError
from services.metrics.convert import text, time_from_proto
from services.metrics.decimals import to_text
from services.metrics.scopes import Scope, Span, VersionedTotal
from services.metrics.sums import Question, Sum


def question(request: pb.GetUsageTotalsRequest) -> Question:
    """Returns what is asked for.

    Raises:
        MeshError: `INVALID_ARGUMENT`; a time or a text is none that the ledger can hold.
    """
    return Question(
        dimensions=tuple(request.group_by),
        first_day=(
            time_from_proto(request.start_time, "start_time").date()
            if request.HasField("start_time")
            else None
        ),
        end_day=(
            time_from_proto(request.end_time, "end_time").date()
            if request.HasField("end_time")
            else None
        ),
        tenant=text(request.tenant, "tenant"),
        project=text(request.project, "project"),
        key_id=text(request.key_id, "key_id"),
        model=text(request.model, "model"),
    )


def sum_to_proto(columns: Sequence[str], each: Sum) -> pb.UsageTotal:
    """Returns the wire form of a sum.

    Args:
        columns: What it is by.
        each: The sum.
    """
    sums = each.sums
    by = {name: str(value) for name, value in zip(columns, each.by, strict=True)}
    return pb.UsageTotal(
        **by,
        request_count=sums.request_count,
        failed_count=sums.failed_count,
        unknown_count=sums.unknown_count,
        unpriced_count=sums.unpriced_count,
        prompt_tokens=sums.prompt_tokens,
        completion_tokens=sums.completion_tokens,
        cached_tokens=sums.cached_tokens,
        cost_usd=to_text(sums.cost) if sums.is_cost_known else None,
    )


def span(named: pb.ScopePeriod, index: int) -> Span:
    """Returns the scope in its period.

    Raises:
        MeshError: `INVALID_ARGUMENT`; there is no such day.
    """
    try:
        start = dt.date.fromisoformat(named.start_date)
    except ValueError:
        field = f"scopes[{index}].start_date"
        raise MeshError(
            errors_pb2.ERROR_REASON_INVALID_ARGUMENT, f"{field}: is no day", param=field
        ) from None
    scope = named.scope
    return Span(named.period, start, Scope(scope.tenant, scope.project, scope.key_id, scope.model))


def scope_total(of: Span, total: VersionedTotal) -> limit_service_pb2.ScopeTotal:
    """Returns the wire form of a total."""
    return limit_service_pb2.ScopeTotal(
        scope=limit_service_pb2.LimitScope(**of.scope._asdict()),
        period=of.period,  # type: ignore[arg-type]
        start_date=of.start.isoformat(),
        tokens=total.tokens,
        usd=to_text(total.cost),
        version=total.version,
    )
