"""Puts routing together."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import redis.asyncio
from envoy.service.discovery.v3 import ads_pb2_grpc

from infermesh.routing.v1 import (
    ollama_catalog_service_pb2_grpc,
    openai_model_service_pb2_grpc,
    policy_service_pb2_grpc,
    routing_service_pb2_grpc,
    split_service_pb2_grpc,
)
from services.kit import authorization
from services.kit.audit_outcomes import audited
from services.kit.audit_sender import auth_channel, reporting
from services.kit.database import make_engine
from services.kit.guard import guarded
from services.kit.server import App, Health
from services.routing import servicer_ads, servicer_check, servicer_ext_proc
from services.routing.book import Book
from services.routing.deciding import Decider
from services.routing.eds import Assignments
from services.routing.explaining import Explainer
from services.routing.follower import Follower, store_counts
from services.routing.memory_store import MemoryDocumentStore
from services.routing.model_list import ModelList
from services.routing.pools import Pools
from services.routing.postgres_store import PostgresDocumentStore
from services.routing.prefix_index import PrefixIndex
from services.routing.router import Router
from services.routing.scheduler import Scheduler
from services.routing.servicer import RoutingServicer
from services.routing.servicer_models import OpenAIModelServicer
from services.routing.servicer_ollama import OllamaCatalogServicer
from services.routing.servicer_policies import PolicyServicer
from services.routing.servicer_splits import SplitServicer
from services.routing.settings import RoutingSettings
from services.routing.sharing import Sharing, share
from services.routing.splits import SplitCounts
from services.routing.store import DocumentStore
from services.routing.view import MeshView
from services.routing.watch import follow

log = logging.getLogger(__name__)

_FIRST_LOAD_TIMEOUT_S = 5.0
_REDIS_TIMEOUT_S = 1.0
_REDIS_PING_S = 5


def make_app(settings: RoutingSettings) -> App:
    """Returns routing as an app for `kit.server`."""

    @asynccontextmanager
    async def app(server: grpc.aio.Server, health: Health) -> AsyncIterator[Sequence[str]]:
        view = MeshView(time.monotonic, PrefixIndex(settings.prefix_index_entries))
        assignments = Assignments(view)
        pools = Pools(view)
        book = Book(pools.forget)
        scheduler = Scheduler(view, pools, time.monotonic)
        counts = SplitCounts()
        router = Router(scheduler, book, counts)

        async with AsyncExitStack() as stack:
            follower: Follower | None = None
            documents: DocumentStore = MemoryDocumentStore()
            if settings.database_url is not None:
                url = settings.database_url.get_secret_value()
                engine = make_engine(url, pool_size=2)
                stack.push_async_callback(engine.dispose)
                documents = PostgresDocumentStore(engine)
                follower = Follower(url, engine, documents, book)

            decider = Decider(view, router)
            servicer_check.add_to_server(decider, server)
            servicer_ext_proc.add_to_server(decider, server)
            ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(
                servicer_ads.DiscoveryServicer(assignments, health.stopping), server
            )
            channel = await stack.enter_async_context(auth_channel(settings))
            recorder = await stack.enter_async_context(reporting(channel, settings.state_dir))
            explaining = RoutingServicer(Explainer(view, router, time.monotonic), book)
            routing_service_pb2_grpc.add_RoutingServiceServicer_to_server(
                explaining, audited(server, recorder, explaining)
            )
            policies = PolicyServicer(book, documents)
            policy_service_pb2_grpc.add_PolicyServiceServicer_to_server(
                policies, audited(server, recorder, policies, policies.routes_before())
            )
            splits = SplitServicer(view, book, documents, counts)
            split_service_pb2_grpc.add_SplitServiceServicer_to_server(
                splits, audited(server, recorder, splits)
            )

            listed = ModelList(view, book)
            ollama_catalog_service_pb2_grpc.add_OllamaCatalogServiceServicer_to_server(
                OllamaCatalogServicer(listed), guarded(server)
            )
            models = OpenAIModelServicer(listed)
            openai_model_service_pb2_grpc.add_OpenAIModelServiceServicer_to_server(
                models, guarded(server)
            )

            sharing: Sharing | None = None
            if settings.redis_url is not None:
                sharing = Sharing(view, scheduler, time.monotonic)
                scheduler.on_decision(sharing.on_decision)

            async def ready() -> None:
                await health.set_ready(True)

            await health.set_ready(False)
            # A task that fails takes the process down with it: a router that no longer learns of
            # changes is worse than one that starts again.
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            running = [tasks.create_task(store_counts(counts, documents))]
            if sharing is not None and settings.redis_url is not None:
                client = redis.asyncio.Redis.from_url(
                    settings.redis_url.get_secret_value(),
                    socket_connect_timeout=_REDIS_TIMEOUT_S,
                    socket_timeout=_REDIS_TIMEOUT_S,
                    health_check_interval=_REDIS_PING_S,
                )
                stack.push_async_callback(client.aclose)
                running.append(tasks.create_task(share(sharing, client)))
            if follower is not None:
                running.append(tasks.create_task(follower.run()))
                await _first_load(follower)
            watch = follow(settings.registry_address, view, ready, settings.tls_dir)
            running.append(tasks.create_task(watch))
            yield (
                "infermesh.routing.v1.RoutingService",
                "infermesh.routing.v1.PolicyService",
                "infermesh.routing.v1.SplitService",
                "infermesh.routing.v1.OpenAIModelService",
                "infermesh.routing.v1.OllamaCatalogService",
                authorization.SERVICE_NAME,
                servicer_ext_proc.SERVICE_NAME,
                servicer_ads.SERVICE_NAME,
            )
            for task in running:
                task.cancel()

    return app


async def _first_load(follower: Follower) -> None:
    try:
        async with asyncio.timeout(_FIRST_LOAD_TIMEOUT_S):
            await follower.ready.wait()
    except TimeoutError:
        # Chats matter more than policies: what is missing is taken over once it can be read.
        log.warning("PostgreSQL does not answer; starting with the built-in policies")
