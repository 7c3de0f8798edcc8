"""Serves simulated engines, each on a port of its own, from one process."""

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from services.inference.simulator.api import Api
from services.inference.simulator.connection import Connection
from services.inference.simulator.options import EngineOptions


async def serve(host: str, ports: Sequence[int], options: EngineOptions) -> None:
    """Serves one engine a port until SIGTERM or SIGINT.

    Raises:
        OSError: A port is taken.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with serving(host, ports, options):
        await stop.wait()


@asynccontextmanager
async def serving(
    host: str, ports: Sequence[int], options: EngineOptions
) -> AsyncIterator[Sequence[Api]]:
    """Serves one engine a port, which it gives in the ports' order, for as long as it is open.

    Raises:
        OSError: A port is taken.
    """
    loop = asyncio.get_running_loop()
    connections: set[Connection] = set()
    servers: list[asyncio.Server] = []
    apis = [Api(options, loop) for _ in ports]
    try:
        for port, api in zip(ports, apis, strict=True):

            def connect(api: Api = api) -> Connection:
                connection = Connection(api, connections.discard)
                connections.add(connection)
                return connection

            servers.append(await loop.create_server(connect, host, port, backlog=4096))
        yield apis
    finally:
        for server in servers:
            server.close()
        for connection in list(connections):
            connection.abort()
