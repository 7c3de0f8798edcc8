"""Follows the registry's watch and never lets go of the last view."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc

from infermesh.registry.v1 import node_service_pb2, node_service_pb2_grpc
from services.kit.channels import CHANNEL_OPTIONS, open_channel
from services.kit.tls import service
from services.routing.view import MeshView

log = logging.getLogger(__name__)

_FIRST_RETRY_S = 0.1
_LAST_RETRY_S = 2.0

# A registry whose machine is gone sends nothing, not even an end.
_OPTIONS = (
    *CHANNEL_OPTIONS,
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
)


async def follow(
    address: str,
    view: MeshView,
    on_first_sync: Callable[[], Awaitable[None]],
    tls_dir: Path | None = None,
) -> None:
    """Applies the registry's changes to the view, forever.

    When the registry goes away the view stays as it is, and the watch is opened again after 0.1 s,
    growing to 2 s.

    Args:
        address: The registry's gRPC server.
        view: What is kept current.
        on_first_sync: Called once, when the view first holds the mesh.
        tls_dir: The folder with routing's TLS files; None for no TLS.
    """
    retry_s = _FIRST_RETRY_S
    away = False
    async with open_channel(address, service("registry"), tls_dir, _OPTIONS) as channel:
        stub = node_service_pb2_grpc.NodeServiceStub(channel)
        while True:
            try:
                async for message in stub.WatchMesh(node_service_pb2.WatchMeshRequest()):
                    if message.synced:
                        log.info("following the registry", extra={"nodes": len(message.nodes)})
                        away, retry_s = False, _FIRST_RETRY_S
                        first = not view.synced
                        view.apply(message)
                        if first:
                            await on_first_sync()
                        continue
                    view.apply(message)
            except grpc.aio.AioRpcError as error:
                if not away:
                    log.warning(
                        "the registry is away, routing by the last view",
                        extra={"error": error.details()},
                    )
            away = True
            # Spread out, so that replicas do not all come back in the same instant.
            await asyncio.sleep(retry_s * random.uniform(0.75, 1.25))  # noqa: S311
            retry_s = min(retry_s * 2, _LAST_RETRY_S)
