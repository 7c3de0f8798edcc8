"""Which calls have an outcome in the audit log, and what it holds."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import orjson
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor

from infermesh.access.v1 import access_pb2
from infermesh.auth.v1 import audit_service_pb2 as pb
from infermesh.errors.v1 import errors_pb2
from infermesh.metrics.v1 import usage_service_pb2
from infermesh.registry.v1 import node_service_pb2 as nodes
from infermesh.registry.v1 import resources_pb2
from services.auth import contracts
from services.kit.audit_events import OutcomeRecorder
from services.kit.audit_outcomes import audited
from services.kit.audit_resources import Resource
from services.kit.errors import MeshError

ADMIN = (("x-mesh-key-id", "key_a"), ("x-mesh-role", "admin"))
NODE = (("x-mesh-key-id", "key_n"), ("x-mesh-role", "node"))
RPCS = {f"/{s.full_name}/{m.name}": m for s in contracts.services() for m in s.methods}


class Context:
    """What handlers see of a call."""

    def __init__(self, *metadata: tuple[str, str]) -> None:
        self._metadata = metadata
        self._code: grpc.StatusCode | None = None
        self._callbacks: list[Callable[[Any], None]] = []

    def invocation_metadata(self) -> Any:
        return self._metadata

    def code(self) -> Any:
        return self._code

    async def abort(self, code: grpc.StatusCode, *_: Any) -> None:
        self._code = code
        raise grpc.aio.AbortError

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._callbacks.append(callback)

    def end(self) -> None:
        for callback in self._callbacks:
            callback(self)


class World:
    """One RPC of a service, audited."""

    def __init__(self, path: str, handle: Any, **more: Any) -> None:
        self.events: list[pb.AuditEvent] = []
        self.is_full = False
        self._handlers: Any = None
        method = RPCS[path]
        recorder = OutcomeRecorder(
            lambda payload, _: self.events.append(pb.AuditEvent.FromString(payload)),
            has_room=lambda: not self.is_full,
        )
        kind = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[(_streams(method)[0], _streams(method)[1])]
        handlers = {method.name: kind(handle)}
        service = method.containing_service.full_name

        class Servicer:
            def __getattr__(self, name: str) -> Any:
                return more.get(name)

        server: Any = audited(self, recorder, Servicer(), reads=more.get("reads", False))  # type: ignore[arg-type]
        server.add_registered_method_handlers(service, handlers)
        found = self._handlers.service(_Details(path))
        self.handler = (
            found.unary_unary or found.unary_stream or found.stream_stream or found.stream_unary
        )
        self.is_wrapped = self.handler.__qualname__.startswith("_Rpc.")

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        [self._handlers] = handlers

    def told(self) -> list[tuple[str, str, str]]:
        return [(event.resource, event.outcome, event.after) for event in self.events]


class _Details(grpc.HandlerCallDetails):
    def __init__(self, method: str) -> None:
        self.method = method
        self.invocation_metadata = ()


def _streams(method: MethodDescriptor) -> tuple[bool, bool]:
    return method.client_streaming, method.server_streaming


async def _unary(request: Any, context: Any) -> Any:
    return None


async def _stream(request: Any, context: Any) -> AsyncIterator[Any]:
    yield None


@pytest.mark.parametrize("path", RPCS)
def test_every_change_that_no_user_may_make_has_an_outcome(path: str) -> None:
    world = World(path, _stream if RPCS[path].server_streaming else _unary)
    roles = set(RPCS[path].GetOptions().Extensions[access_pb2.allowed_roles])
    is_change = access_pb2.ROLE_ADMIN in roles and not (
        roles & {access_pb2.ROLE_USER, access_pb2.ROLE_AUDITOR}
    )
    is_nodes_own = roles in ({access_pb2.ROLE_JOIN}, {access_pb2.ROLE_NODE})
    assert world.is_wrapped == (is_change or is_nodes_own)


def test_reads_are_known_by_their_names_too() -> None:
    # The roles say what reads; that they say it well shows here.
    for path, method in RPCS.items():
        world = World(path, _stream if method.server_streaming else _unary)
        if world.is_wrapped:
            reads = ("Get", "List", "Watch", "Verify", "Export", "Explain")
            assert not method.name.startswith(reads), path


USAGE = "/infermesh.metrics.v1.UsageService/RecordUsage"


@pytest.mark.parametrize(("metadata", "is_told"), [(ADMIN, True), (NODE, False), ((), False)])
async def test_of_what_nodes_do_only_other_callers_are_told(
    metadata: tuple[tuple[str, str], ...], is_told: bool
) -> None:
    async def handle(request: Any, context: Any) -> Any:
        return usage_service_pb2.RecordUsageResponse(recorded_count=1)

    world = World(USAGE, handle)
    assert await world.handler(nodes.ListNodesRequest(), Context(*metadata)) is not None
    assert [event.outcome for event in world.events] == ["OK"] * is_told


ATTACH = "/infermesh.registry.v1.NodeService/AttachNode"


async def test_an_admin_who_attaches_is_told_of_at_the_end() -> None:
    world = World(ATTACH, _stream)
    assert [each async for each in world.handler(_nothing(), Context(*NODE))] == [None]
    assert world.events == []
    assert [each async for each in world.handler(_nothing(), Context(*ADMIN))] == [None]
    assert [event.outcome for event in world.events] == ["OK"]


async def _nothing() -> AsyncIterator[Any]:
    return
    yield


LOAD = "/infermesh.registry.v1.NodeService/LoadModel"
ASKED = nodes.LoadModelRequest(node_id="n", model="m")


async def test_a_stream_is_told_of_once_with_its_last_answer() -> None:
    async def handle(request: Any, context: Any) -> AsyncIterator[Any]:
        for done in (False, True):
            answer = nodes.LoadModelResponse()
            answer.progress.status = "later" if done else "first"
            answer.progress.done = done
            yield answer

    world, context = World(LOAD, handle), Context(*ADMIN)
    async for _ in world.handler(ASKED, context):
        assert world.events == []
    context.end()
    [(resource, outcome, after)] = world.told()
    assert (resource, outcome) == ("n", "OK")
    assert orjson.loads(after)["asked"] == {"node_id": "n", "model": "m"}
    assert orjson.loads(after)["last"]["progress"]["status"] == "later"


async def test_a_stream_that_fails_or_is_left_says_so() -> None:
    async def handle(request: Any, context: Any) -> AsyncIterator[Any]:
        yield nodes.LoadModelResponse()
        raise MeshError(errors_pb2.ERROR_REASON_NOT_FOUND, "no")

    world, context = World(LOAD, handle), Context(*ADMIN)
    with pytest.raises(grpc.aio.AbortError):
        async for _ in world.handler(ASKED, context):
            pass
    context.end()
    left = Context(*ADMIN)
    stream = world.handler(ASKED, left)
    await anext(stream)
    left.end()
    await stream.aclose()
    assert [event.outcome for event in world.events] == ["NOT_FOUND", "CANCELLED"]


DRAIN = "/infermesh.registry.v1.NodeService/DrainNode"


async def test_before_is_what_the_service_itself_reads() -> None:
    state = [resources_pb2.NODE_STATE_READY]

    async def get(request: nodes.GetNodeRequest, context: Any) -> resources_pb2.Node:
        return resources_pb2.Node(node_id=request.node_id, state=state[0])

    async def drain(request: nodes.DrainNodeRequest, context: Any) -> resources_pb2.Node:
        state[0] = resources_pb2.NODE_STATE_DRAINING
        return resources_pb2.Node(node_id=request.node_id, state=state[0])

    world = World(DRAIN, drain, GetNode=get)
    await world.handler(nodes.DrainNodeRequest(node_id="n"), Context(*ADMIN))
    [event] = world.events
    assert (event.rpc, event.resource, event.key_id) == (DRAIN, "n", "key_a")
    assert orjson.loads(event.before)["state"] == "NODE_STATE_READY"
    assert orjson.loads(event.after)["state"] == "NODE_STATE_DRAINING"


async def test_without_room_nothing_is_changed() -> None:
    called = []

    async def drain(request: Any, context: Any) -> Any:
        called.append(request)

    async def load(request: Any, context: Any) -> AsyncIterator[Any]:
        called.append(request)
        yield None

    for path, handle in ((DRAIN, drain), (LOAD, load)):
        world, context = World(path, handle), Context(*ADMIN)
        world.is_full = True
        with pytest.raises(grpc.aio.AbortError):
            if path == DRAIN:
                await world.handler(nodes.DrainNodeRequest(node_id="n"), context)
            else:
                await anext(world.handler(ASKED, context))
        assert context.code() is grpc.StatusCode.UNAVAILABLE
    assert called == []


@pytest.mark.parametrize(
    ("path", "fields", "expected"),
    [
        (DRAIN, {"node_id": "n"}, "n"),
        ("/infermesh.routing.v1.PolicyService/SetModelRoute", {"route": {"model": "a/b"}}, "a/b"),
        ("/infermesh.routing.v1.PolicyService/DeleteModelRoute", {"model": "a/b"}, "a/b"),
        ("/infermesh.routing.v1.PolicyService/CreatePolicy", {"policy": {"name": "p"}}, "p"),
        ("/infermesh.metrics.v1.PriceService/SetPrice", {"price": {"model": "m"}}, "m"),
        ("/infermesh.auth.v1.KeyService/RotateKey", {"key_id": "key_a"}, "key_a"),
        (LOAD, {"node_id": "n", "model": "m"}, "n"),
    ],
)
def test_what_a_call_is_about(path: str, fields: dict[str, Any], expected: str) -> None:
    method = RPCS[path]

    class Servicer:
        def __getattr__(self, name: str) -> Any:
            return None

    request = message_factory.GetMessageClass(method.input_type)(**fields)
    assert Resource(method, Servicer()).name(request) == expected
