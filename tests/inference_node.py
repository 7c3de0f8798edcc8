"""An inference proxy between a scripted engine and a scripted mesh, so that both can fail."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import orjson
import pytest
from google.api import httpbody_pb2
from google.protobuf import duration_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from infermesh.inference.v1 import inference_service_pb2 as pb
from infermesh.inference.v1 import inference_service_pb2_grpc, openai_service_pb2_grpc
from infermesh.metrics.v1 import usage_service_pb2 as usage_pb2
from infermesh.metrics.v1 import usage_service_pb2_grpc
from infermesh.registry.v1 import node_service_pb2, node_service_pb2_grpc
from services.inference.app import make_app
from services.inference.settings import InferenceSettings
from services.kit.errors import from_rpc_error
from services.kit.server import serving
from support import free_port

MODEL = "m"
ROLE = b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"role":"assistant"}}]}\n\n'
HELLO = b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"content":"hello"}}]}\n\n'
LAST = b'data: {"choices":[{"finish_reason":"stop","index":0,"delta":{}}]}\n\n'
USAGE = (
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2},"timings":{"x":1}}\n\n'
)
DONE = b"data: [DONE]\n\n"
ANSWER = ROLE + HELLO + LAST + USAGE + DONE
DIRECT = ROLE + HELLO + LAST[:-3] + b',"timings":{"x":1}}\n\n' + DONE

Script = Callable[["Reply"], Awaitable[None]]


class Reply:
    """One request to the scripted engine, and the way to answer it."""

    def __init__(self, path: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        self.path = path
        self.body = body
        self._writer = writer

    async def json(self, data: object, status: int = 200) -> None:
        text = orjson.dumps(data)
        self._writer.write(
            b"HTTP/1.1 %d X\r\ncontent-type: application/json; charset=utf-8\r\n"
            b"content-length: %d\r\n\r\n%b" % (status, len(text), text)
        )
        await self._writer.drain()

    async def start(self) -> None:
        self._writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        await self._writer.drain()

    async def send(self, piece: bytes) -> None:
        self._writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        await self._writer.drain()

    async def end(self) -> None:
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()

    async def stream(self, *pieces: bytes) -> None:
        await self.start()
        for piece in pieces:
            await self.send(piece)
        await self.end()

    def break_off(self) -> None:
        self._writer.transport.abort()


class FakeEngine:
    """Speaks as much of llama.cpp as the proxy asks; what it answers to chats is scripted."""

    def __init__(self) -> None:
        self.port = free_port()
        self.model = MODEL
        self.script: Script = lambda reply: reply.stream(ANSWER)
        self.serves_vectors = False
        self.is_loading = False
        self.requests: list[Reply] = []
        self.connections = 0
        self.hung_up = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head)
                body = await reader.readexactly(int(length[1])) if length else b""
                reply = Reply(head.split()[1].decode(), body, writer)
                answering = asyncio.create_task(self._answer(reply))
                closed = asyncio.create_task(self._watch(reader, answering))
                await asyncio.wait({answering, closed}, return_when=asyncio.FIRST_COMPLETED)
                if not answering.done():
                    answering.cancel()
                    self.hung_up.set()
                    break
                closed.cancel()
                await asyncio.wait({closed})
        self._writers.discard(writer)
        writer.transport.abort()

    async def _watch(self, reader: asyncio.StreamReader, answering: asyncio.Task[None]) -> None:
        while not reader.at_eof() and reader.exception() is None:
            await asyncio.sleep(0.005)

    async def _answer(self, reply: Reply) -> None:
        if self.is_loading:
            await reply.json({"error": {"code": 503, "type": "unavailable_error"}}, 503)
        elif reply.path == "/v1/models":
            await reply.json({"data": [{"id": self.model, "meta": {"n_ctx": 16}}]})
        elif reply.path == "/props":
            await reply.json(
                {"default_generation_settings": {}, "total_slots": 4, "build_info": "b1"}
            )
        elif reply.path == "/metrics":
            text = b"llamacpp:requests_processing 1\nllamacpp:requests_deferred 2\n"
            reply._writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(text), text)
            )
        elif reply.path == "/tokenize":
            text = orjson.loads(reply.body)["content"]
            await reply.json({"tokens": [0] * (len(text.split()) + 2)})
        elif reply.path == "/v1/embeddings" and not self.serves_vectors:
            await reply.json({"error": {"code": 501, "type": "not_supported_error"}}, 501)
        elif reply.path == "/v1/embeddings":
            await self._embed(reply)
        elif reply.path == "/v1/rerank" and self.serves_vectors:
            await reply.json({"error": {"code": 501, "type": "not_supported_error"}}, 501)
        else:
            self.requests.append(reply)
            await self.script(reply)

    async def _embed(self, reply: Reply) -> None:
        words = len(orjson.loads(reply.body)["input"].split())
        if words > 100:
            await reply.json({"error": {"code": 500, "type": "server_error"}}, 500)
        elif words > 14:
            error = {"code": 400, "type": "exceed_context_size_error"}
            await reply.json({"error": error}, 400)
        else:
            vector = {"embedding": [float(words), 0.5], "index": 0}
            await reply.json({"data": [vector], "usage": {"prompt_tokens": words + 2}})


class FakeMesh(
    node_service_pb2_grpc.NodeServiceServicer, usage_service_pb2_grpc.UsageServiceServicer
):
    """Takes joins, reports and usage, as the registry and metrics do."""

    def __init__(self) -> None:
        self.joins: list[node_service_pb2.JoinNode] = []
        self.reports: list[node_service_pb2.NodeReport] = []
        self.updates: list[node_service_pb2.NodeUpdate] = []
        self.progress: list[node_service_pb2.CommandProgress] = []
        self.events: list[usage_pb2.UsageEvent] = []
        self.keys: set[str] = set()
        self.nonce = b""
        self.refusal: tuple[grpc.StatusCode, str] | None = None
        self.goodbyes = 0
        self.to_node: asyncio.Queue[node_service_pb2.AttachNodeResponse | None] = asyncio.Queue()

    async def AttachNode(self, request_iterator, context):  # noqa: N802
        self.keys.add(dict(context.invocation_metadata())["authorization"])
        self.joins.append((await context.read()).join)
        if self.refusal:
            await context.abort(*self.refusal)
        if self.nonce:
            challenge = node_service_pb2.JoinChallenge(nonce=self.nonce)
            await context.write(node_service_pb2.AttachNodeResponse(challenge=challenge))
        joined = node_service_pb2.NodeJoined(report_interval=duration_pb2.Duration(nanos=10**8))
        await context.write(node_service_pb2.AttachNodeResponse(joined=joined))
        talking = asyncio.create_task(self._talk(context))
        reading = asyncio.create_task(self._read(context))
        await asyncio.wait({talking, reading}, return_when=asyncio.FIRST_COMPLETED)
        talking.cancel()
        reading.cancel()

    async def _talk(self, context) -> None:
        while (response := await self.to_node.get()) is not None:
            await context.write(response)

    async def _read(self, context) -> None:
        while (request := await context.read()) is not grpc.aio.EOF:
            match request.WhichOneof("message"):
                case "report":
                    self.reports.append(request.report)
                case "update":
                    self.updates.append(request.update)
                case "progress":
                    self.progress.append(request.progress)
        self.goodbyes += 1

    async def RecordUsage(self, request, context):  # noqa: N802
        self.keys.add(dict(context.invocation_metadata())["authorization"])
        self.events.extend(request.events)
        return usage_pb2.RecordUsageResponse()


class Node:
    """A running proxy between a scripted engine and a scripted mesh."""

    def __init__(self, address: str, channel: grpc.aio.Channel) -> None:
        self.address = address
        self.channel = channel
        self.openai = openai_service_pb2_grpc.OpenAIServiceStub(channel)
        self.typed = inference_service_pb2_grpc.InferenceServiceStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)

    def chat(self, metadata=(), **fields):
        request = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **fields}
        return self.openai.CreateChatCompletion(
            httpbody_pb2.HttpBody(data=orjson.dumps(request)), metadata=metadata
        )

    async def is_serving(self) -> bool:
        answer = await self.health.Check(health_pb2.HealthCheckRequest())
        return answer.status == health_pb2.HealthCheckResponse.SERVING


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while True:
            result = condition()
            if await result if asyncio.iscoroutine(result) else result:
                return
            await asyncio.sleep(0.01)


def caller(request_id: str) -> tuple[tuple[str, str], ...]:
    return (
        ("x-request-id", request_id),
        ("x-mesh-key-id", "k"),
        ("x-mesh-tenant", "t"),
        ("x-mesh-model", MODEL),
    )


def typed_chat(text: str = "hi", **fields: object) -> pb.ChatRequest:
    message = pb.ChatMessage(role=pb.CHAT_ROLE_USER, content=[pb.ContentPart(text=text)])
    return pb.ChatRequest(model=MODEL, messages=[message], **fields)


def text_of(messages: list[httpbody_pb2.HttpBody]) -> bytes:
    return b"".join(message.data for message in messages)


@asynccontextmanager
async def running(engine_port: int, mesh: str, folder: Path, **more: object) -> AsyncIterator[Node]:
    settings = InferenceSettings(
        **{
            "listen": f"127.0.0.1:{free_port()}",
            "drain_s": 1,
            "node_id": "node-1",
            "engine": "llamacpp",
            "engine_url": f"http://127.0.0.1:{engine_port}",
            "mesh_address": mesh,
            "node_key": "im-node",
            "state_dir": folder,
            **more,
        }
    )
    async with (
        serving(settings, make_app(settings)) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield Node(address, channel)


async def refusal(call) -> tuple[str, str | None]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    error = from_rpc_error(caught.value)
    assert error is not None
    return error.reason_name, error.param


async def rest(call) -> bytes:
    return text_of([message async for message in call])
