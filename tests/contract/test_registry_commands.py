"""Commands to nodes: how they get there, how progress comes back, and how they end."""

import asyncio

import grpc
import pytest
from google.rpc import code_pb2

from infermesh.errors.v1 import errors_pb2
from infermesh.registry.v1 import model_service_pb2, resources_pb2
from infermesh.registry.v1 import node_service_pb2 as pb
from registry_world import (
    Registry,
    attach,
    join,
    no_fake_nodes_left,
    refused,
    registry,
    report,
    running,
)

__all__ = ["no_fake_nodes_left", "registry"]


def model_progress(command: pb.NodeCommand, status: str, done: bool = False) -> object:
    return pb.AttachNodeRequest(
        progress=pb.CommandProgress(
            command_id=command.command_id, model=pb.ModelProgress(status=status, done=done)
        )
    )


async def ready_node(registry: Registry) -> grpc.aio.StreamStreamCall:
    call = await attach(registry, join("a", 1), report())
    await registry.wait_for("a", resources_pb2.NODE_STATE_READY)
    return call


async def commands_of(registry: Registry, node_id: str = "a") -> list[str]:
    return list((await registry.nodes.GetNode(pb.GetNodeRequest(node_id=node_id))).commands)


async def test_a_load_brings_its_progress_and_ends(registry: Registry) -> None:
    node = await ready_node(registry)
    request = pb.LoadModelRequest(node_id="a", model="qwen3:8b", source="/adapters/x")
    load = registry.nodes.LoadModel(request)
    command = (await node.read()).command
    assert command.load_model == request
    assert await commands_of(registry) == ["load qwen3:8b"]
    await node.write(model_progress(command, "pulling"))
    assert (await load.read()).progress.status == "pulling"
    assert await commands_of(registry) == ["load qwen3:8b: pulling"]
    update = pb.NodeUpdate(
        engine_version="2",
        models=[resources_pb2.ServedModel(name="qwen3:8b", base_model="m", input_price=0.5)],
    )
    await node.write(pb.AttachNodeRequest(update=update))
    await node.write(model_progress(command, "done", done=True))
    assert (await load.read()).progress.done
    assert await load.read() is grpc.aio.EOF
    assert await commands_of(registry) == []
    # What the node serves is known before the load is over.
    found = await registry.nodes.GetNode(pb.GetNodeRequest(node_id="a"))
    assert (found.engine_version, list(found.models)) == ("2", list(update.models))
    models = (await registry.models.ListModels(model_service_pb2.ListModelsRequest())).models
    assert [(m.name, m.ready_node_count) for m in models] == [("m", 0), ("qwen3:8b", 1)]


async def test_an_unload_is_told_too(registry: Registry) -> None:
    node = await ready_node(registry)
    unload = registry.nodes.UnloadModel(pb.UnloadModelRequest(node_id="a", model="m"))
    command = (await node.read()).command
    assert command.unload_model.model == "m"
    await node.write(model_progress(command, "done", done=True))
    assert (await unload.read()).progress.done


async def test_a_benchmark_ends_with_its_result(registry: Registry) -> None:
    node = await ready_node(registry)
    request = pb.BenchmarkNodeRequest(node_id="a", model="m", requests=2)
    benchmark = registry.nodes.BenchmarkNode(request)
    command = (await node.read()).command
    assert command.benchmark == request
    result = pb.BenchmarkResult(duration=1.5, requests_per_second=2)
    for said in (
        pb.BenchmarkNodeResponse(completed=1),
        pb.BenchmarkNodeResponse(completed=2, result=result),
    ):
        progress = pb.CommandProgress(command_id=command.command_id, benchmark=said)
        await node.write(pb.AttachNodeRequest(progress=progress))
        assert await benchmark.read() == said
    assert await benchmark.read() is grpc.aio.EOF


async def test_what_the_node_failed_with_is_what_the_operator_reads(registry: Registry) -> None:
    node = await ready_node(registry)
    load = registry.nodes.LoadModel(pb.LoadModelRequest(node_id="a", model="x"))
    command = (await node.read()).command
    failure = pb.CommandFailure(
        reason=errors_pb2.ERROR_REASON_UNSUPPORTED, message="no", param="model"
    )
    progress = pb.CommandProgress(command_id=command.command_id, failure=failure)
    await node.write(pb.AttachNodeRequest(progress=progress))
    assert await refused(load) == (code_pb2.INVALID_ARGUMENT, "UNSUPPORTED", "model")
    assert await commands_of(registry) == []


async def test_an_operator_who_hangs_up_stops_the_command(registry: Registry) -> None:
    node = await ready_node(registry)
    load = registry.nodes.LoadModel(pb.LoadModelRequest(node_id="a", model="x"))
    command = (await node.read()).command
    load.cancel()
    assert (await node.read()).cancel_command.command_id == command.command_id
    assert await commands_of(registry) == []
    # What the node still says of it is passed over.
    await node.write(model_progress(command, "late", done=True))
    await node.write(report(running=7))
    async with asyncio.timeout(20):
        while (await registry.nodes.GetNode(pb.GetNodeRequest(node_id="a"))).load.running != 7:
            await asyncio.sleep(0.01)


async def test_a_node_that_goes_ends_its_commands(registry: Registry) -> None:
    node = await ready_node(registry)
    load = registry.nodes.LoadModel(pb.LoadModelRequest(node_id="a", model="x"))
    await node.read()
    node.cancel()
    assert await refused(load) == (code_pb2.UNAVAILABLE, "SERVICE_UNAVAILABLE", None)


async def test_progress_of_another_kind_is_a_lie(registry: Registry) -> None:
    node = await ready_node(registry)
    load = registry.nodes.LoadModel(pb.LoadModelRequest(node_id="a", model="x"))
    command = (await node.read()).command
    progress = pb.CommandProgress(
        command_id=command.command_id, benchmark=pb.BenchmarkNodeResponse()
    )
    await node.write(pb.AttachNodeRequest(progress=progress))
    invalid = (code_pb2.INVALID_ARGUMENT, "INVALID_ARGUMENT", "progress.benchmark")
    assert await refused(node) == invalid
    assert (await refused(load))[1] == "SERVICE_UNAVAILABLE"


async def test_commands_that_nobody_can_carry_out(registry: Registry) -> None:
    request = pb.LoadModelRequest(node_id="nobody", model="x")
    missing = (code_pb2.NOT_FOUND, "NOT_FOUND", "node_id")
    assert await refused(registry.nodes.LoadModel(request)) == missing
    node = await ready_node(registry)
    calls = []
    request = pb.LoadModelRequest(node_id="a", model="x")
    for _ in range(8):
        calls.append(registry.nodes.LoadModel(request))
        assert (await node.read()).HasField("command")
    precondition = (code_pb2.FAILED_PRECONDITION, "FAILED_PRECONDITION", None)
    assert await refused(registry.nodes.LoadModel(request)) == precondition
    for call in calls:
        call.cancel()
    await node.done_writing()
    await registry.wait_for("a", resources_pb2.NODE_STATE_OFFLINE)
    assert await refused(registry.nodes.LoadModel(request)) == precondition


@pytest.mark.parametrize("source", ["--flag", "a\nb", "x" * 1001])
async def test_a_source_that_could_be_an_option_is_refused(registry: Registry, source: str) -> None:
    request = pb.LoadModelRequest(node_id="a", model="x", source=source)
    refusal = await refused(registry.nodes.LoadModel(request))
    assert refusal == (code_pb2.INVALID_ARGUMENT, "INVALID_ARGUMENT", "source")


async def test_labels_tier_and_prices_outlive_the_registry(
    registry: Registry, postgres_url: str
) -> None:
    message = join("a", 1, labels={"zone": "rack-1"}, tier=2)
    served = message.join.models[0]
    served.base_model, served.input_price, served.output_price = "base", 0.5, 0
    await attach(registry, message, report())
    await registry.wait_for("a", resources_pb2.NODE_STATE_READY)
    await asyncio.sleep(0.4)
    async with running(postgres_url) as restarted:
        node = await restarted.nodes.GetNode(pb.GetNodeRequest(node_id="a"))
        assert (dict(node.labels), node.tier) == ({"zone": "rack-1"}, 2)
        assert node.models[0] == served
