"""What no engine ranks, what engines say wrongly, what guardrails and the audit log see of it."""

from pathlib import Path

import grpc
import orjson
import pytest
from google.protobuf import struct_pb2

from contract.test_audit_inference import Door
from inference_node import (
    MODEL,
    FakeEngine,
    FakeMesh,
    Node,
    caller,
    refusal,
    running,
    typed_chat,
    until,
)
from infermesh.auth.v1 import audit_service_pb2_grpc
from infermesh.inference.v1 import inference_service_pb2 as pb
from infermesh.metrics.v1 import usage_service_pb2 as usage_pb2
from infermesh.metrics.v1 import usage_service_pb2_grpc
from infermesh.registry.v1 import node_service_pb2_grpc
from rest_calls import GUARDED, refused
from services.kit import headers


async def test_an_engine_that_ranks_nothing_says_so(node: Node, engine: FakeEngine) -> None:
    error = {"error": {"code": 501, "message": "no", "type": "not_supported_error"}}
    engine.script = lambda reply: reply.json(error, 501)
    request = pb.RerankRequest(model=MODEL, query="q", documents=["d"])
    assert await refusal(node.typed.Rerank(request)) == ("UNSUPPORTED", "model")
    engine.script = lambda reply: reply.json({"detail": "Not Found"}, 404)
    assert await refusal(node.typed.Rerank(request)) == ("UNSUPPORTED", "model")
    gone = {"error": {"code": 404, "param": "model", "message": "gone"}}
    engine.script = lambda reply: reply.json(gone, 404)
    assert (await refusal(node.typed.Rerank(request)))[0] == "ENGINE_UNAVAILABLE"


@pytest.mark.parametrize(
    "said",
    [
        {"results": [{"index": 0, "relevance_score": 1}]},
        {"results": [{"index": 0, "relevance_score": 1}, {"index": 0, "relevance_score": 0}]},
        {"results": [{"index": 0, "relevance_score": 1}, {"index": 2, "relevance_score": 0}]},
        {"results": [{"index": 0, "relevance_score": 1}, {"index": 1}]},
        {"results": [{"index": 0, "relevance_score": 1}, {"index": 1, "score": "high"}]},
        {"results": {}},
        {},
        7,
    ],
)
async def test_rankings_of_something_else_are_the_engines_failure(
    node: Node, engine: FakeEngine, mesh: FakeMesh, said: object
) -> None:
    engine.script = lambda reply: reply.json(said)
    request = pb.RerankRequest(model=MODEL, query="q", documents=["d", "e"])
    call = node.typed.Rerank(request, metadata=caller("f"))
    assert (await refusal(call))[0] == "ENGINE_FAILED"
    await until(lambda: mesh.events)
    assert mesh.events[0].outcome == usage_pb2.OUTCOME_FAILED


async def test_scores_and_no_usage(node: Node, engine: FakeEngine) -> None:
    engine.script = lambda reply: reply.json([{"index": 1, "score": -1}, {"index": 0, "score": 2}])
    options = struct_pb2.Struct()
    options.update({"instruction": "find", "x": 1})
    request = pb.RerankRequest(model=MODEL, query="q", documents=["d", "e"], engine_options=options)
    response = await node.typed.Rerank(request)
    assert [(r.index, r.relevance_score) for r in response.results] == [(0, 2.0), (1, -1.0)]
    assert not response.HasField("usage")
    sent = orjson.loads(engine.requests[-1].body)
    assert (sent["instruction"], sent["x"], sent["top_n"]) == ("find", 1, 2)
    options.update({"Documents": ["more"]})
    request.engine_options.CopyFrom(options)
    refusal_of = await refusal(node.typed.Rerank(request))
    assert refusal_of == ("INVALID_ARGUMENT", "engine_options.Documents")


async def test_how_a_ranking_came_about(node: Node, engine: FakeEngine) -> None:
    engine.script = lambda reply: reply.json({"results": [{"index": 0, "relevance_score": 2}]})
    metadata = ((headers.DECISION, '{"policy":"p","node":"node-1","score":0.5}'),)
    request = pb.RerankRequest(model=MODEL, query="q", documents=["d"])
    call = node.typed.Rerank(request, metadata=metadata)
    response = await call
    assert response.gateway_metadata.node == "node-1"
    assert response.gateway_metadata.policy == "p"
    assert headers.DECISION in dict(await call.initial_metadata())


async def test_guardrails_see_rankings_and_tokens(node: Node, engine: FakeEngine) -> None:
    engine.script = lambda reply: reply.json({"results": [{"index": 0, "relevance_score": 2}]})
    options = struct_pb2.Struct()
    options.update({"instruction": "b@example.com"})
    request = pb.RerankRequest(
        model=MODEL, query="a@example.com", documents=["c@example.com"], engine_options=options
    )
    call = node.typed.Rerank(request, metadata=GUARDED)
    await call
    sent = orjson.loads(engine.requests[-1].body)
    word = "<EMAIL_ADDRESS>"
    assert (sent["query"], sent["documents"], sent["instruction"]) == (word, [word], word)
    assert dict(await call.initial_metadata())[headers.REDACTIONS] == "3"
    zebra = pb.RerankRequest(model=MODEL, query="q", documents=["zebra"])
    assert (await refusal(node.typed.Rerank(zebra, metadata=GUARDED)))[0] == "CONTENT_BLOCKED"
    fields = {"model": MODEL, "query": "zebra", "documents": ["d"]}
    assert (await refused(node.openai.CreateRerank, GUARDED, **fields))[0] == "CONTENT_BLOCKED"
    asked = pb.TokenizeRequest(model=MODEL, text="zebra")
    assert (await refusal(node.typed.Tokenize(asked, metadata=GUARDED)))[0] == "CONTENT_BLOCKED"
    # Three tokens for the word that is in its place, and not those of the address.
    asked = pb.TokenizeRequest(model=MODEL, text="to a@example.com x y")
    call = node.typed.Tokenize(asked, metadata=GUARDED)
    assert len((await call).tokens) == 4 + 2
    assert dict(await call.initial_metadata())[headers.REDACTIONS] == "1"
    ids = pb.DetokenizeRequest(model=MODEL, tokens=[1])
    assert await refusal(node.typed.Detokenize(ids, metadata=GUARDED)) == ("UNSUPPORTED", "tokens")
    chat = pb.CountTokensRequest(chat=typed_chat("zebra"))
    assert (await refusal(node.typed.CountTokens(chat, metadata=GUARDED)))[0] == "CONTENT_BLOCKED"
    assert len(engine.requests) == 1


async def test_the_audit_log_is_told_of_rankings_and_tokens(
    engine: FakeEngine, tmp_path: Path
) -> None:
    mesh, door = FakeMesh(), Door()
    server = grpc.aio.server()
    node_service_pb2_grpc.add_NodeServiceServicer_to_server(mesh, server)
    usage_service_pb2_grpc.add_UsageServiceServicer_to_server(mesh, server)
    audit_service_pb2_grpc.add_AuditServiceServicer_to_server(door, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    engine.script = lambda reply: reply.json({"results": [{"index": 0, "relevance_score": 2}]})
    words = "the launch code is 0000"
    try:
        async with running(engine.port, address, tmp_path) as node:
            await until(node.is_serving)
            for name, request in (
                ("Rerank", pb.RerankRequest(model=MODEL, query=words, documents=[words])),
                ("Tokenize", pb.TokenizeRequest(model=MODEL, text=words)),
            ):
                metadata = (*caller(name), (headers.AUDIT_BODY, "1"))
                await getattr(node.typed, name)(request, metadata=metadata)
            await until(lambda: len(door.events) >= 2)
    finally:
        await server.stop(0)
    assert [orjson.loads(e.after)["operation"] for e in door.events] == ["rerank", "tokenize"]
    assert "launch" not in "".join(event.after for event in door.events)
