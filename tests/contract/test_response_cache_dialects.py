"""Answers that are kept, and cannot be put into the words of the dialect that asks."""

from typing import Any

import orjson
import pytest
from google.api import httpbody_pb2

from inference_node import (
    ANSWER,
    DONE,
    MODEL,
    USAGE,
    FakeEngine,
    FakeMesh,
    Node,
    Reply,
    caller,
    refusal,
    rest,
    typed_chat,
    until,
)
from infermesh.inference.v1 import anthropic_service_pb2_grpc, ollama_service_pb2_grpc
from infermesh.inference.v1 import inference_service_pb2 as pb
from infermesh.metrics.v1 import usage_service_pb2 as usage_pb2

MESSAGES = [{"role": "user", "content": "hi"}]
CALLER = (*caller("r"), ("x-mesh-tenant", "t"))


def asked(stream: bool, **more: object) -> httpbody_pb2.HttpBody:
    fields = {"model": MODEL, "messages": MESSAGES, "stream": stream, "enable_caching": True}
    return httpbody_pb2.HttpBody(data=orjson.dumps(fields | more))


def anthropic(node: Node, stream: bool) -> Any:
    stub = anthropic_service_pb2_grpc.AnthropicServiceStub(node.channel)
    return stub.CreateMessage(asked(stream, max_tokens=9), metadata=CALLER)


def ollama(node: Node, stream: bool) -> Any:
    stub = ollama_service_pb2_grpc.OllamaServiceStub(node.channel)
    return stub.Chat(asked(stream), metadata=CALLER)


def typed(node: Node, stream: bool) -> Any:
    chat = typed_chat(enable_caching=True)
    if stream:
        return node.typed.StreamChat(pb.StreamChatRequest(chat=chat), metadata=CALLER)
    return node.typed.Chat(chat, metadata=CALLER)


def completion(node: Node, stream: bool) -> Any:
    ask = pb.CompleteRequest(model=MODEL, prompts=["hi"], enable_caching=True)
    send = node.typed.StreamComplete if stream else node.typed.Complete
    return send(ask, metadata=CALLER)


async def told(call: Any) -> str | None:
    """Reads an answer to its end; returns what its header says of the cache."""
    if hasattr(call, "__aiter__"):
        assert [message async for message in call]
    else:
        await call
    return dict(await call.initial_metadata()).get("x-mesh-cache")


def calling(name: str, arguments: str) -> bytes:
    """A stream with a call of a tool."""
    function = {"name": name, "arguments": arguments}
    call = {"index": 0, "id": "c", "type": "function", "function": function}
    choice = {"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": "tool_calls"}
    return b"data: %b\n\n" % orjson.dumps({"choices": [choice]}) + USAGE + DONE


NAMELESS = calling("", "{}")
NO_OBJECT = calling("f", "[1]")
# An index is a number.
FAULTY = {"index": "x", "text": "a", "delta": {"content": "a"}, "finish_reason": "stop"}
INDEX = b"data: %b\n\n" % orjson.dumps({"choices": [FAULTY]}) + USAGE + DONE

BAD = {
    "anthropic stream": (anthropic, True, NAMELESS),
    "anthropic whole": (anthropic, False, None),
    "ollama stream": (ollama, True, NO_OBJECT),
    "ollama whole": (ollama, False, NO_OBJECT),
    "typed stream": (typed, True, INDEX),
    "typed whole": (typed, False, None),
    "completion stream": (completion, True, INDEX),
    "completion whole": (completion, False, None),
}


@pytest.mark.parametrize("name", BAD)
async def test_what_cannot_be_said_is_not_kept(node: Node, engine: FakeEngine, name: str) -> None:
    call, stream, bad = BAD[name]

    async def answer(reply: Reply) -> None:
        if bad is not None:
            await reply.stream(bad)
        else:
            await reply.json({"choices": [{"index": "x"}], "usage": {"prompt_tokens": 3}})

    engine.script = answer
    assert (await refusal(call(node, stream)))[0] == "ENGINE_FAILED"
    text = b'data: {"choices":[{"index":0,"text":"a","finish_reason":"stop"}]}\n\n' + USAGE + DONE
    engine.script = lambda reply: reply.stream(text if call is completion else ANSWER)
    assert [await told(call(node, stream)) for _ in range(2)] == ["miss", "hit"]
    assert len(engine.requests) == 2


async def test_what_another_dialect_kept_is_dropped(
    node: Node, engine: FakeEngine, mesh: FakeMesh
) -> None:
    engine.script = lambda reply: reply.stream(NO_OBJECT)
    await rest(node.chat(metadata=CALLER, messages=MESSAGES, enable_caching=True))
    assert (await refusal(ollama(node, False)))[0] == "ENGINE_FAILED"
    assert len(engine.requests) == 1
    engine.script = lambda reply: reply.stream(ANSWER)
    assert [await told(ollama(node, False)) for _ in range(2)] == ["miss", "hit"]
    await until(lambda: len(mesh.events) == 4)
    assert [event.outcome for event in mesh.events] == [
        *(usage_pb2.OUTCOME_OK, usage_pb2.OUTCOME_FAILED),
        *(usage_pb2.OUTCOME_OK, usage_pb2.OUTCOME_OK),
    ]
