"""A real Redis for the tests of the limiter, which can be killed and started again."""

import asyncio
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import redis

from services.auth.limiting import wire
from services.cli import binaries


class Server:
    """A Redis of its own, with an append-only file as the mesh has it."""

    def __init__(self, folder: Path, port: int) -> None:
        self.url = f"redis://127.0.0.1:{port}/0"
        self._argv = [
            *(str(binaries.redis_server()), "--port", str(port), "--bind", "127.0.0.1"),
            *("--dir", str(folder), "--appendonly", "yes", "--save", ""),
        ]
        self.process: subprocess.Popen[bytes] | None = None

    def spawn(self) -> None:
        self.process = subprocess.Popen(self._argv, stdout=subprocess.DEVNULL)

    async def start(self) -> None:
        self.spawn()
        with redis.Redis.from_url(self.url) as client:
            for _ in range(3000):
                try:
                    client.ping()
                    return
                except redis.exceptions.RedisError:
                    await asyncio.sleep(0.01)
        raise TimeoutError("Redis does not start")

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@asynccontextmanager
async def server(folder: Path, port: int) -> AsyncIterator[Server]:
    one = Server(folder, port)
    await one.start()
    try:
        yield one
    finally:
        one.kill()


def forget(url: str) -> None:
    """Removes what earlier tests counted."""
    with redis.Redis.from_url(url) as client:
        for key in client.scan_iter("infermesh:limits:*"):
            client.delete(key)


class Script:
    """Runs the script without a limiter, at times of the test's own."""

    def __init__(self, url: str, hold_s: int) -> None:
        self.client = redis.Redis.from_url(url)
        self._script = self.client.register_script(wire.SCRIPT)
        self.hold_s = hold_s

    def run(self, now: int, rows: list[Any], ops: list[Any], run: str = "run") -> list[Any]:
        argument = orjson.dumps([run, (now, 250_000), self.hold_s, rows, ops])
        second, micros, results, alerts = wire.read(self._script(args=[argument]))
        return [second, micros, [list(each) for each in results], [list(each) for each in alerts]]
