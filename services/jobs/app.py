"""Puts the jobs service together."""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence

import grpc

from infermesh.jobs.v1 import (
    batch_service_pb2_grpc,
    file_service_pb2_grpc,
    response_service_pb2_grpc,
)
from services.jobs.batches.callers import Callers
from services.jobs.batches.pace import Pace
from services.jobs.batches.results import Results
from services.jobs.batches.runner import Runner
from services.jobs.batches.servicer import BatchesServicer
from services.jobs.batches.store import BatchStore
from services.jobs.batches.work import Work
from services.jobs.batches.worker import Worker
from services.jobs.files.servicer import FilesServicer
from services.jobs.files.store import FileStore
from services.jobs.nodes import Nodes
from services.jobs.responses.servicer import ResponsesServicer
from services.jobs.responses.store import ResponseStore
from services.jobs.settings import JobsSettings
from services.jobs.tables import metadata
from services.kit import database, tls
from services.kit.channels import open_channel
from services.kit.errors import StoreUnavailableError
from services.kit.guard import guarded
from services.kit.server import App, Health

log = logging.getLogger(__name__)

_SWEEP_S = 600.0
_SERVICES = ("Response", "File", "Batch")

Sweep = Callable[[], Awaitable[int]]
"""Forgets some of what has expired; returns how much."""


def make_app(settings: JobsSettings) -> App:
    """Returns the service for the settings."""

    @contextlib.asynccontextmanager
    async def app(server: grpc.aio.Server, _: Health) -> AsyncIterator[Sequence[str]]:
        async with contextlib.AsyncExitStack() as stack:
            engine = database.make_engine(
                settings.database_url, pool_size=settings.database_connections
            )
            stack.push_async_callback(engine.dispose)
            await database.create_tables(engine, metadata)
            channel = await stack.enter_async_context(
                open_channel(settings.inference_address, tls.ENVOY, settings.tls_dir)
            )
            auth = await stack.enter_async_context(
                open_channel(settings.auth_address, tls.service("auth"), settings.tls_dir)
            )
            responses = ResponseStore(engine, settings.response_ttl_s)
            files, batches = FileStore(engine), BatchStore(engine)
            callers = Callers(auth)
            worker = Worker(
                Work(engine, uuid.uuid4().hex, settings.batch_lease_s),
                files,
                Results(engine, settings.file_ttl_s),
                Runner(channel, callers),
                Pace(settings.batch_concurrency, time.monotonic),
                max_lines=settings.batch_max_lines,
                lease_s=settings.batch_lease_s,
            )
            sweeps = [responses.sweep, files.sweep, lambda: batches.sweep(settings.file_ttl_s)]
            await stack.enter_async_context(_running(_sweep(sweeps), "jobs sweep"))
            await stack.enter_async_context(worker.working(settings.drain_s))
            response_service_pb2_grpc.add_ResponseServiceServicer_to_server(
                ResponsesServicer(Nodes(channel), responses), guarded(server)
            )
            file_service_pb2_grpc.add_FileServiceServicer_to_server(
                FilesServicer(
                    files,
                    max_bytes=settings.file_max_bytes,
                    tenant_max_bytes=settings.file_tenant_max_bytes,
                    ttl_s=settings.file_ttl_s,
                ),
                guarded(server),
            )
            batch_service_pb2_grpc.add_BatchServiceServicer_to_server(
                BatchesServicer(batches, files, callers, worker.poke, settings.batch_max_active),
                guarded(server),
            )
            yield tuple(f"infermesh.jobs.v1.{name}Service" for name in _SERVICES)

    return app


async def _sweep(sweeps: Sequence[Sweep]) -> None:
    while True:
        for sweep in sweeps:
            try:
                while await sweep():
                    pass
            except StoreUnavailableError as error:
                log.warning("what has expired waits", extra={"error": str(error)})
        await asyncio.sleep(_SWEEP_S)


@contextlib.asynccontextmanager
async def _running(work: Coroutine[None, None, None], name: str) -> AsyncIterator[None]:
    task = asyncio.create_task(work, name=name)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
