"""What serving does to the process around it."""

import contextlib
import gc
from collections.abc import AsyncIterator, Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.kit.server import Health, serving
from services.kit.settings import ServiceSettings


@contextlib.asynccontextmanager
async def _nothing(_: grpc.aio.Server, __: Health) -> AsyncIterator[Sequence[str]]:
    yield ()


async def test_serving_leaves_the_garbage_collector_as_it_is() -> None:
    before = gc.get_threshold(), gc.get_freeze_count()
    async with (
        serving(ServiceSettings(drain_s=0), _nothing) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == 1
        assert (gc.get_threshold(), gc.get_freeze_count()) == before
