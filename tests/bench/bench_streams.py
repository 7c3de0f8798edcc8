"""Reads many streams at once and says how late each chunk is, by the stamps of the engine.

The engine (`--stamped`) writes when a chunk left it, on the machine's monotonic clock; what a chunk
took until it is here is what stands between the engine and the caller.

Run as a program, it reads from standard input what to ask and prints the figures: a process of its
own, so that nothing else that the bench does delays what is measured.
"""

import asyncio
import gc
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httptools
import orjson
import uvloop
from bench_figures import percentiles

_STAMP = b'"content":" '


@dataclass
class Read:
    """What was read.

    Attributes:
        delays_ms: Of each chunk, from the engine to here.
        first_ms: Of each stream, from the request to its first chunk.
        streams: Streams that were answered in full.
        failed: Streams that were not.
    """

    delays_ms: list[float] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)
    streams: int = 0
    failed: int = 0


class Stream(asyncio.Protocol):
    """One stream, on a connection of its own.

    Args:
        request: What is asked.
        read: Gets what is read.
    """

    def __init__(self, request: bytes, read: Read) -> None:
        self._request = request
        self._read = read
        self._parser = httptools.HttpResponseParser(self)
        self._transport: Any = None
        self._rest = b""
        self._has_first = False
        self._is_over = False
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._began = time.perf_counter()
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._now_us = time.monotonic_ns() // 1000
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        text = self._rest + body
        at = 0
        while (found := text.find(_STAMP, at)) >= 0:
            end = text.find(b'"', found + len(_STAMP))
            if end < 0:
                break
            left_us = int(text[found + len(_STAMP) : end])
            self._read.delays_ms.append((self._now_us - left_us) / 1000)
            if not self._has_first:
                self._has_first = True
                self._read.first_ms.append(1000 * (time.perf_counter() - self._began))
            at = end
        self._rest = text[max(at, len(text) - 64) :]

    def on_message_complete(self) -> None:
        is_whole = self._parser.get_status_code() == 200 and b"[DONE]" in self._rest
        self._read.streams += is_whole
        self._finish(is_whole)

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish(False)

    def give_up(self) -> None:
        """Counts the stream as failed, unless it is over."""
        self._finish(False)

    def _finish(self, is_whole: bool) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._read.failed += not is_whole
        self._transport.close()
        if not self.done.done():
            self.done.set_result(None)


def request(url: str, headers: Mapping[str, str], body: object) -> tuple[str, int, bytes]:
    """Returns host, port and the bytes of a chat."""
    parts = urlsplit(url)
    assert parts.hostname and parts.port
    data = orjson.dumps(body)
    said = {"host": parts.netloc, "content-type": "application/json", **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in said.items())
    start = f"POST /v1/chat/completions HTTP/1.1\r\n{head}content-length: {len(data)}\r\n\r\n"
    return parts.hostname, parts.port, start.encode() + data


async def read_streams(
    urls: Sequence[str],
    headers: Mapping[str, str],
    body: object,
    *,
    count: int,
    per_second: float,
    limit_s: float,
) -> Read:
    """Asks `count` times, `per_second` evenly spread, each on a connection of its own.

    The addresses take turns. A stream that is not over `limit_s` after the first began has failed.
    """
    asks = [request(url, headers, body) for url in urls]
    loop = asyncio.get_running_loop()
    read = Read()
    began = loop.time()

    async def one(number: int) -> None:
        await asyncio.sleep(began + number / per_second - loop.time())
        left_s = began + limit_s - loop.time()
        await open_stream(*asks[number % len(asks)], read, left_s)

    await asyncio.gather(*(one(number) for number in range(count)))
    return read


async def open_stream(host: str, port: int, sent: bytes, read: Read, limit_s: float) -> None:
    """Asks once, on a connection of its own, and reads the stream to its end.

    A stream that is not over in `limit_s` has failed.
    """
    loop = asyncio.get_running_loop()
    stream = None
    try:
        async with asyncio.timeout(limit_s):
            _, stream = await loop.create_connection(lambda: Stream(sent, read), host, port)
            await stream.done
    except (OSError, TimeoutError):
        if stream is None:
            read.failed += 1
        else:
            stream.give_up()


def main() -> None:
    """Reads what standard input asks for and prints the figures."""
    order = json.load(sys.stdin)
    # What is kept is a few numbers a chunk; a collection would be a delay of ours in all figures.
    gc.disable()
    read = uvloop.run(read_streams(order.pop("urls"), order.pop("headers"), **order))
    figures = {
        "streams": read.streams,
        "failed": float(read.failed),
        **percentiles("first", read.first_ms),
        **percentiles("chunk", read.delays_ms),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
