"""Exchanges with engines, recorded or written from their documentation, and how they are replayed.

A file under `tests/contract/exchanges/<engine>/` holds one case:

    source       where it comes from: "recorded from …" or "written from documentation <url>"
    exchanges    what the adapter sends to the engine, and what the engine answers
    asked        what the caller sends: `kind`, `body`
    answered     what the caller gets: an object, or a stream's events
    refused      instead of it: the reason and the field at fault
    tokens       what is recorded of it: prompt, completion, cached
    description  for what the engine serves instead of a call: version and models
    load         how busy it is
"""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson

from infermesh.metrics.v1 import usage_service_pb2 as usage_pb2
from services.inference.accounting import Ledger
from services.inference.admission import Admission
from services.inference.engines import ENGINES
from services.inference.engines.dialect import Description, Engine, EngineOptions
from services.inference.gateway_metadata import GatewayMetadata
from services.inference.http_client import EngineClient
from services.inference.relay import Relay
from services.inference.requests import parse
from services.inference.state import EngineState
from services.kit.audit_events import OutcomeRecorder
from services.kit.audit_inference import InferenceAudit
from services.kit.caller import Caller

FOLDER = Path(__file__).parent / "contract" / "exchanges"
CALLER = Caller(request_id="r", attempt=1, tenant="t", key_id="k", model="")
# What the proxy makes up itself, different each time.
_VARYING = re.compile(rb'("id":"(?:chatcmpl-|cmpl-|call_))[0-9a-f]{32}|("created":)\d+')


def load(path: Path) -> dict[str, Any]:
    """Returns a case."""
    return orjson.loads(path.read_bytes())


def plain(text: bytes) -> bytes:
    """Returns an answer without what differs from one call to the next."""
    return _VARYING.sub(lambda found: (found[1] or found[2]) + b"0", text)


def tokens_in(event: usage_pb2.UsageEvent) -> dict[str, int]:
    """Returns the counts that an event has; unknown ones are left out."""
    return {
        name: getattr(event, f"{name}_tokens")
        for name in ("prompt", "completion", "cached")
        if event.HasField(f"{name}_tokens")
    }


class Replay:
    """An engine that answers as recorded, and only what was recorded.

    Attributes:
        url: Where it listens.
        surprises: Requests that the recording does not hold.
    """

    def __init__(self, exchanges: list[dict[str, Any]]) -> None:
        self._exchanges = exchanges
        self.url = ""
        self.surprises: list[str] = []
        self.heads: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                self.heads.append(head)
                length = re.search(r"content-length: (\d+)", head)
                body = await reader.readexactly(int(length[1])) if length else b""
                method, path, _ = head.split(" ", 2)
                await self._answer(writer, method, path, orjson.loads(body) if body else None)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.transport.abort()

    async def _answer(
        self, writer: asyncio.StreamWriter, method: str, path: str, body: object
    ) -> None:
        asked = {"method": method, "path": path} | ({} if body is None else {"body": body})
        found = next((e for e in self._exchanges if e["request"] == asked), None)
        if found is None:
            self.surprises.append(orjson.dumps(asked).decode())
            found = {"response": {"status": 418, "headers": {}, "chunks": ["{}"]}}
        response = found["response"]
        writer.write(b"HTTP/1.1 %d X\r\n" % response["status"])
        for name, value in response["headers"].items():
            writer.write(f"{name}: {value}\r\n".encode())
        pieces = [chunk.encode() for chunk in response["chunks"]]
        if response["headers"].get("transfer-encoding") == "chunked":
            writer.write(b"\r\n")
            for piece in pieces:
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                await writer.drain()
                # Each chunk is a piece of its own for whoever reads it.
                await asyncio.sleep(0.001)
            writer.write(b"0\r\n\r\n")
        else:
            whole = b"".join(pieces)
            writer.write(b"content-length: %d\r\n\r\n%b" % (len(whole), whole))
        await writer.drain()


@asynccontextmanager
async def replaying(exchanges: list[dict[str, Any]]) -> AsyncIterator[Replay]:
    """Serves exchanges on a port of its own."""
    replay = Replay(exchanges)
    server = await asyncio.start_server(replay.serve, "127.0.0.1", 0)
    replay.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield replay


class Ledgered:
    """Takes in what calls took, in place of a spool."""

    def __init__(self) -> None:
        self.events: list[usage_pb2.UsageEvent] = []

    def begin(self, event: usage_pb2.UsageEvent) -> None:
        """Notes that a call began."""

    def finish(self, event: usage_pb2.UsageEvent) -> None:
        """Notes what a call took."""
        self.events.append(event)


class Calls:
    """Calls to an engine by way of its adapter and the relay.

    Args:
        engine: The engine's name.
        url: Where it listens.
        options: What the operator says of it.
    """

    def __init__(self, engine: str, url: str, options: EngineOptions | None = None) -> None:
        self.engine: Engine = ENGINES[engine](options or EngineOptions())
        self.client = EngineClient(url, idle_timeout_s=30, headers=self.engine.headers)
        self.state = EngineState()
        self.ledger = Ledgered()
        admission = Admission(self.state, max_in_flight=8, max_queued=8, max_wait_s=1)
        self.relay = Relay(
            self.engine,
            self.client,
            Ledger(self.ledger, "node-1", self.state.answers),
            self.state,
            admission,
            GatewayMetadata("node-1", engine, lambda model: (None, None)),
            InferenceAudit(OutcomeRecorder(lambda *_: None), "node-1"),
        )

    def know(self, description: Description) -> None:
        """Has the node serve what the engine serves."""
        self.state.describe(description)
        self.state.set_up(True)

    async def call(self, kind: str, body: dict[str, Any]) -> Any:
        """Returns an answer: an object, or the list of a stream's events."""
        request = parse(kind, orjson.dumps(body))
        if not request.is_stream:
            raw, data = await self.relay.answer(CALLER, request)
            return orjson.loads(plain(orjson.dumps(data) if raw is None else raw))
        pieces: list[bytes] = []

        async def write(data: bytes, content_type: str) -> None:
            assert content_type.startswith("text/event-stream"), content_type
            pieces.append(data)

        await self.relay.stream(CALLER, request, write)
        events = plain(b"".join(pieces)).decode().split("\n\n")
        assert events.pop() == ""
        return events
