"""Puts the metrics service together."""

import contextlib
from collections.abc import AsyncIterator, Sequence

import grpc

from infermesh.metrics.v1 import metrics_service_pb2_grpc, usage_service_pb2_grpc
from services.kit import database
from services.kit.guard import guarded
from services.kit.server import App, Health
from services.metrics.exposition import Exposition
from services.metrics.health import MeshHealth
from services.metrics.servicer import MetricsServicer, UsageServicer
from services.metrics.settings import MetricsSettings
from services.metrics.store import Ledger
from services.metrics.tables import metadata


def make_app(settings: MetricsSettings) -> App:
    """Returns the service for the settings."""

    @contextlib.asynccontextmanager
    async def app(server: grpc.aio.Server, _: Health) -> AsyncIterator[Sequence[str]]:
        engine = database.make_engine(settings.database_url)
        try:
            await database.create_tables(engine, metadata)
            exposition = Exposition()
            async with MeshHealth(settings.parts) as health:
                target = guarded(server)
                usage_service_pb2_grpc.add_UsageServiceServicer_to_server(
                    UsageServicer(Ledger(engine), exposition), target
                )
                metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(
                    MetricsServicer(exposition, health), target
                )
                yield (
                    "infermesh.metrics.v1.UsageService",
                    "infermesh.metrics.v1.MetricsService",
                )
        finally:
            await engine.dispose()

    return app
