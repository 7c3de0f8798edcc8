"""With `bodies`, the audit log tells the form of what nodes were asked, and none of its words."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import orjson
import pytest
from google.api import httpbody_pb2

from contract.test_audit_service import World, wipe
from contract.test_auth import ADMIN_KEY, running, settings
from inference_node import FakeEngine, FakeMesh, caller, typed_chat, until
from inference_node import running as node_running
from infermesh.auth.v1 import audit_service_pb2 as pb
from infermesh.auth.v1 import audit_service_pb2_grpc
from infermesh.metrics.v1 import usage_service_pb2_grpc
from infermesh.registry.v1 import node_service_pb2_grpc
from services.kit import headers
from unit.auth.auth_samples import REST_CHAT, check_request, rest_headers

AUDITED = (headers.AUDIT_BODY, "1")
WORDS = "the launch code is 0000"


class Door(audit_service_pb2_grpc.AuditServiceServicer):
    """Takes what nodes tell, as the front door does."""

    def __init__(self) -> None:
        self.events: list[pb.AuditEvent] = []
        self.keys: set[str] = set()
        self.failures = 0

    async def RecordInference(self, request, context):  # noqa: N802
        if self.failures:
            self.failures -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        self.keys.add(dict(context.invocation_metadata())["authorization"])
        self.events += request.events
        return pb.RecordInferenceResponse(added_count=len(request.events))


async def test_a_node_tells_of_what_it_is_asked_once_where_auth_wants_it(
    engine: FakeEngine, tmp_path: Path
) -> None:
    mesh, door = FakeMesh(), Door()
    door.failures = 2
    server = grpc.aio.server()
    node_service_pb2_grpc.add_NodeServiceServicer_to_server(mesh, server)
    usage_service_pb2_grpc.add_UsageServiceServicer_to_server(mesh, server)
    audit_service_pb2_grpc.add_AuditServiceServicer_to_server(door, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    body = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": WORDS}]})
    async with _stopping(server), node_running(engine.port, address, tmp_path) as node:
        await until(node.is_serving)
        request = httpbody_pb2.HttpBody(data=body)
        for name, more in (("plain", ()), ("rest", (AUDITED,))):
            metadata = (*caller(name), (headers.STREAM, "false"), *more)
            await node.openai.CreateChatCompletion(request, metadata=metadata).read()
        await node.typed.Chat(typed_chat(WORDS), metadata=(*caller("typed"), AUDITED))
        await until(lambda: len(door.events) >= 2)
    assert [event.request_id for event in door.events] == ["rest", "typed"]
    assert door.keys == {"Bearer im-node"}
    for event in door.events:
        assert (event.kind, event.key_id, event.tenant) == (pb.AUDIT_KIND_INFERENCE, "k", "t")
        told = orjson.loads(event.after)
        assert (told["node"], told["operation"], told["request"]["model"]) == (
            "node-1",
            "chat",
            "m",
        )
        assert told["request"]["messages"][0]["role"] == "user"
        assert "launch" not in event.after


@asynccontextmanager
async def _stopping(server: grpc.aio.Server) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await server.stop(0)


def inference(number: int, **fields: object) -> pb.AuditEvent:
    event = pb.AuditEvent(event_id=f"{number:032x}", kind=pb.AUDIT_KIND_INFERENCE, **fields)
    event.time.GetCurrentTime()
    return event


NODE = (("x-mesh-key-id", "key_node"), ("x-mesh-role", "node"))


@pytest.mark.parametrize(
    ("setting", "header", "kept"),
    [("off", False, 0), ("metadata", False, 0), ("bodies", True, 1)],
)
async def test_auth_asks_for_bodies_and_keeps_them_by_setting(
    postgres_url: str, setting: str, header: bool, kept: int
) -> None:
    async with running(settings(postgres_url, audit_inference=setting)) as replica:
        await wipe(postgres_url)
        request = check_request(REST_CHAT, rest_headers(ADMIN_KEY), rest={"model": "m"})
        reply = await replica.authorization.Check(request)
        names = {each.header.key for each in reply.ok_response.headers}
        assert (headers.AUDIT_BODY in names) == header
        world = World(replica, postgres_url)
        batch = pb.RecordInferenceRequest(events=[inference(1, source="made up", key_id="key_x")])
        for _ in range(2):  # the answer may be lost
            answer = await world.audit.RecordInference(batch, metadata=NODE)
        assert answer.added_count == 0
        found = await world.events(kept, request_id="", key_id="key_x")
        # Whoever has a node's key can tell of any caller: the log tells which node it was.
        assert [event.source for event in found] == ["key_node"] * kept
        total = await world.events(kept + (setting != "off"), kind=pb.AUDIT_KIND_INFERENCE)
        assert len(total) == kept + (setting != "off")
        batch.events[0].kind = pb.AUDIT_KIND_OUTCOME
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await world.audit.RecordInference(batch, metadata=NODE)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    await wipe(postgres_url)
