"""Every RPC of the inference proxy over a running server.

The engine and the mesh are small scripted servers of this file's own, so that they can fail on
command; the tests at the end use a real llama.cpp.
"""

import asyncio
import contextlib
import os
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import httpx
import orjson
import pytest
from google.api import httpbody_pb2
from google.protobuf import duration_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from infermesh.inference.v1 import (
    inference_service_pb2 as pb,
)
from infermesh.inference.v1 import (
    inference_service_pb2_grpc,
    openai_service_pb2_grpc,
)
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
            await reply.json({"data": [{"id": MODEL, "meta": {"n_ctx": 16}}]})
        elif reply.path == "/props":
            await reply.json({"total_slots": 4, "build_info": "b1"})
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
        self.events: list[usage_pb2.UsageEvent] = []
        self.keys: set[str] = set()
        self.goodbyes = 0
        self.to_node: asyncio.Queue[node_service_pb2.AttachNodeResponse | None] = asyncio.Queue()

    async def AttachNode(self, request_iterator, context):  # noqa: N802
        self.keys.add(dict(context.invocation_metadata())["authorization"])
        self.joins.append((await context.read()).join)
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
            self.reports.append(request.report)
        self.goodbyes += 1

    async def RecordUsage(self, request, context):  # noqa: N802
        self.keys.add(dict(context.invocation_metadata())["authorization"])
        self.events.extend(request.events)
        return usage_pb2.RecordUsageResponse()


class Node:
    """A running proxy between a scripted engine and a scripted mesh."""

    def __init__(self, address: str, channel: grpc.aio.Channel) -> None:
        self.address = address
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
    async with asyncio.timeout(5):
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


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    fake = FakeEngine()
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
async def mesh() -> AsyncIterator[FakeMesh]:
    fake = FakeMesh()
    server = grpc.aio.server()
    node_service_pb2_grpc.add_NodeServiceServicer_to_server(fake, server)
    usage_service_pb2_grpc.add_UsageServiceServicer_to_server(fake, server)
    fake.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield fake
    await server.stop(0)


@pytest.fixture
async def node(engine: FakeEngine, mesh: FakeMesh, tmp_path: Path) -> AsyncIterator[Node]:
    async with running(engine.port, mesh.address, tmp_path, engine_idle_timeout_s=1) as node:
        await until(node.is_serving)
        yield node


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


# OpenAI's surface.


async def test_a_stream_is_the_engines_byte_for_byte(node: Node, engine: FakeEngine) -> None:
    call = node.chat(stream=True)
    messages = [message async for message in call]
    assert text_of(messages) == DIRECT
    assert messages[0].content_type == "text/event-stream"
    call = node.chat(stream=True, stream_options={"include_usage": True}, return_progress=True)
    assert text_of([m async for m in call]) == ANSWER


async def test_what_does_not_stream_is_one_message(node: Node) -> None:
    messages = [message async for message in node.chat()]
    assert len(messages) == 1
    assert messages[0].content_type == "application/json; charset=utf-8"
    data = orjson.loads(messages[0].data)
    assert data["model"] == MODEL
    assert data["choices"][0]["message"] == {"role": "assistant", "content": "hello"}
    assert data["usage"] == {"prompt_tokens": 3, "completion_tokens": 2}


async def test_a_completion(node: Node, engine: FakeEngine) -> None:
    event = {"choices": [{"index": 0, "text": "ok", "finish_reason": "stop"}], "usage": {}}
    piece = b"data: " + orjson.dumps(event) + b"\n\n"
    engine.script = lambda reply: reply.stream(piece, DONE)
    body = httpbody_pb2.HttpBody(data=orjson.dumps({"model": MODEL, "prompt": "x"}))
    messages = [message async for message in node.openai.CreateCompletion(body)]
    assert orjson.loads(text_of(messages))["choices"][0]["text"] == "ok"
    assert engine.requests[0].path == "/v1/completions"


async def test_connections_are_kept_and_a_closed_one_costs_no_request(
    node: Node, engine: FakeEngine
) -> None:
    for _ in range(5):
        assert text_of([m async for m in node.chat(stream=True)]) == DIRECT
    # Chats and probes take turns on very few.
    assert engine.connections <= 3

    async def answer_and_close(reply: Reply) -> None:
        await reply.stream(ANSWER)
        reply._writer.close()

    engine.script = answer_and_close
    for _ in range(5):
        assert text_of([m async for m in node.chat(stream=True)]) == DIRECT


@pytest.mark.parametrize("stream", [True, False])
async def test_hanging_up_reaches_the_engine(
    node: Node, engine: FakeEngine, mesh: FakeMesh, stream: bool
) -> None:
    async def forever(reply: Reply) -> None:
        await reply.start()
        while True:
            await reply.send(HELLO)
            await asyncio.sleep(0.01)

    engine.script = forever
    call = node.chat(metadata=caller("gone"), stream=stream)
    if stream:
        assert HELLO in (await call.read()).data
    else:
        await until(lambda: engine.requests)
    call.cancel()
    await asyncio.wait_for(engine.hung_up.wait(), 1)
    await until(lambda: mesh.events)
    event = mesh.events[0]
    assert (event.request_id, event.outcome) == ("gone", usage_pb2.OUTCOME_CANCELLED)
    assert not event.HasField("completion_tokens")


async def test_a_slow_reader_holds_the_engine_back(node: Node, engine: FakeEngine) -> None:
    sent = 0

    async def much(reply: Reply) -> None:
        nonlocal sent
        await reply.start()
        text = b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % (b"x" * 100_000)
        for _ in range(400):
            await reply.send(text)
            sent += len(text)
        await reply.send(DONE)
        await reply.end()

    engine.script = much
    call = node.chat(stream=True)
    await call.read()
    await asyncio.sleep(0.5)
    # Sockets and gRPC hold some; 40 MB would mean that nothing holds the engine back.
    assert sent < 25_000_000
    while (message := await call.read()) is not grpc.aio.EOF:
        last = message.data
    assert last.endswith(DONE)


# How it fails.


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "INVALID_JSON"),
        (b"[" * 10_000, "INVALID_JSON"),
        (b'{"model":"m","messages":[]}', "INVALID_ARGUMENT"),
        (b'{"model":"other","messages":[{"role":"user"}]}', "MODEL_NOT_FOUND"),
    ],
)
async def test_bad_requests_never_reach_the_engine(
    node: Node, engine: FakeEngine, body: bytes, reason: str
) -> None:
    call = node.openai.CreateChatCompletion(httpbody_pb2.HttpBody(data=body))
    assert (await refusal(call))[0] == reason
    assert engine.requests == []


async def test_a_model_other_than_auth_allowed_is_refused(node: Node) -> None:
    call = node.chat(metadata=(("x-mesh-model", "cheap"),))
    assert await refusal(call) == ("INVALID_ARGUMENT", "model")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("status", "reason", "outcome"),
    [
        (400, "ENGINE_REJECTED", usage_pb2.OUTCOME_REJECTED),
        (500, "ENGINE_FAILED", usage_pb2.OUTCOME_FAILED),
        (503, "ENGINE_UNAVAILABLE", usage_pb2.OUTCOME_FAILED),
    ],
)
async def test_the_engine_refuses(
    node: Node,
    engine: FakeEngine,
    mesh: FakeMesh,
    stream: bool,
    status: int,
    reason: str,
    outcome: int,
) -> None:
    error = {"error": {"code": status, "message": "no", "param": "temperature"}}
    engine.script = lambda reply: reply.json(error, status)
    refused = await refusal(node.chat(metadata=caller("r"), stream=stream))
    assert refused == (reason, "temperature" if status == 400 else None)
    await until(lambda: mesh.events)
    assert mesh.events[0].outcome == outcome


async def test_an_engine_that_breaks_before_the_first_event_is_worth_another_node(
    node: Node, engine: FakeEngine
) -> None:
    async def die(reply: Reply) -> None:
        reply.break_off()

    engine.script = die
    assert (await refusal(node.chat(stream=True)))[0] == "ENGINE_UNAVAILABLE"

    async def start_and_die(reply: Reply) -> None:
        await reply.start()
        reply.break_off()

    engine.script = start_and_die
    assert (await refusal(node.chat(stream=True)))[0] == "ENGINE_UNAVAILABLE"


async def test_what_nobody_has_seen_yet_is_worth_another_node(
    node: Node, engine: FakeEngine
) -> None:
    async def die_in_the_middle(reply: Reply) -> None:
        await reply.start()
        await reply.send(ROLE + HELLO)
        reply.break_off()

    engine.script = die_in_the_middle
    assert (await refusal(node.chat()))[0] == "ENGINE_UNAVAILABLE"


@pytest.mark.parametrize("is_orderly", [True, False])
async def test_a_stream_that_breaks_says_so_in_its_own_words(
    node: Node, engine: FakeEngine, mesh: FakeMesh, is_orderly: bool
) -> None:
    async def break_in_the_middle(reply: Reply) -> None:
        await reply.start()
        await reply.send(HELLO)
        await asyncio.sleep(0.05)
        await reply.send(b'data: {"choi')
        if is_orderly:
            await reply.end()
        else:
            reply.break_off()

    engine.script = break_in_the_middle
    call = node.chat(metadata=caller("broken"), stream=True)
    received = b""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for message in call:
            received += message.data
    assert from_rpc_error(caught.value).reason_name == "ENGINE_FAILED"
    events = received.split(b"\n\n")
    assert events[0] + b"\n\n" == HELLO
    assert orjson.loads(events[1].removeprefix(b"data: "))["error"]["code"] == "engine_failed"
    assert events[2:] == [b""]
    await until(lambda: mesh.events)
    assert mesh.events[0].outcome == usage_pb2.OUTCOME_FAILED


async def test_done_after_an_error_is_no_success(node: Node, engine: FakeEngine) -> None:
    error = b'data: {"error":{"code":500,"message":"out of memory"}}\n\n'

    async def fail(reply: Reply) -> None:
        await reply.start()
        await reply.send(HELLO)
        await asyncio.sleep(0.05)
        await reply.send(error + DONE)
        await reply.end()

    engine.script = fail
    received = b""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for message in node.chat(stream=True):
            received += message.data
    assert received == HELLO + error
    assert from_rpc_error(caught.value).message == "out of memory"
    assert (await refusal(node.chat()))[0] == "ENGINE_FAILED"


async def test_silence_is_a_timeout(node: Node, engine: FakeEngine) -> None:
    async def silence(reply: Reply) -> None:
        await asyncio.sleep(60)

    engine.script = silence
    assert (await refusal(node.chat()))[0] == "ENGINE_TIMEOUT"
    await asyncio.wait_for(engine.hung_up.wait(), 1)


async def test_too_many_requests_go_elsewhere(
    engine: FakeEngine, mesh: FakeMesh, tmp_path: Path
) -> None:
    async def wait(reply: Reply) -> None:
        await asyncio.sleep(60)

    engine.script = wait
    async with running(engine.port, mesh.address, tmp_path, max_in_flight=1) as node:
        await until(node.is_serving)
        first = node.chat()
        await until(lambda: engine.requests)
        assert (await refusal(node.chat()))[0] == "ENGINE_UNAVAILABLE"
        first.cancel()


# The typed surface.


def typed_chat(text: str = "hi") -> pb.ChatRequest:
    message = pb.ChatMessage(role=pb.CHAT_ROLE_USER, content=[pb.ContentPart(text=text)])
    return pb.ChatRequest(model=MODEL, messages=[message])


async def test_chat(node: Node, engine: FakeEngine) -> None:
    call = node.typed.Chat(typed_chat())
    response = await call
    assert response.choices[0].message.content[0].text == "hello"
    assert response.choices[0].finish_reason == pb.FINISH_REASON_STOP
    assert (response.usage.prompt_tokens, response.usage.completion_tokens) == (3, 2)
    assert orjson.loads(engine.requests[0].body)["messages"] == [{"role": "user", "content": "hi"}]
    assert await refusal(node.typed.Chat(pb.ChatRequest(model=MODEL))) == (
        "INVALID_ARGUMENT",
        "messages",
    )


async def test_stream_chat_has_its_usage_at_the_end(node: Node) -> None:
    request = pb.StreamChatRequest(chat=typed_chat())
    responses = [response async for response in node.typed.StreamChat(request)]
    assert "".join(d.content for r in responses for d in r.deltas) == "hello"
    assert [r.HasField("usage") for r in responses][-2:] == [False, True]
    assert responses[-1].usage == pb.Usage(prompt_tokens=3, completion_tokens=2)


async def test_answers_of_other_shapes_are_the_engines_failure(
    node: Node, engine: FakeEngine
) -> None:
    engine.script = lambda reply: reply.stream(b'data: {"choices":[{"delta":{"content":7}}]}\n\n')
    request = pb.StreamChatRequest(chat=typed_chat())
    assert (await refusal(node.typed.StreamChat(request)))[0] == "ENGINE_FAILED"


async def test_a_chat_model_does_not_embed(node: Node) -> None:
    request = pb.EmbedRequest(model=MODEL, inputs=["a"])
    assert await refusal(node.typed.Embed(request)) == ("INVALID_ARGUMENT", "model")


@pytest.fixture
async def embedder(engine: FakeEngine, mesh: FakeMesh, tmp_path: Path) -> AsyncIterator[Node]:
    engine.serves_vectors = True
    async with running(engine.port, mesh.address, tmp_path) as node:
        await until(node.is_serving)
        yield node


async def test_embed_counts_the_tokens_of_each(embedder: Node, mesh: FakeMesh) -> None:
    texts = [" ".join("w" * (i % 14 + 1)) for i in range(40)]
    request = pb.EmbedRequest(model=MODEL, inputs=texts)
    response = await embedder.typed.Embed(request, metadata=caller("e"))
    assert [e.values[0] for e in response.embeddings] == [len(t.split()) for t in texts]
    assert [e.tokens for e in response.embeddings] == [len(t.split()) + 2 for t in texts]
    assert response.usage.prompt_tokens == sum(e.tokens for e in response.embeddings)
    await until(lambda: mesh.events)
    event = mesh.events[0]
    assert event.operation == usage_pb2.OPERATION_EMBEDDING
    assert event.prompt_tokens == response.usage.prompt_tokens


@pytest.mark.parametrize("words", [20, 200])
async def test_an_input_that_is_too_long_is_named(embedder: Node, words: int) -> None:
    request = pb.EmbedRequest(model=MODEL, inputs=["a", "b", "w " * words, "c"])
    assert await refusal(embedder.typed.Embed(request)) == ("INPUT_TOO_LONG", "input[2]")


async def test_an_embedding_model_does_not_chat(embedder: Node) -> None:
    assert await refusal(embedder.chat()) == ("INVALID_ARGUMENT", "model")


# The node in the mesh.


async def test_it_joins_and_reports(node: Node, engine: FakeEngine, mesh: FakeMesh) -> None:
    await until(lambda: len(mesh.reports) >= 3)
    join = mesh.joins[0]
    assert (join.node_id, join.address, join.engine) == ("node-1", node.address, "llamacpp")
    assert (join.engine_version, join.models[0].name) == ("b1", MODEL)
    assert join.models[0].context_length == 16
    report = mesh.reports[-1]
    assert report.engine_up
    assert not report.draining
    assert (report.load.running, report.load.queued, report.load.slots) == (1, 2, 4)
    assert mesh.keys == {"Bearer im-node"}


async def test_it_joins_again_when_the_stream_ends(node: Node, mesh: FakeMesh) -> None:
    await until(lambda: mesh.reports)
    mesh.to_node.put_nowait(None)
    await until(lambda: len(mesh.joins) == 2)


async def test_an_operators_drain_is_taken(node: Node, mesh: FakeMesh) -> None:
    for draining in (True, False):
        changed = node_service_pb2.DrainChanged(draining=draining)
        mesh.to_node.put_nowait(node_service_pb2.AttachNodeResponse(drain_changed=changed))
        await until(
            lambda draining=draining: mesh.reports[-1:] and mesh.reports[-1].draining == draining
        )
    assert await node.is_serving()


async def test_an_engine_that_goes_and_comes_back(
    node: Node, engine: FakeEngine, mesh: FakeMesh
) -> None:
    await until(lambda: mesh.reports and mesh.reports[-1].engine_up)
    await engine.stop()
    assert (await refusal(node.chat()))[0] == "ENGINE_UNAVAILABLE"
    await until(lambda: not mesh.reports[-1].engine_up)
    assert not await node.is_serving()
    engine.is_loading = True
    await engine.start()
    assert (await refusal(node.chat()))[0] == "ENGINE_UNAVAILABLE"
    engine.is_loading = False
    await until(lambda: mesh.reports[-1].engine_up)
    await until(node.is_serving)
    assert text_of([m async for m in node.chat(stream=True)]) == DIRECT
    assert len(mesh.joins) == 1


async def test_it_says_goodbye_after_its_streams(
    engine: FakeEngine, mesh: FakeMesh, tmp_path: Path
) -> None:
    async def slow(reply: Reply) -> None:
        await reply.start()
        await reply.send(ROLE + HELLO)
        await asyncio.sleep(0.4)
        await reply.send(LAST + USAGE + DONE)
        await reply.end()

    engine.script = slow
    stop = asyncio.Event()
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def serve() -> None:
        async with running(engine.port, mesh.address, tmp_path) as node:
            address.set_result(node.address)
            await stop.wait()

    served = asyncio.create_task(serve())
    # The caller's channel is its own: the node's stop does not hang up for it.
    async with grpc.aio.insecure_channel(await address) as channel:
        await until(lambda: mesh.reports and mesh.reports[-1].engine_up)
        call = Node(await address, channel).chat(metadata=caller("last"), stream=True)
        received = (await call.read()).data
        stop.set()
        await until(lambda: mesh.reports[-1].draining)
        assert mesh.goodbyes == 0
        while isinstance(message := await call.read(), httpbody_pb2.HttpBody):
            received += message.data
        await served
    assert received == DIRECT
    assert mesh.goodbyes == 1
    assert [e.outcome for e in mesh.events] == [usage_pb2.OUTCOME_OK]


async def _rest(call) -> bytes:
    return text_of([message async for message in call])


async def test_usage_is_recorded_before_the_answer_is_complete(
    node: Node, mesh: FakeMesh, tmp_path: Path
) -> None:
    await _rest(node.chat(metadata=caller("a"), stream=True))
    await _rest(node.chat(metadata=caller("b")))
    await _rest(node.chat())
    written = b"".join(path.read_bytes() for path in (tmp_path / "usage").iterdir())
    assert written.count(b"node-1") >= 4
    await until(lambda: len(mesh.events) == 2)
    for event, streamed in zip(mesh.events, (True, False), strict=True):
        assert (event.outcome, event.streamed) == (usage_pb2.OUTCOME_OK, streamed)
        assert (event.prompt_tokens, event.completion_tokens) == (3, 2)
        assert event.HasField("time_to_first_token")


# The other dialect.


async def test_an_openai_endpoint(engine: FakeEngine, mesh: FakeMesh, tmp_path: Path) -> None:
    async def script(reply: Reply) -> None:
        if reply.path == "/health":
            await reply.json({}, 404)
        elif orjson.loads(reply.body).get("stream"):
            await reply.stream(HELLO, LAST, USAGE)
        else:
            await reply.json({"choices": [], "model": MODEL, "usage": {"prompt_tokens": 1}})

    engine.script = script
    async with running(engine.port, mesh.address, tmp_path, engine="openai") as node:
        await until(node.is_serving)
        assert await _rest(node.chat(stream=True)) == HELLO + LAST
        answer = await _rest(node.chat(metadata=caller("o")))
        assert answer == b'{"choices":[],"model":"m","usage":{"prompt_tokens":1}}'
        await until(lambda: mesh.events)
        assert mesh.events[0].prompt_tokens == 1
        assert not mesh.events[0].HasField("completion_tokens")


# A real llama.cpp.


@pytest.fixture(scope="module")
async def llamacpp_url(models_dir: Path) -> AsyncIterator[str]:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.inference.llamacpp_server"),
        *("--model", str(models_dir / "smollm2-135m.gguf"), "--port", str(port), "--alias", MODEL),
        env=os.environ,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient() as http, asyncio.timeout(60):
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if (await http.get(f"{url}/health")).status_code == 200:
                        break
                await asyncio.sleep(0.1)
        yield url
    finally:
        process.terminate()
        await process.wait()


@pytest.fixture
async def real(llamacpp_url: str, mesh: FakeMesh, tmp_path: Path) -> AsyncIterator[Node]:
    port = int(llamacpp_url.rpartition(":")[2])
    async with running(port, mesh.address, tmp_path) as node:
        await until(node.is_serving)
        yield node


# What differs from one call to the next.
_VARYING = re.compile(
    rb'("(?:created|[a-z]+_ms|[a-z_]+_per_second|[a-z_]+_per_token_ms|cached_tokens|cache_n'
    rb'|prompt_n)":)[-0-9.e+]+|("id":"chatcmpl-)\w+'
)
PROMPT = [{"role": "user", "content": "Say hi in one word"}]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"logprobs": True, "top_logprobs": 2},
        {"stop": ["o"]},
        {"stream": True},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"stream": True, "stream_options": {"include_usage": False}, "timings_per_token": True},
        {"prompt": "1, 2, 3,"},
        {"prompt": "1, 2, 3,", "stream": True},
        {"prompt": "1, 2, 3,", "logprobs": 2},
    ],
)
async def test_answers_equal_a_direct_call(
    real: Node, llamacpp_url: str, fields: dict[str, object]
) -> None:
    is_chat = "prompt" not in fields
    body = {"model": MODEL, "temperature": 0, "max_tokens": 6, **fields}
    if is_chat:
        body["messages"] = PROMPT
    path = "/v1/chat/completions" if is_chat else "/v1/completions"
    create = real.openai.CreateChatCompletion if is_chat else real.openai.CreateCompletion
    async with httpx.AsyncClient() as http:
        direct = await http.post(llamacpp_url + path, content=orjson.dumps(body), timeout=60)
    call = create(httpbody_pb2.HttpBody(data=orjson.dumps(body)))
    messages = [message async for message in call]
    assert messages[0].content_type == direct.headers["content-type"]
    ours, theirs = (
        _VARYING.sub(rb"\g<1>\g<2>0", text) for text in (text_of(messages), direct.content)
    )
    if fields.get("stream"):
        assert ours == theirs
    else:
        assert orjson.loads(ours) == orjson.loads(theirs)


async def _running(url: str) -> int:
    async with httpx.AsyncClient() as http:
        text = (await http.get(f"{url}/metrics", timeout=30)).text
    return int(re.search(r"^llamacpp:requests_processing (\d+)", text, re.MULTILINE)[1])


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("prompt", ["Tell a very long story.", "lorem ipsum dolor " * 200])
async def test_hanging_up_stops_llamacpp(
    real: Node, llamacpp_url: str, stream: bool, prompt: str
) -> None:
    """Stops it while it generates, and in the middle of a long prompt."""

    async def is_idle() -> bool:
        return await _running(llamacpp_url) == 0

    async def is_busy() -> bool:
        return await _running(llamacpp_url) == 1

    call = real.chat(
        stream=stream,
        messages=[{"role": "user", "content": prompt}],
        max_tokens=2000,
        ignore_eos=True,
        cache_prompt=False,
    )
    await until(is_busy)
    await asyncio.sleep(0.3)
    assert await is_busy()
    call.cancel()
    async with asyncio.timeout(3):
        await until(is_idle)
