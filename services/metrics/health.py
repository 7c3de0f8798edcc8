"""Asks every service of the mesh whether it serves."""

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.kit import tls
from services.kit.channels import open_channel

_TIMEOUT_S = 1.0
_MAX_DETAIL_CHARS = 200
_SERVICES = frozenset({"auth", "registry", "routing", "embeddings", "metrics", "jobs"})


class PartHealth(NamedTuple):
    """What one service answered. The latency is None when no answer came."""

    name: str
    serving: bool
    detail: str
    latency_ms: float | None


class MeshHealth:
    """Keeps a channel to each service, opened when it is first asked.

    Args:
        parts: Names and addresses, `host:port`. What is no service's name is a node's id.
        tls_dir: The folder with the metrics service's TLS files; None for no TLS.
    """

    def __init__(self, parts: Mapping[str, str], tls_dir: Path | None = None) -> None:
        self._parts = parts
        self._tls_dir = tls_dir
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def __aenter__(self) -> Self:
        self._channels = {
            name: open_channel(
                address, tls.service(name) if name in _SERVICES else tls.node(name), self._tls_dir
            )
            for name, address in sorted(self._parts.items())
        }
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for channel in self._channels.values():
            await channel.close()

    async def check(self) -> list[PartHealth]:
        """Asks all at once, at most 1 s, and returns the answers by name."""
        return await asyncio.gather(*(self._check(*item) for item in self._channels.items()))

    async def _check(self, name: str, channel: grpc.aio.Channel) -> PartHealth:
        start = time.perf_counter()
        try:
            answer = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S
            )
        except grpc.aio.AioRpcError as error:
            detail = (error.details() or error.code().name)[:_MAX_DETAIL_CHARS]
            return PartHealth(name, False, detail, None)
        latency_ms = (time.perf_counter() - start) * 1000
        status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        return PartHealth(name, status == "SERVING", status, latency_ms)
