"""An authority of a test's own, and folders of parts that it made."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.kit import tls
from services.kit.certificates import LEAF_LIFE, Authority
from services.kit.channels import open_channel
from services.kit.server import Health, serving
from services.kit.settings import ServiceSettings
from services.kit.tls_files import write_folder


class World:
    """An authority, and what it has issued.

    Args:
        path: For the folders.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ca = Authority.make()
        self.authority = Authority(self.ca.certificate, self.ca.key)

    def issue(
        self,
        name: str,
        life: timedelta = LEAF_LIFE,
        now: datetime | None = None,
        *,
        trusts: bytes = b"",
        folder: str = "",
    ) -> Path:
        """Gives a part a new certificate; returns its folder."""
        leaf = self.authority.issue(name, life, now)
        path = self.path / (folder or name)
        write_folder(
            path,
            {
                tls.CA_FILE: trusts or self.ca.certificate,
                tls.CERTIFICATE_FILE: leaf.certificate,
                tls.KEY_FILE: leaf.key,
            },
        )
        return path


@contextlib.asynccontextmanager
async def no_app(_: grpc.aio.Server, __: Health) -> AsyncIterator[Sequence[str]]:
    yield ()


def serve(folder: Path, **settings: object) -> contextlib.AbstractAsyncContextManager[str]:
    """Serves nothing but health over TLS."""
    return serving(ServiceSettings(drain_s=0, tls_dir=folder, **settings), no_app)


async def check(address: str, folder: Path | None, peer: str, timeout_s: float = 15) -> None:
    """Asks for health; raises what the call fails with."""
    async with open_channel(address, peer, folder) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        await stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)


async def refused(address: str, folder: Path | None, peer: str) -> bool:
    """Says whether a call comes to nothing."""
    try:
        await check(address, folder, peer)
    except grpc.aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.UNAVAILABLE, error
        return True
    return False


async def eventually(condition, limit_s: float = 30.0) -> None:
    """Waits until an asynchronous condition holds."""
    deadline = asyncio.get_running_loop().time() + limit_s
    while not await condition():
        assert asyncio.get_running_loop().time() < deadline, "it did not come to pass"
        await asyncio.sleep(0.1)
