"""Services listen on a path too, where they are told to: what Envoy on the same machine uses."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.kit.server import Health, serving
from services.kit.settings import ServiceSettings


@contextlib.asynccontextmanager
async def no_app(server: grpc.aio.Server, health: Health) -> AsyncIterator[Sequence[str]]:
    yield ()


async def ask(address: str) -> int:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return (await stub.Check(health_pb2.HealthCheckRequest(), timeout=20)).status


async def test_a_service_answers_on_both_and_clears_up(tmp_path: Path) -> None:
    path = tmp_path / "service.sock"
    for _ in range(2):  # also where the path was used before
        async with serving(ServiceSettings(drain_s=0, listen_socket=path), no_app) as address:
            for where in (address, f"unix:{path}"):
                assert await ask(where) == health_pb2.HealthCheckResponse.SERVING
        assert not path.exists()


async def test_a_path_that_cannot_be_had_ends_the_service_with_a_word(tmp_path: Path) -> None:
    settings = ServiceSettings(drain_s=0, listen_socket=tmp_path / "nowhere" / "service.sock")
    with pytest.raises(SystemExit, match="nowhere"):
        async with serving(settings, no_app):
            pass


async def test_where_there_is_tls_no_path_leads_past_it(tmp_path: Path) -> None:
    settings = ServiceSettings(drain_s=0, listen_socket=tmp_path / "a.sock", tls_dir=tmp_path)
    with pytest.raises(SystemExit, match="LISTEN_SOCKET"):
        async with serving(settings, no_app):
            pass
