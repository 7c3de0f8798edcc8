"""The RPCs of the metrics service."""

from typing import Any

import grpc
from google.api import httpbody_pb2

from infermesh.metrics.v1 import (
    metrics_service_pb2,
    metrics_service_pb2_grpc,
    usage_service_pb2,
    usage_service_pb2_grpc,
)
from services.metrics import convert
from services.metrics.exposition import CONTENT_TYPE, Exposition
from services.metrics.health import MeshHealth
from services.metrics.store import Ledger

_DEFAULT_PAGE_SIZE = 100

_Context = grpc.aio.ServicerContext[Any, Any]


class UsageServicer(usage_service_pb2_grpc.UsageServiceServicer):
    """Serves the ledger."""

    def __init__(self, ledger: Ledger, exposition: Exposition) -> None:
        self._ledger = ledger
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
        totals = await self._ledger.totals(
            first_day=(
                convert.time_from_proto(request.start_time, "start_time").date()
                if request.HasField("start_time")
                else None
            ),
            end_day=(
                convert.time_from_proto(request.end_time, "end_time").date()
                if request.HasField("end_time")
                else None
            ),
            key_id=convert.text(request.key_id, "key_id"),
            model=convert.text(request.model, "model"),
        )
        return usage_service_pb2.GetUsageTotalsResponse(
            totals=(convert.total_to_proto(*total) for total in totals)
        )


class MetricsServicer(metrics_service_pb2_grpc.MetricsServiceServicer):
    """Serves the metrics and the health of the mesh."""

    def __init__(self, exposition: Exposition, health: MeshHealth) -> None:
        self._exposition = exposition
        self._health = health

    async def GetExposition(
        self, request: metrics_service_pb2.GetExpositionRequest, context: _Context
    ) -> httpbody_pb2.HttpBody:
        """Returns the metrics in Prometheus' text format."""
        parts = {part.name: part.serving for part in await self._health.check()}
        return httpbody_pb2.HttpBody(content_type=CONTENT_TYPE, data=self._exposition.text(parts))

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
