"""Pulls over a running registry, with a node that answers by hand."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import orjson
import pytest

from inference_node import refusal
from infermesh.errors.v1 import errors_pb2
from infermesh.registry.v1 import node_service_pb2 as pb
from infermesh.registry.v1 import ollama_pull_service_pb2 as pull_pb
from infermesh.registry.v1 import ollama_pull_service_pb2_grpc, resources_pb2
from registry_world import Registry, attach, join, no_fake_nodes_left, registry, report

__all__ = ["no_fake_nodes_left", "registry"]


@pytest.fixture
async def pulls(registry: Registry) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(registry.address) as channel:
        yield ollama_pull_service_pb2_grpc.OllamaPullServiceStub(channel)


async def ready_node(registry: Registry, engine: str = "ollama") -> Any:
    joining = join("a", 1)
    joining.join.engine = engine
    call = await attach(registry, joining, report())
    await registry.wait_for("a", resources_pb2.NODE_STATE_READY)
    return call


def progress(command: pb.NodeCommand, **fields: Any) -> pb.AttachNodeRequest:
    made = pb.CommandProgress(command_id=command.command_id, **fields)
    return pb.AttachNodeRequest(progress=made)


async def lines(call: Any) -> list[dict[str, Any]]:
    messages = [message async for message in call]
    return [orjson.loads(line) for m in messages for line in m.data.splitlines()]


async def test_a_pull_streams_how_far_it_is(registry: Registry, pulls: Any) -> None:
    node = await ready_node(registry)
    reading = asyncio.ensure_future(lines(pulls.PullModel(pull_pb.PullModelRequest(model="q:8b"))))
    command = (await node.read()).command
    assert (command.load_model.model, command.load_model.node_id) == ("q:8b", "a")
    for status, done in (("pulling manifest", False), ("loading", False), ("done", True)):
        await node.write(progress(command, model=pb.ModelProgress(status=status, done=done)))
    assert await reading == [
        {"status": "pulling manifest"},
        {"status": "loading"},
        {"status": "success"},
    ]


async def test_without_a_stream_there_is_one_answer(registry: Registry, pulls: Any) -> None:
    node = await ready_node(registry)
    request = pull_pb.PullModelRequest(name="q", stream=False)
    reading = asyncio.ensure_future(lines(pulls.PullModel(request)))
    command = (await node.read()).command
    await node.write(progress(command, model=pb.ModelProgress(status="loading")))
    await node.write(progress(command, model=pb.ModelProgress(status="done", done=True)))
    assert await reading == [{"status": "success"}]


async def test_a_failure_in_the_middle_is_the_last_line(registry: Registry, pulls: Any) -> None:
    node = await ready_node(registry)
    call = pulls.PullModel(pull_pb.PullModelRequest(model="q"))
    command = (await node.read()).command
    await node.write(progress(command, model=pb.ModelProgress(status="loading")))
    assert orjson.loads((await call.read()).data) == {"status": "loading"}
    failure = pb.CommandFailure(reason=errors_pb2.ERROR_REASON_ENGINE_FAILED, message="no disk")
    await node.write(progress(command, failure=failure))
    assert orjson.loads((await call.read()).data) == {"error": "no disk"}
    assert (await refusal(call.read()))[0] == "ENGINE_FAILED"


async def test_a_failure_at_once_is_a_refusal(registry: Registry, pulls: Any) -> None:
    node = await ready_node(registry)
    call = pulls.PullModel(pull_pb.PullModelRequest(model="q"))
    command = (await node.read()).command
    failure = pb.CommandFailure(reason=errors_pb2.ERROR_REASON_ENGINE_REJECTED, message="unknown")
    await node.write(progress(command, failure=failure))
    assert (await refusal(call.read()))[0] == "ENGINE_REJECTED"


async def test_a_caller_that_hangs_up_stops_it(registry: Registry, pulls: Any) -> None:
    node = await ready_node(registry)
    call = pulls.PullModel(pull_pb.PullModelRequest(model="q"))
    command = (await node.read()).command
    call.cancel()
    assert (await node.read()).cancel_command.command_id == command.command_id


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "INVALID_ARGUMENT"),
        ({"model": "a b"}, "INVALID_ARGUMENT"),
        ({"model": "q", "insecure": True}, "INVALID_ARGUMENT"),
        ({"model": "q", "node_id": "nobody"}, "NOT_FOUND"),
        ({"model": "q"}, "FAILED_PRECONDITION"),
    ],
)
async def test_refusals(
    registry: Registry, pulls: Any, fields: dict[str, Any], reason: str
) -> None:
    await ready_node(registry, engine="vllm")
    call = pulls.PullModel(pull_pb.PullModelRequest(**fields))
    assert (await refusal(call.read()))[0] == reason
