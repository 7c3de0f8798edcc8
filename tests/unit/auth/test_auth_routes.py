"""Auth asks routing where a call goes, and what of that becomes part of its own answer."""

import asyncio
from typing import Any

import pytest
from envoy.service.auth.v3 import external_auth_pb2

from infermesh.errors.v1 import errors_pb2
from services.auth import access, audit_policy, contracts
from services.auth.audit import Recorder
from services.auth.decision import Decider
from services.auth.limiting.contract import Refusal, Room, ScopeLimits, Verdict
from services.auth.limits import LimitBook
from services.auth.limits_gate import LimitGate
from services.auth.reservation import Estimator, Prices
from services.auth.routes import Routes
from services.kit import authorization
from services.kit.errors import MeshError
from unit.auth.auth_samples import (
    ADMIN,
    GRPC_CHAT,
    LIST_KEYS,
    REST_CHAT,
    USER,
    check_request,
    grpc_headers,
    make_ring,
    rest_headers,
)

KEY = ScopeLimits("k:key_user", 60)
DESTINATION = "x-gateway-destination-endpoint"
REST: dict[str, Any] = {"model": "m", "prompt_bytes": 400}
LET_IN = Verdict(True, requests=Room(60, 59, 1.0))
FULL = Verdict(False, refusal=Refusal("k:key_user", "requests_per_minute", 1.0, 60, 60))


def sent(**headers: str) -> bytes:
    """Returns routing's answer that a call goes on with headers."""
    response = external_auth_pb2.CheckResponse()
    for name, value in headers.items():
        response.ok_response.headers.append(authorization.header(name.replace("_", "-"), value))
    return response.SerializeToString()


TO_A_NODE = sent(x_gateway_destination_endpoint="10.0.0.1:1")
REFUSAL = authorization.deny(
    MeshError(errors_pb2.ERROR_REASON_OVERLOADED, "All queues are full.", retry_after_s=3),
    for_grpc=False,
)


class Routing:
    """Stands for the client: keeps questions until a test answers them."""

    def __init__(self) -> None:
        self.questions: list[external_auth_pb2.CheckRequest] = []
        self.waiting: list[Any] = []

    def ask(self, message: bytes, on_answer: Any) -> None:
        self.questions.append(external_auth_pb2.CheckRequest.FromString(message))
        self.waiting.append(on_answer)


class Limiter:
    def __init__(self) -> None:
        self.open: list[asyncio.Future[Verdict]] = []
        self.released: list[str] = []

    def admit(self, *_: Any) -> asyncio.Future[Verdict]:
        self.open.append(asyncio.get_running_loop().create_future())
        return self.open[-1]

    def release(self, request_id: str, *, reached_node: bool) -> None:
        assert not reached_node
        self.released.append(request_id)


class World:
    def __init__(self, *scopes: ScopeLimits) -> None:
        self.limiter, self.routing = Limiter(), Routing()
        recorder = Recorder(lambda *_: None)
        book = LimitBook()
        book._limits = {each.scope: each for each in scopes}
        gate = LimitGate(book, self.limiter, Estimator(4, 1024, 32768), Prices(), recorder)  # type: ignore[arg-type]
        table = audit_policy.mark(access.build_table(contracts.services()), inference=False)
        self.decider = Decider(
            make_ring(),
            table,
            access.ModelNames(),
            recorder,
            gate,
            where=Routes(self.routing),  # type: ignore[arg-type]
        )

    def decide(self, **more: str) -> Any:
        headers = rest_headers(USER) | {k.replace("_", "-"): v for k, v in more.items()}
        return self.decider.decide(check_request(REST_CHAT, headers, rest=REST))


def read(data: bytes) -> external_auth_pb2.CheckResponse:
    return external_auth_pb2.CheckResponse.FromString(data)


def goes_on_with(data: bytes) -> dict[str, str]:
    """Returns the headers that a call goes on with; of those said twice Envoy keeps the last."""
    reply = read(data)
    assert reply.status.code == 0
    assert reply.HasField("ok_response")
    return {each.header.key: each.header.value for each in reply.ok_response.headers}


async def until(later: Any) -> bytes:
    return await asyncio.wait_for(later, 10)


async def test_a_caller_without_limits_gets_the_destination() -> None:
    world = World()
    later = world.decide()
    world.routing.waiting[0](TO_A_NODE)
    assert goes_on_with(await until(later)) == {
        "x-mesh-key-id": "key_user",
        "x-mesh-tenant": "acme",
        "x-mesh-role": "user",
        "x-mesh-model": "m",
        DESTINATION: "10.0.0.1:1",
    }


async def test_routing_learns_who_asks_and_for_what_and_no_secret() -> None:
    world = World()
    later = world.decide(x_debug_mode="true")
    [question] = world.routing.questions
    http = question.attributes.request.http
    assert dict(http.headers) == {
        "x-mesh-key-id": "key_user",
        "x-mesh-role": "user",
        "x-mesh-model": "m",
        "x-envoy-original-path": "/v1/chat/completions",
        "x-debug-mode": "true",
    }
    assert USER not in str(question)
    assert not question.attributes.HasField("source")
    known = question.attributes.metadata_context.filter_metadata
    assert known["infermesh.request"]["model"] == "m"
    world.routing.waiting[0](TO_A_NODE)
    await until(later)


async def test_what_routing_renames_counts() -> None:
    world = World()
    later = world.decide()
    world.routing.waiting[0](TO_A_NODE + sent(x_mesh_model="other", x_mesh_requested_model="m"))
    found = goes_on_with(await until(later))
    assert (found["x-mesh-model"], found["x-mesh-requested-model"]) == ("other", "m")


async def test_without_an_answer_the_call_goes_on_without_a_destination() -> None:
    world = World()
    later = world.decide()
    world.routing.waiting[0](None)
    assert DESTINATION not in goes_on_with(await until(later))


async def test_a_refusal_of_routings_is_the_answer() -> None:
    world = World()
    later = world.decide()
    world.routing.waiting[0](REFUSAL)
    assert await until(later) == REFUSAL


async def test_routing_is_asked_while_the_limiter_works() -> None:
    world = World(KEY)
    later = world.decide()
    assert len(world.routing.questions) == len(world.limiter.open) == 1
    world.routing.waiting[0](TO_A_NODE)
    await asyncio.sleep(0)
    assert not later.done()
    world.limiter.open[0].set_result(LET_IN)
    found = goes_on_with(await until(later))
    assert (found[DESTINATION], found["x-mesh-reserved"]) == ("10.0.0.1:1", "place")
    assert world.limiter.released == []


async def test_the_limiter_may_answer_first() -> None:
    world = World(KEY)
    later = world.decide()
    world.limiter.open[0].set_result(LET_IN)
    await asyncio.sleep(0.01)
    assert not later.done()
    world.routing.waiting[0](TO_A_NODE)
    assert goes_on_with(await until(later))[DESTINATION] == "10.0.0.1:1"


@pytest.mark.parametrize("is_first", [True, False])
async def test_what_routing_refuses_gives_back_what_it_was_reserved(is_first: bool) -> None:
    world = World(KEY)
    later = world.decide()
    if is_first:
        world.routing.waiting[0](REFUSAL)
    world.limiter.open[0].set_result(LET_IN)
    await asyncio.sleep(0)
    if not is_first:
        world.routing.waiting[0](REFUSAL)
    assert read(await until(later)).denied_response.status.code == 429
    assert world.limiter.released == [rest_headers(USER)["x-request-id"]]


async def test_a_limit_that_refuses_waits_for_nobody() -> None:
    world = World(KEY)
    later = world.decide()
    world.limiter.open[0].set_result(FULL)
    reply = read(await until(later))
    assert reply.denied_response.status.code == 429
    assert world.limiter.released == []
    world.routing.waiting[0](REFUSAL)  # too late to matter
    assert world.limiter.released == []


async def test_who_is_at_a_limit_leaves_no_traces_in_routing() -> None:
    world = World(KEY)
    first = world.decide()
    world.limiter.open[0].set_result(FULL)
    await until(first)
    for number in (1, 2):
        later = world.decide()
        world.limiter.open[number].set_result(FULL)
        await until(later)
    assert len(world.routing.questions) == 1
    # With room again, routing is asked once it is known.
    later = world.decide()
    world.limiter.open[3].set_result(LET_IN)
    await asyncio.sleep(0)
    assert len(world.routing.questions) == 2
    world.routing.waiting[1](TO_A_NODE)
    assert goes_on_with(await until(later))[DESTINATION] == "10.0.0.1:1"


async def test_calls_that_go_to_no_node_are_not_asked_about() -> None:
    world = World()
    reply = world.decider.decide(check_request(LIST_KEYS, grpc_headers(ADMIN)))
    assert goes_on_with(reply)["x-mesh-key-id"] == "key_admin"
    assert world.routing.questions == []


async def test_native_grpc_is_told_as_such() -> None:
    world = World()
    request = check_request(GRPC_CHAT, grpc_headers(USER), rest=REST, typed={"model": "m"})
    later = world.decider.decide(request)
    [question] = world.routing.questions
    assert "x-envoy-original-path" not in question.attributes.request.http.headers
    world.routing.waiting[0](TO_A_NODE)
    await until(later)
