"""Puts the limits together: the book, the limiter, what is asked before a call and heard after."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import grpc

from infermesh.auth.v1 import limit_service_pb2_grpc
from services.auth import access_log
from services.auth.audit import Recorder
from services.auth.limiting import engine
from services.auth.limiting.metrics_totals import MetricsTotals
from services.auth.limits import LimitBook, LimitStore
from services.auth.limits_gate import LimitGate
from services.auth.reservation import Estimator, Prices
from services.auth.reservation_prices import follow_prices
from services.auth.servicer_limits import LimitServicer
from services.auth.settings import AuthSettings
from services.kit.audit_outcomes import audited
from services.kit.channels import open_channel
from services.kit.server import Health

log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def opened(
    settings: AuthSettings,
    store: LimitStore,
    book: LimitBook,
    recorder: Recorder,
    server: grpc.aio.Server,
    health: Health,
) -> AsyncIterator[LimitGate | None]:
    """Serves `LimitService` and Envoy's access log; yields what decisions ask, None without Redis.

    Args:
        settings: Auth's settings.
        store: Where limits are kept.
        book: The limits in memory, loaded.
        recorder: The audit log.
        server: Gets the handlers.
        health: Says when the process stops.
    """
    async with contextlib.AsyncExitStack() as stack:
        channel = None
        if settings.metrics_address is not None:
            channel = open_channel(settings.metrics_address, "service/metrics", settings.tls_dir)
            stack.push_async_callback(channel.close)
        totals = None if channel is None else MetricsTotals(channel)
        limiter = gate = None
        if settings.redis_url is not None:
            options = engine.LimiterOptions(
                redis_url=settings.redis_url.get_secret_value(),
                reservation_s=settings.reservation_s,
                without_redis=settings.limits_without_redis,
            )
            limiter = await stack.enter_async_context(engine.opened(options, totals))
            prices = Prices()
            if channel is not None:
                await stack.enter_async_context(_running(follow_prices(channel, prices)))
            estimator = Estimator(
                settings.bytes_per_token,
                settings.default_max_tokens,
                settings.max_reservation_tokens,
            )
            gate = LimitGate(book, limiter, estimator, prices, recorder)
            access_log.add_to_server(limiter, health.stopping, server)
        elif len(book):
            log.warning("limits are not enforced without Redis", extra={"scopes": len(book)})
        servicer = LimitServicer(store, book, limiter, gate, totals)
        limit_service_pb2_grpc.add_LimitServiceServicer_to_server(
            servicer, audited(server, recorder, servicer, reads=True)
        )
        yield gate


@contextlib.asynccontextmanager
async def _running(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    # What it cannot go on with takes the process down with it, and is not lost.
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(work)
        yield
        task.cancel()
