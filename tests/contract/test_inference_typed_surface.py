"""The typed surface of the inference proxy over a running server."""

import orjson
import pytest

from inference_node import (
    MODEL,
    FakeEngine,
    FakeMesh,
    Node,
    caller,
    refusal,
    typed_chat,
    until,
)
from infermesh.inference.v1 import inference_service_pb2 as pb
from infermesh.metrics.v1 import usage_service_pb2 as usage_pb2


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
