"""What the audit log tells of calls that services make for keys."""

from typing import Any

import pytest

from infermesh.auth.v1 import admission_service_pb2 as pb
from infermesh.auth.v1 import audit_service_pb2 as audit_pb
from services.auth.limiting.contract import Refusal, Verdict
from services.auth.servicer_admission import AdmissionServicer
from services.kit.errors import MeshError
from unit.auth.auth_samples import REST_CHAT
from unit.auth.test_limits_gate import KEY, MINUTE, World


async def admit(world: World, **fields: Any) -> list[str]:
    """Returns how it ended: the headers' names, or the refusal's."""
    decider = world.decider
    servicer = AdmissionServicer(
        decider._ring, decider._table, decider, decider._recorder, world.gate
    )
    said = {"key_id": "key_user", "rpc": REST_CHAT, "request_id": "r", "model": "m"} | fields
    context: Any = None
    try:
        reply = await servicer.AdmitCall(pb.AdmitCallRequest(**said), context)
    except MeshError as error:
        return [error.reason_name]
    return sorted(reply.headers)


async def test_a_call_is_written_down_where_callers_calls_are() -> None:
    for inference in (False, True):
        world = World(KEY, inference=inference)
        assert "x-mesh-reserved" in await admit(world)
        assert len(world.events) == inference
    [event] = world.events
    assert event.kind == audit_pb.AUDIT_KIND_INFERENCE
    assert (event.key_id, event.tenant, event.role) == ("key_user", "acme", "user")
    assert (event.rpc, event.resource, event.request_id) == (REST_CHAT, "m", "r")
    assert (event.outcome, event.source) == ("OK", "")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"key_id": "key_none"}, "INVALID_API_KEY"),
        ({"key_id": "key_node"}, "PERMISSION_DENIED"),
        ({"model": "a b"}, "MODEL_NOT_FOUND"),
    ],
)
async def test_a_refusal_is_a_denial(fields: dict[str, str], reason: str) -> None:
    world = World(KEY)
    assert await admit(world, **fields) == [reason]
    [event] = world.events
    assert (event.kind, event.outcome) == (audit_pb.AUDIT_KIND_DENIAL, reason)
    assert event.key_id == fields.get("key_id", "key_user")
    assert world.limiter.asked == []


@pytest.mark.parametrize(("wait_s", "told"), [(3.0, 0), (None, 1)])
async def test_what_waits_is_no_denial_yet(wait_s: float | None, told: int) -> None:
    world = World(KEY)
    refusal = Refusal("k:key_user", "tokens_per_minute", wait_s, 1000, 990)
    world.limiter.verdict = Verdict(False, refusal, **MINUTE)
    assert await admit(world) == ["RATE_LIMIT_EXCEEDED"]
    assert len(world.events) == told


async def test_what_it_may_take_is_reserved() -> None:
    world = World(KEY)
    await admit(world, prompt_bytes=401, max_tokens=50, answer_count=3)
    [(request_id, scopes, tokens, usd_nano)] = world.limiter.asked
    assert (request_id, scopes, tokens, usd_nano) == ("r", (KEY,), 101 + 150, 0)
    # Nobody says how long it is: as much as for any call at most.
    await admit(world)
    assert world.limiter.asked[1][2] == 32768
