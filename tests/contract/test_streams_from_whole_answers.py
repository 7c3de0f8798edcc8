"""Streams from an engine that cannot stream: its answer comes whole, in every dialect."""

from typing import Any

import orjson
import pytest
from google.api import httpbody_pb2

from inference_node import MODEL, FakeEngine, FakeMesh, Node, Reply, caller, refusal, rest, until
from infermesh.inference.v1 import (
    anthropic_service_pb2_grpc,
    ollama_service_pb2_grpc,
)
from infermesh.inference.v1 import inference_service_pb2 as pb
from infermesh.metrics.v1 import usage_service_pb2 as usage_pb2

MESSAGES = [{"role": "user", "content": "hi"}]
USAGE = {"prompt_tokens": 3, "completion_tokens": 2}


def called(name: str, place: int) -> dict[str, Any]:
    arguments = orjson.dumps({"place": place}).decode()
    return {
        "id": f"call-{place}",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


MESSAGE = {
    "role": "assistant",
    "content": "hello",
    "reasoning_content": "hm",
    "tool_calls": [called("f", 0), called("g", 1)],
}


def answers(engine: FakeEngine, message: object = None, **more: object) -> None:
    choice = {"index": 0, "message": message or MESSAGE, "finish_reason": "tool_calls"}
    answer = {"id": "a", "created": 9, "choices": [choice], "model": MODEL, "usage": USAGE, **more}

    async def whole(reply: Reply) -> None:
        assert orjson.loads(reply.body)["stream"] is True
        await reply.json(answer)

    engine.script = whole


def body(**fields: object) -> httpbody_pb2.HttpBody:
    return httpbody_pb2.HttpBody(data=orjson.dumps({"model": MODEL, **fields}))


def anthropic(node: Node, **fields: object) -> Any:
    stub = anthropic_service_pb2_grpc.AnthropicServiceStub(node.channel)
    asked = body(messages=MESSAGES, max_tokens=9, stream=True, **fields)
    return stub.CreateMessage(asked, metadata=caller("a"))


def ollama(node: Node) -> Any:
    stub = ollama_service_pb2_grpc.OllamaServiceStub(node.channel)
    return stub.Chat(body(messages=MESSAGES, stream=True), metadata=caller("o"))


def typed(node: Node) -> Any:
    chat = pb.ChatMessage(role=pb.CHAT_ROLE_USER, content=[pb.ContentPart(text="hi")])
    request = pb.StreamChatRequest(chat=pb.ChatRequest(model=MODEL, messages=[chat]))
    return node.typed.StreamChat(request, metadata=caller("t"))


async def accounted(mesh: FakeMesh) -> None:
    await until(lambda: mesh.events)
    (event,) = mesh.events
    assert (event.outcome, event.streamed) == (usage_pb2.OUTCOME_OK, True)
    assert (event.prompt_tokens, event.completion_tokens) == (3, 2)


async def test_anthropic(node: Node, engine: FakeEngine, mesh: FakeMesh) -> None:
    answers(engine)
    events = [
        orjson.loads(line[6:])
        for line in (await rest(anthropic(node))).split(b"\n")
        if line.startswith(b"data: ")
    ]
    blocks = [e["content_block"] for e in events if e["type"] == "content_block_start"]
    assert [block["type"] for block in blocks] == ["thinking", "text", "tool_use", "tool_use"]
    assert [block["name"] for block in blocks[2:]] == ["f", "g"]
    deltas = [e["delta"] for e in events if e["type"] == "content_block_delta"]
    assert [d["partial_json"] for d in deltas[2:]] == ['{"place":0}', '{"place":1}']
    assert events[-2]["delta"]["stop_reason"] == "tool_use"
    assert events[-2]["usage"]["output_tokens"] == 2
    assert events[-1] == {"type": "message_stop"}
    await accounted(mesh)


async def test_ollama(node: Node, engine: FakeEngine, mesh: FakeMesh) -> None:
    answers(engine)
    lines = [orjson.loads(line) for line in (await rest(ollama(node))).splitlines()]
    assert lines[0]["message"]["content"] == "hello"
    assert lines[0]["message"]["thinking"] == "hm"
    calls = [call for line in lines for call in line["message"].get("tool_calls", ())]
    assert [call["function"]["arguments"] for call in calls] == [{"place": 0}, {"place": 1}]
    assert (lines[-1]["done"], lines[-1]["prompt_eval_count"], lines[-1]["eval_count"]) == (
        *(True, 3, 2),
    )
    await accounted(mesh)


async def test_typed_chats(node: Node, engine: FakeEngine, mesh: FakeMesh) -> None:
    answers(engine)
    responses = [response async for response in typed(node)]
    (delta,) = [delta for response in responses for delta in response.deltas]
    assert (delta.content, delta.reasoning_content) == ("hello", "hm")
    assert [(call.index, call.name) for call in delta.tool_calls] == [(0, "f"), (1, "g")]
    assert delta.finish_reason == pb.FINISH_REASON_TOOL_CALLS
    assert responses[-1].usage.prompt_tokens == 3
    assert {(r.id, r.create_time.seconds) for r in responses} == {("a", 9)}
    await accounted(mesh)


async def test_typed_completions(node: Node, engine: FakeEngine, mesh: FakeMesh) -> None:
    choices = [
        {"index": 0, "text": "a", "finish_reason": "stop"},
        {"index": 1, "text": "b", "finish_reason": "length"},
    ]
    answers(engine, choices=choices)
    request = pb.CompleteRequest(model=MODEL, prompts=["x", "y"])
    call = node.typed.StreamComplete(request, metadata=caller("c"))
    responses = [response async for response in call]
    pieces = [piece for response in responses for piece in response.pieces]
    assert [(piece.index, piece.text) for piece in pieces] == [(0, "a"), (1, "b")]
    assert responses[-1].usage.completion_tokens == 2
    await accounted(mesh)


async def test_usage_that_is_not_told_stays_unknown(node: Node, engine: FakeEngine) -> None:
    answers(engine, usage=None)
    responses = [response async for response in typed(node)]
    assert not responses[-1].HasField("usage")


@pytest.mark.parametrize("call", [anthropic, ollama, typed])
@pytest.mark.parametrize("choices", [[], None, [7], [{"message": "hello"}], "x"])
async def test_what_is_no_answer_is_refused(
    node: Node, engine: FakeEngine, call: Any, choices: object
) -> None:
    answers(engine, choices=choices)
    assert (await refusal(call(node)))[0] == "ENGINE_FAILED"
