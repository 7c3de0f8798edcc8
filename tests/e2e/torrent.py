"""An engine whose streams have no end, and that counts what it got rid of."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator

from e2e.fleet import free_port

_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\n"
    b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n"
)
_EVENT_BYTES = 2048


class TorrentEngine:
    """Speaks OpenAI's HTTP; a stream of more than 20 tokens never ends.

    Attributes:
        url: Where it listens.
        sent: How many bytes each endless stream has taken, in the order of the requests.
        running: How many streams are open.
    """

    def __init__(self, model: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.sent: list[int] = []
        self.running = 0
        self._model = model

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            asked = json.loads(await reader.readexactly(int(length[1]))) if length else {}
            if head.startswith(b"GET "):
                await self._send(writer, {"object": "list", "data": [{"id": self._model}]})
            elif asked["max_tokens"] <= 20:
                await self._short(writer)
            else:
                await self._flood(writer)
        writer.transport.abort()

    async def _send(self, writer: asyncio.StreamWriter, data: object) -> None:
        text = json.dumps(data).encode()
        writer.write(_HEAD % b"application/json" + _chunk(text) + b"0\r\n\r\n")
        await writer.drain()

    async def _short(self, writer: asyncio.StreamWriter) -> None:
        events = self._event("Yes", None) + self._event("", "stop") + b"data: [DONE]\n\n"
        writer.write(_HEAD % b"text/event-stream" + _chunk(events) + b"0\r\n\r\n")
        await writer.drain()

    async def _flood(self, writer: asyncio.StreamWriter) -> None:
        event = _chunk(self._event("x" * _EVENT_BYTES, None))
        writer.write(_HEAD % b"text/event-stream")
        index = len(self.sent)
        self.sent.append(0)
        self.running += 1
        try:
            while True:
                writer.write(event)
                # Returns at once until the caller is behind, and the others have their turn.
                await writer.drain()
                await asyncio.sleep(0)
                self.sent[index] += len(event)
        finally:
            self.running -= 1

    def _event(self, text: str, reason: str | None) -> bytes:
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
        data = {
            "id": "chatcmpl-torrent",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": self._model,
            "choices": [choice],
        }
        return b"data: %b\n\n" % json.dumps(data, separators=(",", ":")).encode()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@contextlib.asynccontextmanager
async def torrent_engine(model: str) -> AsyncIterator[TorrentEngine]:
    """Gives an engine that listens, and ends it."""
    engine = TorrentEngine(model)
    server = await asyncio.start_server(engine._serve, "127.0.0.1", engine.port, backlog=1024)
    try:
        yield engine
    finally:
        server.close()
