"""Puts the metrics service together."""

import asyncio
import contextlib
import datetime as dt
import logging
from collections.abc import AsyncIterator, Coroutine, Sequence

import grpc

from infermesh.metrics.v1 import (
    metrics_service_pb2_grpc,
    price_service_pb2_grpc,
    usage_service_pb2_grpc,
)
from services.kit import database
from services.kit.audit_outcomes import audited
from services.kit.audit_sender import auth_channel, reporting
from services.kit.errors import MeshError
from services.kit.guard import guarded
from services.kit.server import App, Health
from services.metrics import migration
from services.metrics.exposition import Exposition
from services.metrics.health import MeshHealth
from services.metrics.limiter import Limiter
from services.metrics.price_store import Prices
from services.metrics.scope_store import ScopeTotals
from services.metrics.servicer import MetricsServicer, UsageServicer
from services.metrics.servicer_prices import PriceServicer
from services.metrics.settings import MetricsSettings
from services.metrics.settlement import Settler
from services.metrics.store import Ledger
from services.metrics.sums import UsageSums
from services.metrics.tables import metadata

log = logging.getLogger(__name__)

_SWEEP_S = 3600.0


def make_app(settings: MetricsSettings) -> App:
    """Returns the service for the settings."""

    @contextlib.asynccontextmanager
    async def app(server: grpc.aio.Server, _: Health) -> AsyncIterator[Sequence[str]]:
        async with contextlib.AsyncExitStack() as stack:
            engine = database.make_engine(settings.database_url)
            stack.push_async_callback(engine.dispose)
            await database.create_tables(engine, metadata)
            await migration.adopt(engine)

            auth = await stack.enter_async_context(auth_channel(settings))
            recorder = await stack.enter_async_context(reporting(auth, settings.state_dir))
            limiter = Limiter(auth)
            health = await stack.enter_async_context(MeshHealth(settings.parts, settings.tls_dir))
            totals = ScopeTotals(engine)
            await stack.enter_async_context(_running(_sweep(totals), "metrics-sweep"))
            settler = None
            if auth is not None:
                settler = Settler(engine, limiter.settle)
                await stack.enter_async_context(_running(settler.run(), "metrics-settler"))
            ledger = Ledger(engine, settler.wake if settler else None, _today)

            exposition = Exposition()
            usage = UsageServicer(ledger, UsageSums(engine), totals, exposition)
            usage_service_pb2_grpc.add_UsageServiceServicer_to_server(
                usage, audited(server, recorder, usage)
            )
            prices = PriceServicer(Prices(engine))
            price_service_pb2_grpc.add_PriceServiceServicer_to_server(
                prices, audited(server, recorder, prices)
            )
            metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(
                MetricsServicer(exposition, health, limiter), guarded(server)
            )
            yield (
                "infermesh.metrics.v1.UsageService",
                "infermesh.metrics.v1.PriceService",
                "infermesh.metrics.v1.MetricsService",
            )

    return app


def _today() -> dt.date:
    return dt.datetime.now(dt.UTC).date()


async def _sweep(totals: ScopeTotals) -> None:
    while True:
        try:
            await totals.sweep(_today())
        except MeshError as error:
            log.warning("old totals stay for now", extra={"error": error.message})
        await asyncio.sleep(_SWEEP_S)


@contextlib.asynccontextmanager
async def _running(work: Coroutine[None, None, None], name: str) -> AsyncIterator[None]:
    # Work that fails takes the process down with it, so that the supervisor starts it anew.
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(work, name=name)
        yield
        task.cancel()
