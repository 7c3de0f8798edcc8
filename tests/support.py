"""What tests of several kinds share."""

import asyncio
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable

_STATE = tempfile.TemporaryDirectory(prefix="infermesh-tests-", ignore_cleanup_errors=True)


def state_dir() -> str:
    """Returns a new empty folder, gone with the test run."""
    return tempfile.mkdtemp(dir=_STATE.name)


_TRIES = 3


def within(limit_s: float, *measures: Callable[[], float]) -> None:
    """Fails where a measure, in seconds, is not below the limit in any of a few tries.

    One is enough: the others may have waited for other work of the machine. What takes longer
    because of the code takes longer each time.
    """
    for measure in measures:
        took_s: list[float] = []
        while not took_s or (took_s[-1] >= limit_s and len(took_s) < _TRIES):
            took_s.append(measure())
        assert took_s[-1] < limit_s, took_s


async def becomes_within(limit_s: float, *measures: Callable[[], Awaitable[float]]) -> None:
    """Does what `within` does with measures that are awaited."""
    for measure in measures:
        took_s: list[float] = []
        while not took_s or (took_s[-1] >= limit_s and len(took_s) < _TRIES):
            took_s.append(await measure())
        assert took_s[-1] < limit_s, took_s


async def until(condition: Callable[[], object], limit_s: float = 20.0) -> float:
    """Waits in the event loop until something holds; returns the seconds that it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < limit_s, "it did not come to pass"
        await asyncio.sleep(0.01)
    return time.monotonic() - began


def free_port() -> int:
    """Returns a TCP port on loopback that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
