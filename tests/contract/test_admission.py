"""Calls that services make for keys, over a real PostgreSQL and Redis, beside callers' own."""

import asyncio
import functools
import time
from typing import Any

import grpc
import pytest

from contract.test_auth import becomes, refusal
from contract.test_limits_service import MODEL, FakeMetrics, Limited, auth, limited, metrics
from inference_node import ANSWER, FakeEngine, FakeMesh, Node, until
from inference_node import MODEL as SERVED
from infermesh.access.v1 import access_pb2
from infermesh.auth.v1 import admission_service_pb2 as pb
from infermesh.auth.v1 import admission_service_pb2_grpc
from infermesh.auth.v1 import key_service_pb2 as key_pb
from jobs_world import jobs, line
from services.auth.limiting import engine as limiting
from services.jobs.batches import callers
from services.jobs.batches.work import Work
from services.kit.database import make_engine
from unit.auth.auth_samples import REST_CHAT, check_request, rest_headers

__all__ = ["auth", "metrics"]

LIST_KEYS = "/infermesh.auth.v1.KeyService/ListKeys"


async def admit(one: Limited, key_id: str, request_id: str, **fields: Any) -> pb.AdmitCallResponse:
    said = {"rpc": REST_CHAT, "model": MODEL, "prompt_bytes": 400, "max_tokens": 50} | fields
    stub = admission_service_pb2_grpc.AdmissionServiceStub(one.replica.channel)
    request = pb.AdmitCallRequest(key_id=key_id, request_id=request_id, **said)
    return await stub.AdmitCall(request, timeout=20)  # type: ignore[no-any-return]


async def refused(one: Limited, key_id: str, **fields: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await admit(one, key_id, f"no-{time.monotonic_ns()}", **fields)
    return refusal(caught)


async def test_a_line_goes_with_what_a_callers_call_goes_with(auth: Limited) -> None:
    guardrails = key_pb.Guardrails(blocked_patterns=["zebra"])
    rules = key_pb.KeyRules(
        allowed_models=[MODEL], guardrails=guardrails, caching=key_pb.CACHING_OFF
    )
    key_id, secret = await auth.key(tenant="admission", project="p", rules=rules)
    await auth.set(key_id=key_id, concurrent_requests=5)
    sent = rest_headers(secret) | {"x-request-id": "own-1"}
    request = check_request(REST_CHAT, sent, rest={"model": MODEL, "prompt_bytes": 400})
    reply = await auth.replica.authorization.Check(request, timeout=20)
    own = {each.header.key: each.header.value for each in reply.ok_response.headers}
    said = await admit(auth, key_id, "line-1")
    assert dict(said.headers) == own
    assert own["x-mesh-caching"] == "off" and own["x-mesh-reserved"] == "place"
    found = await auth.replica.keys.GetKey(key_pb.GetKeyRequest(key_id=key_id))
    assert found.rules == rules


async def test_what_a_key_may_not(auth: Limited) -> None:
    rules = key_pb.KeyRules(allowed_models=[MODEL], networks=["10.0.0.0/8"])
    key_id, _ = await auth.key(rules=rules)
    # Nobody connects, so that networks say nothing of a line.
    assert (await admit(auth, key_id, "may")).headers["x-mesh-key-id"] == key_id
    for fields, reason in (
        ({"model": "other"}, "MODEL_NOT_FOUND"),
        ({"fallback_models": ["other"]}, "MODEL_NOT_FOUND"),
        ({"model": "a b"}, "MODEL_NOT_FOUND"),
        ({"rpc": LIST_KEYS}, "UNKNOWN_URL"),
        ({"rpc": "/x/y"}, "UNKNOWN_URL"),
    ):
        assert (await refused(auth, key_id, **fields)).reason_name == reason
    assert (await refused(auth, "key_none")).reason_name == "INVALID_API_KEY"
    auditor, _ = await auth.key(role=access_pb2.ROLE_AUDITOR)
    assert (await refused(auth, auditor)).reason_name == "PERMISSION_DENIED"
    await auth.replica.keys.RevokeKey(key_pb.RevokeKeyRequest(key_id=key_id))
    assert (await refused(auth, key_id)).reason_name == "INVALID_API_KEY"


async def test_a_limit_is_exact_for_lines_and_callers_together(
    postgres_url: str, redis_url: str
) -> None:
    async with limited(postgres_url, redis_url) as one, limited(postgres_url, redis_url) as two:
        key_id, secret = await one.key()
        await one.set(key_id=key_id, requests_per_minute=30)
        await asyncio.sleep(1.1)  # the other replica decides by it
        waits = []

        async def ask(number: int) -> bool:
            replica = one if number % 3 else two
            if number % 2:
                return (await replica.check(secret, f"{key_id}-{number}")).is_admitted
            try:
                await admit(replica, key_id, f"{key_id}-{number}")
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                waits.append(error)
                return False
            return True

        # One of each kind first: the race decides about the rest.
        admitted = [await ask(0), await ask(1)]
        admitted += await asyncio.gather(*map(ask, range(2, 90)))
        assert sum(admitted) == 30
        assert 0 < sum(admitted[::2]) < 30
        error = await refused(one, key_id)
        assert error.reason_name == "RATE_LIMIT_EXCEEDED" and 1 <= error.retry_after_s <= 60
        assert error.metadata["allowed"] == "30"
        assert (await one.uses(key_id=key_id))["requests_per_minute"][0] == "30"


async def test_what_is_reserved_and_what_it_took(auth: Limited) -> None:
    key_id, secret = await auth.key()
    await auth.set(key_id=key_id, tokens_per_minute=1000, tokens_per_day=1000)
    own = await auth.check(secret, f"{key_id}-own")
    assert own.is_admitted
    assert (await auth.uses(key_id=key_id))["tokens_per_minute"][0] == "150"
    for _ in range(2):  # the same call is reserved once
        await admit(auth, key_id, f"{key_id}-line")
    assert (await auth.uses(key_id=key_id))["tokens_per_minute"][0] == "300"
    await admit(auth, key_id, f"{key_id}-more", answer_count=3)
    assert (await auth.uses(key_id=key_id))["tokens_per_day"] == ("550", "550")
    error = await refused(auth, key_id, max_tokens=2000)
    assert (error.reason_name, error.retry_after_s) == ("RATE_LIMIT_EXCEEDED", None)
    await auth.settle(f"{key_id}-line", 12)
    await auth.end(f"{key_id}-more", host=False)  # Envoy says that it came nowhere

    async def is_given_back() -> bool:
        return (await auth.uses(key_id=key_id))["tokens_per_minute"][0] == "162"

    await becomes(is_given_back)


async def test_who_leaves_before_the_answer_leaves_no_reservation(
    auth: Limited, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_id, _ = await auth.key()
    await auth.set(key_id=key_id, tokens_per_minute=1000, concurrent_requests=3)
    ask = limiting.RedisLimiter._ask

    def slow(self: Any, operation: Any) -> None:
        asyncio.get_running_loop().call_later(0.3, ask, self, operation)

    monkeypatch.setattr(limiting.RedisLimiter, "_ask", slow)
    task = asyncio.create_task(admit(auth, key_id, f"{key_id}-1"))
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.sleep(0.5)

    async def nothing_is_left() -> bool:
        uses = await auth.uses(key_id=key_id)
        return uses["tokens_per_minute"][0] == uses["concurrent_requests"][0] == "0"

    await becomes(nothing_is_left)


async def test_a_batch_takes_of_its_keys_limits_what_it_took(
    postgres_url: str,
    auth: Limited,
    node: Node,
    engine: FakeEngine,
    mesh: FakeMesh,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(callers, "_MOST_S", 1.0)
    key_id, secret = await auth.key(tenant="t")
    await auth.set(key_id=key_id, requests_per_minute=6, tokens_per_minute=10**6)
    for number in range(2):
        assert (await auth.check(secret, f"{key_id}-{number}", model=SERVED)).is_admitted
        await auth.settle(f"{key_id}-{number}", 10)
    async with jobs(postgres_url, node.address, auth_address=auth.replica.address) as service:
        batch = await service.batch(b"\n".join(line(str(n)) for n in range(9)), key_id)
        await until(lambda: len(mesh.events) == 4)
        await asyncio.sleep(0.5)
        # Four of the six calls were left; the other lines wait.
        assert len(engine.requests) == 4
        assert not (await auth.check(secret, model=SERVED)).is_admitted
        assert (await service.batch_now(batch["id"]))["request_counts"]["failed"] == 0
        assert all(event.reserved and event.key_id == key_id for event in mesh.events)
        true = [event.prompt_tokens + event.completion_tokens for event in mesh.events]
        assert all(true)
        for event, tokens in zip(mesh.events, true, strict=True):
            await auth.settle(event.request_id, tokens)
        uses = await auth.uses(key_id=key_id)
        assert uses["requests_per_minute"][0] == "6"
        assert uses["tokens_per_minute"][0] == str(20 + sum(true))
        await auth.set(key_id=key_id, requests_per_minute=100)
        ended = await service.ended(batch["id"])
        assert ended["request_counts"] == {"total": 9, "completed": 9, "failed": 0}


async def test_a_worker_that_dies_before_its_line_runs_keeps_nothing(
    postgres_url: str,
    redis_url: str,
    metrics: FakeMetrics,
    node: Node,
    engine: FakeEngine,
    mesh: FakeMesh,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = int(time.time())
    options = functools.partial(limiting.LimiterOptions, at=lambda: (now, 0))
    monkeypatch.setattr(limiting, "LimiterOptions", options)
    fields = {"metrics_address": metrics.address, "reservation_s": "600"}
    held = asyncio.Event()

    async def hold(reply: Any) -> None:
        await held.wait()
        await reply.stream(ANSWER)

    engine.script = hold
    database = make_engine(postgres_url)
    dead = Work(database, "dead", lease_s=0.5)
    try:
        async with limited(postgres_url, redis_url, **fields) as auth:
            key_id, _ = await auth.key(tenant="t")
            await auth.set(key_id=key_id, tokens_per_day=10**6, concurrent_requests=2)
            more = {
                "auth_address": auth.replica.address,
                "batch_lease_s": 1,
                "batch_concurrency": 1,
            }
            async with jobs(postgres_url, node.address, **more) as service:
                batch = await service.batch(line("a") + b"\n" + line("b"), key_id)
                await until(lambda: engine.requests)
                await dead.beat()
                [claim] = await dead.claim(1)
                await callers.Callers(auth.replica.channel).admit(claim)
                held.set()
                ended = await service.ended(batch["id"])
                assert ended["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
                assert len(engine.requests) == 1
                [event] = mesh.events
                await auth.settle(event.request_id, 10)
                [lost] = await service.content(ended["error_file_id"])
                assert lost["error"]["code"] == "outcome_unknown"
                # Nobody knows whether it ran: until the reservation is over it counts.
                uses = await auth.uses(key_id=key_id)
                assert uses["concurrent_requests"][0] == "1" and uses["tokens_per_day"][1] != "0"
                now += 661
                uses = await auth.uses(key_id=key_id)
                assert uses["concurrent_requests"][0] == "0"
                assert uses["tokens_per_day"] == ("0", "0")
    finally:
        await database.dispose()
