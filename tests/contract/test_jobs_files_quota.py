"""A tenant's files have a bound, and uploads that are under way count."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import orjson
import pytest
from google.api import httpbody_pb2

from inference_node import Node, refusal
from infermesh.errors.v1 import errors_pb2
from infermesh.jobs.v1 import file_service_pb2 as pb
from jobs_world import FakeAuth, Jobs, jobs, multipart, of
from services.jobs.files.multipart import PIECE_BYTES
from services.kit.errors import from_rpc_error

MAX_BYTES = 4 * PIECE_BYTES
UPLOADS = 4


@pytest.fixture
async def service(postgres_url: str, node: Node) -> AsyncIterator[Jobs]:
    auth = FakeAuth()
    async with (
        auth.serving(),
        jobs(
            postgres_url,
            node.address,
            auth_address=auth.address,
            file_max_bytes=MAX_BYTES,
            file_tenant_max_bytes=MAX_BYTES,
        ) as made,
    ):
        yield made


async def kept(service: Jobs, tenant: str) -> int:
    page = await service.files.ListFiles(pb.ListFilesRequest(), metadata=of(tenant))
    return sum(file["bytes"] for file in orjson.loads(page.data)["data"])


async def test_many_uploads_at_a_time_stay_below_the_bound(service: Jobs) -> None:
    text = b"x" * (MAX_BYTES - 1)
    form = multipart(text)
    half = len(form.data) // 2
    have_begun = asyncio.Barrier(UPLOADS)

    async def parts() -> AsyncIterator[httpbody_pb2.HttpBody]:
        # All are let in before any has brought much.
        yield httpbody_pb2.HttpBody(content_type=form.content_type, data=form.data[:100])
        await have_begun.wait()
        yield httpbody_pb2.HttpBody(data=form.data[100:half])
        yield httpbody_pb2.HttpBody(data=form.data[half:])

    async def upload() -> int | None:
        try:
            await service.files.CreateFile(parts(), metadata=of("quota"))
        except grpc.aio.AioRpcError as error:
            said = from_rpc_error(error)
            return None if said is None else said.reason
        return 0

    found = await asyncio.gather(*(upload() for _ in range(UPLOADS)))
    refused = errors_pb2.ERROR_REASON_INSUFFICIENT_QUOTA
    assert set(found) <= {0, refused}
    assert found.count(refused) >= UPLOADS - 1
    assert await kept(service, "quota") <= MAX_BYTES


async def test_a_file_that_does_not_fit_leaves_nothing(service: Jobs) -> None:
    await service.uploaded(b"x" * (MAX_BYTES - 10), metadata=of("full"))
    call = service.files.CreateFile(iter([multipart(b"y" * 11)]), metadata=of("full"))
    assert (await refusal(call))[0] == "INSUFFICIENT_QUOTA"
    # What was refused does not count.
    await service.uploaded(b"y" * 10, metadata=of("full"))
    assert await kept(service, "full") == MAX_BYTES
