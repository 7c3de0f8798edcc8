"""OpenAI's list of models over RPC: what a key may use, and what is not there."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from contract.routing_service import Mesh, node, running
from infermesh.routing.v1 import openai_model_service_pb2 as pb
from infermesh.routing.v1 import openai_model_service_pb2_grpc, split_service_pb2
from services.kit import headers
from services.kit.errors import from_rpc_error

Stub = openai_model_service_pb2_grpc.OpenAIModelServiceStub


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    async with running() as mesh:
        mesh.sync(node("a", 1, model="org/m:v1"), models=("org/m:v1", "idle"))
        async with asyncio.timeout(20):
            while not await names(mesh):
                await asyncio.sleep(0.02)
        yield mesh


async def names(mesh: Mesh, globs: str = "") -> list[str]:
    said = ((headers.ALLOWED_MODELS, globs),) if globs else ()
    listed = await Stub(mesh.channel).ListOpenAIModels(pb.ListOpenAIModelsRequest(), metadata=said)
    assert listed.object == "list"
    return [model.id for model in listed.data]


async def test_models_and_aliases(mesh: Mesh) -> None:
    assert await names(mesh) == ["org/m:v1"]
    target = split_service_pb2.SplitTarget(model="org/m:v1", weight=1)
    split = split_service_pb2.Split(alias="prod", targets=[target])
    await mesh.splits.CreateSplit(split_service_pb2.CreateSplitRequest(split=split))
    assert await names(mesh) == ["org/m:v1", "prod"]
    assert await names(mesh, "org/*") == ["org/m:v1"]
    assert await names(mesh, "other") == []
    got = await Stub(mesh.channel).GetOpenAIModel(pb.GetOpenAIModelRequest(model="prod"))
    assert list(got.alias_for) == ["org/m:v1"]
    assert got.available


async def test_retrieve(mesh: Mesh) -> None:
    stub = Stub(mesh.channel)
    assert (await stub.GetOpenAIModel(pb.GetOpenAIModelRequest(model="org/m:v1"))).available
    assert not (await stub.GetOpenAIModel(pb.GetOpenAIModelRequest(model="idle"))).available
    for model, said in (("gpt-9", ()), ("idle", ((headers.ALLOWED_MODELS, "org/*"),))):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.GetOpenAIModel(pb.GetOpenAIModelRequest(model=model), metadata=said)
        refusal = from_rpc_error(error.value)
        assert refusal is not None
        assert (refusal.reason_name, refusal.http_status) == ("MODEL_NOT_FOUND", 404)
