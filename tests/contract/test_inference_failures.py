"""How the inference proxy fails, over a running server."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import orjson
import pytest
from google.api import httpbody_pb2

from inference_node import (
    DONE,
    HELLO,
    LAST,
    ROLE,
    FakeEngine,
    FakeMesh,
    Node,
    Reply,
    caller,
    refusal,
    rest,
    running,
    typed_chat,
    until,
)
from infermesh.inference.v1 import inference_service_pb2 as pb
from infermesh.metrics.v1 import usage_service_pb2 as usage_pb2
from services.kit.errors import MeshError, from_rpc_error


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


async def cut_off(call: Any, heard: asyncio.Event) -> tuple[bytes, MeshError]:
    """Reads a stream that fails; its engine goes on once the first piece has been heard."""
    received = b""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for message in call:
            received += getattr(message, "data", b"")
            heard.set()
    error = from_rpc_error(caught.value)
    assert error is not None
    return received, error


async def test_done_after_an_error_is_no_success(node: Node, engine: FakeEngine) -> None:
    error = b'data: {"error":{"code":500,"message":"out of memory"}}\n\n'

    heard = asyncio.Event()

    async def fail(reply: Reply) -> None:
        await reply.start()
        await reply.send(HELLO)
        await heard.wait()
        await reply.send(error + DONE)
        await reply.end()

    engine.script = fail
    received, failure = await cut_off(node.chat(stream=True), heard)
    assert received == HELLO + error
    assert failure.message == "out of memory"
    assert (await refusal(node.chat()))[0] == "ENGINE_FAILED"


async def test_silence_is_a_timeout(node: Node, engine: FakeEngine) -> None:
    async def silence(reply: Reply) -> None:
        await asyncio.sleep(60)

    engine.script = silence
    assert (await refusal(node.chat()))[0] == "ENGINE_TIMEOUT"
    await asyncio.wait_for(engine.hung_up.wait(), 10)


async def test_silence_in_the_middle_ends_the_stream(
    node: Node, engine: FakeEngine, mesh: FakeMesh
) -> None:
    """A vLLM that is killed may stand still with its connection open."""

    async def stall(reply: Reply) -> None:
        await reply.start()
        await reply.send(HELLO)
        await asyncio.sleep(60)

    engine.script = stall
    received = b""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for message in node.chat(metadata=caller("stalled"), stream=True):
            received += message.data
    assert from_rpc_error(caught.value).reason_name == "ENGINE_TIMEOUT"
    assert received.startswith(HELLO)
    assert b'"code":"engine_timeout"' in received
    await asyncio.wait_for(engine.hung_up.wait(), 10)
    await until(lambda: mesh.events)
    assert mesh.events[0].outcome == usage_pb2.OUTCOME_FAILED


@pytest.mark.parametrize("dialect", ["llamacpp", "openai"])
@pytest.mark.parametrize("spaced", [False, True])
async def test_done_without_a_reason_is_no_success(
    engine: FakeEngine, mesh: FakeMesh, tmp_path: Path, dialect: str, spaced: bool
) -> None:
    """An engine that is stopped may end its stream in good form, with half an answer."""
    hello, last = HELLO, LAST
    if spaced:
        hello, last = (e.replace(b'":', b'": ') for e in (HELLO, LAST))

    heard = asyncio.Event()

    async def stop(reply: Reply) -> None:
        await reply.start()
        await reply.send(hello)
        await heard.wait()
        await reply.send(DONE)
        await reply.end()

    async with running(engine.port, mesh.address, tmp_path, engine=dialect) as node:
        await until(node.is_serving)
        engine.script = stop
        call = node.chat(metadata=caller("cut"), stream=True)
        received, failure = await cut_off(call, heard)
        assert failure.reason_name == "ENGINE_FAILED"
        assert b'"code":"engine_failed"' in received
        assert DONE not in received
        heard.clear()
        request = pb.StreamChatRequest(chat=typed_chat())
        _, failure = await cut_off(node.typed.StreamChat(request), heard)
        assert failure.reason_name == "ENGINE_FAILED"
        await until(lambda: mesh.events)
        assert mesh.events[0].outcome == usage_pb2.OUTCOME_FAILED
        # The same with a reason is an answer.
        engine.script = lambda reply: reply.stream(hello, last, DONE)
        assert await rest(node.chat(stream=True)) == hello + last + DONE


async def test_an_answer_in_one_piece_needs_a_reason_too(node: Node, engine: FakeEngine) -> None:
    engine.script = lambda reply: reply.stream(HELLO, DONE)
    # Nobody has seen it yet: another node may do better.
    assert (await refusal(node.chat()))[0] == "ENGINE_UNAVAILABLE"


@pytest.mark.parametrize(("attempt", "is_final"), [("2", False), ("3", True)])
async def test_what_three_engines_fail_at_goes_to_no_fourth(
    node: Node, engine: FakeEngine, attempt: str, is_final: bool
) -> None:
    engine.script = lambda reply: reply.json({"error": {"message": "no"}}, 500)
    call = node.chat(metadata=(*caller("r"), ("x-envoy-attempt-count", attempt)))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
        await call
    said = {key for key, _ in caught.value.trailing_metadata() or ()}
    assert ("x-envoy-ratelimited" in said) is is_final
