"""Streams that are silent for long, or take too long, over a running node."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
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
    FakeEngine,
    FakeMesh,
    Node,
    Reply,
    caller,
    refusal,
    rest,
    running,
    text_of,
    typed_chat,
    until,
)
from infermesh.inference.v1 import anthropic_service_pb2_grpc
from infermesh.inference.v1 import inference_service_pb2 as pb
from infermesh.metrics.v1 import usage_service_pb2 as usage_pb2
from jobs_world import jobs
from services.kit.errors import from_rpc_error

_COMMENT = b": keep-alive\n\n"
PREFILL_S = 0.8
"""Several comments long, and far from being given up."""


@pytest.fixture
async def patient(engine: FakeEngine, mesh: FakeMesh, tmp_path: Path) -> AsyncIterator[Node]:
    async with running(
        engine.port, mesh.address, tmp_path, keepalive_s=0.1, engine_idle_timeout_s=3
    ) as node:
        await until(node.is_serving)
        yield node


@pytest.fixture
async def hasty(engine: FakeEngine, mesh: FakeMesh, tmp_path: Path) -> AsyncIterator[Node]:
    async with running(engine.port, mesh.address, tmp_path, engine_total_timeout_s=1.5) as node:
        await until(node.is_serving)
        yield node


async def _broken(call) -> tuple[bytes, str]:
    received = b""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for message in call:
            received += message.data
    error = from_rpc_error(caught.value)
    assert error is not None
    return received, error.reason_name


@pytest.mark.parametrize("has_head", [True, False])
async def test_a_long_prefill_is_bridged_by_comments(
    patient: Node, engine: FakeEngine, has_head: bool
) -> None:
    async def prefill(reply: Reply) -> None:
        if has_head:
            await reply.start()
        await asyncio.sleep(PREFILL_S)
        if not has_head:
            await reply.start()
        await reply.send(ANSWER)
        await reply.end()

    engine.script = prefill
    began = time.monotonic()
    messages = [message async for message in patient.chat(stream=True)]
    assert messages[0].content_type == "text/event-stream"
    received = text_of(messages)
    comments = received.count(_COMMENT)
    # One each tenth of a second, as far as this process had its turn.
    assert 2 <= comments <= 10 * (time.monotonic() - began) + 1
    # They are no part of the answer, and not in the middle of it.
    assert received == _COMMENT * comments + DIRECT


async def test_an_answer_in_time_has_no_comments(patient: Node, engine: FakeEngine) -> None:
    assert await rest(patient.chat(stream=True)) == DIRECT
    assert b"keep-alive" not in await rest(patient.chat())


async def test_without_the_setting_nothing_goes_out_before_the_engine(
    node: Node, engine: FakeEngine
) -> None:
    async def prefill(reply: Reply) -> None:
        await reply.start()
        await asyncio.sleep(0.3)
        reply.break_off()

    engine.script = prefill
    call = node.chat(stream=True)
    # So Envoy may try another node.
    assert (await refusal(call))[0] == "ENGINE_UNAVAILABLE"


@pytest.mark.parametrize(
    ("status", "code"), [(400, "engine_rejected"), (503, "engine_unavailable")]
)
async def test_what_fails_after_a_comment_says_so_in_the_stream(
    patient: Node, engine: FakeEngine, mesh: FakeMesh, status: int, code: str
) -> None:
    async def refuse(reply: Reply) -> None:
        await asyncio.sleep(PREFILL_S)
        await reply.json({"error": {"code": status, "message": "no"}}, status)

    engine.script = refuse
    received, reason = await _broken(patient.chat(metadata=caller("late"), stream=True))
    assert reason.lower() == code
    comments, event = received.removesuffix(b"\n\n").split(b"data: ")
    assert comments == _COMMENT * comments.count(_COMMENT) != b""
    assert orjson.loads(event)["error"]["code"] == code
    await until(lambda: mesh.events)
    assert mesh.events[0].outcome in (usage_pb2.OUTCOME_FAILED, usage_pb2.OUTCOME_REJECTED)


async def test_an_engine_that_falls_silent_for_good_ends_the_comments(
    patient: Node, engine: FakeEngine
) -> None:
    async def silence(reply: Reply) -> None:
        await asyncio.sleep(60)

    engine.script = silence
    received, reason = await _broken(patient.chat(stream=True))
    assert reason == "ENGINE_TIMEOUT"
    assert received.startswith(_COMMENT)
    assert received.count(b"data: ") == 1
    assert b'"code":"engine_timeout"' in received
    await asyncio.wait_for(engine.hung_up.wait(), 10)


async def test_a_caller_who_leaves_during_comments_stops_the_engine(
    patient: Node, engine: FakeEngine, mesh: FakeMesh
) -> None:
    async def silence(reply: Reply) -> None:
        await asyncio.sleep(60)

    engine.script = silence
    call = patient.chat(metadata=caller("left"), stream=True)
    assert (await call.read()).data == _COMMENT
    call.cancel()
    await asyncio.wait_for(engine.hung_up.wait(), 2)
    await until(lambda: mesh.events)
    assert mesh.events[0].outcome == usage_pb2.OUTCOME_CANCELLED


async def test_an_engine_that_cannot_stream_after_all_is_an_event(
    patient: Node, engine: FakeEngine
) -> None:
    answer = {"choices": [{"finish_reason": "stop", "index": 0, "message": {"content": "hi"}}]}

    async def whole(reply: Reply) -> None:
        await asyncio.sleep(PREFILL_S)
        await reply.json(answer)

    engine.script = whole
    received = await rest(patient.chat(stream=True))
    event, done = received.split(b"data: ", 1)[1].split(b"\n\n", 1)
    assert orjson.loads(event)["choices"] == answer["choices"]
    assert done == DONE


async def _drip(reply: Reply) -> None:
    """Is never silent, and never done."""
    await reply.start()
    while True:
        await reply.send(HELLO)
        await asyncio.sleep(0.02)


async def test_an_answer_over_time_ends_in_every_form(
    hasty: Node, engine: FakeEngine, mesh: FakeMesh
) -> None:
    engine.script = _drip
    began = asyncio.get_running_loop().time()
    assert (await refusal(hasty.chat(metadata=caller("whole"))))[0] == "ENGINE_TIMEOUT"
    received, reason = await _broken(hasty.chat(metadata=caller("stream"), stream=True))
    assert reason == "ENGINE_TIMEOUT"
    assert received.startswith(HELLO * 5)
    assert orjson.loads(received.split(b"data: ")[-1])["error"]["code"] == "engine_timeout"
    typed = hasty.typed.StreamChat(
        pb.StreamChatRequest(chat=typed_chat()), metadata=caller("typed")
    )
    assert (await refusal(typed))[0] == "ENGINE_TIMEOUT"
    assert asyncio.get_running_loop().time() - began < 15
    await until(lambda: len(mesh.events) == 3)
    assert {e.outcome for e in mesh.events} == {usage_pb2.OUTCOME_FAILED}
    assert all(not e.HasField("completion_tokens") for e in mesh.events)


async def test_an_answer_within_the_time_is_left_alone(hasty: Node, engine: FakeEngine) -> None:
    async def steady(reply: Reply) -> None:
        await reply.start()
        for _ in range(5):
            await reply.send(HELLO)
            await asyncio.sleep(0.02)
        await reply.send(LAST + DONE)
        await reply.end()

    engine.script = steady
    # The time is each exchange's own, not the connection's.
    for _ in range(4):
        received = await rest(hasty.chat(stream=True, model=MODEL))
        assert received.endswith(DONE)
        await asyncio.sleep(0.05)
    assert engine.connections <= 3


@pytest.mark.parametrize("fails", [False, True])
async def test_anthropics_callers_are_pinged(
    patient: Node, engine: FakeEngine, fails: bool
) -> None:
    async def prefill(reply: Reply) -> None:
        await asyncio.sleep(PREFILL_S)
        if fails:
            await reply.json({"error": {"code": 400, "message": "no"}}, 400)
        else:
            await reply.stream(ANSWER)

    engine.script = prefill
    stub = anthropic_service_pb2_grpc.AnthropicServiceStub(patient.channel)
    fields = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 10,
        "stream": True,
    }
    call = stub.CreateMessage(httpbody_pb2.HttpBody(data=orjson.dumps(fields)))
    received = b""
    with pytest.raises(grpc.aio.AioRpcError) if fails else contextlib.nullcontext():
        async for message in call:
            received += message.data
    kinds = [line[7:] for line in received.splitlines() if line.startswith(b"event: ")]
    assert kinds[:2] == [b"ping", b"ping"]
    assert kinds[-1] == (b"error" if fails else b"message_stop")
    assert fails or b"message_start" in kinds


@pytest.mark.parametrize("fails", [False, True])
async def test_comments_reach_callers_of_responses(
    patient: Node, engine: FakeEngine, postgres_url: str, fails: bool
) -> None:
    async def slow(reply: Reply) -> None:
        await reply.start()
        await asyncio.sleep(PREFILL_S)
        if fails:
            reply.break_off()
            return
        await reply.send(ANSWER)
        await reply.end()

    engine.script = slow
    async with jobs(postgres_url, patient.address) as world:
        call = world.create(stream=True, metadata=caller("kept-alive"))
        received = b""
        try:
            async for message in call:
                received += message.data
        except grpc.aio.AioRpcError as error:
            assert fails, error
    head, _, events = received.partition(b"event: ")
    assert head.startswith(_COMMENT)
    assert head.replace(_COMMENT, b"") == b""
    kinds = [each.split(b"\n", 1)[0] for each in events.split(b"event: ")]
    assert kinds[-1] == (b"response.failed" if fails else b"response.completed")
    assert kinds[0] == (b"error" if fails else b"response.created")
