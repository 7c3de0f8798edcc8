"""The life of a service process: start, serve, drain, stop."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager

import grpc
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.kit import logs, workers
from services.kit.channels import CHANNEL_OPTIONS as CHANNEL_OPTIONS
from services.kit.channels import MAX_MESSAGE_BYTES
from services.kit.grpc_server import GrpcServer
from services.kit.settings import ServiceSettings
from services.kit.tls import Allowed, ServerTls, TlsFolder

log = logging.getLogger(__name__)


class Health:
    """Says over gRPC's health protocol whether the process takes calls.

    It answers for the empty service name, which stands for the whole process.

    Attributes:
        stopping: Set when the process is told to stop, before running calls are waited for.
            Calls that would last forever, such as watches, end then.
    """

    def __init__(self) -> None:
        self.servicer = health.aio.HealthServicer()
        self.stopping = asyncio.Event()
        self._serving = False
        self._ready = True

    async def set_serving(self, serving: bool) -> None:
        """Sets what health checks are answered from now on."""
        self._serving = serving
        await self._tell()

    async def set_ready(self, ready: bool) -> None:
        """Says whether what the app depends on is there; True until it is first called.

        While it is False, health checks are answered with NOT_SERVING.
        """
        self._ready = ready
        await self._tell()

    async def _tell(self) -> None:
        status = health_pb2.HealthCheckResponse.ServingStatus
        serving = self._serving and self._ready
        await self.servicer.set("", status.SERVING if serving else status.NOT_SERVING)


App = Callable[[grpc.aio.Server, Health], AbstractAsyncContextManager[Sequence[str]]]
"""Adds handlers to the server, opens what they need, and yields the names of the gRPC services.

The service answers health checks with SERVING once the context is entered. When the process is
told to stop it answers NOT_SERVING, running calls get `drain_s` to finish, then the context exits.
"""


def run(name: str, settings: ServiceSettings, app: App) -> None:
    """Runs a service until SIGTERM or SIGINT; returns after it has drained."""
    logs.configure(name, settings.log_level)
    _batch()
    uvloop.run(_serve(name, settings, app))


def _batch() -> None:
    """Asks the kernel not to interrupt what runs for the sake of a thread of ours that wakes.

    A call wakes threads on both sides of several sockets; taking turns less often saves about a
    tenth of the CPU per request and is no slower, as `make bench` shows.
    """
    with contextlib.suppress(PermissionError):  # some sandboxes forbid it; it is no more than speed
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


async def _serve(name: str, settings: ServiceSettings, app: App) -> None:
    stop = asyncio.Event()
    starting = asyncio.current_task()
    assert starting is not None  # noqa: S101 - a coroutine runs in a task
    _on_signal(starting.cancel)
    try:
        async with serving(settings, app) as address:
            _on_signal(stop.set)
            # What is here now stays: collections need not walk over it again, nor come so often.
            gc.collect()
            gc.freeze()
            gc.set_threshold(10_000, 20, 20)
            log.info("serving", extra={"address": address})
            await stop.wait()
            log.info("stopping")
    except asyncio.CancelledError:
        log.info("stopped before it served")


def _on_signal(act: Callable[[], object]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, act)


@contextlib.asynccontextmanager
async def serving(settings: ServiceSettings, app: App) -> AsyncIterator[str]:
    """Serves for as long as the context lasts, then drains. Yields the address that it listens on.

    Raises:
        SystemExit: Status 1, when the port is taken, the TLS files cannot be read, or the service
            cannot have several workers.
    """
    is_shared = workers.is_worker()
    if settings.workers > 1 and not is_shared:
        raise SystemExit("INFERMESH_WORKERS: this service runs in one process")
    if is_shared and (settings.listen.endswith(":0") or settings.listen_socket is not None):
        raise SystemExit("INFERMESH_WORKERS: workers share a port that is set, and no socket")
    server = GrpcServer(max_message_bytes=MAX_MESSAGE_BYTES)
    health_state = Health()
    health_pb2_grpc.add_HealthServicer_to_server(health_state.servicer, server)
    await health_state.set_serving(False)
    try:
        if settings.tls_dir is None:
            port = server.add_insecure_port(settings.listen, is_shared=is_shared)
            if settings.listen_socket is not None:
                server.add_insecure_port(f"unix:{settings.listen_socket}")
        elif settings.listen_socket is not None:
            raise SystemExit("INFERMESH_LISTEN_SOCKET and INFERMESH_TLS_DIR exclude each other")
        else:
            folder = TlsFolder(settings.tls_dir)
            tls = ServerTls(folder, Allowed(settings.tls_allow))
            port = server.add_tls_port(settings.listen, tls, is_shared=is_shared)
    except RuntimeError as error:
        raise SystemExit(f"cannot listen on {settings.listen}: {error}") from None

    async with app(server, health_state) as services:
        reflection.enable_server_reflection(
            (*services, health.SERVICE_NAME, reflection.SERVICE_NAME), server
        )
        try:
            await server.start()
        except OSError as error:
            raise SystemExit(f"cannot serve on {settings.listen}: {error}") from None
        await health_state.set_serving(True)
        try:
            yield f"{settings.listen.rpartition(':')[0]}:{port}"
        finally:
            health_state.stopping.set()
            await health_state.set_serving(False)
            await server.stop(settings.drain_s)
