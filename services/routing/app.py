"""Puts routing together."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import grpc
from envoy.service.discovery.v3 import ads_pb2_grpc

from infermesh.routing.v1 import routing_service_pb2_grpc
from services.kit.guard import guarded
from services.kit.server import App, Health
from services.routing import servicer_ads, servicer_ext_proc
from services.routing.eds import Assignments
from services.routing.filters.ready import ReadyFilter
from services.routing.pickers.best_first import BestFirstPicker
from services.routing.scheduler import Scheduler
from services.routing.scorers.load import LoadScorer
from services.routing.servicer import RoutingServicer
from services.routing.settings import RoutingSettings
from services.routing.view import MeshView
from services.routing.watch import follow


def make_app(settings: RoutingSettings) -> App:
    """Returns routing as an app for `kit.server`."""

    @asynccontextmanager
    async def app(server: grpc.aio.Server, health: Health) -> AsyncIterator[Sequence[str]]:
        view = MeshView(time.monotonic)
        assignments = Assignments(view)
        scheduler = Scheduler(
            view,
            filters=(ReadyFilter(),),
            scorers=((LoadScorer(), 1.0),),
            picker=BestFirstPicker(),
            clock=time.monotonic,
        )
        servicer_ext_proc.ExternalProcessor(view, scheduler).add_to(server)
        ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(
            servicer_ads.DiscoveryServicer(assignments, health.stopping), server
        )
        routing_service_pb2_grpc.add_RoutingServiceServicer_to_server(
            RoutingServicer(scheduler), guarded(server)
        )

        async def ready() -> None:
            await health.set_ready(True)

        await health.set_ready(False)
        # A watch that fails takes the process down with it: a router that no longer learns of
        # changes is worse than one that starts again.
        async with asyncio.TaskGroup() as tasks:
            watch = tasks.create_task(follow(settings.registry_address, view, ready))
            yield (
                "infermesh.routing.v1.RoutingService",
                servicer_ext_proc.SERVICE_NAME,
                servicer_ads.SERVICE_NAME,
            )
            watch.cancel()

    return app
