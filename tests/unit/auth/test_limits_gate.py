"""What callers with limits get: leave with headers, or a refusal that says which limit it was."""

import asyncio
import base64
from typing import Any

import orjson
import pytest
from envoy.service.auth.v3 import external_auth_pb2
from google.rpc import error_details_pb2, status_pb2

from infermesh.auth.v1 import audit_service_pb2 as audit_pb
from services.auth import access, audit_policy, contracts, limits_replies
from services.auth.audit import Recorder
from services.auth.decision import Decider
from services.auth.limiting.contract import Alert, Refusal, Room, ScopeLimits, Verdict
from services.auth.limits import LimitBook
from services.auth.limits_gate import LimitGate
from services.auth.reservation import Estimator, Prices
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

KEY = ScopeLimits("k:key_user", 60, 1000, 5, 10_000, 12_500_000_000)
TENANT = ScopeLimits("t:acme", 100)
REST: dict[str, Any] = {"model": "m", "prompt_bytes": 400, "max_tokens": 50}
MINUTE = {"requests": Room(60, 59, 1.0), "tokens": Room(1000, 850, 360.2)}


class FakeLimiter:
    """Answers as it is told, later where it is told so."""

    def __init__(self) -> None:
        self.verdict = Verdict(True, **MINUTE)
        self.asked: list[tuple[Any, ...]] = []
        self.open: list[asyncio.Future[Verdict]] = []
        self.is_slow = False

    def admit(self, *asked: Any) -> asyncio.Future[Verdict]:
        self.asked.append(asked)
        future: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        if self.is_slow:
            self.open.append(future)
        else:
            future.set_result(self.verdict)
        return future


class World:
    def __init__(self, *scopes: ScopeLimits, inference: bool = False) -> None:
        self.limiter = FakeLimiter()
        self.events: list[audit_pb.AuditEvent] = []
        recorder = Recorder(
            lambda data, _: self.events.append(audit_pb.AuditEvent.FromString(data))
        )
        book = LimitBook()
        book._limits = {each.scope: each for each in scopes}
        estimator = Estimator(4, 1024, 32768)
        self.gate = LimitGate(book, self.limiter, estimator, Prices(), recorder)  # type: ignore[arg-type]
        table = audit_policy.mark(access.build_table(contracts.services()), inference=inference)
        self.decider = Decider(make_ring(), table, access.ModelNames(), recorder, self.gate)

    def decide(self, *, is_grpc: bool = False) -> Any:
        if is_grpc:
            request = check_request(GRPC_CHAT, grpc_headers(USER), rest=REST, typed={"model": "m"})
        else:
            request = check_request(REST_CHAT, rest_headers(USER), rest=REST)
        return self.decider.decide(request)


def read(data: bytes) -> tuple[Any, dict[str, str]]:
    """Returns a reply and the headers that the caller gets."""
    reply = external_auth_pb2.CheckResponse.FromString(data)
    if reply.HasField("denied_response"):
        found = reply.denied_response.headers
    else:
        found = reply.ok_response.response_headers_to_add
    assert {each.append_action for each in found} <= {2}  # OVERWRITE_IF_EXISTS_OR_ADD
    return reply, {each.header.key: each.header.value for each in found}


ROOM = {
    "x-ratelimit-limit-requests": "60",
    "x-ratelimit-remaining-requests": "59",
    "x-ratelimit-reset-requests": "1s",
    "x-ratelimit-limit-tokens": "1000",
    "x-ratelimit-remaining-tokens": "850",
    "x-ratelimit-reset-tokens": "6m1s",
}


@pytest.mark.parametrize(("holds_place", "mark"), [(False, "1"), (True, "place")])
async def test_an_admitted_call_gets_headers_a_mark_and_its_identity(
    holds_place: bool, mark: str
) -> None:
    world = World(KEY, TENANT)
    world.limiter.verdict = Verdict(True, **MINUTE, holds_place=holds_place)
    reply, headers = read(world.decide())
    assert reply.status.code == 0
    assert headers == ROOM
    to_service = {each.header.key: each.header.value for each in reply.ok_response.headers}
    assert to_service == {
        "x-mesh-key-id": "key_user",
        "x-mesh-tenant": "acme",
        "x-mesh-role": "user",
        "x-mesh-model": "m",
        "x-mesh-reserved": mark,
    }
    assert set(reply.ok_response.headers_to_remove) == {"authorization", "x-api-key"}
    [(request_id, scopes, tokens, usd)] = world.limiter.asked
    assert request_id == rest_headers(USER)["x-request-id"]
    assert (scopes, tokens, usd) == ((TENANT, KEY), 150, 0)


async def test_a_caller_without_limits_does_not_ask() -> None:
    world = World(ScopeLimits("t:other", 1), ScopeLimits("m:key_user/other", 1))
    reply, headers = read(world.decide())
    assert reply.status.code == 0
    assert headers == {}
    assert not reply.HasField("dynamic_metadata")
    assert "x-mesh-reserved" not in {each.header.key for each in reply.ok_response.headers}
    assert world.limiter.asked == []


async def test_calls_that_name_no_model_are_not_limited() -> None:
    world = World(ScopeLimits("k:key_admin", 0), TENANT)
    reply = read(world.decider.decide(check_request(LIST_KEYS, grpc_headers(ADMIN))))[0]
    assert reply.status.code == 0
    assert world.limiter.asked == []


async def test_a_call_that_is_refused_anyway_is_not_charged() -> None:
    world = World(KEY)
    request = check_request(REST_CHAT, rest_headers(USER), rest={"model": "a b"})
    assert read(world.decider.decide(request))[0].denied_response.status.code == 404
    assert world.limiter.asked == []


async def test_the_answer_waits_for_the_limiter() -> None:
    world = World(KEY)
    world.limiter.is_slow = True
    later = world.decide()
    assert isinstance(later, asyncio.Future)
    assert not later.done()
    world.limiter.open[0].set_result(world.limiter.verdict)
    assert read(await asyncio.wait_for(later, 10))[1] == ROOM


async def test_an_answer_that_cannot_be_made_does_not_hang() -> None:
    world = World(KEY)
    world.limiter.is_slow = True
    later = world.decide()
    world.limiter.open[0].set_result(None)  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        await asyncio.wait_for(later, 10)


START = "The limit of the key `key_user` has no room for the call: "
RATE, QUOTA = "rate_limit_exceeded", "insufficient_quota"
REFUSALS = [
    (
        Refusal("k:key_user", "requests_per_minute", 12.3, 60, 60),
        (RATE, f"{START}60 calls in a minute, 60 are used. Try again in 13s.", "13"),
    ),
    (
        Refusal("k:key_user", "tokens_per_minute", 0.0, 1000, 990),
        (
            RATE,
            f"{START}1000 tokens in a minute, 990 are used. The call may take 150. "
            "Try again in 1s.",
            "1",
        ),
    ),
    (
        Refusal("k:key_user", "tokens_per_minute", None, 100, 0),
        (
            RATE,
            f"{START}100 tokens in a minute, 0 are used. The call may take 150. "
            "It is larger than the limit alone.",
            None,
        ),
    ),
    (
        Refusal("k:key_user", "concurrent_requests", 1.0, 5, 5),
        (RATE, f"{START}5 calls at the same time, 5 are used. Try again in 1s.", "1"),
    ),
    (
        Refusal("k:key_user", "tokens_per_day", 3700.0, 10_000, 9_900),
        (
            QUOTA,
            f"{START}10000 tokens in a day (UTC), 9900 are used. The call may take 150. "
            "Try again in 1h1m40s.",
            "3700",
        ),
    ),
    (
        Refusal("k:key_user", "usd_per_month", 90.0, 12_500_000_000, 12_499_000_000),
        (
            QUOTA,
            f"{START}12.50 US dollars in a month (UTC), 12.499 are used. The call may cost 0.00. "
            "Try again in 1m30s.",
            "90",
        ),
    ),
    (
        Refusal("t:acme", "requests_per_minute", 2.0, 100, 100),
        (
            RATE,
            "The limit of the tenant `acme` has no room for the call: 100 calls in a minute, "
            "100 are used. Try again in 2s.",
            "2",
        ),
    ),
]


@pytest.mark.parametrize(("refusal", "expected"), REFUSALS)
async def test_a_refusal_says_which_limit(
    refusal: Refusal, expected: tuple[str, str, str | None]
) -> None:
    code, message, wait = expected
    world = World(KEY, TENANT)
    rooms = {"requests": Room(60, 0, 12.3), "tokens": Room(1000, 10, 59.0)}
    world.limiter.verdict = Verdict(False, refusal, **rooms)
    reply, headers = read(world.decide())
    assert reply.denied_response.status.code == 429
    error = orjson.loads(reply.denied_response.body)["error"]
    assert (error["code"], error["message"]) == (code, message)
    assert headers.get("retry-after") == wait
    # OpenAI's clients do not wait longer than a minute; they are told not to try at all.
    is_soon = wait is not None and int(wait) <= 60
    assert headers.get("x-should-retry") == (None if is_soon else "false")
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-ratelimit-reset-tokens"] == "59s"
    [event] = world.events
    assert (event.kind, event.outcome) == (audit_pb.AUDIT_KIND_DENIAL, code.upper())
    assert (event.key_id, event.tenant, event.presented) == ("key_user", "acme", "")


async def test_grpc_callers_get_resource_exhausted_with_its_details() -> None:
    world = World(KEY)
    world.limiter.verdict = Verdict(
        False, Refusal("k:key_user", "tokens_per_minute", 7.0, 1000, 990)
    )
    reply, headers = read(world.decide(is_grpc=True))
    assert headers["grpc-status"] == "8"
    details = headers["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(base64.b64decode(details + "=" * (-len(details) % 4)))
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(retry)
    assert info.reason == "RATE_LIMIT_EXCEEDED"
    assert dict(info.metadata) == {
        "scope": "k:key_user",
        "limit": "tokens_per_minute",
        "allowed": "1000",
    }
    assert retry.retry_delay.seconds == 7
    assert reply.denied_response.body == status.message


async def test_without_redis_a_limited_call_may_be_refused() -> None:
    world = World(KEY)
    world.limiter.verdict = Verdict(False)
    reply, headers = read(world.decide())
    assert reply.denied_response.status.code == 503
    assert orjson.loads(reply.denied_response.body)["error"]["code"] == "store_unavailable"
    assert headers["retry-after"] == "1"


async def test_an_alert_is_an_event_of_the_audit_log(caplog: pytest.LogCaptureFixture) -> None:
    world = World(KEY)
    alert = Alert("k:key_user", "tokens_per_day", 80, "2026-11-21")
    world.limiter.verdict = Verdict(True, alerts=(alert,))
    assert read(world.decide())[0].status.code == 0
    [event] = world.events
    assert (event.kind, event.key_id) == (audit_pb.AUDIT_KIND_ALERT, "key_user")
    assert event.resource == "k:key_user"
    assert orjson.loads(event.after) == {
        "limit": "tokens_per_day",
        "percent": 80,
        "period": "2026-11-21",
    }
    assert "alert" in caplog.text


@pytest.mark.parametrize("admitted", [True, False])
async def test_inference_is_audited_when_it_is_admitted(admitted: bool) -> None:
    world = World(KEY, inference=True)
    if not admitted:
        refusal = Refusal("k:key_user", "requests_per_minute", 1.0, 60, 60)
        world.limiter.verdict = Verdict(False, refusal)
    world.decide()
    kinds = [event.kind for event in world.events]
    assert kinds == [audit_pb.AUDIT_KIND_INFERENCE if admitted else audit_pb.AUDIT_KIND_DENIAL]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.1, "1s"), (59.2, "1m0s"), (360, "6m0s"), (3599.5, "1h0m0s"), (90061, "25h1m1s")],
)
def test_durations_as_openai_writes_them(seconds: float, text: str) -> None:
    assert limits_replies.duration(seconds) == text


@pytest.mark.parametrize(
    ("nano", "text"),
    [(0, "0.00"), (12_500_000_000, "12.50"), (1, "0.000000001"), (1_234_567_000, "1.234567")],
)
def test_dollars(nano: int, text: str) -> None:
    assert limits_replies.usd_text(nano) == text
