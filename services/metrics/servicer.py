"""The RPCs of the metrics service."""

import asyncio
from typing import Any

import grpc
from google.api import httpbody_pb2

from infermesh.metrics.v1 import (
    metrics_service_pb2,
    metrics_service_pb2_grpc,
    usage_service_pb2,
    usage_service_pb2_grpc,
)
from services.metrics import convert, convert_sums, export
from services.metrics.exposition import CONTENT_TYPE, Exposition
from services.metrics.health import MeshHealth
from services.metrics.limiter import Limiter
from services.metrics.scope_store import ScopeTotals
from services.metrics.store import Ledger
from services.metrics.sums import UsageSums

_DEFAULT_PAGE_SIZE = 100
_EXPORT_HEADERS = (("content-disposition", 'attachment; filename="usage.csv"'),)

_Context = grpc.aio.ServicerContext[Any, Any]


class UsageServicer(usage_service_pb2_grpc.UsageServiceServicer):
    """Serves the ledger."""

    def __init__(
        self, ledger: Ledger, sums: UsageSums, totals: ScopeTotals, exposition: Exposition
    ) -> None:
        self._ledger = ledger
        self._sums = sums
        self._totals = totals
        self._exposition = exposition

    async def RecordUsage(
        self, request: usage_service_pb2.RecordUsageRequest, context: _Context
    ) -> usage_service_pb2.RecordUsageResponse:
        """Answers after the events are committed."""
        events = [convert.usage_from_proto(event, i) for i, event in enumerate(request.events)]
        recorded = await self._ledger.record(events)
        self._exposition.count(recorded)
        return usage_service_pb2.RecordUsageResponse(recorded_count=len(recorded))

    async def ListUsageEvents(
        self, request: usage_service_pb2.ListUsageEventsRequest, context: _Context
    ) -> usage_service_pb2.ListUsageEventsResponse:
        """Lists the ledger, newest first."""
        size = request.page_size or _DEFAULT_PAGE_SIZE
        events = await self._ledger.newest(
            limit=size + 1,
            before=convert.page_start(request.page_token) if request.page_token else None,
            request_id=convert.text(request.request_id, "request_id"),
            key_id=convert.text(request.key_id, "key_id"),
        )
        response = usage_service_pb2.ListUsageEventsResponse(
            events=map(convert.usage_to_proto, events[:size])
        )
        if len(events) > size:
            response.next_page_token = convert.page_token(events[size - 1])
        return response

    async def GetUsageTotals(
        self, request: usage_service_pb2.GetUsageTotalsRequest, context: _Context
    ) -> usage_service_pb2.GetUsageTotalsResponse:
        """Sums whole days of the ledger."""
        question = convert_sums.question(request)
        sums = await self._sums.get(question)
        return usage_service_pb2.GetUsageTotalsResponse(
            totals=(convert_sums.sum_to_proto(question.columns, each) for each in sums)
        )

    async def ExportUsage(
        self, request: usage_service_pb2.GetUsageTotalsRequest, context: _Context
    ) -> httpbody_pb2.HttpBody:
        """Sums whole days of the ledger, for spreadsheets."""
        question = convert_sums.question(request)
        data = export.to_csv(question.columns, await self._sums.get(question))
        await context.send_initial_metadata(_EXPORT_HEADERS)
        return httpbody_pb2.HttpBody(content_type=export.CONTENT_TYPE, data=data)

    async def GetScopeTotals(
        self, request: usage_service_pb2.GetScopeTotalsRequest, context: _Context
    ) -> usage_service_pb2.GetScopeTotalsResponse:
        """Returns what is committed."""
        spans = [convert_sums.span(each, i) for i, each in enumerate(request.scopes)]
        totals = await self._totals.get(spans)
        return usage_service_pb2.GetScopeTotalsResponse(
            totals=map(convert_sums.scope_total, spans, totals)
        )


class MetricsServicer(metrics_service_pb2_grpc.MetricsServiceServicer):
    """Serves the metrics and the health of the mesh."""

    def __init__(self, exposition: Exposition, health: MeshHealth, limiter: Limiter) -> None:
        self._exposition = exposition
        self._health = health
        self._limiter = limiter

    async def GetExposition(
        self, request: metrics_service_pb2.GetExpositionRequest, context: _Context
    ) -> httpbody_pb2.HttpBody:
        """Returns the metrics in Prometheus' text format."""
        health, limiting = await asyncio.gather(self._health.check(), self._limiter.ask())
        parts = {part.name: part.serving for part in health}
        return httpbody_pb2.HttpBody(
            content_type=CONTENT_TYPE, data=self._exposition.text(parts, limiting)
        )

    async def GetMeshHealth(
        self, request: metrics_service_pb2.GetMeshHealthRequest, context: _Context
    ) -> metrics_service_pb2.GetMeshHealthResponse:
        """Asks every service whether it serves."""
        return metrics_service_pb2.GetMeshHealthResponse(
            services=(
                metrics_service_pb2.ServiceHealth(**part._asdict())
                for part in await self._health.check()
            )
        )
