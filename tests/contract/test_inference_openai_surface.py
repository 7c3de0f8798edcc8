"""OpenAI's surface of the inference proxy over a running server."""

import asyncio
from pathlib import Path

import grpc
import orjson
import pytest
from google.api import httpbody_pb2

from inference_node import (
    ANSWER,
    DIRECT,
    DONE,
    HELLO,
    LAST,
    MODEL,
    USAGE,
    FakeEngine,
    FakeMesh,
    Node,
    Reply,
    caller,
    rest,
    running,
    text_of,
    until,
)
from infermesh.metrics.v1 import usage_service_pb2 as usage_pb2


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
    await asyncio.wait_for(engine.hung_up.wait(), 10)
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
        await reply.send(LAST + DONE)
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


async def test_usage_is_recorded_before_the_answer_is_complete(
    node: Node, mesh: FakeMesh, tmp_path: Path
) -> None:
    await rest(node.chat(metadata=caller("a"), stream=True))
    await rest(node.chat(metadata=caller("b")))
    await rest(node.chat())
    written = b"".join(path.read_bytes() for path in (tmp_path / "usage").iterdir())
    assert written.count(b"node-1") >= 4
    await until(lambda: len(mesh.events) == 2)
    for event, streamed in zip(mesh.events, (True, False), strict=True):
        assert (event.outcome, event.streamed) == (usage_pb2.OUTCOME_OK, streamed)
        assert (event.prompt_tokens, event.completion_tokens) == (3, 2)
        assert event.HasField("time_to_first_token")


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
        assert await rest(node.chat(stream=True)) == HELLO + LAST
        answer = await rest(node.chat(metadata=caller("o")))
        assert answer == b'{"choices":[],"model":"m","usage":{"prompt_tokens":1}}'
        await until(lambda: mesh.events)
        assert mesh.events[0].prompt_tokens == 1
        assert not mesh.events[0].HasField("completion_tokens")
