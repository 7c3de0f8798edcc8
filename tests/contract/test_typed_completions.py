"""Typed completions over a running node, and what stops them."""

import asyncio

import grpc
import orjson
import pytest

from inference_node import (
    DONE,
    MODEL,
    USAGE,
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
from rest_calls import GUARDED
from services.kit import headers


def event(index: int, text: str, reason: str | None = None, **more: object) -> bytes:
    choice = {"index": index, "text": text, "finish_reason": reason, **more}
    return b"data: %b\n\n" % orjson.dumps({"id": "c", "created": 9, "choices": [choice]})


TWO = (
    event(0, "a", logprobs={"content": [{"token": "a", "logprob": -1, "top_logprobs": []}]})
    + event(1, "b")
    + event(0, "", "stop")
    + event(1, "c", "length")
    + USAGE
    + DONE
)


def asked(engine: FakeEngine) -> dict:
    return orjson.loads(engine.requests[-1].body)


async def test_texts_are_completed(node: Node, engine: FakeEngine, mesh: FakeMesh) -> None:
    engine.script = lambda reply: reply.stream(TWO)
    request = pb.CompleteRequest(
        model=MODEL, prompts=["x", "y"], max_tokens=4, logprobs=1, sampling=pb.Sampling(seed=1)
    )
    response = await node.typed.Complete(request, metadata=caller("t"))
    assert [(c.index, c.text, c.finish_reason) for c in response.choices] == [
        (0, "a", pb.FINISH_REASON_STOP),
        (1, "bc", pb.FINISH_REASON_LENGTH),
    ]
    assert response.choices[0].logprobs.content[0].logprob == -1
    assert not response.choices[1].HasField("logprobs")
    assert (response.id, response.create_time.seconds) == ("c", 9)
    assert (response.usage.prompt_tokens, response.usage.completion_tokens) == (3, 2)
    sent = asked(engine)
    assert (sent["prompt"], sent["max_tokens"], sent["logprobs"], sent["seed"]) == (
        ["x", "y"],
        4,
        1,
        1,
    )
    await until(lambda: mesh.events)
    assert mesh.events[0].operation == usage_pb2.OPERATION_COMPLETION
    assert mesh.events[0].completion_tokens == 2


async def test_texts_are_completed_piece_by_piece(node: Node, engine: FakeEngine) -> None:
    engine.script = lambda reply: reply.stream(TWO)
    request = pb.CompleteRequest(model=MODEL, token_prompts=[pb.TokenIds(ids=[1, 2])])
    responses = [response async for response in node.typed.StreamComplete(request)]
    pieces = [piece for response in responses for piece in response.pieces]
    assert "".join(p.text for p in pieces if p.index == 0) == "a"
    assert "".join(p.text for p in pieces if p.index == 1) == "bc"
    assert [p.finish_reason for p in pieces if p.finish_reason] == [
        pb.FINISH_REASON_STOP,
        pb.FINISH_REASON_LENGTH,
    ]
    assert [r.HasField("usage") for r in responses][-2:] == [False, True]
    assert not responses[-1].pieces
    assert {(r.id, r.create_time.seconds) for r in responses} == {("c", 9)}
    assert asked(engine)["prompt"] == [1, 2]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompts"),
        ({"prompts": ["a"], "token_prompts": [pb.TokenIds(ids=[1])]}, "prompts"),
        ({"token_prompts": [pb.TokenIds()]}, "token_prompts[0].ids"),
        ({"prompts": ["a"], "n": 17}, "n"),
        ({"prompts": ["a"], "logprobs": 21}, "logprobs"),
        ({"prompts": ["a"], "sampling": pb.Sampling(temperature=3)}, "sampling.temperature"),
    ],
)
async def test_what_the_contract_rules_out(node: Node, fields: dict, param: str | None) -> None:
    request = pb.CompleteRequest(model=MODEL, **fields)
    assert await refusal(node.typed.Complete(request)) == ("INVALID_ARGUMENT", param)
    assert await refusal(node.typed.StreamComplete(request)) == ("INVALID_ARGUMENT", param)


async def test_guardrails_see_completions(node: Node, engine: FakeEngine) -> None:
    engine.script = lambda reply: reply.stream(TWO)
    request = pb.CompleteRequest(model=MODEL, prompts=["to a@example.com"])
    call = node.typed.Complete(request, metadata=GUARDED)
    await call
    assert asked(engine)["prompt"] == "to <EMAIL_ADDRESS>"
    assert dict(await call.initial_metadata())[headers.REDACTIONS] == "1"
    request = pb.CompleteRequest(model=MODEL, prompts=["a zebra"])
    call = node.typed.StreamComplete(request, metadata=GUARDED)
    assert (await refusal(call))[0] == "CONTENT_BLOCKED"
    request = pb.CompleteRequest(model=MODEL, token_prompts=[pb.TokenIds(ids=[1])])
    call = node.typed.Complete(request, metadata=GUARDED)
    assert await refusal(call) == ("UNSUPPORTED", "prompt")
    assert len(engine.requests) == 1


CALLS = {
    "Chat": lambda: typed_chat(),
    "StreamChat": lambda: pb.StreamChatRequest(chat=typed_chat()),
    "Complete": lambda: pb.CompleteRequest(model=MODEL, prompts=["a"]),
    "StreamComplete": lambda: pb.CompleteRequest(model=MODEL, prompts=["a"]),
    "Rerank": lambda: pb.RerankRequest(model=MODEL, query="q", documents=["d"]),
    "CountTokens": lambda: pb.CountTokensRequest(chat=typed_chat()),
    "Detokenize": lambda: pb.DetokenizeRequest(model=MODEL, tokens=[1]),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("how", ["cancelled", "deadline"])
async def test_the_end_of_a_call_reaches_the_engine(
    node: Node, engine: FakeEngine, name: str, how: str
) -> None:
    async def never(reply) -> None:
        await until(lambda: False)

    engine.script = never
    timeout_s = 0.3 if how == "deadline" else None
    call = getattr(node.typed, name)(CALLS[name](), timeout=timeout_s)
    reading = call.read() if name.startswith("Stream") else call
    if how == "cancelled":
        await until(lambda: engine.requests)
        call.cancel()
    with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
        await reading
    # Sooner than the node would give up the engine itself.
    await asyncio.wait_for(engine.hung_up.wait(), 2)


async def test_a_chat_tells_all_that_its_engine_does(node: Node, engine: FakeEngine) -> None:
    top = {"id": "i", "created": 7, "system_fingerprint": "fp", "service_tier": "flex"}
    token = {"token": "h", "logprob": -0.5, "bytes": [104], "top_logprobs": []}
    usage = {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "completion_tokens_details": {"reasoning_tokens": 1},
    }

    def piece(delta: dict, **more: object) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": None, **more}
        return b"data: %b\n\n" % orjson.dumps({**top, "choices": [choice]})

    stream = (
        piece({"content": "h"}, logprobs={"content": [token]})
        + piece({"refusal": "no"}, finish_reason="stop")
        + b"data: %b\n\n" % orjson.dumps({**top, "choices": [], "usage": usage})
        + DONE
    )
    engine.script = lambda reply: reply.stream(stream)
    request = typed_chat(
        logprobs=True, top_logprobs=0, max_completion_tokens=9, user="u", reasoning_effort="low"
    )
    response = await node.typed.Chat(request)
    assert (response.system_fingerprint, response.service_tier) == ("fp", "flex")
    assert response.choices[0].message.refusal == "no"
    assert response.choices[0].logprobs.content[0].bytes == b"h"
    assert response.usage.reasoning_tokens == 1
    sent = asked(engine)
    assert (sent["logprobs"], sent["top_logprobs"], sent["max_completion_tokens"]) == (True, 0, 9)
    assert (sent["user"], sent["reasoning_effort"]) == ("u", "low")
    streamed = pb.StreamChatRequest(chat=request)
    responses = [each async for each in node.typed.StreamChat(streamed)]
    assert {
        (r.id, r.service_tier, r.system_fingerprint, r.create_time.seconds) for r in responses
    } == {("i", "flex", "fp", 7)}
    assert [d.refusal for r in responses for d in r.deltas if d.refusal] == ["no"]
    assert responses[-1].usage.reasoning_tokens == 1
