"""What the node's stream to the registry carries besides reports: proof, news, and work."""

import asyncio
from pathlib import Path

import grpc
import pytest

from inference_node import MODEL, FakeEngine, FakeMesh, Node, refusal, running, until
from infermesh.errors.v1 import errors_pb2
from infermesh.inference.v1 import identity_service_pb2, identity_service_pb2_grpc
from infermesh.registry.v1 import node_service_pb2 as pb


async def test_it_shows_at_its_address_what_its_stream_brought(node: Node, mesh: FakeMesh) -> None:
    await until(lambda: mesh.joins)
    async with grpc.aio.insecure_channel(node.address) as channel:
        stub = identity_service_pb2_grpc.IdentityServiceStub(channel)
        # The mesh of this test asks for no proof, so that there is no nonce.
        assert (await refusal(stub.Identify(identity_service_pb2.IdentifyRequest())))[0] == (
            "FAILED_PRECONDITION"
        )
        mesh.nonce = b"0123456789abcdef"
        mesh.to_node.put_nowait(None)
        await until(lambda: len(mesh.joins) == 2)
        shown = await stub.Identify(identity_service_pb2.IdentifyRequest())
        assert (shown.node_id, shown.nonce) == ("node-1", mesh.nonce)


async def test_other_models_are_news_and_no_new_join(
    node: Node, engine: FakeEngine, mesh: FakeMesh
) -> None:
    await until(lambda: mesh.reports and mesh.reports[-1].engine_up)
    await engine.stop()
    await until(lambda: not mesh.reports[-1].engine_up)
    engine.model = "another"
    await engine.start()
    await until(lambda: mesh.updates)
    assert [model.name for model in mesh.updates[-1].models] == ["another"]
    assert len(mesh.joins) == 1


async def test_a_benchmark_runs_beside_the_callers_and_is_not_accounted(
    node: Node, mesh: FakeMesh
) -> None:
    await until(lambda: mesh.reports and mesh.reports[-1].engine_up)
    request = pb.BenchmarkNodeRequest(node_id="node-1", model=MODEL, requests=5, concurrency=2)
    command = pb.NodeCommand(command_id="c1", benchmark=request)
    mesh.to_node.put_nowait(pb.AttachNodeResponse(command=command))
    await until(lambda: mesh.progress and mesh.progress[-1].benchmark.HasField("result"))
    assert (mesh.progress[-1].benchmark.completed, mesh.progress[-1].benchmark.failed) == (5, 0)
    result = mesh.progress[-1].benchmark.result
    assert {progress.command_id for progress in mesh.progress} == {"c1"}
    assert result.first_failure == ""
    assert result.latency.p99 >= result.latency.p50 > 0
    assert result.time_to_first_token.p50 > 0
    assert result.output_tokens == 5 * 2
    assert mesh.events == []
    # It counts in what the node says of itself, as any other answer does.
    await until(lambda: mesh.reports[-1].load.tokens_per_second > 0)


async def test_what_the_node_cannot_do_comes_back_as_a_failure(node: Node, mesh: FakeMesh) -> None:
    await until(lambda: mesh.reports)
    request = pb.LoadModelRequest(node_id="node-1", model="x")
    command = pb.NodeCommand(command_id="c2", load_model=request)
    mesh.to_node.put_nowait(pb.AttachNodeResponse(command=command))
    await until(lambda: mesh.progress)
    failure = mesh.progress[-1].failure
    assert (failure.reason, failure.param) == (errors_pb2.ERROR_REASON_UNSUPPORTED, "model")


async def test_a_refused_node_asks_again_less_often(
    engine: FakeEngine, mesh: FakeMesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.inference.agent._REFUSED_BACKOFF_S", 60.0)
    mesh.refusal = (grpc.StatusCode.FAILED_PRECONDITION, "no")
    async with running(engine.port, mesh.address, tmp_path):
        await until(lambda: mesh.joins)
        await asyncio.sleep(0.6)
        assert len(mesh.joins) == 1


async def test_it_says_what_its_operator_says(
    engine: FakeEngine, mesh: FakeMesh, tmp_path: Path
) -> None:
    more = {"labels": {"zone": "a"}, "tier": 2, "prices": {MODEL: (0.5, 1.5)}, "engine": "auto"}
    async with running(engine.port, mesh.address, tmp_path, **more):
        await until(lambda: mesh.joins)
    join = mesh.joins[0]
    assert (join.engine, join.tier, dict(join.labels)) == ("llamacpp", 2, {"zone": "a"})
    assert (join.models[0].input_price, join.models[0].output_price) == (0.5, 1.5)
