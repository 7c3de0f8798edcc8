"""Records exchanges with a running engine: what the adapter sends it, and what it answers.

PYTHONPATH=.:gen:tests python tests/contract/exchanges/record.py ENGINE URL MODEL [SOURCE]
"""

import asyncio
import re
import sys
from typing import Any

import httpx
import orjson

from exchanges import FOLDER, Calls, tokens_in
from services.kit.errors import MeshError

_PROMPT = [{"role": "user", "content": "Say hi in one word."}]
_LONG = [{"role": "user", "content": "word " * 2100}]
_SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer"}},
    "required": ["age"],
    "additionalProperties": False,
}
_TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("chat", {"messages": _PROMPT, "max_tokens": 4}),
    "chat_stream": ("chat", {"messages": _PROMPT, "max_tokens": 4, "stream": True}),
    "chat_stream_usage": (
        "chat",
        {
            "messages": _PROMPT,
            "max_tokens": 4,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    ),
    "chat_extensions": (
        "chat",
        {"messages": _PROMPT, "max_tokens": 2, "priority": "high", "session_id": "s"},
    ),
    "chat_logprobs": (
        "chat",
        {"messages": _PROMPT, "max_tokens": 2, "logprobs": True, "top_logprobs": 1},
    ),
    "chat_several": (
        "chat",
        {"messages": _PROMPT, "max_tokens": 2, "n": 2, "temperature": 1, "seed": 1},
    ),
    "chat_schema": (
        "chat",
        {
            "messages": [{"role": "user", "content": "How old are you? Answer in JSON."}],
            "max_tokens": 12,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "age", "schema": _SCHEMA},
            },
        },
    ),
    "chat_tools": (
        "chat",
        {
            "messages": [{"role": "user", "content": "How is the weather in Paris?"}],
            "max_tokens": 40,
            "tools": [_TOOL],
            "tool_choice": {"type": "function", "function": {"name": "weather"}},
        },
    ),
    "chat_tools_stream": (
        "chat",
        {
            "messages": [{"role": "user", "content": "How is the weather in Paris?"}],
            "max_tokens": 40,
            "tools": [_TOOL],
            "tool_choice": {"type": "function", "function": {"name": "weather"}},
            "stream": True,
        },
    ),
    "chat_too_long": ("chat", {"messages": _LONG, "max_tokens": 2}),
    "chat_bad_value": ("chat", {"messages": _PROMPT, "max_tokens": 2, "temperature": -5}),
    "completion": ("completion", {"prompt": "1, 2, 3,", "max_tokens": 3}),
    "completion_stream": ("completion", {"prompt": "1, 2, 3,", "max_tokens": 3, "stream": True}),
}
# What would only make the files long.
_FOLDER = re.compile(r'"/(?:tmp|root|home|work)/[^"]*/')
_DULL = re.compile(r"^(?:#.*|[a-z:_]+_(?:bucket|created|sum|count)(?:\{.*)?|python_.*)\n", re.M)


class Recorder:
    """Stands between the adapter and the engine, and writes down what passes."""

    def __init__(self, target: str) -> None:
        # Engines close connections between requests as they like: each gets its own.
        limits = httpx.Limits(max_keepalive_connections=0)
        self._http = httpx.AsyncClient(base_url=target, timeout=120, limits=limits)
        self.exchanges: list[dict[str, Any]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = re.search(r"content-length: (\d+)", head)
                body = await reader.readexactly(int(length[1])) if length else b""
                method, path, _ = head.split(" ", 2)
                await self._pass(writer, method, path, body)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.transport.abort()

    async def _pass(
        self, writer: asyncio.StreamWriter, method: str, path: str, body: bytes
    ) -> None:
        asked: dict[str, Any] = {"method": method, "path": path}
        if body:
            asked["body"] = orjson.loads(body)
        kept = ("content-type", "transfer-encoding")
        headers = {"content-type": "application/json"} if body else {}
        async with self._http.stream(method, path, content=body, headers=headers) as answer:
            said = {k: v for k, v in answer.headers.items() if k in kept}
            said.setdefault("transfer-encoding", "chunked")
            writer.write(b"HTTP/1.1 %d X\r\n" % answer.status_code)
            for name, value in said.items():
                writer.write(f"{name}: {value}\r\n".encode())
            writer.write(b"\r\n")
            chunks = []
            async for piece in answer.aiter_raw():
                chunks.append(piece.decode())
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                await writer.drain()
            writer.write(b"0\r\n\r\n")
        if "text/event-stream" not in said.get("content-type", ""):
            said.pop("transfer-encoding")
            chunks = ["".join(chunks)]
        if path == "/metrics":
            chunks = [_DULL.sub("", chunks[0])]
        chunks = [_FOLDER.sub('"/models/', chunk) for chunk in chunks]
        response = {"status": answer.status_code, "headers": said, "chunks": chunks}
        self.exchanges.append({"request": asked, "response": response})


async def main(engine: str, target: str, model: str, name: str = "") -> None:
    """Records every case."""
    recorder = Recorder(target)
    server = await asyncio.start_server(recorder.serve, "127.0.0.1", 0)
    calls = Calls(engine, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    description = await calls.engine.describe(calls.client)
    calls.know(description)
    load = await calls.engine.probe(calls.client)
    source = f"recorded from {name or engine} {description.version}".strip()
    folder = FOLDER / engine
    folder.mkdir(exist_ok=True)

    def write(name: str, case: dict[str, Any]) -> None:
        seen = []
        for exchange in recorder.exchanges:
            if exchange not in seen:
                seen.append(exchange)
        recorder.exchanges = []
        text = orjson.dumps(
            {"source": source, "exchanges": seen, **case}, option=orjson.OPT_INDENT_2
        )
        (folder / f"{name}.json").write_bytes(text + b"\n")

    write("describe", {"description": description, "load": load})
    for title, (kind, body) in CASES.items():
        asked = {"model": model, "temperature": 0, **body}
        case: dict[str, Any] = {"asked": {"kind": kind, "body": asked}}
        try:
            case["answered"] = await calls.call(kind, asked)
        except MeshError as error:
            case["refused"] = {"reason": error.reason_name, "param": error.param}
        if calls.ledger.events:
            event = calls.ledger.events.pop()
            case["tokens"] = tokens_in(event)
        write(title, case)
        print(title, case.get("refused") or case["answered"])
    calls.client.close()
    server.close()
    await asyncio.sleep(0.1)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:5]))
