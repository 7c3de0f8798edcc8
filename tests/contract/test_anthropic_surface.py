"""Anthropic's surface of the inference proxy over a running server."""

import asyncio
from typing import Any

import grpc
import orjson
import pytest
from anthropic.types import Message
from google.api import httpbody_pb2

from inference_node import (
    DONE,
    HELLO,
    LAST,
    MODEL,
    ROLE,
    USAGE,
    FakeEngine,
    FakeMesh,
    Node,
    Reply,
    caller,
    refusal,
    rest,
    until,
)
from infermesh.inference.v1 import anthropic_service_pb2_grpc
from infermesh.metrics.v1 import usage_service_pb2 as usage_pb2

TOOL = {"name": "f", "input_schema": {"type": "object"}}


@pytest.fixture
async def stub(node: Node) -> Any:
    async with grpc.aio.insecure_channel(node.address) as channel:
        yield anthropic_service_pb2_grpc.AnthropicServiceStub(channel)


def asked(**fields: object) -> httpbody_pb2.HttpBody:
    request = {
        "model": MODEL,
        "max_tokens": 5,
        "messages": [{"role": "user", "content": "hi"}],
        **fields,
    }
    kept = {name: value for name, value in request.items() if value is not None}
    return httpbody_pb2.HttpBody(data=orjson.dumps(kept))


def event(choice: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % orjson.dumps({"choices": [{"index": 0, **choice}]})


def names(text: bytes) -> list[str]:
    return [line.decode()[7:] for line in text.split(b"\n") if line.startswith(b"event: ")]


def data_of(text: bytes, name: str) -> dict[str, Any]:
    return orjson.loads(text.split(f"event: {name}\ndata: ".encode())[1].split(b"\n")[0])


@pytest.mark.parametrize("header", [(), (("x-mesh-stream", "false"),)])
async def test_a_whole_answer(stub: Any, engine: FakeEngine, header: tuple[Any, ...]) -> None:
    call = stub.CreateMessage(asked(system="Be kind."), metadata=(*caller("a-b"), *header))
    message = orjson.loads(await rest(call))
    Message.model_validate(message)
    assert message["id"] == "msg_ab"
    assert message["content"] == [{"type": "text", "text": "hello"}]
    assert message["usage"] == {"input_tokens": 3, "output_tokens": 2}
    assert dict(await call.initial_metadata())["request-id"] == "a-b"
    sent = orjson.loads(engine.requests[0].body)
    assert engine.requests[0].path == "/v1/chat/completions"
    assert sent["messages"][0] == {"role": "system", "content": "Be kind."}
    assert sent["max_tokens"] == 5


async def test_a_stream(stub: Any, mesh: FakeMesh) -> None:
    call = stub.CreateMessage(asked(stream=True), metadata=caller("s"))
    messages = [message async for message in call]
    assert messages[0].content_type.startswith("text/event-stream")
    text = b"".join(message.data for message in messages)
    assert names(text) == [
        *("message_start", "ping", "content_block_start", "content_block_delta"),
        *("content_block_stop", "message_delta", "message_stop"),
    ]
    assert data_of(text, "message_delta")["usage"] == {"input_tokens": 3, "output_tokens": 2}
    await until(lambda: mesh.events)
    assert (mesh.events[0].outcome, mesh.events[0].streamed) == (usage_pb2.OUTCOME_OK, True)
    assert (mesh.events[0].prompt_tokens, mesh.events[0].completion_tokens) == (3, 2)


async def test_a_prompt_that_the_engine_has_counted(stub: Any, engine: FakeEngine) -> None:
    def progress(processed: int) -> bytes:
        said = {"total": 9, "cache": 4, "processed": processed}
        return b"data: %b\n\n" % orjson.dumps({"choices": [], "prompt_progress": said})

    engine.script = lambda reply: reply.stream(
        progress(4), progress(9), ROLE, HELLO, LAST, USAGE, DONE
    )
    text = await rest(stub.CreateMessage(asked(stream=True)))
    usage = data_of(text, "message_start")["message"]["usage"]
    assert usage == {"input_tokens": 5, "cache_read_input_tokens": 4, "output_tokens": 0}


async def test_pieces_go_out_as_they_come(stub: Any, engine: FakeEngine) -> None:
    go_on = asyncio.Event()

    async def slowly(reply: Reply) -> None:
        await reply.start()
        await reply.send(ROLE + HELLO)
        await go_on.wait()
        await reply.send(LAST + USAGE + DONE)
        await reply.end()

    engine.script = slowly
    call = stub.CreateMessage(asked(stream=True))
    assert b"hello" in (await call.read()).data
    go_on.set()
    assert names((await call.read()).data)[-1] == "message_stop"


async def test_calls_of_tools(stub: Any, engine: FakeEngine) -> None:
    function = {"name": "f", "arguments": '{"a":1}'}
    calls = [{"index": 0, "id": "call_1", "type": "function", "function": function}]
    engine.script = lambda reply: reply.stream(
        event({"delta": {"tool_calls": calls}}), event({"finish_reason": "tool_calls"}), DONE
    )
    message = orjson.loads(await rest(stub.CreateMessage(asked(tools=[TOOL]))))
    expected = {"type": "tool_use", "id": "toolu_call_1", "name": "f", "input": {"a": 1}}
    assert (message["content"], message["stop_reason"]) == ([expected], "tool_use")
    # The engine said nothing of what it took.
    assert message["usage"]["output_tokens"] is None


@pytest.mark.parametrize("stream", [True, False])
async def test_hanging_up_reaches_the_engine(
    stub: Any, engine: FakeEngine, mesh: FakeMesh, stream: bool
) -> None:
    async def forever(reply: Reply) -> None:
        await reply.start()
        while True:
            await reply.send(HELLO)
            await asyncio.sleep(0.01)

    engine.script = forever
    call = stub.CreateMessage(asked(stream=stream), metadata=caller("gone"))
    if stream:
        await call.read()
    else:
        await until(lambda: engine.requests)
    call.cancel()
    await asyncio.wait_for(engine.hung_up.wait(), 10)
    await until(lambda: mesh.events)
    assert mesh.events[0].outcome == usage_pb2.OUTCOME_CANCELLED


@pytest.mark.parametrize("is_told", [True, False])
async def test_a_stream_that_breaks_ends_with_an_error(
    stub: Any, engine: FakeEngine, mesh: FakeMesh, is_told: bool
) -> None:
    async def breaking(reply: Reply) -> None:
        await reply.start()
        await reply.send(HELLO)
        if is_told:
            error = {"error": {"message": "full", "code": 503}}
            await reply.send(b"data: %b\n\n" % orjson.dumps(error))
        await asyncio.sleep(0.05)
        reply.break_off()

    engine.script = breaking
    call = stub.CreateMessage(asked(stream=True), metadata=caller("broken"))
    text = b""
    with pytest.raises(grpc.aio.AioRpcError):
        async for message in call:
            text += message.data
    assert names(text)[-1] == "error"
    error = data_of(text, "error")
    assert error["type"] == "error"
    assert error["error"]["type"] == ("overloaded_error" if is_told else "api_error")
    assert error["request_id"] == "broken"
    await until(lambda: mesh.events)
    assert mesh.events[0].outcome == usage_pb2.OUTCOME_FAILED


async def test_nothing_goes_out_before_the_engine_answers(stub: Any, engine: FakeEngine) -> None:
    engine.script = lambda reply: reply.json({"error": {"message": "no", "code": 400}}, 400)
    assert await refusal(stub.CreateMessage(asked(stream=True))) == ("ENGINE_REJECTED", None)


async def test_refusals(stub: Any) -> None:
    assert await refusal(stub.CreateMessage(asked(frob=1))) == ("UNSUPPORTED", "frob")
    assert await refusal(stub.CreateMessage(asked(model="x"))) == ("MODEL_NOT_FOUND", "model")
    twice = stub.CreateMessage(asked(stream=True), metadata=(("x-mesh-stream", "false"),))
    assert await refusal(twice) == ("INVALID_ARGUMENT", "stream")
    counted = stub.CountMessageTokens(asked())
    assert await refusal(counted) == ("UNSUPPORTED", "max_tokens")


async def test_thinking_is_told_to_the_engine(stub: Any, engine: FakeEngine) -> None:
    pieces = event({"delta": {"reasoning_content": "hm"}}), HELLO, LAST, USAGE, DONE
    engine.script = lambda reply: reply.stream(*pieces)
    thinking = {"type": "enabled", "budget_tokens": 4}
    message = orjson.loads(await rest(stub.CreateMessage(asked(thinking=thinking))))
    assert [block["type"] for block in message["content"]] == ["thinking", "text"]
    sent = orjson.loads(engine.requests[0].body)
    assert sent["chat_template_kwargs"] == {"enable_thinking": True}
    assert sent["thinking_budget_tokens"] == 4


async def test_how_it_came_about(stub: Any) -> None:
    metadata = (*caller("d"), ("x-mesh-decision", '{"policy":"p"}'))
    message = orjson.loads(await rest(stub.CreateMessage(asked(), metadata=metadata)))
    assert message["gateway_metadata"]["policy"] == "p"
    call = stub.CreateMessage(asked(stream=True), metadata=metadata)
    assert data_of(await rest(call), "message_stop")["gateway_metadata"]["policy"] == "p"
    assert dict(await call.initial_metadata())["x-mesh-decision"] == '{"policy":"p"}'


async def test_counting(stub: Any, engine: FakeEngine, mesh: FakeMesh) -> None:
    async def template(reply: Reply) -> None:
        said = orjson.loads(reply.body)["messages"][0]["content"]
        await reply.json({"prompt": f"<user> {said} <end>"})

    engine.script = template
    call = stub.CountMessageTokens(asked(max_tokens=None), metadata=caller("c"))
    assert orjson.loads((await call).data) == {"input_tokens": 5}
    assert engine.requests[0].path == "/apply-template"
    # Nothing is used; only a reservation is settled.
    reserved = (*caller("r"), ("x-mesh-reserved", "1"))
    await stub.CountMessageTokens(asked(max_tokens=None), metadata=reserved)
    await until(lambda: mesh.events)
    assert [(e.request_id, e.prompt_tokens, e.completion_tokens) for e in mesh.events] == [
        ("r", 0, 0)
    ]


async def test_an_engine_that_cannot_count(stub: Any, engine: FakeEngine) -> None:
    engine.script = lambda reply: reply.json({"error": {"code": 404}}, 404)
    assert await refusal(stub.CountMessageTokens(asked(max_tokens=None))) == (
        "UNSUPPORTED",
        "model",
    )
    engine.script = lambda reply: reply.json({"error": {"message": "no", "code": 400}}, 400)
    assert (await refusal(stub.CountMessageTokens(asked(max_tokens=None))))[0] == "ENGINE_REJECTED"
