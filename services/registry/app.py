"""Puts the registry together."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import grpc

from infermesh.registry.v1 import (
    model_service_pb2_grpc,
    node_service_pb2_grpc,
    ollama_pull_service_pb2_grpc,
)
from services.kit.audit_outcomes import audited
from services.kit.audit_sender import auth_channel, reporting
from services.kit.database import create_tables, make_engine
from services.kit.server import App, Health
from services.registry.attach import NodeStreams
from services.registry.commands import Commands
from services.registry.identity import CalledBack
from services.registry.journal import Journal
from services.registry.key_watch import AskAuth, KeyWatch, NobodyToAsk
from services.registry.mesh import Mesh
from services.registry.servicer_models import ModelServicer
from services.registry.servicer_nodes import NodeServicer
from services.registry.servicer_pulls import OllamaPullServicer
from services.registry.settings import RegistrySettings
from services.registry.store_postgres import PostgresStore, metadata
from services.registry.suspects import Suspects
from services.registry.watchers import Watchers


def make_app(settings: RegistrySettings) -> App:
    """Returns the registry as an app for `kit.server`."""

    @asynccontextmanager
    async def app(server: grpc.aio.Server, health: Health) -> AsyncIterator[Sequence[str]]:
        async with AsyncExitStack() as stack:
            engine = make_engine(settings.database_url, pool_size=2)
            stack.push_async_callback(engine.dispose)
            await create_tables(engine, metadata)
            store = PostgresStore(engine)
            journal = Journal(store)
            mesh = Mesh(journal, Watchers(), lease_s=settings.lease_s, clock=time.monotonic)
            mesh.restore(*await store.load())
            commands = Commands()
            channel = await stack.enter_async_context(auth_channel(settings))
            key_watch = KeyWatch(AskAuth(channel) if channel else NobodyToAsk())
            streams = NodeStreams(
                mesh,
                commands,
                CalledBack(settings.tls_dir),
                key_watch,
                Suspects(time.monotonic),
                report_interval_s=settings.report_interval_s,
                lease_s=settings.lease_s,
            )
            recorder = await stack.enter_async_context(reporting(channel, settings.state_dir))
            nodes = NodeServicer(mesh, streams, commands, key_watch)
            node_service_pb2_grpc.add_NodeServiceServicer_to_server(
                nodes, audited(server, recorder, nodes)
            )
            models = ModelServicer(mesh)
            model_service_pb2_grpc.add_ModelServiceServicer_to_server(
                models, audited(server, recorder, models)
            )
            pulls = OllamaPullServicer(mesh, commands)
            ollama_pull_service_pb2_grpc.add_OllamaPullServiceServicer_to_server(
                pulls, audited(server, recorder, pulls)
            )
            # A task that fails takes the process down with it: a registry that no longer expires
            # leases or writes changes is worse than one that starts again.
            async with asyncio.TaskGroup() as tasks:
                running = [
                    tasks.create_task(mesh.run_leases()),
                    tasks.create_task(journal.run(mesh.rows)),
                    tasks.create_task(key_watch.run()),
                    tasks.create_task(_close_on_stop(mesh, health)),
                ]
                yield (
                    "infermesh.registry.v1.NodeService",
                    "infermesh.registry.v1.ModelService",
                    "infermesh.registry.v1.OllamaPullService",
                )
                for task in running:
                    task.cancel()
            await journal.finish(mesh.rows)

    return app


async def _close_on_stop(mesh: Mesh, health: Health) -> None:
    await health.stopping.wait()
    mesh.close()
