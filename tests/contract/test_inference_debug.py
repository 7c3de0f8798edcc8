"""Which model answers, how the answer came about, and the mesh's own fields; over a server."""

from pathlib import Path

import orjson
import pytest

from inference_node import (
    ANSWER,
    DONE,
    HELLO,
    LAST,
    MODEL,
    FakeEngine,
    FakeMesh,
    Node,
    caller,
    refusal,
    rest,
    running,
    typed_chat,
    until,
)
from infermesh.inference.v1 import inference_service_pb2 as pb

DECISION = '{"policy":"balanced","candidates":[{"node":"node-1","model":"m","score":0.75}]}'
DEBUG = (("x-mesh-decision", DECISION),)
CACHED = LAST + (
    b'data: {"choices":[],"usage":{"prompt_tokens":40,"completion_tokens":10,'
    b'"prompt_tokens_details":{"cached_tokens":30}}}\n\n'
)
EXTENSIONS = {
    "preferred_framework": "vllm",
    "fallback_models": ["a"],
    "enable_caching": True,
    "optimization_level": "high",
    "priority": "high",
    "session_id": "s",
}


def for_models(models: str, request_id: str = "r") -> list[tuple[str, str]]:
    asked = [(k, v) for k, v in caller(request_id) if k != "x-mesh-model"]
    return [*asked, ("x-mesh-model", "alias"), ("x-mesh-models", models)]


def named(event: bytes, model: str) -> bytes:
    return event.replace(b"data: {", b'data: {"model":"%b",' % model.encode())


# The model.


async def test_the_first_model_that_the_node_serves_answers(
    node: Node, engine: FakeEngine, mesh: FakeMesh
) -> None:
    engine.script = lambda reply: reply.stream(named(ANSWER, "/weights/m.gguf"))
    metadata = for_models(f"other,{MODEL},more")
    data = orjson.loads(await rest(node.chat(metadata=metadata, model="alias")))
    assert data["model"] == MODEL
    assert orjson.loads(engine.requests[0].body)["model"] == MODEL
    await until(lambda: mesh.events)
    assert mesh.events[0].model == MODEL
    request = typed_chat()
    request.model = "alias"
    assert (await node.typed.Chat(request, metadata=metadata)).model == MODEL
    stream = node.typed.StreamChat(pb.StreamChatRequest(chat=request), metadata=metadata)
    assert {response.model async for response in stream} == {MODEL}


async def test_every_event_of_a_stream_names_the_model_that_answers(
    node: Node, engine: FakeEngine
) -> None:
    theirs = [named(event, "/weights/m.gguf") for event in (HELLO, HELLO, LAST)]
    ours = [named(event, MODEL) for event in (HELLO, HELLO, LAST)]
    engine.script = lambda reply: reply.stream(*theirs, DONE)
    assert await rest(node.chat(stream=True)) == b"".join(ours) + DONE
    engine.script = lambda reply: reply.stream(*ours, DONE)
    assert await rest(node.chat(stream=True)) == b"".join(ours) + DONE


async def test_models_of_which_the_node_has_none(node: Node, engine: FakeEngine) -> None:
    call = node.chat(metadata=for_models("x,y"), model="alias")
    assert await refusal(call) == ("MODEL_NOT_FOUND", "model")
    # The list is routing's word; the name in the body does not count beside it.
    assert (await refusal(node.chat(metadata=for_models("x"))))[0] == "MODEL_NOT_FOUND"
    assert engine.requests == []


# How it came about.


def metadata_of(data: dict[str, object]) -> dict[str, object]:
    fields = data["gateway_metadata"]
    assert isinstance(fields, dict)
    assert fields.pop("response_time_ms") >= fields.pop("queue_ms") >= 0
    return fields


EXPECTED = {
    "node": "node-1",
    "deployment": None,
    "framework": "llamacpp",
    "model": MODEL,
    "cache_hit": 0.75,
    "score": 0.75,
    "policy": "balanced",
    "cost_estimate_usd": None,
}


async def test_an_answer_says_how_it_came_about(node: Node, engine: FakeEngine) -> None:
    engine.script = lambda reply: reply.stream(HELLO, CACHED, DONE)
    call = node.chat(metadata=DEBUG)
    data = orjson.loads(await rest(call))
    assert metadata_of(data) == EXPECTED
    assert data["choices"][0]["message"]["content"] == "hello"
    assert dict(await call.initial_metadata())["x-mesh-decision"] == DECISION


async def test_a_stream_says_it_before_its_end(node: Node, engine: FakeEngine) -> None:
    first = HELLO.replace(b"data: {", b'data: {"id":"c1","created":7,')
    engine.script = lambda reply: reply.stream(first, CACHED, DONE)
    call = node.chat(metadata=DEBUG, stream=True)
    events = (await rest(call)).split(b"\n\n")
    assert events[-2:] == [b"data: [DONE]", b""]
    data = orjson.loads(events[-3].removeprefix(b"data: "))
    assert metadata_of(data) == EXPECTED
    del data["gateway_metadata"]
    assert data == {
        "id": "c1",
        "created": 7,
        "object": "chat.completion.chunk",
        "model": MODEL,
        "choices": [],
    }
    # What came before is what comes without it.
    plain = await rest(node.chat(stream=True))
    assert b"\n\n".join(events[:-3]) + b"\n\n" + DONE == plain
    assert dict(await call.initial_metadata())["x-mesh-decision"] == DECISION


async def test_typed_answers_say_it_too(node: Node, engine: FakeEngine) -> None:
    engine.script = lambda reply: reply.stream(HELLO, CACHED, DONE)
    call = node.typed.Chat(typed_chat(), metadata=DEBUG)
    metadata = (await call).gateway_metadata
    assert (metadata.node, metadata.framework, metadata.model) == ("node-1", "llamacpp", MODEL)
    assert (metadata.cache_hit, metadata.score, metadata.policy) == (0.75, 0.75, "balanced")
    assert not metadata.HasField("cost_estimate_usd")
    assert metadata.response_time_ms > 0
    assert dict(await call.initial_metadata())["x-mesh-decision"] == DECISION
    request = pb.StreamChatRequest(chat=typed_chat())
    stream = node.typed.StreamChat(request, metadata=DEBUG)
    responses = [response async for response in stream]
    assert [r.HasField("gateway_metadata") for r in responses][-2:] == [False, True]
    assert responses[-1].gateway_metadata.cache_hit == 0.75
    assert dict(await stream.initial_metadata())["x-mesh-decision"] == DECISION


async def test_nobody_else_is_told(node: Node, engine: FakeEngine) -> None:
    call = node.chat()
    assert b"gateway_metadata" not in await rest(call)
    assert "x-mesh-decision" not in dict(await call.initial_metadata())
    assert b"gateway_metadata" not in await rest(node.chat(stream=True))
    assert not (await node.typed.Chat(typed_chat())).HasField("gateway_metadata")


async def test_what_it_cost(engine: FakeEngine, mesh: FakeMesh, tmp_path: Path) -> None:
    engine.script = lambda reply: reply.stream(HELLO, CACHED, DONE)
    prices = {MODEL: (1.0, 4.0)}
    async with running(engine.port, mesh.address, tmp_path, prices=prices) as node:
        await until(node.is_serving)
        data = orjson.loads(await rest(node.chat(metadata=DEBUG)))
    assert metadata_of(data)["cost_estimate_usd"] == pytest.approx(40e-6 + 40e-6)


# The mesh's own fields.


async def test_the_mesh_s_own_fields_do_not_reach_the_engine(
    node: Node, engine: FakeEngine
) -> None:
    await rest(node.chat(**EXTENSIONS, seed=1))
    await rest(node.chat(**EXTENSIONS, stream=True))
    request = typed_chat(
        preferred_framework="vllm",
        fallback_models=["a"],
        enable_caching=True,
        optimization_level="high",
        priority=pb.PRIORITY_HIGH,
        session_id="s",
    )
    await node.typed.Chat(request)
    bodies = [orjson.loads(sent.body) for sent in engine.requests]
    assert len(bodies) == 3
    for body in bodies:
        assert not body.keys() & EXTENSIONS.keys()
        assert body["model"] == MODEL
    assert bodies[0]["seed"] == 1


async def test_wrong_ones_are_refused(node: Node, engine: FakeEngine) -> None:
    assert await refusal(node.chat(priority="urgent")) == ("INVALID_ARGUMENT", "priority")
    for fields, param in (
        ({"priority": 9}, "priority"),
        ({"fallback_models": ["m"] * 9}, "fallback_models"),
        ({"session_id": "s" * 201}, "session_id"),
    ):
        request = typed_chat(**fields)
        assert await refusal(node.typed.Chat(request)) == ("INVALID_ARGUMENT", param)
        stream = node.typed.StreamChat(pb.StreamChatRequest(chat=request))
        assert await refusal(stream) == ("INVALID_ARGUMENT", f"chat.{param}")
    assert engine.requests == []


async def test_what_the_node_learns_is_reported(
    node: Node, engine: FakeEngine, mesh: FakeMesh
) -> None:
    engine.script = lambda reply: reply.stream(HELLO, CACHED, DONE)
    expecting = (("x-mesh-expected-cached", "0.50"),)
    for _ in range(2):
        await rest(node.chat(metadata=expecting, stream=True))
    await until(lambda: mesh.reports[-1].load.prompt_tokens == 80)
    load = mesh.reports[-1].load
    assert (load.expected_cached_tokens, load.cached_tokens) == (40, 60)
    assert load.time_to_first_token > 0
