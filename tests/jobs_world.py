"""The jobs service over real PostgreSQL, before a real inference proxy with a scripted engine."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import orjson
from google.api import httpbody_pb2

from inference_node import MODEL, refusal, rest
from infermesh.auth.v1 import (
    admission_service_pb2,
    admission_service_pb2_grpc,
    key_service_pb2,
    key_service_pb2_grpc,
)
from infermesh.errors.v1 import errors_pb2
from infermesh.jobs.v1 import (
    batch_service_pb2,
    batch_service_pb2_grpc,
    file_service_pb2,
    file_service_pb2_grpc,
    response_service_pb2_grpc,
)
from services.jobs.app import make_app
from services.jobs.settings import JobsSettings
from services.kit.errors import MeshError
from services.kit.guard import guarded
from services.kit.server import serving
from support import free_port


class FakeAuth(
    key_service_pb2_grpc.KeyServiceServicer,
    admission_service_pb2_grpc.AdmissionServiceServicer,
):
    """Knows one key, and answers as it is told.

    Attributes:
        keys: The ids of the keys that there are.
        headers: What lines go to nodes with besides.
        refusals: What lines are refused with, by their model.
        asked: What was asked about lines.
    """

    def __init__(self) -> None:
        self.keys = {"k"}
        self.headers: dict[str, str] = {}
        self.refusals: dict[str, MeshError] = {}
        self.asked: list[admission_service_pb2.AdmitCallRequest] = []
        self.address = ""

    async def GetKey(  # noqa: N802 - as the proto names it
        self, request: Any, context: Any
    ) -> key_service_pb2.Key:
        if request.key_id not in self.keys:
            raise MeshError(errors_pb2.ERROR_REASON_NOT_FOUND, "It is not there.")
        return key_service_pb2.Key(key_id=request.key_id)

    async def AdmitCall(  # noqa: N802
        self, request: Any, context: Any
    ) -> admission_service_pb2.AdmitCallResponse:
        self.asked.append(request)
        if refusal := self.refusals.get(request.model):
            raise refusal
        said = {"x-mesh-key-id": request.key_id, "x-mesh-tenant": "t"}
        return admission_service_pb2.AdmitCallResponse(
            headers=said | {"x-mesh-model": request.model} | self.headers
        )

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        server = grpc.aio.server()
        key_service_pb2_grpc.add_KeyServiceServicer_to_server(self, guarded(server))
        admission_service_pb2_grpc.add_AdmissionServiceServicer_to_server(self, guarded(server))
        self.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        try:
            yield
        finally:
            await server.stop(0)


class Jobs:
    """A running jobs service.

    Args:
        channel: To it.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.responses = response_service_pb2_grpc.ResponseServiceStub(channel)
        self.files = file_service_pb2_grpc.FileServiceStub(channel)
        self.batches = batch_service_pb2_grpc.BatchServiceStub(channel)

    def create(self, metadata: Any = (), **fields: Any) -> Any:
        body = {"model": MODEL, "input": "hi", **fields}
        return self.responses.CreateResponse(
            httpbody_pb2.HttpBody(data=orjson.dumps(body)), metadata=metadata or of()
        )

    async def created(self, metadata: Any = (), **fields: Any) -> dict[str, Any]:
        messages = [message async for message in self.create(metadata, **fields)]
        return dict(orjson.loads(b"".join(message.data for message in messages)))

    async def uploaded(self, text: bytes, metadata: Any = ()) -> dict[str, Any]:
        form = multipart(text)
        answer = await self.files.CreateFile(iter([form]), metadata=metadata or of())
        return dict(orjson.loads(answer.data))

    async def content(self, file_id: str) -> list[dict[str, Any]]:
        request = file_service_pb2.GetFileContentRequest(file_id=file_id)
        text = await rest(self.files.GetFileContent(request, metadata=of()))
        return [orjson.loads(line) for line in text.splitlines()]

    async def batch(self, text: bytes, key_id: str = "k", **fields: Any) -> dict[str, Any]:
        """Makes a batch of lines for a key of the tenant `t`."""
        body = {
            "input_file_id": (await self.uploaded(text))["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            **fields,
        }
        request = httpbody_pb2.HttpBody(data=orjson.dumps(body))
        metadata = of(**{"key-id": key_id})
        answer = await self.batches.CreateBatch(request, metadata=metadata)
        return dict(orjson.loads(answer.data))

    async def batch_now(self, batch_id: str) -> dict[str, Any]:
        request = batch_service_pb2.GetBatchRequest(batch_id=batch_id)
        return dict(orjson.loads((await self.batches.GetBatch(request, metadata=of())).data))

    async def ended(self, batch_id: str) -> dict[str, Any]:
        """Waits until a batch is over."""
        async with asyncio.timeout(60):
            while True:
                batch = await self.batch_now(batch_id)
                if batch["status"] in ("completed", "failed", "cancelled", "expired"):
                    return batch
                await asyncio.sleep(0.05)


def multipart(text: bytes, purpose: str = "batch", **fields: str) -> httpbody_pb2.HttpBody:
    """A form with a file."""
    parts = [
        b'--x\r\ncontent-disposition: form-data; name="%b"\r\n\r\n%b\r\n'
        % (name.encode(), value.encode())
        for name, value in {"purpose": purpose, **fields}.items()
    ]
    parts.append(
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n" + text + b"\r\n--x--\r\n"
    )
    return httpbody_pb2.HttpBody(
        content_type="multipart/form-data; boundary=x", data=b"".join(parts)
    )


def line(custom_id: str, **body: Any) -> bytes:
    """A line of a batch's input."""
    messages = [{"role": "user", "content": custom_id}]
    return orjson.dumps(
        {
            "custom_id": custom_id,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": MODEL, "messages": messages, **body},
        }
    )


def of(tenant: str = "t", request_id: str = "r", **more: str) -> tuple[tuple[str, str], ...]:
    """The metadata of a call, as auth and Envoy leave it."""
    said = {"x-request-id": request_id, "x-mesh-key-id": "k", "x-mesh-tenant": tenant}
    return tuple({**said, **{f"x-mesh-{k}": v for k, v in more.items()}}.items())


async def events(call: Any) -> list[dict[str, Any]]:
    """The events of a stream."""
    text = b""
    while (message := await call.read()) is not grpc.aio.EOF:
        text += message.data
    return [orjson.loads(each.split(b"data: ", 1)[1]) for each in text.split(b"\n\n")[:-1]]


@asynccontextmanager
async def jobs(postgres_url: str, inference: str, **more: Any) -> AsyncIterator[Jobs]:
    settings = JobsSettings(
        listen=f"127.0.0.1:{free_port()}",
        database_url=postgres_url,
        inference_address=inference,
        **{"auth_address": "127.0.0.1:1", "drain_s": 1, **more},
    )
    async with (
        serving(settings, make_app(settings)) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield Jobs(channel)


__all__ = ["FakeAuth", "Jobs", "events", "jobs", "line", "multipart", "of", "refusal"]
