"""Ollama's surface of the inference proxy over a running server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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
    MODEL,
    ROLE,
    USAGE,
    FakeEngine,
    FakeMesh,
    Node,
    Reply,
    caller,
    refusal,
    running,
    until,
)
from infermesh.inference.v1 import ollama_service_pb2_grpc
from infermesh.metrics.v1 import usage_service_pb2 as usage_pb2
from services.inference.engines import ENGINES
from services.inference.engines.llamacpp import LlamaCpp

MESSAGES = [{"role": "user", "content": "hi"}]


@asynccontextmanager
async def stub(node: Node) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(node.address) as channel:
        yield ollama_service_pb2_grpc.OllamaServiceStub(channel)


@pytest.fixture
async def ollama(node: Node) -> AsyncIterator[Any]:
    async with stub(node) as made:
        yield made


def body(**fields: Any) -> httpbody_pb2.HttpBody:
    return httpbody_pb2.HttpBody(data=orjson.dumps({"model": MODEL, **fields}))


async def lines(call: Any) -> list[dict[str, Any]]:
    messages = [message async for message in call]
    assert {message.content_type for message in messages} == {"application/x-ndjson"}
    return [orjson.loads(line) for m in messages for line in m.data.splitlines()]


async def whole(call: Any) -> dict[str, Any]:
    (message,) = [message async for message in call]
    assert message.content_type == "application/json; charset=utf-8"
    said: dict[str, Any] = orjson.loads(message.data)
    return said


async def test_a_chat_streams_lines_and_is_accounted(ollama: Any, mesh: FakeMesh) -> None:
    said = await lines(ollama.Chat(body(messages=MESSAGES), metadata=caller("r1")))
    assert [each["message"]["content"] for each in said] == ["hello", ""]
    assert [each["done"] for each in said] == [False, True]
    assert (said[1]["prompt_eval_count"], said[1]["eval_count"]) == (3, 2)
    assert said[1]["done_reason"] == "stop"
    assert said[1]["total_duration"] > 0
    await until(lambda: mesh.events)
    (event,) = mesh.events
    assert (event.request_id, event.streamed) == ("r1", True)
    assert (event.prompt_tokens, event.completion_tokens) == (3, 2)
    assert event.outcome == usage_pb2.OUTCOME_OK


async def test_a_chat_in_one_piece_in_both_forms(ollama: Any, node: Node) -> None:
    said = await whole(ollama.Chat(body(messages=MESSAGES, stream=False)))
    assert said["message"] == {"role": "assistant", "content": "hello"}
    assert (said["done"], said["eval_count"]) == (True, 2)
    hinted = ollama.Chat(
        body(messages=MESSAGES, stream=False), metadata=(("x-mesh-stream", "false"),)
    )
    assert (await whole(hinted))["message"]["content"] == "hello"
    # A body that Envoy read otherwise than the node does.
    lied = ollama.Chat(body(messages=MESSAGES), metadata=(("x-mesh-stream", "false"),))
    assert await refusal(lied) == ("INVALID_ARGUMENT", "stream")


async def test_generate_goes_through_the_template(ollama: Any, engine: FakeEngine) -> None:
    call = ollama.Generate(body(prompt="hi", system="be kind", options={"num_predict": 5}))
    said = await lines(call)
    assert [each["response"] for each in said] == ["hello", ""]
    sent = orjson.loads(engine.requests[0].body)
    assert engine.requests[0].path == "/v1/chat/completions"
    assert [message["role"] for message in sent["messages"]] == ["system", "user"]
    assert sent["max_tokens"] == 5


async def test_raw_goes_past_the_template(ollama: Any, engine: FakeEngine) -> None:
    event = {"choices": [{"index": 0, "text": "ok", "finish_reason": "stop"}], "usage": {}}
    engine.script = lambda reply: reply.stream(b"data: " + orjson.dumps(event) + b"\n\n", DONE)
    said = await whole(ollama.Generate(body(prompt="hi", raw=True, stream=False)))
    assert (said["response"], said["done_reason"]) == ("ok", "stop")
    assert engine.requests[0].path == "/v1/completions"


async def test_latest_is_the_model_itself(ollama: Any) -> None:
    call = ollama.Chat(body(model=f"{MODEL}:latest", messages=MESSAGES), metadata=caller("r"))
    assert (await lines(call))[0]["model"] == MODEL


async def test_without_a_prompt_nothing_goes_to_the_engine(
    ollama: Any, engine: FakeEngine, mesh: FakeMesh
) -> None:
    (said,) = await lines(ollama.Generate(body(), metadata=caller("r1")))
    assert (said["response"], said["done"], said["done_reason"]) == ("", True, "load")
    said = await whole(ollama.Chat(body(stream=False)))
    assert said["message"] == {"role": "assistant", "content": ""}
    assert not engine.requests
    await until(lambda: mesh.events)
    assert (mesh.events[0].prompt_tokens, mesh.events[0].completion_tokens) == (0, 0)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"model": "other"}, ("MODEL_NOT_FOUND", "model")),
        ({"model": ""}, ("INVALID_ARGUMENT", "model")),
        ({"messages": 3}, ("INVALID_ARGUMENT", "messages")),
        ({"options": {"num_ctx": 17}}, ("UNSUPPORTED", "options.num_ctx")),
        ({"options": {"tfs_z": 0.5}}, ("UNSUPPORTED", "options.tfs_z")),
        ({"nonsense": 1}, ("UNSUPPORTED", "nonsense")),
    ],
)
async def test_refusals(ollama: Any, fields: dict[str, Any], expected: tuple[str, str]) -> None:
    assert await refusal(ollama.Chat(body(**{"messages": MESSAGES, **fields}))) == expected


async def test_a_break_in_the_middle_is_the_last_line(
    ollama: Any, engine: FakeEngine, mesh: FakeMesh
) -> None:
    async def script(reply: Reply) -> None:
        await reply.start()
        await reply.send(ROLE + HELLO)
        reply.break_off()

    engine.script = script
    got: list[bytes] = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for message in ollama.Chat(body(messages=MESSAGES), metadata=caller("r1")):
            got.append(message.data)
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    said = [orjson.loads(line) for line in b"".join(got).splitlines()]
    assert said[0]["message"]["content"] == "hello"
    assert said[-1].keys() == {"error"}
    assert isinstance(said[-1]["error"], str)
    await until(lambda: mesh.events)
    assert mesh.events[0].outcome == usage_pb2.OUTCOME_FAILED


async def test_a_failure_before_the_first_line_is_a_refusal(
    ollama: Any, engine: FakeEngine
) -> None:
    engine.script = lambda reply: reply.json({"error": {"message": "no", "code": 400}}, 400)
    assert (await refusal(ollama.Chat(body(messages=MESSAGES))))[0] == "ENGINE_REJECTED"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_hang_up_stops_the_engine(
    ollama: Any, engine: FakeEngine, mesh: FakeMesh, stream: bool
) -> None:
    began = asyncio.Event()

    async def script(reply: Reply) -> None:
        await reply.start()
        await reply.send(ROLE + HELLO)
        began.set()
        await asyncio.sleep(60)

    engine.script = script
    call = ollama.Chat(body(messages=MESSAGES, stream=stream), metadata=caller("r1"))
    reading = asyncio.ensure_future(anext(aiter(call)))
    await began.wait()
    if stream:
        await reading
    call.cancel()
    async with asyncio.timeout(10):
        await engine.hung_up.wait()
    await asyncio.wait({reading})
    await until(lambda: mesh.events)
    assert mesh.events[0].outcome == usage_pb2.OUTCOME_CANCELLED


async def test_the_engines_times_are_told(ollama: Any, engine: FakeEngine) -> None:
    timed = USAGE.replace(b'{"x":1}', b'{"prompt_ms":1.25,"predicted_ms":2.5}')
    engine.script = lambda reply: reply.stream(ROLE + HELLO + LAST + timed + DONE)
    for said in (
        (await lines(ollama.Chat(body(messages=MESSAGES))))[-1],
        await whole(ollama.Chat(body(messages=MESSAGES, stream=False))),
    ):
        assert (said["prompt_eval_duration"], said["eval_duration"]) == (1_250_000, 2_500_000)
        assert "load_duration" not in said


async def test_debugging_callers_see_how_it_came_about(ollama: Any) -> None:
    metadata = (*caller("r1"), ("x-mesh-decision", '{"node":"node-1","policy":"p"}'))
    call = ollama.Chat(body(messages=MESSAGES), metadata=metadata)
    said = await lines(call)
    assert said[-1]["gateway_metadata"]["node"] == "node-1"
    assert "x-mesh-decision" in dict(await call.initial_metadata())


class Thinker(LlamaCpp):
    """A llama.cpp whose model thinks, and that goes on with no message of the assistant's."""

    continuation = None

    def thinking(self, model: str, budget: int | None) -> dict[str, Any] | None:
        return {"thinks": budget is None}


@pytest.mark.parametrize(
    ("think", "expected"),
    [
        (True, {"thinks": True}),
        (False, {"thinks": False}),
        ("high", {"reasoning_effort": "high"}),
        (None, {}),
    ],
)
async def test_thinking_is_asked_for_in_the_engines_words(
    engine: FakeEngine, mesh: FakeMesh, tmp_path: Path, monkeypatch: Any, think: Any, expected: Any
) -> None:
    monkeypatch.setitem(ENGINES, "llamacpp", Thinker)
    async with running(engine.port, mesh.address, tmp_path / "2") as node, stub(node) as thinker:
        await until(node.is_serving)
        await lines(thinker.Chat(body(messages=MESSAGES, think=think)))
    sent = orjson.loads(engine.requests[0].body)
    assert {n: sent[n] for n in ("thinks", "reasoning_effort") if n in sent} == expected


@pytest.mark.parametrize("think", [True, False])
async def test_an_engine_that_cannot_be_told_is_not_asked(
    ollama: Any, engine: FakeEngine, monkeypatch: Any, think: bool
) -> None:
    monkeypatch.setattr(LlamaCpp, "thinking", lambda *_: None)
    call = ollama.Chat(body(messages=MESSAGES, think=think))
    assert await refusal(call) == ("UNSUPPORTED", "think")
    assert not engine.requests


async def test_a_begun_answer_goes_on_where_the_engine_can(
    ollama: Any, engine: FakeEngine, mesh: FakeMesh, tmp_path: Path, monkeypatch: Any
) -> None:
    begun = [*MESSAGES, {"role": "assistant", "content": "Once"}]
    assert await lines(ollama.Chat(body(messages=begun)))
    monkeypatch.setitem(ENGINES, "llamacpp", Thinker)
    async with running(engine.port, mesh.address, tmp_path / "2") as node, stub(node) as other:
        await until(node.is_serving)
        refused = await refusal(other.Chat(body(messages=begun)))
    assert refused == ("UNSUPPORTED", "messages[1]")


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_that_is_given_again_took_no_time(
    node: Node, engine: FakeEngine, stream: bool
) -> None:
    timed = USAGE.replace(b'{"x":1}', b'{"prompt_ms":5,"predicted_ms":7}')

    async def answer(reply: Reply) -> None:
        await reply.stream(ROLE, HELLO, LAST, timed, DONE)

    engine.script = answer
    body = {"model": MODEL, "messages": MESSAGES, "stream": stream, "enable_caching": True}
    ends = []
    async with stub(node) as api:
        for number in range(2):
            metadata = (*caller(f"again-{number}"), ("x-mesh-tenant", "t"))
            call = api.Chat(httpbody_pb2.HttpBody(data=orjson.dumps(body)), metadata=metadata)
            text = b"".join([message.data async for message in call])
            ends.append(orjson.loads(text.splitlines()[-1]))
    made, again = ends
    assert len(engine.requests) == 1
    assert (made["prompt_eval_duration"], made["eval_duration"]) == (5_000_000, 7_000_000)
    assert again.keys() == made.keys() - {"prompt_eval_duration", "eval_duration"}
    assert again["eval_count"] == made["eval_count"]
