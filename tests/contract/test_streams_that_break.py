"""A stream that breaks in the middle: its dialect's own error at the end, and one account of it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import orjson
import pytest
from google.api import httpbody_pb2

from inference_node import (
    DONE,
    HELLO,
    MODEL,
    ROLE,
    FakeEngine,
    FakeMesh,
    Node,
    Reply,
    caller,
    running,
    typed_chat,
    until,
)
from infermesh.inference.v1 import anthropic_service_pb2_grpc, ollama_service_pb2_grpc
from infermesh.inference.v1 import inference_service_pb2 as pb
from infermesh.metrics.v1 import usage_service_pb2 as usage_pb2
from jobs_world import Jobs, jobs, of
from services.kit.errors import from_rpc_error

TEXT = b'data: {"id":"c","choices":[{"index":0,"text":"hello","finish_reason":null}]}\n\n'
MESSAGES = [{"role": "user", "content": "hi"}]
PAUSE_S = 0.4
"""Until then what was sent has been read, on a busy machine too."""


def begun(reply: Reply) -> bytes:
    return (
        TEXT if reply.path.endswith("/completions") and "chat" not in reply.path else ROLE + HELLO
    )


async def breaks_off(reply: Reply) -> None:
    await reply.start()
    await reply.send(begun(reply))
    await asyncio.sleep(PAUSE_S)
    reply.break_off()


async def says_that_it_failed(reply: Reply) -> None:
    await reply.start()
    await reply.send(begun(reply))
    await asyncio.sleep(PAUSE_S)
    # As llama.cpp does; some say that they are done, too.
    await reply.send(b'data: {"error":{"code":500,"message":"out of memory"}}\n\n' + DONE)
    await reply.end()


async def falls_silent(reply: Reply) -> None:
    await reply.start()
    await reply.send(begun(reply))
    await asyncio.sleep(60)


async def has_no_end(reply: Reply) -> None:
    await reply.start()
    while True:
        await reply.send(begun(reply))
        await asyncio.sleep(0.1)


@pytest.fixture
async def short(engine: FakeEngine, mesh: FakeMesh, tmp_path: Path) -> AsyncIterator[Node]:
    limits = {"engine_idle_timeout_s": 2, "engine_total_timeout_s": 4}
    async with running(engine.port, mesh.address, tmp_path, max_in_flight=32, **limits) as node:
        await until(node.is_serving)
        yield node


def calls(node: Node, service: Jobs) -> dict[str, Any]:
    """A stream of every dialect, by the id of its request."""
    anthropic = anthropic_service_pb2_grpc.AnthropicServiceStub(node.channel)
    ollama = ollama_service_pb2_grpc.OllamaServiceStub(node.channel)

    def rest(act: Any, name: str, **fields: object) -> Any:
        body = orjson.dumps({"model": MODEL, "stream": True, **fields})
        return act(httpbody_pb2.HttpBody(data=body), metadata=caller(name))

    chat, completion = (
        pb.StreamChatRequest(chat=typed_chat()),
        pb.CompleteRequest(model=MODEL, prompts=["hi"]),
    )
    return {
        "chat": rest(node.openai.CreateChatCompletion, "chat", messages=MESSAGES),
        "completion": rest(node.openai.CreateCompletion, "completion", prompt="hi"),
        "anthropic": rest(anthropic.CreateMessage, "anthropic", messages=MESSAGES, max_tokens=9),
        "ollama chat": rest(ollama.Chat, "ollama chat", messages=MESSAGES),
        "ollama generate": rest(ollama.Generate, "ollama generate", prompt="hi"),
        "response": service.create(of(request_id="response"), stream=True),
        "typed chat": node.typed.StreamChat(chat, metadata=caller("typed chat")),
        "typed completion": node.typed.StreamComplete(
            completion, metadata=caller("typed completion")
        ),
    }


async def read(call: Any) -> tuple[list[Any], str]:
    """Returns what comes, and the reason with which it ends."""
    got = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for message in call:
            got.append(message)
    error = from_rpc_error(caught.value)
    assert error is not None
    return got, error.reason_name


def check_end(dialect: str, got: list[Any], reason: str) -> None:
    """Checks that the caller has a part of the answer, and its dialect's error after it."""
    if dialect.startswith("typed"):
        # gRPC's status is all the error that there is.
        pieces = [p for m in got for p in (m.deltas if "chat" in dialect else m.pieces)]
        assert any("hello" in str(each) for each in pieces)
        return
    text = b"".join(message.data for message in got)
    assert b"hello" in text
    assert b"[DONE]" not in text
    if dialect.startswith("ollama"):
        last = orjson.loads(text.splitlines()[-1])
        assert last.keys() == {"error"}
        assert isinstance(last["error"], str)
        return
    *events, nothing = text.split(b"\n\n")
    assert nothing == b""
    data = [orjson.loads(each.split(b"data: ", 1)[1]) for each in events]
    if dialect == "anthropic":
        assert events[-1].startswith(b"event: error\n")
        assert data[-1]["type"] == "error"
        assert data[-1]["error"]["type"] in ("api_error", "timeout_error")
        assert data[-1]["request_id"] == dialect
    elif dialect == "response":
        assert [each["type"] for each in data[-2:]] == ["error", "response.failed"]
        assert data[-2]["code"] == reason.lower()
        assert data[-1]["response"]["status"] == "failed"
    else:
        assert data[-1].keys() == {"error"}
        assert data[-1]["error"]["message"]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (breaks_off, "ENGINE_FAILED"),
        (says_that_it_failed, "ENGINE_FAILED"),
        (falls_silent, "ENGINE_TIMEOUT"),
        (has_no_end, "ENGINE_TIMEOUT"),
    ],
)
async def test_a_stream_that_breaks_in_the_middle(
    short: Node,
    postgres_url: str,
    engine: FakeEngine,
    mesh: FakeMesh,
    script: Callable[[Reply], Awaitable[None]],
    reason: str,
) -> None:
    engine.script = script
    async with jobs(postgres_url, short.address) as service, asyncio.timeout(20):
        # One after the other begins, all of them run at the same time.
        under_way = calls(short, service)
        found = await asyncio.gather(*map(read, under_way.values()))
    for dialect, (got, said) in zip(under_way, found, strict=True):
        assert said == reason, dialect
        check_end(dialect, got, reason)
    await until(lambda: len(mesh.events) >= len(found))
    assert sorted(each.request_id for each in mesh.events) == sorted(under_way)
    assert {each.outcome for each in mesh.events} == {usage_pb2.OUTCOME_FAILED}
    # What the engine has not counted is unknown, and not 0.
    assert not any(each.HasField("completion_tokens") for each in mesh.events)
