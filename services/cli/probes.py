"""Ways to ask a part whether it does its work, by protocol."""

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

Probe = Callable[[], Awaitable[bool]]
"""Returns whether the part is ready. Raising says no as well."""


def tcp(host: str, port: int) -> Probe:
    """Returns a probe that is content with an open port."""

    async def probe() -> bool:
        _, writer = await asyncio.open_connection(host, port)
        writer.close()
        return True

    return probe


def http(host: str, port: int, path: str) -> Probe:
    """Returns a probe that wants status 200 from a GET."""

    async def probe() -> bool:
        request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        return (await _ask(host, port, request.encode(), 12)).split(b" ")[1:2] == [b"200"]

    return probe


def envoy(host: str, port: int, *, is_tls: bool = False) -> Probe:
    """Returns a probe that wants an answer that only the mesh's Envoy gives.

    A part or a stranger may have the port instead. An unhealthy mesh will do: nodes join later.
    """
    context = None
    if is_tls:
        context = ssl.create_default_context()
        # Whether it is up is asked at its address; its certificate is for the names of callers.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    name = f"[{host}]" if ":" in host else host

    async def probe() -> bool:
        request = f"GET /health HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n"
        asked = _ask(host, port, request.encode(), until=b"\r\n\r\n", context=context)
        head = (await asked).lower()
        status = head.split(b" ")[1:2]
        return status in ([b"200"], [b"503"]) and b"\r\nx-request-id:" in head

    return probe


def redis(host: str, port: int, password: str) -> Probe:
    """Returns a probe that logs in to Redis and wants a PONG."""

    async def probe() -> bool:
        request = f"AUTH {password}\r\nPING\r\n"
        return await _ask(host, port, request.encode(), 12) == b"+OK\r\n+PONG\r\n"

    return probe


def postgres(url: str) -> Probe:
    """Returns a probe that logs in to PostgreSQL.

    Args:
        url: `postgresql://user:password@host:port/database`.
    """

    async def probe() -> bool:
        import asyncpg

        await (await asyncpg.connect(url, timeout=2)).close()
        return True

    return probe


def grpc_health(host: str, port: int, peer: str = "", tls_dir: Path | None = None) -> Probe:
    """Returns a probe that wants SERVING from gRPC's health protocol.

    Args:
        host: The part's address.
        port: Its port.
        peer: Its name in its certificate.
        tls_dir: The folder with the command line's TLS files; None for no TLS.
    """
    tcp_open = tcp(host, port)

    async def probe() -> bool:
        # Most calls come before there is a port: that is found out a hundred times cheaper here.
        await tcp_open()

        from grpc_health.v1 import health_pb2, health_pb2_grpc

        from services.kit.channels import open_channel

        # A channel of its own: a shared one would sit out its reconnect delay.
        async with open_channel(f"{host}:{port}", peer, tls_dir) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=1)
            return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    return probe


async def _ask(
    host: str,
    port: int,
    request: bytes,
    size: int = 0,
    *,
    until: bytes = b"",
    context: ssl.SSLContext | None = None,
) -> bytes:
    """Returns the first `size` bytes of the answer, or those up to and with `until`."""
    reader, writer = await asyncio.open_connection(host, port, ssl=context)
    try:
        writer.write(request)
        return await (reader.readuntil(until) if until else reader.readexactly(size))
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
